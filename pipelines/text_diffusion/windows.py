"""Writing from left to right with a bidirectional model: a window of tokens after the other, all of one together.

The model sees the whole row, with masks behind the window (LLaDA, https://arxiv.org/abs/2502.09992, section 2.4). What
lies outside of a window hardly changes while it is written, so it need not be read at every step: an approximation
(Fast-dLLM, https://arxiv.org/abs/2505.22618).

Shapes: B rows, L sequence length, R rows that are read, N selected positions, V vocabulary size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import padding_id
from text_diffusers.common.validation import is_int, require, require_int, require_key
from text_diffusers.models.language_cache import StaleCache
from text_diffusers.models.language_model import is_language_model
from text_diffusers.pipelines.calls.generation_defaults import APPROXIMATIONS
from text_diffusers.pipelines.scheduler_adapters import as_token_scheduler
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_endings import finished_rows


@dataclass
class StaleView:
    """What a model has read of the rows of a view, with or without the condition, in one window.

    Attributes:
        cache: of the rows that were read.
        rows: (B,) bool, which these are; `None` before any was read.
    """

    cache: StaleCache = field(default_factory=StaleCache)
    rows: Tensor | None = None


@dataclass
class Window:
    """The tokens of a batch that are written together.

    Attributes:
        batch: the whole rows.
        open: (B, L) bool, these tokens; `None` is all that is to be written.
        approximation: "prefix", the tokens before the window are read once; "dual", all tokens outside of it; `None`,
            the whole row is read at every step.
        views: of the rows with and without the condition.
    """

    batch: TextBatch
    open: Tensor | None = None
    approximation: str | None = None
    views: tuple[StaleView, StaleView] = field(default_factory=lambda: (StaleView(), StaleView()))

    def read(self) -> TextBatch:
        """The batch, of which only this window is written."""
        if self.open is None:
            return self.batch
        return replace(self.batch, window=self.open)

    def write(self, tokens: Tensor):
        self.batch.tokens = tokens

    def predict(
        self,
        denoiser: Any,
        index: int,
        batch: TextBatch,
        rows: Tensor,
        positions: Tensor,
        times: Tensor,
    ) -> Tensor:
        """(N, V) logits at `positions` (B, L) of the `rows` (B,) bool that are asked.

        Args:
            index: 0 with the condition, 1 without.
            batch: the rows of that view.
            times: (B,) that the denoiser is told.
        """
        view = self.views[index]
        if view.rows is None:
            assert self.open is not None
            # The same tokens, in the same order, are open in both views.
            open_tokens = torch.zeros_like(batch.editable)
            open_tokens = open_tokens.masked_scatter(batch.editable, self.open[self.batch.editable])
            is_read = open_tokens.any(dim=1)
            logits = self._call(denoiser, view.cache, batch, is_read, positions, times)
            view.rows = is_read
            view.cache.active = self._active(open_tokens)[is_read]
            return logits
        cache = view.cache.view(rows[view.rows])
        return self._call(denoiser, cache, batch, rows, positions, times)

    def _active(self, open_tokens: Tensor) -> Tensor:
        """(B, L) bool: the tokens that are read at every step."""
        if self.approximation == "dual":
            return open_tokens
        return open_tokens.cumsum(dim=1) > 0

    def _call(
        self,
        denoiser: Any,
        cache: StaleCache,
        batch: TextBatch,
        rows: Tensor,
        positions: Tensor,
        times: Tensor,
    ) -> Tensor:
        labels = None if batch.class_labels is None else batch.class_labels[rows]
        output = denoiser(
            batch.tokens[rows],
            times[rows],
            batch.attention_mask[rows],
            labels,
            positions=positions[rows],
            cache=cache,
        )
        return output.logits


def windows_to_write(
    batch: TextBatch, tokenizer: Any, masks: list[Tensor], approximation: str | None
) -> Iterator[Window]:
    """Each window, whose tokens `window_masks` gives, until all texts have ended."""
    for open_tokens in masks:
        # In a window all tokens are settled before the next one begins.
        if finished_rows(batch, tokenizer, revises_tokens=False).all():
            return
        yield Window(batch, open_tokens, approximation)


def window_masks(batch: TextBatch, block_length: int) -> list[Tensor]:
    """(B, L) bool for each window of up to `block_length` tokens of every row: its tokens.

    Windows are counted from the first token that a row is to write, so a text does not depend on its batch.

    Example:
        >>> from text_diffusers.pipelines.text_batch import lay_out
        >>> batch = lay_out([[7, None, None, None], [7, 7, None]], pad_token_id=0)
        >>> [mask.int().tolist() for mask in window_masks(batch, block_length=2)]
        [[[0, 1, 1, 0], [0, 0, 1, 0]], [[0, 0, 0, 1], [0, 0, 0, 0]]]
    """
    ranks = batch.editable.cumsum(dim=1) - 1  # (B, L)
    numbers = ranks // block_length
    last = int(numbers[batch.editable].max()) if batch.editable.any() else -1
    return [batch.editable & (numbers == number) for number in range(last + 1)]


def visible_masks(batch: TextBatch, tokenizer: Any) -> Tensor:
    """(B, L) tokens of a batch in which only those of its window can be masks, as a scheduler is to see them."""
    if batch.window is None:
        return batch.tokens
    mask = tokenizer.mask_token_id
    # Any other token will do: a scheduler looks at masks only.
    other = next(token for token in (padding_id(tokenizer), 0, 1) if token != mask)
    is_hidden = (batch.tokens == mask) & ~batch.window
    return batch.tokens.masked_fill(is_hidden, other)


# Arguments of a call


def check_windows(pipe: Any, block_length: Any, approximate_cache: Any):
    """Refuse a length of windows, or an approximation, that the parts of a pipeline cannot write by.

    Raises:
        ValueError: that names the argument.
    """
    require_int("block_length", block_length, 1, optional=True)
    require_key("approximate_cache", approximate_cache, APPROXIMATIONS, optional=True)
    own_length = pipe.block_length
    is_fixed = own_length is not None and not pipe.has_causal_past
    if is_fixed and block_length not in (None, own_length):
        raise ValueError(
            f"`block_length` must be None or {own_length}, that of the denoiser, which writes in blocks, "
            f"got {block_length}."
        )
    scheduler = as_token_scheduler(pipe.scheduler, pipe.tokenizer)
    corruption = getattr(scheduler, "corruption", None)
    if own_length is None and block_length is not None and corruption != "absorbing":
        raise ValueError(
            f"`block_length` needs a scheduler of absorbing noise, got {type(pipe.scheduler).__name__}."
        )
    if approximate_cache is not None and block_length is None and own_length is None:
        raise ValueError(
            f"`approximate_cache` goes with `block_length`, got {approximate_cache!r} without one."
        )
    if approximate_cache is not None and (
        own_length is not None or not is_language_model(pipe.denoiser)
    ):
        raise ValueError(
            "`approximate_cache` is for bidirectional language models of transformers; blocks have an exact cache, "
            f"`pipe.use_cache`, got {approximate_cache!r}."
        )


def token_ids(tokenizer: Any, tokens: Any) -> list[int]:
    """Ids of tokens that are given as ids or by their names.

    Raises:
        ValueError: if a tokenizer does not know one.
    """
    is_several = isinstance(tokens, Sequence) and not isinstance(tokens, str)
    require(is_several, "suppress_tokens", "a list of tokens or ids", tokens)
    if not len(tokens):
        return []
    vocabulary = tokenizer.get_vocab()
    ids = []
    for token in tokens:
        token_id = vocabulary.get(token, -1) if isinstance(token, str) else token
        is_known = is_int(token_id, 0) and token_id < len(tokenizer)
        require(is_known, "suppress_tokens", "tokens of the tokenizer, or their ids", token)
        ids.append(token_id)
    return ids
