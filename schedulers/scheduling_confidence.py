"""Absorbing diffusion that commits the tokens a model is surest of first.

Orders: confidence (MaskGIT, https://arxiv.org/abs/2202.04200, and LLaDA, https://arxiv.org/abs/2502.09992), entropy
and margin (Dream, https://arxiv.org/abs/2508.15487), random, left to right (SDAR, https://arxiv.org/abs/2510.06303).
How many at a step: a quota, a threshold (Fast-dLLM, https://arxiv.org/abs/2505.22618) or a bound on the entropy
(EB-Sampler, https://arxiv.org/abs/2505.24857). Among which: all, or a window of the first masked positions.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions, n steps.
"""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.sampling import MASS_BLOCK, in_row_blocks, sample_tokens, token_weights
from text_diffusers.common.validation import (
    is_int,
    is_list,
    is_number,
    require,
    require_int,
    require_key,
    require_number,
)
from text_diffusers.schedulers.noise_schedules import Device, Time
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
ORDERS = (*MEASURES, "left_to_right", "random")


def proportional_quota(masks: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    """(B,) all but the share of the `masks` (B,) that is masked at s; what stays is rounded, halves to even."""
    left = masks.double() * (1 - alpha_s) / (1 - alpha_t)
    # First to 9 digits, so that halves are halves in any arithmetic.
    return masks - left.round(decimals=9).round().long()


def truncated_quota(masks: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    """(B,) the share of the `masks` (B,) that is revealed by s, rounded down."""
    revealed = masks.double() * (1 - (1 - alpha_s) / (1 - alpha_t))
    # First to 9 digits, so that whole numbers are whole in any arithmetic.
    return revealed.round(decimals=9).long()


def even_schedule(masks: Tensor, alphas: Tensor) -> Tensor:
    """(n, B) equal parts of the `masks` (B,); the first steps take one more where they do not divide."""
    num_steps = len(alphas) - 1
    step = torch.arange(num_steps, device=masks.device).unsqueeze(1)
    return masks // num_steps + (step < masks % num_steps)


def rounded_schedule(masks: Tensor, alphas: Tensor) -> Tensor:
    """(n, B) at each step the share that is revealed of the `masks` (B,) left by the steps before, rounded to even.

    Args:
        masks: (B,).
        alphas: (n + 1,) at both ends of every step.
    """
    # In float32 as the published sampler, since rounding errors decide to which side a half falls.
    noise = (1 - alphas).float()
    # Noise too small for float32 is none, and such a step reveals all.
    left = (noise[1:] / noise[:-1]).nan_to_num(nan=0.0)
    reveal = (1 - left.double()).clamp(0, 1)

    quotas = []
    for share in reveal.tolist():
        quota = (masks.double() * share).round().long().minimum(masks)
        quotas.append(quota)
        masks = masks - quota
    return torch.stack(quotas)


# Of the masks that a row has at a step.
STEP_QUOTAS = {
    "proportional": proportional_quota,
    "truncated": truncated_quota,
}

# For a whole run, of the masks that a row has when it begins.
RUN_SCHEDULES = {
    "even": even_schedule,
    "rounded": rounded_schedule,
}
QUOTAS = (*STEP_QUOTAS, *RUN_SCHEDULES)


class ConfidenceScheduler(D3PMAbsorbingScheduler):
    """Absorbing diffusion whose steps commit the best of all candidates instead of random positions.

    A step draws a candidate at each masked position, commits some, and leaves the rest masked for the next step. The
    `order` ranks the candidates of a row, ties going to the left:

    - "confidence": probability of the candidate; "margin": that of the most probable token minus that of the second;
      "entropy": the lowest first. They are of the distribution the candidates are drawn from, shaped by `temperature`,
      `top_k` and `top_p`; a greedy candidate, `temperature=0`, is judged by the model's own distribution, because its
      own has no uncertainty. The mask is in neither, unless `allow_mask` lets it.
    - "random": uniformly random; "left_to_right": as the text is read.

    How many are committed in the step from time t to s is a `quota` of the row's masks, with
    r = (1 - alpha_s) / (1 - alpha_t) the share of them that stays:

    - "proportional", the default: of m masks round(m r) stay, halves to even.
    - "truncated": floor(m (1 - r)) are committed.
    - "even": the masks are divided evenly over the steps, the remainder going to the first.
    - "rounded": round(m (1 - r)) are committed, m being what this rule leaves of the masks at the start.

    The last two count the masks when a run begins, at the first step after `set_timesteps`. `select` leaves out rows
    whose quota is zero. More can be committed by

    - `threshold`: every candidate whose probability exceeds it.
    - `entropy_bound`: the longest run of best candidates whose entropies, without the largest, add up to no more.

    With these a row gets at least its quota if one is named, else at least its best candidate, at each step, and is
    usually done early; steps after that cost nothing. What is still masked at the last step is committed at once, so
    without a named quota give them as many steps as there are tokens to write. Positions that a caller leaves out
    count neither for the quota nor for the bound.

    A `window` keeps all of this to the first so many masks of a row, from the left: only they are selected, and may be
    committed. It moves on with every token that settles, where the blocks of a pipeline (`block_length`) are steps of
    their own, each of which must be full before the next begins. A quota above the window widens it, so that a row is
    done in time however few steps there are. With a window, and in the order "left_to_right", which selects no more
    than its quota, all masks of a row count for the quota.

    Published samplers, a run being a block where there are blocks, with `allow_mask=True`, and `temperature=0` where
    theirs is greedy:

    | sampler | options |
    |---|---|
    | LLaDA, iLLaDA: `low_confidence` | `quota="even"` |
    | Dream: `maskgit_plus` | `quota="truncated", grid_end=1e-3` |
    | Dream: `entropy`, `topk_margin` | the same, and `order="entropy"`, `order="margin"` |
    | dllm (Tiny-A2D, BERT-Chat): MDLM, BD3LM | `quota="rounded"` |
    | SDAR: `sequential` | `quota="even", order="left_to_right"` |
    | SDAR: `low_confidence_static` | `quota="even"` |
    | SDAR: `low_confidence_dynamic` | `quota="even", threshold=0.85` |
    | LLaDA2.0 | `quota="even", threshold=0.95` |
    | LLaDA2.1, which also edits | diffusers' `BlockRefinementScheduler` |

    SDAR and LLaDA2.0 divide the length of a block, also where the prompt ends in it; with as many steps as a block
    has tokens that is the same. Dream divides the masks of the whole batch, here it is those of a row.

    With an exact model, one token a step reaches the distribution of the data in every order that does not look at
    the candidates: all but "confidence". `reverse_probs` remains that of `D3PMAbsorbingScheduler`.

    Args:
        mask_token_id, num_train_timesteps, schedule, min_timestep, temperature, top_k, top_p: as in
            `D3PMAbsorbingScheduler`.
        order: "confidence", "entropy", "margin", "random" or "left_to_right"; by default "entropy" with
            `entropy_bound`, else "confidence".
        threshold: a probability.
        entropy_bound: in nats.
        order_temperature: scale of Gumbel noise on the log-probability, log-margin or negative entropy that ranks
            the candidates; 0 ranks without noise. The orders "random" and "left_to_right" stay as they are.
        quota: "proportional", "truncated", "even" or "rounded"; by default "proportional", or one token at least with
            `threshold` or `entropy_bound`.
        allow_mask: whether the mask is a token like others: it counts in the distribution and may be the candidate. A
            position that commits it stays masked, also after the last step.
        late_token_ids: tokens that are committed after all other candidates of a row, such as the ends
            of texts, which a model may be surest of all the time (LLaDA's `confidence_eos_eot_inf`).
        grid_end: where an even grid of `set_timesteps` ends. The last step still leads to clean text.
        window: how many of a row's masked positions, from the left, may be committed; `None` is all.

    Raises:
        ValueError: if an argument is out of its range, both `threshold` and `entropy_bound` are given, or a grid of T
            steps is to end elsewhere than at 0.

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
        quota: str | None = None,
        allow_mask: bool = False,
        grid_end: float = 0.0,
        late_token_ids: list[int] | None = None,
        window: int | None = None,
    ):
        is_end = is_number(grid_end, 0) and grid_end < 1
        require(is_end, "grid_end", "a number of at least 0 and below 1", grid_end)
        on_clock = num_train_timesteps is None or grid_end == 0
        require(on_clock, "grid_end", "0 if `num_train_timesteps` is given", grid_end)
        self._set_up()
        require_key("order", order, ORDERS, optional=True)
        require_number("threshold", threshold, 0, 1, optional=True)
        require_number("entropy_bound", entropy_bound, 0, optional=True)
        require_number("order_temperature", order_temperature, 0)
        one_rule = threshold is None or entropy_bound is None
        require(one_rule, "entropy_bound", "None if `threshold` is given", entropy_bound)
        require_key("quota", quota, QUOTAS, optional=True)
        require(isinstance(allow_mask, bool), "allow_mask", "True or False", allow_mask)
        late_ids = [] if late_token_ids is None else late_token_ids
        are_ids = is_list(late_ids) and all(is_int(token, 0) for token in late_ids)
        require(are_ids, "late_token_ids", "None or a list of ids", late_token_ids)
        require_int("window", window, 1, optional=True)
        self._order = order or ("confidence" if entropy_bound is None else "entropy")
        self._quota_rule = quota or "proportional"
        self._is_adaptive = threshold is not None or entropy_bound is not None
        # From the left only the first masks can be committed, unless what they become decides that.
        self._takes_first = (
            self._order == "left_to_right" and not self._is_adaptive and not late_ids
        )

    # The clock, and the quotas of a run

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ):
        """As in `D3PMAbsorbingScheduler`, an even grid ending at `grid_end`; a run begins anew."""
        super().set_timesteps(num_inference_steps, device, timesteps)
        if timesteps is None and self.config.grid_end > 0:
            grid = self.config.grid_end + (1 - self.config.grid_end) * self._grid
            # The last step commits what is left, wherever the grid ends.
            grid[-1] = 0
            self._set_grid(grid, device)

    def _set_grid(self, grid: Tensor, device: Device):
        super()._set_grid(grid, device)
        # (steps left, B) quotas from the step at which the run began
        self._schedule: Tensor | None = None
        self._first_step = 0

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the masked positions of the rows in which the step from `timestep` commits a token.

        With a window, and from the left, no more of them than the step can reach.
        """
        masked = sample == self.config.mask_token_id
        # The first step of a run counts the masks, and only `step` is told which of them are to be written.
        if self._counts_masks(timestep):
            return masked

        quota = self._quota(masked.sum(dim=1), timestep)
        # A threshold and a bound may commit a token of each row, whatever the quota.
        if not self._is_adaptive:
            masked = masked & (quota > 0).unsqueeze(1)
        return self._within_reach(masked, quota, timestep)

    def _counts_masks(self, timestep: Time) -> bool:
        """Whether the step from `timestep` begins a run whose quotas are those of all its masks."""
        if self._quota_rule in STEP_QUOTAS:
            return False
        return self._schedule is None or self._grid_index(timestep) <= self._first_step

    def _quota(self, masks: Tensor, timestep: Time) -> Tensor:
        """(B,) the least number of tokens to commit at the step from `timestep` in rows with so many `masks` (B,).

        Raises:
            ValueError: if the batch has other rows than the run began with.
        """
        # Unless a quota is named, adaptive rules keep the best candidate of a row in any case.
        if self._is_adaptive and self.config.quota is None:
            return torch.ones_like(masks)
        if self._quota_rule in STEP_QUOTAS:
            return STEP_QUOTAS[self._quota_rule](masks, *self._alphas(timestep))

        step = self._grid_index(timestep)
        schedule = self._schedule
        if schedule is None or self._counts_masks(timestep):
            alphas = self._alpha(self._grid[step:].float())
            schedule = RUN_SCHEDULES[self._quota_rule](masks, alphas)
            self._schedule = schedule
            self._first_step = step

        num_rows = schedule.shape[1]
        limit = f"of {num_rows} rows as in the steps before"
        require(len(masks) == num_rows, "sample", limit, len(masks))
        return schedule[step - self._first_step]

    def _within_reach(self, positions: Tensor, quota: Tensor, timestep: Time) -> Tensor:
        """(B, L) bool: the first `positions` (B, L) of a row, as many as its quota (B,) and the window allow."""
        window = self.config.window
        if self._commits_all(timestep) or not (self._takes_first or window):
            return positions
        reach = quota if self._takes_first else quota.clamp(min=window)
        return positions & (positions.cumsum(dim=1) <= reach.unsqueeze(1))

    def _commits_all(self, timestep: Time) -> bool:
        """Whether the step from `timestep` is the last one, which leaves no mask.

        Those that a schedule goes by when masks are written too stay.
        """
        _, alpha_s = self._alphas(timestep)
        keeps_schedule = self.config.allow_mask and self._quota_rule in RUN_SCHEDULES
        return alpha_s == 1 and not keeps_schedule

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
        drawn: Tensor | None = None,
    ) -> Tensor:
        uniform = rand_like(sample, generator)
        masks = self._masks_to_count(sample, positions, timestep)  # (B,)
        quota = self._quota(masks, timestep)  # (B,)

        # `select` has left out what is beyond reach already, but a caller may ask for more.
        reached = self._within_reach(positions, quota, timestep)
        if not reached.equal(positions):
            kept = reached[positions]
            logits = logits[kept]
            drawn = None if drawn is None else drawn[kept]
            positions = reached

        candidates, measures = self._candidates(logits, uniform[positions], drawn)
        late_ids = torch.tensor(self.config.late_token_ids or [], device=candidates.device)
        is_late = torch.isin(candidates, late_ids.to(candidates.dtype))  # (N,)
        committed = self._committed(measures, is_late, positions, quota, timestep, generator)
        prev_sample = sample.masked_scatter(positions, candidates.to(sample.dtype))
        return torch.where(committed, prev_sample, sample)

    def _masks_to_count(self, sample: Tensor, positions: Tensor, timestep: Time) -> Tensor:
        """(B,) masks of a row of which its quota is a share."""
        is_narrow = self._takes_first or self.config.window is not None
        if not is_narrow or self._counts_masks(timestep):
            return positions.sum(dim=1)
        # The selection is a part of the masks; rows without any take no part in the step.
        masks = (sample == self.config.mask_token_id).sum(dim=1)
        return masks * positions.any(dim=1)

    # Candidates and how sure the model is of them

    def _candidates(
        self, logits: Tensor, uniform: Tensor, drawn: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens (N,), and by name the needed `MEASURES` (N,), float64.

        Args:
            logits: (N, V).
            uniform: (N,) random numbers.
            drawn: (N,) the tokens, if they were drawn together with each other.
        """
        excluded = None if self.config.allow_mask else self.config.mask_token_id
        shaping = {**self._shaping(), "mask_token_id": excluded}
        needed = {self._order}
        if self.config.threshold is not None:
            needed.add("confidence")
        if self.config.entropy_bound is not None:
            needed.add("entropy")

        candidates = []
        measures: dict[str, list[Tensor]] = {name: [] for name in MEASURES if name in needed}
        for block, numbers, *given in in_row_blocks(
            logits, uniform, *([] if drawn is None else [drawn])
        ):
            if self.config.temperature > 0:
                weights = token_weights(block, **shaping)
            else:
                # Greedy candidates are judged by the distribution of the model itself.
                weights = token_weights(block, mask_token_id=excluded)

            if given:
                tokens = given[0]
            elif self.config.temperature > 0:
                tokens = sample_tokens(weights, numbers)
            else:
                tokens = most_probable_tokens(block, excluded)

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
        is_late: Tensor,
        positions: Tensor,
        quota: Tensor,
        timestep: Time,
        generator: Generators,
    ) -> Tensor:
        """(B, L) bool: the selected positions whose candidates are kept; those that are late (N,) come last.

        Args:
            quota: (B,) how many of each row at least.
        """
        if self._commits_all(timestep):
            return positions
        rank = self._ranks(measures, is_late, positions, generator)  # (B, L)
        committed = positions & (rank < quota.unsqueeze(1))

        threshold = self.config.threshold
        if threshold is not None:
            is_sure = (measures["confidence"] > threshold) & ~is_late
            committed |= positions.masked_scatter(positions, is_sure)

        entropy_bound = self.config.entropy_bound
        if entropy_bound is not None:
            entropies = on_grid(measures["entropy"], positions)  # (B, L)
            # In the order of the row, all but the largest of the candidates so far.
            entropies = torch.zeros_like(entropies).scatter(1, rank, entropies)
            spent = entropies.cumsum(dim=1) - entropies.cummax(dim=1).values
            committed |= positions & (spent <= entropy_bound).gather(1, rank)
        return committed

    def _ranks(
        self,
        measures: dict[str, Tensor],
        is_late: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        """(B, L) places in the order of a row, 0 the first; selected positions come before all others."""
        if self._order == "random":
            scores = torch.zeros(positions.shape, dtype=torch.float64, device=positions.device)
            scale = 1.0
        elif self._order == "left_to_right":
            # Ties go to the left.
            scores = torch.zeros(positions.shape, dtype=torch.float64, device=positions.device)
            scale = 0.0
        else:
            scores = on_grid(LOG_SCORES[self._order](measures[self._order]), positions)
            scale = self.config.order_temperature
        if scale > 0:
            gumbel = -torch.log(-torch.log(rand_like(positions, generator)))
            scores = scores + scale * gumbel

        # A margin of 0, score -inf, still comes before what is late, and that before what is not selected.
        lowest = torch.finfo(scores.dtype).min
        late = positions.masked_scatter(positions, is_late)
        scores = scores.clamp(min=lowest / 2).masked_fill(late, lowest)
        scores = scores.masked_fill(~positions, -torch.inf)
        # The places of an order are the order of its order.
        return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def on_grid(values: Tensor, positions: Tensor) -> Tensor:
    """(B, L) with `values` (N,) at the N true `positions` (B, L) and 0 elsewhere."""
    return values.new_zeros(positions.shape).masked_scatter(positions, values)


def most_probable_tokens(logits: Tensor, mask_token_id: int | None) -> Tensor:
    """(N,) the ids of the largest logits (N, V), a given mask aside; a second look only where it comes first."""
    tokens = logits.argmax(dim=-1)
    if mask_token_id is None:
        return tokens
    masks = tokens == mask_token_id
    if masks.any():
        others = logits[masks]  # a copy
        others[:, mask_token_id] = -torch.inf
        tokens[masks] = others.argmax(dim=-1)
    return tokens
