"""DDIM (https://arxiv.org/abs/2010.02502) for word embeddings.

Shapes: B batch, L sequence length, E embedding width, T training timesteps.
"""

import math
from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from torch import Tensor

from text_diffusers.common.randomness import Generators
from text_diffusers.common.validation import require_number
from text_diffusers.schedulers.embedding_noise import (
    EmbeddingSchedulerMixin,
    RoundFunction,
    step_noise,
    step_output,
)


class EmbeddingDDIMScheduler(EmbeddingSchedulerMixin, DDIMScheduler):
    """Stock DDIM with what `EmbeddingSchedulerMixin` changes, where its arguments and errors are described.

    Stock steps from t to t - T // n, which is not the next of n timesteps if n does not divide T.

    Example:
        >>> import torch
        >>> from text_diffusers import EmbeddingDDIMScheduler
        >>> scheduler = EmbeddingDDIMScheduler(2000, beta_schedule="sqrt")
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
    ):
        self._set_up()

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        round_function: RoundFunction = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, ...]:
        """From `timestep` to the next of `timesteps`, or from the last to the clean estimate.

        Arguments, results and errors are those of `EmbeddingSchedulerMixin.step`, and

        Args:
            eta: in [0, 1], the share of the standard deviation of DDPM's fresh noise; 0 is deterministic.
        """
        require_number("eta", eta, 0, 1)
        index, clean, noisy = self._read(model_output, timestep, sample, round_function)
        # The last step goes to an alpha of 1, the clean estimate.
        alpha_t, alpha_s = self._alphas_on_grid[index : index + 2]

        # Of the fresh noise; the direction to x_t keeps the rest of the noise at s.
        variance = eta**2 * (1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s)
        direction = math.sqrt((1 - alpha_s - variance) / (1 - alpha_t)) * (
            noisy - math.sqrt(alpha_t) * clean
        )
        prev_sample = math.sqrt(alpha_s) * clean + direction  # (B, L, E)

        # Without fresh noise nothing is drawn.
        if variance > 0:
            prev_sample = prev_sample + math.sqrt(variance) * step_noise(
                noisy, generator, variance_noise
            )
        return step_output(prev_sample, clean, sample, return_dict)
