"""The report of benchmarks/understanding.py: a table and the first answers of each task, and the commands."""

from collections.abc import Sequence
from typing import Any

from parts.common.results import Record
from parts.common.tables import Column, TableRow, markdown_table
from parts.understanding.baselines import Row
from parts.understanding.config import TRAININGS
from parts.understanding.training import command_of

EXAMPLES = 4

# Figures by their names in a record, and how many digits of them are shown
FIGURES = {
    "tags": {"accuracy": ("words right", 3), "unseen": ("of words never seen", 3)},
    "prepositions": {"free": ("right, of all words", 3), "among": ("right, of prepositions", 3)},
    "compression": {
        "f1": ("F1 of words", 3),
        "rouge_l": ("ROUGE-L", 3),
        "exact": ("exactly right", 3),
    },
    "paraphrase": {
        "chrf": ("chrF", 1),
        "f1": ("F1 of words", 3),
        "new_words": ("new words found", 3),
    },
}
# What was asked, and what is right, of a held-out row
QUESTIONS = {
    "tags": ("words", "tags"),
    "prepositions": ("gapped", "answer"),
    "compression": ("source", "text"),
    "paraphrase": ("source", "text"),
}


def with_error(figure: dict[str, float], digits: int) -> str:
    """A figure and its standard error.

    Example:
        >>> with_error({"value": 0.93, "error": 0.002}, digits=3)
        '0.930 ± 0.002'
    """
    return f"{figure['value']:.{digits}f} ± {figure['error']:.{digits}f}"


def task_table(task: str, records: dict[str, Record]) -> str:
    """Markdown of the figures of all systems of a task."""
    columns = {
        "minutes": Column("CPU minutes", "g"),
        "parameters": Column("parameters", ",d"),
    } | {name: Column(title) for name, (title, _) in FIGURES[task].items()}

    rows = []
    for record in records.values():
        cells = {name: record[name] for name in ("minutes", "parameters") if name in record}
        for name, (_, digits) in FIGURES[task].items():
            if record.get(name) is not None:
                cells[name] = with_error(record[name], digits)
        rows.append(TableRow([record["title"]], [cells]))
    return markdown_table([task], rows, columns)


def shown(value: Any) -> str:
    """A text, or words and tags side by side."""
    return value if isinstance(value, str) else " ".join(value)


def first_answers(task: str, rows: Sequence[Row], records: dict[str, Record]) -> str:
    """The first questions, what is right, and what each system answers, unpicked."""
    question, answer = QUESTIONS[task]
    lines = []
    for number, row in enumerate(rows[:EXAMPLES]):
        lines.append(f"- {shown(row[question])}")
        lines.append(f"  - right: {shown(row[answer])}")
        lines += [
            f"  - {record['title']}: {record['answers'][number]}" for record in records.values()
        ]
    return "\n".join(lines)


def task_report(task: str, rows: Sequence[Row], records: dict[str, Record]) -> str:
    """All that is said of a task."""
    commands = [command_of(name) for name in TRAININGS if name.startswith(f"{task}_")]
    parts = [
        f"## {task}, {len(rows)} held-out rows",
        task_table(task, records),
        first_answers(task, rows, records),
        "```\n" + "\n".join(commands) + "\n```",
    ]
    return "\n\n".join(parts)
