"""Absorbing diffusion that commits the tokens a model is surest of first.

Orders: confidence (MaskGIT, https://arxiv.org/abs/2202.04200, and LLaDA, https://arxiv.org/abs/2502.09992), entropy
and margin (Dream, https://arxiv.org/abs/2508.15487), random. How many at a step: a quota, a threshold (Fast-dLLM,
https://arxiv.org/abs/2505.22618) or a bound on the entropy (EB-Sampler, https://arxiv.org/abs/2505.24857).

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.sampling import MASS_BLOCK, in_row_blocks, sample_tokens, token_weights
from text_diffusers.common.validation import require, require_key, require_number
from text_diffusers.schedulers.noise_schedules import Time
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler


def row_sums(values: Tensor) -> Tensor:
    """(N,) sums of (N, V) in two levels, because torch adds up a long row in another order if it is the only one."""
    whole = values.shape[-1] - values.shape[-1] % MASS_BLOCK
    blocks = values[:, :whole].unflatten(-1, (-1, MASS_BLOCK)).sum(dim=-1)
    return blocks.sum(dim=-1) + values[:, whole:].sum(dim=-1)


def token_confidence(weights: Tensor, tokens: Tensor, total: Tensor) -> Tensor:
    """(N,) probability of `tokens` (N,) under unnormalised probabilities (N, V) that sum to `total` (N,)."""
    return weights.gather(1, tokens.unsqueeze(-1)).squeeze(-1) / total


def token_entropy(weights: Tensor, tokens: Tensor, total: Tensor) -> Tensor:
    """(N,) entropy in nats; arguments as in `token_confidence`."""
    logs = weights.clamp(min=torch.finfo(weights.dtype).tiny).log_()
    return (total.log() - row_sums(logs.mul_(weights)) / total).clamp(min=0)


def token_margin(weights: Tensor, tokens: Tensor, total: Tensor) -> Tensor:
    """(N,) distance between the two largest probabilities; arguments as in `token_confidence`."""
    first, second = weights.topk(2, dim=-1).values.unbind(dim=-1)
    return (first - second) / total


MEASURES = {
    "confidence": token_confidence,
    "entropy": token_entropy,
    "margin": token_margin,
}

# On the scale of a logarithm, larger first, and so fit for Gumbel noise.
LOG_SCORES = {
    "confidence": torch.log,
    "entropy": torch.neg,
    "margin": torch.log,
}
ORDERS = (*MEASURES, "random")


class ConfidenceScheduler(D3PMAbsorbingScheduler):
    """Absorbing diffusion whose steps commit the best of all candidates instead of random positions.

    A step draws a candidate at each masked position, commits some, and leaves the rest masked for the next step. The
    `order` ranks the candidates of a row, ties going to the left:

    - "confidence": probability of the candidate; "margin": that of the most probable token minus that of the second;
      "entropy": the lowest first. They are of the distribution the candidates are drawn from, shaped by `temperature`,
      `top_k` and `top_p`; a greedy candidate, `temperature=0`, is judged by the model's own distribution (without the
      mask), because its own has no uncertainty.
    - "random": uniformly random.

    How many are committed:

    - by default a quota: of the m masks of a row, round(m (1 - alpha_s) / (1 - alpha_t)) stay in the step from time t
      to s, halves to even, and so none after the last. `select` leaves out rows whose quota is zero.
    - `threshold`: every candidate whose probability exceeds it.
    - `entropy_bound`: the longest run of best candidates whose entropies, without the largest, add up to no more.

    With the last two a row gets at least its best candidate at each step, whatever the quota, and is usually done
    early; steps after that cost nothing, but what is still masked at the last step is committed at once. So give them
    as many steps as there are tokens to write. Positions that a caller leaves out count neither for the quota nor for
    the bound.

    With an exact model, one token a step reaches the distribution of the data in every order that does not look at
    the candidates: all but "confidence". `reverse_probs` remains that of `D3PMAbsorbingScheduler`.

    Args:
        mask_token_id, num_train_timesteps, schedule, min_timestep, temperature, top_k, top_p: as in
            `D3PMAbsorbingScheduler`.
        order: "confidence", "entropy", "margin" or "random"; by default "entropy" with `entropy_bound`, else
            "confidence".
        threshold: a probability.
        entropy_bound: in nats.
        order_temperature: scale of Gumbel noise on the log-probability, log-margin or negative entropy that ranks
            the candidates; 0 ranks without noise. A random order stays as it is.

    Raises:
        ValueError: if an argument is out of its range, or both `threshold` and `entropy_bound` are given.

    Example:
        >>> import torch
        >>> from text_diffusers import ConfidenceScheduler
        >>> scheduler = ConfidenceScheduler(mask_token_id=9, order="entropy")
        >>> scheduler.set_timesteps(3)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        ...     print((sample == 9).sum(dim=1).tolist())  # masks left in each row
        [4, 4]
        [2, 2]
        [0, 0]
    """

    draws_reverse = False

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        num_train_timesteps: int | None = None,
        schedule: str | list[float] = "linear",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        order: str | None = None,
        threshold: float | None = None,
        entropy_bound: float | None = None,
        order_temperature: float = 0.0,
    ):
        self._set_up()
        require_key("order", order, ORDERS, optional=True)
        require_number("threshold", threshold, 0, 1, optional=True)
        require_number("entropy_bound", entropy_bound, 0, optional=True)
        require_number("order_temperature", order_temperature, 0)
        one_rule = threshold is None or entropy_bound is None
        require(one_rule, "entropy_bound", "None if `threshold` is given", entropy_bound)
        self._order = order or ("confidence" if entropy_bound is None else "entropy")

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the masked positions of the rows in which the step from `timestep` commits a token."""
        masked = sample == self.config.mask_token_id
        quota = self._quota(masked.sum(dim=1), timestep)  # (B,)
        # A threshold and a bound commit at least one token of each row, whatever the quota.
        if self.config.threshold is not None or self.config.entropy_bound is not None:
            return masked
        return masked & (quota > 0).unsqueeze(1)

    def _quota(self, masks: Tensor, timestep: Time) -> Tensor:
        """(B,) tokens to commit at the step from `timestep` in rows with `masks` (B,) masked tokens."""
        alpha_t, alpha_s = self._alphas(timestep)
        left = masks.double() * (1 - alpha_s) / (1 - alpha_t)
        # First to 9 digits, so that halves are halves in any arithmetic.
        return masks - left.round(decimals=9).round().long()

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        uniform = rand_like(sample, generator)[positions]  # (N,)
        candidates, measures = self._candidates(logits, uniform)
        committed = self._committed(measures, positions, timestep, generator)  # (B, L)
        prev_sample = sample.masked_scatter(positions, candidates.to(sample.dtype))
        return torch.where(committed, prev_sample, sample)

    # Candidates and how sure the model is of them

    def _candidates(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens (N,), and by name the needed `MEASURES` (N,), float64.

        Args:
            logits: (N, V).
            uniform: (N,) random numbers.
        """
        needed = {self._order}
        if self.config.threshold is not None:
            needed.add("confidence")
        if self.config.entropy_bound is not None:
            needed.add("entropy")

        candidates = []
        measures: dict[str, list[Tensor]] = {name: [] for name in MEASURES if name in needed}
        for block, drawn in in_row_blocks(logits, uniform):
            if self.config.temperature > 0:
                weights = self._weights(block)
                tokens = sample_tokens(weights, drawn)
            else:
                # Greedy candidates are judged by the distribution of the model itself.
                weights = token_weights(block, mask_token_id=self.config.mask_token_id)
                tokens = most_probable_tokens(block, self.config.mask_token_id)

            candidates.append(tokens)
            total = row_sums(weights)  # (n,)
            for name, values in measures.items():
                values.append(MEASURES[name](weights, tokens, total).double())
        joined = {name: torch.cat(values) for name, values in measures.items()}
        return torch.cat(candidates), joined

    # Order and number of those that are committed

    def _committed(
        self,
        measures: dict[str, Tensor],
        positions: Tensor,
        timestep: Time,
        generator: Generators,
    ) -> Tensor:
        """(B, L) bool: the selected positions whose candidates are kept."""
        _, alpha_s = self._alphas(timestep)
        if alpha_s == 1:
            return positions  # the last step leaves no mask

        rank = self._ranks(measures, positions, generator)  # (B, L)
        threshold = self.config.threshold
        entropy_bound = self.config.entropy_bound
        if threshold is not None:
            confident = positions.masked_scatter(positions, measures["confidence"] > threshold)
            # The best candidate of a row is kept in any case.
            return confident | (positions & (rank == 0))

        if entropy_bound is not None:
            entropies = on_grid(measures["entropy"], positions)  # (B, L)
            # In the order of the row, all but the largest of the candidates so far.
            entropies = torch.zeros_like(entropies).scatter(1, rank, entropies)
            spent = entropies.cumsum(dim=1) - entropies.cummax(dim=1).values
            return positions & (spent <= entropy_bound).gather(1, rank)

        return rank < self._quota(positions.sum(dim=1), timestep).unsqueeze(1)

    def _ranks(
        self,
        measures: dict[str, Tensor],
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        """(B, L) places in the order of a row, 0 the first; selected positions come before all others."""
        if self._order == "random":
            scores = torch.zeros(positions.shape, dtype=torch.float64, device=positions.device)
            scale = 1.0
        else:
            scores = on_grid(LOG_SCORES[self._order](measures[self._order]), positions)
            scale = self.config.order_temperature
        if scale > 0:
            gumbel = -torch.log(-torch.log(rand_like(positions, generator)))
            scores = scores + scale * gumbel

        # A margin of 0, score -inf, still comes before what is not selected.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.clamp(min=lowest).masked_fill(~positions, -torch.inf)
        # The places of an order are the order of its order.
        return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def on_grid(values: Tensor, positions: Tensor) -> Tensor:
    """(B, L) with `values` (N,) at the N true `positions` (B, L) and 0 elsewhere."""
    return values.new_zeros(positions.shape).masked_scatter(positions, values)


def most_probable_tokens(logits: Tensor, mask_token_id: int) -> Tensor:
    """(N,) the ids of the largest logits (N, V), the mask aside; a second look only where the mask comes first."""
    tokens = logits.argmax(dim=-1)
    masks = tokens == mask_token_id
    if masks.any():
        others = logits[masks]  # a copy
        others[:, mask_token_id] = -torch.inf
        tokens[masks] = others.argmax(dim=-1)
    return tokens
