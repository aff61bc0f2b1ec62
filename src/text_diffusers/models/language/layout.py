"""How the tokens of a call lie in their rows: what each sees, its position, and the state its prediction is read off.

Shapes: B batch, L tokens of a row that are read, S tokens that can be seen, N selected positions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.models.attention import earlier_blocks
from text_diffusers.models.language.masks import (
    given_mask,
    over_causal_past,
    within_segments,
    without_padding,
)
from text_diffusers.models.reading import Reading


@dataclass
class RowLayout:
    """Rows of a call, beside their tokens.

    Args:
        reading: of the language model.
        attention_mask: (B, S), 0 at padding; or a mask of pairs of tokens, (B, L, S) or (B, 1, L, S).
        has_cache: whether keys and values come from a cache too.
        start: tokens of each row that stand before those of the call, in a cache of blocks.
        block_length: tokens of a block; `None` without blocks.
        block_starts: (B,) columns at each of which a block begins, over a causal past; by default the first. Or (B, L)
            places in blocks, see `places_behind`.
        segment_ids: (B, L), alike in each of several texts that share a row and do not see each other.
        past_lengths: (B,) tokens of a causal past, behind which all is one block; `None` counts blocks from the first.
        first_position: of a row, see `first_position` of the calls.
    """

    reading: Reading
    attention_mask: Tensor | None = None
    has_cache: bool = False
    start: int = 0
    block_length: int | None = None
    block_starts: Tensor | None = None
    segment_ids: Tensor | None = None
    past_lengths: Tensor | None = None
    first_position: int = 0

    def visible(self, tokens: Tensor) -> Tensor | None:
        """What the tokens of the call (B, L) see: (B, 1, L, S) bool, or as given where transformers makes a mask."""
        attention_mask = self.attention_mask
        batch_size, length = tokens.shape
        if attention_mask is not None and attention_mask.ndim > 2:
            return given_mask(attention_mask)

        has_blocks = self.reading.attention == "block"
        # Behind a cache transformers would look for a length that it does not have.
        needs_pairs = self.has_cache and attention_mask is not None
        if not has_blocks and self.segment_ids is None and not needs_pairs:
            return attention_mask
        visible = self._pairs(length, tokens.device).expand(batch_size, 1, -1, -1)
        if self.segment_ids is not None:
            visible = visible & within_segments(self.segment_ids)
        return without_padding(visible, attention_mask, self.start)

    def _pairs(self, length: int, device: torch.device) -> Tensor:
        """(L, S) bool: what the tokens of any row see by the reading alone; (B, 1, L, S) if rows differ."""
        if self.past_lengths is not None:
            return over_causal_past(length, self.start, self.past_lengths.view(-1, 1, 1, 1), device)
        end = self.start + length
        pairs = None
        if self.reading.has_causal_past:
            pairs = over_causal_past(length, self.start, self.last_block(length), device)
        elif self.reading.attention == "block":
            assert self.block_length is not None
            pairs = earlier_blocks(end, self.start, self.block_length, device)
        elif self.reading.attention == "causal":
            pairs = over_causal_past(length, self.start, end, device)

        if pairs is None:
            return torch.ones(length, end, dtype=torch.bool, device=device)
        return pairs

    def last_block(self, length: int) -> int:
        """The column at which the last block of rows begins, of which the call has the last `length` tokens."""
        assert self.block_length is not None
        return (self.start + length - 1) // self.block_length * self.block_length

    def states(self, tokens: Tensor, columns: Tensor) -> Tensor:
        """(N,) columns of the states that predict the tokens at `columns` (N,) of a call without clean tokens.

        A shifted prediction is that of the state before; the first token has its own.
        """
        before = (columns - 1).clamp(min=0)
        if self.reading.alignment == "shifted":
            return before
        # What was read token by token predicts the next one, however a block is read; nothing asks it in rows that are
        # one block.
        if self.reading.has_causal_past and self.past_lengths is None:
            is_past = columns + self.start < self.last_block(tokens.shape[1])
            return torch.where(is_past, before, columns)
        return columns


def check_layout(model: Any, layout: RowLayout, clean_ids: Any, cache: Any, clean_positions: Any):
    """Refuse what does not go with the reading of a model.

    Raises:
        ValueError: that names the argument.
    """
    reading = layout.reading
    own_length = reading.block_length
    if layout.block_length != own_length and not reading.has_causal_past:
        raise ValueError(
            f"`block_length` must be None or {own_length} for a {type(model).__name__} whose past is not causal, got "
            f"{layout.block_length}."
        )
    if layout.block_starts is not None and not reading.has_causal_past:
        raise ValueError("`block_starts` were given, but the past of this model is not causal.")
    if clean_positions is not None and (clean_ids is None or not reading.has_causal_past):
        raise ValueError(
            "`clean_positions` go with `clean_ids` and a causal past, in which the next token can be predicted."
        )
    if layout.past_lengths is not None and not reading.has_causal_past:
        raise ValueError("`past_lengths` were given, but the past of this model is not causal.")
    if layout.segment_ids is not None and cache is not None:
        raise ValueError("`segment_ids` go without a `cache`, which is of one text a row.")


def check_past_lengths(layout: RowLayout, clean_ids: Any, block_length: Any):
    """Refuse, beside the lengths of pasts, what says otherwise which tokens are seen.

    Args:
        block_length: that a call asks for; the model's own may stand beside them.

    Raises:
        ValueError: that names both arguments.
    """
    if layout.past_lengths is None:
        return
    others = {
        "clean_ids": clean_ids,
        "block_length": block_length,
        "block_starts": layout.block_starts,
    }
    for name, value in others.items():
        if value is not None:
            raise ValueError(
                f"`past_lengths` exclude `{name}`: all of a row behind its past is one block."
            )
    mask = layout.attention_mask
    if mask is not None and mask.ndim > 2:
        raise ValueError(
            "`past_lengths` go with an `attention_mask` (batch, length) of padding, and not with one of pairs of "
            f"tokens, which says all that is seen, got {tuple(mask.shape)}."
        )
