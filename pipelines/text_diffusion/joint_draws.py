"""Predictions under controls, and tokens that a control draws together in the place of the scheduler.

Shapes: B rows, L sequence length, V vocabulary size, N selected positions.
"""

from typing import Any

import torch
from torch import Tensor

from text_diffusers.pipelines.guidance import TextState, apply_controls, draws_jointly
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_diffusion.prediction import without_suppressed
from text_diffusers.pipelines.text_endings import end_tensor


def check_texts(batch: TextBatch, state: TextState):
    """Refuse a call whose texts cannot become what a control demands, before any work.

    Args:
        state: before the first step, with all that is to be written open.

    Raises:
        ValueError: that names what is demanded.
    """
    for control in filter(draws_jointly, batch.controls):
        control.check_texts(state)


def controlled_prediction(
    logits: Tensor, state: TextState, batch: TextBatch, tokenizer: Any
) -> tuple[Tensor, Tensor | None]:
    """(N, V) logits at the selected positions of a state after its controls; and (N,) tokens if one draws them.

    Args:
        logits: of the open positions.

    Raises:
        ValueError: if a control leaves nothing to be drawn but what the call excludes.
    """
    positions = state.selected
    assert positions is not None
    # Clusters are never predicted, so no control must take them for words.
    if batch.first_cluster_id is not None:
        logits = logits.clone()
        logits[:, batch.first_cluster_id :] = -torch.inf
    others = [control for control in batch.controls if not draws_jointly(control)]
    logits = apply_controls(logits, state, others, "prediction")
    if len(others) == len(batch.controls):
        return (logits if positions is state.open else logits[positions[state.open]]), None

    # The last word has the control that draws. What the call excludes must not be drawn, and so goes before.
    (control,) = filter(draws_jointly, batch.controls)
    logits = without_suppressed(logits, batch, state.open, tokenizer)
    draw = control.draw(logits, state)
    check_drawn(draw.tokens, batch, positions, tokenizer)
    return draw.logits, draw.tokens


def check_drawn(tokens: Tensor, batch: TextBatch, positions: Tensor, tokenizer: Any):
    """Refuse tokens (N,), drawn at `positions` (B, L), that the call excludes: a control was left nothing else."""
    suppressed = torch.tensor(batch.suppressed_ids, dtype=tokens.dtype, device=tokens.device)
    is_suppressed = torch.isin(tokens, suppressed)
    if is_suppressed.any():
        name = tokenizer.convert_ids_to_tokens(int(tokens[is_suppressed][0]))
        raise ValueError(
            f"`suppress_tokens` must leave a text that `controls` allow, got {name!r}."
        )
    if not len(batch.earliest_ends):
        return

    rows, columns = positions.nonzero(as_tuple=True)  # (N,)
    is_end = torch.isin(tokens, end_tensor(batch, tokenizer))
    is_early = is_end & (columns < batch.earliest_ends[rows])
    if is_early.any():
        raise ValueError(
            "`min_new_tokens` must leave a text that `controls` allow, but none is so long, got an end in column "
            f"{int(columns[is_early][0])}."
        )
