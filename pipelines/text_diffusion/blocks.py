"""Block diffusion: blocks from left to right, all tokens of a block together (https://arxiv.org/abs/2503.09573).

Keys and values of finished blocks are computed once and kept, and a finished block is read in the same call that
begins the next.

Shapes: B rows, L sequence length, R rows that are still written, n tokens of a block, V vocabulary size, N selected
positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_endings import written_ends


@dataclass
class BlockContext:
    """The past that a denoiser has read.

    Attributes:
        cache: its keys and values; `None` to read everything in each call.
        tokens: (R, cache.length) of which these are.
        unit: tokens that are kept or forgotten together: those of a block, or single ones of a causal past.
    """

    cache: Any | None
    tokens: Tensor
    unit: int = 1

    def keep(self, rows: Tensor):
        """Forget all rows but those that are true in `rows` (R,)."""
        if self.cache is not None and not rows.all():
            self.cache.keep(rows)
            self.tokens = self.tokens[rows]

    def reuse(self, past: Tensor) -> int:
        """Number of tokens of `past` (R, finished) that need not be read: all up to one that was changed."""
        if self.cache is None:
            return 0
        num_read = self.tokens.shape[1]
        # A callback may have changed finished tokens: what comes after them must be read again.
        same = (self.tokens == past[:, :num_read]).all(dim=0)  # (cache.length,)
        if not same.all():
            num_same = int(same.long().cumprod(dim=0).sum())
            self.cache.length = num_same // self.unit * self.unit
            self.tokens = past[:, : self.cache.length]
        return self.cache.length

    def forget_last(self):
        """Forget the last token that was read."""
        if self.cache is not None:
            self.cache.length -= 1

    def finish(self, past: Tensor):
        """Note that the denoiser has now read all of `past` (R, finished)."""
        if self.cache is not None:
            self.cache.length = past.shape[1]
            self.tokens = past


@dataclass
class Block:
    """A block of those rows of a batch that are still written, with the finished tokens before it.

    Attributes:
        batch: the whole rows.
        rows: (R,) indices of the rows.
        columns: the block's place in them.
        generators: one for each of the rows.
        contexts: what the denoiser has read of the rows, with and without the condition.
    """

    batch: TextBatch
    rows: Tensor
    columns: slice
    generators: list[torch.Generator]
    contexts: list[BlockContext]

    def past(self, view: TextBatch) -> Tensor:
        """(R, finished) tokens before the block: those that were written, and the given ones of a view."""
        columns = slice(self.columns.start)
        is_written = self.batch.editable[self.rows, columns]
        written = self.batch.tokens[self.rows, columns]
        return torch.where(is_written, written, view.tokens[self.rows, columns])

    def read(self) -> TextBatch:
        """The block as a batch of its own, its tensors being (R, n)."""
        unconditional = self.batch.unconditional
        if unconditional is not None:
            unconditional = self._part_of(unconditional)
        return replace(self._part_of(self.batch), unconditional=unconditional)

    def _part_of(self, batch: TextBatch) -> TextBatch:
        rows = self.rows
        class_labels = batch.class_labels
        if class_labels is not None:
            class_labels = class_labels[rows]

        # The view without the condition has no scales and ends of its own.
        scales = batch.scales
        if len(scales):
            scales = scales[rows]
        earliest_ends = batch.earliest_ends
        if len(earliest_ends):
            earliest_ends = earliest_ends[rows] - self.columns.start
        return replace(
            batch,
            tokens=batch.tokens[rows, self.columns],
            editable=batch.editable[rows, self.columns],
            attention_mask=batch.attention_mask[rows, self.columns],
            class_labels=class_labels,
            scales=scales,
            earliest_ends=earliest_ends,
            generators=self.generators,
        )

    def write(self, tokens: Tensor):
        """Put the block's tokens (R, n) into the rows; tensors that were handed out before stay as they are."""
        self.batch.tokens = self.batch.tokens.clone()
        self.batch.tokens[self.rows, self.columns] = tokens

    def predict(
        self,
        denoiser: Any,
        index: int,
        part: TextBatch,
        positions: Tensor,
        times: Tensor,
    ) -> Tensor:
        """(N, V) logits at `positions` (R, n) of the block, after reading the past that the cache does not have.

        Args:
            index: 0 with the condition, 1 without.
            part: the block in that view.
            times: (R,) that the denoiser is told of the block; the past is clean.
        """
        # 1. Only rows with positions are asked, and only for what the cache does not have.
        rows = positions.any(dim=1)
        context = self.contexts[index]
        view = (self.batch, self.batch.unconditional)[index]
        assert view is not None
        past = self.past(view)  # (R, finished)
        num_cached = context.reuse(past)
        if context.cache is not None and num_cached < past.shape[1]:
            rows = torch.ones_like(rows)  # what a row has not read now, it would lack later

        # A shifted prediction is read off the state before it, so the last finished token is read once more.
        if num_cached and reads_last_again(denoiser, positions, past.shape[1] - num_cached):
            num_cached -= 1
            context.forget_last()
        unread = past[:, num_cached:]

        # The first block has no past.
        cache = context.cache if past.shape[1] else None
        if cache is not None and not rows.all():
            cache = cache.view(rows)

        # 2. The unread past stands before the block, clean and without positions that are asked for.
        tokens = torch.cat([unread, part.tokens], dim=1)[rows]
        times = times[rows]
        if unread.shape[1]:
            clean_times = torch.zeros(
                len(tokens), unread.shape[1], dtype=times.dtype, device=times.device
            )
            times = torch.cat(
                [clean_times, times.unsqueeze(1).expand(-1, part.tokens.shape[1])], dim=1
            )

        # The mask is that of all tokens that can be seen, whether read now or before.
        past_mask = view.attention_mask[self.rows, : self.columns.start]
        attention_mask = torch.cat([past_mask, part.attention_mask], dim=1)[rows]
        labels = None if part.class_labels is None else part.class_labels[rows]
        query_positions = torch.cat([torch.zeros_like(unread, dtype=torch.bool), positions], dim=1)[
            rows
        ]

        # 3. One call reads both
        output = denoiser(
            tokens, times, attention_mask, labels, positions=query_positions, cache=cache
        )
        context.finish(past)
        return output.logits


def reads_last_again(denoiser: Any, positions: Tensor, num_unread: int) -> bool:
    """Whether the last token that was read is needed once more, for its state.

    Args:
        positions: (R, n) bool, the tokens of the block that are asked for.
        num_unread: tokens before the block that were not read yet.
    """
    if not getattr(denoiser, "reads_state_before", False):
        return False
    if not getattr(denoiser, "has_causal_past", False):
        return True
    # The state that predicts the first token of a block is that of the token before it.
    return num_unread == 0 and bool(positions[:, 0].any())


def blocks_of_call(pipe: Any, block_length: int | None) -> int | None:
    """Tokens of a block of the denoiser in a call with this `block_length`; `None` for one without blocks."""
    # Blocks over a causal past may have any length.
    if pipe.has_causal_past and block_length is not None:
        return block_length
    return pipe.block_length


def editable_blocks(batch: TextBatch, block_length: int) -> list[slice]:
    """The blocks with something to write, from left to right."""
    length = batch.tokens.shape[1]
    blocks = [
        slice(start, min(start + block_length, length)) for start in range(0, length, block_length)
    ]
    return [block for block in blocks if batch.editable[:, block].any()]


def blocks_to_write(
    batch: TextBatch,
    denoiser: Any,
    columns: list[slice],
    max_length: int,
    tokenizer: Any,
    use_cache: bool,
) -> Iterator[Block]:
    """Each block with the rows that are still written when it is its turn; none once all texts have ended.

    Args:
        columns: see `editable_blocks`.
        max_length: the longest row; a block's noise depends on it, and not on the rows of this batch.
        tokenizer: which says, with the batch, what ends a text.
        use_cache: keep keys and values of finished blocks.
    """
    block_length = denoiser.config.block_length
    length = batch.tokens.shape[1]
    # Seeds of all blocks are drawn before any text ends, as which rows go on is not known yet.
    seeds = block_seeds(batch.generators, -(-max_length // block_length))
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)

    # Each view of the rows, with and without the condition, is read into a cache of its own, which takes no memory
    # before it is read.
    contexts = [new_context(batch, denoiser, length, use_cache) for _ in range(2)]

    for block in columns:
        # Rows whose text has ended leave the batch.
        is_unfinished = unfinished_rows(batch, block.start, tokenizer)[rows]
        rows = rows[is_unfinished]
        if not len(rows):
            return
        for context in contexts:
            context.keep(is_unfinished)
        # A row draws the same noise in a block, whichever rows are still there.
        number = block.start // block_length
        generators = [torch.Generator().manual_seed(seeds[row][number]) for row in rows.tolist()]
        yield Block(batch, rows, block, generators, contexts)


def new_context(batch: TextBatch, denoiser: Any, length: int, use_cache: bool) -> BlockContext:
    # Some masked LMs take none; what is read anew in each call is the same.
    takes_cache = getattr(denoiser, "takes_cache", True)
    cache = denoiser.new_cache(length) if use_cache and takes_cache else None
    knows_blocks = not getattr(denoiser, "has_causal_past", False)
    unit = denoiser.config.block_length if knows_blocks else 1
    return BlockContext(cache, batch.tokens[:, :0], unit)


def unfinished_rows(batch: TextBatch, start: int, tokenizer: Any) -> Tensor:
    """(B,) bool: rows with something to write from `start` on, all before it being settled."""
    has_more = batch.editable[:, start:].any(dim=1)
    if not batch.ends_at_eos:
        return has_more
    return has_more & ~written_ends(batch, tokenizer)[:, :start].any(dim=1)


def block_seeds(generators: list[torch.Generator], num_blocks: int) -> list[list[int]]:
    """A seed for each row and block: a block's noise does not depend on the blocks that other rows write."""
    return [
        torch.randint(2**62, (num_blocks,), generator=generator, device=generator.device).tolist()
        for generator in generators
    ]
