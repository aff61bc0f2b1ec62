"""Reflow: noise with the latents that a trained model makes of it, for a model with straighter paths.

A model of flow matching learns the mean of all straight paths that cross at a place, so that its own paths bend, and
few steps miss their ends. Of pairs that it makes itself no two paths cross, and a model that learns these pairs needs
fewer steps (rectified flow, https://arxiv.org/abs/2209.03003).

Shapes: N rows of the corpus, B batch, K latents of a text, E latent width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.progress import progress_bar
from text_diffusers.common.randomness import randn
from text_diffusers.common.validation import require_int
from text_diffusers.data.latent_cache import condition_columns
from text_diffusers.data.rows import Batch, to_tensors
from text_diffusers.evaluation.latent_bounds import conditions_of
from text_diffusers.evaluation.modules import device_of, evaluating
from text_diffusers.schedulers.latent.scheduling_flow import LatentFlowEulerScheduler

MADE_AT_ONCE = 256


@dataclass
class LatentPairs:
    """Noise of N rows and the latents that were made of it, in place of `CachedLatents`.

    Attributes:
        latents: (N, K, E), as the decoder reads them.
        noise: (N, K, E), standard normal.
    """

    latents: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: list[int]) -> Batch:
        """The columns `latents` and `noise` (B, K, E) of rows."""
        return {"latents": self.latents[indices], "noise": self.noise[indices]}


@torch.no_grad()
def latent_pairs(
    autoencoder: Any, denoiser: Any, rows: Any, num_steps: int, seed: int = 0
) -> LatentPairs:
    """A pair for each row of a corpus, under the condition of that row.

    Args:
        autoencoder: an `AutoencoderTextLatentModel`.
        denoiser: a `LatentTransformerModel` over its latents, of straight paths.
        rows: of the corpus, as `LatentRows` takes them; only their conditions are read.
        num_steps: Euler steps of each pair.
        seed: of the noise.
    """
    config = autoencoder.config
    device = device_of(denoiser)
    count = len(rows)
    conditions = condition_columns(rows)
    generator = torch.Generator().manual_seed(seed)
    noise = randn(
        (count, config.num_latents, config.latent_size),
        generator,
        torch.device("cpu"),
        torch.float32,
    )

    latents = torch.empty_like(noise)
    bar = progress_bar(total=count, desc="pairs of noise and latents", unit="texts")
    with evaluating(denoiser), bar:
        for first in range(0, count, MADE_AT_ONCE):
            indices = list(range(first, min(first + MADE_AT_ONCE, count)))
            batch = {} if conditions is None else to_tensors(conditions[indices])
            told = conditions_of(autoencoder, batch)
            made = flow_from(denoiser, noise[indices].to(device), told, num_steps)
            latents[indices] = autoencoder.denormalize(made).cpu()
            bar.update(len(indices))
    return LatentPairs(latents, noise)


@torch.no_grad()
def flow_from(denoiser: Any, noise: Tensor, told: Batch, num_steps: int) -> Tensor:
    """(B, K, E) normalised latents at the end of the way from noise (B, K, E), in equal Euler steps.

    Args:
        denoiser: a `LatentTransformerModel` of straight paths; with self-conditioning it is shown its last estimate.
        told: of `conditions_of`.
        num_steps: at least 1.
    """
    require_int("num_steps", num_steps, 1)
    config = denoiser.config
    inputs = {
        "class_labels": told.get("label"),
        "prompt_states": told.get("prompt_states"),
        "prompt_mask": told.get("prompt_mask"),
    }
    scheduler = LatentFlowEulerScheduler(
        config.num_train_timesteps, prediction_type=config.prediction_type
    )
    scheduler.set_timesteps(num_steps, device=noise.device)

    latents = noise
    estimate = None
    for timestep in scheduler.timesteps.tolist():
        shown = estimate if config.self_conditioning else None
        prediction = denoiser(latents, timestep, self_condition=shown, **inputs).sample
        stepped: Any = scheduler.step(prediction, timestep, latents)
        latents = stepped.prev_sample
        estimate = stepped.pred_original_sample
    return latents
