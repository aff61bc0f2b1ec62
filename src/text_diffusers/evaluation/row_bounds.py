"""The bounds of given rows, one number a row: the full sum over time, and Monte Carlo.

All draws of a row come from its own generators, so its bound does not depend on the rows it is batched with.

Shapes: B batch, R rows, L sequence length, V vocabulary size, N positions, T training timesteps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from text_diffusers.common.progress import progress_bar
from text_diffusers.common.randomness import rand
from text_diffusers.common.row_blocks import (
    block_numbers,
    count_blocks,
    join_blocks,
    split_into_blocks,
)
from text_diffusers.common.validation import is_int, require
from text_diffusers.data.rows import unknown_tokens
from text_diffusers.evaluation.bounds import (
    at_positions,
    block_length,
    block_starts,
    noisy_token_bound,
    predict,
    row_sums,
)
from text_diffusers.evaluation.estimates import share_of_process, total_over_processes
from text_diffusers.evaluation.modules import device_of
from text_diffusers.losses.discrete import absorbing_bound
from text_diffusers.schedulers.noise_schedules import time_of_noise_level

CPU = torch.device("cpu")
KNOWN = 2.0  # more than any uniform number: such tokens are masked last, which is never

Batch = dict[str, Tensor]
Integrand = Callable[[Batch, Tensor, list[torch.Generator]], Tensor]


class RowBounds(NamedTuple):
    """Bounds of R rows.

    Attributes:
        nats: (R,) float64, nats of each row, summed over its tokens.
        variance: (R,) float64, of `nats` over repeated noise; `nan` where nothing was drawn twice.
        num_samples: noisy rows that were predicted, over all rows.
    """

    nats: Tensor
    variance: Tensor
    num_samples: int


def full_bound(
    denoiser: Any,
    scheduler: Any,
    rows: Sequence[dict[str, Any]],
    batch_size: int = 64,
    num_noise: int = 1,
    seed: int = 0,
    progress: bool = False,
    noise_ids: Sequence[int] | None = None,
    accelerator: Any = None,
) -> RowBounds:
    """Bound of each row with nothing drawn at random but x_t: every time, or every number of masks, has its turn.

    On a grid of T steps this is the sum over all of them. In continuous time the bound of the absorbing kernel is the
    sum over n of the cross-entropy of n masked tokens, drawn from the row's tokens, divided by n, whatever the noise
    schedule (the any-order bound of RADD, https://arxiv.org/abs/2406.03736). A denoiser that looks at the time is told
    one at which so many tokens are masked, drawn from its distribution, `min_timestep` at least.

    Args:
        denoiser: as in `TextDiffusionPipeline`, in evaluation mode.
        scheduler: a token scheduler.
        rows: mappings with `input_ids` and `attention_mask`, of any lengths, a tokenized data set for example; also
            `label` if the model takes labels, and `given` if some tokens are known: they stay clean, cost nothing.
        batch_size: noisy rows in one call of the denoiser; the result does not depend on it.
        num_noise: draws of x_t at each step or number of masks.
        seed: of all draws.
        progress: show a bar.
        noise_ids: a number of at least 0 a row, on which its draws depend beside `seed`; by default its place. Rows
            with one number have the same noise levels, and differ by less than rows that do not.
        accelerator: its processes share the noisy rows and all get the same result; each must call this.

    Raises:
        ValueError: in continuous time for any other kernel, whose bound is an integral over time.

    Example:
        >>> from text_diffusers import D3PMAbsorbingScheduler, TextTransformerModel
        >>> from text_diffusers.evaluation import full_bound
        >>> denoiser = TextTransformerModel(9, hidden_size=16, num_layers=1, num_attention_heads=2, max_length=4)
        >>> rows = [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}]
        >>> bounds = full_bound(denoiser.eval(), D3PMAbsorbingScheduler(mask_token_id=8), rows)
        >>> bounds.nats.shape, bounds.num_samples  # 1, 2 or 3 of the tokens were masked
        (torch.Size([1]), 3)
    """
    require(is_int(num_noise, 1), "num_noise", "an integer of at least 1", num_noise)
    rows = list(rows)
    configured: Any = scheduler.config
    num_steps: int = configured.num_train_timesteps
    if num_steps is None and scheduler.corruption != "absorbing":
        raise ValueError(
            "`scheduler` must have `num_train_timesteps` for the full bound, got None: in continuous time the bound "
            f"of the {scheduler.corruption} kernel is an integral. Estimate it by Monte Carlo."
        )

    # One term of the sum: a step of the grid, or a number of masks.
    def one_step(batch: Batch, step: Tensor, generators: list[torch.Generator]) -> Tensor:
        times = (step + 1).double() / num_steps  # (B,)
        return scheduled_bound(denoiser, scheduler, batch, times, generators) / num_steps

    def one_count(batch: Batch, count: Tensor, generators: list[torch.Generator]) -> Tensor:
        tokens = batch["input_ids"]
        uniform = rand(tuple(tokens.shape), generators, tokens.device)  # (B, L)
        return any_order_bound(denoiser, scheduler, batch, count + 1, uniform)

    if num_steps is not None:
        integrand = one_step
        strata = [num_steps] * len(rows)
    else:
        integrand = one_count
        strata = [int(most_unknown(denoiser, collate([row]))) for row in rows]
    device = device_of(denoiser)
    num_draws = [num_noise * number for number in strata]
    options: Any = {"noise_ids": noise_ids, "accelerator": accelerator}
    return sampled_bounds(
        rows, strata, num_draws, integrand, device, batch_size, seed, progress, **options
    )


def monte_carlo_bound(
    denoiser: Any,
    scheduler: Any,
    rows: Sequence[dict[str, Any]],
    num_times: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    noise_ids: Sequence[int] | None = None,
    accelerator: Any = None,
) -> RowBounds:
    """Unbiased estimate of each row's bound, from random times, two in each of `num_times` / 2 strata.

    Arguments as in `full_bound`; works for every kernel and clock. In continuous time, under the absorbing kernel, the
    number of masked tokens is drawn in place of the time: the expectation is that of `full_bound`. The last stratum of
    an odd number of times has three; a single time leaves the variance unknown, `nan`.

    Raises:
        ValueError: if `num_times` is no integer of at least 1.

    Example:
        >>> from text_diffusers import D3PMUniformScheduler, TextTransformerModel
        >>> from text_diffusers.evaluation import monte_carlo_bound
        >>> denoiser = TextTransformerModel(9, hidden_size=16, num_layers=1, num_attention_heads=2, max_length=4)
        >>> rows = [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}]
        >>> bounds = monte_carlo_bound(denoiser.eval(), D3PMUniformScheduler(vocab_size=9), rows, num_times=8)
        >>> bounds.num_samples
        8
    """
    rows = list(rows)
    num_strata = num_strata_of(num_times)

    def one_time(batch: Batch, stratum: Tensor, generators: list[torch.Generator]) -> Tensor:
        length = batch["input_ids"].shape[1]
        size = block_length(denoiser) or length
        starts = block_starts(denoiser, batch)
        num_blocks = count_blocks(length, size, starts)

        # A number in the row's stratum; in each block of its own.
        uniform = stratum.cpu().unsqueeze(1) + rand((len(stratum), num_blocks), generators, CPU)
        uniform = uniform / num_strata  # (B, blocks)
        if block_length(denoiser) is None:
            uniform = uniform.squeeze(1)
        elif starts is not None:
            uniform = uniform.gather(1, block_numbers(length, size, starts.cpu()))
        else:
            uniform = uniform.repeat_interleave(size, dim=1)[:, :length]
        return (
            drawn_token_bound(denoiser, scheduler, batch, uniform, generators).sum(dim=1)
            / num_strata
        )

    def one_number(batch: Batch, stratum: Tensor, generators: list[torch.Generator]) -> Tensor:
        tokens = batch["input_ids"]
        most = most_unknown(denoiser, batch)  # (B,)

        # The number of masks is uniform from 1 to `most`, which is the weight of a term of the sum.
        uniform = (
            stratum + rand((len(stratum), 1), generators, tokens.device).squeeze(1)
        ) / num_strata
        num_masked = ((uniform * most).long() + 1).minimum(most.clamp(min=1))
        order = rand(tuple(tokens.shape), generators, tokens.device)  # (B, L)
        return any_order_bound(denoiser, scheduler, batch, num_masked, order) * most / num_strata

    # In continuous time the number of masks is all that the absorbing kernel's bound depends on.
    continuous = (
        scheduler.corruption == "absorbing" and scheduler.config.num_train_timesteps is None
    )
    integrand = one_number if continuous else one_time
    strata = [num_strata] * len(rows)
    num_draws = [num_times] * len(rows)
    device = device_of(denoiser)
    options: Any = {"noise_ids": noise_ids, "accelerator": accelerator}
    return sampled_bounds(
        rows, strata, num_draws, integrand, device, batch_size, seed, progress, **options
    )


def num_strata_of(num_times: int) -> int:
    """Strata of which each has two random times, the last one of an odd number three.

    Raises:
        ValueError: if `num_times` is no integer of at least 1.
    """
    require(is_int(num_times, 1), "num_times", "an integer of at least 1", num_times)
    return max(1, num_times // 2)


@torch.no_grad()
def sampled_bounds(
    rows: list[dict[str, Any]],
    strata: list[int],
    num_draws: list[int],
    integrand: Integrand,
    device: torch.device,
    batch_size: int,
    seed: int,
    progress: bool,
    noise_ids: Sequence[int] | None = None,
    accelerator: Any = None,
) -> RowBounds:
    """Sums over the strata of a row of the mean of the integrand in them.

    Args:
        strata: the number of them, of each row.
        num_draws: values of the integrand of each row, as many in each stratum; the last one has what is left over.
        integrand: of a batch, the stratum (B,) of each of its rows, and their generators; (B,) nats.
        noise_ids, accelerator: as in `full_bound`.
    """
    # 1. All samples, those of rows of one length next to each other: they share a batch
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    counts = np.asarray(num_draws, dtype=np.int64)[order]
    strata_of_rows = np.asarray(strata, dtype=np.int64)[order]
    sampled_row = np.repeat(order, counts)  # (S,) of all samples
    sample = np.arange(len(sampled_row)) - np.repeat(counts.cumsum() - counts, counts)

    # A row without anything to predict has no strata, and no samples.
    draws_of_stratum = np.repeat(counts // strata_of_rows.clip(min=1), counts)
    last_stratum = np.repeat(strata_of_rows - 1, counts)
    sampled_stratum = np.minimum(sample // draws_of_stratum, last_stratum)

    # 2. Their values
    noise_of_rows = list(range(len(rows))) if noise_ids is None else list(noise_ids)
    limit = f"one a row, {len(rows)}"
    require(len(noise_of_rows) == len(rows), "noise_ids", limit, len(noise_of_rows))
    values = torch.zeros(len(sample), dtype=torch.float64)
    firsts = share_of_process(range(0, len(sample), batch_size), accelerator)
    for first in progress_bar(firsts, disable=not progress):
        now = slice(first, first + batch_size)
        batch = collate([rows[row] for row in sampled_row[now]])
        batch = {name: column.to(device) for name, column in batch.items()}
        stratum = torch.tensor(sampled_stratum[now], device=device)
        pairs = zip(sampled_row[now], sample[now], strict=True)
        generators = [sample_generator(seed, noise_of_rows[row], draw) for row, draw in pairs]
        values[now] = integrand(batch, stratum, generators).double().cpu()
    values = total_over_processes(values, device, accelerator)

    # 3. Sums over the strata of each row
    nats = torch.zeros(len(rows), dtype=torch.float64)
    variance = torch.zeros_like(nats)
    strata_of_samples = torch.tensor(sampled_stratum)
    sizes = counts.tolist()
    columns = zip(
        order, values.split(sizes), strata_of_samples.split(sizes), strata_of_rows, strict=True
    )
    for row, row_values, row_strata, num_strata in columns:
        means, variances = mean_of_strata(row_values, row_strata, int(num_strata))
        nats[row] = means.sum()
        variance[row] = variances.sum()
    return RowBounds(nats, variance, len(sample))


def mean_of_strata(values: Tensor, strata: Tensor, num_strata: int) -> tuple[Tensor, Tensor]:
    """Means of the values (S,) in each stratum, and their variances, `nan` where a stratum has one: (strata,) each."""
    zeros = torch.zeros(num_strata, dtype=values.dtype)
    sizes = zeros.index_add(0, strata, torch.ones_like(values))
    means = zeros.index_add(0, strata, values) / sizes
    squares = zeros.index_add(0, strata, (values - means[strata]).square())
    variances = squares / (sizes - 1).masked_fill(sizes < 2, torch.nan)
    return means, variances / sizes


def drawn_token_bound(
    denoiser: Any, scheduler: Any, batch: Batch, uniform: Tensor, generators: list[torch.Generator]
) -> Tensor:
    """(B, L) float64 numbers whose mean over `uniform` in [0, 1), and noise, is the bound of the tokens in nats.

    Args:
        uniform: (B,), one time a row; (B, L) for a model that writes in blocks, the same throughout a block.
    """
    device = batch["input_ids"].device
    times, weights = even_times(scheduler, uniform)  # like `uniform`
    return scheduled_token_bound(
        denoiser, scheduler, batch, times.to(device), generators, weights.to(device)
    )


def scheduled_bound(
    denoiser: Any,
    scheduler: Any,
    batch: Batch,
    times: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """(B,) float64 integrands at `times` (B,) plus the prior term."""
    weights = torch.ones_like(times)
    return scheduled_token_bound(denoiser, scheduler, batch, times, generators, weights).sum(dim=1)


def scheduled_token_bound(
    denoiser: Any,
    scheduler: Any,
    batch: Batch,
    times: Tensor,
    generators: list[torch.Generator],
    weights: Tensor,
) -> Tensor:
    """(B, L) float64 integrands at `times`, (B,) or (B, L), times `weights` of the same shape, plus the prior term."""
    # The kernel may not know the id of padding.
    unknown = unknown_tokens(batch)
    tokens = batch["input_ids"].masked_fill(~unknown, 0)
    noisy = scheduler.add_noise(tokens, times, generators)  # (B, L)
    bound = noisy_token_bound(denoiser, scheduler, batch, noisy, times).double()
    return weights.reshape(len(tokens), -1) * bound + scheduler.prior_bound(tokens) * unknown


def even_times(scheduler: Any, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """`(times, weights)` float64 like `uniform`, in [0, 1): the mean of weight times integrand over it is the bound.

    Under the absorbing kernel, the share of masked tokens, 1 - alpha, is drawn evenly. All noise schedules have the
    same bound in continuous time; with these times they also have the same variance, but for `min_timestep`. For
    other kernels the times are those of training, each of weight 1.
    """
    uniform = uniform.double()
    if scheduler.corruption != "absorbing":
        return scheduler.training_timesteps(uniform), torch.ones_like(uniform)

    # In continuous time: the time at which so many tokens are masked, next to the data one step.
    num_steps = scheduler.config.num_train_timesteps
    if num_steps is None:
        first = scheduler.config.min_timestep
        times = time_of_noise_level(scheduler.alpha, uniform).clamp(min=first)
        weights = -1 / scheduler.alpha_derivative(times)
        return times, torch.where(times > first, weights, first / (1 - scheduler.alpha(first)))

    # On a grid: the step within which that time falls.
    grid = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    masked = 1 - scheduler.alpha(grid)  # (T + 1,)
    step = torch.searchsorted(masked[1:], uniform.contiguous(), right=True)
    return grid[step + 1], 1 / (num_steps * masked.diff()[step])


def any_order_bound(
    denoiser: Any, scheduler: Any, batch: Batch, num_masked: Tensor, uniform: Tensor
) -> Tensor:
    """(B,) float64 terms of the absorbing kernel's bound: cross-entropy of n masked tokens, divided by n.

    A model that writes in blocks has n masked tokens in each block that has as many, and the sum over blocks.

    Args:
        batch: as in `noisy_token_bound`.
        num_masked: (B,) n, from 1 to `most_unknown` of the row.
        uniform: (B, L) in [0, 1); the n smallest of a row or block, at unknown tokens, are masked.
    """
    tokens = batch["input_ids"]
    mask_token_id = scheduler.config.mask_token_id
    size = block_length(denoiser)
    starts = block_starts(denoiser, batch)
    uniform = uniform.masked_fill(~unknown_tokens(batch), KNOWN)
    length = tokens.shape[1]
    blocks = split_into_blocks(uniform, size or length, KNOWN, starts)  # (B, blocks, tokens)

    # The n-th smallest of independent uniform numbers is distributed like 1 - alpha, given that n tokens are masked.
    order = (num_masked - 1).view(-1, 1, 1).expand(-1, blocks.shape[1], 1)
    level = blocks.sort(dim=2).values.gather(2, order).expand(blocks.shape)
    level = join_blocks(level, length, starts)  # (B, L)
    positions = (uniform <= level) & (level < KNOWN)
    times = time_of_noise_level(scheduler.alpha, level[:, 0] if size is None else level)
    times = times.clamp(min=scheduler.config.min_timestep)

    # Cross-entropy of the masked tokens, divided by their number.
    noisy = tokens.masked_fill(positions, mask_token_id)
    logits = predict(denoiser, batch, noisy, times, positions)  # (N, V)
    weight = at_positions(1 / num_masked.double(), positions)  # (N,)
    bound = absorbing_bound(logits, tokens[positions], weight, mask_token_id)
    return row_sums(bound.double(), positions)


def collate(rows: list[dict[str, Any]]) -> Batch:
    """The rows as tensors, padded on the right with zeros to the longest; labels are one number a row."""
    batch = {}
    for name in rows[0]:
        values = [torch.as_tensor(row[name]) for row in rows]
        is_column = values[0].ndim > 0
        batch[name] = pad_sequence(values, batch_first=True) if is_column else torch.stack(values)
    if "given" in batch:
        batch["given"] = batch["given"].bool()
    return batch


def most_unknown(denoiser: Any, batch: Batch) -> Tensor:
    """(B,) the tokens that a bound counts, neither padding nor `given`, in each row, or in its fullest block."""
    unknown = unknown_tokens(batch).long()
    size = block_length(denoiser) or unknown.shape[1]
    blocks = split_into_blocks(unknown, size, 0, block_starts(denoiser, batch))
    return blocks.sum(dim=2).amax(dim=1)


def sample_generator(seed: int, noise_id: int, sample: int) -> torch.Generator:
    """The generator of a sample of a row with this number."""
    # torch's CPU generator looks at 32 bits of a seed only.
    hashed = np.random.SeedSequence([seed, int(noise_id), int(sample)]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(hashed))
