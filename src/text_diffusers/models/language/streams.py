"""Noisy tokens and the same tokens clean in one row, from which one pass predicts all blocks.

Of the noisy tokens only those are read whose block is asked for: of a conversation whose answers are learned, the
answers.

Shapes: B batch, L tokens of a row, n noisy tokens of it that are read, N selected positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from text_diffusers.common.row_blocks import count_blocks, places_in_blocks
from text_diffusers.models.attention import two_streams, wanted_tokens
from text_diffusers.models.language.layout import RowLayout
from text_diffusers.models.language.masks import (
    token_positions,
    two_streams_over_causal_past,
    within_segments,
    without_padding,
)


@dataclass
class TwoStreams:
    """Rows of n noisy tokens and, behind them, L clean ones.

    Args:
        layout: of the rows as they are without a second stream.
        noisy_ids: (B, L).
        clean_ids: (B, L).
        positions: (B, L) bool, the noisy tokens that are asked for.

    Attributes:
        columns: (B, n) places in the row of the noisy tokens that are read.
    """

    layout: RowLayout
    noisy_ids: Tensor
    clean_ids: Tensor
    positions: Tensor

    def __post_init__(self):
        assert self.layout.block_length is not None
        self.block_length = self.layout.block_length
        batch_size, length = self.noisy_ids.shape
        self.has_causal_past = self.layout.reading.has_causal_past
        starts = self.layout.block_starts
        if starts is None:
            starts = torch.zeros(batch_size, dtype=torch.long, device=self.noisy_ids.device)
        # (B, L) the place of each token in rows of whole blocks, the number of its block, and whether it begins that
        block_places = places_in_blocks(length, self.block_length, starts)
        self.blocks = block_places // self.block_length
        self.begins_block = block_places % self.block_length == 0
        self.begins_block[:, 0] = False  # there is no token before it
        self.num_blocks = count_blocks(length, self.block_length, starts)

        is_read = self._asked_blocks() if self.has_causal_past else torch.ones_like(self.positions)
        self.columns = wanted_tokens(is_read)
        # (B, L) the place of each noisy token among those that are read
        self.places = is_read.cumsum(dim=1) - 1

    def _asked_blocks(self) -> Tensor:
        """(B, L) bool: the tokens of blocks with a position that is asked for and read off the block.

        Shifted, the first token of a block is read off the past: blocks of one token need no noisy stream.
        """
        read_off_block = self.positions
        if self.layout.reading.alignment == "shifted":
            read_off_block = self.positions & ~self.begins_block
        counts = torch.zeros(len(self.positions), self.num_blocks, device=self.positions.device)
        counts = counts.scatter_add(1, self.blocks, read_off_block.to(counts.dtype))
        return counts.gather(1, self.blocks) > 0

    @property
    def num_noisy(self) -> int:
        """n."""
        return self.columns.shape[1]

    @property
    def input_ids(self) -> Tensor:
        """(B, n + L)."""
        return torch.cat([self.noisy_ids.gather(1, self.columns), self.clean_ids], dim=1)

    @property
    def position_ids(self) -> Tensor:
        """(B, n + L): a noisy token has the position of its clean one."""
        mask = self.layout.attention_mask if self.has_causal_past else None
        positions = token_positions(
            self.clean_ids, attention_mask=mask, segment_ids=self.layout.segment_ids
        )
        positions = positions + self.layout.first_position
        return torch.cat([positions.gather(1, self.columns), positions], dim=1)

    @property
    def visible(self) -> Tensor:
        """(B, 1, n + L, n + L) bool: what each token sees; see `two_streams`."""
        batch_size, length = self.clean_ids.shape
        if self.has_causal_past:
            noisy_blocks = self.blocks.gather(1, self.columns)
            visible = two_streams_over_causal_past(noisy_blocks, self.blocks).unsqueeze(1)
        else:
            pairs = two_streams(length, self.block_length, self.clean_ids.device)
            visible = pairs.expand(batch_size, 1, -1, -1)

        # Both streams have the same texts and the same padding.
        segment_ids = self.layout.segment_ids
        if segment_ids is not None:
            visible = visible & within_segments(self._twice(segment_ids))
        mask = self.layout.attention_mask
        return without_padding(visible, None if mask is None else self._twice(mask))

    def _twice(self, values: Tensor) -> Tensor:
        """(B, n + L) of values (B, L), first of the noisy tokens that are read."""
        return torch.cat([values.gather(1, self.columns), values], dim=1)

    def states(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(N,) places of the states that predict the noisy tokens at `rows` and `columns` (N,).

        A shifted prediction is that of the state before, for the first token of a block the last clean token before
        it; the first token of a row has its own.
        """
        if self.layout.reading.alignment == "aligned":
            return self.places[rows, columns]
        before = (columns - 1).clamp(min=0)
        begins_block = self.begins_block[rows, columns]
        return torch.where(begins_block, self.num_noisy + before, self.places[rows, before])

    def clean_states(self, columns: Tensor) -> Tensor:
        """(N,) places of the clean states that predict the clean tokens at `columns` (N,), from those before them."""
        return self.num_noisy + (columns - 1).clamp(min=0)
