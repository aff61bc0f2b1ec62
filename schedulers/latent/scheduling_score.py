"""The score view: probability-flow ODE, reverse SDE and annealed Langevin dynamics as samplers of one trained model.

A denoiser knows the score, the gradient of log p_t: at x_t = signal x_0 + sigma noise its estimate of the noise is
-sigma times the score. Score-based generative modelling (https://arxiv.org/abs/2011.13456) samples with it by an ODE
or an SDE that runs from noise to data, and noise conditional score networks (https://arxiv.org/abs/1907.05600) by
Langevin dynamics under less and less noise. All take models of any noise and any prediction.

Noise of any path is that of the straight path, seen at another scale: with s = sigma / (signal + sigma), the point
u = x_t / (signal + sigma) is (1 - s) x_0 + s noise.

Shapes: B batch, K latents of a text, E latent width, T training timesteps, n steps.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from text_diffusers.common.clean_estimate import NoiseLevel
from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.randomness import Generators
from text_diffusers.common.validation import (
    LONGEST_CLOCK,
    are_numbers,
    as_plain,
    is_number,
    require,
    require_int,
    require_number,
)
from text_diffusers.schedulers.embedding_noise import configured_betas, step_noise, step_output
from text_diffusers.schedulers.latent.latent_noise import LatentSchedulerMixin, straight_level

CLEAN = NoiseLevel(1.0, 0.0)


class ModelCall(NamedTuple):
    """One call of the model.

    Attributes:
        timestep: which the model is told.
        step: index of the time from which the step goes.
        part: number of the call within the step; only at 0 may sampling begin.
    """

    timestep: float
    step: int
    part: int


class ScoreSchedulerMixin(LatentSchedulerMixin):
    """Base of the samplers by score.

    The configuration holds these for all:
        num_train_timesteps: T.
        beta_schedule: noise of betas, as in `EmbeddingSchedulerMixin`, such as "cosine"; `None` is the straight path.
        trained_betas, beta_start, beta_end: of `beta_schedule`.
        prediction_type: what the network predicts, "sample", "epsilon", "v_prediction" or "flow".

    Raises:
        ValueError: if an argument is out of its range, or `trained_betas` and `beta_schedule` contradict each other.
    """

    order = 1

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """The samplers by score."""
        return [*super()._get_compatibles(), *ScoreSchedulerMixin.__subclasses__()]

    def _set_up(self):
        """Ends each `__init__`."""
        self._check_clock()
        self.alphas_cumprod: Any = None
        config = self.config
        if config.beta_schedule is None:
            given = config.trained_betas or config.beta_start or config.beta_end
            require(given is None, "trained_betas", "None without a `beta_schedule`", given)
            self._check_straight()
        else:
            self.betas = configured_betas(config)
            self.alphas_cumprod = (1 - self.betas).cumprod(dim=0)  # (T,) float64
            # Others of the same noise find them here.
            self.register_to_config(trained_betas=self.betas.tolist())
        self.set_timesteps(min(max(int(self._noisiest()), 1), 1000))

    def noise_level(self, timesteps: Any) -> NoiseLevel:
        """Signal and sigma at timesteps () or (B,), as float64 tensors of the same shape."""
        if self.alphas_cumprod is None:
            return straight_level(timesteps, self.config.num_train_timesteps)
        alpha = self.alphas_cumprod[torch.as_tensor(timesteps).long().cpu()]
        return NoiseLevel(alpha.sqrt(), (1 - alpha).sqrt())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ):
        """Set the times between which steps go, by number or one by one; the last one ends at the clean estimate.

        `timesteps` then has each as often as the model is called there.

        Raises:
            ValueError: if not one of both is given, there are fewer than 1 or more steps than timesteps of an integer
                clock, or `timesteps` do not descend within the clock.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                "Either `num_inference_steps` or `timesteps` must be given, and not both."
            )
        if timesteps is None:
            grid = self._even(as_plain(num_inference_steps))
        else:
            require(are_numbers(timesteps), "timesteps", "a list of numbers", timesteps)
            grid = [float(timestep) for timestep in as_plain(timesteps)]

        # The straight path ends at T, and its other end is clean; an integer clock has noise at 0 too.
        is_integer = self.alphas_cumprod is not None
        last = self.config.num_train_timesteps - int(is_integer)
        descends = all(later < earlier for earlier, later in zip(grid, grid[1:], strict=False))
        inside = grid[0] <= last and (grid[-1] >= 0 if is_integer else grid[-1] > 0)
        limit = f"descending from at most {last} to at least 0, or above 0 on the straight path"
        require(descends and inside, "timesteps", limit, timesteps)
        if is_integer:
            require(all(time == int(time) for time in grid), "timesteps", "integers", timesteps)

        self.num_inference_steps = len(grid)
        self._levels = [*(self._plain_level(time) for time in grid), CLEAN]
        self._calls = self._calls_of(grid)
        times = torch.tensor([call.timestep for call in self._calls], dtype=torch.float64)
        self.timesteps = times.to(device, torch.long if is_integer else torch.float32)

        # Sampling begins anywhere, with no earlier step to remember.
        self._next_call = 0
        self._begun: Any = None

    def _even(self, count: Any) -> list[float]:
        """Descending times of so many even steps, from the noisiest that is used."""
        noisiest = self._noisiest()
        if self.alphas_cumprod is None:
            require_int("num_inference_steps", count, 1, LONGEST_CLOCK)
            return [noisiest * (1 - index / count) for index in range(count)]

        usable = int(noisiest) + 1
        require_int("num_inference_steps", count, 1, usable)
        return [float(round(usable * (1 - index / count)) - 1) for index in range(count)]

    def _noisiest(self) -> float:
        """The first of even times."""
        return self.config.num_train_timesteps - int(self.alphas_cumprod is not None)

    def _calls_of(self, grid: list[float]) -> list[ModelCall]:
        """The calls of the model on a grid of times; by default one at each."""
        return [ModelCall(time, index, 0) for index, time in enumerate(grid)]

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, ...]:
        """From one of `timesteps` to the next, or from the last to the clean estimate.

        Args:
            model_output: (B, K, E) prediction of the network.
            timestep: one of `timesteps`, in their order; sampling may begin at any.
            sample: (B, K, E) at `timestep`.
            generator: one generator or one a row.
            variance_noise: (B, K, E) standard normal noise to use instead of drawing it.

        Returns:
            `prev_sample` and `pred_original_sample`, the clean estimate, both (B, K, E).

        Raises:
            ValueError: if `timestep` is not in `timesteps`, or `generator` and `variance_noise` come together.
        """
        index = self._index_of(float(timestep))
        call = self._calls[index]
        # The second call of a step of second order is at the end of the step.
        level = self._plain_level(call.timestep)
        noisy = at_least_float32(sample)
        predict = partial(self._convert, model_output, noisy, level)
        draw = partial(step_noise, noisy, generator, variance_noise)
        prev_sample = self._next(call, level, noisy, predict, draw)
        clean = predict("sample")
        self._next_call = index + 1
        return step_output(prev_sample, clean, sample, return_dict)

    def _next(
        self,
        call: ModelCall,
        level: NoiseLevel,
        noisy: Tensor,
        predict: Callable[[str], Tensor],
        draw: Callable[[], Tensor],
    ) -> Tensor:
        """(B, K, E) the sample after a call of the model.

        Args:
            call: of the model.
            level: signal and noise of the sample.
            noisy: (B, K, E) the sample.
            predict: (B, K, E) what the network says of it, as a prediction of the type that is named.
            draw: (B, K, E) standard normal noise.
        """
        raise NotImplementedError

    def _index_of(self, timestep: float) -> int:
        """The number of the call that is due at a timestep."""
        # A timestep is in the grid as the tensor has it, rounded.
        grid = self.timesteps.tolist()
        due = self._next_call
        if due < len(grid) and grid[due] == timestep:
            return due

        # A new start, there or in the middle
        for index, call in enumerate(self._calls):
            if call.part == 0 and grid[index] == timestep:
                return index
        raise ValueError(f"`timestep` must be one of the {len(grid)} `timesteps`, got {timestep}.")


class ProbabilityFlowScheduler(ScoreSchedulerMixin):
    """The ODE whose marginals are those of the noise (https://arxiv.org/abs/2011.13456), by Euler or Heun.

    It is du / ds = noise - x_0 with the u and s of the module's text, for every path. Of first order it is DDIM.

    Args:
        num_train_timesteps, beta_schedule, trained_betas, beta_start, beta_end, prediction_type: see
            `ScoreSchedulerMixin`.
        solver_order: 1, Euler, or 2, Heun, with two calls of the model in each step but the last.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers.schedulers.latent.scheduling_score import ProbabilityFlowScheduler
        >>> scheduler = ProbabilityFlowScheduler(beta_schedule="cosine", prediction_type="sample", solver_order=2)
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps
        tensor([999, 749, 749, 499, 499, 249, 249])
        >>> sample = torch.randn(2, 3, 8)
        >>> for timestep in scheduler.timesteps:
        ...     clean = torch.zeros(2, 3, 8)  # of a denoiser with prediction_type="sample"
        ...     sample = scheduler.step(clean, timestep, sample).prev_sample
        >>> sample.abs().max() < 1e-6
        tensor(True)
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str | None = None,
        trained_betas: Sequence[float] | None = None,
        beta_start: float | None = None,
        beta_end: float | None = None,
        prediction_type: str = "flow",
        solver_order: int = 2,
    ):
        require_int("solver_order", solver_order, 1, 2)
        self.order = solver_order
        self._set_up()

    def _calls_of(self, grid: list[float]) -> list[ModelCall]:
        calls = super()._calls_of(grid)
        if self.config.solver_order == 1:
            return calls

        # Behind each step but the last, its end once more: first for this step, then for the next.
        again = [ModelCall(time, index, 1) for index, time in enumerate(grid[1:])]
        pairs = zip(again, calls[1:], strict=True)
        return [calls[0], *(call for pair in pairs for call in pair)]

    def _next(
        self,
        call: ModelCall,
        level: NoiseLevel,
        noisy: Tensor,
        predict: Callable[[str], Tensor],
        draw: Callable[[], Tensor],
    ) -> Tensor:
        velocity = predict("flow")  # du / ds
        scale, time = straightened(self._levels[call.step])
        next_scale, next_time = straightened(self._levels[call.step + 1])

        # 1. Euler, remembered if there is to be a second call
        if call.part == 0:
            begin = noisy / scale
            self._begun = (begin, velocity)
        # 2. Heun: from the same begin by the mean of both velocities
        else:
            begin, first_velocity = self._begun
            velocity = (first_velocity + velocity) / 2
        return next_scale * (begin + (next_time - time) * velocity)


class ReverseSDEScheduler(ScoreSchedulerMixin):
    """The SDE that runs the noise backwards (https://arxiv.org/abs/2011.13456), or one with more or less noise.

    In y = x_t / signal with r = sigma / signal, every path is dy = sqrt(d r^2 / dt) dw forwards, and

        dy = (1 + c) (y - x_0) / r dr + sqrt(c d r^2 / dt) dw

    has its marginals backwards for every c, the `stochasticity`: 1 is the reverse SDE, 0 the probability-flow ODE.
    With the clean estimate kept for a step, it is solved exactly: of the noise that a sample has, the share
    (r' / r)^c is left at the end of a step from r to r', and the rest is new. With c = 1 that is DDPM.

    Args:
        num_train_timesteps, beta_schedule, trained_betas, beta_start, beta_end, prediction_type: see
            `ScoreSchedulerMixin`.
        stochasticity: c, at least 0.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers.schedulers.latent.scheduling_score import ReverseSDEScheduler
        >>> scheduler = ReverseSDEScheduler()
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.randn(2, 3, 8)
        >>> for timestep in scheduler.timesteps:
        ...     velocity = torch.randn(2, 3, 8)  # of a denoiser with prediction_type="flow"
        ...     sample = scheduler.step(velocity, timestep, sample).prev_sample
        >>> sample.shape
        torch.Size([2, 3, 8])
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str | None = None,
        trained_betas: Sequence[float] | None = None,
        beta_start: float | None = None,
        beta_end: float | None = None,
        prediction_type: str = "flow",
        stochasticity: float = 1.0,
    ):
        require_number("stochasticity", stochasticity, 0)
        self._set_up()

    def _next(
        self,
        call: ModelCall,
        level: NoiseLevel,
        noisy: Tensor,
        predict: Callable[[str], Tensor],
        draw: Callable[[], Tensor],
    ) -> Tensor:
        clean = predict("sample")
        noise = predict("epsilon")
        after = self._levels[call.step + 1]

        # r' / r is 0 where the sample was pure noise, of which nothing is left then.
        ratio = (after.sigma * level.signal) / (level.sigma * after.signal)
        kept = ratio**self.config.stochasticity
        noise = kept * noise
        # The last step ends at the clean estimate, and draws nothing.
        if kept < 1 and after.sigma > 0:
            fresh = draw()
            noise = noise + math.sqrt(1 - kept**2) * fresh
        return after.signal * clean + after.sigma * noise


class AnnealedLangevinScheduler(ScoreSchedulerMixin):
    """Langevin dynamics under less and less noise (https://arxiv.org/abs/1907.05600).

    At each level of noise x moves by step_size sigma^2 score + sqrt(2 step_size) sigma z, which leaves p_t as it is.
    Between levels x / signal stays, so that what is too much of the noise is for the next level to take away; or, with
    a `predictor`, x goes by a step of the probability-flow ODE, and Langevin dynamics correct it.

    Args:
        num_train_timesteps, beta_schedule, trained_betas, beta_start, beta_end, prediction_type: see
            `ScoreSchedulerMixin`.
        steps_per_level: Langevin steps at each time, and so many calls of the model. The last call gives the clean
            estimate instead.
        step_size: above 0 and below 1, relative to the variance of the noise.
        predictor: see above.
        lambda_min_clipped: levels whose log(signal / sigma) lies below are not used.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers.schedulers.latent.scheduling_score import AnnealedLangevinScheduler
        >>> scheduler = AnnealedLangevinScheduler(beta_schedule="cosine", steps_per_level=2)
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps
        tensor([995, 995, 746, 746, 497, 497, 248, 248])
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str | None = None,
        trained_betas: Sequence[float] | None = None,
        beta_start: float | None = None,
        beta_end: float | None = None,
        prediction_type: str = "flow",
        steps_per_level: int = 1,
        step_size: float = 0.2,
        predictor: bool = False,
        lambda_min_clipped: float = -5.1,
    ):
        require_int("steps_per_level", steps_per_level, 1)
        is_share = is_number(step_size) and 0 < step_size < 1
        require(is_share, "step_size", "a number between 0 and 1, exclusive", step_size)
        require(isinstance(predictor, bool), "predictor", "true or false", predictor)
        require(is_number(lambda_min_clipped), "lambda_min_clipped", "a number", lambda_min_clipped)
        self._set_up()

    def _noisiest(self) -> float:
        # Without signal, x / signal could not stay.
        least = self.config.lambda_min_clipped
        if self.alphas_cumprod is None:
            return self.config.num_train_timesteps / (1 + math.exp(least))
        log_ratios = torch.logit(self.alphas_cumprod) / 2
        return float((log_ratios >= least).sum()) - 1

    def _calls_of(self, grid: list[float]) -> list[ModelCall]:
        parts = range(self.config.steps_per_level)
        return [ModelCall(time, index, part) for index, time in enumerate(grid) for part in parts]

    def _next(
        self,
        call: ModelCall,
        level: NoiseLevel,
        noisy: Tensor,
        predict: Callable[[str], Tensor],
        draw: Callable[[], Tensor],
    ) -> Tensor:
        # 1. The very last call gives the clean estimate
        is_last_part = call.part == self.config.steps_per_level - 1
        after = self._levels[call.step + 1] if is_last_part else level
        if after == CLEAN:
            return predict("sample")

        # 2. A Langevin step at this level
        noise = predict("epsilon")  # -sigma score
        size = self.config.step_size
        fresh = draw()
        move = level.sigma * (math.sqrt(2 * size) * fresh - size * noise)
        if not is_last_part:
            return noisy + move

        # 3. On to the next level
        if not self.config.predictor:
            return (noisy + move) * (after.signal / level.signal)
        clean = predict("sample")
        return after.signal * clean + after.sigma * noise + move * (after.sigma / level.sigma)


def straightened(level: NoiseLevel) -> tuple[float, float]:
    """`(scale, s)`: x_t / scale is the point (1 - s) x_0 + s noise of the straight path."""
    scale = float(level.signal + level.sigma)
    return scale, float(level.sigma) / scale
