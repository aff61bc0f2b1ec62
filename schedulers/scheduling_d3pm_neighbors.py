"""Discrete diffusion to the nearest neighbours in an embedding space.

D3PM (https://arxiv.org/abs/2107.03006). The graph of neighbours is sparse, and no (V, V) matrix is ever made.

Shapes: B batch, L sequence length, V vocabulary size, N positions, E edges, K neighbours of a token.
"""

import copy
import math
import warnings
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.sampling import LARGEST_UNIFORM
from text_diffusers.common.validation import is_number, is_table, require
from text_diffusers.schedulers.scheduling_d3pm_transition import D3PMSemigroupScheduler
from text_diffusers.schedulers.tensor_config import TensorConfigMixin

DISTANCE_ROWS = 1024
SERIES_TAIL = 0.1  # in units of the floating-point precision
IMPOSSIBLE = 1e-16
SINKHORN_ROUNDS = 10_000


class D3PMNeighborScheduler(TensorConfigMixin, D3PMSemigroupScheduler):
    """Each token walks among its neighbours until, with probability 1 - alpha, it has jumped to any token at all.

    q(x_t | x_0) = alpha exp(-walk_rate log(alpha) R) + (1 - alpha) / V, R being the rate matrix of the graph. The
    second part, which D3PM does not have, makes the noise exactly uniform at time 1 for any graph, connected or not.

    Args:
        vocab_size: V; further logits are ignored.
        edges: (2, E) ids, each pair of neighbours in both directions.
        rates: (E,) of walking along each edge, the same in both directions. See `from_embeddings`.
        walk_rate: steps along an edge of rate 1 while -log(alpha) grows by 1; 0 is the uniform kernel.
        num_train_timesteps: T.
        reverse_rule, schedule, min_timestep, temperature, top_k, top_p: as in `D3PMUniformScheduler`.

    Raises:
        ValueError: if an argument is out of its range, or the rates are not symmetric.
    """

    corruption = "neighbors"
    _in_blocks = False  # a sparse product wants many rows
    _tensor_arguments = ("edges", "rates")

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        edges: Tensor,
        rates: Tensor,
        walk_rate: float = 2.0,
        num_train_timesteps: int = 1000,
        schedule: str | list[float] = "linear",
        reverse_rule: str = "marginal",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        self._set_up()
        require(is_number(walk_rate, 0), "walk_rate", "a number of at least 0", walk_rate)
        require(is_table(edges, 2) and len(edges) == 2, "edges", "a tensor (2, E) of ids", edges)
        same = is_table(rates, 1) and len(rates) == edges.shape[1]
        require(same, "rates", f"a tensor ({edges.shape[1]},) of finite numbers, one an edge", rates)
        start, end = edges.long()
        inside = (edges >= 0).all() and (edges < vocab_size).all() and (start != end).all()
        require(bool(inside), "edges", f"pairs of different ids below {vocab_size}", edges)
        require(bool((rates > 0).all()), "rates", "positive", rates)
        weights = sparse(torch.stack([start, end]), rates.double(), vocab_size)
        back = weights.t().coalesce()
        same = torch.equal(weights.indices(), back.indices()) and torch.equal(weights.values(), back.values())
        require(same, "rates", "the same from a to b as from b to a", "other rates")
        self._build_walk(weights)

    @classmethod
    def from_embeddings(
        cls, embeddings: Tensor, num_neighbors: int = 8, normalization: str = "metropolis", **kwargs: Any
    ) -> "D3PMNeighborScheduler":
        """A scheduler for the tokens of an embedding table (V, D); `kwargs` are those of the class.

        Args:
            num_neighbors: K nearest of each token, by Euclidean distance.
            normalization: a key of `GRAPH_RATES`.
        """
        edges, rates = GRAPH_RATES[normalization](nearest_neighbors(embeddings, num_neighbors))
        return cls(len(embeddings), edges=edges, rates=rates, **kwargs)

    def _corrupt(self, tokens: Tensor, timesteps: float | Tensor, generator: Generators) -> Tensor:
        keep = self._keep(tokens, timesteps, generator)
        shape, device = tuple(tokens.shape), tokens.device
        count, path = (rand(shape, generator, device).flatten() for _ in range(2))
        hops = self._mean_hops(self.alpha(self._per_token(timesteps, tokens)))
        # A token that is redrawn need not walk.
        walked = self._walk(tokens.flatten(), torch.where(keep.flatten(), hops, 0.0), count, path)
        redrawn = (rand(shape, generator, device) * self.config.vocab_size).long()
        return torch.where(keep, walked.view(shape), redrawn)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # torch copies no sparse matrix deeply; those of the walk never change.
        copied = copy.copy(self)
        memo[id(self)] = copied
        shared = {"_walks": self._walks}
        copied.__dict__.update(copy.deepcopy({k: v for k, v in vars(self).items() if k not in shared}, memo) | shared)
        return copied

    def _build_walk(self, weights: Tensor):
        """The walk that hops at the largest rate of leaving a token and may stay where it is (uniformisation)."""
        leaving = torch.zeros(self.config.vocab_size, dtype=torch.float64)
        leaving.index_add_(0, weights.indices()[0], weights.values())
        self._hop_rate = float(leaving.max())
        stay = torch.arange(self.config.vocab_size).repeat(2, 1)
        indices = torch.cat([stay, weights.indices()], dim=1)
        values = torch.cat([1 - leaving / self._hop_rate, weights.values() / self._hop_rate])
        walk = sparse(indices, values, self.config.vocab_size)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self._walks = {torch.float64: walk.to_sparse_csr()}
        # Where the hops from token i end, laid out along the number line from i to i + 1.
        self._targets = walk.indices()[1]
        within = walk.values().cumsum(0)
        self._target_ends = within * (self.config.vocab_size / within[-1])

    def _mean_hops(self, survival: Tensor) -> Tensor:
        """Mean number of hops while the survival falls from 1; 0 where nothing survives, as it does not matter."""
        steps = -self.config.walk_rate * self._hop_rate * torch.log(survival)
        return torch.where(survival > 0, steps, 0.0)

    def _walk(self, tokens: Tensor, mean_hops: Tensor, count: Tensor, path: Tensor) -> Tensor:
        """(N,) tokens after a Poisson number of hops; `count` and `path` are uniform numbers (N,)."""
        remaining, tokens = count.clamp(max=LARGEST_UNIFORM), tokens.clone()
        targets, ends = self._targets.to(tokens.device), self._target_ends.to(tokens.device)
        active = torch.arange(len(tokens), device=tokens.device)
        hop = 0
        while True:
            term = poisson(hop, mean_hops)
            remaining = remaining - term
            going = (remaining >= 0) & ((term > IMPOSSIBLE) | (hop < mean_hops))
            active, remaining, mean_hops = active[going], remaining[going], mean_hops[going]
            if not len(active):
                return tokens
            hop += 1
            along = tokens[active] + hashed_uniform(path[active], hop)
            tokens[active] = targets[torch.searchsorted(ends, along, right=True).clamp(max=len(ends) - 1)]

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        survival = self._survival(start, end, probs)  # (N, 1)
        hops = self._mean_hops(survival.squeeze(1).double())
        order = hops.argsort(descending=True)  # those who walk farthest first
        walked = self._poisson_series(probs[order], hops[order], survival.squeeze(1)[order])
        walked = torch.empty_like(walked).index_copy_(0, order, walked)
        spread = probs.sum(dim=-1, keepdim=True) / self.config.vocab_size
        return survival * walked + (1 - survival) * spread

    def _poisson_series(self, probs: Tensor, hops: Tensor, survival: Tensor) -> Tensor:
        """Sum over j of Poisson(j; hops) probs P^j, (N, V), for falling `hops` (N,); all terms are positive.

        A row is done when its terms, times its `survival`, have fallen below the precision of `probs`.
        """
        walk = self._walks.setdefault(probs.dtype, self._walks[torch.float64].to(probs.dtype)).to(probs.device)
        negligible = SERIES_TAIL * torch.finfo(probs.dtype).eps
        x = probs.T.contiguous()  # (V, N)
        term, hop = poisson(0, hops), 0
        total = x * term.to(x)
        while count := int(((term * survival > negligible) | (hop < hops)).sum()):
            hop += 1
            hops, survival = hops[:count], survival[:count]
            term = poisson(hop, hops)
            x = walk @ (x[:, :count].contiguous() if x.shape[1] > count else x)
            total[:, :count] += x * term.to(x)
        return total.T.contiguous()


def sparse(indices: Tensor, values: Tensor, size: int) -> Tensor:
    """(size, size) with the `values` (E,) at `indices` (2, E), those at the same place added up."""
    return torch.sparse_coo_tensor(indices, values, (size, size), check_invariants=False).coalesce()


def poisson(count: int, mean: Tensor) -> Tensor:
    """Probability of `count` events; same shape as `mean`."""
    return torch.exp(
        torch.xlogy(torch.as_tensor(count, dtype=mean.dtype, device=mean.device), mean) - mean - math.lgamma(count + 1)
    )


def hashed_uniform(uniform: Tensor, index: int) -> Tensor:
    """The `index`-th of the uniform numbers that each of `uniform` (N,), float64, is the seed of (SplitMix64)."""
    x = (uniform * 2**53).long() + to_int64(index * 0x9E3779B97F4A7C15)
    x = (x ^ logical_shift(x, 30)) * to_int64(0xBF58476D1CE4E5B9)
    x = (x ^ logical_shift(x, 27)) * to_int64(0x94D049BB133111EB)
    return logical_shift(x ^ logical_shift(x, 31), 11).double() / 2**53


def to_int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & (2 ** (64 - bits) - 1)


def nearest_neighbors(embeddings: Tensor, num_neighbors: int) -> Tensor:
    """(V, K) ids of the nearest other rows of (V, D), by Euclidean distance."""
    limit = f"an integer from 1 to {len(embeddings) - 1}"
    require(0 < num_neighbors < len(embeddings), "num_neighbors", limit, num_neighbors)
    found = []
    for rows in torch.arange(len(embeddings)).split(DISTANCE_ROWS):
        distances = torch.cdist(embeddings[rows].double(), embeddings.double())
        distances[torch.arange(len(rows)), rows] = math.inf
        found.append(distances.topk(num_neighbors, largest=False).indices)
    return torch.cat(found)


def neighbor_counts(neighbors: Tensor) -> Tensor:
    """(V, V) sparse: 1 where one token is a neighbour of the other, 2 where each is of the other."""
    size, count = neighbors.shape
    start, end = torch.arange(size).repeat_interleave(count), neighbors.flatten()
    both = torch.stack([torch.cat([start, end]), torch.cat([end, start])])
    return sparse(both, torch.ones(both.shape[1], dtype=torch.float64), size)


def expm_rates(neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """D3PM's rates, (G + G^T) / 2K: a token is left at rate 1 on average, one that is near to many more often."""
    counts = neighbor_counts(neighbors)
    return counts.indices(), counts.values() / (2 * neighbors.shape[1])


def metropolis_rates(neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """1 / max(degree, degree): no token is left at a rate above 1, however many are near to it."""
    edges = neighbor_counts(neighbors).indices()
    degree = torch.bincount(edges[0], minlength=len(neighbors)).double()
    return edges, 1 / degree[edges].amax(dim=0)


def sinkhorn_rates(neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """D3PM's doubly stochastic matrix: G + G^T with rows and columns scaled until all sum to 1.

    Raises:
        ValueError: if the graph has no such scaling.
    """
    counts = neighbor_counts(neighbors)
    start, end = counts.indices()
    scale = sums = torch.ones(len(neighbors), dtype=torch.float64)
    for _ in range(SINKHORN_ROUNDS):  # symmetric scaling, each round the mean of what rows and columns want
        sums = scale * torch.zeros_like(scale).index_add_(0, start, counts.values() * scale[end])
        if (sums - 1).abs().max() < 1e-13:
            break
        scale = scale / sums.sqrt()
    else:
        raise ValueError(
            '`normalization` must be "rate" or "metropolis" for this graph: it has no doubly stochastic scaling, '
            f"after {SINKHORN_ROUNDS} rounds a row sums to {float(sums[(sums - 1).abs().argmax()]):.3g}."
        )
    values = counts.values() * (scale[start] * scale[end])
    return counts.indices(), values


GRAPH_RATES = {"rate": expm_rates, "metropolis": metropolis_rates, "sinkhorn": sinkhorn_rates}
