"""Lengths that a denoiser predicts: how many tokens are to be written from a source.

A row that ends with its source, "start source end", asks for the length of the text behind it. The answer is the
prediction at its last token, in which the ids 0, 1, 2, ... stand for so many tokens. So the network that reads the
source says how long a text it will be, before any of it is written, and no place is spent on what comes after the end.

Shapes: B rows, S tokens of the longest source.
"""

from typing import Any

import torch
from torch import Tensor


def check_length_ids(config: Any):
    """Raise a `ValueError` unless there is an id for every length that the model can predict."""
    if config.predicts_length and config.vocab_size < config.max_length:
        raise ValueError(
            "`predicts_length` needs `vocab_size` of at least `max_length`, an id for each length, got "
            f"{config.vocab_size} with {config.max_length}."
        )


def require_length_model(config: Any):
    """Raise a `ValueError` unless the model was trained to predict lengths."""
    if not config.predicts_length:
        raise ValueError(
            "`length_logits` needs a model with `predicts_length=True`, as recipes train it with `--source_column`."
        )


def last_tokens(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, S) bool: the last real token of each row of `tokens` (B, S)."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    if attention_mask is None:
        return (places == tokens.shape[1] - 1).expand(tokens.shape)
    return places == attention_mask.sum(dim=1, keepdim=True) - 1
