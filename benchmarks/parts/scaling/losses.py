"""Trains the models of benchmarks/scaling.py: every size for every budget of FLOPs, each run with its own schedule.

The learning rate of a run falls to zero at its end, so what a longer run is worth on its way says nothing of a shorter
one: no run is read twice.

Shapes: R held-out rows.
"""

import math
import os
import shutil
import statistics
import time
from typing import Any, NamedTuple

from parts.common.recipes import QUIET, load_recipe, selected_options
from parts.common.results import Record, read_or_make
from parts.quality.text import HeldOut, prepare_text
from parts.scaling.config import HEAD_WIDTH, ScalingConfig, Shape
from parts.scaling.flops import (
    PASSES_OF_A_STEP,
    Network,
    count_parameters,
    noted_calls,
)
from text_diffusers import TextDiffusionPipeline
from text_diffusers.evaluation.estimates import count_tokens
from text_diffusers.evaluation.likelihood import unigram_entropy
from text_diffusers.evaluation.row_bounds import monte_carlo_bound
from text_diffusers.training.loop import TrainingLoop

# FLOPs and seconds of a step are means of steps after some that are not counted.
WARM_UP_STEPS = 5
TIMED_STEPS = 40
DATA = "data"

# Averages of the weights, and the warm-up of the learning rate, are over such shares of a run.
AVERAGED_SHARE = 0.02
WARMUP_SHARE = 0.05
LONGEST_WARMUP = 100

SHARED_OPTIONS = ("dataset", "sample_by", "length", "train_batch_size")


class Run(NamedTuple):
    """One training: a kernel, a size, a budget and a seed."""

    kernel: str
    shape: Shape
    flops: float
    seed: int

    @property
    def name(self) -> str:
        """As its file is called."""
        return f"{self.kernel}-{self.shape.name}-{self.flops:.3g}-seed{self.seed}"


class Trained(NamedTuple):
    """A trained pipeline, the FLOPs of each of its steps, and their CPU seconds."""

    pipe: TextDiffusionPipeline
    flops: list[float]
    seconds: list[float]


def all_runs(options: ScalingConfig) -> list[Run]:
    """The cheapest budgets first, so that an interrupted benchmark has something of every size."""
    return [
        Run(kernel, shape, flops, seed)
        for flops in sorted(options.budgets)
        for kernel in options.kernels
        for seed in options.seeds
        for shape in options.shapes
    ]


def counting_loop(flops: list[float], seconds: list[float]) -> type[TrainingLoop]:
    """A training loop that appends the FLOPs and the CPU seconds of each step."""

    class CountingLoop(TrainingLoop):
        def train_step(self):
            network = Network.of(self.unwrapped)
            with noted_calls(self.unwrapped) as calls:
                started = time.process_time()
                result = super().train_step()
                seconds.append(time.process_time() - started)
            flops.append(network.flops(calls, PASSES_OF_A_STEP))
            return result

    return CountingLoop


class Trainer:
    """Trains the models of a comparison, each in a working folder that is removed again."""

    def __init__(self, options: ScalingConfig):
        self.options = options
        self.held_out = held_out_text(options)
        self.working_folder = options.folder / f"working-{os.getpid()}"

    def train(self, run: Run, num_steps: int) -> Trained:
        """Train for so many steps by the recipe."""
        options = self.options
        flops = []
        seconds = []
        # The recipe is this run's own copy, so that its loop can be replaced by one that counts.
        recipe = load_recipe()
        recipe.TrainingLoop = counting_loop(flops, seconds)

        averaged_steps = max(1.0, AVERAGED_SHARE * num_steps)
        config = recipe.D3PMConfig(
            output_dir=str(self.working_folder),
            tokenizer=str(options.folder / "tokenizer"),
            kernel=run.kernel,
            hidden_size=run.shape.width,
            num_layers=run.shape.layers,
            num_attention_heads=run.shape.width // HEAD_WIDTH,
            # Updates of Adam are as large in each number; a wider layer sums more of them.
            learning_rate=options.learning_rate * options.rate_width / run.shape.width,
            lr_warmup_steps=min(LONGEST_WARMUP, round(WARMUP_SHARE * num_steps)),
            ema_decay=1 - 1 / averaged_steps,
            seed=run.seed,
            max_train_steps=num_steps,
            validation_rows=1,
            report_rows=1,
            checkpointing_steps=0,
            overwrite_output_dir=True,
            **QUIET,
            **selected_options(options, SHARED_OPTIONS),
        )

        # What an interrupted run has left is not gone on with: its seconds are lost.
        shutil.rmtree(self.working_folder, ignore_errors=True)
        try:
            recipe.main(config)
            pipe = TextDiffusionPipeline.from_pretrained(self.working_folder)
        finally:
            shutil.rmtree(self.working_folder, ignore_errors=True)
        return Trained(pipe, flops, seconds)

    def flops_of_a_step(self, run: Run) -> float:
        """Mean FLOPs of a training step, measured once for a kernel and a size."""

        def measure() -> Record:
            trained = self.train(run._replace(seed=0), WARM_UP_STEPS + TIMED_STEPS)
            return {
                "flops_per_step": statistics.fmean(trained.flops[WARM_UP_STEPS:]),
                "seconds_per_step": statistics.fmean(trained.seconds[WARM_UP_STEPS:]),
            }

        file = self.options.folder / "calibration" / f"{run.kernel}-{run.shape.name}.json"
        return read_or_make(file, measure)["flops_per_step"]

    def record(self, run: Run) -> Record:
        """Train for the steps that the budget allows, and judge the averaged weights."""
        options = self.options
        num_steps = max(1, round(run.flops / self.flops_of_a_step(run)))
        print(f"{run.name}: {num_steps:,} steps", flush=True)

        # 1. Train
        trained = self.train(run, num_steps)
        denoiser = trained.pipe.denoiser
        parameters = count_parameters(denoiser)
        tokens = num_steps * options.train_batch_size * options.length

        # 2. Judge; each row by its own noise, which is that of all other runs too
        started = time.process_time()
        rows = self.held_out.rows
        bounds = monte_carlo_bound(
            denoiser, trained.pipe.scheduler, rows, num_times=options.num_times
        )
        num_tokens = count_tokens(rows)
        nats = float(bounds.nats.sum()) / num_tokens
        return {
            "kernel": run.kernel,
            "size": run.shape.name,
            "seed": run.seed,
            "budget": run.flops,
            "parameters": parameters.total,
            "non_embedding": parameters.non_embedding,
            "steps": num_steps,
            "tokens": tokens,
            "flops": float(sum(trained.flops)),
            "dense_flops": PASSES_OF_A_STEP
            * Network.of(denoiser).dense_flops(options.length)
            * tokens,
            "cpu_seconds": sum(trained.seconds),
            "judging_seconds": time.process_time() - started,
            "nats_per_token": nats,
            "bits_per_character": nats * num_tokens / self.held_out.num_characters / math.log(2),
            # Of each row, for the bootstrap
            "row_nats": [round(value, 3) for value in bounds.nats.tolist()],
            "row_tokens": [sum(row["attention_mask"]) for row in rows],
        }


def held_out_text(options: ScalingConfig) -> HeldOut:
    """The tokenizer of all models, and held-out rows from all over the held-out texts."""
    settings: Any = _TextOptions(options)
    whole = prepare_text(settings)

    stride = max(1, len(whole.rows) // options.held_out_rows)
    chosen = range(0, len(whole.rows), stride)[: options.held_out_rows]
    rows = whole.rows.select(chosen)

    # Characters of these rows, at as many a token as in all.
    share = count_tokens(rows) / count_tokens(whole.rows)
    return HeldOut(whole.tokenizer, list(rows), round(share * whole.num_characters))


class _TextOptions:
    """The options of the text by the names under which `prepare_text` knows them."""

    characters = False

    def __init__(self, options: ScalingConfig):
        self.folder = options.folder
        for name in ("dataset", "sample_by", "vocab_size", "length"):
            setattr(self, name, getattr(options, name))


def run_missing(options: ScalingConfig):
    """Train and judge what is not finished."""
    results = options.folder / "results" / "loss"
    runs = {results / f"{run.name}.json": run for run in all_runs(options)}
    data_file = results / f"{DATA}.json"
    if data_file.exists() and all(file.exists() for file in runs):
        return

    trainer = Trainer(options)
    read_or_make(
        data_file,
        lambda: {
            "unigram_entropy": unigram_entropy(trainer.held_out.rows),
            "tokens": count_tokens(trainer.held_out.rows),
        },
    )
    for file, run in runs.items():
        # Another process may have been faster.
        read_or_make(file, lambda run=run: trainer.record(run))
