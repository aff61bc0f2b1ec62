"""Texts with gaps: their tokens, which of them are to be written, and the characters between these.

Shapes: L tokens of a text.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from text_diffusers.common.plain_text import (
    call_tokenizer,
    check_unicode,
    quoted,
    refuse_special,
    special_names,
)
from text_diffusers.common.token_ids import start_ids
from text_diffusers.common.validation import is_list
from text_diffusers.pipelines.given_text import GivenText
from text_diffusers.pipelines.text_batch import Row

# First character of a token in its text, and the one behind its last
Span = tuple[int, int]


@dataclass
class MaskedText:
    """A text with masks, encoded.

    Attributes:
        text: as it was given.
        ids: L tokens, those of the masks among them.
        spans: L of their places in the text; `None` for words of a tokenizer that does not tell them.
    """

    text: str
    ids: list[int]
    spans: Sequence[Span | None]


def encode_gaps(
    tokenizer: Any, text: str | Sequence[str], mask: Any
) -> tuple[list[Row], list[GivenText]]:
    """Token ids of each text after the start token, `None` for each to be filled in; and its given characters.

    Args:
        mask: one bool a token of each text, true where to write; by default the mask tokens of the texts.

    Raises:
        ValueError: if `mask` has another shape than the texts or leaves one of their masks out, a text has nothing to
            fill in, or the tokenizer does not tell which characters a token stands for.
    """
    texts = [text] if isinstance(text, str) else list(text)
    encoded = [encode_with_masks(tokenizer, text) for text in texts]
    # The gaps are where the text has masks, unless they are given.
    if mask is None:
        masks = [[token == tokenizer.mask_token_id for token in part.ids] for part in encoded]
    else:
        masks = mask_rows(mask, [part.ids for part in encoded])

    rows: list[Row] = []
    given_texts = []
    start = start_ids(tokenizer)
    for part, row_mask in zip(encoded, masks, strict=True):
        check_gaps(tokenizer, part, row_mask)
        blanked = [None if gap else token for token, gap in zip(part.ids, row_mask, strict=True)]
        rows.append(start + blanked)

        # Masks are found by their name, words only if the tokenizer tells.
        spans = part.spans
        if any(gap and span is None for gap, span in zip(row_mask, spans, strict=True)):
            spans = spans_by_decoding(tokenizer, part)
        given = text_around(part.text, row_mask, spans, len(start))
        given.has_masks = mask is None
        given_texts.append(given)
    return rows, given_texts


def encode_with_masks(tokenizer: Any, text: str) -> MaskedText:
    """A text with its masks as tokens, and the names of other special tokens as plain text."""
    check_unicode("text", [text])
    mask_token = tokenizer.mask_token
    mask_spans = [match.span() for match in re.finditer(re.escape(mask_token), text)]

    # Most texts hold no other name than that of the mask, and are read as they stand.
    ids, spans = encode_with_spans(tokenizer, text)
    others = set(tokenizer.all_special_ids) - {tokenizer.mask_token_id, tokenizer.unk_token_id}
    num_masks = ids.count(tokenizer.mask_token_id)
    if num_masks != len(mask_spans) or special_names(tokenizer, text) or not others.isdisjoint(ids):
        ids, spans = encode_parts(tokenizer, text)

    # A mask may have taken in the blanks beside it, which are given like any other character.
    remaining = iter(mask_spans)
    for index, token in enumerate(ids):
        if token == tokenizer.mask_token_id:
            spans[index] = next(remaining)
    return MaskedText(text, ids, spans)


def encode_parts(tokenizer: Any, text: str) -> tuple[list[int], list[Span | None]]:
    """Ids and spans of a text whose parts between masks are plain text, each by itself."""
    mask_token = tokenizer.mask_token
    added = tokenizer.added_tokens_decoder.get(tokenizer.mask_token_id)
    ids: list[int] = []
    spans: list[Span | None] = []
    begin = 0
    parts = text.split(mask_token)
    for index, part in enumerate(parts):
        end = begin + len(part)
        if index:
            ids.append(tokenizer.mask_token_id)
            spans.append(None)

        # A mask may take in the blanks beside it.
        if index and getattr(added, "rstrip", False):
            part = part.lstrip()
        first = end - len(part)
        if index < len(parts) - 1 and getattr(added, "lstrip", False):
            part = part.rstrip()

        if part:
            part_ids, part_spans = encode_with_spans(tokenizer, part, split_special_tokens=True)
            refuse_special(tokenizer, [part], [part_ids], "text")
            ids += part_ids
            for span in part_spans:
                spans.append(None if span is None else (first + span[0], first + span[1]))
        begin = end + len(mask_token)
    return ids, spans


def encode_with_spans(
    tokenizer: Any, text: str, **options: Any
) -> tuple[list[int], list[Span | None]]:
    """Token ids of a text, and the places of their characters, with any marks that are set upon the last."""
    if not getattr(tokenizer, "is_fast", False):
        ids = call_tokenizer(tokenizer, text, **options)["input_ids"]
        return ids, [None] * len(ids)

    encoded = call_tokenizer(tokenizer, text, return_offsets_mapping=True, **options)
    spans: list[Span | None] = []
    for first, end in encoded["offset_mapping"]:
        # Some tokenizers drop accents, which then belong to no token.
        while first < end < len(text) and unicodedata.combining(text[end]):
            end += 1
        spans.append((first, end))
    return encoded["input_ids"], spans


def spans_by_decoding(tokenizer: Any, part: MaskedText) -> list[Span | None]:
    """Places of the tokens of a text that is decoded to itself, each up to where the text is known so far.

    Raises:
        ValueError: if it is decoded to another text.
    """
    if tokenizer.decode(part.ids) != part.text:
        raise ValueError(
            f"`mask` must be left out: this tokenizer does not tell which characters of {quoted(part.text)} its "
            f"tokens stand for. Write {tokenizer.mask_token} into `text` instead."
        )
    spans: list[Span | None] = []
    begin = 0
    for index in range(len(part.ids)):
        decoded = tokenizer.decode(part.ids[: index + 1])
        end = len(os.path.commonprefix([decoded, part.text]))
        # Tokens within a character all stand for it.
        spans.append((begin, max(end, begin + 1)))
        begin = max(begin, end)
    return spans


def check_gaps(tokenizer: Any, part: MaskedText, row_mask: list[bool]):
    """Raise a `ValueError` if a text has nothing to be written, or a mask that is not to be."""
    # A mask that stays would be returned in the place of a word.
    for index, (token, is_gap) in enumerate(zip(part.ids, row_mask, strict=True)):
        if token == tokenizer.mask_token_id and not is_gap:
            raise ValueError(
                f"`mask` must be true at every {tokenizer.mask_token} of `text`, got false at token {index} of "
                f"{quoted(part.text)}."
            )

    # A text without a gap would come back as it went in, surely by mistake.
    if not any(row_mask):
        raise ValueError(
            f"`text` must hold {tokenizer.mask_token} where to write, got {part.text!r}."
        )


def mask_rows(mask: Any, rows: list[list[int]]) -> list[list[bool]]:
    """`mask` as one list a text, which must be as long as its row of tokens."""
    # A tensor, an array, a list of rows, or the one row of the only text
    masks = mask.tolist() if hasattr(mask, "tolist") else list(mask)
    if not masks or not is_list(masks[0]):
        masks = [masks]

    expected = [len(row) for row in rows]
    lengths = [len(row) for row in masks]
    if lengths != expected:
        raise ValueError(
            f"`mask` must have one value a token of `text`, {expected} tokens, got {lengths}."
        )
    return masks


def text_around(
    text: str, row_mask: Sequence[bool], spans: Sequence[Span | None], start: int
) -> GivenText:
    """The characters of a text around the tokens to be written.

    Args:
        row_mask: L, true where to write.
        spans: L places of the tokens; only those that are to be written must have one.
        start: the column of the first token.
    """
    given = GivenText(pieces=[], runs=[])
    written_to = 0  # characters up to here belong to what was before
    last = 0
    for index, is_gap in enumerate(row_mask):
        span = spans[index]
        if not is_gap or index < last or span is None:
            continue

        # A character of several tokens is written as a whole, though some of them are given.
        first = index
        while first > last and overlap(spans[first - 1], span):
            first -= 1
        last = index + 1
        while last < len(spans) and overlap(spans[last], span):
            last += 1

        piece = text[written_to : max(written_to, span[0])]
        written_to = max(written_to, span[1])
        # Tokens with nothing between them are one run.
        if not piece and given.runs and given.runs[-1][1] == start + first:
            given.runs[-1] = (given.runs[-1][0], start + last)
        else:
            given.pieces.append(piece)
            given.runs.append((start + first, start + last))
    given.pieces.append(text[written_to:])
    return given


def overlap(one: Span | None, other: Span | None) -> bool:
    """Whether two spans share a character."""
    return one is not None and other is not None and one[0] < other[1] and other[0] < one[1]
