"""Predictions of clean tokens with and without their condition, by as few calls of the denoiser as there can be.

Shapes: B rows, L sequence length, V vocabulary size, N selected positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.token_ids import never_written, noise_vocabulary, padding_id
from text_diffusers.models.language_model import LanguageModelDenoiser
from text_diffusers.pipelines.guidance import split_predictions
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_diffusion.blocks import Block
from text_diffusers.pipelines.text_diffusion.windows import Window
from text_diffusers.pipelines.text_endings import end_tensor


@dataclass
class View:
    """Rows that the denoiser is asked about.

    Attributes:
        batch: with the condition, or without it.
        rows: (B,) bool, those that are asked.
        positions: (B, L) bool, the tokens that are asked for.
    """

    batch: TextBatch
    rows: Tensor
    positions: Tensor


@dataclass
class TokenPredictor:
    """A denoiser of tokens, as the pipelines ask it.

    Args:
        denoiser: a token denoiser.
        tokenizer: its tokenizer.
        scheduler: which tells the denoiser the time, and whether the mask may be predicted.
    """

    denoiser: Any
    tokenizer: Any
    scheduler: Any

    def predict_pair(
        self,
        batch: TextBatch,
        timestep: float,
        positions: Tensor,
        part: Block | Window | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`(cond, uncond)`: (N, V) logits at the positions (B, L) with and without the condition.

        Each row is asked only what its scale of guidance needs; `uncond` is `None` where no row needs it. Rows
        without positions are left out of the call.

        Args:
            part: the block or window that is written, for a denoiser that reads from a cache.
        """
        times = self.scheduler.model_timesteps(timestep, batch.tokens)  # (B,)
        scales = batch.step_scales
        has_positions = positions.any(dim=1)
        unconditional = batch.unconditional
        if unconditional is None or (scales == 1).all():
            return self._call([View(batch, has_positions, positions)], times, part), None

        # The same tokens, in the same order, stand in both views; the rows around them may differ.
        written = batch.tokens[batch.editable]
        unconditional.tokens = unconditional.tokens.masked_scatter(unconditional.editable, written)
        same_positions = torch.zeros_like(unconditional.editable)
        same_positions = same_positions.masked_scatter(
            unconditional.editable, positions[batch.editable]
        )

        # Scale 0 needs no conditional prediction, and scale 1 no other.
        cond_rows = has_positions & (scales != 0)
        uncond_rows = has_positions & (scales != 1)
        views = [
            View(batch, cond_rows, positions),
            View(unconditional, uncond_rows, same_positions),
        ]
        logits = self._call(views, times, part)
        return split_predictions(logits, cond_rows, uncond_rows, counts=positions.sum(dim=1))

    def _call(self, views: Sequence[View], times: Tensor, part: Block | Window | None) -> Tensor:
        """Logits of the views, one after the other, in which padding and mask are impossible."""
        logits = self._logits(views, times, part)
        # A language model has excluded what it never writes.
        if isinstance(self.denoiser, LanguageModelDenoiser):
            return logits
        # Behind all tokens no noise is of them, and nothing needs to be copied.
        size = noise_vocabulary(self.tokenizer)
        among_tokens = [token for token in never_written(self.tokenizer) if token < size]
        if not among_tokens:
            return logits
        return logits.index_fill(-1, torch.tensor(among_tokens, device=logits.device), -torch.inf)

    def _logits(self, views: Sequence[View], times: Tensor, part: Block | Window | None) -> Tensor:
        """As `_call`, of all ids: from one call of the denoiser, or from one for each view that reads another past."""
        # No row needs a prediction, so the model is not called.
        if not any(view.rows.any() for view in views):
            return torch.zeros(0, self.denoiser.config.vocab_size, device=times.device)
        reads_rows = isinstance(part, Window) and part.approximation is None
        if part is None or reads_rows:
            return self._call_at_once(views, times)

        # Views that are read from caches have caches of their own, so each is a call.
        logits = []
        for index, view in enumerate(views):
            if not view.rows.any():
                continue
            positions = view.positions & view.rows.unsqueeze(1)
            if isinstance(part, Block):
                values = part.predict(self.denoiser, index, view.batch, positions, times)
            else:
                rows = view.rows
                values = part.predict(self.denoiser, index, view.batch, rows, positions, times)
            logits.append(values)
        return torch.cat(logits)

    def _call_at_once(self, views: Sequence[View], times: Tensor) -> Tensor:
        """One call for the rows of all views, padded to one length."""
        length = max(view.batch.tokens.shape[1] for view in views)

        # Padding on the right, up to the longest row of any view.
        def join(values: list[Tensor], filling: int = 0) -> Tensor:
            return torch.cat(
                [F.pad(value, (0, length - value.shape[1]), value=filling) for value in values]
            )

        # (rows of all views, longest L)
        tokens = join([view.batch.tokens[view.rows] for view in views], padding_id(self.tokenizer))
        attention_mask = join([view.batch.attention_mask[view.rows] for view in views])
        positions = join([view.positions[view.rows] for view in views])
        view_times = torch.cat([times[view.rows] for view in views])

        # Both views have labels, or none.
        labels = [
            view.batch.class_labels[view.rows]
            for view in views
            if view.batch.class_labels is not None
        ]
        # So do views of rows that are one block behind their beginnings, which are as long in each.
        options = {}
        past_lengths = views[0].batch.past_lengths
        if past_lengths is not None:
            options["past_lengths"] = torch.cat([past_lengths[view.rows] for view in views])
        output = self.denoiser(
            tokens,
            view_times,
            attention_mask,
            torch.cat(labels) if labels else None,
            positions=positions,
            **options,
        )
        return output.logits


def without_suppressed(
    logits: Tensor, batch: TextBatch, positions: Tensor, tokenizer: Any
) -> Tensor:
    """Logits (N, V) at `positions` (B, L) without the tokens that a call excludes, and ends that would come early."""
    if batch.suppressed_ids:
        excluded = torch.tensor(batch.suppressed_ids, device=logits.device)
        logits = logits.index_fill(-1, excluded, -torch.inf)
    if not len(batch.earliest_ends):
        return logits

    rows, columns = positions.nonzero(as_tuple=True)  # (N,)
    is_early = columns < batch.earliest_ends[rows]
    if not is_early.any():
        return logits
    is_end = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    is_end[end_tensor(batch, tokenizer)] = True
    return logits.masked_fill(is_early.unsqueeze(1) & is_end, -torch.inf)
