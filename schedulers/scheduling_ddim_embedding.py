"""DDIM (https://arxiv.org/abs/2010.02502) for word embeddings.

Shapes: B batch, L sequence length, E embedding width, T training timesteps.
"""

import math
from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from torch import Tensor

from text_diffusers.common.randomness import Generators
from text_diffusers.common.validation import is_number, require
from text_diffusers.schedulers.embedding_noise import (
    EmbeddingSchedulerMixin,
    RoundFunction,
    step_noise,
    step_output,
)


class EmbeddingDDIMScheduler(EmbeddingSchedulerMixin, DDIMScheduler):
    """Stock DDIM with what `EmbeddingSchedulerMixin` changes, where its arguments and errors are described.

    Stock steps from t to t - T // n, which is not the next of n timesteps if n does not divide T.
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

        Args:
            model_output: (B, L, E) what the network predicts.
            sample: (B, L, E) at `timestep`.
            eta: in [0, 1], the share of the standard deviation of DDPM's fresh noise; 0 is deterministic.
            generator: one generator or one a row.
            variance_noise: (B, L, E) standard normal noise to use instead of drawing it.
            round_function: maps a clean estimate (B, L, E) to the rounded one, for the last `clamp_steps` steps.

        Returns:
            `prev_sample` and `pred_original_sample`, the clean estimate, both (B, L, E).

        Raises:
            ValueError: if `eta` is out of its range, `timestep` is not in `timesteps`, `round_function` is missing, or
                `generator` and `variance_noise` come together.
        """
        require(is_number(eta, 0, 1), "eta", "a number in [0, 1]", eta)
        index, clean, noisy = self._read(model_output, timestep, sample, round_function)
        alpha_t, alpha_s = self._alphas_on_grid[index : index + 2]
        variance = eta**2 * (1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s)
        direction = math.sqrt((1 - alpha_s - variance) / (1 - alpha_t)) * (noisy - math.sqrt(alpha_t) * clean)
        prev_sample = math.sqrt(alpha_s) * clean + direction
        if variance > 0:
            prev_sample = prev_sample + math.sqrt(variance) * step_noise(noisy, generator, variance_noise)
        return step_output(prev_sample, clean, sample, return_dict)
