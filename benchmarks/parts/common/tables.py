"""Tables of records: a row is a model, or a cell of a comparison, over its seeds; a column is a figure of its records.

Example:
    >>> columns = {"nats": Column("nats per token", ".2f"), "entropy": Column("entropy", ".1f")}
    >>> rows = [TableRow(["gpt2"], [{"nats": 4.0}, {"nats": 5.0}]), TableRow(["data"], [])]
    >>> print(markdown_table(["model"], rows, columns))
    | model | nats per token |
    | --- | ---: |
    | gpt2 | 4.50 ± 0.71 |
    | data |  |
"""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from parts.common.results import Record

# Characters of a column that is printed line by line.
NAME_WIDTH = 38
FIGURE_WIDTH = 9


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: its head.
        style: a format specification.
        scale: what its figures are multiplied by.
    """

    title: str
    style: str = ""
    scale: float = 1


class TableRow(NamedTuple):
    """A row of a table: its first cells, and the records that the others summarize."""

    names: list[str]
    records: list[Record]


def values_of(records: Iterable[Record], figure: str) -> list[Any]:
    """A figure of each record that has it."""
    return [record[figure] for record in records if record.get(figure) is not None]


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of several values; 0 of one."""
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / math.sqrt(len(values))


def mean_and_spread(
    values: Sequence[Any],
    style: str,
    spread: Callable[[Any], float],
) -> str:
    """The mean and, of values that differ, their spread."""
    if not values:
        return ""

    # One value may also be text, which is shown as it is.
    if len(set(values)) == 1:
        return values[0] if isinstance(values[0], str) else format(values[0], style)

    return f"{statistics.fmean(values):{style}} ± {spread(values):{style}}"


def markdown_table(
    titles: Sequence[str],
    rows: Sequence[TableRow],
    columns: dict[str, Column],
    spread: Callable[[Any], float] = statistics.stdev,
    left: Collection[int] = (0,),
) -> str:
    """Markdown of all rows; a column of which no record has the figure is left out.

    Args:
        titles: heads of the first cells of a row.
        rows: in the order of the table.
        columns: by the name of their figure in a record.
        spread: of a figure over the records of a row.
        left: numbers of the columns that are not aligned to the right.
    """
    # A comparison that lacks a figure everywhere has no column of it.
    records = [record for row in rows for record in row.records]
    shown = {figure: column for figure, column in columns.items() if values_of(records, figure)}

    head = [*titles, *(column.title for column in shown.values())]
    rule = ["---" if place in left else "---:" for place in range(len(head))]
    lines = [head, rule]

    # A cell of figures is the mean of all records of its row.
    for row in rows:
        cells = list(row.names)
        for figure, column in shown.items():
            values = values_of(row.records, figure)
            if column.scale != 1:
                values = [
                    value if isinstance(value, str) else column.scale * value for value in values
                ]
            cells.append(mean_and_spread(values, column.style, spread))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_aligned(line: Record, first: bool = False):
    """Print the figures of a line in columns, and the names of the columns above those of the first."""
    # All widths are fixed in advance, as the lines to come are not known.
    widths = {}
    for name in line:
        least = NAME_WIDTH if name in ("step", "case") else FIGURE_WIDTH
        widths[name] = max(len(name), least)

    head = {name: name for name in line}
    for cells in (head, line) if first else (line,):
        aligned = [f"{cells[name]!s:<{width}}" for name, width in widths.items()]
        # A measurement may take minutes, so each line is shown at once.
        print("  ".join(aligned).rstrip(), flush=True)


def met_or_missed(value: float, target: float, at_most: bool = False) -> str:
    """Whether a figure reaches its target, the least or the largest value; an error of 1e-9 is one of rounding."""
    reached = value <= target if at_most else value >= target - 1e-9
    return "met" if reached else "missed"
