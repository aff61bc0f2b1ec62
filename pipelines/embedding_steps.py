"""Any scheduler of diffusers for continuous noise, as a pipeline of word embeddings calls it.

Schedulers differ in the scale of what they step (Euler's grows with the noise, the others' stays), in the arguments of
`step`, and in how they draw noise for a batch. Here a row's noise depends on its own generator only.

Shapes: B batch, L sequence length, E embedding width.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import EulerAncestralDiscreteScheduler
from torch import Tensor

from text_diffusers.common.randomness import NORMAL_BLOCK, randn, row_seeds


class EmbeddingSteps:
    """A scheduler under the contract of `DiffusionLMPipeline`, whose state stays in the scheduler.

    Args:
        scheduler: with `alphas_cumprod`, `add_noise` and `step`: ours for embeddings, or stock DDIM, DDPM,
            DPM-Solver, UniPC or Euler made by `from_config` of one of ours.
        prediction_type: of the denoiser.
        num_train_timesteps: of the denoiser.

    Raises:
        ValueError: if the scheduler is of tokens, disagrees with the denoiser, or would clip the clean estimate.
    """

    revises_tokens = True

    def __init__(self, scheduler: Any, prediction_type: str, num_train_timesteps: int):
        self.scheduler, self.prediction_type, self.num_train_timesteps = (
            scheduler,
            prediction_type,
            num_train_timesteps,
        )
        name, config = type(scheduler).__name__, scheduler.config
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(f"`scheduler` must be one for embeddings, such as EmbeddingDDIMScheduler, got {name}.")
        if config.num_train_timesteps != num_train_timesteps:
            raise ValueError(
                f"`scheduler` has `num_train_timesteps`={config.num_train_timesteps}, "
                f"but the denoiser was trained with {num_train_timesteps}."
            )
        if config.prediction_type != self.stepped_type:
            raise ValueError(
                f"`scheduler` has `prediction_type`={config.prediction_type!r}, but the denoiser predicts "
                f"{prediction_type!r}: make it by `{name}.from_config(config, prediction_type={self.stepped_type!r})`."
            )
        for setting in ("clip_sample", "thresholding"):
            if config.get(setting) and setting in inspect.signature(type(scheduler).__init__).parameters:
                raise ValueError(
                    f"`scheduler` must have `{setting}=False`, since embeddings go beyond [-1, 1]: make it by "
                    f"`{name}.from_config` of one of this package's embedding schedulers, or set it there."
                )

    @property
    def stepped_type(self) -> str:
        """What the scheduler must be told. Stock ancestral Euler cannot be told a clean estimate."""
        ancestral = isinstance(self.scheduler, EulerAncestralDiscreteScheduler)
        return "epsilon" if ancestral and self.prediction_type == "sample" else self.prediction_type

    @property
    def timesteps(self) -> Tensor:
        """(n,) of the clock, descending."""
        return self.scheduler.timesteps

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        if not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise ValueError(
                "`num_inference_steps` must be an integer between 1 and `num_train_timesteps`="
                f"{self.num_train_timesteps}, got {num_inference_steps!r}."
            )
        self.scheduler.set_timesteps(num_inference_steps, device=device)

    def scale_noise(self, noise: Tensor) -> Tensor:
        """What the first step starts from, given standard normal `noise` (B, L, E)."""
        return noise * float(self.scheduler.init_noise_sigma)

    def add_noise(self, clean: Tensor, timestep: float, generators: list[torch.Generator]) -> Tensor:
        """(B, L, E) clean embeddings with as much noise as the latents have at `timestep`."""
        noise = randn(tuple(clean.shape), generators, "cpu", torch.float32).to(clean)
        times = torch.full((len(clean),), timestep, dtype=self.timesteps.dtype, device=clean.device)
        return self.scheduler.add_noise(clean, noise, times)

    def scale_model_input(self, latents: Tensor, timestep: float) -> Tensor:
        """(B, L, E) `sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise`, as the denoiser was trained."""
        return self.scheduler.scale_model_input(latents, timestep)

    def clean_estimate(self, prediction: Tensor, noisy: Tensor, timestep: float) -> Tensor:
        """(B, L, E) the clean embeddings that a prediction at `noisy`, the model's input, means."""
        if self.prediction_type == "sample":
            return prediction
        alpha_bar = float(self.scheduler.alphas_cumprod[round(timestep)])
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        if self.prediction_type == "epsilon":
            return (noisy - noise * prediction) / signal
        return signal * noisy - noise * prediction

    def step(
        self,
        prediction: Tensor,
        timestep: float,
        latents: Tensor,
        eta: float,
        generators: list[torch.Generator],
        round_function: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """(B, L, E) latents at the next, less noisy time."""
        if self.stepped_type != self.prediction_type:
            prediction = (latents - prediction) / self.scheduler.sigmas[self.scheduler.step_index]
        fresh = [torch.Generator().manual_seed(seed) for seed in row_seeds(generators, len(latents))]
        offered = {"eta": eta, "generator": fresh, "round_function": round_function}
        accepted = {name: value for name, value in offered.items() if name in self._step_arguments}
        filled = (0, 0, 0, -latents.shape[1] % (NORMAL_BLOCK // math.gcd(NORMAL_BLOCK, latents.shape[2])))
        output = self.scheduler.step(F.pad(prediction, filled), timestep, F.pad(latents, filled), **accepted)
        return output.prev_sample[:, : latents.shape[1]]

    def check_eta(self, eta: float):
        if eta != 0 and "eta" not in self._step_arguments:
            raise ValueError(f"`eta` must be 0 with {type(self.scheduler).__name__}, which has no `eta`, got {eta!r}.")
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` must be between 0 and 1, got {eta!r}.")

    @property
    def _step_arguments(self) -> Any:
        return inspect.signature(self.scheduler.step).parameters
