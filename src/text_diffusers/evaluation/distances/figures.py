"""A figure with its standard error, and the bootstrap over texts that tells the error.

A resample is half of the texts, drawn without replacement: a figure of such halves spreads as that of all texts does
over other draws of these (half-sampling, the delete-d jackknife where d is half of the texts). Drawn with replacement,
texts would have copies of themselves as nearest neighbours.

Shapes: N texts of one set, M of the other.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from text_diffusers.common.validation import require, require_int

NUM_RESAMPLES = 100
# Halves of fewer texts have no spread.
FEWEST_RESAMPLED = 4


class Figure(NamedTuple):
    """A measured number.

    Attributes:
        value: `nan` where it could not be measured.
        standard_error: of `value` over other texts from the same source; `nan` where it is unknown.

    Example:
        >>> from text_diffusers.evaluation.distances import Figure
        >>> str(Figure(2.0, 0.25)), Figure(2.0, float("nan")).record()
        ('2.000 +- 0.250', {'value': 2.0, 'standard_error': None})
    """

    value: float
    standard_error: float = math.nan

    def record(self) -> dict[str, float | None]:
        """For JSON, which has no infinite numbers: what is not finite is `None`."""
        return {
            "value": finite_or_none(self.value),
            "standard_error": finite_or_none(self.standard_error),
        }

    def __str__(self) -> str:
        if math.isnan(self.standard_error):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} +- {self.standard_error:.3f}"


def finite_or_none(value: float) -> float | None:
    """A number, or `None` in the place of one that is not finite."""
    return float(value) if math.isfinite(value) else None


def mean_figure(values: Any) -> Figure:
    """The mean of a value a text, and its standard error; `nan` of no value.

    Example:
        >>> from text_diffusers.evaluation.distances.figures import mean_figure
        >>> mean_figure([1.0, 3.0])
        Figure(value=2.0, standard_error=1.0)
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if not len(values):
        return Figure(math.nan)
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
    return Figure(float(values.mean()), error)


def resampled_counts(
    sizes: tuple[int, ...], num_resamples: int, seed: int
) -> Iterator[list[Tensor]]:
    """For each resample, whether each text of each set was drawn, 1 or 0: float64 tensors of `sizes`.

    Args:
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_resamples):
        counts = []
        for size in sizes:
            # Half of an odd number is rounded up or down at random.
            half = (size + int(torch.randint(2, (), generator=generator))) // 2
            count = torch.zeros(size, dtype=torch.float64)
            count[torch.randperm(size, generator=generator)[:half]] = 1
            counts.append(count)
        yield counts


def bootstrap_error(
    statistic: Callable[..., float],
    sizes: tuple[int, ...],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> float:
    """Standard error of a statistic: its standard deviation over halves of the texts; `nan` of fewer than four.

    Args:
        statistic: of how often each text of each set counts, float64 tensors of `sizes`.
        sizes: numbers of texts of the sets.
        num_resamples: 0 leaves the error unknown, `nan`; otherwise at least 2.
        seed: of the draws.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances.figures import bootstrap_error
        >>> values = torch.arange(100.0).double()
        >>> error = bootstrap_error(lambda counts: float(counts @ values / counts.sum()), (100,), num_resamples=400)
        >>> 2.5 < error < 3.3  # of the mean: the standard deviation, 28.9, over 10
        True
    """
    require_int("num_resamples", num_resamples, 0)
    if num_resamples == 0 or min(sizes) < FEWEST_RESAMPLED:
        return math.nan
    require(num_resamples >= 2, "num_resamples", "0 or at least 2", num_resamples)

    values = [statistic(*counts) for counts in resampled_counts(sizes, num_resamples, seed)]
    return float(torch.tensor(values, dtype=torch.float64).std())


def as_embeddings(name: str, embeddings: Tensor) -> Tensor:
    """Embeddings (N, E) in float64 on the CPU.

    Raises:
        ValueError: unless they are a table of finite numbers, of two texts at least.
    """
    limit = "a tensor (N, E) of finite numbers with N of at least 2"
    is_table = isinstance(embeddings, Tensor) and embeddings.ndim == 2 and len(embeddings) > 1
    came = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings)
    require(is_table, name, limit, came)
    table = embeddings.detach().double().cpu()
    require(bool(table.isfinite().all()), name, limit, "numbers that are not finite")
    return table


def as_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (N, E) and (M, E) as `as_embeddings` returns them.

    Raises:
        ValueError: if they are no tables, or of two widths.
    """
    first = as_embeddings("first", first)
    second = as_embeddings("second", second)
    limit = f"embeddings of the width of `first`, {first.shape[1]}"
    require(first.shape[1] == second.shape[1], "second", limit, second.shape[1])
    return first, second
