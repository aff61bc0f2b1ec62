"""The randomness of training, as pure functions of the seed, the step and the row.

Shapes: G rows of the global batch, B any number of rows.
"""

import math

import numpy as np
import torch
from torch import Tensor


def row_noise(seed: int, step: int, num_rows: int) -> tuple[Tensor, list[torch.Generator]]:
    """Stratified uniform numbers (G,) in [0, 1), one a stratum of width 1/G, and a generator for each row.

    Example:
        >>> from text_diffusers.common.training_randomness import row_noise
        >>> uniform, generators = row_noise(seed=0, step=7, num_rows=4)
        >>> (uniform * 4).long().tolist(), len(generators)
        ([0, 1, 2, 3], 4)
    """
    # torch's CPU generator looks at 32 bits of a seed only, so seed and step are hashed into them.
    source = torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    )
    # Row i gets a number in [i / G, (i + 1) / G).
    strata = torch.arange(num_rows, dtype=torch.float64)
    uniform = (strata + torch.rand(num_rows, generator=source, dtype=torch.float64)) / num_rows

    seeds = torch.randint(2**62, (num_rows,), generator=source)
    return uniform, [torch.Generator().manual_seed(int(row_seed)) for row_seed in seeds]


def token_uniform(
    uniform: Tensor, length: int, block_length: int | None, generators: list[torch.Generator]
) -> Tensor:
    """The numbers (B,) as they are, or for a model with blocks one a block, told to each of its tokens, (B, L).

    With n blocks, block j of a row gets (p(j) + u) / n, where u is the row's number and p a random permutation of
    0, ..., n - 1 by the row's generator. Each is as uniform as u, so the mean over them is the bound; and if the
    rows' numbers fall one in each of G strata, those of all blocks fall one in each of G n.
    """
    if block_length is None:
        return uniform
    blocks = -(-length // block_length)
    if blocks == 1:
        return uniform.unsqueeze(1).expand(-1, length)

    order = torch.stack([torch.randperm(blocks, generator=generator) for generator in generators])
    # (B, n), then one for each token; the last block may be shorter than the others.
    numbers = (order.to(uniform.device) + uniform.unsqueeze(1)) / blocks
    return numbers.repeat_interleave(block_length, dim=1)[:, :length]


def uniform_times(uniform: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """`(uniform, weights)`: numbers (B,) in [0, 1) as they are, each of weight 1."""
    return uniform, torch.ones_like(uniform)


def log_uniform_times(uniform: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """`(times, weights)` (B,) that average any loss as uniform numbers would, but as often below 0.1 as above.

    A masked token weighs 1 / t in the bound of the absorbing kernel, and the rows that weigh most hold the fewest of
    them. With these times all masked tokens weigh the same, which leaves the expectation as it is and takes out most
    of the variance of the gradient. The interval (0, first] is one point, as in `training_timesteps`.
    """
    # The density is 1 / (mass t) above `first`; the numbers below 1 / mass all become `first`.
    mass = 1 - math.log(first)
    times = first * torch.exp((uniform * mass - 1).clamp(min=0))
    return times, mass * times


TIME_SAMPLINGS = {"uniform": uniform_times, "log_uniform": log_uniform_times}
