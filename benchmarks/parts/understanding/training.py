"""Trains the models of benchmarks/understanding.py by the recipes, on the clock of the CPU."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from parts.common.cpu_clock import CpuClockLoop
from parts.common.recipes import CONFIGS, QUIET, load_recipe
from parts.common.results import read_json, write_json
from parts.understanding.config import ENCODER, TRAININGS, UnderstandingConfig
from parts.understanding.filling import size_of
from text_diffusers import TextDiffusionPipeline
from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER

MOST_STEPS = 10_000_000  # the minutes end a training before
CHECKPOINT_STEPS = 200
REPORTED_ROWS = 50


def train(options: UnderstandingConfig, name: str) -> dict[str, Any]:
    """Train a model to its end, if it is not trained yet; one that was interrupted goes on where it was.

    Args:
        name: of `TRAININGS`: a task, "_", and what the model is.

    Returns:
        `folder`, and its `minutes` and `steps`.
    """
    folder = options.model_folder(name)
    done = folder / "trained.json"
    if not done.exists():
        write_json(done, run_recipe(options, name, folder))
    return {"folder": folder, **read_json(done)}


def trained_pipeline(options: UnderstandingConfig, name: str) -> tuple[Any, dict[str, float]]:
    """The pipeline of `train`, and what it cost: its `minutes` and `parameters`."""
    trained = train(options, name)
    pipe: Any = TextDiffusionPipeline.from_pretrained(trained["folder"])
    return pipe, {"minutes": trained["minutes"], "parameters": size_of(pipe)}


def run_recipe(options: UnderstandingConfig, name: str, folder: Path) -> dict[str, float]:
    """Train a model into `folder` as a user would; returns `minutes` and `steps`."""
    training = TRAININGS[name]
    recipe = load_recipe(training.recipe)
    recipe.TrainingLoop = CpuClockLoop
    config_class = getattr(recipe, CONFIGS[training.recipe])

    settings = {
        option: options.minilm if value == ENCODER else value
        for option, value in training.options.items()
    }
    if options.vocab_size is not None and "vocab_size" in settings:
        settings["vocab_size"] = options.vocab_size
    minutes = training.minutes * options.budget
    common = {
        "dataset": str(options.data_folder(name.partition("_")[0])),
        "output_dir": str(folder),
        "max_train_minutes": minutes,
        "max_train_steps": MOST_STEPS,
        "checkpointing_steps": CHECKPOINT_STEPS,
        "checkpoints_total_limit": 1,
        "resume_from_checkpoint": "auto",
        "report_rows": REPORTED_ROWS,
        "seed": options.seed,
    }

    # Some recipes have no report of so many rows.
    known = {field.name for field in fields(config_class)}
    quiet = {option: value for option, value in (QUIET | common).items() if option in known}
    losses = recipe.main(config_class(**quiet | settings))
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
    return {"minutes": minutes, "steps": len(losses)}


def command_of(name: str) -> str:
    """The command that trains a model, as a user would give it."""
    training = TRAININGS[name]
    task = name.partition("_")[0]
    words = [f"--dataset data/understanding/{task}", f"--output_dir runs/{name}"]
    for option, value in training.options.items():
        shown = "data/models/minilm" if value == ENCODER else value
        words.append(f"--{option} {str(shown).lower() if isinstance(value, bool) else shown}")
    words.append(f"--max_train_steps 100000 --max_train_minutes {training.minutes:g}")
    return f"accelerate launch training_scripts/{training.recipe}.py {' '.join(words)}"
