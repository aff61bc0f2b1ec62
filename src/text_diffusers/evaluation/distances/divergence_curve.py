"""The divergence curve of two sets of texts, and the area under it, as MAUVE has them.

Embeddings of both sets are divided into clusters, so that each set is a histogram over these, P and Q. For mixtures
R = w P + (1 - w) Q the curve goes through the points (exp(-c KL(Q | R)), exp(-c KL(P | R))). The area under it is 1
for equal histograms, and nearly 0 for those that share no cluster (https://arxiv.org/abs/2102.01454).

The clusters are those of k-means, of the embeddings as they are: figures of other programs, which reduce embeddings or
take states of another model, do not compare.

Shapes: N and M texts, E width of an embedding, K clusters, W mixtures.
"""

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from text_diffusers.common.validation import require, require_int, require_number
from text_diffusers.evaluation.distances.figures import (
    NUM_RESAMPLES,
    Figure,
    as_pair,
    bootstrap_error,
)

SCALE = 5.0
NUM_MIXTURES = 200
# One cluster for so many texts of the smaller set, and never more than so many
TEXTS_A_CLUSTER = 10
MOST_CLUSTERS = 500
# k-means begins anew so many times, and the best one counts
NUM_BEGINNINGS = 3


def divergence_curve_area(
    first: Tensor,
    second: Tensor,
    num_clusters: int | None = None,
    scale: float = SCALE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Figure:
    """Area under the divergence curve of embeddings, 0 to 1: the larger, the more the texts are alike.

    Its standard error is by bootstrap over texts, the clusters being given. It depends on the numbers of texts and of
    clusters: compare figures of as many.

    Args:
        first, second: (N, E) and (M, E).
        num_clusters: K; by default one for ten texts of the smaller set, 2 to 500.
        scale: c.
        num_resamples: of the bootstrap; 0 leaves the error unknown.
        seed: of the clusters and the resamples.

    Raises:
        ValueError: if an argument is out of its range.
        ModuleNotFoundError: if scikit-learn is missing.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances import divergence_curve_area
        >>> texts = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> divergence_curve_area(texts, texts, num_resamples=0).value
        1.0
    """
    first, second = as_pair(first, second)
    if num_clusters is None:
        fewest = min(len(first), len(second))
        num_clusters = min(MOST_CLUSTERS, max(2, round(fewest / TEXTS_A_CLUSTER)))
    require_int("num_clusters", num_clusters, 2, len(first) + len(second))
    clusters = cluster_numbers(torch.cat([first, second]), num_clusters, seed)
    first_clusters = clusters[: len(first)]
    second_clusters = clusters[len(first) :]

    def area(first_counts: Tensor, second_counts: Tensor) -> float:
        histograms = []
        for members, counts in ((first_clusters, first_counts), (second_clusters, second_counts)):
            sums = torch.zeros(num_clusters, dtype=torch.float64).index_add(0, members, counts)
            histograms.append(sums / sums.sum())
        return area_under(divergence_curve(histograms[0], histograms[1], scale))

    once = (torch.ones(len(first)).double(), torch.ones(len(second)).double())
    error = bootstrap_error(area, (len(first), len(second)), num_resamples, seed)
    return Figure(area(*once), error)


def cluster_numbers(embeddings: Tensor, num_clusters: int, seed: int) -> Tensor:
    """(n,) the cluster of each embedding (n, E), by k-means.

    Raises:
        ModuleNotFoundError: if scikit-learn is missing.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ModuleNotFoundError(
            "`divergence_curve_area` needs `pip install scikit-learn` (extra `eval`)."
        )
    from sklearn.cluster import KMeans

    options: Any = {"n_init": NUM_BEGINNINGS, "random_state": seed}
    means = KMeans(num_clusters, **options)
    return torch.as_tensor(means.fit_predict(embeddings.numpy())).long()


def divergence_curve(
    first: Tensor, second: Tensor, scale: float = SCALE, num_mixtures: int = NUM_MIXTURES
) -> Tensor:
    """Points (W + 2, 2) of the divergence curve of two histograms, from (0, 1) to (1, 0).

    Args:
        first, second: (K,) shares P and Q, each summing to 1.
        scale: c, above 0.
        num_mixtures: W, weights of P spread evenly between 0 and 1.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances import divergence_curve
        >>> divergence_curve(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), scale=1.0, num_mixtures=1).tolist()
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    require_number("scale", scale, 0)
    require(scale > 0, "scale", "above 0", scale)
    require_int("num_mixtures", num_mixtures, 1)
    first = first.double()
    second = second.double()
    is_alike = first.ndim == 1 and first.shape == second.shape
    require(is_alike, "second", f"as long as `first`, {tuple(first.shape)}", tuple(second.shape))

    weights = torch.arange(1, num_mixtures + 1).double() / (num_mixtures + 1)  # (W,)
    weights = weights.unsqueeze(1)
    mixtures = weights * first + (1 - weights) * second  # (W, K)
    across = torch.exp(-scale * divergences(second, mixtures))
    up = torch.exp(-scale * divergences(first, mixtures))

    # The more of P there is in the mixture, the less it says of Q.
    points = torch.stack([across, up], dim=1).flip(0)
    ends = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    points = torch.cat([ends[:1], points, ends[1:]])
    # From the left, as the curve falls.
    order = np.lexsort((-points[:, 1].numpy(), points[:, 0].numpy()))
    return points[torch.as_tensor(order)]


def divergences(shares: Tensor, mixtures: Tensor) -> Tensor:
    """(W,) KL(shares | mixture), of shares (K,) and mixtures (W, K) that hold them."""
    # Nothing is paid for a cluster without a share; a mixture has a share of every other.
    logs = (shares / mixtures.clamp(min=torch.finfo(torch.float64).tiny)).log()
    return torch.where(shares > 0, shares * logs, 0.0).sum(dim=1)


def area_under(points: Tensor) -> float:
    """Area under a curve through points (n, 2), from the left to the right, by the trapezoidal rule."""
    return float(torch.trapezoid(points[:, 1], points[:, 0]))
