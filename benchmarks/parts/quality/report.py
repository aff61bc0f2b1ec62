"""The table of benchmarks/quality.py, its picture, and what they say."""

import statistics
from pathlib import Path
from typing import Any

from parts.common.results import Record, read_json
from parts.common.tables import Column, TableRow, markdown_table, values_of
from parts.quality.config import AUXILIARY, GPT2
from parts.quality.evaluation import DATA
from text_diffusers.evaluation.plots import colors_of, pyplot, save
from text_diffusers.kernels import KERNELS

COLUMNS = {
    "parameters": Column("parameters", ",.0f"),
    "seconds_per_step": Column("CPU s a step", ".4f"),
    "steps": Column("steps", ",.0f"),
    "cpu_minutes": Column("CPU minutes", ".2f"),
    "nats_per_token": Column("nats per token", ".3f"),
    "ratio": Column("to GPT-2", ".3f"),
    "bits_per_character": Column("bits per character", ".3f"),
    "generative_perplexity": Column("generative perplexity", ".1f"),
    "entropy": Column("entropy", ".3f"),
    "distinct_1": Column("distinct-1", ".3f"),
    "distinct_2": Column("distinct-2", ".3f"),
    "distinct_3": Column("distinct-3", ".3f"),
}
TARGET = 1.15  # times the nats of the autoregressive model

# Orders that D3PM (https://arxiv.org/abs/2107.03006) reports, best first.
CHARACTER_ORDER = ["absorbing", "neighbors", "uniform"]  # on text8
WORD_PIECE_ORDER = ["absorbing", "uniform", "neighbors"]  # on LM1B


def by_model(records: list[Record]) -> dict[str, list[Record]]:
    """The records of each model, one a seed."""
    models = {}
    for record in records:
        models.setdefault(record["model"], []).append(record)
    return models


def mean_nats(records: list[Record]) -> dict[str, float]:
    """Nats per token of each model that has them, the mean over its seeds, from the fewest to the most."""
    means = {}
    for model, seeds in by_model(records).items():
        nats = values_of(seeds, "nats_per_token")
        if nats:
            means[model] = statistics.fmean(nats)

    # The table, the findings and the picture are all in this order.
    return dict(sorted(means.items(), key=lambda item: item[1]))


def read_records(folder: Path) -> list[Record]:
    """All finished runs of a folder, the data first, then from the fewest nats per token to the most.

    Raises:
        FileNotFoundError: if there is none.
    """
    records = [read_json(path) for path in folder.glob("*.json")]
    if not records:
        raise FileNotFoundError(f"`{folder}` holds no finished run.")

    # The data has no nats, and comes first.
    nats = mean_nats(records)

    def place(record: Record) -> tuple[float, str, int]:
        model = record["model"]
        return nats.get(model, 0.0), model, record["seed"]

    return sorted(records, key=place)


def quality_table(records: list[Record]) -> str:
    """A line a model, with mean ± standard deviation over seeds; "to GPT-2" is the ratio to that model's mean nats."""
    baseline = mean_nats(records).get(GPT2)
    rows = []
    for model, seeds in by_model(records).items():
        # The ratio is a figure of each seed, so that its spread is shown too.
        if baseline is not None and values_of(seeds, "nats_per_token"):
            seeds = [seed | {"ratio": seed["nats_per_token"] / baseline} for seed in seeds]

        num_seeds = "" if model == DATA else str(len(seeds))
        rows.append(TableRow([model, num_seeds], seeds))
    return markdown_table(["model", "seeds"], rows, COLUMNS)


def findings(records: list[Record], characters: bool) -> list[str]:
    """The target, the order of the kernels beside the paper's, and the auxiliary loss, as far as they were run."""
    nats = mean_nats(records)
    lines = []

    # The target, against whichever learning rate is best for GPT-2
    rivals = []
    for model, mean in nats.items():
        if model.partition(":")[0] == GPT2:
            rivals.append(mean)
    if rivals and "absorbing" in nats:
        ratio = nats["absorbing"] / min(rivals)
        verdict = "reached" if ratio <= TARGET else "missed"
        lines.append(
            f"Absorbing needs {ratio:.3f} times the nats of the best GPT-2; target {TARGET}: {verdict}."
        )

    # The order of the kernels
    order = [model for model in nats if model in KERNELS]
    if len(order) > 1:
        listed = ", ".join(f"{name} {nats[name]:.3f}" for name in order)
        lines.append(f"Kernels, best first: {listed}.")

        # The paper has no bit flips; an order needs all of its kernels.
        paper = CHARACTER_ORDER if characters else WORD_PIECE_ORDER
        if set(paper) <= set(order):
            measured = [name for name in order if name in paper]
            same = "the same" if measured == paper else "not the same"
            text = "text8" if characters else "LM1B"
            lines.append(f"D3PM's order on {text} is {', '.join(paper)}: {same}.")

    # What the auxiliary loss changes in the bound itself
    for kernel in order:
        if kernel + AUXILIARY in nats:
            change = nats[kernel + AUXILIARY] - nats[kernel]
            lines.append(
                f"The auxiliary cross-entropy changes {kernel} by {change:+.3f} nats per token."
            )
    return lines


# --- the picture


def plot_quality(records: list[Record], path: str | Path) -> Path:
    """Draw the picture of docs/discrete.md: nats per token of each model, and perplexity against entropy.

    Args:
        records: one a model and seed, with `model`, `seed` and any of `nats_per_token`, `entropy` and
            `generative_perplexity`; the model "data" is a yardstick. The second panel needs a judged record.
        path: of the picture; the ending chooses the format.

    Returns:
        `path`.

    Raises:
        ValueError: if no record has nats per token.
    """
    nats = mean_nats(records)
    if not nats:
        raise ValueError(
            f"`records` must hold one with `nats_per_token`, got none among {len(records)}."
        )
    judged = [record for record in records if "generative_perplexity" in record]

    # By name, so that a model keeps its colour when the order changes.
    colors = colors_of(sorted(nats)) | {DATA: "black"}

    # Bars have the same height in any number of models.
    num_panels = 2 if judged else 1
    size = (6.2 * num_panels, 1.6 + 0.42 * max(6, len(nats)))
    figure, axes = pyplot().subplots(1, num_panels, figsize=size, squeeze=False)

    draw_nats(axes[0, 0], nats, by_model(records), colors)
    if judged:
        draw_written(axes[0, 1], by_model(judged), colors)
    return save(figure, path)


def draw_nats(
    panel: Any,
    nats: dict[str, float],
    models: dict[str, list[Record]],
    colors: dict,
):
    """A bar a model for the mean over its seeds, best first, and a dot a seed."""
    most = 0.0
    for height, (name, mean) in enumerate(nats.items()):
        values = values_of(models[name], "nats_per_token")
        most = max(most, *values)
        color = colors[name]

        panel.barh(height, mean, color=color, alpha=0.35)
        heights = [height] * len(values)
        panel.scatter(values, heights, color=color, edgecolors="black", s=28, zorder=3)

        # The number stands to the right of the last dot.
        place = (max(values), height)
        offset = {"xytext": (7, 0), "textcoords": "offset points"}
        panel.annotate(f"{mean:.3f}", place, va="center", fontsize=9, **offset)

    # The best model is at the top.
    panel.set_yticks(range(len(nats)), nats)
    panel.invert_yaxis()
    panel.set(
        xlim=(0, 1.15 * most),
        xlabel="nats per token on held-out text (bounds; exact for gpt2)",
        title="Likelihood: less is better, a dot is a seed",
    )


def draw_written(panel: Any, models: dict[str, list[Record]], colors: dict):
    """Generative perplexity of written texts over their entropy; a star is the data."""
    for name, seeds in models.items():
        marker, size = ("*", 160) if name == DATA else ("o", 40)
        # A model whose runs have no likelihood has no bar, and is grey.
        panel.scatter(
            values_of(seeds, "entropy"),
            values_of(seeds, "generative_perplexity"),
            color=colors.get(name, "0.5"),
            marker=marker,
            s=size,
            label=name,
            zorder=3,
        )

    panel.set(
        xlabel="entropy of the tokens within a text (nats)",
        ylabel="generative perplexity",
        yscale="log",
        title="Written texts: near the star is better",
    )
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize=8)
