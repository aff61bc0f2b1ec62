"""Where texts end: the end tokens that count, the rows that are finished, and texts cut at their end.

Shapes: B rows, L sequence length.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from text_diffusers.common.token_ids import end_ids, padding_id
from text_diffusers.pipelines.given_text import GivenText
from text_diffusers.pipelines.text_batch import TextBatch


def end_token_id(tokenizer: Any) -> int:
    """The token that ends a text; an id that no token has for a tokenizer without one."""
    return next(iter(end_ids(tokenizer)), -1)


def end_tensor(batch: TextBatch, tokenizer: Any) -> Tensor:
    """(E,) ids of the tokens that end a text: the tokenizer's, and those of the batch."""
    ids = sorted({*end_ids(tokenizer), *batch.end_token_ids})
    return torch.tensor(ids, dtype=torch.long, device=batch.tokens.device)


def written_ends(batch: TextBatch, tokenizer: Any) -> Tensor:
    """(B, L) bool: end tokens that were written; one of the prompt ends nothing."""
    return batch.editable & torch.isin(batch.tokens, end_tensor(batch, tokenizer))


def masked_tokens(batch: TextBatch, tokenizer: Any) -> Tensor:
    """(B, L) bool: tokens that are still to be revealed, masks and clusters."""
    masked = batch.tokens == tokenizer.mask_token_id
    if batch.first_cluster_id is not None:
        masked = masked | (batch.tokens >= batch.first_cluster_id)
    return batch.editable & masked


def settled_ends(batch: TextBatch, tokenizer: Any, revises_tokens: bool) -> Tensor:
    """(B, L) bool: written end tokens.

    Args:
        revises_tokens: whether the scheduler may change a token again. Where it settles tokens, an end counts only if
            no mask stands before it, which could still become an earlier end.
    """
    ends = written_ends(batch, tokenizer)
    if revises_tokens:
        return ends
    return ends & (masked_tokens(batch, tokenizer).cumsum(dim=1) == 0)


def finished_rows(batch: TextBatch, tokenizer: Any, revises_tokens: bool) -> Tensor:
    """(B,) bool: rows whose text can no longer change, every token up to their first end being settled."""
    # Tokens that may be revised are settled only by the last step.
    if revises_tokens:
        return torch.zeros_like(batch.editable[:, 0])

    finished = ~masked_tokens(batch, tokenizer).any(dim=1)
    if not batch.ends_at_eos:
        return finished
    return finished | settled_ends(batch, tokenizer, revises_tokens).any(dim=1)


def cut_texts(batch: TextBatch, tokenizer: Any, revises_tokens: bool = True) -> Tensor:
    """(B, longest text) tokens with padding after the end of each text, and without the source before it."""
    return cut_rows(ended_tokens(batch, tokenizer, revises_tokens), batch, padding_id(tokenizer))


def ended_tokens(batch: TextBatch, tokenizer: Any, revises_tokens: bool = True) -> Tensor:
    """(B, L) tokens with padding after the end of each text; a cluster, which has no text, is shown as the mask."""
    tokens = batch.tokens
    if batch.first_cluster_id is not None:
        tokens = tokens.masked_fill(tokens >= batch.first_cluster_id, tokenizer.mask_token_id)
    if not batch.ends_at_eos:
        return tokens
    ends = settled_ends(batch, tokenizer, revises_tokens)
    return cut_at_end(tokens, ends, batch.editable, padding_id(tokenizer))


def texts_of(
    batch: TextBatch, tokenizer: Any, revises_tokens: bool = True, show_masks: bool = False
) -> list[str]:
    """B texts as they are returned: given characters as they were given, and what was written, without special tokens.

    Args:
        show_masks: show tokens that are still to be written by the name of the mask.
    """
    tokens = ended_tokens(batch, tokenizer, revises_tokens)
    # An end need not be a special token to its tokenizer.
    if batch.ends_at_eos and batch.end_token_ids:
        tokens = tokens.masked_fill(written_ends(batch, tokenizer), padding_id(tokenizer))
    text_ends = batch.text_ends
    texts = []
    for index, given in enumerate(batch.given_texts):
        start = batch.starts[index]
        row = tokens[index, : text_ends[index]].tolist()
        # A callback may have put other tokens in the place of given ones, which then are decoded like the rest.
        if batch.laid_out is not None:
            is_changed = (batch.laid_out[index] != batch.tokens[index]) & ~batch.editable[index]
            if is_changed.any():
                start = start if batch.drops_source else 0
                given = GivenText(pieces=["", ""], runs=[(start, None)])
        texts.append(given.with_written(tokenizer, row, start, show_masks))
    return texts


def cut_at_end(tokens: Tensor, ends: Tensor, editable: Tensor, pad_token_id: int) -> Tensor:
    """(B, L) tokens where everything that was written after the first end of a text is padding.

    Args:
        tokens: (B, L).
        ends: (B, L) bool, the tokens that end a text.
        editable: (B, L) bool, what may become padding.
    """
    # The end token itself stays.
    behind_an_end = (ends.cumsum(dim=1) - ends.long()) > 0
    return tokens.masked_fill(behind_an_end & editable, pad_token_id)


def cut_rows(values: Tensor, batch: TextBatch, filling: int = 0) -> Tensor:
    """(B, longest text, ...) of `values` (B, L, ...): each row from the start of its text, filled up at its end.

    Values of a batch that keeps what stands before its texts are returned as they are.
    """
    if not batch.drops_source:
        return values
    # Texts that were written from sources of unequal length begin at unequal places.
    rows = [
        row[start:end]
        for row, start, end in zip(values, batch.starts, batch.text_ends, strict=True)
    ]
    return pad_sequence(rows, batch_first=True, padding_value=filling)
