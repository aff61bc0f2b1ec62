"""In which order the tokens of a text are read by a pattern, and what is given between them.

Shapes: B rows, L sequence length, J tokens that are read.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.guidance.soft_text import text_places
from text_diffusers.guidance.structure.token_bytes import (
    FIRST,
    LATER,
    SPACED_FIRST,
    SPACED_LATER,
    TokenBytes,
)


@dataclass
class RowLayout:
    """What is read of a row.

    Attributes:
        columns: of the tokens that are read, those that are written among them.
        places: of tokens that are not read as those behind other tokens, the place by their number in `columns`.
        given: characters that are read before a token, by its number; that behind the last one is the end.
    """

    columns: list[int] = field(default_factory=list)
    places: dict[int, str] = field(default_factory=dict)
    given: dict[int, str] = field(default_factory=dict)


def row_layout(
    tokenizer: Any, state: Any, row: int, with_prompt: bool, special_ids: Collection[int]
) -> RowLayout:
    """What a pattern reads of a row: what is written in its runs, and the characters that are given around these.

    Args:
        with_prompt: whether a text that is continued is read from its beginning.
        special_ids: tokens that are not shown.
    """
    in_text = text_places(state)[row]
    end = int(in_text.nonzero().max()) + 1 if in_text.any() else 0
    start = state.starts[row]
    given_text = state.given_texts[row] if state.given_texts else None
    tokens = state.tokens[row].tolist()
    is_open = state.open[row].tolist()
    skipped = set(special_ids) - set(state.end_token_ids)

    layout = RowLayout()
    if given_text is None:
        runs = [(start, end)]
        pieces = ["", ""]
        is_continued = False
    else:
        runs = [(first, end if last is None else last) for first, last in given_text.runs]
        pieces = given_text.pieces
        is_continued = given_text.runs[-1][1] is None

    for index, (first, last) in enumerate(runs):
        piece = pieces[index]
        # A prompt stands before the text, unless it is asked for.
        is_read = with_prompt or index > 0 or not is_continued
        if piece and is_read:
            add_given(layout, piece)

        number = len(layout.columns)
        # A special token that is known is not shown.
        layout.columns += [
            column
            for column in range(first, last)
            if is_open[column] or tokens[column] not in skipped
        ]
        if len(layout.columns) > number:
            place = place_of_run(tokenizer, tokens, start, first, piece, given_text)
            if place != LATER:
                layout.places[number] = place
    if pieces[-1]:
        add_given(layout, pieces[-1])
    return layout


def add_given(layout: RowLayout, piece: str):
    number = len(layout.columns)
    layout.given[number] = layout.given.get(number, "") + piece


def parts_of_row(layout: RowLayout, state: Any, row: int, tokens: TokenBytes) -> list[bytes | None]:
    """What is read of a row: the bytes of what is given and of known tokens, and `None` where tokens are written."""
    parts: list[bytes | None] = []
    for number, column in enumerate(layout.columns):
        if number in layout.given:
            parts.append(layout.given[number].encode())
        token = int(state.tokens[row, column])
        if state.open[row, column]:
            # Tokens next to each other are one part.
            if not parts or parts[-1] is not None:
                parts.append(None)
        elif token in state.end_token_ids:
            # Behind the end of a text nothing is read.
            return parts
        else:
            values = tokens.at(layout.places.get(number, LATER))
            # Some ids of a model are no text.
            value = values[token] if token < len(values) else None
            parts.append(value or b"")
    parts.append(layout.given.get(len(layout.columns), "").encode())
    return parts


def place_of_run(
    tokenizer: Any, tokens: list[int], start: int, first: int, piece: str, given_text: Any
) -> str:
    """Where the first token of a run stands, as `GivenText.with_written` shows it."""
    has_context = first > start
    is_spaced = piece[-1:].isspace()
    if is_spaced and not given_text.has_masks and has_context:
        # A blank that is a token of its own is followed by a word with its space, if it has one.
        is_spaced = not tokenizer.decode(tokens[max(start, first - 8) : first])[-1:].isspace()
    if has_context:
        return SPACED_LATER if is_spaced else LATER
    return SPACED_FIRST if is_spaced else FIRST


def padded_layouts(layouts: Sequence[RowLayout], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, J) columns of the tokens that are read, 0 behind the last one, and (B, J) bool, whether one is read."""
    longest = max(len(layout.columns) for layout in layouts)
    columns = torch.zeros(len(layouts), longest, dtype=torch.long)
    is_read = torch.zeros(len(layouts), longest, dtype=torch.bool)
    for row, layout in enumerate(layouts):
        columns[row, : len(layout.columns)] = torch.tensor(layout.columns, dtype=torch.long)
        is_read[row, : len(layout.columns)] = True
    return columns.to(device), is_read.to(device)
