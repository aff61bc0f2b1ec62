"""Predictor-corrector sampling of tokens: after a step to a new time, correct the sample at that time.

Absorbing kernel: the forward-backward corrector of https://arxiv.org/abs/2205.14987. Uniform kernel: the Gibbs
corrector with a leave-one-out prediction of https://arxiv.org/abs/2605.22765.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.validation import is_int, is_number, require
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler, D3PMUniformScheduler
from text_diffusers.schedulers.scheduling_ddim_token import draw_routes, routes_reverse
from text_diffusers.schedulers.scheduling_remdm import (
    CLOCK_TOLERANCE,
    RemaskingScheduler,
    largest_sigma,
    remasking_reveal_prob,
)


def predictor_step_count(num_inference_steps: int, corrector_steps: int) -> int:
    """How many of the model calls are predictor steps: no corrector follows the last, which ends at clean text."""
    return -(-(num_inference_steps + corrector_steps) // (1 + corrector_steps))


class PredictorCorrectorScheduler(D3PMScheduler):
    """What the two kernels share: the order of predictor and corrector steps.

    A corrector runs at the time its predictor step has reached, so `timesteps` repeats that time: 1, s, s, r, r, ...
    Steps are told apart by their number, which `step` advances and `set_timesteps` resets: one run at a time, each
    step once and in order, or `step` raises a ValueError.
    """

    draws_reverse = False

    def _check_corrector(self):
        config = self.config
        count, length = config.corrector_steps, config.corrector_length
        require(is_int(count, 0), "corrector_steps", "an integer of at least 0", count)
        require(is_number(length, 0) and length > 0, "corrector_length", "a number above 0", length)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        """Set `timesteps`, (num_inference_steps,): every call of the model counts, whether it predicts or corrects.

        Each predictor step but the last is followed by `corrector_steps` correctors; if the number does not come
        out even, the first predictor step has fewer.

        Raises:
            ValueError: if it is less than 1, or more than `num_train_timesteps` predictor steps can take.
        """
        correctors, limit = self.config.corrector_steps, self.config.num_train_timesteps
        most = math.inf if limit is None else limit * (1 + correctors) - correctors
        require(
            is_int(num_inference_steps, 1) and num_inference_steps <= most,
            "num_inference_steps",
            "at least 1" if limit is None else f"between 1 and {most}, for `num_train_timesteps`={limit}",
            num_inference_steps,
        )
        predictors = predictor_step_count(num_inference_steps, correctors)
        super().set_timesteps(predictors)
        self.num_inference_steps = num_inference_steps
        first = num_inference_steps - predictors - correctors * (predictors - 2)
        self._plan: list[tuple[int, bool]] = []  # the grid index of each step, and whether it is a corrector
        for index in range(predictors):
            self._plan.append((index, False))
            if index + 1 < predictors:
                self._plan += [(index + 1, True)] * (first if index == 0 else correctors)
        self.timesteps = self._grid[[index for index, _ in self._plan]].to(device, torch.float32)
        self._next_step = 0

    def _current(self, timestep: float | Tensor) -> tuple[int, bool]:
        """Grid index of the next step, and whether it is a corrector, checked against `timestep`."""
        if self._next_step == len(self._plan):
            raise ValueError(f"`timestep` must follow a new `set_timesteps`: all steps were taken, got {timestep}.")
        index, corrects = self._plan[self._next_step]
        expected = float(self._grid[index])
        if not abs(expected - float(timestep)) < CLOCK_TOLERANCE:
            raise ValueError(
                f"`timestep` must be number {self._next_step} of `timesteps`, {expected:g}, got {timestep}."
            )
        return index, corrects

    def _alphas(self, timestep: float | Tensor) -> tuple[float, float]:
        """`alpha` at both ends of the next step; a corrector ends where it starts."""
        index, corrects = self._current(timestep)
        alpha_t, alpha_s = self.alpha(self._grid[index : index + 2]).tolist()
        return alpha_t, alpha_t if corrects else alpha_s

    def _refreshed(self, timestep: float | Tensor) -> float:
        """The share of a corrector: `corrector_length` times what forward noise destroys in the predictor's interval.

        0 for a predictor step, at most 1.
        """
        index, corrects = self._current(timestep)
        if not corrects:
            return 0.0
        alpha_before, alpha = self.alpha(self._grid[index - 1 : index + 1]).tolist()
        return min(1.0, self.config.corrector_length * (1 - alpha_before / alpha))


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
        self._check_corrector()
        self._set_up()

    def _rates(self, timestep: float | Tensor, sample: Tensor) -> tuple[float, float | Tensor]:
        alpha_t, alpha_s = self._alphas(timestep)
        sigma = min(self._refreshed(timestep), largest_sigma(alpha_t, alpha_s))
        return remasking_reveal_prob(alpha_t, alpha_s, sigma), sigma

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        prev_sample = super()._next(model_output, timestep, sample, positions, generator)
        self._next_step += 1
        return prev_sample


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
        self._check_corrector()
        self._set_up()

    def select(self, timestep: float | Tensor, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the positions for which the next step needs a prediction."""
        if not self._current(timestep)[1]:
            return super().select(timestep, sample, generator)
        jump, _ = self._corrector_routes(timestep)
        return rand(tuple(sample.shape), generator, sample.device) < jump

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        if self._current(timestep)[1]:
            noise = self._random_tokens(tuple(sample.shape), generator, sample.device)
            weights = self._weights(self._leave_one_out_logits(model_output, timestep, sample[positions]))
            routes = self._corrector_routes(timestep)
            prev_sample = draw_routes(weights, sample, noise, positions, *routes, generator=generator)
        else:
            prev_sample = super()._next(model_output, timestep, sample, positions, generator)
        self._next_step += 1
        return prev_sample

    def reverse_probs(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from, for logits (B, L, V or more)."""
        if not self._current(timestep)[1]:
            return super().reverse_probs(model_output, timestep, sample)
        probs = self._probs(self._leave_one_out_logits(model_output, timestep, sample))
        return routes_reverse(probs, sample, *self._corrector_routes(timestep))

    def _corrector_routes(self, timestep: float | Tensor) -> tuple[float, float]:
        """Probabilities of taking a leave-one-out x_0 and of taking noise."""
        redrawn, alpha = self._refreshed(timestep), self._alphas(timestep)[0]
        return redrawn * alpha, redrawn * (1 - alpha)
