"""Regular languages as trees: what patterns and schemas are translated into, and automata are built from.

A language is a set of strings of characters. It is given by its syntax, and two trees may be the same language.
"""

from dataclasses import dataclass
from typing import TypeAlias

# Code points, the first and the last of each range, in order and apart from each other
Ranges: TypeAlias = tuple[tuple[int, int], ...]

LAST_CHARACTER = 0x10FFFF


@dataclass(frozen=True)
class Characters:
    """Strings of one character, which is in one of the ranges."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequence:
    """Strings of the first part, followed by those of the second, and so on; the empty string without parts."""

    parts: tuple["Language", ...]


@dataclass(frozen=True)
class Choice:
    """Strings of any of the options; none without options."""

    options: tuple["Language", ...]


@dataclass(frozen=True)
class Repeat:
    """Strings of a language, `least` to `most` of them one after the other; `None` is any number."""

    part: "Language"
    least: int
    most: int | None


@dataclass(frozen=True)
class Anchor:
    """The empty string at the "begin" or the "end" of a text; "line_end" is also before a line break that ends it."""

    place: str


@dataclass(frozen=True)
class Beginning:
    """Strings of a language that begin with a string of each of `required`, and with none of `excluded`.

    Only a whole language is one: none of its parts is.
    """

    part: "Language"
    required: tuple["Language", ...]
    excluded: tuple["Language", ...]


Language: TypeAlias = Characters | Sequence | Choice | Repeat | Anchor | Beginning

EMPTY = Sequence(())
ANY = Characters(((0, LAST_CHARACTER),))


@dataclass(frozen=True)
class Named:
    """A language with the argument and the value that it comes from, for errors.

    Attributes:
        argument: such as "pattern".
        shown: such as the pattern itself.
    """

    language: Language
    argument: str
    shown: str


def literal(text: str) -> Language:
    """The language of one string.

    Example:
        >>> from text_diffusers.guidance.structure.language import literal
        >>> literal("ab")
        Sequence(parts=(Characters(ranges=((97, 97),)), Characters(ranges=((98, 98),))))
    """
    return Sequence(tuple(Characters(((ord(letter), ord(letter)),)) for letter in text))


def characters(text: str) -> Characters:
    """The language of the single characters of a string.

    Example:
        >>> from text_diffusers.guidance.structure.language import characters
        >>> characters("badc-")
        Characters(ranges=((45, 45), (97, 100)))
    """
    return Characters(joined([(ord(letter), ord(letter)) for letter in text]))


def without(ranges: Ranges, excluded: Ranges) -> Ranges:
    """The code points of `ranges` that are not in `excluded`.

    Example:
        >>> from text_diffusers.guidance.structure.language import without
        >>> without(((0, 9),), ((3, 4), (8, 20)))
        ((0, 2), (5, 7))
    """
    left = list(ranges)
    for low, high in excluded:
        pieces = []
        for first, last in left:
            pieces.append((first, min(last, low - 1)))
            pieces.append((max(first, high + 1), last))
        left = [(first, last) for first, last in pieces if first <= last]
    return tuple(left)


def joined(ranges: list[tuple[int, int]]) -> Ranges:
    """The same code points in as few ranges as there can be, in order."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def optional(part: Language) -> Language:
    """A language, or the empty string."""
    return Repeat(part, 0, 1)
