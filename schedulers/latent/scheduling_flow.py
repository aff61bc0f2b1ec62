"""diffusers' flow matching schedulers, Euler and Heun, for the latents of texts.

Rectified flow (https://arxiv.org/abs/2209.03003): x_t = (1 - t) x_0 + t noise, and a network predicts the velocity
noise - x_0, along which samples move from t = 1 to 0.

Shapes: B batch, K latents of a text, E latent width, T training timesteps.
"""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from torch import Tensor

from text_diffusers.common.randomness import Generators, check_generators, check_one_a_row
from text_diffusers.common.validation import (
    LONGEST_CLOCK,
    as_plain,
    is_list,
    is_number,
    require,
    require_int,
)
from text_diffusers.schedulers.embedding_noise import step_output
from text_diffusers.schedulers.latent.latent_noise import LatentSchedulerMixin
from text_diffusers.schedulers.latent.scheduling_score import ScoreSchedulerMixin


class FlowSchedulerMixin(LatentSchedulerMixin):
    """Mixin before a stock flow matching scheduler that adds what texts need.

    - Networks may also predict clean latents or the velocity of betas, see `prediction_type`.
    - n steps are even ones of 1 / n, before `shift`. The last of stock's n steps is next to nothing, since the one
      before it ends at 1 / T.
    - `step` also gives the clean estimate, for self-conditioning and for who wants to read a text as it is written.
    - Nothing is drawn. Stock's `stochastic_sampling` is left out: it draws all noise anew at each step, around
      estimates that vary less than the data do, so that samples of many steps do not have the variance of the data.
    """

    straight_only = True
    timesteps: Tensor
    step_index: Any

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """Stock's, both of ours, and the samplers by score, which know the straight path too."""
        own = [*FlowSchedulerMixin.__subclasses__(), *ScoreSchedulerMixin.__subclasses__()]
        return [*super()._get_compatibles(), *own]

    def _set_up(self):
        """Ends each `__init__`."""
        self._check_clock()
        self._check_straight()
        shift = self.config.shift
        require(is_number(shift) and shift > 0, "shift", "a number above 0", shift)
        parent: Any = super()
        parent.__init__(num_train_timesteps=self.config.num_train_timesteps, shift=shift)
        self.set_timesteps(min(self.config.num_train_timesteps, 1000))

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ):
        """Set the descending grid `timesteps`, on which the last step ends at the clean estimate.

        Raises:
            ValueError: if the number of steps is no integer of at least 1.
        """
        count = as_plain(num_inference_steps)
        require_int("num_inference_steps", count, 1, LONGEST_CLOCK)
        self._set_even_steps(count, device)

    def _set_even_steps(self, count: int, device: str | torch.device | None):
        raise NotImplementedError

    def _begin_anew(self):
        """Forget the steps taken."""
        self._step_index = None

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, ...]:
        """From one of `timesteps` to the next, or from the last to the clean estimate.

        Args:
            model_output: (B, K, E) prediction of the network.
            timestep: one of `timesteps`, in their order.
            sample: (B, K, E) at `timestep`.
            generator: taken as other schedulers do, one or one a row; nothing is drawn.

        Returns:
            `prev_sample` and `pred_original_sample`, the clean estimate, both (B, K, E).

        Raises:
            ValueError: if `timestep` is not in `timesteps`, or there are fewer or more generators than rows.
        """
        time = float(timestep)
        grid = self.timesteps.tolist()
        if time not in grid:
            raise ValueError(
                f"`timestep` must be one of the {len(grid)} `timesteps`, got {timestep}."
            )
        # Stock counts its steps, and would go on counting where another timestep begins anew.
        due = self.step_index
        if due is not None and (due >= len(grid) or grid[due] != time):
            self._begin_anew()

        check_generators(generator)
        if is_list(generator):
            check_one_a_row(generator, len(sample))

        level = self._plain_level(time)
        velocity = self._convert(model_output, sample, level, "flow")
        clean = self._convert(model_output, sample, level, "sample")
        stock: Any = super()
        prev_sample = stock.step(velocity, time, sample).prev_sample
        return step_output(prev_sample, clean, sample, return_dict)


class LatentFlowEulerScheduler(FlowSchedulerMixin, FlowMatchEulerDiscreteScheduler):
    """Stock's Euler steps along the velocity with what `FlowSchedulerMixin` changes.

    Args:
        num_train_timesteps: T, the end of the clock that the network is told.
        shift: above 1 there are more and shorter steps where there is much noise.
        prediction_type: what the network predicts, "flow", "sample" or "v_prediction".

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers.schedulers.latent.scheduling_flow import LatentFlowEulerScheduler
        >>> scheduler = LatentFlowEulerScheduler()
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps
        tensor([1000.,  750.,  500.,  250.])
        >>> clean, noise = torch.randn(2, 1, 3, 8)
        >>> sample = noise
        >>> for timestep in scheduler.timesteps:
        ...     sample = scheduler.step(noise - clean, timestep, sample).prev_sample
        >>> torch.allclose(sample, clean, atol=1e-6)
        True
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        prediction_type: str = "flow",
    ):
        self._set_up()

    def _set_even_steps(self, count: int, device: str | torch.device | None):
        where: Any = device
        sigmas = even_sigmas(count)
        FlowMatchEulerDiscreteScheduler.set_timesteps(self, sigmas=sigmas, device=where)


class LatentFlowHeunScheduler(FlowSchedulerMixin, FlowMatchHeunDiscreteScheduler):
    """Stock's Heun steps along the velocity, of second order, with what `FlowSchedulerMixin` changes.

    Each step but the last asks the network twice, at both of its ends: n steps have 2 n - 1 `timesteps`, and as many
    calls.

    Args:
        num_train_timesteps, shift, prediction_type: see `LatentFlowEulerScheduler`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from text_diffusers.schedulers.latent.scheduling_flow import LatentFlowHeunScheduler
        >>> scheduler = LatentFlowHeunScheduler()
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps
        tensor([1000.,  750.,  750.,  500.,  500.,  250.,  250.])
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        prediction_type: str = "flow",
    ):
        self._set_up()

    def _set_even_steps(self, count: int, device: str | torch.device | None):
        # The ends of stock's grid, to which it applies the shift.
        sigmas = even_sigmas(count)
        self.sigma_max = sigmas[0]
        self.sigma_min = sigmas[-1]
        where: Any = device
        FlowMatchHeunDiscreteScheduler.set_timesteps(self, count, device=where)

    def _begin_anew(self):
        super()._begin_anew()
        # Without these, stock takes the next step for a first call.
        self.prev_derivative = None
        self.dt = None


def even_sigmas(count: int) -> list[float]:
    """1, ..., 2 / n, 1 / n for n steps."""
    return [1 - index / count for index in range(count)]
