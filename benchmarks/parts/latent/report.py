"""Tables, pictures and unpicked texts of benchmarks/latent.py."""

from collections.abc import Sequence

import matplotlib.pyplot as plt

from parts.common.pictures import use_logarithmic_x
from parts.common.results import Record
from parts.common.tables import Column, TableRow, markdown_table
from parts.latent.config import LatentBenchmarkConfig

SHOWN = 20
FIGURES = {
    "perplexity": Column("perplexity", ".1f"),
    "seen_pairs": Column("seen pairs", ".1%"),
    "known_words": Column("known words", ".1%"),
    "words": Column("words", ".1f"),
    "entropy": Column("entropy", ".2f"),
    "distinct_2": Column("distinct-2", ".3f"),
    "self_bleu": Column("self-BLEU", ".1f"),
}
SAMPLER_COLUMNS = {
    **FIGURES,
    "distance": Column("distance", ".4f"),
    "latent_seconds": Column("latents, s a text", ".3f"),
    "decoding_seconds": Column("words, s a text", ".3f"),
}
LABEL_COLUMNS = {"followed": Column("label followed", ".3f"), **FIGURES}
REPLY_COLUMNS = {
    "relevance": Column("relevance", ".3f"),
    **FIGURES,
    "different": Column("different", ".3f"),
}
FACT_COLUMNS = {
    "name": Column("name", ".3f"),
    "product": Column("product", ".3f"),
    "number": Column("number", ".3f"),
    "tone": Column("tone", ".3f"),
    "all": Column("all four", ".3f"),
    "different": REPLY_COLUMNS["different"],
    "self_bleu": FIGURES["self_bleu"],
}
MEMORY_COLUMNS = {
    "weights": Column("weights, MiB", ".0f"),
    "peak": Column("beside them, MiB", ".0f"),
}


def memory_part(records: Sequence[Record]) -> str:
    """Weights and peak of each model."""
    rows = [TableRow([record["name"]], [record]) for record in records]
    return f"## Memory\n\n{markdown_table(['writes'], rows, MEMORY_COLUMNS)}"


def sampler_part(options: LatentBenchmarkConfig, records: Sequence[Record]) -> str:
    """Samplers by steps, and texts."""
    rows = []
    for record in records:
        steps = record.get("steps", "")
        rows.append(TableRow([record["name"], str(steps)], [record]))
    parts = ["## Samplers", markdown_table(["texts", "steps"], rows, SAMPLER_COLUMNS)]
    draw_samplers(options, records)

    # What the pipeline writes by default, and what the decoder writes without it
    for record in records:
        by_default = record["name"].startswith("euler") and record.get("steps") == 50
        if by_default or "steps" not in record:
            parts.append(shown(record["name"], record["texts"]))
    return "\n\n".join(parts)


def label_part(records: Sequence[Record], note: str) -> str:
    """Labels by scale, and texts of each label at the scale at which most are followed."""
    rows = [TableRow([f"{record['scale']:g}"], [record]) for record in records]
    parts = ["## Labels", note, markdown_table(["scale"], rows, LABEL_COLUMNS)]

    best = max(records, key=lambda record: record["followed"])
    for label in sorted(set(best["labels"])):
        pairs = zip(best["texts"], best["labels"], strict=True)
        own = [text for text, number in pairs if number == label]
        parts.append(shown(f"label {label}, scale {best['scale']:g}", own))
    return "\n\n".join(parts)


def reply_part(
    options: LatentBenchmarkConfig, records: Sequence[Record], sources: Sequence[str]
) -> str:
    """Systems by temperature, and replies to the first contexts."""
    # Real replies have no temperature.
    rows = []
    for record in records:
        temperature = record.get("temperature")
        cell = "" if temperature is None else f"{temperature:g}"
        rows.append(TableRow([record["name"], cell], [record]))
    parts = ["## Replies", markdown_table(["system", "temperature"], rows, REPLY_COLUMNS)]
    draw_replies(options, records)

    # Latents at the likeliest tokens, and the decoder alone as it is trained
    of_interest = [record for record in records if record.get("temperature") in (0.0, 1.0)]
    count = options.num_replies
    for place, source in enumerate(sources[: SHOWN // count]):
        parts.append(f"> {source}".replace("\n", "\n> "))
        for record in of_interest:
            own = record["texts"][place * count : (place + 1) * count]
            parts.append(shown(f"{record['name']}, temperature {record['temperature']:g}", own))
    return "\n\n".join(parts)


def fact_part(language: str, records: Sequence[Record], count: int) -> str:
    """Ways to reply with their facts, and the replies to the first question."""
    rows = [TableRow([record["system"]], [record]) for record in records]
    parts = [f"## Known facts: {language}", markdown_table(["system"], rows, FACT_COLUMNS)]

    parts.append(f"> {records[0]['question']}")
    for record in records:
        parts.append(shown(record["system"], record["texts"][:count]))
    return "\n\n".join(parts)


def shown(name: str, texts: Sequence[str]) -> str:
    """The first texts, none picked."""
    lines = [f"**{name}**", ""]
    lines += [f"- {text or '(empty)'}" for text in texts[:SHOWN]]
    return "\n".join(lines)


def draw_samplers(options: LatentBenchmarkConfig, records: Sequence[Record]):
    """Figures of each sampler by steps, beside real texts and the decoder alone."""
    # A line for each sampler at the likeliest tokens, and a level for what takes no steps
    levels = []
    lines: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.get("steps", 0)):
        if "steps" not in record:
            levels.append(record)
        elif "temperature" not in record["name"]:
            lines.setdefault(record["name"], []).append(record)

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axes, name in zip(panels, ("perplexity", "self_bleu", "distance"), strict=True):
        for label, own in lines.items():
            steps = [record["steps"] for record in own]
            axes.plot(steps, [record[name] for record in own], marker="o", label=label)

        for record, dash in zip(levels, ("--", "-.", ":"), strict=True):
            # Real texts are at no distance from themselves.
            if name in record:
                axes.axhline(record[name], color="gray", linestyle=dash, label=record["name"])

        axes.set(xlabel="steps", ylabel=SAMPLER_COLUMNS[name].title)
        use_logarithmic_x(axes, (1, 2, 5))
        if name != "self_bleu":
            axes.set_yscale("log")

    panels[0].legend(fontsize=7)
    figure.savefig(options.folder / "samplers.png", dpi=110)
    plt.close(figure)


def draw_replies(options: LatentBenchmarkConfig, records: Sequence[Record]):
    """Quality against variety: the judge's perplexity and the relevance by self-BLEU, a line a system."""
    real, *written = records
    lines: dict[str, list[Record]] = {}
    for record in written:
        lines.setdefault(record["name"], []).append(record)

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, name in zip(panels, ("perplexity", "relevance"), strict=True):
        for label, own in lines.items():
            variety = [record["self_bleu"] for record in own]
            quality = [record[name] for record in own]
            axes.plot(variety, quality, marker="o", label=label)
            for record, x, y in zip(own, variety, quality, strict=True):
                axes.annotate(f"{record['temperature']:g}", (x, y), fontsize=7)

        axes.axhline(real[name], color="gray", linestyle="--", label="real replies")
        axes.set(xlabel="self-BLEU of the replies to a context", ylabel=REPLY_COLUMNS[name].title)
        axes.grid(alpha=0.3)

    panels[0].legend(fontsize=8)
    figure.savefig(options.folder / "replies.png", dpi=110)
    plt.close(figure)
