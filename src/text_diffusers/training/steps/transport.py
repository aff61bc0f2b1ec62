"""Pairs of noise and latents that lie close to each other: optimal transport within a batch.

Straight paths from random noise to random latents cross, and a network that has to tell them apart bends its own.
Within a batch, the noise can be dealt out to the latents such that the squared distances add up to the least, which
leaves noise and latents as they are and the paths straighter (https://arxiv.org/abs/2302.00482).

Shapes: B batch, K latents of a text, E latent width.
"""

import numpy as np
import torch
from torch import Tensor


def paired_noise(latents: Tensor, noise: Tensor, groups: Tensor | None = None) -> Tensor:
    """(B, K, E) the same noise, each row of it dealt to the latents that it is nearest to in all.

    Takes O(B^3) time in the worst case: B should not be much above a thousand.

    Args:
        latents, noise: (B, K, E).
        groups: (B,) ids, such as labels; noise stays within its group. Paired across labels, noise would say something
            of the label in training, and nothing in sampling.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import torch
        >>> from text_diffusers.training.steps.transport import paired_noise
        >>> latents = torch.tensor([5.0, -5.0, 0.0]).view(3, 1, 1)
        >>> noise = torch.tensor([-1.0, 0.1, 1.0]).view(3, 1, 1)
        >>> paired_noise(latents, noise).flatten()
        tensor([ 1.0000, -1.0000,  0.1000])
    """
    if latents.shape != noise.shape:
        raise ValueError(
            f"`noise` must have the shape of `latents`, {tuple(latents.shape)}, got {tuple(noise.shape)}."
        )
    if groups is None:
        groups = torch.zeros(len(latents), dtype=torch.long)
    groups = groups.cpu()

    # Of |x - n|^2 only the product of both depends on who is paired with whom.
    products = latents.flatten(1).double() @ noise.flatten(1).double().T  # (B, B)
    costs = -products.cpu().numpy()
    chosen = torch.arange(len(latents))
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        among = costs[np.ix_(rows.numpy(), rows.numpy())]
        chosen[rows] = rows[torch.from_numpy(least_assignment(among))]
    return noise[chosen.to(noise.device)]


def least_assignment(costs: np.ndarray) -> np.ndarray:
    """(B,) for each row of costs (B, B) another column, such that the costs add up to the least.

    The Hungarian method by shortest augmenting paths: rows come in one after the other, and prices of the columns keep
    all reduced costs at 0 or above.

    Example:
        >>> import numpy as np
        >>> from text_diffusers.training.steps.transport import least_assignment
        >>> least_assignment(np.array([[1.0, 2.0], [1.0, 9.0]])).tolist()
        [1, 0]
    """
    size = len(costs)
    row_prices = np.zeros(size)
    column_prices = np.zeros(size)
    row_of = np.full(size, -1)  # of each column, -1 while it is free

    for new_row in range(size):
        # 1. The shortest path from the new row to a free column, as by Dijkstra
        distances = np.full(size, np.inf)
        previous = np.full(size, -1)  # the column before each column on its path
        is_open = np.ones(size, dtype=bool)
        row, reached, column = new_row, 0.0, -1
        while True:
            lengths = reached + costs[row] - row_prices[row] - column_prices
            is_shorter = is_open & (lengths < distances)
            distances[is_shorter] = lengths[is_shorter]
            previous[is_shorter] = column

            column = int(np.where(is_open, distances, np.inf).argmin())
            reached = distances[column]
            is_open[column] = False
            row = int(row_of[column])
            if row < 0:
                break

        # 2. Prices that make each part of the path free
        closed = np.flatnonzero(~is_open)
        gains = reached - distances[closed]
        column_prices[closed] -= gains
        taken = row_of[closed]
        row_prices[taken[taken >= 0]] += gains[taken >= 0]
        row_prices[new_row] += reached

        # 3. Along the path each row moves on to the next column
        while column >= 0:
            before = int(previous[column])
            row_of[column] = new_row if before < 0 else row_of[before]
            column = before

    assignment = np.empty(size, dtype=np.int64)
    assignment[row_of] = np.arange(size)
    return assignment
