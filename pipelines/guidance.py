"""What guidance in any pipeline has in common: the combination of two predictions, controls, and what these are shown.

Shapes: B rows, L sequence length, V vocabulary size, N tokens that are still open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.validation import check_strings

CONDITIONS = ("label", "prompt", "both")


@dataclass
class TextState:
    """What a control is shown of the texts that are being written.

    Attributes:
        tokens: (B, L), settled tokens, and noise or masks where `open`.
        open: (B, L) bool, the N tokens that are still to be decided.
        settled: (B, L) bool, tokens that will not change.
        attention_mask: (B, L), 1 at real tokens.
        starts: index of the first token of each text, its prompt included.
        timestep: what the denoiser is told.
        progress: share of the steps that are done, in [0, 1).
        last: whether this is the last step.
        selected: (B, L) bool, the open tokens that this step draws; `None` if it is not known.
        mask_token_id: the id of the mask, if the tokenizer has one.
    """

    tokens: Tensor
    open: Tensor
    settled: Tensor
    attention_mask: Tensor
    starts: list[int]
    timestep: float
    progress: float
    last: bool
    selected: Tensor | None = None
    mask_token_id: int | None = None


def guide(cond: Tensor, uncond: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance, `uncond + scale * (cond - uncond)`, all of them (N, ...) but for `scale`, (N,).

    Scale 1 is `cond` and 0 is `uncond` to the last bit. On logits or log-probabilities -inf is a token that cannot be:
    one that `cond` excludes stays excluded, one that only `uncond` excludes keeps its value in `cond`.
    """
    scale = scale.view(-1, *[1] * (cond.ndim - 1)).to(cond)
    guided = torch.lerp(uncond, cond, scale)
    if guided.sum().isfinite():  # one cheap pass instead of three where every token can be
        return guided
    guided = torch.lerp(torch.where(uncond == -torch.inf, cond, uncond), cond, scale)
    guided = torch.where(cond == -torch.inf, cond, guided)
    return torch.where(scale == 0, uncond, guided)


def as_controls(controls: Any) -> list:
    """A control, several or none as a list.

    Raises:
        ValueError: if one of them cannot be called on logits.
    """
    several = isinstance(controls, Sequence)
    found = [] if controls is None else list(controls) if several else [controls]
    for control in found:
        if not callable(control):
            raise ValueError(
                f"`controls` must be controls, such as those of text_diffusers.guidance.controls, got {control!r}."
            )
    return found


def tilt(logits: Tensor, state: TextState, controls: list, acts_on: str) -> Tensor:
    """(N, V) of the open tokens after each control that acts in this step on "prediction" or "posterior", in order."""
    for control in controls:
        if acts(control, state.progress, acts_on):
            logits = control(logits, state)
    return logits


def acts(control: Any, progress: float, on: str) -> bool:
    """Whether a control acts on "prediction" or "posterior", and after this share of the steps."""
    return is_due(control, progress) and getattr(control, "acts_on", "prediction") == on


def is_due(control: Any, progress: float) -> bool:
    """Whether this share of the steps is between a control's `start` and `stop`, if it has these."""
    return getattr(control, "start", 0.0) <= progress < getattr(control, "stop", 1.0)


def planned_lengths(controls: list, generators: list[torch.Generator]) -> list[int] | None:
    """Number of tokens of each text, if a control fixes it.

    Raises:
        ValueError: if two of them do.
    """
    plans = [control.plan_lengths(generators) for control in controls if hasattr(control, "plan_lengths")]
    if len(plans) > 1:
        raise ValueError(f"`controls` must fix the length of a text once, got {len(plans)} controls that do.")
    return plans[0] if plans else None


def refuse_two_lengths(controls: list, **others: Any):
    """Raise a ValueError if a control fixes the length of a text, and so does one of the arguments `others`."""
    planned = any(hasattr(control, "plan_lengths") for control in controls)
    if planned and any(value is not None for value in others.values()):
        *first, last = (f"`{name}`" for name in others)
        raise ValueError(f"`controls` that fix the length exclude {', '.join(first)} and {last}, which also do.")


def guided_condition(prompt, text, source, class_labels, negative_prompt, guide_by: str | None) -> str | None:
    """The condition that guidance strengthens, "label", "prompt" (also a source) or "both", or `None` without one.

    Raises:
        ValueError: if these arguments of a pipeline do not fit each other.
    """
    for name, value in (("source", source), ("negative_prompt", negative_prompt)):
        if value is not None:
            check_strings(name, value)
    if source is not None and (prompt is not None or text is not None):
        raise ValueError("`source` excludes `prompt` and `text`: what is written from it begins by itself.")
    if text is not None and negative_prompt is not None:
        raise ValueError("`negative_prompt` goes with `prompt` or `source`; `text` has no beginning to replace.")
    if guide_by is not None and guide_by not in CONDITIONS:
        raise ValueError(f"`guide_by` must be one of {CONDITIONS}, got {guide_by!r}.")
    prompted = prompt is not None or source is not None or negative_prompt is not None
    by_label = class_labels is not None
    if (guide_by in ("label", "both") and not by_label) or (guide_by in ("prompt", "both") and not prompted):
        raise ValueError(f"`guide_by`={guide_by!r} needs `class_labels` or a `prompt` or `source` to that effect.")
    if guide_by is None and by_label:
        return "label" if negative_prompt is None else "both"
    return guide_by or ("prompt" if prompted else None)


def scales_by_row(
    guidance_scale: float | Sequence[float], num_texts: int, repeats: int, name: str = "guidance_scale"
) -> list[float]:
    """One scale a row, from one or one a text, of the argument `name`."""
    several = isinstance(guidance_scale, Sequence)
    scales = list(guidance_scale) if several else [guidance_scale] * num_texts
    if len(scales) != num_texts:
        raise ValueError(f"`{name}` must be one or {num_texts}, one a text, got {len(scales)}.")
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) < float("inf"):
            raise ValueError(f"`{name}` must be finite numbers, got {guidance_scale!r}.")
    return [float(scale) for scale in scales for _ in range(repeats)]


def check_interval(guidance_start: float, guidance_stop: float):
    if not 0 <= guidance_start <= guidance_stop <= 1:
        raise ValueError(
            "`guidance_start` and `guidance_stop` must be shares of the steps, 0 <= start <= stop <= 1, "
            f"got {guidance_start!r} and {guidance_stop!r}."
        )


def spread(values: Tensor, at: Tensor, others: Tensor, others_at: Tensor) -> Tensor:
    """(N, V) with `values` where `at` (N,) is true, and `others` elsewhere, which are there where `others_at` is."""
    if at.all():
        return values
    joined = values.new_empty(len(at), values.shape[1])
    joined[others_at] = others
    joined[at] = values
    return joined
