"""Python's regular expressions as regular languages: the strings that `re.fullmatch` accepts.

Patterns are read by the parser of `re`, and sets of characters are what `re` finds them to be, so that classes and
flags mean the same here and there. Look-ahead may stand at the start of a pattern; look-around elsewhere, and what is
no regular language, is refused by name.
"""

import re
from functools import cache
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from text_diffusers.common.validation import require
from text_diffusers.guidance.structure.language import (
    EMPTY,
    LAST_CHARACTER,
    Anchor,
    Beginning,
    Characters,
    Choice,
    Language,
    Ranges,
    Repeat,
    Sequence,
    joined,
)

# Code points that are no characters by themselves
SURROGATES = (0xD800, 0xDFFF)

# Flags that change what a character is; the others change where a line begins, or only how a pattern is written.
CHARACTER_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL | re.UNICODE

CHARACTER_TYPES = re.ASCII | re.UNICODE | re.LOCALE

# Nodes that stand for one character
CHARACTER_NODES = {_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN}

# What patterns may not hold
UNSUPPORTED = {
    "ASSERT": "look-around",
    "ASSERT_NOT": "look-around",
    "GROUPREF": "a back reference",
    "GROUPREF_EXISTS": "a condition on a group",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive quantifier",
}

ANCHORS = {
    "AT_BEGINNING": "begin",
    "AT_BEGINNING_STRING": "begin",
    "AT_END": "line_end",
    "AT_END_STRING": "end",
}


def parse_pattern(pattern: Any, name: str = "pattern", looks_ahead: bool = True) -> Language:
    """The strings that `re.fullmatch(pattern, ...)` accepts.

    Args:
        pattern: a string, or one compiled by `re.compile` with its flags.
        name: of the argument, for errors.
        looks_ahead: whether the pattern may start with look-aheads, which are no part of another language.

    Raises:
        ValueError: if it is no pattern of characters, or holds what is not supported.

    Example:
        >>> from text_diffusers.guidance.structure.regular_expressions import parse_pattern
        >>> parse_pattern("[b-d]+").parts[0].part
        Sequence(parts=(Characters(ranges=((98, 100),)),))
        >>> parse_pattern("(a)\\\\1")
        Traceback (most recent call last):
        ValueError: `pattern` must be without a back reference, got '(a)\\\\1'.
    """
    flags = 0
    text = pattern
    if isinstance(pattern, re.Pattern):
        flags = pattern.flags
        text = pattern.pattern
    require(isinstance(text, str), name, "a regular expression of characters", pattern)
    try:
        tree = _parser.parse(text, flags)
    except (re.error, RecursionError) as error:
        raise ValueError(f"`{name}` must be a regular expression, got {text!r}: {error}.") from None
    reader = PatternReader(name, text)
    read = reader.whole if looks_ahead else reader.sequence
    return read(tree, tree.state.flags)


class PatternReader:
    """Translates the tree of a pattern.

    Args:
        name: of the argument, for errors.
        pattern: its text.
    """

    def __init__(self, name: str, pattern: str):
        self.name = name
        self.pattern = pattern

    def whole(self, tree: Any, flags: int) -> Language:
        """The language of a pattern: of its nodes behind the look-aheads that it starts with."""
        nodes = list(tree)
        looks: dict[Any, list[Language]] = {_constants.ASSERT: [], _constants.ASSERT_NOT: []}
        while nodes and nodes[0][0] in looks:
            operation, (direction, ahead) = nodes.pop(0)
            if direction < 0:
                self.refuse("look-behind")
            looks[operation].append(self.sequence(ahead, flags))

        part = self.sequence(nodes, flags)
        required, excluded = map(tuple, looks.values())
        return Beginning(part, required, excluded) if required or excluded else part

    def sequence(self, tree: Any, flags: int) -> Language:
        """The language of a list of nodes, one after the other."""
        return Sequence(tuple(self.node(operation, value, flags) for operation, value in tree))

    def node(self, operation: Any, value: Any, flags: int) -> Language:
        """The language of one node."""
        kind = str(operation)
        if operation in CHARACTER_NODES:
            return Characters(character_ranges(operation, hashable(value), flags & CHARACTER_FLAGS))
        if operation is _constants.BRANCH:
            return Choice(tuple(self.sequence(branch, flags) for branch in value[1]))
        if operation is _constants.SUBPATTERN:
            _, added, removed, tree = value
            # ASCII and Unicode exclude each other.
            if added & CHARACTER_TYPES:
                flags &= ~CHARACTER_TYPES
            return self.sequence(tree, (flags | added) & ~removed)
        # A lazy quantifier finds another match, but matches the same texts.
        if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            least, most, tree = value
            is_bounded = most is not _constants.MAXREPEAT
            return Repeat(self.sequence(tree, flags), int(least), int(most) if is_bounded else None)
        if operation is _constants.AT:
            return self.anchor(str(value), flags)
        if kind == "FAILURE":
            return Choice(())
        self.refuse(UNSUPPORTED.get(kind, kind))
        return EMPTY

    def anchor(self, kind: str, flags: int) -> Language:
        if kind not in ANCHORS:
            self.refuse("a word boundary")
        if flags & re.MULTILINE and kind in ("AT_BEGINNING", "AT_END"):
            self.refuse("anchors of lines, the flag MULTILINE")
        return Anchor(ANCHORS[kind])

    def refuse(self, what: str):
        require(False, self.name, f"without {what}", self.pattern)


@cache
def all_characters() -> str:
    """All code points in order."""
    return "".join(map(chr, range(LAST_CHARACTER + 1)))


@cache
def character_ranges(operation: Any, value: Any, flags: int) -> Ranges:
    """The characters that a node matches, as `re` finds them among all there are."""
    if operation is _constants.LITERAL and not flags & re.IGNORECASE:
        return ((value, value),)

    # One or more of the node, so that a match is a range.
    state = _parser.State()
    state.flags = flags
    tree = _parser.SubPattern(state, [(operation, unhashed(value))])
    repeated = [(_constants.MAX_REPEAT, (1, _constants.MAXREPEAT, tree))]
    found = _compiler.compile(_parser.SubPattern(state, repeated), flags)

    ranges = []
    for match in found.finditer(all_characters()):
        first = match.start()
        last = match.end() - 1
        # Half of a character is none.
        ranges.append((first, min(last, SURROGATES[0] - 1)))
        ranges.append((max(first, SURROGATES[1] + 1), last))
    return joined([(first, last) for first, last in ranges if first <= last])


def hashable(value: Any) -> Any:
    return tuple(hashable(entry) for entry in value) if isinstance(value, list) else value


def unhashed(value: Any) -> Any:
    # The members of a set are a list of pairs.
    is_members = isinstance(value, tuple) and all(isinstance(entry, tuple) for entry in value)
    return list(value) if is_members else value
