"""What `text-diffusers evaluate` measured, for people."""

import math
from collections.abc import Sequence

from text_diffusers.cli.evaluation.records import (
    DistancesFromReal,
    EvaluationRecord,
    WrappedEvaluation,
)
from text_diffusers.cli.evaluation.text_bounds import Evaluation, report
from text_diffusers.evaluation.distances.figures import Figure
from text_diffusers.evaluation.judges.text_figures import TextFigures

# Rows of the table of texts by the names of `TextFigures`
FIGURE_ROWS = {
    "length": "tokens a text",
    "token_entropy": "token entropy, nats",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs",
    "distinct_3": "distinct triples",
    "self_bleu": "self-BLEU",
    "repetition": "repeated 4-grams",
    "generative_perplexity": "generative perplexity",
}
# Rows of the table of distances by the names of `TextDistances`
DISTANCE_ROWS = {
    "frechet": "Fréchet",
    "mmd": "MMD², unbiased",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "divergence_curve": "divergence curve",
}


def report_of(record: EvaluationRecord) -> str:
    """Everything that was measured, with standard errors behind "+-"."""
    parts = []
    if isinstance(record.bound, Evaluation):
        parts.append(report(record.bound))
    elif record.bound is not None:
        parts.append(f"{report(record.bound.evaluation)}\n{facts_line(record.bound)}")
    if record.no_bound is not None:
        parts.append(f"bound              none: {record.no_bound}")
    if record.zero_shot:
        parts.append(zero_shot_table(record.zero_shot))
    if record.written is not None:
        parts.append(texts_table(record))
    if record.distances is not None:
        parts.append(distances_table(record.distances))

    return "\n\n".join([*parts, run_line(record)])


def facts_line(bound: WrappedEvaluation) -> str:
    """How rows were made."""
    facts = bound.rows
    ends = "with ends between them" if facts["ends"] else "as they are"
    framed = ", each row framed" if facts["framed"] else ""
    return (
        f"The texts of this bound are {facts['num_rows']:,} of {facts['num_rows_in_all']:,} rows of "
        f"{facts['length']:,} tokens, of all texts joined {ends}{framed}; {facts['num_dropped_tokens']:,} tokens "
        "behind the last row are left out."
    )


def zero_shot_table(bounds: dict[str, WrappedEvaluation]) -> str:
    """A row a set."""
    rows = [("set", "perplexity, at most", "nats per token", "bits per character", "rows")]
    for name, bound in bounds.items():
        found = bound.evaluation
        rows.append(
            (
                name,
                number(figure_of(found.perplexity, found.perplexity_error)),
                number(figure_of(found.nats_per_token, found.standard_error)),
                number(figure_of(found.bits_per_character, found.bits_per_character_error)),
                f"{bound.rows['num_rows']:,} of {bound.rows['num_rows_in_all']:,}",
            )
        )
    some = next(iter(bounds.values()))
    note = (
        f"Rows of {some.rows['length']:,} tokens of joined texts; the errors are "
        f"{'' if some.evaluation.standard_error is None else 'those '}{some.evaluation.error_is}."
    )
    return f"{table(rows)}\n{note}"


def texts_table(record: EvaluationRecord) -> str:
    """Written texts beside real ones."""
    assert record.written is not None
    columns: list[TextFigures] = [record.written.figures]
    heading = ["", "written"]
    if record.real is not None:
        columns.append(record.real.figures)
        heading.append("real")

    # What was not measured has no row.
    rows = [heading, ["texts", *(f"{column.num_texts:,}" for column in columns)]]
    rows.append(["of these empty", *(f"{column.num_empty:,}" for column in columns)])
    for name, label in FIGURE_ROWS.items():
        figures = [getattr(column, name) for column in columns]
        if name == "self_bleu":
            # Texts are compared with each other up to a number.
            numbers = dict.fromkeys(column.num_bleu_texts for column in columns)
            label = f"{label} (of {', '.join(map(str, numbers))})"
        if any(figure is not None for figure in figures):
            rows.append([label, *map(number, figures)])
    if record.written.length_distance is not None:
        rows.append(["distance of lengths", number(record.written.length_distance)])
    if record.written.tokens_per_second is not None:
        rows.append(["tokens a second", f"{record.written.tokens_per_second:,.1f}"])

    lines = [table(rows)]
    unit = columns[0].unit
    if unit is not None:
        lines.append(f"The perplexity is per {unit}; only perplexities by one judge compare.")
    if record.real is not None and record.real.num_cut:
        lines.append(f"{record.real.num_cut:,} real texts are cut to what the model can write.")
    if record.written.judge_is_kin:
        lines.append("The judge seems to be the model itself, or what it was made from.")
    return "\n".join(lines)


def distances_table(distances: DistancesFromReal) -> str:
    """Distances from real texts, beside those of other real ones."""
    written = distances.written
    floor = distances.floor
    rows = [["distance from real texts", "written", "other real ones"]]
    for name, label in DISTANCE_ROWS.items():
        rows.append([label, number(getattr(written, name)), number(getattr(floor, name))])
    rows.append(["p-value of MMD²", f"{written.mmd_p_value:.3f}", f"{floor.mmd_p_value:.3f}"])

    lines = [table(rows)]
    lines.append(f"Of {written.num_first:,} texts each, as {distances.encoder} embeds them.")
    if written.is_frechet_singular:
        lines.append(
            "These are too few for the Fréchet distance by itself: read it beside that of other real texts."
        )
    return "\n".join(lines)


def run_line(record: EvaluationRecord) -> str:
    """How it was measured."""
    run = record.run
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    processes = "" if run["num_processes"] == 1 else f", {run['num_processes']} processes"
    return f"{run['device']}, {run['dtype']}, seed {run['seed']}{processes}, {run['seconds']:.1f} seconds; {versions}"


def figure_of(value: float, error: float | None) -> Figure:
    """A figure of a bound, whose error may be unknown."""
    return Figure(value, math.nan if error is None else error)


def number(figure: Figure | None) -> str:
    """A figure with its error, to as many places as its size needs."""
    if figure is None or math.isnan(figure.value):
        return "-"
    size = max(
        abs(figure.value), 0.0 if math.isnan(figure.standard_error) else figure.standard_error
    )
    places = 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.1 else 5
    shown = f"{figure.value:,.{places}f}"
    if math.isnan(figure.standard_error):
        return shown
    return f"{shown} +- {figure.standard_error:,.{places}f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns that are as wide as they need to be; short rows end early."""
    num_columns = max(map(len, rows))
    widths = []
    for column in range(num_columns):
        cells = [row[column] for row in rows if column < len(row)]
        widths.append(max(map(len, cells)))
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
