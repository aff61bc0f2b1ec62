"""Steps over the latents of texts: any scheduler, self-conditioning, classifier-free guidance.

Shapes: B rows, K latents of a text, E latent width, M rows of a call: those asked with their condition, then those
asked without it.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from torch import Tensor

from text_diffusers.common.clean_estimate import NoiseLevel, convert_prediction
from text_diffusers.common.randomness import row_generators
from text_diffusers.common.validation import LONGEST_CLOCK, as_plain, require_int
from text_diffusers.pipelines.guidance import conditional_scales, guide, split_predictions
from text_diffusers.pipelines.scheduler_adapters import EmbeddingScheduler
from text_diffusers.pipelines.text_batch import TextBatch


@dataclass
class LatentBatch(TextBatch):
    """Rows of text that are written from latents, which are denoised first.

    `latents` (B, K, E) are normalised, on the scale of the scheduler, and `estimate` is the latest clean one.

    Attributes:
        own_estimate: (B, K, E) that of the denoiser with the condition, before guidance, as it is shown again.
        unconditional_estimate: (B, K, E) the one without; both are zero in rows that were not asked so.
        step_generators, token_generators: one a row, of the scheduler and of the decoder.
        written: (B, K, E) the finished latents, as the decoder reads them; `None` while they are written.
        is_decoded: whether `tokens` hold the finished texts.
    """

    unconditional_estimate: Tensor | None = None
    step_generators: list[torch.Generator] = field(default_factory=list)
    token_generators: list[torch.Generator] = field(default_factory=list)
    written: Tensor | None = None
    is_decoded: bool = False

    def guide_by(self, guidance_scale: Any):
        """Guide the rows by a scale, or one a text, from the step that is due on.

        Raises:
            ValueError: if there are as many as neither, they are no finite numbers, or there is no condition.
        """
        num_texts = len(self.tokens) // self.repeats
        has_condition = bool(self.condition)
        scales = conditional_scales(guidance_scale, num_texts, self.repeats, has_condition)
        self.scales = torch.tensor(scales, dtype=torch.float64, device=self.tokens.device)  # (B,)
        self.guidance_scale = guidance_scale


class LatentScheduler(EmbeddingScheduler):
    """A scheduler of continuous noise as the pipeline over latents calls it; its state stays in the scheduler.

    Args:
        scheduler: ours for latents or for word embeddings; stock DDIM, DDPM, DPM-Solver, UniPC or Euler, or stock flow
            matching, made by `from_config` of one of ours.
        prediction_type: of the denoiser. Stock flow matching is told the velocity that its predictions stand for.
        num_train_timesteps: of the denoiser.

    Raises:
        ValueError: if the scheduler is of tokens, disagrees with the denoiser, or would clip the clean estimate.
    """

    def _check_kind(self):
        has_noise = hasattr(self.scheduler, "noise_level") or self._has_betas
        is_continuous = has_noise and not hasattr(self.scheduler, "corruption")
        if not (is_continuous or self._is_stock_flow):
            raise ValueError(
                "`scheduler` must be one for latents, such as LatentFlowEulerScheduler or EmbeddingDDIMScheduler, "
                f"got {type(self.scheduler).__name__}."
            )

    def _check_prediction_type(self):
        # Stock flow matching has none: it steps by the velocity.
        if not self._is_stock_flow:
            super()._check_prediction_type()

    @property
    def _has_betas(self) -> bool:
        return getattr(self.scheduler, "alphas_cumprod", None) is not None

    @property
    def _is_stock_flow(self) -> bool:
        stock = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
        return isinstance(self.scheduler, stock) and not hasattr(self.scheduler, "noise_level")

    @property
    def stepped_type(self) -> str:
        """The prediction type that the scheduler steps by."""
        return "flow" if self._is_stock_flow else super().stepped_type

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        """Set the grid; one of an integer clock has at most as many steps as the clock."""
        if self._has_betas:
            super().set_timesteps(num_inference_steps, device)
            return
        count = as_plain(num_inference_steps)
        require_int("num_inference_steps", count, 1, LONGEST_CLOCK)
        self.scheduler.set_timesteps(count, device=device)

    def scale_noise(self, noise: Tensor) -> Tensor:
        """(B, K, E) latents of the first step, given standard normal `noise` (B, K, E)."""
        return noise * float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    def scale_model_input(self, latents: Tensor, timestep: float) -> Tensor:
        """(B, K, E) latents as the denoiser was trained on them."""
        return latents if self._is_stock_flow else super().scale_model_input(latents, timestep)

    def noise_level(self, timestep: float) -> NoiseLevel:
        """Signal and sigma of the denoiser's input at a timestep."""
        if hasattr(self.scheduler, "noise_level"):
            level = self.scheduler.noise_level(timestep)
            return NoiseLevel(float(level.signal), float(level.sigma))
        if self._is_stock_flow:
            share = timestep / self.num_train_timesteps
            return NoiseLevel(1 - share, share)
        signal = self.alpha_bar(timestep)
        return NoiseLevel(signal**0.5, (1 - signal) ** 0.5)

    def clean_estimate(self, prediction: Tensor, noisy: Tensor, timestep: float) -> Tensor:
        """(B, K, E) the clean latents that a prediction at `noisy`, the model's input, stands for."""
        level = self.noise_level(timestep)
        return convert_prediction(prediction, noisy, level, self.prediction_type, "sample")

    def next_latents(
        self,
        prediction: Tensor,
        timestep: float,
        latents: Tensor,
        generators: list[torch.Generator],
    ) -> Tensor:
        """(B, K, E) latents at the next, less noisy time, by one generator a row."""
        if self._is_stock_flow:
            level = self.noise_level(timestep)
            prediction = convert_prediction(
                prediction, latents, level, self.prediction_type, "flow"
            )
        # Stock ancestral Euler takes the noise that a clean estimate implies.
        elif self.stepped_type != self.prediction_type:
            prediction = (latents - prediction) / self.scheduler.sigmas[self.scheduler.step_index]

        accepted = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            # Seeded by one number of each row's own, however many the step draws.
            accepted["generator"] = row_generators(generators, len(latents))
        return self.scheduler.step(prediction, timestep, latents, **accepted).prev_sample


@dataclass
class LatentSteps:
    """A denoiser of latents with the scheduler that it is stepped by.

    Args:
        denoiser: a `LatentTransformerModel`, or what has its `config` and is called like it.
        scheduler: its noise and its clock.
    """

    denoiser: Any
    scheduler: LatentScheduler

    def step(self, batch: LatentBatch, timestep: float):
        """Bring the latents of a batch from `timestep` to the next, less noisy time."""
        noisy = self.scheduler.scale_model_input(batch.latents, timestep)
        prediction = self.predict(batch, noisy, timestep)
        batch.estimate = self.scheduler.clean_estimate(prediction, noisy, timestep)
        batch.latents = self.scheduler.next_latents(
            prediction, timestep, batch.latents, batch.step_generators
        )

    def predict(self, batch: LatentBatch, noisy: Tensor, timestep: float) -> Tensor:
        """(B, K, E) guided prediction at noisy latents (B, K, E), by one call of the denoiser.

        With and without the condition, each row is asked only what its scale needs, and is shown the estimate of its
        own that it gave so in the step before.

        Raises:
            ValueError: if the prediction is not finite.
        """
        scales = batch.step_scales
        cond_rows = scales != 0
        uncond_rows = scales != 1
        rows = torch.cat([cond_rows.nonzero()[:, 0], uncond_rows.nonzero()[:, 0]])  # (M,)
        num_cond = int(cond_rows.sum())

        # 1. Ask
        inputs = self._condition(batch, rows, num_cond)
        if getattr(self.denoiser.config, "self_conditioning", False):
            inputs["self_condition"] = self._shown_estimates(batch, cond_rows, uncond_rows)
        dtype = self.denoiser.dtype
        told = {
            name: value.to(dtype) if torch.is_floating_point(value) else value
            for name, value in inputs.items()
            if value is not None
        }
        output = self.denoiser(noisy[rows].to(dtype), timestep, **told).sample
        # Decoding would make some text of NaN, and nobody would notice.
        if not torch.isfinite(output).all():
            raise ValueError(
                "`denoiser` predicted NaN or infinite values: check its weights and dtype."
            )
        predictions = output.to(noisy.dtype)  # (M, K, E)

        # 2. Keep the estimates, each for the rows that were asked so
        estimates = self.scheduler.clean_estimate(predictions, noisy[rows], timestep)
        nothing = torch.zeros_like(noisy)
        batch.own_estimate = nothing.index_copy(0, rows[:num_cond], estimates[:num_cond])
        batch.unconditional_estimate = nothing.index_copy(0, rows[num_cond:], estimates[num_cond:])

        # 3. Guide: predictions of all types are linear in each other, so guiding one is guiding all
        if not uncond_rows.any():
            return predictions
        counts = torch.ones_like(rows[:1]).expand(len(noisy))
        cond, uncond = split_predictions(predictions.flatten(1), cond_rows, uncond_rows, counts)
        return guide(cond, uncond, scales).view_as(noisy).to(noisy.dtype)

    def _shown_estimates(
        self, batch: LatentBatch, cond_rows: Tensor, uncond_rows: Tensor
    ) -> Tensor | None:
        """(M, K, E) what rows predicted in the step before, with and without their condition; `None` at the first."""
        if batch.own_estimate is None or batch.unconditional_estimate is None:
            return None
        parts = [batch.own_estimate[cond_rows], batch.unconditional_estimate[uncond_rows]]
        return torch.cat(parts)

    def _condition(self, batch: LatentBatch, rows: Tensor, num_cond: int) -> dict[str, Any]:
        """The condition of rows (M,), of which those behind the first `num_cond` are told nothing."""
        # Copies, since indexed by a tensor: the batch's own condition stays.
        condition: dict[str, Any] = {name: values[rows] for name, values in batch.condition.items()}
        if "class_labels" in condition:
            condition["class_labels"][num_cond:] = self.denoiser.config.num_classes
        if "prompt_mask" in condition:
            condition["prompt_mask"][num_cond:] = False
            # Where no row has a prompt, attention to prompts is spared.
            if not condition["prompt_mask"].any():
                del condition["prompt_mask"], condition["prompt_states"]
        return condition


def latent_scheduler(scheduler: Any, denoiser: Any) -> LatentScheduler:
    """A scheduler of continuous noise for this denoiser.

    Raises:
        ValueError: if the two do not fit each other.
    """
    config = denoiser.config
    return LatentScheduler(scheduler, config.prediction_type, config.num_train_timesteps)


# Between texts


def latent_path(first: Tensor, second: Tensor, count: int) -> Tensor:
    """(count, K, E) normalised latents on the way from one text's (K, E) to another's, both ends among them.

    The way is spherical: half-way between two texts, latents are as far from their mean over the corpus, which is 0,
    as those of texts are. On a straight line they would come close to it, where all texts are alike.

    Example:
        >>> import torch
        >>> from text_diffusers.pipelines.latent_diffusion.latent_steps import latent_path
        >>> latent_path(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), count=3)[1]
        tensor([[1.4142, 1.4142]])
    """
    begin = first.double().flatten()
    end = second.double().flatten()
    shares = torch.linspace(0, 1, count, dtype=torch.float64, device=first.device)[:, None]

    # Directions and lengths apart; without an angle between them, the line
    lengths = torch.lerp(begin.norm(), end.norm(), shares)
    cosine = torch.dot(begin, end) / (begin.norm() * end.norm())
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    if not sine > 1e-6:
        path = torch.lerp(begin, end, shares)
    else:
        weights = ((1 - shares) * angle).sin() / sine, (shares * angle).sin() / sine
        path = lengths * (weights[0] * begin / begin.norm() + weights[1] * end / end.norm())

    # To the last bit, whatever was rounded
    path = path.to(first.dtype).view(count, *first.shape)
    path[0] = first
    path[-1] = second
    return path
