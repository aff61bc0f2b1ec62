"""Hierarchical masks: a token falls to its cluster, and the cluster to the mask.

HDLM, "Next Semantic Scale Prediction via Hierarchical Diffusion Language Models" (https://arxiv.org/abs/2510.08632),
in T steps or in continuous time. Time is a float: 1 is pure noise, 0 is clean text.

Shapes: B batch, L sequence length, V tokens, C clusters, S states of a token, N selected positions.
"""

from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.sampling import MOST_IDS, draw_at
from text_diffusers.common.tensor_config import TensorConfigMixin
from text_diffusers.common.validation import (
    as_ids,
    is_number,
    is_table,
    require,
    require_int,
)
from text_diffusers.schedulers.hierarchical.clusters import cluster_tokens
from text_diffusers.schedulers.noise_schedules import D3PMScheduler, Device, Time, state_ids

# The cluster of ids that are no tokens of a text, such as a mask that stands among them
NO_CLUSTER = -1


class HierarchicalMoves(NamedTuple):
    """Probabilities of the moves of a step back from t to s, float64, of the shape of the alphas.

    Attributes:
        mask_to_cluster: a mask becomes the cluster of its x_0.
        mask_to_token: a mask becomes x_0, both levels at once.
        cluster_to_token: a cluster becomes x_0.
    """

    mask_to_cluster: Tensor
    mask_to_token: Tensor
    cluster_to_token: Tensor


def lost_share(alpha: Tensor, exponent: float) -> Tensor:
    """1 - alpha ** exponent, to all digits where alpha is near 1."""
    return -torch.expm1(exponent * torch.log(alpha))


def hierarchical_moves(alpha_t: Tensor, alpha_s: Tensor, cluster_power: float) -> HierarchicalMoves:
    """The moves of a step between two times, given x_0.

    With u = alpha, a token is still itself with probability u^p, and shows its cluster with u - u^p. Forwards, a
    cluster survives from s to t with probability (u_t / u_s) ((1 - u_s^(p-1)) / (1 - u_t^(p-1)))^(1 / (p-1)); the
    rest is Bayes' rule.

    Args:
        alpha_t, alpha_s: float64 of one shape, alpha_t < alpha_s.
        cluster_power: p.
    """
    exponent = cluster_power - 1
    lost_s = lost_share(alpha_s, exponent)  # of what is not masked, the share of clusters
    lost_t = lost_share(alpha_t, exponent)
    log_ratio = torch.log(lost_s / lost_t)  # -inf from s = 0, where there are no clusters
    log_survival = torch.log(alpha_t / alpha_s) + log_ratio / exponent

    # What a mask was at s: a mask still, a cluster, or a token that fell by both levels
    leaves = (alpha_s - alpha_t) / (1 - alpha_t)
    to_cluster = alpha_s * lost_s * -torch.expm1(log_survival) / (1 - alpha_t)
    to_cluster = to_cluster.minimum(leaves)
    to_token = leaves - to_cluster
    refines = -torch.expm1(cluster_power / exponent * log_ratio)
    return HierarchicalMoves(to_cluster, to_token, refines)


class D3PMHierarchicalScheduler(TensorConfigMixin, D3PMScheduler):
    """Absorbing diffusion by two levels: a token turns into its cluster at a random time, and into `[MASK]` later.

    At a time with `alpha` = u a token is masked with probability 1 - u, shows its cluster with probability u - u^p
    and is itself with probability u^p; ids that are no tokens, such as padding, stay. On the way back a mask becomes a
    cluster, by the summed probability of its tokens, and a cluster one of its tokens, by the prediction restricted to
    them. The model predicts x_0 as under absorbing noise, and need not be told the time: p(x_0 | x_t) does not depend
    on it.

    Clusters are ids behind those of all tokens, so that a denoiser has an embedding for each; it never predicts them.
    Which positions a step changes does not depend on the model, so `select` draws them first. The plug-in and the
    marginal reverse rule of `D3PMUniformScheduler` coincide. Where guidance or a control has excluded all tokens of a
    cluster, the prediction over all tokens counts in their place.

    Args:
        mask_token_id: the id of `[MASK]`; never predicted.
        vocab_size: S, the number of all ids; cluster c has the id S - C + c.
        clusters: (V,) the cluster, 0 to C - 1, of each of the first V ids, of which text consists; -1 is an id among
            them that is never written, such as the mask. See `from_embeddings`.
        cluster_power: p, above 1, that says how long a token shows its cluster: near 1 there are none, which is the
            absorbing kernel; with large numbers all tokens turn into clusters before any is masked.
        num_train_timesteps, schedule, min_timestep, temperature, top_k, top_p: as in `D3PMAbsorbingScheduler`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMHierarchicalScheduler
        >>> clusters = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])  # of 9 tokens; 9 is the mask
        >>> scheduler = D3PMHierarchicalScheduler(mask_token_id=9, vocab_size=13, clusters=clusters)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 13)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape, bool((sample < 9).all())
        (torch.Size([2, 6]), True)
    """

    corruption = "hierarchical"
    _tensor_arguments = ("clusters",)

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        vocab_size: int,
        clusters: Tensor,
        cluster_power: float = 2.0,
        num_train_timesteps: int | None = None,
        schedule: str | list[float] = "linear",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        require_int("mask_token_id", mask_token_id, 0)
        require_int("vocab_size", vocab_size, 2, MOST_IDS)
        above_one = is_number(cluster_power, 1) and cluster_power > 1
        require(above_one, "cluster_power", "a number above 1", cluster_power)
        check_clusters(clusters)
        self._clusters = clusters.long()  # (V,)
        self.num_clusters = int(clusters.max()) + 1
        self.first_cluster_id = vocab_size - self.num_clusters

        # Tokens and the mask stand before the clusters, and no token is the mask.
        limit = f"at least {self.num_clusters} above the {len(clusters)} of `clusters`"
        require(self.first_cluster_id >= len(clusters), "vocab_size", limit, vocab_size)
        limit = f"below {self.first_cluster_id}, the first id of a cluster"
        require(mask_token_id < self.first_cluster_id, "mask_token_id", limit, mask_token_id)
        is_token = mask_token_id < len(clusters) and int(clusters[mask_token_id]) != NO_CLUSTER
        limit = f"{NO_CLUSTER} for `mask_token_id`={mask_token_id}, which is no token"
        require(not is_token, "clusters", limit, clusters[mask_token_id] if is_token else None)
        self._set_up()

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Tensor,
        num_clusters: int,
        mask_token_id: int,
        num_ids: int | None = None,
        **kwargs: Any,
    ) -> "D3PMHierarchicalScheduler":
        """A scheduler whose clusters are those of `cluster_tokens`; `kwargs` are those of the class.

        Args:
            embeddings: (V, D) table of the first V ids. If the mask is one of them, it gets no cluster.
            num_clusters: C.
            mask_token_id: the id of `[MASK]`.
            num_ids: ids of the tokenizer, behind which those of the clusters stand; by default they stand behind the
                last of tokens and mask.

        Raises:
            ValueError: if an argument is out of its range.
        """
        embeddings = embeddings.detach().cpu()
        is_token = torch.arange(len(embeddings)) != mask_token_id
        clusters = torch.full((len(embeddings),), NO_CLUSTER)
        clusters[is_token] = cluster_tokens(embeddings[is_token], num_clusters)
        first = num_ids or max(len(embeddings), mask_token_id + 1)
        return cls(mask_token_id, first + num_clusters, clusters, **kwargs)

    @property
    def num_tokens(self) -> int:
        """V: the ids below are what x_0 may be; further logits are ignored."""
        return len(self._clusters)

    @property
    def num_states(self) -> int:
        """S: the ids 0 to S - 1 are what x_t may be."""
        return self.config.vocab_size

    def token_alpha(self, timesteps: Time) -> Tensor:
        """Probability that a token is still itself at `timesteps`, float64, same shape."""
        return self.alpha(timesteps) ** self.config.cluster_power

    def cluster_ids(self, tokens: Tensor) -> Tensor:
        """The ids of the clusters of tokens, same shape; an id that is no token stays as it is."""
        clusters = self._clusters.to(tokens.device)
        inside = tokens.clamp(max=len(clusters) - 1)
        found = clusters[inside]
        has_cluster = (tokens < len(clusters)) & (found != NO_CLUSTER)
        return torch.where(has_cluster, self.first_cluster_id + found, tokens)

    def is_open(self, sample: Tensor) -> Tensor:
        """Bool like `sample`: masks and clusters, which are no tokens yet."""
        is_cluster = (sample >= self.first_cluster_id) & (sample < self.num_states)
        return is_cluster | (sample == self.config.mask_token_id)

    # Noise

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: Device = None
    ) -> Tensor:
        """(B, L) tokens at time 1: all masked."""
        return torch.full(shape, self.config.mask_token_id, device=device)

    def _corrupt(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        alpha = self.alpha(timesteps).to(tokens.device)
        if alpha.ndim == 1:
            alpha = alpha.unsqueeze(1)  # one time a row
        # One number decides on both levels: a token that is masked has lost itself before.
        uniform = rand_like(tokens, generator)
        coarse = self.cluster_ids(tokens)
        lost = torch.where(uniform < alpha, coarse, self.config.mask_token_id)
        kept = (uniform < alpha**self.config.cluster_power) | (coarse == tokens)
        return torch.where(kept, tokens, lost)

    def transition(self, tokens: Tensor, timestep: Time) -> Tensor:
        """q(x_t | x_0 = tokens), (N, S) over x_t, float64, for tokens (N,) and times () or (N,).

        Ids that are no tokens stay as they are.
        """
        ids = state_ids(self.num_states, tokens)
        coarse = self.cluster_ids(ids)
        alpha = self.alpha(timestep).to(ids.device).expand(len(ids))
        is_token = coarse != ids
        kept = torch.where(is_token, alpha**self.config.cluster_power, 1.0)
        clustered = torch.where(is_token, alpha * lost_share(alpha, self._exponent), 0.0)
        masked = torch.where(is_token, 1 - alpha, 0.0)

        rows = torch.zeros(len(ids), self.num_states, dtype=torch.float64, device=ids.device)
        rows.scatter_add_(1, ids.unsqueeze(1), kept.unsqueeze(1))
        rows.scatter_add_(1, coarse.unsqueeze(1), clustered.unsqueeze(1))
        rows[:, self.config.mask_token_id] += masked
        return rows

    @property
    def _exponent(self) -> float:
        return self.config.cluster_power - 1

    # The bound

    def bound_weights(self, times: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """`(cluster_weight, token_weight)`, (N,) float64 each, of `losses.hierarchical_bound` at masks and clusters.

        On a grid of T steps, or in continuous time, where the interval next to the data is one step.

        Args:
            times: (N,) from `training_timesteps`.
            noisy: (N,) x_t.
        """
        config = self.config
        num_steps = config.num_train_timesteps
        alpha = self.alpha(times)
        if num_steps is not None:
            alpha_s = self.alpha((times - 1 / num_steps).clamp(min=0))
            moves = hierarchical_moves(alpha, alpha_s, config.cluster_power)
            of_mask = num_steps * (moves.mask_to_cluster + moves.mask_to_token)
            both_of_mask = num_steps * moves.mask_to_token
            of_cluster = num_steps * moves.cluster_to_token
        else:
            derivative = self.alpha_derivative(times)
            first = times <= config.min_timestep
            last_step = 1 / config.min_timestep
            of_mask = (-derivative / (1 - alpha)).masked_fill(first, last_step)
            # The derivative of u^p over u - u^p
            slope = config.cluster_power * alpha ** (self._exponent - 1)
            of_cluster = -derivative * slope / lost_share(alpha, self._exponent)
            of_cluster = of_cluster.masked_fill(first, last_step)
            both_of_mask = torch.where(first, last_step, torch.zeros_like(alpha))

        masked = noisy == config.mask_token_id
        zero = torch.zeros_like(of_mask)
        return torch.where(masked, of_mask, zero), torch.where(masked, both_of_mask, of_cluster)

    # The way back

    def _moves(self, timestep: Time) -> HierarchicalMoves:
        """The moves of the step that starts at `timestep`, () each."""
        index = self._grid_index(timestep)
        alpha_t, alpha_s = self.alpha(self._grid[index : index + 2])
        return hierarchical_moves(alpha_t, alpha_s, self.config.cluster_power)

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the masks and clusters that the step from `timestep` changes."""
        moves = self._moves(timestep)
        masked = sample == self.config.mask_token_id
        leaves = moves.mask_to_cluster + moves.mask_to_token
        chance = torch.where(
            masked, leaves.to(sample.device), moves.cluster_to_token.to(sample.device)
        )
        return self.is_open(sample) & (rand_like(sample, generator) < chance)

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        # x_0 at all of them: of any cluster where there is a mask
        def weights_of(block: Tensor, current: Tensor) -> Tensor:
            return self._weights(self._of_cluster(block, current))

        rows = (logits, sample[positions])
        clean = draw_at(positions, sample, weights_of, rows, generator)

        # Of most masks no more than the cluster is shown.
        moves = self._moves(timestep)
        leaves = moves.mask_to_cluster + moves.mask_to_token
        is_coarse = rand_like(sample, generator) * float(leaves) < float(moves.mask_to_cluster)
        is_coarse &= positions & (sample == self.config.mask_token_id)
        return torch.where(is_coarse, self.cluster_ids(clean), clean)

    def reverse_probs(
        self, model_output: Tensor, timestep: Time, sample: Tensor, from_scores: bool = False
    ) -> Tensor:
        """p(x_s | x_t) as (B, L, S), the distribution `step` draws from; as in `D3PMAbsorbingScheduler`."""
        ids = as_ids("sample", sample)
        probs = self._clean_probs(model_output, timestep, ids, from_scores)  # (B, L, V)
        moves = HierarchicalMoves(*(move.to(probs) for move in self._moves(timestep)))
        mask_token_id = self.config.mask_token_id
        clean = torch.nn.functional.pad(probs, (0, self.num_states - probs.shape[-1]))

        # From a mask: x_0, its cluster, or the mask again
        states = torch.arange(self.num_tokens, device=ids.device)
        coarse = self.cluster_ids(states).expand_as(probs)
        masked = moves.mask_to_token * clean
        masked = masked.scatter_add(-1, coarse, moves.mask_to_cluster * probs)
        stays = 1 - moves.mask_to_cluster - moves.mask_to_token
        masked[..., mask_token_id] += stays.clamp(min=0)

        # From a cluster: x_0, or the cluster again. A token stays.
        itself = torch.nn.functional.one_hot(ids, self.num_states).to(probs)
        clustered = moves.cluster_to_token * clean + (1 - moves.cluster_to_token) * itself
        is_masked = (ids == mask_token_id).unsqueeze(-1)
        reverse = torch.where(is_masked, masked, clustered)
        return torch.where(self.is_open(ids).unsqueeze(-1), reverse, itself)

    def _own_ids(self, model_output: Tensor) -> Tensor:
        logits = super()._own_ids(model_output)
        never_written = self._clusters == NO_CLUSTER
        if not never_written.any():
            return logits
        return logits.masked_fill(never_written.to(logits.device), -torch.inf)

    def _clean_logits(self, model_output: Tensor, timestep: Time, sample: Tensor) -> Tensor:
        return self._of_cluster(self._own_ids(model_output), sample)

    def _of_cluster(self, logits: Tensor, sample: Tensor) -> Tensor:
        """Logits (..., V) in which, where x_t (...) is a cluster, only its tokens are possible."""
        clusters = self._clusters.to(logits.device)
        current = (sample - self.first_cluster_id).unsqueeze(-1)
        outside = (current >= 0) & (clusters != current)  # (..., V)
        restricted = logits.masked_fill(outside, -torch.inf)

        # Guidance or a control may have left none of them.
        is_left = restricted.amax(dim=-1, keepdim=True) > -torch.inf
        return torch.where(is_left, restricted, logits)


def check_clusters(clusters: Any):
    """Raise a `ValueError` unless these are the clusters of tokens, each with one at least."""
    limit = "a tensor (V,) of integers"
    is_vector = is_table(clusters, 1) and len(clusters) > 0 and not clusters.is_floating_point()
    require(is_vector, "clusters", limit, clusters)
    present = clusters[clusters != NO_CLUSTER].unique()
    complete = len(present) > 0 and torch.equal(present, torch.arange(len(present)).to(present))
    limit = f"numbers from 0 on, each of a token at least, or {NO_CLUSTER}"
    require(complete, "clusters", limit, present.tolist())
