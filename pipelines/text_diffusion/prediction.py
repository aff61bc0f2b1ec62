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
from text_diffusers.models.language_model import as_denoiser, is_masked_lm
from text_diffusers.pipelines.guidance import split_predictions
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_diffusion.blocks import Block


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
        denoiser: a token denoiser, or a masked LM of transformers.
        tokenizer: its tokenizer.
        scheduler: which tells the denoiser the time.
    """

    denoiser: Any
    tokenizer: Any
    scheduler: Any

    def predict_pair(
        self, batch: TextBatch, timestep: float, positions: Tensor, block: Block | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`(cond, uncond)`: (N, V) logits at the positions (B, L) with and without the condition.

        Each row is asked only what its scale of guidance needs; `uncond` is `None` where no row needs it. Rows
        without positions are left out of the call.

        Args:
            block: the block that the batch is, for a denoiser that reads the past from a cache.
        """
        times = self.scheduler.model_timesteps(timestep, batch.tokens)  # (B,)
        scales = batch.step_scales
        has_positions = positions.any(dim=1)
        unconditional = batch.unconditional
        if unconditional is None or (scales == 1).all():
            return self._call([View(batch, has_positions, positions)], times, block), None

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
        logits = self._call(views, times, block)
        return split_predictions(logits, cond_rows, uncond_rows, counts=positions.sum(dim=1))

    def _call(self, views: Sequence[View], times: Tensor, block: Block | None) -> Tensor:
        """Logits of the views, one after the other, in which padding and mask are impossible."""
        logits = self._logits(views, times, block)
        # Behind all tokens no noise is of them, and nothing needs to be copied; a masked LM predicts no special token.
        size = noise_vocabulary(self.tokenizer)
        among_tokens = [token for token in never_written(self.tokenizer) if token < size]
        if not among_tokens or is_masked_lm(self.denoiser):
            return logits
        return logits.index_fill(-1, torch.tensor(among_tokens, device=logits.device), -torch.inf)

    def _logits(self, views: Sequence[View], times: Tensor, block: Block | None) -> Tensor:
        """As `_call`, of all ids: from one call of the denoiser, or from one for each view that reads another past."""
        # No row needs a prediction, so the model is not called.
        if not any(view.rows.any() for view in views):
            return torch.zeros(0, self.denoiser.config.vocab_size, device=times.device)
        if block is None:
            return self._call_at_once(views, times)

        # Views of a block have pasts of their own, so each is a call.
        logits = []
        for view, context in zip(views, (block.context, block.unconditional_context), strict=False):
            if view.rows.any():
                positions = view.positions & view.rows.unsqueeze(1)
                logits.append(block.predict(self.denoiser, view.batch, context, positions, times))
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
        denoiser = as_denoiser(self.denoiser, self.tokenizer)
        output = denoiser(
            tokens,
            view_times,
            attention_mask,
            torch.cat(labels) if labels else None,
            positions=positions,
        )
        return output.logits
