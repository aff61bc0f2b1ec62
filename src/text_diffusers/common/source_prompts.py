"""Sources as prompts of a decoder: the tokens that stand before a text that is written from another."""

from collections.abc import Sequence
from typing import Any

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.validation import require, require_int

# The start before a source, and the end behind it
FRAME_TOKENS = 2


def framed_source(tokenizer: Any, source: Sequence[int], max_length: int) -> list[int]:
    """ "start source end" of the tokens of a source, of which the last ones stay if they are too many.

    A tokenizer without a start token begins a row with its end token, as rows of texts do.

    Args:
        max_length: tokens of the result, at least 2.

    Raises:
        ValueError: if `max_length` leaves no room for start and end, or the tokenizer has no end token.
    """
    require_int("max_length", max_length, FRAME_TOKENS)
    ends = end_ids(tokenizer)
    require(
        bool(ends), "tokenizer", "one with a token for the end of a text", type(tokenizer).__name__
    )

    # The end of a context is what a reply answers.
    kept = list(source)[max(0, len(source) - max_length + FRAME_TOKENS) :]
    return [*(start_ids(tokenizer) or ends), *kept, *ends]


def source_prompt_ids(
    tokenizer: Any, sources: Sequence[str], max_length: int, name: str = "source"
) -> list[list[int]]:
    """Token ids that stand before the texts written from `sources`: start, source, end.

    Args:
        tokenizer: of the decoder.
        sources: plain texts; an empty one is "no source".
        max_length: tokens of a prompt; of a longer source the last ones stay.
        name: of the argument that the sources come from, for errors.

    Raises:
        ValueError: as `framed_source` and `encode_plain`.

    Example:
        >>> from text_diffusers.common.source_prompts import source_prompt_ids
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> whole, cut, none = source_prompt_ids(tokenizer, ["the cat", "late for a train", ""], max_length=5)
        >>> tokenizer.decode(whole), tokenizer.decode(cut), tokenizer.decode(none)
        ('[EOS]the cat[EOS]', '[EOS] a train[EOS]', '[EOS][EOS]')
    """
    rows = encode_plain(tokenizer, list(sources), name)
    return [framed_source(tokenizer, row, max_length) for row in rows]
