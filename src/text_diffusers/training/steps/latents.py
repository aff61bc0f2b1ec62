"""A training step over the latents of texts: times, noise, self-conditioning, conditions that are left out, the loss.

Shapes: B batch, K latents of a text, E latent width, P prompt tokens, S width of the prompt's states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.clean_estimate import (
    NoiseLevel,
    convert_prediction,
    level_determinant,
    prediction_of,
)
from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.randomness import rand, randn
from text_diffusers.common.validation import require, require_key, require_number
from text_diffusers.data.rows import Batch
from text_diffusers.evaluation.latent_bounds import conditions_of
from text_diffusers.models.latent.autoencoder_text_latent import TextLatents
from text_diffusers.models.latent.gaussian_prior import gaussian_nats
from text_diffusers.training.steps.transport import paired_noise

LARGEST_SNR = 5.0  # that counts in "min_snr"
LEAST_SIGMA = 0.05  # below which "flow" weights grow no more


def uniform_shares(uniform: Tensor) -> Tensor:
    """Shares of the clock (B,) as the uniform numbers (B,) are."""
    return uniform


def logit_normal_shares(uniform: Tensor) -> Tensor:
    """Shares of the clock (B,) whose logit is normal, more of them in its middle (https://arxiv.org/abs/2403.03206)."""
    # Neither end, where the normal quantile is infinite
    inner = uniform.clamp(1e-6, 1 - 1e-6)
    return torch.special.ndtri(inner).sigmoid()


TIME_SAMPLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": uniform_shares,
    "logit_normal": logit_normal_shares,
}


def equal_weights(prediction_type: str, level: NoiseLevel) -> Tensor:
    """(B,) ones: the squared error of what the network predicts."""
    return torch.ones_like(torch.as_tensor(level.sigma))


def min_snr_weights(prediction_type: str, level: NoiseLevel) -> Tensor:
    """(B,) that make it min(SNR, 5) times that of clean latents, for any prediction (https://arxiv.org/abs/2303.09556)."""
    signal = torch.as_tensor(level.signal)
    sigma = torch.as_tensor(level.sigma)
    change = torch.as_tensor(level_determinant(prediction_type, level))
    # min(SNR, limit) times sigma^2, which has no fraction to overflow, over the square of the change with x_0
    return torch.minimum(signal**2, LARGEST_SNR * sigma**2) / change**2


def flow_weights(prediction_type: str, level: NoiseLevel) -> Tensor:
    """(B,) that make it the squared error of the velocity noise - x_0, with sigma taken as 0.05 at least."""
    sigma = torch.as_tensor(level.sigma).clamp(min=LEAST_SIGMA)
    bounded = NoiseLevel(level.signal, sigma)
    change = torch.as_tensor(level_determinant(prediction_type, bounded))
    return (torch.as_tensor(level_determinant("flow", bounded)) / change) ** 2


WEIGHTINGS: dict[str, Callable[[str, NoiseLevel], Tensor]] = {
    "none": equal_weights,
    "min_snr": min_snr_weights,
    "flow": flow_weights,
}


@torch.no_grad()
def shown_latents(
    autoencoder: Any, batch: Batch, generators: list[torch.Generator], draw: bool = False
) -> Batch:
    """What a prior is trained on of a batch of `LatentRows`: normalised `latents` (B, K, E), and its conditions.

    Args:
        autoencoder: an `AutoencoderTextLatentModel` in evaluation mode, of whose posteriors the batch is.
        batch: with `latents` and maybe `logvar` (B, K, E), `label` (B,), `source_ids` and `source_mask` (B, P); of
            `LatentPairs` with `noise` (B, K, E).
        generators: one a row, of which each gives one number if latents are drawn.
        draw: latents from their posteriors instead of the means.

    Returns:
        `latents`, and as far as there are any `noise`, `label`, `prompt_states` (B, P, S) and `prompt_mask` (B, P).
    """
    latents = batch["latents"]
    if draw:
        noise = randn(tuple(latents.shape), generators, latents.device, latents.dtype)
        latents = autoencoder.sample(TextLatents(latents, batch.get("logvar")), noise)
    shown = {"latents": autoencoder.normalize(latents)}
    if "noise" in batch:
        shown["noise"] = batch["noise"]
    return shown | conditions_of(autoencoder, batch)


def gaussian_prior_losses(
    model: Any, batch: Batch, generators: list[torch.Generator], dropout: float = 0.0
) -> Tensor:
    """(B,) exact -log p of latents by a `LatentGaussianPrior`, in nats.

    Args:
        model: the prior, which may be prepared by Accelerate.
        batch: of `shown_latents`.
        generators: one a row, of which each gives one number.
        dropout: share of the rows that lose their prompt.
    """
    latents = at_least_float32(batch["latents"])
    coins = rand((len(latents), 1), generators, torch.device("cpu"))
    mask = batch.get("prompt_mask")
    if mask is not None:
        mask = mask.masked_fill((coins < dropout).to(mask.device), 0)
    distribution = model(batch.get("prompt_states"), mask, len(latents))
    return gaussian_nats(latents, distribution.mean.float(), distribution.logvar.float())


@dataclass(eq=False)
class LatentLoss:
    """The loss of rows of latents at given times, by noise from one generator a row.

    Args:
        scheduler: one with `noise_level`: for latents, or for word embeddings. Its noise is what the model learns to
            remove, and its clock is continuous if it has no betas.
        denoiser: the `LatentTransformerModel` that is trained; only its configuration is used.
        self_conditioning: share of the rows that are shown a first estimate, if the model takes one.
        dropout: share of the rows that lose their label, and of those that lose their prompt, by one coin for each.
        time_sampling: a key of `TIME_SAMPLINGS`.
        weighting: a key of `WEIGHTINGS`.
        optimal_transport: whether noise is dealt out within the batch, see `paired_noise`. A row's loss then depends
            on the others; noise stays among rows of the same label. Not for rows with prompts, of which no two are
            alike.

    Raises:
        ValueError: if an argument is out of its range, or scheduler and denoiser disagree.

    Example:
        >>> import torch
        >>> from text_diffusers import LatentTransformerModel
        >>> from text_diffusers.schedulers.latent.scheduling_flow import LatentFlowEulerScheduler
        >>> from text_diffusers.common.training_randomness import row_noise
        >>> from text_diffusers.training.steps.latents import LatentLoss
        >>> model = LatentTransformerModel(
        ...     4, num_latents=3, hidden_size=8, num_layers=1, num_attention_heads=2, prediction_type="flow"
        ... )
        >>> loss = LatentLoss(LatentFlowEulerScheduler(), model)
        >>> uniform, generators = row_noise(seed=0, step=7, num_rows=2)
        >>> loss(model, {"latents": torch.randn(2, 3, 4)}, loss.draw_times(uniform), generators).shape
        torch.Size([2])
    """

    scheduler: Any
    denoiser: Any
    self_conditioning: float = 0.5
    dropout: float = 0.1
    time_sampling: str = "uniform"
    weighting: str = "none"
    optimal_transport: bool = False

    def __post_init__(self):
        self.model_config = self.denoiser.config
        require_number("self_conditioning", self.self_conditioning, 0, 1)
        require_number("dropout", self.dropout, 0, 1)
        require_key("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        require_key("weighting", self.weighting, WEIGHTINGS)

        # Both must agree on the clock and on what is predicted.
        for name in ("num_train_timesteps", "prediction_type"):
            own = self.scheduler.config[name]
            wanted = self.model_config[name]
            limit = f"a scheduler with the denoiser's `{name}`={wanted!r}"
            require(own == wanted, "scheduler", limit, own)

    def draw_times(self, uniform: Tensor) -> Tensor:
        """Timesteps (B,) of the scheduler's clock from uniform numbers (B,) in [0, 1)."""
        steps = self.scheduler.config.num_train_timesteps
        shares = TIME_SAMPLINGS[self.time_sampling](uniform)
        if getattr(self.scheduler, "alphas_cumprod", None) is not None:
            return (shares * steps).long().clamp(max=steps - 1)
        # Pure noise, where sampling begins, may come up; clean latents, where there is nothing to learn, do not.
        return (1 - shares) * steps

    def __call__(
        self, model: Any, batch: Batch, times: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """(B,) weighted squared errors at `times` (B,), a mean over K and E.

        Args:
            batch: `latents` (B, K, E), and what the model is told: `label` (B,), `prompt_states` (B, P, S) and
                `prompt_mask` (B, P). With `noise` (B, K, E), such as that of which another model made the latents,
                nothing else is drawn in its place: training on such pairs is a reflow.
            generators: one a row.

        Raises:
            ValueError: if noise is to be dealt out among rows with prompts, or is given.
        """
        # 1. Draw everything that is random: three coins a row, and noise
        latents = at_least_float32(batch["latents"])
        batch_size, num_latents, width = latents.shape
        coins = rand((batch_size, 3), generators, torch.device("cpu"))
        batch = self._without_conditions(batch, coins[:, 1:])
        noise = randn((batch_size, num_latents, width), generators, latents.device, latents.dtype)
        noise = self._paired(batch, latents, noise)

        # 2. Corrupt
        level = self.scheduler.noise_level(times)  # (B,) each
        noisy = self.scheduler.add_noise(latents, noise, times)  # (B, K, E)
        target = prediction_of(self.model_config.prediction_type, latents, noise, level)

        # 3. Predict, some rows with an estimate of their own before it
        times = times.to(latents.device)
        inputs = {
            "class_labels": batch.get("label"),
            "prompt_states": batch.get("prompt_states"),
            "prompt_mask": batch.get("prompt_mask"),
        }
        estimate = None
        if self.model_config.self_conditioning:
            chosen = coins[:, 0] < self.self_conditioning
            estimate = self._first_estimate(model, noisy, times, level, inputs, chosen)
        prediction = model(noisy, times, self_condition=estimate, **inputs).sample

        # 4. Compare
        errors = (at_least_float32(prediction) - target).square().mean(dim=(1, 2))  # (B,)
        weights = WEIGHTINGS[self.weighting](self.model_config.prediction_type, level)
        return errors * weights.to(errors)

    def _without_conditions(self, batch: Batch, coins: Tensor) -> Batch:
        """A batch in which each row has lost its label, its prompt, both or neither, by coins (B, 2)."""
        dropped = (coins < self.dropout).to(batch["latents"].device)
        changed = {}
        if "label" in batch:
            no_label = self.model_config.num_classes
            require(no_label is not None, "batch", "without `label` for this model", "`label`")
            changed["label"] = batch["label"].masked_fill(dropped[:, 0], no_label)
        if "prompt_states" in batch:
            mask = batch.get("prompt_mask")
            if mask is None:
                mask = torch.ones(batch["prompt_states"].shape[:2], device=dropped.device)
            # A row whose prompt is all padding has none.
            changed["prompt_mask"] = mask.masked_fill(dropped[:, 1:], 0)
        return batch | changed

    def _paired(self, batch: Batch, latents: Tensor, noise: Tensor) -> Tensor:
        """(B, K, E) the noise of each row."""
        given = batch.get("noise")
        if not self.optimal_transport:
            return noise if given is None else given.to(noise)

        came = [name for name in ("noise", "prompt_states") if name in batch]
        require(not came, "batch", "without these for `optimal_transport`", came)
        return paired_noise(latents, noise, batch.get("label"))

    @torch.no_grad()
    def _first_estimate(
        self,
        model: Any,
        noisy: Tensor,
        times: Tensor,
        level: NoiseLevel,
        inputs: dict[str, Any],
        chosen: Tensor,
    ) -> Tensor:
        """(B, K, E) clean estimates of the chosen rows (B,) bool by a model without an earlier one; zero elsewhere."""
        rows = chosen.nonzero()[:, 0]
        if not len(rows):  # a model in shards needs every process at every forward
            rows = torch.zeros(1, dtype=torch.long)
        level_of_rows = NoiseLevel(*(torch.as_tensor(part)[rows] for part in level))
        rows = rows.to(noisy.device)

        inputs_of_rows = {
            name: None if value is None else value[rows] for name, value in inputs.items()
        }
        prediction = model(noisy[rows], times[rows], **inputs_of_rows).sample
        estimate = convert_prediction(
            at_least_float32(prediction),
            noisy[rows],
            level_of_rows,
            self.model_config.prediction_type,
            "sample",
        )

        # A row that stands in for none is zero too.
        estimates = torch.zeros_like(noisy).index_copy(0, rows, estimate.to(noisy))
        return estimates * chosen.to(noisy.device)[:, None, None]
