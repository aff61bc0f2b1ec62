"""Rows of tokens as pieces of text, and the step at which each token settled.

Shapes: K steps, L tokens of a row.
"""

import os
from collections.abc import Sequence
from typing import Any

HIDDEN = "· · ·"
# From the first steps to the last: viridis, which is also read in grey.
COLORS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
HIDDEN_COLOR = "#c9c9d4"
Spans = list[tuple[str, str | None]]


def pieces(tokenizer: Any, row: Sequence[int]) -> list[str]:
    """The text of each token (L), which put together are the text of the row; special tokens are empty.

    A piece is what the text gains by its token, so that characters of several bytes stay whole.
    """
    special, mask = set(tokenizer.all_special_ids), tokenizer.mask_token_id
    found, so_far, text, last = [""] * len(row), "", "", 0
    for place, token in enumerate(row):
        before, text = text, tokenizer.decode(row[: place + 1], clean_up_tokenization_spaces=False)
        if token in special:  # bytes that never became a character belong to the token before
            found[last] += before[len(so_far) :]
            found[place] = f" {HIDDEN}" if token == mask else ""
            so_far = text
            continue
        whole, last = text.rstrip("\ufffd"), place
        found[place] = whole[len(os.path.commonprefix([so_far, whole])) :]
        so_far = max(so_far, whole, key=len)
    if found:
        found[last] += text[len(so_far) :]
    return found


def settled_steps(frames: Sequence[Sequence[int]]) -> list[int]:
    """The step, from 1, that last changed each of L tokens, of K + 1 frames; 0 for a token that never changed."""
    last = frames[-1]
    changed = [0] * len(last)
    for step in range(1, len(frames)):
        for place in range(len(last)):
            if frames[step][place] != frames[step - 1][place]:
                changed[place] = step
    return changed


def groups(num_steps: int) -> list[tuple[int, int]]:
    """At most as many ranges (first, last) of steps as there are colours, as even as can be."""
    count = min(len(COLORS), num_steps)
    edges = [round(place * num_steps / count) for place in range(count + 1)]
    return [(low + 1, high) for low, high in zip(edges, edges[1:], strict=False)]


def group_name(group: tuple[int, int]) -> str:
    return str(group[0]) if group[0] == group[1] else f"{group[0]}–{group[1]}"


def color_map(num_steps: int) -> dict[str, str]:
    """The colour of each range of steps, and of what is hidden."""
    found = groups(num_steps)
    spread = [COLORS[round(place * (len(COLORS) - 1) / max(1, len(found) - 1))] for place in range(len(found))]
    return {group_name(group): color for group, color in zip(found, spread, strict=True)} | {HIDDEN: HIDDEN_COLOR}


def visible_length(tokenizer: Any, row: Sequence[int]) -> int:
    """How many tokens of a row belong to its text: those up to an end that no mask precedes."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    for place, token in enumerate(row):
        if token == tokenizer.mask_token_id:
            break
        if place and token == end:  # the first token may be the same one, as a start
            return place
    return len(row)


def spans(tokenizer: Any, frames: Sequence[Sequence[int]], num_steps: int, ends: bool = True) -> Spans:
    """The last of the frames of one row as `gr.HighlightedText` takes it: pieces with their range of steps.

    With `ends` the text ends where the model wrote an end; a text that was filled in has none.
    """
    row = frames[-1]
    steps, length = settled_steps(frames), visible_length(tokenizer, row) if ends else len(row)
    names = {step: group_name(group) for group in groups(num_steps) for step in range(group[0], group[1] + 1)}
    shown: Spans = []
    for piece, token, step in zip(pieces(tokenizer, row)[:length], row, steps, strict=False):
        if piece:
            shown.append((piece, HIDDEN if token == tokenizer.mask_token_id else names.get(step)))
    return stripped(shown)


def stripped(shown: Spans) -> Spans:
    """Without the blank that a text begins with."""
    return [(shown[0][0].lstrip(), shown[0][1]), *shown[1:]] if shown else []


def stacked(texts: Sequence[Spans]) -> Spans:
    """Several texts one below the other."""
    found: Spans = []
    for text in texts:
        found += [("\n\n", None)] * bool(found) + (text or [("—", None)])
    return found
