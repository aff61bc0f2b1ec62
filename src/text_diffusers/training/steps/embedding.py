"""A training step over word embeddings: times, corruption, self-conditioning, the loss of every token.

Shapes: B batch, L sequence length, E embedding width, T training timesteps, K parts of the clock.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.clean_estimate import clean_estimate
from text_diffusers.common.randomness import rand, randn
from text_diffusers.data.rows import Batch, tensor_batches, to_device, trimmed, unknown_tokens
from text_diffusers.evaluation.embedding import time_distribution, timesteps_at
from text_diffusers.evaluation.modules import device_of
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
from text_diffusers.training.steps.lengths import (
    ASKED_SHARE,
    ask_for_lengths,
    asked_positions,
    text_sizes,
)

BEGINNINGS = 0.25  # of the rows with given words; in the others any words are given
LOG_LEAST_HIDDEN = math.log(0.05)
TIMED_ROWS = 256  # on which the losses by time are measured


@dataclass(eq=False)
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

    Example:
        >>> import torch
        >>> from text_diffusers import EmbeddingDDIMScheduler, EmbeddingTransformerModel
        >>> from text_diffusers.training.steps.embedding import EmbeddingLoss
        >>> model = EmbeddingTransformerModel(9, 4, hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> loss = EmbeddingLoss(EmbeddingDDIMScheduler(), model)
        >>> times, weights = loss.draw_times(torch.tensor([0.0, 0.5]), density=None)
        >>> times, weights
        (tensor([   0, 1000]), tensor([1., 1.]))
        >>> batch = {"input_ids": torch.ones(2, 6, dtype=torch.long), "attention_mask": torch.ones(2, 6)}
        >>> loss(model, batch, times, [torch.Generator().manual_seed(row) for row in range(2)]).shape
        torch.Size([2, 6])
    """

    scheduler: Any
    denoiser: Any
    objective: str = "diffusion_lm"
    rounding_weight: float = 1.0
    anchor_weight: float = 1.0
    self_conditioning: float = 0.5
    given_words: float = 0.0
    time_sampling: str = "uniform"

    def __post_init__(self):
        self.model_config = self.denoiser.config
        self.alphas = self.scheduler.alphas_cumprod  # (T,)
        self.probabilities = time_distribution(self.alphas)  # (T,) of times drawn by signal

    def draw_times(self, uniform: Tensor, density: Tensor | None) -> tuple[Tensor, Tensor]:
        """Times (B,) from uniform numbers (B,), and the weights of their losses.

        Args:
            uniform: (B,) in [0, 1).
            density: (K,) of the times, as in `losses.time_density.draw_times`; `None` is uniform.
        """
        # The bound divides by the probability of each time; other objectives do not, though drawn alike.
        if self.objective == "bound":
            times = timesteps_at(uniform, self.probabilities)
            return times, 1 / self.probabilities[times]
        if self.time_sampling == "by_signal":
            return timesteps_at(uniform, self.probabilities), torch.ones_like(uniform)

        # Loss-aware times are weighted back to uniform ones; warped times are meant to be unlike them.
        density = torch.ones(1) if density is None else density
        times, weights = draw_times(uniform, density, len(self.alphas))
        return times, weights if self.time_sampling == "loss_aware" else torch.ones_like(weights)

    def __call__(
        self,
        model: Any,
        batch: Batch,
        times: Tensor,
        generators: list[torch.Generator],
        weights: Tensor | None = None,
        asks_lengths: bool = True,
    ) -> Tensor:
        """(B, L) the loss of every token at `times` (B,), zero at padding and at given tokens.

        The loss of a row that is asked for the length of its text stands at the last token of its source.

        Args:
            weights: (B,) of the losses of texts; 1 by default.
            asks_lengths: whether some rows are asked for a length, if the model predicts lengths.
        """
        # Of pairs, some rows are asked how long the text is, and show none of it.
        lengths = text_sizes(batch)
        asked = None
        if self.model_config.predicts_length and asks_lengths:
            batch, asked = ask_for_lengths(batch, generators)
            times = times.masked_fill(asked.to(times.device), 0)

        # 1. Draw everything that is random: three coins a row, given words, and two tensors of noise
        tokens = batch["input_ids"]
        batch_size, length = tokens.shape
        coins = rand((batch_size, 3), generators, torch.device("cpu"))
        if self.given_words:
            chosen = self._choose_given(batch, coins[:, 1:], generators)
            batch = batch | {"given": chosen | batch.get("given", False)}
        shape = (batch_size, length, self.model_config.embedding_dim)
        noise = randn(shape, generators, tokens.device, torch.float32)
        start_noise = randn(shape, generators, tokens.device, torch.float32)

        # 2. Corrupt within the model, since one in shards has its embeddings within `forward` only
        # A model without partial noising is shown what is given as noisy as the rest, and learns nothing of it.
        given = batch.get("given") if self.model_config.partial_noising else None
        times = times.to(tokens.device)

        def corrupt(clean: Tensor, rows: Any = slice(None)) -> tuple[Tensor, Tensor]:
            start = clean
            if self.objective != "bound":
                start = noisy_start(clean, self.alphas[0], start_noise[rows])
            noisy = self.scheduler.add_noise(start, noise[rows], times[rows])  # (B, L, E)
            if given is not None:
                noisy = torch.where(given[rows].unsqueeze(-1), clean, noisy)
            return start, noisy

        # 3. Predict, some rows with an estimate of their own before it
        inputs = {
            "attention_mask": batch["attention_mask"],
            "class_labels": batch.get("label"),
            "given": given,
        }
        estimate = None
        if self.model_config.self_conditioning:
            chosen = coins[:, 0] < self.self_conditioning
            estimate = self._first_estimate(model, tokens, times, corrupt, inputs, chosen)
        output = model(
            None, times, self_condition=estimate, input_ids=tokens, corrupt=corrupt, **inputs
        )

        # 4. Compare
        losses = OBJECTIVES[self.objective](self, output, noise, times.cpu(), tokens)
        losses = losses * unknown_tokens(batch)
        if weights is not None:
            losses = losses * weights.to(losses).unsqueeze(1)
        if asked is None:
            return losses

        # 5. Lengths, of the rows that were asked
        length_losses = F.cross_entropy(output.length_logits.float(), lengths, reduction="none")
        asked_losses = length_losses.unsqueeze(1) * asked_positions(batch, asked)
        return losses / (1 - ASKED_SHARE) + asked_losses / ASKED_SHARE

    def _choose_given(
        self, batch: Batch, coins: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """(B, L) bool: of some rows a beginning, of some any words, of most none; of each row at least one is not."""
        tokens = batch["input_ids"]
        uniform = rand(tuple(tokens.shape), generators, tokens.device)  # (B, L)
        kind, share = coins.to(tokens.device).unsqueeze(-1).unbind(dim=1)  # (B, 1) each
        lengths = batch["attention_mask"].sum(dim=1, keepdim=True)
        places = torch.arange(tokens.shape[1], device=tokens.device)

        # A beginning of any length, at least one word
        beginning = places < (share * lengths).long().clamp(min=1)

        # Any words: the share that is hidden is log-uniform, as many rows with few gaps as with many
        hidden_share = torch.exp(LOG_LEAST_HIDDEN * share)

        # Of the rows with given words a quarter have a beginning; the last token is always left to the model.
        given = torch.where(kind < self.given_words * BEGINNINGS, beginning, uniform > hidden_share)
        last = places == lengths - 1
        return given & (kind < self.given_words) & ~last & unknown_tokens(batch)

    @torch.no_grad()
    def _first_estimate(
        self,
        model: Any,
        tokens: Tensor,
        times: Tensor,
        corrupt: Any,
        inputs: dict[str, Any],
        chosen: Tensor,
    ) -> Tensor:
        """(B, L, E) clean estimates of the chosen rows (B,) bool by a model without an earlier one; zero elsewhere."""
        rows = chosen.nonzero()[:, 0].to(tokens.device)
        if not len(rows):  # a model in shards needs every process at every forward
            rows = torch.zeros(1, dtype=torch.long, device=tokens.device)

        # The same noise as in the prediction that will be shown the estimate
        inputs_of_rows = {
            name: None if value is None else value[rows] for name, value in inputs.items()
        }
        corrupt_rows = partial(corrupt, rows=rows)
        output = model(
            None, times[rows], input_ids=tokens[rows], corrupt=corrupt_rows, **inputs_of_rows
        )
        alpha = self.alphas[times[rows].cpu()]
        estimate = clean_estimate(
            self.model_config.prediction_type, output.sample, output.noisy, alpha
        )

        # A row that stands in for none is zero too.
        estimates = estimate.new_zeros(*tokens.shape, estimate.shape[-1])
        return estimates.index_copy(0, rows, estimate) * chosen.to(tokens.device)[:, None, None]

    @torch.no_grad()
    def by_time(self, model: Any, rows: Any, num_bins: int) -> Tensor:
        """(num_bins, rows) losses per token at times in each part of the clock, always by the same noise."""
        device = device_of(model)
        batch = next(tensor_batches(rows, TIMED_ROWS))
        batch = trimmed(to_device(batch, device))
        counted = unknown_tokens(batch)
        count = len(counted)

        # Rows are spread over each part of the clock, and draw the same noise in all parts.
        losses_of_bins = []
        for part in range(num_bins):
            generators = [torch.Generator().manual_seed(row) for row in range(count)]
            spread = (torch.arange(count) + 0.5) / count
            times = ((part + spread) / num_bins * len(self.alphas)).long()
            losses = self(model, batch, times, generators, asks_lengths=False)
            losses_of_bins.append((losses.sum(dim=1) / counted.sum(dim=1)).cpu())
        return torch.stack(losses_of_bins)


def diffusion_lm_objective(
    loss: EmbeddingLoss, output: Any, noise: Tensor, times: Tensor, tokens: Tensor
) -> Tensor:
    """(B, L) squared error at `times`, words read off noisy embeddings, prior, and words read off the estimate."""
    alphas = loss.alphas
    target = prediction_target(
        loss.model_config.prediction_type,
        output.start,
        output.clean,
        noise,
        alphas[times].to(noise.device),
        (times == 0).to(noise.device),
    )

    # The noisy start of the chain is what words are read off, and what the prior is of.
    terms = diffusion_lm_loss(
        output.sample, target, output.start_logits, tokens, output.start, alphas[-1]
    )
    total = terms.mse + loss.rounding_weight * terms.rounding + terms.prior

    # Without the anchor, squared error alone would let the embeddings collapse.
    if loss.anchor_weight:
        total = total + loss.anchor_weight * anchor_loss(output.logits, tokens)
    return total


def bound_objective(
    loss: EmbeddingLoss, output: Any, noise: Tensor, times: Tensor, tokens: Tensor
) -> Tensor:
    """(B, L) the bound's term of each of `times`, in nats, with its part of the prior; summed over all, the bound."""
    alphas = loss.alphas
    transition = transition_kl(
        output.clean, output.sample, alphas[times], alphas[(times - 1).clamp(min=0)]
    )
    first = (times == 0).to(noise.device).unsqueeze(1)

    # The last step reads the words off; the prior is shared out among all steps.
    term = torch.where(first, reconstruction(output.logits, tokens), transition)
    return term + prior_kl(output.clean, alphas[-1]) / len(alphas)


def simple_objective(
    loss: EmbeddingLoss, output: Any, noise: Tensor, times: Tensor, tokens: Tensor
) -> Tensor:
    """(B, L) squared error of predicted noise, which says nothing about where words should lie."""
    return simple_loss(output.sample, noise)


OBJECTIVES = {
    "diffusion_lm": diffusion_lm_objective,
    "bound": bound_objective,
    "simple": simple_objective,
}
