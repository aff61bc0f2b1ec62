"""The table of benchmarks/results.py."""

from typing import Any

from parts.common.results import Record, read_json
from parts.common.tables import Column, TableRow, markdown_table
from parts.results.config import ResultsConfig, Run
from parts.results.rows import AUTOREGRESSIVE, ROWS, SAMPLERS, SCRATCH
from parts.results.training import command_of

COLUMNS = {
    "num_parameters": Column("million weights", ".1f", 1e-6),
    "minutes": Column("CPU minutes", ".3g"),
    "bits_per_character": Column("bits per character", ".3f"),
    "generative_perplexity": Column("perplexity of the judge", ".0f"),
    "token_entropy": Column("entropy", ".2f"),
    "self_bleu": Column("self-BLEU", ".1f"),
    "mmd": Column("MMD² × 1,000", ".1f", 1e3),
    "divergence_curve": Column("divergence curve", ".2f"),
    "tokens_per_second": Column("tokens a second", ",.0f"),
}
# Of real texts there is no model.
REAL_COLUMNS = ("generative_perplexity", "token_entropy", "self_bleu", "mmd", "divergence_curve")


def read_records(options: ResultsConfig) -> dict[str, list[Record]]:
    """The finished records of each row that has some."""
    records = {}
    for name in ROWS:
        seeds = options.seeds if ROWS[name].repeated else options.seeds[:1]
        files = [options.figures_file(Run(name, seed)) for seed in seeds]
        found = [read_json(file) for file in files if file.exists()]
        if found:
            records[name] = found
    return records


def with_errors(records: list[Record]) -> list[Record]:
    """A row of the table: figures of a single run as text, with their standard errors; of several runs as they are."""
    if len(records) > 1:
        return records
    shown = dict(records[0])
    for name, column in COLUMNS.items():
        error = shown.get(f"{name}_error")
        if error is not None:
            value = column.scale * shown[name]
            shown[name] = f"{value:{column.style}} ± {column.scale * error:{column.style}}"
    return [shown]


def results_table(records: dict[str, list[Record]]) -> str:
    """Markdown of all finished rows, a part of the table behind the other, and the texts of people at its end."""
    rows = []
    group = None
    for name, found in records.items():
        row = ROWS[name]
        if row.group != group:
            group = row.group
            rows.append(TableRow([f"**{group}**"], []))
        rows.append(TableRow([row.title], with_errors(found)))

    # Other texts of people, beside the same ones
    first = own_tokens(records)
    real = {name: first.get(f"real_{name}") for name in REAL_COLUMNS}
    real |= {f"{name}_error": first.get(f"real_{name}_error") for name in REAL_COLUMNS}
    rows += [
        TableRow(["**texts of people**"], []),
        TableRow(["as many others"], with_errors([real])),
    ]
    return markdown_table(["model"], rows, COLUMNS)


def own_tokens(records: dict[str, list[Record]]) -> Record:
    """A record whose real texts were counted in the tokens of the models from scratch, if there is one."""
    for name, found in records.items():
        if ROWS[name].group in (SCRATCH, SAMPLERS) and name != AUTOREGRESSIVE:
            return found[0]
    return next(iter(records.values()))[0]


def commands(records: dict[str, Any]) -> str:
    """The commands of all finished rows that are trained, as Markdown."""
    lines = []
    for name in records:
        row = ROWS[name]
        # The yardstick has no recipe: this benchmark trains it.
        if row.stages and name != AUTOREGRESSIVE:
            lines.append(f"# {row.group}: {row.title}")
            lines += [command_of(name, number) for number in range(len(row.stages))]
    return "\n".join(["```text", *lines, "```"])
