"""The rows of a call without their condition, from which classifier-free guidance leads away.

Shapes: B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from text_diffusers.pipelines.calls.labels import masked, unconditional_labels
from text_diffusers.pipelines.row_limits import RowLimits
from text_diffusers.pipelines.text_batch import LEFT_PADDING, Row, TextBatch, lay_out


@dataclass
class ConditionSpans:
    """The columns of a row in which its conditions stand, each from the first to the one behind the last.

    Attributes:
        label: the prompt of its label; empty for a label that is told to the denoiser.
        prompt: prompt, source or conversation.
    """

    label: tuple[int, int]
    prompt: tuple[int, int]


def condition_spans(
    rows: list[Row], frames: list[list[int]], source_frame: bool
) -> list[ConditionSpans]:
    """Where the conditions of each row stand.

    Args:
        rows: up to where they are continued.
        frames: with the prompts of labels, if rows begin with such.
        source_frame: whether the rows are "start source end", of which start and end are no condition.
    """
    spans = []
    for index, row in enumerate(rows):
        begin = row.count(LEFT_PADDING)
        behind_frame = begin + len(frames[index]) if frames else begin
        label = (begin + 1, behind_frame - 1) if frames else (begin, begin)
        prompt = (begin + 1, len(row) - 1) if source_frame else (behind_frame, len(row))
        spans.append(ConditionSpans(label, prompt))
    return spans


def unconditional_view(
    rows: list[Row],
    *,
    spans: Sequence[ConditionSpans],
    beginnings: Sequence[int],
    negatives: Sequence[Row],
    class_labels: Tensor | None,
    guide_by: str,
    limits: RowLimits,
    pad_token_id: int,
    mask_token_id: int,
    device: torch.device | str | None,
) -> TextBatch:
    """The same tokens to write in rows without the condition.

    Args:
        rows: of the batch, with `None` for what is to be written.
        spans: of their conditions, in rows and negatives alike but for the prompt.
        beginnings: number of tokens of each row that are its prompt or source, and what stands before it.
        negatives: what stands there instead, if guidance is by the prompt.
        class_labels: (B,) of the batch.

    Raises:
        ValueError: if such a row does not fit the model.
    """
    # The negative prompt takes the place of the prompt or source; what is to be written stays.
    if guide_by in ("prompt", "both"):
        if limits.block_length is not None or limits.one_block:
            raise ValueError(
                '`guide_by` must be "label" or "masked_prompt" for a denoiser with blocks, whose text stands at the '
                "same place with and without its condition: masks can stand for its prompt, but it cannot be left out "
                f"or give way to a `negative_prompt`; got {guide_by!r}."
            )
        rows = [
            [*negative, *row[beginning:]]
            for row, beginning, negative in zip(rows, beginnings, negatives, strict=True)
        ]

    # Masks in the place of a label or a prompt leave everything where it is.
    if guide_by in ("label", "both"):
        rows = [
            masked(row, span.label, mask_token_id) for row, span in zip(rows, spans, strict=True)
        ]
    if guide_by == "masked_prompt":
        rows = [
            masked(row, span.prompt, mask_token_id) for row, span in zip(rows, spans, strict=True)
        ]

    limits.check_length(max(len(row) for row in rows))
    labels = unconditional_labels(class_labels, guide_by, limits)
    return lay_out(rows, pad_token_id, device, labels)
