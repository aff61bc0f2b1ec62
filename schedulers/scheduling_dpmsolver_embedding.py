"""DPM-Solver++ (https://arxiv.org/abs/2211.01095), multistep, for word embeddings.

Shapes: B batch, L sequence length, E embedding width, T training timesteps.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from text_diffusers.common.randomness import Generators
from text_diffusers.common.validation import is_int, is_number, require, require_key
from text_diffusers.schedulers.embedding_noise import EmbeddingSchedulerMixin, step_noise

ALGORITHM_TYPES = ("dpmsolver++", "sde-dpmsolver++")
SOLVER_TYPES = (
    "midpoint",
    "heun",
    "logrho",
    "bh1",
    "bh2",
)  # the last three, of other solvers, mean "midpoint"
FINAL_SIGMAS = ("zero", "sigma_min")

# With fewer steps than this the last ones are of lower order, as in stock.
FEW_STEPS = 15


class EmbeddingDPMSolverScheduler(EmbeddingSchedulerMixin, DPMSolverMultistepScheduler):
    """Stock DPM-Solver++ with what `EmbeddingSchedulerMixin` changes, where the other arguments are described.

    The third order is corrected, and float64 samples stay float64. Steps that clamp are of first order: across a jump
    of the clean estimate, differences of past ones say nothing.

    A run of third order is one as a whole, at one call of the model a step: its first step cannot but be of first
    order, and the second, which knows two clean estimates, first adds what the first one lacked. Stock runs keep that
    error, which falls with the square of the step.

    Args:
        solver_order: 1, 2 or 3; at most 2 with "sde-dpmsolver++".
        algorithm_type: "dpmsolver++" solves the ODE, "sde-dpmsolver++" the SDE.
        solver_type: "midpoint" or "heun", of the second order.
        lower_order_final: with fewer than 15 steps, the last is of first and the last but one of second order.
        euler_at_final: the last step is of first order, however many there are.
        final_sigmas_type: "zero" ends at the clean estimate; "sigma_min" at the noise of timestep 0.
        lambda_min_clipped: timesteps whose log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)) lies below are not used.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import EmbeddingDPMSolverScheduler
        >>> scheduler = EmbeddingDPMSolverScheduler(2000, beta_schedule="sqrt")
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.randn(2, 6, 8)
        >>> for timestep in scheduler.timesteps:
        ...     clean = torch.randn(2, 6, 8)  # of a denoiser with prediction_type="sample"
        ...     sample = scheduler.step(clean, timestep, sample).prev_sample
        >>> sample.shape, torch.equal(sample, clean)
        (torch.Size([2, 6, 8]), True)
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        beta_schedule: str = "sqrt",
        trained_betas: Sequence[float] | None = None,
        beta_start: float | None = None,
        beta_end: float | None = None,
        prediction_type: str = "sample",
        timestep_spacing: str = "trailing",
        clamp_steps: int = 0,
        solver_order: int = 2,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -5.1,
    ):
        require_key("algorithm_type", algorithm_type, ALGORITHM_TYPES)
        require_key("final_sigmas_type", final_sigmas_type, FINAL_SIGMAS)
        require_key("solver_type", solver_type, SOLVER_TYPES)
        highest = 2 if algorithm_type == "sde-dpmsolver++" else 3
        in_range = is_int(solver_order, 1) and solver_order <= highest
        require(in_range, "solver_order", f"in 1 to {highest} for {algorithm_type}", solver_order)
        for name in ("lower_order_final", "euler_at_final"):
            value = self.config[name]
            require(isinstance(value, bool), name, "true or false", value)
        is_limit = lambda_min_clipped == -math.inf or is_number(lambda_min_clipped)
        require(is_limit, "lambda_min_clipped", "a number or -inf", lambda_min_clipped)
        self._set_up(
            solver_order=solver_order,
            algorithm_type=algorithm_type,
            solver_type=solver_type,
            lower_order_final=lower_order_final,
            euler_at_final=euler_at_final,
            final_sigmas_type=final_sigmas_type,
            lambda_min_clipped=lambda_min_clipped,
        )

    def _num_usable_timesteps(self) -> int:
        # The logit is log(signal^2 / noise^2), twice the lambda of the paper.
        log_snr = torch.logit(self.alphas_cumprod)
        return int((log_snr / 2 >= self.config.lambda_min_clipped).sum())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ):
        """As in `EmbeddingSchedulerMixin`; also forgets the clean estimates of earlier steps."""
        super().set_timesteps(num_inference_steps, device, timesteps)
        if self.config.final_sigmas_type == "sigma_min":
            self._alphas_on_grid[-1] = self.alphas_cumprod[0].item()
        # These are names of stock, whose updates read them.
        alphas = torch.tensor(self._alphas_on_grid, dtype=torch.float64)
        self.sigmas = ((1 - alphas) / alphas).sqrt()  # (n + 1,), noise relative to signal

        # The last clean estimates, the newest at the end.
        self.model_outputs: list[Any] = [None] * self.config.solver_order
        self.lower_order_nums = 0
        self._step_index: Any = None

    def _next(
        self,
        index: int,
        clean: Tensor,
        noisy: Tensor,
        generator: Generators,
        variance_noise: Tensor | None,
    ) -> Tensor:
        if index != self._step_index:
            # A new start: the estimates kept are not those before this step.
            self._step_index = index
            self.lower_order_nums = 0
        self.model_outputs = [*self.model_outputs[1:], clean]

        noise = None

        # Only the SDE has fresh noise; the ODE draws nothing.
        if self.config.algorithm_type == "sde-dpmsolver++":
            noise = step_noise(noisy, generator, variance_noise)

        order = self._order(index)
        # The second step of a run mends the first; in a run of second order that error is no larger than others.
        if order == 2 and self.lower_order_nums == 1 and self.config.solver_order == 3:
            noisy = noisy + self._lacking_in_first_step()

        if order == 1:
            prev_sample = self.dpm_solver_first_order_update(clean, sample=noisy, noise=noise)
        elif order == 2:
            prev_sample = self.multistep_dpm_solver_second_order_update(
                self.model_outputs, sample=noisy, noise=noise
            )
        else:
            prev_sample = self.multistep_dpm_solver_third_order_update(
                self.model_outputs, sample=noisy, noise=noise
            )

        self.lower_order_nums = min(self.lower_order_nums + 1, self.config.solver_order)
        self._step_index += 1
        return prev_sample

    def _order(self, index: int) -> int:
        """The order of a step: what history, the end of the grid and clamping allow."""
        config = self.config
        steps_left = len(self._index_of) - index
        # Each order needs one more estimate of the steps before.
        order = min(config.solver_order, self.lower_order_nums + 1)

        # Long steps next to the data are unstable at a high order.
        lowers = config.lower_order_final and len(self._index_of) < FEW_STEPS
        first_at_end = lowers or config.euler_at_final or config.final_sigmas_type == "zero"
        if self._clamps(index) or steps_left == 1 and first_at_end:
            return 1
        return min(order, 2) if steps_left == 2 and lowers else order

    def _lacking_in_first_step(self) -> Tensor:
        """(B, L, E) the second-order term of the step before this one, which was taken by one clean estimate only.

        With the estimate at its end it is known: in between, the estimate is a straight line in log(signal / noise),
        over which the integral of the paper is exact. Both steps together are then a single one of second order from
        the start of the first, with an error of third order.
        """
        index = self._step_index
        before, now = self.sigmas[index - 1 : index + 1]
        h = (before / now).log()  # of the step before, in log(signal / noise)
        alpha = (1 + now**2).rsqrt()
        weight = alpha * (torch.exp(-h) - 1 + h) / h
        return weight * (self.model_outputs[-1] - self.model_outputs[-2])

    def multistep_dpm_solver_third_order_update(
        self,
        model_output_list: list[Tensor],
        *args: Any,
        sample: Tensor,
        noise: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Stock's update with its second-order term doubled.

        The term stands for the second derivative, and the divided difference is half of that. Stock takes it as it
        is, which converges with order 2 only.
        """
        prev_sample = super().multistep_dpm_solver_third_order_update(
            model_output_list, sample=sample, noise=noise
        )
        index = self._step_index

        # h is this step in log(signal / noise), `last` and `before` the two before it.
        before, last, h = (-self.sigmas[index - 2 : index + 2].log()).diff()
        newer = (model_output_list[-1] - model_output_list[-2]) * (h / last)
        older = (model_output_list[-2] - model_output_list[-3]) * (h / before)
        half_second_derivative = (newer - older) * (h / (last + before))

        alpha_t = (1 + self.sigmas[index + 1] ** 2).rsqrt()
        weight = (torch.exp(-h) - 1 + h) / h**2 - 0.5  # of half the second derivative
        return prev_sample - alpha_t * weight * half_second_derivative
