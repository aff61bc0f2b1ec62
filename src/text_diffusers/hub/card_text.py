"""Text of others in Markdown, where it must be read and never obeyed."""

import re
import textwrap
from collections.abc import Iterable
from typing import Any

LINE = 100
SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&:@^=.])")


def one_line(text: str) -> str:
    """The text without line breaks and invisible characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())


def escaped(text: str) -> str:
    """One line of Markdown that reads as the text."""
    return SPECIAL.sub(r"\\\1", one_line(text))


def code(text: str) -> str:
    """A span of code."""
    text = one_line(text)
    ticks = "`" * (longest_run(text) + 1)
    edge = " " if text[:1] in ("`", "") or text[-1:] == "`" else ""
    return f"{ticks}{edge}{text}{edge}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """A block of code, whose lines are kept; invisible characters are shown as what cannot be read."""
    lines = [
        "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in row)
        for row in rows(text)
    ]
    ticks = "`" * max(3, longest_run(text) + 1)
    return "\n".join([f"{ticks}{language}", *lines, ticks])


def wrapped(text: str) -> str:
    """The text with line breaks added where a line is long: without them it is the text again."""
    return "\n".join(line for row in rows(text) for line in wrapped_row(row))


def wrapped_row(row: str) -> list[str]:
    kept: dict[str, Any] = {
        "drop_whitespace": False,
        "replace_whitespace": False,
        "expand_tabs": False,
    }
    return textwrap.wrap(row, LINE, break_on_hyphens=False, break_long_words=False, **kept) or [""]


def rows(text: str) -> list[str]:
    return text.replace("\r\n", "\n").split("\n")


def longest_run(text: str) -> int:
    """Most backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table of Markdown whose cells may hold bars."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *lines)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
