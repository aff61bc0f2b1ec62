"""The bytes that each token of a vocabulary adds to a text, as its tokenizer decodes it.

Shapes: V vocabulary size.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from text_diffusers.common.token_ids import num_ids
from text_diffusers.common.validation import require
from text_diffusers.guidance.structure.language import Ranges

# Where a token stands: first in its text, behind other tokens, or behind a blank that was given.
FIRST = "first"
LATER = "later"
SPACED_FIRST = "spaced_first"
SPACED_LATER = "spaced_later"

BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")

# Random texts by which the bytes of tokens are checked, and the tokens of each
NUM_CHECKS = 64
CHECK_LENGTH = 6


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of all tokens; `None` is a token that is no text, as are special ones.

    Attributes:
        first: V, at the start of a text.
        later: V, behind other tokens.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.guidance.structure.token_bytes import token_bytes
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> token_bytes(tokenizer).later[tokenizer.convert_tokens_to_ids("Ġcat")]
        b' cat'
    """

    first: list[bytes | None]
    later: list[bytes | None]

    def at(self, place: str) -> list[bytes | None]:
        """V, at a place; behind a blank that was given, the space before a word is left out."""
        values = self.first if place in (FIRST, SPACED_FIRST) else self.later
        if place in (FIRST, LATER):
            return values
        return [value if value is None else value.removeprefix(b" ") for value in values]

    def alphabet(self) -> "Alphabet":
        """The characters that there are tokens for."""
        characters: set[str] = set()
        loose_bytes: set[int] = set()
        for value in (*self.first, *self.later):
            if value is None:
                continue
            whole = value.decode(errors="ignore")
            characters.update(whole)
            if whole.encode() != value:
                loose_bytes.update(value)
        return Alphabet(frozenset(characters), frozenset(loose_bytes))


@dataclass(frozen=True)
class Alphabet:
    """The characters that tokens have.

    Attributes:
        characters: those that are whole in some token.
        loose_bytes: of tokens with parts of characters, which others may complete.
    """

    characters: frozenset[str]
    loose_bytes: frozenset[int]

    def __contains__(self, character: str) -> bool:
        return character in self.characters or self.loose_bytes.issuperset(character.encode())

    def example(self, ranges: Ranges) -> str:
        """One of the characters in `ranges`: if there is one, of the alphabet; or else one that can be shown."""
        characters = [chr(code) for first, last in ranges for code in range(first, last + 1)]
        known = (one for one in characters if one in self)
        visible = (one for one in characters if one.isprintable())
        return next(known, None) or next(visible, characters[0])


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The bytes of the tokens of a fast tokenizer.

    Raises:
        ValueError: if it is none, or decodes a text to something else than its tokens one after the other.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"`tokenizer` must be a fast tokenizer, got {type(tokenizer).__name__}.")
    kinds = decoder_kinds(json.loads(backend.to_str())["decoder"])
    # The clean-up looks at several tokens at once; transformers leaves that of BPE out.
    is_cleaned = tokenizer.clean_up_tokenization_spaces and "ByteLevel" not in kinds
    limit = "one with `clean_up_tokenization_spaces` off"
    require(not is_cleaned, "tokenizer", limit, type(tokenizer).__name__)
    # Ids may have gaps, which are no text, as special tokens are not.
    names = tokenizer.convert_ids_to_tokens(list(range(num_ids(tokenizer))))
    pieces = [name or "" for name in names]
    special = {*tokenizer.all_special_ids, *(token for token, name in enumerate(names) if not name)}

    if "ByteLevel" in kinds:
        first: list[bytes | None] = [byte_level(piece) for piece in pieces]
        later = first
    else:
        first, later = decoded_bytes(tokenizer, pieces, special, "ByteFallback" in kinds)
    for token in special:
        first[token] = None
        later[token] = None

    found = TokenBytes(first, later)
    check_bytes(tokenizer, found)
    return found


def decoder_kinds(decoder: Any) -> set[str]:
    """The types of a decoder, and of those that it is a sequence of."""
    if decoder is None:
        return set()
    kinds = {decoder["type"]}
    for part in decoder.get("decoders", []):
        kinds |= decoder_kinds(part)
    return kinds


def byte_level(piece: str) -> bytes:
    """The bytes of a token that is spelled in the 256 letters of byte-level tokenizers."""
    values = [BYTE_OF_LETTER.get(letter) for letter in piece]
    # Another letter than these is of a token that was added as it is.
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(values) else piece.encode()


def letters_of_bytes() -> dict[str, int]:
    """The byte of each letter: visible ones are themselves, the others are numbered from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in visible]
    return letters | {chr(256 + index): byte for index, byte in enumerate(hidden)}


BYTE_OF_LETTER = letters_of_bytes()


def decoded_bytes(
    tokenizer: Any, pieces: Sequence[str], special: set[int], has_byte_tokens: bool
) -> tuple[list[bytes | None], list[bytes | None]]:
    """The bytes of each token by itself, and behind another one."""
    ids = range(len(pieces))
    alone = tokenizer.batch_decode([[token] for token in ids])

    # Any token that shows as itself can stand before.
    anchor = next(token for token in ids if token not in special and alone[token].strip().isalnum())
    behind = tokenizer.batch_decode([[anchor, token] for token in ids])

    first: list[bytes | None] = []
    later: list[bytes | None] = []
    for token in ids:
        byte = BYTE_TOKEN.fullmatch(pieces[token]) if has_byte_tokens else None
        if byte is not None:
            value = bytes([int(byte[1], 16)])
            first.append(value)
            later.append(value)
        elif behind[token].startswith(alone[anchor]):
            first.append(alone[token].encode())
            later.append(behind[token].removeprefix(alone[anchor]).encode())
        else:
            # It changes what stands before it, and is not written.
            first.append(None)
            later.append(None)
    return first, later


def check_bytes(tokenizer: Any, found: TokenBytes):
    """Raise a ValueError unless random texts are decoded to the bytes of their tokens."""
    usable = [token for token, value in enumerate(found.later) if value]
    require(len(usable) > 0, "tokenizer", "of a vocabulary with text", len(found.later))
    generator = random.Random(0)
    for _ in range(NUM_CHECKS):
        tokens = generator.choices(usable, k=CHECK_LENGTH)
        parts = [found.first[tokens[0]], *[found.later[token] for token in tokens[1:]]]
        expected = b"".join(part for part in parts if part is not None)
        try:
            text = expected.decode()
        except UnicodeDecodeError:
            continue  # no text: such tokens are not written together
        require(
            tokenizer.decode(tokens) == text,
            "tokenizer",
            f"one that decodes tokens one after the other, here to {text!r}",
            tokenizer.decode(tokens),
        )
