"""DDPM (https://arxiv.org/abs/2006.11239) for word embeddings.

Shapes: B batch, L sequence length, E embedding width, T training timesteps.
"""

import math
from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from text_diffusers.common.randomness import Generators
from text_diffusers.common.validation import require_key
from text_diffusers.schedulers.embedding_noise import EmbeddingSchedulerMixin, step_noise

VARIANCE_TYPES = ("fixed_small", "fixed_large")


class EmbeddingDDPMScheduler(EmbeddingSchedulerMixin, DDPMScheduler):
    """Stock DDPM with what `EmbeddingSchedulerMixin` changes, where the other arguments and errors are described.

    Args:
        variance_type: "fixed_small", the variance of q(x_s | x_t, x_0), which is DDIM with eta 1, or "fixed_large",
            that of q(x_t | x_s). None, which schedulers without a choice have in their configuration, is
            "fixed_small".

    Example:
        >>> import torch
        >>> from text_diffusers import EmbeddingDDPMScheduler
        >>> scheduler = EmbeddingDDPMScheduler(2000, beta_schedule="sqrt")
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
        variance_type: str | None = "fixed_small",
    ):
        require_key("variance_type", variance_type, VARIANCE_TYPES, optional=True)
        self._set_up(variance_type=variance_type or "fixed_small")

    def _next(
        self,
        index: int,
        clean: Tensor,
        noisy: Tensor,
        generator: Generators,
        variance_noise: Tensor | None,
    ) -> Tensor:
        alpha_t, alpha_s = self._alphas_on_grid[index : index + 2]
        alpha_t_given_s = alpha_t / alpha_s  # of the step from s to t alone

        # The mean of q(x_s | x_t, x_0); the last step ends there, at the clean estimate.
        keep = math.sqrt(alpha_t_given_s) * (1 - alpha_s) / (1 - alpha_t)
        pull = math.sqrt(alpha_s) * (1 - alpha_t_given_s) / (1 - alpha_t)
        prev_sample = pull * clean + keep * noisy
        if alpha_s == 1:
            return prev_sample

        # The fresh noise: all that q(x_t | x_s) adds, or the share that x_t and x_0 leave open.
        shrink = 1.0
        if self.config.variance_type != "fixed_large":
            shrink = (1 - alpha_s) / (1 - alpha_t)
        std = math.sqrt(shrink * (1 - alpha_t_given_s))
        return prev_sample + std * step_noise(noisy, generator, variance_noise)
