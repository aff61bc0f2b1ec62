"""The network that training would end at with no limit: the exact prediction for a known mixture of Gaussians.

The clean point behind x_t = signal x_0 + sigma noise is a mean over the Gaussians, each with the probability that x_t
came from it, as Bayes' rule has it. With this network an error that is left is the sampler's.

Shapes: B batch, K centres.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from laboratory.diffusion import NUM_VARIANCE_POINTS, Diffusion
from laboratory.flow_matching import FlowMatching
from laboratory.points import GaussianMixture
from text_diffusers.common.clean_estimate import NoiseLevel, prediction_of


class IdealNetwork(nn.Module):
    """Points (B, 1, 2) and times (B,) in [0, 1] to the exact prediction (B, 1, 2).

    Args:
        mixture: of the clean points.
        level_at: noise levels of times (B,).
        prediction_type: see `prediction_of`.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        level_at: Callable[[Tensor], NoiseLevel],
        prediction_type: str,
    ):
        super().__init__()
        self.mixture = mixture
        self.level_at = level_at
        self.prediction_type = prediction_type

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        level = self.level_at(times)
        signal = torch.as_tensor(level.signal)[:, None].float()  # (B, 1)
        sigma = torch.as_tensor(level.sigma)[:, None].float()
        noisy = points.squeeze(1)

        # 1. Which Gaussian a point came from
        variance = (signal * self.mixture.std).square() + sigma.square()
        centres = self.mixture.centres
        squares = (noisy[:, None] - signal[:, :, None] * centres).square().sum(dim=2)  # (B, K)
        shares = (-squares / (2 * variance)).softmax(dim=1)

        # 2. The noise in it, and the clean point
        mean_centre = shares @ centres  # (B, 2)
        surplus = (noisy - signal * mean_centre) / variance
        noise = sigma * surplus
        clean = mean_centre + signal * self.mixture.std**2 * surplus
        return prediction_of(self.prediction_type, clean.unsqueeze(1), noise.unsqueeze(1), level)


def ideal_diffusion(mixture: GaussianMixture, **noise_options: Any) -> Diffusion:
    """A `Diffusion` with the exact network, and the errors that it makes at points of the mixture."""
    diffusion = Diffusion(**noise_options)

    def level_at(times: Tensor) -> NoiseLevel:
        timesteps = times * diffusion.num_train_timesteps
        return diffusion.noise.noise_level(timesteps.round())

    diffusion.network = IdealNetwork(mixture, level_at, diffusion.prediction_type)
    shown = mixture.sample(NUM_VARIANCE_POINTS)
    diffusion.mean_squares.copy_(diffusion.estimate_errors(shown))
    return diffusion


def ideal_flow(mixture: GaussianMixture) -> FlowMatching:
    """A `FlowMatching` with the exact velocity."""
    network = IdealNetwork(mixture, lambda times: NoiseLevel(1 - times, times), "flow")
    return FlowMatching(network)
