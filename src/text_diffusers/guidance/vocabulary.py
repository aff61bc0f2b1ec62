"""The tokens of a vocabulary: which of them continue a word, and which may be words.

Shapes: V vocabulary size.
"""

from typing import Any

import torch
from torch import Tensor


def continues_word(tokenizer: Any) -> Tensor:
    """(V,) bool: tokens that continue the word before them.

    In a WordPiece vocabulary they begin with "##"; in others they begin without a space, with a letter, a digit, an
    underscore, an apostrophe that is followed by more, or within a character.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if any(piece.startswith("##") for piece in pieces):
        continuing = [piece.startswith("##") for piece in pieces]
    else:
        continuing = []
        for piece, text in zip(pieces, token_texts(tokenizer), strict=True):
            # "\ufffd" is what a decoder shows for a part of a character.
            in_word = text[:1].isalnum() or text[:1] in ("_", "\ufffd")
            apostrophe = text[:1] in "'’" and text[1:2].isalnum()
            continuing.append((in_word or apostrophe) and not piece.startswith(("Ġ", "▁")))

    return torch.tensor(continuing) & ~is_special(tokenizer)


def may_be_words(tokenizer: Any) -> Tensor:
    """(V,) bool: tokens with characters other than blanks, which are not special."""
    visible = [bool(text.strip()) for text in token_texts(tokenizer)]
    return torch.tensor(visible) & ~is_special(tokenizer)


def is_special(tokenizer: Any) -> Tensor:
    """(V,) bool: the special tokens of a tokenizer."""
    special = torch.zeros(len(tokenizer), dtype=torch.bool)
    special[tokenizer.all_special_ids] = True
    return special


def token_texts(tokenizer: Any) -> list[str]:
    """The text of each token by itself."""
    return tokenizer.batch_decode([[token] for token in range(len(tokenizer))])


def check_vocabulary(name: str, size: int, wanted: int, exactly: bool = False):
    """Raise a ValueError if a vocabulary is smaller than that of the text, or with `exactly` of another size."""
    if exactly and size != wanted:
        raise ValueError(f"`{name}` must have {wanted} tokens, those of the text, got {size}.")
    if size < wanted:
        raise ValueError(
            f"`{name}` must have at least {wanted} tokens, for those of the text, got {size}."
        )
