"""Markdown of text that others wrote: it is shown as it is, and none of it acts as Markdown or HTML.

Example:
    >>> from text_diffusers.hub.card_text import code, escaped
    >>> escaped("# no heading")
    '\\\\# no heading'
    >>> code("a `b`")
    '`` a `b` ``'
"""

import re
import textwrap
from collections.abc import Iterable, Sequence

LINE_LENGTH = 100
BAR = r"\|"  # within a cell of a table

# Whatever may begin markup, HTML, an entity, a link, a formula or a heading
SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&:@^=.])")


def one_line(text: str) -> str:
    """The text without line breaks and invisible characters."""
    # Control characters could reorder or hide what follows them.
    printable = "".join(char if char.isprintable() else " " for char in str(text))
    return " ".join(printable.split())


def escaped(text: str) -> str:
    """One line of Markdown that reads as the text."""
    return SPECIAL.sub(r"\\\1", one_line(text))


def code(text: str) -> str:
    """A span of code."""
    text = one_line(text)

    # A span ends at the first run of as many backticks as it began with.
    ticks = "`" * (longest_run(text) + 1)

    # A backtick at an end would be read as one of those around the span.
    edge = " " if text[:1] in ("`", "") or text[-1:] == "`" else ""
    return f"{ticks}{edge}{text}{edge}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """A block of code that keeps the lines; invisible characters become the replacement character."""
    lines = []
    for row in rows(text):
        shown = [char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in row]
        lines.append("".join(shown))

    # A fence longer than any run in the text cannot be closed by the text.
    ticks = "`" * max(3, longest_run(text) + 1)
    return "\n".join([f"{ticks}{language}", *lines, ticks])


def wrapped(text: str) -> str:
    """The text with line breaks added where a line is long: without them it is the text again."""
    # By default a wrapper tidies white space up and breaks words, and the text would not come back.
    wrapper = textwrap.TextWrapper(
        width=LINE_LENGTH,
        drop_whitespace=False,
        replace_whitespace=False,
        expand_tabs=False,
        break_on_hyphens=False,
        break_long_words=False,
    )
    lines = []
    for row in rows(text):
        # The wrapper makes no line of an empty one.
        lines += wrapper.wrap(row) or [""]
    return "\n".join(lines)


def rows(text: str) -> list[str]:
    return text.replace("\r\n", "\n").split("\n")


def longest_run(text: str) -> int:
    """The number of backticks in the longest run of them."""
    return max(map(len, re.findall("`+", text)), default=0)


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; bars in its cells are escaped."""
    written = []
    for cells in (header, ["---"] * len(header), *lines):
        # A bar ends a cell even within a span of code.
        written.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return "\n".join(written)
