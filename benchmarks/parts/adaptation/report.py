"""The table of bits per character of benchmarks/adaptation.py, from the files of its finished runs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from parts.adaptation.rows import ROWS
from parts.common.results import Record, read_json
from parts.common.tables import Column, TableRow, markdown_table, values_of

HEADS = ["start", "learned"]
UNTRAINED = "untrained"


def read_records(folder: Path) -> list[Record]:
    """The records of all finished runs of a folder, in the order of the rows."""
    records = [read_json(path) for path in sorted(folder.glob("*.json"))]
    order = list(ROWS)
    return sorted(records, key=lambda record: (order.index(record["row"]), record["seed"]))


def bits_table(records: Sequence[Record]) -> str:
    """Markdown, a line a row and a column for each number of minutes."""
    minutes = sorted({point["minutes"] for record in records for point in record["points"]})
    columns = {
        "text": Column("text"),
        "trained": Column("weights trained"),
        "tokens": Column("tokens judged", ",d"),
        **{title_of(number): Column(title_of(number)) for number in minutes},
        "steps": Column("steps"),
        "seeds": Column("seeds"),
        "between": Column("between seeds"),
    }
    lines = []
    for row in ROWS:
        found = [record for record in records if record["row"] == row]
        if found:
            first = found[0]
            lines.append(TableRow([first["start"], first["objective"]], [cells_of(found)]))
    return markdown_table(HEADS, lines, columns, left=(0, 1, 2))


def title_of(minutes: float) -> str:
    return f"{minutes:g} min" if minutes else UNTRAINED


def cells_of(records: Sequence[Record]) -> Record:
    """The cells of a line: means over the runs of a row, those of each number of minutes by themselves."""
    first = records[0]
    cells: Record = {
        "text": first["text"],
        "trained": millions(first["trained"]) + " of " + millions(first["parameters"]),
        "tokens": first["held_out_tokens"],
        "seeds": str(len({record["seed"] for record in records})),
    }
    if first["trained"] == first["parameters"]:
        cells["trained"] = millions(first["parameters"])

    points: dict[float, list[Record]] = {}
    for record in records:
        for point in record["points"]:
            points.setdefault(point["minutes"], []).append(point)
    for minutes, alike in points.items():
        cells[title_of(minutes)] = cell_of(alike)

    # How far runs fall apart is said of the longest.
    longest = points[max(points)]
    cells["steps"] = f"{fmean(point['steps'] for point in longest):,.0f}"
    if len(longest) > 1:
        cells["between"] = f"{stdev([point['bits'] for point in longest]):.3f}"
    return cells


def cell_of(points: Sequence[Record]) -> str:
    """The mean bound of some runs, its standard error, and behind it their mean loss of next tokens, if they have one.

    The error is not made smaller by seeds, all of which are judged on the same rows. A loss has none.

    Example:
        >>> cell_of([{"bits": 1.7, "error": 0.03, "next_token_bits": 1.4}])
        '1.700 ± 0.030 (1.400)'
    """
    cell = f"{fmean(values_of(points, 'bits')):.3f}"
    if errors := values_of(points, "error"):
        cell += f" ± {fmean(errors):.3f}"
    if next_tokens := values_of(points, "next_token_bits"):
        cell += f" ({fmean(next_tokens):.3f})"
    return cell


def millions(number: int) -> str:
    return f"{number / 1e6:.1f}M"


def unknown_words(records: Sequence[Record]) -> list[str]:
    """A sentence for each start whose tokenizer does not know some of the words."""
    shares = {record["start"]: record["unknown_share"] for record in records}
    return [
        f"{start}: {share:.2%} of the held-out tokens are unknown words, each of which is predicted as one."
        for start, share in shares.items()
        if share
    ]
