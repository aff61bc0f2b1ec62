"""Generate, continue and fill in text block by block: diffusion within a block, left to right between blocks.

Block diffusion (https://arxiv.org/abs/2503.09573). Shapes: B rows, L sequence length, R rows still written, n tokens
of a block, V vocabulary size, N selected positions.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.pipelines.text_batch import Canvas
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline


@dataclass
class BlockContext:
    """What the denoiser has read: keys and values in `cache`, unless None, of `tokens` (R, cache.length)."""

    cache: Any | None
    tokens: Tensor

    def keep(self, rows: Tensor):
        """Forget all rows but those that are true in `rows` (R,)."""
        if self.cache is not None and not rows.all():
            self.cache.keep(rows)
            self.tokens = self.tokens[rows]

    def recall(self, past: Tensor, block_length: int) -> int:
        """Number of tokens of `past` (R, finished) that need not be read: all blocks up to one that was changed."""
        if self.cache is None:
            return 0
        known = self.tokens.shape[1]
        same = (self.tokens == past[:, :known]).all(dim=0)
        if not same.all():
            self.cache.length = int(same.long().cumprod(dim=0).sum()) // block_length * block_length
            self.tokens = past[:, : self.cache.length]
        return self.cache.length

    def finish(self, past: Tensor):
        """The denoiser has now read all of `past` (R, finished)."""
        if self.cache is not None:
            self.cache.length, self.tokens = past.shape[1], past


@dataclass
class BlockCanvas(Canvas):
    """The block being denoised, its fields being (R, n), after the finished tokens `past` and their `past_mask`."""

    past: Tensor
    past_mask: Tensor
    context: BlockContext


class TextBlockDiffusionPipeline(TextDiffusionPipeline):
    """Text in blocks of the denoiser's `block_length`: all tokens of a block together, the blocks from left to right.

    Used like `TextDiffusionPipeline`, with these differences: `num_inference_steps` is that of each block, blocks
    without anything to write take no step, and writing stops with the block in which the last row ends. A token sees
    its own block and those before it, so a gap is filled in without a look at later blocks.

    Keys and values of finished blocks are computed once and kept, and a finished block is read in the same call that
    begins the next. Set `use_cache = False` to read everything in each call; the tokens are the same.

    Args:
        tokenizer, scheduler, lengths: as in `TextDiffusionPipeline`.
        denoiser: `denoiser(input_ids, timestep, attention_mask, class_labels, positions=..., cache=...).logits` with
            `config.block_length` and `new_cache`, such as a `TextTransformerModel` with blocks.

    Raises:
        ValueError: if the components disagree, or the denoiser has no blocks.
    """

    use_cache: bool = True

    def _denoise(self, canvas: Canvas, generators: list[torch.Generator]) -> Generator[float, None, None]:
        """Write `canvas.tokens` block by block, yielding each timestep after its step."""
        size, length = self.denoiser.config.block_length, canvas.tokens.shape[1]
        blocks = [slice(start, min(start + size, length)) for start in range(0, length, size)]
        blocks = [block for block in blocks if canvas.editable[:, block].any()]
        timesteps = self._token_scheduler.timesteps.tolist()
        device = canvas.tokens.device
        seeds = block_seeds(generators, -(-self._max_length // size))
        rows = torch.arange(len(canvas.tokens), device=device)  # (R,) still written
        context = BlockContext(self.denoiser.new_cache(length) if self.use_cache else None, canvas.tokens[:, :0])
        with self.progress_bar(total=len(blocks) * len(timesteps)) as bar:
            for block in blocks:
                writing = self._unfinished(canvas, block.start)[rows]
                rows = rows[writing]
                if not len(rows):
                    return
                context.keep(writing)
                self._token_scheduler.set_timesteps(len(timesteps), device=device)  # some keep state for a run
                number = block.start // size
                noise = [torch.Generator().manual_seed(seeds[row][number]) for row in rows.tolist()]
                for timestep in timesteps:
                    part = self._part(canvas, rows, block, context)
                    self._step(part, timestep, noise)
                    canvas.tokens = canvas.tokens.clone()
                    canvas.tokens[rows, block] = part.tokens
                    bar.update()
                    yield timestep

    def _unfinished(self, canvas: Canvas, start: int) -> Tensor:
        """(B,) bool: rows with something to write from `start` on, all before it being settled."""
        more = canvas.editable[:, start:].any(dim=1)
        if not canvas.ends_at_eos:
            return more
        ended = canvas.editable[:, :start] & (canvas.tokens[:, :start] == self._eos_token_id)
        return more & ~ended.any(dim=1)

    def _part(self, canvas: Canvas, rows: Tensor, block: slice, context: BlockContext) -> BlockCanvas:
        tokens, mask = canvas.tokens[rows], canvas.attention_mask[rows]
        return BlockCanvas(
            tokens=tokens[:, block],
            editable=canvas.editable[rows, block],
            attention_mask=mask[:, block],
            class_labels=None if canvas.class_labels is None else canvas.class_labels[rows],
            ends_at_eos=canvas.ends_at_eos,
            past=tokens[:, : block.start],
            past_mask=mask[:, : block.start],
            context=context,
        )

    def _predict(self, canvas: Any, timestep: float, positions: Tensor) -> Tensor:
        """(N, V) logits at the selected positions of a block, after reading what the cache does not have."""
        rows = positions.any(dim=1)
        if not rows.any():
            return torch.zeros(0, self.denoiser.config.vocab_size, device=positions.device)
        context, past = canvas.context, canvas.past
        known = context.recall(past, self.denoiser.config.block_length)
        unread = past[:, known:]
        if context.cache is not None and unread.shape[1]:
            rows = torch.ones_like(rows)  # what a row has not read now, it would lack later
        cache = context.cache if past.shape[1] else None
        if cache is not None and not rows.all():
            cache = cache.view(rows)
        tokens = torch.cat([unread, canvas.tokens], dim=1)[rows]
        times = self._token_scheduler.model_timesteps(timestep, canvas.tokens)[rows]  # (R,)
        if unread.shape[1]:
            clean = torch.zeros(len(tokens), unread.shape[1], dtype=times.dtype, device=times.device)
            times = torch.cat([clean, times.unsqueeze(1).expand(-1, canvas.tokens.shape[1])], dim=1)
        seen = torch.cat([canvas.past_mask, canvas.attention_mask], dim=1)[rows]
        labels = None if canvas.class_labels is None else canvas.class_labels[rows]
        wanted = torch.cat([torch.zeros_like(unread, dtype=torch.bool), positions], dim=1)[rows]
        logits = self.denoiser(tokens, times, seen, labels, positions=wanted, cache=cache).logits
        context.finish(past)
        return logits

    def _check_blocks(self, block_length: int | None):
        if block_length is None:
            raise ValueError("`denoiser` must be a model with `block_length`; else use `TextDiffusionPipeline`.")


def block_seeds(generators: list[torch.Generator], num_blocks: int) -> list[list[int]]:
    """A seed for each row and block: a block's noise does not depend on the blocks that other rows write."""
    return [torch.randint(2**62, (num_blocks,), generator=g, device=g.device).tolist() for g in generators]
