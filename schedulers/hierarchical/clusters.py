"""Clusters of tokens by their embeddings: k-means.

Shapes: V vocabulary size, D embedding width, C clusters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.validation import is_table, require, require_int

# Rounds after which no token has been seen to change its cluster any more, in all but odd cases
MOST_ROUNDS = 100


def cluster_tokens(embeddings: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """(V,) the cluster, 0 to C - 1, of each row of an embedding table; each cluster has a token at least.

    Spherical k-means: vectors are compared by their angle, since the length of a word's vector tells mostly how
    frequent the word is. It begins with k-means++ (https://dl.acm.org/doi/10.5555/1283383.1283494).

    Args:
        embeddings: (V, D).
        num_clusters: C, at most V.
        seed: of the first centres.

    Raises:
        ValueError: if there are more clusters than tokens, or the table holds other than finite numbers.

    Example:
        >>> import torch
        >>> from text_diffusers.schedulers.hierarchical.clusters import cluster_tokens
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.8]])
        >>> a, b, c, d = cluster_tokens(embeddings, num_clusters=2).tolist()
        >>> a == b, c == d, a == c
        (True, True, False)
    """
    require(is_table(embeddings, 2), "embeddings", "a table (V, D) of finite numbers", embeddings)
    require_int("num_clusters", num_clusters, 1, len(embeddings))
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(embeddings.detach().cpu().double(), dim=1)  # (V, D)

    centres = first_centres(points, num_clusters, generator)  # (C, D)
    assigned = torch.full((len(points),), -1)
    for _ in range(MOST_ROUNDS):
        similarity = points @ centres.T  # (V, C)
        nearest = with_every_cluster(similarity.argmax(dim=1), similarity)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
        centres = F.normalize(sums, dim=1)
    return assigned


def first_centres(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, D) of the points (V, D): each as likely as it is far from the centres before it."""
    first = int(torch.randint(len(points), (), generator=generator))
    centres = [first]
    distances = 1 - points @ points[first]  # (V,)
    while len(centres) < count:
        # Where all that is left equals a centre, any other point will do.
        weights = distances.clamp(min=0)
        weights[centres] = 0
        if not weights.sum() > 0:
            weights = torch.ones_like(weights)
            weights[centres] = 0
        chosen = int(torch.multinomial(weights, 1, generator=generator))
        centres.append(chosen)
        distances = distances.minimum(1 - points @ points[chosen])
    return points[centres]


def with_every_cluster(assigned: Tensor, similarity: Tensor) -> Tensor:
    """(V,) clusters in which those that would be empty get the tokens that fit their own cluster least.

    Args:
        assigned: (V,) clusters.
        similarity: (V, C) of the tokens to the centres.
    """
    num_clusters = similarity.shape[1]
    assigned = assigned.clone()
    fits = similarity.gather(1, assigned.unsqueeze(1)).squeeze(1)  # (V,)
    for cluster in range(num_clusters):
        sizes = torch.bincount(assigned, minlength=num_clusters)
        if sizes[cluster]:
            continue
        # A token that is alone in its cluster stays.
        can_leave = sizes[assigned] > 1
        token = int(fits.masked_fill(~can_leave, torch.inf).argmin())
        assigned[token] = cluster
        fits[token] = torch.inf
    return assigned
