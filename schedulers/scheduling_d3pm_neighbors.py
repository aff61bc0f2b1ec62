"""Discrete diffusion to the nearest neighbours in an embedding space.

D3PM (https://arxiv.org/abs/2107.03006). The graph of neighbours is sparse, and no (V, V) matrix is ever made.

Shapes: B batch, L sequence length, V vocabulary size, N positions, D embedding width, E edges, K
neighbours of a token.
"""

import copy
import math
import warnings
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.sampling import LARGEST_UNIFORM
from text_diffusers.common.tensor_config import TensorConfigMixin
from text_diffusers.common.validation import is_table, require, require_int, require_number
from text_diffusers.schedulers.noise_schedules import Time
from text_diffusers.schedulers.scheduling_d3pm_transition import D3PMSemigroupScheduler, per_token

# Rows of the table whose distances to all others are taken at a time.
DISTANCE_ROWS = 1024

# A series ends when its terms fall below this part of the floating-point precision.
SERIES_TAIL = 0.1

# No more hops are counted for a walk that is less probable than this.
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

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMNeighborScheduler
        >>> scheduler = D3PMNeighborScheduler.from_embeddings(torch.randn(10, 4), num_neighbors=3)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape
        torch.Size([2, 6])
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
        require_number("walk_rate", walk_rate, 0)
        require(is_table(edges, 2) and len(edges) == 2, "edges", "a tensor (2, E) of ids", edges)
        one_an_edge = is_table(rates, 1) and len(rates) == edges.shape[1]
        require(
            one_an_edge,
            "rates",
            f"a tensor ({edges.shape[1]},) of finite numbers, one an edge",
            rates,
        )

        start, end = edges.long()  # (E,) each
        inside = (edges >= 0).all() and (edges < vocab_size).all() and (start != end).all()
        require(bool(inside), "edges", f"pairs of different ids below {vocab_size}", edges)
        require(bool((rates > 0).all()), "rates", "positive", rates)

        # Symmetric rates make the chain's limit uniform.
        weights = sparse(edges.long(), rates.double(), vocab_size)  # (V, V)
        back = weights.t().coalesce()
        symmetric = torch.equal(weights.indices(), back.indices()) and torch.equal(
            weights.values(), back.values()
        )
        require(symmetric, "rates", "the same from a to b as from b to a", "other rates")
        self._build_walk(weights)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Tensor,
        num_neighbors: int = 8,
        normalization: str = "metropolis",
        **kwargs: Any,
    ) -> "D3PMNeighborScheduler":
        """A scheduler for the tokens of an embedding table (V, D); `kwargs` are those of the class.

        Args:
            num_neighbors: K nearest of each token, by Euclidean distance.
            normalization: a key of `GRAPH_RATES`.
        """
        edges, rates = GRAPH_RATES[normalization](nearest_neighbors(embeddings, num_neighbors))
        return cls(len(embeddings), edges=edges, rates=rates, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # torch copies no sparse matrix deeply; those of the walk never change, so the copy shares them.
        copied = copy.copy(self)
        memo[id(self)] = copied
        memo[id(self._walks)] = self._walks
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied

    # The walk

    def _build_walk(self, weights: Tensor):
        """The walk that hops at the largest rate of leaving a token and may stay where it is (uniformisation)."""
        size = self.config.vocab_size
        leaving = torch.zeros(size, dtype=torch.float64)
        leaving.index_add_(0, weights.indices()[0], weights.values())
        self._hop_rate = float(leaving.max())

        # A hop from a token that is left more slowly often ends where it began.
        stay = torch.arange(size).repeat(2, 1)
        indices = torch.cat([stay, weights.indices()], dim=1)
        values = torch.cat([1 - leaving / self._hop_rate, weights.values() / self._hop_rate])
        walk = sparse(indices, values, size)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self._walks = {torch.float64: walk.to_sparse_csr()}

        # Where the hops from token i end, laid out along the number line from i to i + 1.
        self._targets = walk.indices()[1]
        within = walk.values().cumsum(0)
        self._target_ends = within * (size / within[-1])

    def _mean_hops(self, survival: Tensor) -> Tensor:
        """Mean number of hops while the survival falls from 1; 0 where nothing survives, as it does not matter."""
        hops = -self.config.walk_rate * self._hop_rate * torch.log(survival)
        return torch.where(survival > 0, hops, 0.0)

    def _walk(self, tokens: Tensor, mean_hops: Tensor, count: Tensor, path: Tensor) -> Tensor:
        """(N,) tokens after a Poisson number of hops; `count` and `path` are uniform numbers (N,)."""
        tokens = tokens.clone()
        targets = self._targets.to(tokens.device)
        ends = self._target_ends.to(tokens.device)

        # The number of hops by inverse CDF, all tokens at once: `remaining` is the uniform number of each less the
        # probability of as many hops as were made, and those above 0 walk on.
        active = torch.arange(len(tokens), device=tokens.device)
        remaining = count.clamp(max=LARGEST_UNIFORM)
        hop = 0
        while True:
            term = poisson(hop, mean_hops)
            remaining = remaining - term
            going = (remaining >= 0) & ((term > IMPOSSIBLE) | (hop < mean_hops))
            active = active[going]
            remaining = remaining[going]
            mean_hops = mean_hops[going]
            if len(active) == 0:
                return tokens

            hop += 1
            along = tokens[active] + hashed_uniform(path[active], hop)
            hops = torch.searchsorted(ends, along, right=True).clamp(max=len(ends) - 1)
            tokens[active] = targets[hops]

    # The kernel

    def _corrupt(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        keep = self._keep(tokens, timesteps, generator)  # (B, L)
        count = rand_like(tokens, generator).flatten()
        path = rand_like(tokens, generator).flatten()

        # A token that is redrawn need not walk.
        hops = self._mean_hops(self.alpha(per_token(timesteps, tokens)))
        walked = self._walk(tokens.flatten(), torch.where(keep.flatten(), hops, 0.0), count, path)
        redrawn = self._noise_tokens(rand_like(tokens, generator))
        return torch.where(keep, walked.view(tokens.shape), redrawn)

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        survival = self._survival(start, end, probs)  # (N, 1)
        hops = self._mean_hops(survival.squeeze(1).double())

        # Those who walk farthest first: the rows that still walk are then the first rows of the table.
        order = hops.argsort(descending=True)
        walked = self._poisson_series(probs[order], hops[order], survival.squeeze(1)[order])
        walked = torch.empty_like(walked).index_copy_(0, order, walked)

        spread = probs.sum(dim=-1, keepdim=True) / self.config.vocab_size
        return survival * walked + (1 - survival) * spread

    def _poisson_series(self, probs: Tensor, hops: Tensor, survival: Tensor) -> Tensor:
        """Sum over j of Poisson(j; hops) probs P^j, (N, V), for falling `hops` (N,); all terms are positive.

        A row is done when its terms, times its `survival`, have fallen below the precision of `probs`.
        """
        walk = self._walks.get(probs.dtype)
        if walk is None:
            walk = self._walks[probs.dtype] = self._walks[torch.float64].to(probs.dtype)
        walk = walk.to(probs.device)  # (V, V) sparse
        negligible = SERIES_TAIL * torch.finfo(probs.dtype).eps

        x = probs.T.contiguous()  # (V, N)
        hop = 0
        term = poisson(hop, hops)
        total = x * term.to(x)
        while count := int(((term * survival > negligible) | (hop < hops)).sum()):
            # The first `count` rows still walk.
            hop += 1
            hops = hops[:count]
            survival = survival[:count]
            term = poisson(hop, hops)
            x = walk @ (x[:, :count].contiguous() if x.shape[1] > count else x)
            total[:, :count] += x * term.to(x)
        return total.T.contiguous()


def sparse(indices: Tensor, values: Tensor, size: int) -> Tensor:
    """(size, size) with the `values` (E,) at `indices` (2, E), those at the same place added up."""
    return torch.sparse_coo_tensor(indices, values, (size, size), check_invariants=False).coalesce()


def poisson(count: int, mean: Tensor) -> Tensor:
    """Probability of `count` events; same shape as `mean`."""
    events = torch.as_tensor(count, dtype=mean.dtype, device=mean.device)
    return torch.exp(torch.xlogy(events, mean) - mean - math.lgamma(count + 1))


def hashed_uniform(uniform: Tensor, index: int) -> Tensor:
    """The `index`-th of the uniform numbers that each of `uniform` (N,), float64, is the seed of (SplitMix64)."""
    x = (uniform * 2**53).long() + to_int64(index * 0x9E3779B97F4A7C15)
    x = (x ^ logical_shift(x, 30)) * to_int64(0xBF58476D1CE4E5B9)
    x = (x ^ logical_shift(x, 27)) * to_int64(0x94D049BB133111EB)
    return logical_shift(x ^ logical_shift(x, 31), 11).double() / 2**53


def to_int64(value: int) -> int:
    """The signed integer with the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def logical_shift(x: Tensor, bits: int) -> Tensor:
    """`x` >> `bits` with zeros from the left, whatever the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def nearest_neighbors(embeddings: Tensor, num_neighbors: int) -> Tensor:
    """(V, K) ids of the nearest other rows of (V, D), by Euclidean distance."""
    require_int("num_neighbors", num_neighbors, 1, len(embeddings) - 1)

    nearest = []
    for rows in torch.arange(len(embeddings)).split(DISTANCE_ROWS):
        distances = torch.cdist(embeddings[rows].double(), embeddings.double())
        distances[torch.arange(len(rows)), rows] = math.inf  # no token is its own neighbour
        nearest.append(distances.topk(num_neighbors, largest=False).indices)
    return torch.cat(nearest)


def neighbor_counts(neighbors: Tensor) -> Tensor:
    """(V, V) sparse: 1 where one token is a neighbour of the other, 2 where each is of the other."""
    size, count = neighbors.shape
    start = torch.arange(size).repeat_interleave(count)
    end = neighbors.flatten()
    # Each edge in both directions, (2, 2 V K).
    both = torch.stack([torch.cat([start, end]), torch.cat([end, start])])
    return sparse(both, torch.ones(both.shape[1], dtype=torch.float64), size)


def expm_rates(neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """D3PM's rates, (G + G^T) / 2K: a token is left at rate 1 on average, one that is near to many more often."""
    counts = neighbor_counts(neighbors)
    return counts.indices(), counts.values() / (2 * neighbors.shape[1])


def metropolis_rates(neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """1 / max(degree, degree): no token is left at a rate above 1, however many are near to it."""
    edges = neighbor_counts(neighbors).indices()
    # The number of neighbours of each token, (V,).
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

    # Symmetric scaling: each round takes the mean of what rows and columns want.
    for _ in range(SINKHORN_ROUNDS):
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
