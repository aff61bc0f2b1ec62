"""Maximum mean discrepancy between two sets of embeddings, with a test whether they are of one law.

Shapes: N and M texts, E width of an embedding, P permutations.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from text_diffusers.common.validation import require, require_int, require_key
from text_diffusers.evaluation.distances.figures import (
    NUM_RESAMPLES,
    Figure,
    as_pair,
    bootstrap_error,
)

KERNELS = ("gaussian", "linear")
NUM_PERMUTATIONS = 200
# Permutations that are looked at together
PERMUTATIONS_AT_ONCE = 50


class Discrepancy(NamedTuple):
    """A squared maximum mean discrepancy.

    Attributes:
        figure: the unbiased estimate, which may be below zero, and its standard error.
        p_value: share of random divisions of all texts in two that are as far apart, this one among them: small if
            the sets are of two laws, evenly distributed if they are of one.
        bandwidth: of the Gaussian kernel; `None` of the linear one.
    """

    figure: Figure
    p_value: float
    bandwidth: float | None


def maximum_mean_discrepancy(
    first: Tensor,
    second: Tensor,
    kernel: str = "gaussian",
    bandwidth: float | None = None,
    num_permutations: int = NUM_PERMUTATIONS,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Discrepancy:
    """Squared maximum mean discrepancy, estimated without bias (https://jmlr.org/papers/v13/gretton12a.html).

    It is E k(x, x') + E k(y, y') - 2 E k(x, y) over different texts: zero on average if both sets are of one law.

    Args:
        first, second: (N, E) and (M, E).
        kernel: "gaussian", exp(-|x - y|^2 / (2 bandwidth^2)), or "linear", x . y, which compares the means alone.
        bandwidth: of the Gaussian kernel; by default the median distance of two different texts of both sets.
        num_permutations: random divisions for the p-value.
        num_resamples: of the bootstrap; 0 leaves the error unknown.
        seed: of all draws.

    Raises:
        ValueError: if an argument is out of its range, or a bandwidth cannot be had as all texts are alike.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances import maximum_mean_discrepancy
        >>> first = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> apart = maximum_mean_discrepancy(first, first + 2.0)
        >>> apart.figure.value > 0.1, apart.p_value < 0.01
        (True, True)
    """
    require_key("kernel", kernel, KERNELS)
    require_int("num_permutations", num_permutations, 1)
    first, second = as_pair(first, second)
    size = len(first)
    pooled = torch.cat([first, second])  # (N + M, E)

    # 1. The kernel of all pairs, and nothing of a text with itself
    if kernel == "linear":
        bandwidth = None
        similarity = pooled @ pooled.T
    else:
        distances = torch.cdist(pooled, pooled)
        bandwidth = median_distance(distances) if bandwidth is None else float(bandwidth)
        require(bandwidth > 0, "bandwidth", "a number above 0", bandwidth)
        similarity = torch.exp(-distances.square() / (2 * bandwidth**2))
    similarity.fill_diagonal_(0)

    # 2. The estimate, and its error
    membership = torch.zeros(1, len(pooled), dtype=torch.float64)
    membership[0, :size] = 1
    value = float(divided_discrepancy(similarity, membership))
    blocks = (similarity[:size, :size], similarity[size:, size:], similarity[:size, size:])

    def resampled(first_counts: Tensor, second_counts: Tensor) -> float:
        return counted_discrepancy(*blocks, first_counts, second_counts)

    error = bootstrap_error(resampled, (size, len(second)), num_resamples, seed)

    # 3. Other divisions of the same texts
    generator = torch.Generator().manual_seed(seed)
    num_as_far = 0
    for begin in range(0, num_permutations, PERMUTATIONS_AT_ONCE):
        count = min(PERMUTATIONS_AT_ONCE, num_permutations - begin)
        order = torch.rand(count, len(pooled), generator=generator).argsort(dim=1)
        divisions = (order < size).double()  # (P, N + M)
        num_as_far += int((divided_discrepancy(similarity, divisions) >= value - 1e-12).sum())
    p_value = (1 + num_as_far) / (1 + num_permutations)
    return Discrepancy(Figure(value, error), p_value, bandwidth)


def median_distance(distances: Tensor) -> float:
    """The median of the distances (n, n) of two different texts."""
    above = torch.ones_like(distances, dtype=torch.bool).triu(diagonal=1)
    return float(distances[above].median())


def divided_discrepancy(similarity: Tensor, divisions: Tensor) -> Tensor:
    """(P,) estimates, one for each way of dividing the texts in two.

    Args:
        similarity: (n, n) kernel of all texts, zero on the diagonal.
        divisions: (P, n), 1 at the texts of the first set and 0 at those of the second.
    """
    others = 1 - divisions
    sizes = divisions.sum(dim=1)
    other_sizes = others.sum(dim=1)

    products = divisions @ similarity  # (P, n)
    within_first = (products * divisions).sum(dim=1)
    between = (products * others).sum(dim=1)
    within_second = similarity.sum() - within_first - 2 * between
    return (
        within_first / (sizes * (sizes - 1))
        + within_second / (other_sizes * (other_sizes - 1))
        - 2 * between / (sizes * other_sizes)
    )


def counted_discrepancy(
    within_first: Tensor,
    within_second: Tensor,
    between: Tensor,
    first_counts: Tensor,
    second_counts: Tensor,
) -> float:
    """The estimate where each text counts so often; a text and itself are no pair.

    Args:
        within_first, within_second, between: (N, N), (M, M) and (N, M) kernels, the first two zero on the diagonal.
        first_counts, second_counts: (N,) and (M,).
    """

    def mean_within(kernel: Tensor, counts: Tensor) -> Tensor:
        num_pairs = counts.sum().square() - counts.square().sum()
        return counts @ kernel @ counts / num_pairs

    mean_between = (
        first_counts @ between @ second_counts / (first_counts.sum() * second_counts.sum())
    )
    within = mean_within(within_first, first_counts) + mean_within(within_second, second_counts)
    return float(within - 2 * mean_between)
