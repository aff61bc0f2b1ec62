"""Predictor-corrector sampling of tokens: after a step to a new time, correct the sample at that time.

Absorbing kernel: the forward-backward corrector of https://arxiv.org/abs/2205.14987. Uniform kernel: the Gibbs
corrector with a leave-one-out prediction of https://arxiv.org/abs/2605.22765.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators
from text_diffusers.common.time_grids import even_grid, given_grid, step_count
from text_diffusers.common.validation import as_ids, is_number, require, require_int
from text_diffusers.schedulers.noise_schedules import D3PMScheduler, Device, Time
from text_diffusers.schedulers.scheduling_d3pm import D3PMUniformScheduler, reveal_prob
from text_diffusers.schedulers.scheduling_ddim_token import (
    Routes,
    clean_logits,
    draw_routes,
    routes_reverse,
)
from text_diffusers.schedulers.scheduling_remdm import (
    CLOCK_TOLERANCE,
    RemaskingScheduler,
    largest_sigma,
)


class PredictorCorrectorScheduler(D3PMScheduler):
    """Base for both kernels: the order of predictor and corrector steps.

    A corrector runs at the time its predictor step has reached, so `timesteps` repeats that time: 1, s, s, r, r, ...
    Steps are told apart by their number, which `step` advances and `set_timesteps` resets: one run at a time, each
    step once and in order, or `step` raises a ValueError.
    """

    draws_reverse = False

    def _set_up(self):
        # Both are of the corrector, and without one they do nothing.
        length = self.config.corrector_length
        require_int("corrector_steps", self.config.corrector_steps, 0)
        require(is_number(length) and length > 0, "corrector_length", "a number above 0", length)
        super()._set_up()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ):
        """Set `timesteps`, (n,): every call of the model counts, whether it predicts or corrects.

        Args:
            num_inference_steps: n. Each predictor step but the last is followed by `corrector_steps` correctors; if
                the number does not come out even, the first predictor step has fewer.
            timesteps: instead, floats in (0, 1] that do not rise. A time that comes again, after the first, is that of
                a corrector; with `num_train_timesteps`=T they are multiples of 1 / T.

        Raises:
            ValueError: if not one of both is given, there are fewer than 1 or more steps than `num_train_timesteps`
                predictor steps can take, or `timesteps` are no such floats.
        """
        limit = self.config.num_train_timesteps
        if timesteps is not None:
            times = given_grid(num_inference_steps, timesteps, limit, repeats=True)
            grid = times.unique().flip(0)
            counts = (times[:-1].unsqueeze(1) == grid[:-1]).sum(dim=0)  # of each predictor's time
            self._set_plan(grid, [count - 1 for count in counts.tolist()], device)
            return

        correctors = self.config.corrector_steps
        most = math.inf
        bounds = "at least 1"
        if limit is not None:
            # As many predictor steps as there are in training, with correctors in between
            most = limit * (1 + correctors) - correctors
            bounds = f"between 1 and {most}, for `num_train_timesteps`={limit}"
        count = step_count(num_inference_steps, most, bounds)

        # No corrector follows the last predictor step, which ends at clean text.
        predictors = -(-(count + correctors) // (1 + correctors))
        # What is left over for the first predictor step, all later ones having their number.
        first_correctors = count - predictors - correctors * (predictors - 2)
        corrector_counts = [0, first_correctors, *[correctors] * (predictors - 2)][:predictors]
        self._set_plan(even_grid(predictors, limit), corrector_counts, device)

    def _set_plan(self, grid: Tensor, corrector_counts: list[int], device: Device):
        """Predict from each time of the `grid` (n + 1,) but the last, after so many correctors at that time."""
        # The grid index of each step, and whether it is a corrector.
        self._plan: list[tuple[int, bool]] = []
        for index, count in enumerate(corrector_counts):
            self._plan += [(index, True)] * count
            self._plan.append((index, False))

        super()._set_grid(grid, device)
        indices = [index for index, _ in self._plan]
        self.num_inference_steps = len(self._plan)
        self.timesteps = grid[indices].to(device, torch.float32)
        self._next_step = 0

    def _current(self, timestep: Time) -> tuple[int, bool]:
        """Grid index of the next step, and whether it is a corrector, checked against `timestep`."""
        if self._next_step == len(self._plan):
            raise ValueError(
                f"`timestep` must follow a new `set_timesteps`: all steps were taken, got {timestep}."
            )

        index, corrects = self._plan[self._next_step]
        expected = float(self._grid[index])
        if not abs(expected - float(timestep)) < CLOCK_TOLERANCE:
            raise ValueError(
                f"`timestep` must be number {self._next_step} of `timesteps`, {expected:g}, got {timestep}."
            )
        return index, corrects

    def _corrects(self, timestep: Time) -> bool:
        """Whether the next step is a corrector."""
        return self._current(timestep)[1]

    def _alphas(self, timestep: Time) -> tuple[float, float]:
        """`alpha` at both ends of the next step; a corrector ends where it starts."""
        index, corrects = self._current(timestep)
        alpha_t, alpha_s = self.alpha(self._grid[index : index + 2]).tolist()
        return alpha_t, alpha_t if corrects else alpha_s

    def _refreshed(self, timestep: Time) -> float:
        """The share of a corrector: `corrector_length` times what forward noise destroys in the predictor's interval.

        0 for a predictor step, at most 1.
        """
        index, corrects = self._current(timestep)
        if not corrects:
            return 0.0
        # The predictor's interval ends where the corrector stands.
        alpha_before, alpha = self.alpha(self._grid[index - 1 : index + 1]).tolist()

        # Forward noise keeps the share alpha_t / alpha_s of what is there at s.
        return min(1.0, self.config.corrector_length * (1 - alpha_before / alpha))

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
        **options: Any,
    ) -> Tensor:
        # Only a step that was taken counts; one that raises can be repeated.
        prev_sample = super()._next(logits, timestep, sample, positions, generator, **options)
        self._next_step += 1
        return prev_sample


class PredictorCorrectorAbsorbingScheduler(PredictorCorrectorScheduler, RemaskingScheduler):
    """Predictor: `D3PMAbsorbingScheduler`. Corrector: forward and backward noise at once, in one tau-leap.

    A corrector at time s masks a revealed token with probability sigma, and reveals a mask with probability
    sigma alpha_s / (1 - alpha_s), which keeps q(x_s | x_0). With the exact denoiser the law of one token is
    unchanged exactly; that of several up to an error of second order in sigma, since positions that change together
    do not see each other. sigma is `corrector_length` times 1 - alpha_t / alpha_s, the probability that forward noise
    over the predictor's interval masks a token, and at most (1 - alpha_s) / alpha_s.

    Args:
        mask_token_id, num_train_timesteps, schedule, min_timestep, temperature, top_k, top_p: as in
            `D3PMAbsorbingScheduler`.
        corrector_steps: correctors after each predictor step; 0 is `D3PMAbsorbingScheduler`, draw for draw.
        corrector_length: how long a corrector runs, in units of the predictor step before it.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import PredictorCorrectorAbsorbingScheduler
        >>> scheduler = PredictorCorrectorAbsorbingScheduler(mask_token_id=9, corrector_steps=1)
        >>> scheduler.set_timesteps(5)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape, bool((sample == 9).any())
        (torch.Size([2, 6]), False)
    """

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
        corrector_steps: int = 1,
        corrector_length: float = 1.0,
    ):
        self._set_up()

    def _rates(self, timestep: Time, sample: Tensor) -> tuple[float, float | Tensor]:
        """Probability of revealing a masked token, and of masking a revealed one."""
        alpha_t, alpha_s = self._alphas(timestep)
        # Under a predictor step 0: nothing is masked again.
        sigma = min(self._refreshed(timestep), largest_sigma(alpha_t, alpha_s))
        # At a corrector both alphas are equal, and this is sigma alpha / (1 - alpha).
        return reveal_prob(alpha_t, alpha_s, sigma), sigma


class PredictorCorrectorUniformScheduler(PredictorCorrectorScheduler, D3PMUniformScheduler):
    """Predictor: `D3PMUniformScheduler`. Corrector: draw some positions again, given all others (Gibbs sampling).

    The conditional of a position at time s is alpha_s p_loo + (1 - alpha_s) / V, where p_loo, the leave-one-out
    prediction, is proportional to p(x_0 | x_s) / q(x_s | x_0); under the "plug_in" rule it is what the model predicts.
    With the exact denoiser, redrawing one position a row leaves the law of the row unchanged, whichever position it
    is, as long as the tokens do not decide on it. Several at once do so up to an error of second order in their share.
    Each position is redrawn with probability `corrector_length` times 1 - alpha_t / alpha_s, the probability that
    forward noise over the predictor's interval redraws it; with the chance 1 - alpha_s it then takes noise, and
    `select` asks for no prediction.

    Args:
        vocab_size, num_train_timesteps, schedule, reverse_rule, min_timestep, temperature, top_k, top_p: as in
            `D3PMUniformScheduler`; p_loo is shaped by temperature, top_k and top_p.
        corrector_steps: correctors after each predictor step; 0 is `D3PMUniformScheduler`, draw for draw.
        corrector_length: how long a corrector runs, in units of the predictor step before it.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import PredictorCorrectorUniformScheduler
        >>> scheduler = PredictorCorrectorUniformScheduler(vocab_size=10, corrector_steps=1)
        >>> scheduler.set_timesteps(5)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape
        torch.Size([2, 6])
    """

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        num_train_timesteps: int | None = None,
        schedule: str | list[float] = "linear",
        reverse_rule: str = "marginal",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        corrector_steps: int = 1,
        corrector_length: float = 1.0,
    ):
        self._set_up()

    def _corrector_routes(self, timestep: Time) -> Routes:
        """With a leave-one-out x_0."""
        # A redrawn position takes noise with the chance of q(x_s | x_0).
        redrawn = self._refreshed(timestep)
        alpha, _ = self._alphas(timestep)
        return Routes(jump=redrawn * alpha, resample=redrawn * (1 - alpha), stay=1 - redrawn)

    def _selected_share(self, timestep: Time) -> float:
        """Probability that the next step needs the prediction of a position."""
        if self._corrects(timestep):
            return self._corrector_routes(timestep).jump
        return super()._selected_share(timestep)

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        if not self._corrects(timestep):
            return super()._next(logits, timestep, sample, positions, generator)

        current = sample[positions]  # (N,)
        logits = clean_logits(self, logits, timestep, current, leave_one_out=True)
        weights = self._weights(logits)  # (N, V)
        routes = self._corrector_routes(timestep)
        self._next_step += 1
        return draw_routes(weights, sample, positions, routes, generator)

    def _clean_logits(self, model_output: Tensor, timestep: Time, sample: Tensor) -> Tensor:
        if not self._corrects(timestep):
            return super()._clean_logits(model_output, timestep, sample)
        return clean_logits(self, model_output, timestep, sample, leave_one_out=True)

    def reverse_probs(
        self, model_output: Tensor, timestep: Time, sample: Tensor, from_scores: bool = False
    ) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from; as in `D3PMAbsorbingScheduler`."""
        if not self._corrects(timestep):
            return super().reverse_probs(model_output, timestep, sample, from_scores)
        ids = as_ids("sample", sample)
        probs = self._clean_probs(model_output, timestep, ids, from_scores)
        return routes_reverse(probs, ids, self._corrector_routes(timestep))
