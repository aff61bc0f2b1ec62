"""Fréchet distance between two sets of embeddings, each taken for a normal distribution.

It is the squared 2-Wasserstein distance of N(m1, C1) and N(m2, C2), |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))
(https://arxiv.org/abs/1706.08500).

Shapes: N and M texts, E width of an embedding.
"""

import logging

import torch
from torch import Tensor

from text_diffusers.evaluation.distances.figures import (
    NUM_RESAMPLES,
    Figure,
    as_pair,
    bootstrap_error,
)

logger = logging.getLogger(__name__)


def frechet_distance(
    first: Tensor, second: Tensor, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Figure:
    """Fréchet distance of embeddings, with its standard error by bootstrap over texts.

    Estimated means and covariances differ also where the texts are of one source, so that the distance is above zero
    then, by about the trace of the covariance over N and more with few texts: compare distances of as many texts, and
    look at that of two halves of the real ones. A warning is logged unless there are more texts than E.

    Args:
        first, second: (N, E) and (M, E).
        num_resamples: of the bootstrap; 0 leaves the error unknown.
        seed: of the resamples.

    Raises:
        ValueError: if they are no tables of finite numbers of one width, with two texts at least.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances import frechet_distance
        >>> first = torch.tensor([[0.0], [2.0], [4.0]])
        >>> frechet_distance(first, first + 3.0, num_resamples=0).value  # the means are 3 apart
        9.0
    """
    figure = frechet_figure(first, second, num_resamples, seed)
    fewest = min(len(first), len(second))
    if fewest <= first.shape[1]:
        logger.warning(
            f"{fewest} texts are too few for the Fréchet distance of embeddings of width {first.shape[1]}: their "
            "covariance is singular, and the distance too large. Compare it with others of as many texts only."
        )
    return figure


def frechet_figure(
    first: Tensor, second: Tensor, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Figure:
    """As `frechet_distance`, of any number of texts without a warning."""
    first, second = as_pair(first, second)

    def distance(first_counts: Tensor, second_counts: Tensor) -> float:
        return frechet_of_moments(
            *weighted_moments(first, first_counts), *weighted_moments(second, second_counts)
        )

    once = (torch.ones(len(first)).double(), torch.ones(len(second)).double())
    error = bootstrap_error(distance, (len(first), len(second)), num_resamples, seed)
    return Figure(distance(*once), error)


def weighted_moments(embeddings: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (E,) and covariance (E, E) of embeddings (N, E), each text as often as `counts` (N,) says."""
    total = counts.sum()
    mean = counts @ embeddings / total
    centred = embeddings - mean
    covariance = (centred * counts.unsqueeze(1)).T @ centred / (total - 1)
    return mean, covariance


def frechet_of_moments(
    first_mean: Tensor,
    first_covariance: Tensor,
    second_mean: Tensor,
    second_covariance: Tensor,
) -> float:
    """Fréchet distance of two normal distributions.

    Args:
        first_mean, second_mean: (E,).
        first_covariance, second_covariance: (E, E), symmetric and positive semi-definite.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances import frechet_of_moments
        >>> zero = torch.zeros(2)
        >>> frechet_of_moments(zero, torch.eye(2), zero, 4 * torch.eye(2))  # (2 - 1)^2 in each direction
        2.0
    """
    # The eigenvalues of C1 C2 are those of C1^(1/2) C2 C1^(1/2), which is symmetric.
    root = symmetric_root(first_covariance.double())
    product = root @ second_covariance.double() @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    shared = eigenvalues.clamp(min=0).sqrt().sum()

    distance = (first_mean.double() - second_mean.double()).square().sum()
    distance += first_covariance.double().trace() + second_covariance.double().trace() - 2 * shared
    # Rounding may lead below zero.
    return max(0.0, float(distance))


def symmetric_root(matrix: Tensor) -> Tensor:
    """The square root (E, E) of a symmetric matrix without negative eigenvalues."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
