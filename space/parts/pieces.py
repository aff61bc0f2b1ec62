"""Rows of tokens as pieces of text, each in the colour of the step at which it settled.

Shapes: K steps, L tokens of a row.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

from text_diffusers.common.token_ids import end_ids
from text_diffusers.pipelines.given_text import GivenText

HIDDEN = "· · ·"
# From the first steps to the last: viridis, which is also read in grey.
COLORS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
HIDDEN_COLOR = "#c9c9d4"

# As `gr.HighlightedText` takes them: a text and the name of its colour.
Spans = list[tuple[str, str | None]]
Mark = TypeVar("Mark")


def pieces(tokenizer: Any, row: Sequence[int]) -> list[str]:
    """The text of each of L tokens, which put together are the text of the row; special tokens are empty.

    A piece is what the text gains by its token, so that characters of several bytes stay whole.
    """
    # Names of special tokens are no text, though they are decoded like it.
    special_ids = set(tokenizer.all_special_ids)
    token_pieces = [""] * len(row)
    text = ""  # of all tokens so far
    shown = ""  # as much of it as the pieces hold
    last_word = 0  # the last token that is not special

    for place, token in enumerate(row):
        text_before = text
        text = tokenizer.decode(row[: place + 1], clean_up_tokenization_spaces=False)

        if token in special_ids:
            # Bytes that never became a character belong to the token before.
            token_pieces[last_word] += text_before[len(shown) :]
            token_pieces[place] = f" {HIDDEN}" if token == tokenizer.mask_token_id else ""
            shown = text
            continue

        # A character is shown with the token that completes its bytes.
        complete = text.rstrip("\ufffd")
        prefix = os.path.commonprefix([shown, complete])
        piece = complete[len(prefix) :]
        # Bytes that it does not complete belong to the token before.
        token_pieces[place] = piece.lstrip("\ufffd")
        token_pieces[last_word] += piece[: len(piece) - len(token_pieces[place])]
        shown = max(shown, complete, key=len)
        last_word = place

    # Bytes at the end that never became a character
    if token_pieces:
        token_pieces[last_word] += text[len(shown) :]
    return token_pieces


def around_given(token_pieces: Sequence[str], given: GivenText) -> list[tuple[str, int | None]]:
    """The pieces of the tokens that were written with their columns, and the given characters between them.

    Args:
        token_pieces: of L tokens, from `pieces`.
    """
    shown: list[tuple[str, int | None]] = [(given.pieces[0], None)]
    for index, (first, end) in enumerate(given.runs):
        end = len(token_pieces) if end is None else end
        written = list(token_pieces[first:end])

        # A blank that was given is not shown once more, unless the tokens before hold it too.
        holds_blank = "".join(token_pieces[:first])[-1:].isspace()
        if given.pieces[index][-1:].isspace() and (given.has_masks or not holds_blank) and written:
            written[0] = written[0].removeprefix(" ")
        shown += zip(written, range(first, end), strict=True)
        shown.append((given.pieces[index + 1], None))
    return shown


def settled_steps(frames: Sequence[Sequence[int]]) -> list[int]:
    """The step, from 1, that last changed each of L tokens.

    Args:
        frames: K + 1 rows of L tokens, pure noise first.

    Returns:
        L steps; 0 for a token that never changed.

    Example:
        >>> from text_diffusers.space.parts.pieces import settled_steps
        >>> settled_steps([[7, 0, 0], [7, 0, 5], [7, 4, 5]])
        [0, 2, 1]
    """
    # Later changes overwrite earlier ones, as a token may be taken back and written again.
    steps = [0] * len(frames[-1])
    for step in range(1, len(frames)):
        for place in range(len(steps)):
            if frames[step][place] != frames[step - 1][place]:
                steps[place] = step
    return steps


def step_ranges(num_steps: int) -> list[range]:
    """The steps from 1 in at most as many ranges as there are colours, as even as can be."""
    # With fewer steps than colours each step has its own.
    count = min(len(COLORS), num_steps)
    edges = [round(place * num_steps / count) for place in range(count + 1)]
    return [range(edges[place] + 1, edges[place + 1] + 1) for place in range(count)]


def range_name(steps: range) -> str:
    return f"{steps[0]}–{steps[-1]}" if len(steps) > 1 else str(steps[0])


def color_map(num_steps: int) -> dict[str, str]:
    """The colour of each range of steps, and of what is hidden."""
    ranges = step_ranges(num_steps)
    colors = {}
    for place, steps in enumerate(ranges):
        # The first and the last colour are always used.
        color = round(place * (len(COLORS) - 1) / max(1, len(ranges) - 1))
        colors[range_name(steps)] = COLORS[color]
    colors[HIDDEN] = HIDDEN_COLOR
    return colors


def visible_length(
    tokenizer: Any, row: Sequence[int], first: int = 1, more_ends: Sequence[int] = ()
) -> int:
    """The number of tokens of a row up to its end, if no mask precedes that.

    Args:
        first: column of the first token that may be an end; by default behind the start, which may be the same token.
        more_ends: tokens that end a text beside the tokenizer's own.
    """
    ends = {*end_ids(tokenizer), *more_ends}
    for place in range(first, len(row)):
        if row[place] == tokenizer.mask_token_id:
            break
        if row[place] in ends:
            return place
    return len(row)


def settled_pieces(
    tokenizer: Any,
    frames: Sequence[Sequence[int]],
    ends: bool = True,
    given: GivenText | None = None,
    more_ends: Sequence[int] = (),
) -> list[tuple[str, int | None]]:
    """The last frame of one row, in pieces with the step that settled them; 0 for what was given, `None` for a mask.

    Args:
        frames: rows of L tokens, pure noise first.
        ends: whether the text ends where the model wrote an end; one that was filled in is shown whole.
        given: the characters that the text keeps, whatever its tokens make of them.
        more_ends: tokens that end a text beside the tokenizer's own.
    """
    row = frames[-1]
    length = len(row)
    if ends:
        first = given.runs[0][0] if given is not None else 1
        length = visible_length(tokenizer, row, first, more_ends)
    token_pieces = pieces(tokenizer, row)
    token_steps = settled_steps(frames)

    placed: list[tuple[str, int | None]] = [
        (piece, place) for place, piece in enumerate(token_pieces)
    ]
    if given is not None:
        placed = around_given(token_pieces, given)

    shown: list[tuple[str, int | None]] = []
    for piece, place in placed:
        # Special tokens other than the mask are not shown, nor what stands behind the end.
        if not piece or (place is not None and place >= length):
            continue
        hidden = place is not None and row[place] == tokenizer.mask_token_id
        step = 0 if place is None else token_steps[place]
        shown.append((piece, None if hidden else step))
    return shown if given is not None and given.pieces[0] else without_first_blank(shown)


def spans(
    tokenizer: Any,
    frames: Sequence[Sequence[int]],
    num_steps: int,
    ends: bool = True,
    given: GivenText | None = None,
    more_ends: Sequence[int] = (),
) -> Spans:
    """As `settled_pieces`, with the names of the ranges of steps, which are also the keys of their colours.

    Args:
        num_steps: that the colours are spread over.
    """
    names = {step: range_name(steps) for steps in step_ranges(num_steps) for step in steps}
    shown: Spans = []
    for piece, step in settled_pieces(tokenizer, frames, ends, given, more_ends):
        # What was given has no step, and no colour.
        shown.append((piece, HIDDEN if step is None else names.get(step)))
    return shown


def without_first_blank(shown: list[tuple[str, Mark]]) -> list[tuple[str, Mark]]:
    if not shown:
        return []
    text, mark = shown[0]
    return [(text.lstrip(), mark), *shown[1:]]


def stacked(texts: Sequence[Spans]) -> Spans:
    """Several texts one below the other; an empty one is a dash."""
    shown: Spans = []
    for text in texts:
        if shown:
            shown.append(("\n\n", None))
        shown += text or [("—", None)]
    return shown
