"""How good a model is: variational bounds and their yardsticks, in nats per token.

Shapes: B batch, L sequence length, V vocabulary size, N positions.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from text_diffusers.bounds import batch_bound
from text_diffusers.data import ShuffledRows
from text_diffusers.noise import row_noise

NOISE_LEVELS = 10


class BoundEstimate(NamedTuple):
    """A bound, its standard error, and where it comes from: the integrand's mean in each tenth of the time.

    All in nats per token; `by_noise` begins next to the data and averages to the bound, `nan` where no time fell.
    """

    bound: float
    standard_error: float
    by_noise: list[float]


@torch.no_grad()
def estimate_bound(
    denoiser: Any,
    scheduler: Any,
    rows: Any,
    num_times: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    accelerator: Any = None,
) -> BoundEstimate:
    """Bound of the rows in nats per token, by stratified Monte Carlo.

    Args:
        rows: tokenized data set.
        num_times: random times a row; times are stratified within each batch.
        accelerator: its processes share the batches and all get the same result; each must call this.
    """
    order = ShuffledRows(rows, rows_per_step=batch_size, seed=seed)
    device = next(denoiser.parameters()).device
    batches = max(2, -(-len(rows) * num_times // batch_size))  # two at least, for the error; rows then repeat
    nats, tokens = torch.zeros(2, batches, NOISE_LEVELS, dtype=torch.float64)
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    for first in range(0, batches, processes):
        step = min(first + rank, batches - 1)  # a model in shards needs all processes at every forward
        batch = {name: column.to(device) for name, column in order.batch(step).items()}
        uniform, generators = row_noise(seed, step, batch_size)
        bounds = batch_bound(denoiser, scheduler, batch, uniform.to(device), generators)
        if first + rank < batches:
            levels = (uniform * NOISE_LEVELS).long()
            nats[step].index_add_(0, levels, bounds.double().cpu())
            tokens[step].index_add_(0, levels, batch["attention_mask"].sum(dim=1).double().cpu())
    if processes > 1:
        nats, tokens = accelerator.reduce(torch.stack([nats, tokens]).to(device)).cpu()
    per_batch = nats.sum(dim=1) / (tokens.sum() / batches)
    error = float(per_batch.std() / batches**0.5)
    return BoundEstimate(float(per_batch.mean()), error, (nats.sum(dim=0) / tokens.sum(dim=0)).tolist())


def length_nats(histogram: list[int], lengths: Iterable[int]) -> float:
    """Nats to tell the lengths of texts, summed, under a histogram with one added to each count.

    A model of one text a row knows where its row ends, so the bound of its tokens is short of this much.
    """
    smoothed = np.asarray(histogram, dtype=np.float64) + 1
    return float(-np.log(smoothed / smoothed.sum())[np.fromiter(lengths, dtype=np.int64)].sum())


def unigram_entropy(rows: Iterable[dict[str, list[int]]]) -> float:
    """Entropy of the token frequencies in nats per token: the best bound of a model that ignores context."""
    counts: Counter[int] = Counter()
    for row in rows:
        counts.update(token for token, real in zip(row["input_ids"], row["attention_mask"], strict=True) if real)
    frequencies = np.array(list(counts.values()), dtype=np.float64)
    frequencies /= frequencies.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def length_distance(first: Iterable[int], second: Iterable[int]) -> float:
    """Wasserstein-1 distance between two samples of lengths: the tokens by which one has to move to be the other."""
    a, b = np.sort(np.asarray(list(first), dtype=np.float64)), np.sort(np.asarray(list(second), dtype=np.float64))
    if not len(a) or not len(b):
        raise ValueError(f"`first` and `second` must each hold a length, got {len(a)} and {len(b)}.")
    grid = np.sort(np.concatenate([a, b]))
    cdf_a = np.searchsorted(a, grid[:-1], side="right") / len(a)
    cdf_b = np.searchsorted(b, grid[:-1], side="right") / len(b)
    return float((np.abs(cdf_a - cdf_b) * np.diff(grid)).sum())
