"""Token ids of text as users write it, in which the name of a special token is no more than its characters."""

import threading
from collections.abc import Sequence
from typing import Any

# A fast tokenizer keeps the settings of its latest call, which another thread must not change before it is done.
TOKENIZER_LOCK = threading.Lock()

# Texts are shown in errors up to so many characters.
LONGEST_QUOTE = 80


def encode_plain(
    tokenizer: Any, texts: Sequence[str], name: str = "text", with_ends: bool = False
) -> list[list[int]]:
    """Token ids of plain texts: "[EOS]" in a text is five characters.

    Args:
        name: of the argument that the texts come from, for errors.
        with_ends: with the tokens that the tokenizer puts around a text by itself.

    Raises:
        ValueError: if a text is no valid Unicode, or holds the name of a special token that the tokenizer cannot take
            for text.

    Example:
        >>> from text_diffusers.common.plain_text import encode_plain
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> (ids,) = encode_plain(tokenizer, ["the [EOS]"])
        >>> tokenizer.decode(ids), tokenizer.eos_token_id in ids
        ('the [EOS]', False)
    """
    check_unicode(name, texts)
    # A tokenizer of transformers is asked for a list, and refuses an empty one.
    if not texts:
        return []
    rows = call_tokenizer(tokenizer, list(texts), split_special_tokens=True)["input_ids"]
    refuse_special(tokenizer, texts, rows, name)
    if not with_ends:
        return rows

    # Once more, as among these ends no name in the text could be told.
    options = {"split_special_tokens": True, "add_special_tokens": True}
    return call_tokenizer(tokenizer, list(texts), **options)["input_ids"]


def call_tokenizer(
    tokenizer: Any, texts: str | list[str], add_special_tokens: bool = False, **options: Any
) -> Any:
    """Output of a tokenizer for texts, by one thread at a time."""
    with TOKENIZER_LOCK:
        return tokenizer(texts, add_special_tokens=add_special_tokens, **options)


def check_unicode(name: str, texts: Sequence[str]):
    """Raise a `ValueError` if a text holds half a character, such as the first of the two that an emoji is in UTF-16.

    Example:
        >>> check_unicode("prompt", ["Hi \\ud83d"])
        Traceback (most recent call last):
        ValueError: `prompt` must be valid Unicode, got the lone surrogate '\\ud83d' as character 3 of 'Hi \\ud83d'.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"`{name}` must be valid Unicode, got the lone surrogate {text[error.start]!r} as character "
                f"{error.start} of {quoted(text)}."
            ) from None


def holds_mask(tokenizer: Any, text: str) -> bool:
    """Whether a text holds the name of the mask, of a tokenizer that has one."""
    return tokenizer.mask_token is not None and tokenizer.mask_token in text


def special_names(tokenizer: Any, text: str) -> list[str]:
    """The names of special tokens that a text holds, the mask left out."""
    return [
        token
        for token in tokenizer.all_special_tokens
        if token != tokenizer.mask_token and token in text
    ]


def refuse_special(tokenizer: Any, texts: Sequence[str], rows: Sequence[list[int]], name: str):
    """Raise a `ValueError` if the ids of a plain text have a special token among them, other than the unknown word."""
    special_ids = set(tokenizer.all_special_ids)
    unknown = tokenizer.unk_token_id

    for text, row in zip(texts, rows, strict=True):
        found = special_ids.intersection(row)
        # The token of unknown words may have another role too; then its name tells whether it was written.
        if unknown in found:
            is_named = has_other_role(tokenizer, unknown) and tokenizer.unk_token in text
            found -= set() if is_named else {unknown}

        if found:
            token = tokenizer.convert_ids_to_tokens(min(found))
            raise ValueError(
                f"`{name}` must not hold {token}, a special token that this tokenizer cannot take for plain text, "
                f"got {quoted(text)}."
            )


def has_other_role(tokenizer: Any, token_id: int) -> bool:
    """Whether a token begins, ends, fills or masks texts, beside standing for unknown words."""
    roles = ("bos", "eos", "cls", "sep", "pad", "mask")
    return token_id in [getattr(tokenizer, f"{role}_token_id") for role in roles]


def quoted(text: str) -> str:
    """A text for an error, cut if it is long."""
    shown = repr(text)
    return shown if len(shown) <= LONGEST_QUOTE else f"{shown[:LONGEST_QUOTE]}..."
