"""DDPM (https://arxiv.org/abs/2006.11239) for word embeddings.

Shapes: B batch, L sequence length, E embedding width, T training timesteps.
"""

import math
from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from torch import Tensor

from text_diffusers.common.randomness import Generators
from text_diffusers.common.validation import require
from text_diffusers.schedulers.embedding_noise import (
    EmbeddingSchedulerMixin,
    RoundFunction,
    step_noise,
    step_output,
)

VARIANCE_TYPES = (None, "fixed_small", "fixed_large")


class EmbeddingDDPMScheduler(EmbeddingSchedulerMixin, DDPMScheduler):
    """Stock DDPM with what `EmbeddingSchedulerMixin` changes, where the other arguments and errors are described.

    Args:
        variance_type: "fixed_small", the variance of q(x_s | x_t, x_0), which is DDIM with eta 1, or "fixed_large",
            that of q(x_t | x_s). None, which schedulers without a choice have in their configuration, is
            "fixed_small".
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
        variance_type: str | None = "fixed_small",
    ):
        require(variance_type in VARIANCE_TYPES, "variance_type", f"one of {VARIANCE_TYPES}", variance_type)
        self._set_up(variance_type=variance_type or "fixed_small")

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        round_function: RoundFunction = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, ...]:
        """From `timestep` to the next of `timesteps`; the last step adds no noise and ends at the clean estimate.

        Arguments, results and errors are those of `EmbeddingDDIMScheduler.step`, without `eta`.
        """
        index, clean, noisy = self._read(model_output, timestep, sample, round_function)
        alpha_t, alpha_s = self._alphas_on_grid[index : index + 2]
        alpha_t_given_s = alpha_t / alpha_s
        keep = math.sqrt(alpha_t_given_s) * (1 - alpha_s) / (1 - alpha_t)
        prev_sample = math.sqrt(alpha_s) * (1 - alpha_t_given_s) / (1 - alpha_t) * clean + keep * noisy
        if alpha_s < 1:
            shrink = 1.0 if self.config.variance_type == "fixed_large" else (1 - alpha_s) / (1 - alpha_t)
            std = math.sqrt(shrink * (1 - alpha_t_given_s))
            prev_sample = prev_sample + std * step_noise(noisy, generator, variance_noise)
        return step_output(prev_sample, clean, sample, return_dict)
