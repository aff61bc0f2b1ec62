"""Lengths of texts that are written from a source, as the denoiser predicts them.

Shapes: B rows, L longest row of a model in tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from text_diffusers.pipelines.guidance import guide
from text_diffusers.pipelines.text_batch import TextBatch

# `(source_ids (B, S), attention_mask (B, S), class_labels (B,)) -> (B, L)`, logits of 0, 1, 2, ... tokens
LengthLogits = Callable[[Tensor, Tensor, Any], Tensor]


def length_model(denoiser: Any) -> LengthLogits | None:
    """`length_logits` of a denoiser that predicts lengths."""
    predicts_length = getattr(getattr(denoiser, "config", None), "predicts_length", False)
    return denoiser.length_logits if predicts_length else None


def length_log_probs(
    length_logits: LengthLogits,
    sources: TextBatch,
    rooms: list[int],
    unconditional: TextBatch | None = None,
    scales: Tensor | None = None,
    least: int = 1,
) -> Tensor:
    """(B, L) float64 log-probabilities that a text has 0, 1, 2, ... tokens: no fewer than asked, no more than fit.

    Args:
        sources: rows "start source end", with the labels of the texts.
        rooms: the most tokens of each text.
        unconditional: the same rows without the condition.
        scales: (B,) of guidance, with `unconditional`.
        least: tokens of the shortest text.

    Raises:
        ValueError: if that does not fit.
    """
    logits = answer(length_logits, sources)
    if unconditional is not None and scales is not None:
        logits = guide(logits, answer(length_logits, unconditional), scales)

    # A text has at least one token, and fits behind its source.
    counts = torch.arange(logits.shape[1], device=logits.device)
    most = torch.tensor(rooms, device=logits.device).unsqueeze(1)
    limit = min(*rooms, logits.shape[1] - 1)
    if least > max(1, limit):
        raise ValueError(
            f"`min_new_tokens` must be at most {limit}, what the longest source leaves, got {least}."
        )
    possible = (counts >= max(1, least)) & (counts <= most)
    return logits.masked_fill(~possible, -torch.inf).log_softmax(dim=-1)


def answer(length_logits: LengthLogits, sources: TextBatch) -> Tensor:
    """(B, L) float64 log-probabilities of lengths, as the model predicts them."""
    logits = length_logits(sources.tokens, sources.attention_mask, sources.class_labels)
    return logits.double().log_softmax(dim=-1)


def draw_lengths(log_probs: Tensor, generators: list[torch.Generator]) -> list[int]:
    """A length for each row of (B, L) log-probabilities, by its own generator."""
    return [
        int(torch.multinomial(row.exp(), 1, generator=generator))
        for row, generator in zip(log_probs.cpu(), generators, strict=True)
    ]
