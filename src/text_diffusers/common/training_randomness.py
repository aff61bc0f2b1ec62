"""The randomness of training, as pure functions of the seed, the step and the row.

Shapes: G rows of the global batch, B any number of rows.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from text_diffusers.common.randomness import rand_like
from text_diffusers.common.row_blocks import (
    block_numbers,
    count_blocks,
    join_blocks,
    split_into_blocks,
)

# Stands behind every number in [0, 1)
BEHIND_ALL = 2.0


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


def turn_of_step(choices: Sequence[Any], seed: int, step: int) -> Any:
    """One of the choices, which take turns from step to step: each once a round, in an order of the round's own.

    Example:
        >>> from text_diffusers.common.training_randomness import turn_of_step
        >>> sorted(turn_of_step([4, 8, 16], seed=0, step=step) for step in range(6))
        [4, 4, 8, 8, 16, 16]
    """
    turn, place = divmod(step, len(choices))
    order = np.random.default_rng([seed, turn]).permutation(len(choices))
    return choices[int(order[place])]


def token_uniform(
    uniform: Tensor,
    length: int,
    block_length: int | None,
    generators: list[torch.Generator],
    starts: Tensor | None = None,
) -> Tensor:
    """The numbers (B,) as they are, or for a model with blocks one a block, told to each of its tokens, (B, L).

    With n blocks, block j of a row gets (p(j) + u) / n, where u is the row's number and p a random permutation of
    0, ..., n - 1 by the row's generator. Each is as uniform as u, so the mean over them is the bound; and if the
    rows' numbers fall one in each of G strata, those of all blocks fall one in each of G n. Where blocks may begin
    anywhere, n is the most that a row can have.

    Args:
        uniform: (B,) numbers in [0, 1).
        length: L, tokens of a row.
        generators: one a row.
        starts: (B,) columns at each of which a block begins; by default the first.
    """
    if block_length is None:
        return uniform
    blocks = count_blocks(length, block_length, starts)
    if blocks == 1:
        return uniform.unsqueeze(1).expand(-1, length)

    order = torch.stack([torch.randperm(blocks, generator=generator) for generator in generators])
    # (B, n), then one for each token; the last block may be shorter than the others.
    numbers = (order.to(uniform.device) + uniform.unsqueeze(1)) / blocks
    if starts is not None:
        return numbers.gather(1, block_numbers(length, block_length, starts))
    return numbers.repeat_interleave(block_length, dim=1)[:, :length]


class MaskCounts(NamedTuple):
    """Masks whose number was drawn; (B, L) each, the same for all tokens of a row or block.

    Attributes:
        masked: bool, the tokens that are masked.
        counts: k, the number of masks.
        totals: n, the number of tokens that might have been masked.
    """

    masked: Tensor
    counts: Tensor
    totals: Tensor

    @property
    def shares(self) -> Tensor:
        """k / n, the time of linear noise at which as many are masked on average; 0 where there are none."""
        return self.counts / self.totals.clamp(min=1)

    @property
    def bound_weights(self) -> Tensor:
        """n / k: with them, cross-entropy at the masks is the bound of absorbing noise in continuous time.

        It is for every schedule: only the order in which tokens appear matters, not when
        (https://arxiv.org/abs/2110.02037).
        """
        return self.totals / self.counts.clamp(min=1)

    @property
    def even_weights(self) -> Tensor:
        """2 n / (n + 1), the mean of the bound's weights over all masks: each mask then counts alike.

        By the bound, the few masks of rows with few masks make most of the gradient and of its noise. A model that is
        as sure with many masks as with few has the same loss by both.
        """
        return 2 * self.totals / (self.totals + 1)


def masks_by_count(
    counted: Tensor,
    uniform: Tensor,
    generators: list[torch.Generator],
    block_length: int | None = None,
    starts: Tensor | None = None,
) -> MaskCounts:
    """Masks for absorbing noise, every number of them being equally likely.

    Of the n counted tokens of a row, or with blocks of each block, k = floor(u n) + 1 are masked, any k of them alike.

    Args:
        counted: (B, L) bool, the tokens that are learned.
        uniform: u from `token_uniform`, (B,), or with blocks (B, L).
        generators: one a row.
        starts: (B,) columns at each of which a block begins; by default the first.

    Example:
        >>> import torch
        >>> counted = torch.tensor([[False, True, True, True, True]])
        >>> masks = masks_by_count(counted, torch.tensor([0.6]), [torch.Generator().manual_seed(0)])
        >>> int(masks.masked.sum()), masks.masked[0, 0].item(), masks.shares[0, 1].item()
        (3, False, 0.75)
    """
    length = counted.shape[1]
    size = block_length or length

    def by_block(values: Tensor, filling: float = 0) -> Tensor:
        return split_into_blocks(values, size, filling, starts)  # (B, blocks, tokens)

    # How many of each block are masked
    numbers = uniform if uniform.ndim == 2 else uniform.unsqueeze(1).expand(counted.shape)
    totals = by_block(counted).sum(dim=-1, keepdim=True)  # (B, blocks, 1)
    # The first block may have no first token.
    number = by_block(numbers).amax(dim=-1, keepdim=True)
    counts = (number * totals).long() + 1
    counts = counts.minimum(totals)

    # And which: those that come first in a random order of the counted tokens
    order = rand_like(counted, generators).masked_fill(~counted, BEHIND_ALL)
    ranks = by_block(order, BEHIND_ALL).argsort(dim=-1).argsort(dim=-1)
    columns = [ranks < counts, counts.expand(ranks.shape), totals.expand(ranks.shape)]
    return MaskCounts(*(join_blocks(column, length, starts) for column in columns))


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
