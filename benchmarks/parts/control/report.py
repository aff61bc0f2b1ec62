"""The table, the picture and the findings of benchmarks/control.py, a record for each control and scale."""

from collections.abc import Sequence
from pathlib import Path

from parts.common.pictures import use_logarithmic_x
from parts.common.results import Record, write_report
from parts.common.tables import Column, TableRow, markdown_table, met_or_missed, values_of
from parts.control.cases import CASES
from parts.control.config import ControlConfig
from text_diffusers.evaluation.plots import pyplot, save

REAL = "real texts"
UNGUIDED = "unguided"
COLUMNS = {
    "success": Column("success", ".3f"),
    "interval_text": Column("95% interval"),
    "parts_met": Column("parts met", ".3f"),
    "generative_perplexity": Column("generative perplexity", ".1f"),
    "distinct_1": Column("distinct-1", ".3f"),
    "distinct_2": Column("distinct-2", ".3f"),
    "self_bleu": Column("self-BLEU", ".1f"),
    "seconds": Column("seconds", ".0f"),
}

# Targets, all of them at this scale.
TARGET_SCALE = 3
SUCCESS = 0.85  # of a label
GAIN = 0.20  # of success, over the unguided model
PERPLEXITY_RATIO = 1.5  # to scale 1
LENGTHS_RIGHT = 0.99


def table(records: Sequence[Record]) -> str:
    """Markdown, a line a record."""
    rows = []
    for record in records:
        # Real texts have no scale.
        scale = "" if record["scale"] is None else f"{record['scale']:g}"

        if "interval" in record:
            record = record | {"interval_text": "{:.3f} to {:.3f}".format(*record["interval"])}
        rows.append(TableRow([record["control"], scale], [record]))
    return markdown_table(["control", "scale"], rows, COLUMNS)


def findings(records: Sequence[Record]) -> list[str]:
    """The targets of labels and of length, each met or missed, as far as their scales were run."""
    runs = {(record["control"], record["scale"]): record for record in records}
    lines = []
    for name, case in CASES.items():
        guided = runs.get((name, TARGET_SCALE))
        if guided is None:
            continue

        if name == "length":
            lines.append(
                verdict(f"{name}: right within 2 tokens", guided["success"], LENGTHS_RIGHT)
            )
        if not case.asks_for_label_only:
            continue

        # What guidance by a label gains
        lines.append(verdict(f"{name}: success", guided["success"], SUCCESS))
        unguided = runs.get((name, 0))
        if unguided is not None:
            gain = guided["success"] - unguided["success"]
            lines.append(verdict(f"{name}: success above the unguided model's", gain, GAIN))

        # What it costs, beside scale 1, the conditional distribution without emphasis
        perplexity = guided.get("generative_perplexity")
        first_perplexity = runs.get((name, 1), {}).get("generative_perplexity")
        if perplexity is not None and first_perplexity is not None:
            ratio = perplexity / first_perplexity
            title = f"{name}: generative perplexity over that of scale 1"
            lines.append(verdict(title, ratio, PERPLEXITY_RATIO, at_most=True))
    return lines


def verdict(
    figure: str,
    value: float,
    target: float,
    at_most: bool = False,
) -> str:
    """A line of the findings: a figure beside its target."""
    limit = "at most" if at_most else "at least"
    result = met_or_missed(value, target, at_most)
    return f"{figure}, at scale {TARGET_SCALE}: {value:.3f}, target {limit} {target:g}: {result}."


def plot_control(records: Sequence[Record], path: str | Path) -> Path:
    """Draw the picture of docs/guidance.md: success over perplexity, a line a control; real texts are a star."""
    figure, axes = pyplot().subplots(figsize=(9, 6))
    for name in dict.fromkeys(record["control"] for record in records):
        runs = [record for record in records if record["control"] == name]
        perplexities = values_of(runs, "generative_perplexity")
        successes = values_of(runs, "success")
        if name == REAL:
            axes.plot(perplexities, successes, "*", color="black", markersize=14, label=name)
            continue

        # A line goes from scale to scale.
        (line,) = axes.plot(perplexities, successes, "o-", markersize=4, label=name)
        style = {"textcoords": "offset points", "fontsize": 8, "color": line.get_color()}
        for run, *point in zip(runs, perplexities, successes, strict=True):
            axes.annotate(f"{run['scale']:g}", point, xytext=(4, 4), **style)

    use_logarithmic_x(axes, digits=(1, 2, 3, 5))
    axes.set(
        ylim=(-0.03, 1.03), xlabel="generative perplexity", ylabel="success, by independent judges"
    )
    axes.set_title("Control against fluency; numbers are guidance scales", fontsize=11)
    axes.legend(fontsize=8)

    return save(figure, path, dpi=120)


def report(options: ControlConfig, records: list[Record], notes: list[str]):
    """Print and save the table with what it says, and draw the plot."""
    # 1. The table and the findings
    lines = [*findings(records), *notes]
    text = f"{options.num_texts} texts each, {options.num_inference_steps} steps\n\n{table(records)}\n\n"
    text += "\n".join(f"- {line}" for line in lines)

    # 2. The same figures as JSON, without the texts, which have files of their own
    figures = []
    for record in records:
        names = record.keys() - {"texts", "tokens", "wishes"}
        figures.append({name: record[name] for name in names})
    write_report(options.folder, "control", text, {"records": figures, "notes": lines})

    # 3. The picture
    if all("generative_perplexity" in record for record in records):
        path = plot_control(records, options.picture or options.folder / "control.png")
        print(f"Plot: {path}")
    else:
        print("No plot without a judge of perplexity.")
