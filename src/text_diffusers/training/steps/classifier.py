"""A training step of classifiers of noisy text: noise as a pipeline's scheduler adds it, and which labels count.

A batch has `input_ids` and `attention_mask`, and either `label` (B,) or `tags` (B, L). Its column `given` is true but
where a label is counted: at one token of a row with a label, at all tokens with a tag. So the training loop, which
divides by the tokens that are not given, reports nats per label.

Shapes: B batch, L sequence length, E embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.randomness import randn
from text_diffusers.data.rows import Batch, Columns, tensor_batches
from text_diffusers.evaluation.classifier import counted_labels

MOST_NOISE = 1 - 1e-9  # a share of the clock just below 1, as random numbers are


def one_label_each(columns: Columns) -> Columns:
    """The column `given` of rows with one label each, which their first token stands for."""
    return {"given": [[False] + [True] * (len(row) - 1) for row in columns["input_ids"]]}


def noise_levels(uniform: Tensor, clean_fraction: float) -> Tensor:
    """(B,) shares of the clock from uniform numbers (B,): in `clean_fraction` of them 0, no noise, else as uniform.

    Example:
        >>> import torch
        >>> from text_diffusers.training.steps.classifier import noise_levels
        >>> noise_levels(torch.tensor([0.1, 0.5, 0.75]), clean_fraction=0.5)
        tensor([0.0000, 0.0000, 0.5000])
    """
    if clean_fraction >= 1:
        return torch.zeros_like(uniform)
    return ((uniform - clean_fraction) / (1 - clean_fraction)).clamp(min=0)


def fixed_tokens(
    tokens: Tensor, attention_mask: Tensor, start_id: int | None, end_id: int | None
) -> Tensor:
    """(B, L) bool: the tokens that a pipeline never covers with noise.

    Args:
        tokens, attention_mask: (B, L).
        start_id: of what a text begins after; `None` if nothing is given.
        end_id: of what a text ends with, if the pipeline knows where; the last token is fixed if it is this one.
    """
    # Padding, a start where texts have one, and an end in the last place
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = attention_mask.sum(dim=1, keepdim=True) - 1
    fixed = attention_mask == 0
    if start_id is not None:
        fixed = fixed | (places == 0) & (tokens == start_id)
    if end_id is not None:
        fixed = fixed | (places == last) & (tokens == end_id)
    return fixed


@dataclass
class TokenCorruption:
    """Tokens with the noise of a scheduler over tokens; `start_id` and `end_id` as in `fixed_tokens`.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMAbsorbingScheduler
        >>> from text_diffusers.training.steps.classifier import TokenCorruption
        >>> corrupt = TokenCorruption(D3PMAbsorbingScheduler(mask_token_id=9), start_id=0, end_id=None)
        >>> batch = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
        >>> corrupt(batch, torch.ones(1), [torch.Generator().manual_seed(0)])["input_ids"]
        tensor([[0, 9, 9]])
    """

    scheduler: Any
    start_id: int | None
    end_id: int | None

    def __call__(
        self, batch: Batch, levels: Tensor, generators: list[torch.Generator]
    ) -> dict[str, Any]:
        """Arguments of the classifier for levels (B,) of noise in [0, 1]; a row with level 0 is clean, at time 0."""
        tokens = batch["input_ids"]
        # Levels are shares of the scheduler's clock, which ends just below 1.
        levels = levels.double().cpu()
        times = self.scheduler.training_timesteps(levels.clamp(max=MOST_NOISE))  # (B,)
        noisy = self.scheduler.add_noise(tokens, times, generators)

        # Rows without noise are shown as they are, and told that they are clean.
        clean = (levels == 0).to(tokens.device)
        fixed = fixed_tokens(tokens, batch["attention_mask"], self.start_id, self.end_id)
        return {
            "input_ids": torch.where(fixed | clean.unsqueeze(1), tokens, noisy),
            "timestep": times.to(tokens.device, torch.float32).masked_fill(clean, 0),
            "attention_mask": batch["attention_mask"],
        }


@dataclass
class EmbeddingCorruption:
    """Word embeddings with the Gaussian noise of a scheduler.

    Args:
        scheduler: over embeddings.
        embed: tokens (B, L) to clean embeddings (B, L, E).
        start_id, end_id: as in `fixed_tokens`.
    """

    scheduler: Any
    embed: Callable[[Tensor], Tensor]
    start_id: int | None
    end_id: int | None

    @torch.no_grad()
    def __call__(
        self, batch: Batch, levels: Tensor, generators: list[torch.Generator]
    ) -> dict[str, Any]:
        """As for tokens; the times are those of the integer clock."""
        tokens = batch["input_ids"]
        # An integer clock, of which the last step holds the level 1 too
        steps = self.scheduler.config.num_train_timesteps
        times = (levels.to(tokens.device) * steps).long().clamp(max=steps - 1)  # (B,)
        clean = self.embed(tokens)  # (B, L, E)
        noise = randn(tuple(clean.shape), generators, tokens.device, clean.dtype)
        noisy = self.scheduler.add_noise(clean, noise, times)

        fixed = fixed_tokens(tokens, batch["attention_mask"], self.start_id, self.end_id)
        # A clean row has no noise at all, which the first step of the clock would have.
        fixed = fixed | (levels == 0).to(tokens.device).unsqueeze(1)
        return {
            "inputs_embeds": torch.where(fixed.unsqueeze(-1), clean, noisy),
            "timestep": times,
            "attention_mask": batch["attention_mask"],
        }


def check_labels(rows: Any, num_classes: int):
    """Refuse rows (of a data set in memory) with labels that a model of `num_classes` does not know.

    Raises:
        ValueError: naming the labels that there are.
    """
    for batch in tensor_batches(rows, len(rows)):
        labels = counted_labels(batch)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"Labels must be between 0 and {num_classes - 1}, got {sorted(set(labels.tolist()))}."
            )
