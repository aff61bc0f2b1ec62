"""Precision, recall, density and coverage of written texts, by the nearest neighbours of their embeddings.

Around each text lies a ball that reaches its k-th nearest neighbour in its own set. Precision and recall are the
shares of written texts in a ball of a real one, and of real texts in a ball of a written one
(https://arxiv.org/abs/1904.06991). Density is the mean number of balls of real texts that a written one is in, over k,
and coverage the share of real texts whose ball holds a written one (https://arxiv.org/abs/2002.09797): neither is
misled by a single far-off real text, whose ball is large.

Shapes: N written texts, M real ones, E width of an embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from text_diffusers.common.validation import require_int
from text_diffusers.evaluation.distances.figures import (
    FEWEST_RESAMPLED,
    NUM_RESAMPLES,
    Figure,
    as_pair,
    resampled_counts,
)

NAMES = ("precision", "recall", "density", "coverage")


@dataclass
class ManifoldFigures:
    """Shares of texts, 0 to 1, but for the density, which is 1 on average where both sets are of one law.

    Attributes:
        precision: share of written texts that are like real ones.
        recall: share of real texts that are like written ones.
        density: balls of real texts around a written one, over the number to be expected.
        coverage: share of real texts with a written one near.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances import manifold_figures
        >>> real = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> manifold_figures(real + 100.0, real).coverage.value
        0.0
    """

    precision: Figure
    recall: Figure
    density: Figure
    coverage: Figure


def manifold_figures(
    written: Tensor,
    real: Tensor,
    num_neighbours: int = 5,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> ManifoldFigures:
    """Precision, recall, density and coverage, with their standard errors by bootstrap over texts.

    They depend on the numbers of texts: compare figures of as many.

    Args:
        written, real: (N, E) and (M, E).
        num_neighbours: k, below N and M.
        num_resamples: of the bootstrap; 0 leaves the errors unknown.
        seed: of the resamples.

    Raises:
        ValueError: if the embeddings are no tables of finite numbers of one width, or k is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances import manifold_figures
        >>> real = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> figures = manifold_figures(real, real, num_resamples=0)
        >>> figures.precision.value, figures.recall.value, figures.coverage.value
        (1.0, 1.0, 1.0)
    """
    written, real = as_pair(written, real)
    fewest = min(len(written), len(real))
    require_int("num_neighbours", num_neighbours, 1, fewest - 1)
    distances = Distances(written, real, num_neighbours)

    # Every text once, and then the resamples
    once = [torch.ones(len(written)).double(), torch.ones(len(real)).double()]
    values = distances.figures(*once)
    sizes = (len(written), len(real))
    draws = []
    if fewest >= FEWEST_RESAMPLED:
        for counts in resampled_counts(sizes, num_resamples, seed):
            draws.append(distances.figures(*counts))
    errors = torch.stack(draws).std(dim=0) if draws else torch.full((4,), torch.nan)

    pairs = zip(values.tolist(), errors.tolist(), strict=True)
    return ManifoldFigures(*(Figure(*pair) for pair in pairs))


class Distances:
    """The distances of all texts, from which the figures of resamples are counted.

    Args:
        written, real: (N, E) and (M, E).
        num_neighbours: k.
    """

    def __init__(self, written: Tensor, real: Tensor, num_neighbours: int):
        self.num_neighbours = num_neighbours
        self.between = exact_distances(written, real)  # (N, M)
        self.written_neighbours = sorted_neighbours(written)
        self.real_neighbours = sorted_neighbours(real)

    def figures(self, written_counts: Tensor, real_counts: Tensor) -> Tensor:
        """(4,) precision, recall, density and coverage, where each text counts so often."""
        # 1. The balls around the texts that were drawn
        k = self.num_neighbours
        written_radii = radii(*self.written_neighbours, written_counts, k)  # (N,)
        real_radii = radii(*self.real_neighbours, real_counts, k)  # (M,)
        near_written = self.between <= written_radii.unsqueeze(1)  # (N, M)
        near_real = self.between <= real_radii.unsqueeze(0)  # (N, M)

        # 2. Who is in a ball of whom
        num_written = written_counts.sum()
        num_real = real_counts.sum()
        balls = near_real.double() @ real_counts  # (N,) of real texts, around a written one
        precision = written_counts @ (balls > 0).double() / num_written
        density = written_counts @ balls / (k * num_written)

        written_balls = written_counts @ near_written.double()  # (M,)
        recall = (written_balls > 0).double() @ real_counts / num_real
        in_ball = (
            written_counts @ near_real.double()
        )  # (M,) written texts in the ball of a real one
        coverage = (in_ball > 0).double() @ real_counts / num_real
        return torch.stack([precision, recall, density, coverage])


def exact_distances(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) distances, of a text to itself exactly 0, which matrix products would not find."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def sorted_neighbours(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """`(distances, places)` (n, n - 1) of the other texts of a set, the nearest first."""
    distances = exact_distances(embeddings, embeddings)
    distances.fill_diagonal_(torch.inf)
    ordered = distances.sort(dim=1)
    return ordered.values[:, :-1], ordered.indices[:, :-1]


def radii(distances: Tensor, places: Tensor, counts: Tensor, num_neighbours: int) -> Tensor:
    """(n,) distance of each text to its k-th nearest neighbour, if each other text counts so often.

    It is that of the farthest one where fewer than k were drawn.
    """
    num_nearer = counts[places].cumsum(dim=1)  # (n, n - 1)
    kth = (num_nearer < num_neighbours).sum(dim=1, keepdim=True)
    return distances.gather(1, kth.clamp(max=distances.shape[1] - 1)).squeeze(1)
