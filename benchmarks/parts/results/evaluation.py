"""Measures the models of benchmarks/results.py by the command `text-diffusers evaluate`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from parts.common.results import Record
from parts.results.autoregressive import evaluate_autoregressive
from parts.results.config import ResultsConfig, Run
from parts.results.rows import AUTOREGRESSIVE, ROWS
from text_diffusers import TextDiffusionPipeline
from text_diffusers.samplers import with_sampler

# What a record keeps of the figures of texts, and of their distances
TEXT_FIGURES = (
    "generative_perplexity",
    "token_entropy",
    "distinct_2",
    "self_bleu",
    "repetition",
    "length",
)
DISTANCES = ("mmd", "precision", "recall", "divergence_curve")


def evaluate_run(options: ResultsConfig, run: Run) -> Record:
    """The figures of a run whose model is trained."""
    row = ROWS[run.row]
    if run.row == AUTOREGRESSIVE:
        folder = options.model_folder(run)
        written = folder / "written.jsonl"
        own = evaluate_autoregressive(folder, options, written)
        # Its texts are judged as those of the others, without a model.
        measured = evaluate(options, None, ["--written", str(written)])
        return figures_of(measured) | own

    folder = options.model_folder(Run(row.model, run.seed) if row.sampler and row.model else run)
    if row.sampler is not None:
        folder = save_with_sampler(options, run, folder)
    arguments = ["--generate", str(options.num_written), "--seed", str(run.seed)]
    if row.steps is not None:
        arguments += ["--num-inference-steps", str(row.steps)]
    # A bound is of the model, and not of the way in which it writes.
    if row.sampler is None:
        arguments += ["--texts", str(options.texts_file("held_out"))]
        arguments += ["--max-texts", str(options.num_held_out)]
        arguments += ["--num-times", str(options.num_times)]
    measured = evaluate(options, folder, arguments)
    return figures_of(measured) | {"num_parameters": parameters_of(folder)}


def save_with_sampler(options: ResultsConfig, run: Run, folder: Path) -> Path:
    """A folder of the model in `folder` that writes by the sampler of the row."""
    row = ROWS[run.row]
    changed = with_sampler(
        TextDiffusionPipeline.from_pretrained(folder), row.sampler, **row.settings
    )
    own = options.folder / "models" / run.name
    changed.save_pretrained(own)
    return own


def parameters_of(folder: Path) -> int:
    """Numbers of weights of all models of a pipeline."""
    pipe: Any = TextDiffusionPipeline.from_pretrained(folder)
    models = [part for part in pipe.components.values() if hasattr(part, "num_parameters")]
    return sum(model.num_parameters() for model in models)


def evaluate(options: ResultsConfig, folder: Path | None, arguments: list[str]) -> dict[str, Any]:
    """What the command says as JSON, with the judge and the distances that all rows share."""
    command = [sys.executable, "-m", "text_diffusers.cli", "evaluate"]
    command += [] if folder is None else [str(folder)]
    command += arguments
    command += ["--judge", f"words:{options.texts_file('judge')}"]
    command += ["--reference", str(options.texts_file("reference"))]
    command += ["--encoder", options.minilm, "--json"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(
            f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return json.loads(done.stdout)


def figures_of(measured: dict[str, Any]) -> Record:
    """The figures that the table has with their errors, and those of real texts under names of their own."""
    record: Record = {}
    for name in ("bits_per_character", "nats_per_token", "no_bound"):
        if measured.get(name) is not None:
            record[name] = measured[name]
    if measured.get("standard_error") is not None:
        share = measured["standard_error"] / measured["nats_per_token"]
        record["bits_per_character_error"] = share * measured["bits_per_character"]

    for prefix, part in (("", measured["written"]), ("real_", measured.get("real") or {})):
        for name in TEXT_FIGURES:
            note(record, prefix + name, part.get(name))
    record["tokens_per_second"] = measured["written"].get("tokens_per_second")
    for prefix, part in (("", "written"), ("real_", "floor")):
        for name in DISTANCES:
            note(record, prefix + name, measured["distances"][part][name])
    record["mmd_p_value"] = measured["distances"]["written"]["mmd_p_value"]
    return record


def note(record: Record, name: str, figure: Any):
    """Add a figure to a record, and its standard error if it has one."""
    if isinstance(figure, dict):
        record[name] = figure["value"]
        record[f"{name}_error"] = figure["standard_error"]
    elif figure is not None:
        record[name] = figure
