"""Trains the stages of a row of benchmarks/results.py by the recipes, on the clock of the CPU."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from parts.common.cpu_clock import CpuClockLoop
from parts.common.recipes import CONFIGS, QUIET, load_recipe
from parts.common.results import write_json
from parts.results.autoregressive import train_autoregressive
from parts.results.config import ResultsConfig, Run
from parts.results.rows import AUTOREGRESSIVE, ROWS, STAGE
from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER

MOST_STEPS = 10_000_000  # the minutes end a training before
CHECKPOINT_STEPS = 200
DONE = "trained.json"


def stage_options(options: ResultsConfig, run: Run, number: int) -> dict[str, Any]:
    """The options of a stage, as its recipe takes them."""
    row = ROWS[run.row]
    stage = row.stages[number]
    # The model that it goes on with: of the stage before, or of another row
    before = ""
    if number > 0:
        before = str(options.model_folder(run, number - 1))
    elif row.model is not None:
        before = str(options.model_folder(Run(row.model, run.seed)))
    names = {STAGE: before, "{minilm}": options.minilm, "{smollm2}": options.smollm2}

    settings = {
        name: names.get(value, value) if isinstance(value, str) else value
        for name, value in stage.options.items()
    }
    if row.start is not None:
        settings["model_name_or_path"] = getattr(options, row.start)
    if "vocab_size" in settings:
        settings["vocab_size"] = options.vocab_size
    return settings | {
        "dataset": str(options.texts_file("train")),
        "output_dir": str(options.model_folder(run, number)),
        "max_train_minutes": stage.minutes * options.budget,
        "seed": run.seed,
    }


def train_stage(options: ResultsConfig, run: Run, number: int):
    """Train a stage to its end; one that was interrupted goes on where it was."""
    stage = ROWS[run.row].stages[number]
    settings = stage_options(options, run, number)
    folder = Path(settings["output_dir"])
    if (folder / DONE).exists():
        return

    if stage.recipe == AUTOREGRESSIVE:
        train_autoregressive(settings)
    else:
        recipe = load_recipe(stage.recipe)
        recipe.TrainingLoop = CpuClockLoop
        config_class = getattr(recipe, CONFIGS[stage.recipe])
        # Some recipes have no such texts to write.
        known = {field.name for field in fields(config_class)}
        quiet = {
            "max_train_steps": MOST_STEPS,
            "checkpointing_steps": CHECKPOINT_STEPS,
            "checkpoints_total_limit": 1,
            "resume_from_checkpoint": "auto",
            "report_rows": 50,
            "num_rewritten": 2,
        }
        quiet = {name: value for name, value in (QUIET | quiet).items() if name in known}
        recipe.main(config_class(**quiet | settings))
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
    write_json(folder / DONE, {"minutes": settings["max_train_minutes"]})


def command_of(name: str, number: int) -> str:
    """The command that trains a stage of the row of that name, as a user would give it."""
    row = ROWS[name]
    stage = row.stages[number]
    before = shown_folder(name, number - 1) if number else f"runs/{row.model}"
    names = {STAGE: before, "{minilm}": "data/models/minilm", "{smollm2}": "data/models/smollm2"}

    words = ["--dataset train.jsonl", f"--output_dir {shown_folder(name, number)}"]
    if row.start is not None:
        words.append(f"--model_name_or_path data/models/{row.start}")
    for option, value in stage.options.items():
        values = value if isinstance(value, list) else [value]
        shown = [names.get(str(item), str(item)) for item in values]
        joined = " ".join(shown)
        words.append(f"--{option} {joined.lower() if isinstance(value, bool) else joined}")
    words.append(f"--max_train_minutes {stage.minutes:g}")
    return f"accelerate launch training_scripts/{stage.recipe}.py {' '.join(words)}"


def shown_folder(name: str, number: int) -> str:
    """The folder of a stage in the commands of the report."""
    is_last = number == len(ROWS[name].stages) - 1
    return f"runs/{name}" if is_last else f"runs/{name}_{number}"
