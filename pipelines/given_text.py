"""Texts as they are returned: the characters that were given, with what was written between them.

A tokenizer may not know a word that it reads, change its case or drop blanks, so what was given is never decoded from
its tokens: a text without what was written is the text that was given.

Shapes: L tokens of a row.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# Tokens before what is decoded that are decoded with it: more than the bytes of any character.
CONTEXT = 8

# Shown by decoders for bytes that are no whole character
REPLACEMENT = "\ufffd"


@dataclass
class GivenText:
    """The given characters of a row, around the runs of tokens that are written.

    Attributes:
        pieces: characters before, between and after the runs, one piece more than there are runs.
        runs: the first column of each run, and the one behind its last; `None` is the end of the row.
        has_masks: whether the runs are masks in the text. A blank before a mask is that of the word to come, even if
            the tokenizer took it for a token.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.pipelines.given_text import GivenText
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> row = tokenizer("the cat sat")["input_ids"]
        >>> GivenText(pieces=["THE", "\\n"], runs=[(1, None)]).with_written(tokenizer, row)
        'THE cat sat\\n'
    """

    pieces: list[str]
    runs: list[tuple[int, int | None]]
    has_masks: bool = False

    def with_written(
        self, tokenizer: Any, row: list[int], start: int = 0, show_masks: bool = False
    ) -> str:
        """The text of a row (L,): the given pieces around its decoded runs, without special tokens.

        Args:
            start: the column in which the text begins.
            show_masks: show tokens that are still to be written by the name of the mask.
        """
        special_ids = set(tokenizer.all_special_ids)
        text = self.pieces[0]
        for index, (first, end) in enumerate(self.runs):
            # Runs that stand next to each other may share a character.
            is_joined = index + 1 < len(self.runs) and self.runs[index + 1][0] == end
            follows_blank = self.pieces[index][-1:].isspace()
            for part in parts_at_masks(tokenizer, row, first, len(row) if end is None else end):
                if row[part.start] == tokenizer.mask_token_id:
                    written = f" {tokenizer.mask_token}" if show_masks else ""
                    is_spaced = not text or follows_blank
                else:
                    written, holds_blank = decoded_run(
                        tokenizer, row, part, start, special_ids, is_joined
                    )
                    is_spaced = follows_blank and (self.has_masks or not holds_blank)

                # A space that was given is not written once more.
                text += written.removeprefix(" ") if is_spaced else written
                follows_blank = False
            text += self.pieces[index + 1]
        return text


def parts_at_masks(tokenizer: Any, row: list[int], first: int, end: int) -> list[slice]:
    """The columns from `first` to `end` in runs without masks, and each mask by itself."""
    parts = []
    begin = first
    for column in range(first, end):
        if row[column] == tokenizer.mask_token_id:
            if begin < column:
                parts.append(slice(begin, column))
            parts.append(slice(column, column + 1))
            begin = column + 1
    if begin < end:
        parts.append(slice(begin, end))
    return parts


def decoded_run(
    tokenizer: Any,
    row: list[int],
    run: slice,
    start: int,
    special_ids: Collection[int],
    is_joined: bool,
) -> tuple[str, bool]:
    """What a text gains by a run of its tokens, and whether the tokens before it end in a blank.

    Args:
        start: the column in which the text begins.
        special_ids: that are left out.
        is_joined: whether the token after the run is written too, and may complete its last character.
    """
    tokens = [token for token in row[run] if token not in special_ids]
    before = row[max(start, run.start - CONTEXT) : run.start]
    context = tokenizer.decode(before) if before else ""
    if not tokens:
        return "", context[-1:].isspace()
    text = tokenizer.decode([*before, *tokens])

    # Some tokenizers clean blanks up across the border, so that it cannot be seen any more.
    if not text.startswith(context.rstrip(REPLACEMENT)):
        context = tokenizer.decode(before, clean_up_tokenization_spaces=False)
        text = tokenizer.decode([*before, *tokens], clean_up_tokenization_spaces=False)

    # A character that the next run completes belongs to that.
    if is_joined and text.endswith(REPLACEMENT):
        behind = row[run.stop : run.stop + CONTEXT]
        text = os.path.commonprefix([text, tokenizer.decode([*before, *tokens, *behind])])

    # A character that this run completes is shown otherwise in what stands before.
    shared = os.path.commonprefix([context, text])
    return text[len(shared) :], context[-1:].isspace()
