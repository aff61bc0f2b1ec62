"""Figures of texts, and the table of benchmarks/writing_orders.py."""

import re
from collections import Counter
from collections.abc import Sequence

from parts.common.results import Record
from parts.common.tables import Column, TableRow, markdown_table
from parts.writing_orders.config import Cell
from parts.writing_orders.judge import CharacterJudge
from text_diffusers.evaluation.text_metrics import distinct_n

REAL = "real texts"
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
COLUMNS = {
    "bits": Column("bits per character", ".2f"),
    "distinct_2": Column("distinct-2", ".2f"),
    "known": Column("known words", ".1%"),
    "loops": Column("with loops", ".0%"),
    "empty": Column("empty", ".0%"),
    "words": Column("words", ".1f"),
    "tokens": Column("tokens", ".1f"),
    "calls": Column("calls a text", ".1f"),
    "seconds": Column("CPU seconds a text", ".2f"),
}
HEADS = ["order", "window", "block", "steps", "temperature"]


def figures_of(texts: Sequence[str], judge: CharacterJudge, vocabulary: set[str]) -> Record:
    """What is said of the texts of a line.

    Args:
        vocabulary: words that the judge has seen, in lower case.
    """
    whole = [text for text in texts if text]
    figures: Record = {"empty": 1 - len(whole) / len(texts)}
    if not whole:
        return figures
    figures["bits"] = judge.bits_per_character(whole)
    figures["words"] = sum(len(text.split()) for text in whole) / len(whole)
    figures["loops"] = sum(has_loop(text) for text in whole) / len(whole)
    if any(len(text.split()) > 1 for text in whole):
        figures["distinct_2"] = distinct_n(whole, 2)
    words = [word.lower() for text in whole for word in WORD.findall(text)]
    if words:
        figures["known"] = sum(word in vocabulary for word in words) / len(words)
    return figures


def words_of(texts: Sequence[str], least: int = 2) -> set[str]:
    """Words in lower case that occur at least so often in texts: what occurs once may be a slip."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word.lower() for word in WORD.findall(text))
    return {word for word, count in counts.items() if count >= least}


def has_loop(text: str) -> bool:
    """Whether a word, or a pair of words, stands three times in a row.

    Example:
        >>> has_loop("so I am I am I am here"), has_loop("no, no, never")
        (True, False)
    """
    words = text.lower().split()
    for size in (1, 2):
        for first in range(len(words) - 3 * size + 1):
            unit = words[first : first + size]
            if words[first : first + 3 * size] == unit * 3:
                return True
    return False


def table(real: Record, lines: Sequence[tuple[Cell, Record]]) -> str:
    """Markdown, real texts first, then a line a cell."""
    rows = [TableRow([REAL, "", "", "", ""], [real])]
    for cell, record in lines:
        names = [
            cell.order,
            str(cell.window or "all"),
            str(cell.block_length or ""),
            str(cell.steps),
            f"{cell.temperature:g}",
        ]
        rows.append(TableRow(names, [record]))
    return markdown_table(HEADS, rows, COLUMNS)


def shown_texts(lines: Sequence[tuple[Cell, Record]], count: int) -> str:
    """The first texts of each line, none picked."""
    parts = []
    for cell, record in lines:
        parts.append(f"**{cell.name}**")
        parts.append("\n".join(f"- {text or '(empty)'}" for text in record["texts"][:count]))
    return "\n\n".join(parts)
