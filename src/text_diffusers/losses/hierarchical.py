"""Variational bound of hierarchical masks, in nats, one value a token; see `losses.discrete`.

HDLM (https://arxiv.org/abs/2510.08632). A prediction of the token is one of its cluster, and of the token among those
of the cluster: the cross-entropy of the token is the sum of both.

Shapes: N positions, V tokens.
"""

import torch
from torch import Tensor

from text_diffusers.common.precision import at_least_float32
from text_diffusers.losses.discrete import entries


def hierarchical_loss(logits: Tensor, targets: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(cluster of x_0 | x_t) and -log p(x_0 | x_t, its cluster).

    Args:
        logits: (N, V or more) predictions of the clean tokens; further logits are ignored.
        targets: (N,) clean tokens, each of some cluster.
        clusters: (V,) the cluster of each token; -1 is an id that is never written, and excluded.

    Returns:
        Two tensors (N,) of nats.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import hierarchical_loss
        >>> clusters = torch.tensor([0, 0, 0, 1])
        >>> hierarchical_loss(torch.zeros(1, 4), torch.tensor([2]), clusters)  # log(4 / 3) and log(3)
        (tensor([0.2877]), tensor([1.0986]))
    """
    clusters = clusters.to(logits.device)
    logits = at_least_float32(logits[:, : len(clusters)])
    if (clusters < 0).any():
        logits = logits.masked_fill(clusters < 0, -torch.inf)

    # The mass of the tokens of the target's cluster
    outside = clusters != clusters[targets].unsqueeze(1)  # (N, V)
    log_total = logits.logsumexp(dim=1)
    log_cluster = logits.masked_fill(outside, -torch.inf).logsumexp(dim=1)
    return log_total - log_cluster, log_cluster - entries(logits, targets)


def hierarchical_bound(
    logits: Tensor,
    targets: Tensor,
    clusters: Tensor,
    cluster_weight: Tensor,
    token_weight: Tensor,
) -> Tensor:
    """Bound of the hierarchical kernel at masks and clusters; tokens cost nothing.

    In continuous time or on a grid, according to the weights: a mask pays for the cluster, and on a grid also for the
    token, as it may be revealed in the same step; a cluster pays for the token among its own.

    Args:
        logits, targets, clusters: as in `hierarchical_loss`.
        cluster_weight, token_weight: (N,) from `D3PMHierarchicalScheduler.bound_weights`.

    Returns:
        (N,) nats.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import hierarchical_bound
        >>> clusters = torch.tensor([0, 0, 0, 1])
        >>> weights = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])  # of a mask and a cluster
        >>> hierarchical_bound(torch.zeros(2, 4), torch.tensor([2, 2]), clusters, *weights)
        tensor([0.5754, 3.2958])
    """
    of_cluster, of_token = hierarchical_loss(logits, targets, clusters)
    return cluster_weight.to(of_cluster) * of_cluster + token_weight.to(of_token) * of_token
