"""Density of the training times over word embeddings: uniform, by the size of the loss, or by its growth.

A density is piecewise constant over equal parts of the clock. Everything here is a pure function, so a resumed run
draws what an uninterrupted one would.

Shapes: B batch, K parts of the clock.
"""

import torch
from torch import Tensor

UNIFORM_SHARE = 0.1  # of the draws, so that no time is forgotten and no weight is above ten


def draw_times(uniform: Tensor, density: Tensor, num_train_timesteps: int) -> tuple[Tensor, Tensor]:
    """Integer times (B,) in 0, ..., T - 1 from uniform numbers (B,) in [0, 1), and 1 / density (B,) at them.

    Args:
        uniform: (B,) in [0, 1).
        density: (K,) positive, up to a factor.
        num_train_timesteps: T.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import draw_times
        >>> times, weights = draw_times(torch.tensor([0.0, 0.5, 0.875]), torch.tensor([3.0, 1.0]), 100)
        >>> times
        tensor([ 0, 33, 75])
        >>> weights
        tensor([0.6667, 0.6667, 2.0000])
    """
    share = (density / density.sum()).to(uniform)  # (K,)
    num_parts = len(share)

    # The part by inverse CDF, then the place inside of it by the remainder.
    ends = share.cumsum(dim=0)
    part = torch.searchsorted(ends, uniform.contiguous(), right=True)  # (B,)
    part = part.clamp(max=num_parts - 1)
    inside = (uniform - (ends - share)[part]) / share[part]

    times = ((part + inside.clamp(0, 1)) / num_parts * num_train_timesteps).long()
    weights = 1 / (share[part] * num_parts)
    return times.clamp(0, num_train_timesteps - 1), weights


def loss_aware_density(losses: Tensor) -> Tensor:
    """(K,) root of the mean square of losses (K, n), drawn at n times in each part of the clock.

    Weighted by 1 / density it leaves the expected loss as it is, with the least variance
    (https://arxiv.org/abs/2102.09672).
    """
    return mixed(losses.double().square().mean(dim=1).sqrt())


def warped_density(losses: Tensor) -> Tensor:
    """(K,) growth of the mean of losses (K, n) over each part of the clock.

    Drawn by it, without weights, the loss grows linearly from one draw to the next: time is spent where words are
    decided (https://arxiv.org/abs/2211.15089).
    """
    mean = losses.double().mean(dim=1).cummax(dim=0).values
    # Losses at the K + 1 ends of the parts: between two parts, the mean of both.
    borders = torch.cat([mean[:1], (mean[1:] + mean[:-1]) / 2, mean[-1:]])
    return mixed(borders.diff())


def mixed(density: Tensor) -> Tensor:
    """The density with mean 1, a share of it uniform."""
    total = density.mean()
    # Losses that do not grow tell nothing; "not above" also holds for NaN.
    if not total > 0:
        return torch.ones_like(density)
    return (1 - UNIFORM_SHARE) * density / total + UNIFORM_SHARE


TIME_DENSITIES = {"loss_aware": loss_aware_density, "time_warped": warped_density}
