"""What a training step over word embeddings computes: times, corruption, self-conditioning, the loss of every token.

Shapes: B batch, L sequence length, E embedding width, T training timesteps.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.clean_estimate import clean_estimate
from text_diffusers.common.randomness import rand, randn
from text_diffusers.data.rows import tensor_batches, unknown_tokens
from text_diffusers.evaluation.embedding import time_distribution, timesteps_at
from text_diffusers.losses.embedding import (
    anchor_loss,
    diffusion_lm_loss,
    noisy_start,
    prediction_target,
    prior_kl,
    reconstruction,
    simple_loss,
    transition_kl,
)
from text_diffusers.losses.time_density import draw_times

BEGINNINGS = 0.25  # of the rows with given words; in the others any words are given
LOG_LEAST_HIDDEN = math.log(0.05)
TIMED_ROWS = 256  # on which the losses by time are measured


class EmbeddingLoss:
    """The loss of rows at given times, by noise from one generator a row.

    Args:
        scheduler: an embedding scheduler, whose noise the model learns to remove.
        denoiser: the `EmbeddingTransformerModel` that is trained; only its configuration is used.
        objective: a key of `OBJECTIVES`; "bound" draws its times "by_signal".
        rounding_weight, anchor_weight: of the words read off noisy embeddings and off the clean estimate, in
            "diffusion_lm".
        self_conditioning: share of the rows that are shown a first estimate.
        given_words: share of the rows of which some words are given clean, in a quarter of them a beginning, in the
            others any words, so that the model learns to continue and to fill in; needs `partial_noising`.
        time_sampling: "uniform"; "by_signal", as the bound is estimated, see `time_distribution`; "loss_aware" or
            "time_warped".
    """

    def __init__(
        self,
        scheduler: Any,
        denoiser: Any,
        objective: str = "diffusion_lm",
        rounding_weight: float = 1.0,
        anchor_weight: float = 1.0,
        self_conditioning: float = 0.5,
        given_words: float = 0.0,
        time_sampling: str = "uniform",
    ):
        self.scheduler, self.model_config = scheduler, denoiser.config
        self.alphas = scheduler.alphas_cumprod  # (T,)
        self.probabilities = time_distribution(self.alphas)  # (T,) of times drawn by signal
        self.objective, self.compute = objective, OBJECTIVES[objective]
        self.rounding_weight, self.anchor_weight = rounding_weight, anchor_weight
        self.self_conditioning, self.given_words = self_conditioning, given_words
        self.time_sampling = time_sampling

    def draw_times(self, uniform: Tensor, density: Tensor | None) -> tuple[Tensor, Tensor]:
        """Times (B,) from uniform numbers (B,), and the weights of their losses; `density` as in `draw_times`."""
        if self.time_sampling == "by_signal" or self.objective == "bound":
            times = timesteps_at(uniform, self.probabilities)
            return times, 1 / self.probabilities[times] if self.objective == "bound" else torch.ones_like(uniform)
        times, weights = draw_times(uniform, torch.ones(1) if density is None else density, len(self.alphas))
        return times, weights if self.time_sampling == "loss_aware" else torch.ones_like(weights)

    def __call__(self, model: Any, batch: dict[str, Tensor], times: Tensor, generators: list) -> Tensor:
        """(B, L) the loss of every token at `times` (B,), zero at padding and at given tokens."""
        tokens = batch["input_ids"]
        shape = (len(tokens), tokens.shape[1], self.model_config.embedding_dim)
        coins = rand((len(tokens), 3), generators, torch.device("cpu"))
        if self.given_words:
            batch = batch | {"given": self._choose_given(batch, coins[:, 1:], generators)}
        given = batch.get("given")
        noise, start_noise = (randn(shape, generators, tokens.device, torch.float32) for _ in range(2))
        times = times.to(tokens.device)

        def corrupt(clean: Tensor, rows: Any = slice(None)) -> tuple[Tensor, Tensor]:
            exact = self.objective == "bound"
            start = clean if exact else noisy_start(clean, self.alphas[0], start_noise[rows])
            noisy = self.scheduler.add_noise(start, noise[rows], times[rows])  # (B, L, E)
            return start, noisy if given is None else torch.where(given[rows].unsqueeze(-1), clean, noisy)

        inputs = {"attention_mask": batch["attention_mask"], "class_labels": batch.get("label"), "given": given}
        estimate = self._first_estimate(model, tokens, times, corrupt, inputs, coins[:, 0] < self.self_conditioning)
        output = model(None, times, self_condition=estimate, input_ids=tokens, corrupt=corrupt, **inputs)
        return self.compute(self, output, noise, times.cpu(), tokens) * unknown_tokens(batch)

    def _choose_given(self, batch: dict[str, Tensor], coins: Tensor, generators: list) -> Tensor:
        """(B, L) bool: of some rows a beginning, of some any words, of most none; of each row at least one is not."""
        tokens = batch["input_ids"]
        uniform = rand(tuple(tokens.shape), generators, tokens.device)  # (B, L)
        kind, share = coins.to(tokens.device).unsqueeze(-1).unbind(dim=1)  # (B, 1) each
        lengths = batch["attention_mask"].sum(dim=1, keepdim=True)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        beginning = places < (share * lengths).long().clamp(min=1)
        hidden = torch.exp(LOG_LEAST_HIDDEN * share)  # log-uniform: as many rows with few gaps as with many
        chosen = torch.where(kind < self.given_words * BEGINNINGS, beginning, uniform > hidden)
        last = places == lengths - 1
        return chosen & (kind < self.given_words) & ~last & unknown_tokens(batch)

    @torch.no_grad()
    def _first_estimate(self, model, tokens, times, corrupt, inputs, chosen: Tensor) -> Tensor | None:
        """(B, L, E) what the model makes of the chosen rows (B,) bool without an earlier estimate; zero elsewhere."""
        if not self.model_config.self_conditioning:
            return None
        rows = chosen.nonzero()[:, 0].to(tokens.device)
        if not len(rows):  # a model in shards needs every process at every forward
            rows = torch.zeros(1, dtype=torch.long, device=tokens.device)
        kept = {name: None if value is None else value[rows] for name, value in inputs.items()}
        output = model(None, times[rows], input_ids=tokens[rows], corrupt=partial(corrupt, rows=rows), **kept)
        alpha = self.alphas[times[rows].cpu()]
        estimate = clean_estimate(self.model_config.prediction_type, output.sample, output.noisy, alpha)
        whole = torch.zeros(*tokens.shape, estimate.shape[-1], device=tokens.device, dtype=estimate.dtype)
        return whole.index_copy(0, rows, estimate) * chosen.to(tokens.device)[:, None, None]

    @torch.no_grad()
    def by_time(self, model: Any, rows: Any, num_bins: int) -> Tensor:
        """(num_bins, rows) losses per token at times in each part of the clock, always by the same noise."""
        batch = next(tensor_batches(rows, TIMED_ROWS))
        device = next(model.parameters()).device
        batch = trimmed({name: column.to(device) for name, column in batch.items()})
        counted, found = unknown_tokens(batch), []
        for part in range(num_bins):
            generators = [torch.Generator().manual_seed(row) for row in range(len(counted))]
            spread = (torch.arange(len(counted)) + 0.5) / len(counted)
            times = ((part + spread) / num_bins * len(self.alphas)).long()
            losses = self(model, batch, times, generators)
            found.append((losses.sum(dim=1) / counted.sum(dim=1)).cpu())
        return torch.stack(found)


def trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch without the columns in which all rows have padding."""
    width = int(batch["attention_mask"].sum(dim=1).max())
    return {name: column[:, :width] if column.ndim == 2 else column for name, column in batch.items()}


def diffusion_lm_objective(loss: EmbeddingLoss, output: Any, noise: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
    """(B, L) squared error at `times`, words read off noisy embeddings, prior, and words read off the estimate."""
    alphas = loss.alphas
    first = (times == 0).to(noise.device)
    kind = loss.model_config.prediction_type
    target = prediction_target(kind, output.start, output.clean, noise, alphas[times].to(noise.device), first)
    terms = diffusion_lm_loss(output.sample, target, output.start_logits, tokens, output.start, alphas[-1])
    total = terms.mse + loss.rounding_weight * terms.rounding + terms.prior
    return total + loss.anchor_weight * anchor_loss(output.logits, tokens) if loss.anchor_weight else total


def bound_objective(loss: EmbeddingLoss, output: Any, noise: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
    """(B, L) the bound's term of each of `times`, in nats, with its part of the prior; summed over all, the bound."""
    alphas = loss.alphas
    transition = transition_kl(output.clean, output.sample, alphas[times], alphas[(times - 1).clamp(min=0)])
    first = (times == 0).to(noise.device).unsqueeze(1)
    term = torch.where(first, reconstruction(output.logits, tokens), transition)
    return term + prior_kl(output.clean, alphas[-1]) / len(alphas)


def simple_objective(loss: EmbeddingLoss, output: Any, noise: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
    """(B, L) squared error of predicted noise, which says nothing about where words should lie."""
    return simple_loss(output.sample, noise)


OBJECTIVES = {"diffusion_lm": diffusion_lm_objective, "bound": bound_objective, "simple": simple_objective}
