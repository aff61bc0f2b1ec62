"""The tables of benchmarks/scaling.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts.common.results import Record, read_json
from parts.common.tables import Column, TableRow, markdown_table
from parts.scaling.config import (
    LOSS,
    PROCESSES,
    TOKENS_A_DAY,
    TRAINING,
    WRITING,
    ScalingConfig,
)
from parts.scaling.extrapolation import memory_table, training_table, writing_table
from parts.scaling.fits import fit_power_law
from parts.scaling.laws import Frontier, frontier_of, means_over_seeds
from parts.scaling.losses import DATA
from parts.scaling.pictures import plot_costs, plot_losses

LOSS_COLUMNS = {
    "parameters": Column("parameters", ",.0f"),
    "non_embedding": Column("without embeddings and head", ",.0f"),
    "tokens": Column("tokens", ",.0f"),
    "tokens_per_parameter": Column("a parameter", ".1f"),
    "flops": Column("FLOPs", ".2e"),
    "cpu_seconds": Column("CPU seconds", ",.0f"),
    "nats_per_token": Column("nats per token", ".3f"),
    "bits_per_character": Column("bits per character", ".3f"),
}
COST_COLUMNS = {
    "parameters": Column("parameters", ",.0f"),
    "seconds": Column("CPU seconds", ".3g"),
    "tokens_per_second": Column("tokens a second", ",.0f"),
    "forwards": Column("a step in forwards", ".2f"),
    "flops_per_token": Column("FLOPs a token", ".2e"),
    "flops_share": Column("of dense", ".2f"),
}
TRAINING_COLUMNS = COST_COLUMNS | {"forwards": Column("in forwards", ".2f")}
PROCESS_COLUMNS = {
    "seconds": Column("seconds", ".3g"),
    "tokens_per_second": Column("tokens a second", ",.0f"),
    "cpu_seconds_per_token": Column("CPU ms a token", ".3f", scale=1000),
    "load": Column("load", ".1f"),
}
MEMORY_COLUMNS = {
    "bytes": Column("bytes", ".1f"),
    "checkpointed_bytes": Column("with checkpointing", ".1f"),
}
CHANGES = {
    "length": "tokens in a row",
    "steps": "steps",
    "batch": "rows",
    "width": "width",
    "blocks": "tokens in a row",
}


def finished(folder: Path) -> dict[str, Any]:
    """All finished figures of a folder, by the names of their files."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}


def rows_of(records: Sequence[Record], name: str) -> list[TableRow]:
    return [TableRow([str(record[name])], [record]) for record in records]


# --- what was measured


def loss_report(options: ScalingConfig) -> str:
    """The losses of all runs, the least at each compute, and the power law."""
    results = finished(options.folder / "results" / LOSS)
    data = results.pop(DATA, None)
    if data is None or not results:
        return ""

    kernels: dict[str, tuple[list[Record], Frontier]] = {}
    parts = []
    for kernel in sorted({record["kernel"] for record in results.values()}):
        records = [record for record in results.values() if record["kernel"] == kernel]
        frontier = frontier_of(records, options)
        kernels[kernel] = (records, frontier)
        parts += [f"loss of {kernel} against compute", loss_table(records, frontier)]
        parts.append(findings(frontier, data))
    picture = plot_losses(kernels, data["unigram_entropy"], options.picture("scaling_loss.png"))
    return "\n\n".join([*parts, f"Picture: {picture}"])


def loss_table(records: list[Record], frontier: Frontier) -> str:
    """A line a size and budget; the best of a budget is bold."""
    best = {(mean["size"], mean["budget"]) for mean in frontier.best}
    rows = []
    for mean in means_over_seeds(records):
        figures = mean | {"tokens_per_parameter": mean["tokens"] / mean["parameters"]}
        chosen = (mean["size"], mean["budget"]) in best
        size = f"**{mean['size']}**" if chosen else mean["size"]
        rows.append(TableRow([f"{mean['budget']:.1e}", size], [figures]))
    return markdown_table(["budget", "size"], rows, LOSS_COLUMNS)


def findings(frontier: Frontier, data: Record) -> str:
    """The slope and its error, in words."""
    lines = [f"Token frequencies alone: {data['unigram_entropy']:.3f} nats per token."]
    if frontier.law is None or frontier.growth is None:
        return lines[0]
    low, high = frontier.exponent
    factor = 10**-frontier.law.exponent
    lines.append(
        f"Least loss ~ C^-{frontier.law.exponent:.4f} (nine tenths of bootstraps: {low:.4f} to {high:.4f}): ten "
        f"times the compute leaves {factor:.3f} of the loss."
    )
    if frontier.with_floor is not None:
        law = frontier.with_floor
        lines.append(f"With a floor: {law.floor:.3f} + {law.scale:.3g} C^-{law.exponent:.4f}.")
    low, high = frontier.growth_exponent
    ratios = [f"{mean['tokens'] / mean['parameters']:.1f}" for mean in frontier.best]
    lines.append(
        f"Best number of parameters ~ C^{-frontier.growth.exponent:.2f} ({low:.2f} to {high:.2f}); tokens a parameter "
        f"of the best: {', '.join(ratios)}."
    )
    return "\n".join(lines)


def cost_report(options: ScalingConfig, part: str) -> str:
    """The sweeps of writing or training."""
    results = finished(options.folder / "results" / part)
    columns = COST_COLUMNS if part == WRITING else TRAINING_COLUMNS
    parts = []
    for sweep, records in results.items():
        if sweep == "memory":
            continue
        parts.append(f"{part}: {sweep}")
        parts.append(markdown_table([CHANGES[sweep]], rows_of(records, "value"), columns))

    # The slope against the size of the model
    if "width" in results and len(results["width"]) > 1:
        records = results["width"]
        law = fit_power_law(
            [record["flops_per_token"] for record in records],
            [record["seconds"] for record in records],
        )
        rate = max(record["flops_per_token"] * record["tokens_per_second"] for record in records)
        parts.append(
            f"Seconds ~ FLOPs^{-law.exponent:.2f} over these widths; at most {rate / 1e9:.0f} GFLOP a CPU second."
        )
    if "memory" in results:
        parts.append("activations that a block keeps: bytes a token and a number of its width")
        parts.append(markdown_table(["width"], rows_of(results["memory"], "value"), MEMORY_COLUMNS))
    if part == WRITING and set(results) & {"length", "steps", "batch", "width"}:
        parts.append(f"Picture: {plot_costs(results, options.picture('scaling_cost.png'))}")
    return "\n\n".join(parts)


def process_report(options: ScalingConfig) -> str:
    """One process beside two."""
    parts = []
    for task, records in finished(options.folder / "results" / PROCESSES).items():
        parts.append(f"{task}, in processes")
        parts.append(markdown_table([PROCESSES], rows_of(records, "value"), PROCESS_COLUMNS))
    return "\n\n".join(parts)


# --- what is computed


def large_report(options: ScalingConfig) -> str:
    """The tables of larger models: arithmetic, not measured."""
    day = f"{options.peak_tflops:g} TFLOP/s a GPU"
    parts = [
        f"computed: training on {options.tokens_per_parameter:g} tokens a parameter, rows of {options.large_length}, "
        f"{day} x {options.utilisation:.0%}",
        training_lines(options),
    ]
    memory = options.folder / "results" / TRAINING / "memory.json"
    if memory.exists():
        # The widest is the nearest.
        slopes = read_json(memory)[-1]
        parts.append(
            f"computed: GB of a GPU, {options.large_batch} rows of {options.large_length} in a micro-batch, shards of "
            f"{options.gpus}, adapters of rank {options.lora_rank}"
        )
        parts.append(memory_lines(options, slopes["bytes"], slopes["checkpointed_bytes"]))
    parts.append(
        f"computed: GPUs for so many tokens a day, blocks of {options.block_length} with a cache in rows of "
        f"{options.large_length}, {day} x {options.writing_utilisation:.0%}"
    )
    parts.append(writing_lines(options))
    return "\n\n".join(parts)


def training_lines(options: ScalingConfig) -> str:
    columns = {
        "parameters": Column("million parameters", ",.0f", scale=1e-6),
        "flops_per_token": Column("FLOPs a token", ".2e"),
        "tokens": Column("tokens", ".2e"),
        "flops": Column("FLOPs", ".1e"),
        "gpu_days": Column("GPU-days", ",.3g"),
        "gpu_days_checkpointed": Column("with checkpointing", ",.3g"),
    }
    rows = []
    for line in training_table(options):
        rows.append(TableRow([line["model"], f"{line['width']} x {line['layers']}"], [line]))
    return markdown_table(["model", "width x layers"], rows, columns)


def memory_lines(options: ScalingConfig, block_bytes: float, checkpointed_bytes: float) -> str:
    columns = {
        "whole": Column("DDP", ".3g"),
        "zero2": Column("ZeRO-2", ".3g"),
        "sharded": Column("FSDP2", ".3g"),
        "validation": Column("FSDP2 at a validation", ".3g"),
        "adapters": Column("LoRA", ".3g"),
        "activations": Column("activations", ".3g"),
        "checkpointed": Column("with checkpointing", ".3g"),
    }
    lines = memory_table(options, block_bytes, checkpointed_bytes)
    return markdown_table(["model"], rows_of(lines, "model"), columns)


def writing_lines(options: ScalingConfig) -> str:
    columns = {
        "flops_per_token": Column("FLOPs a token", ".2e"),
        "tokens_a_day": Column("tokens a day of a GPU", ".2e"),
    }
    columns |= {str(count): Column(f"{count:.0e} a day", ".2g") for count in TOKENS_A_DAY}
    rows = []
    for line in writing_table(options):
        figures = line | {str(count): count / line["tokens_a_day"] for count in TOKENS_A_DAY}
        names = [line["model"], f"{line['steps_per_token']:.2g}"]
        rows.append(TableRow(names, [figures]))
    return markdown_table(["model", "steps a token"], rows, columns, left=(0,))


def full_report(options: ScalingConfig) -> str:
    """All tables of what is finished, and of what is computed."""
    measured = [
        loss_report(options),
        cost_report(options, WRITING),
        cost_report(options, TRAINING),
        process_report(options),
    ]
    return "\n\n".join(part for part in (*measured, large_report(options)) if part)
