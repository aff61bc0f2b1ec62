"""What a step of training costs: against the rows of a batch, their length, and the size of the model.

A step is that of the training loop: forward, loss, backward, clipping, AdamW and the averages of the weights, on rows
of random tokens under absorbing noise as in training_scripts/train_d3pm.py. "forwards" is its time in units of a bare
forward pass of the same model on as many tokens, all logits included, in the same run.

Shapes: B batch, L length, V vocabulary size.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset

from parts.common.results import Record
from parts.sampling.measuring import Size, interleaved, random_model
from parts.scaling.config import ScalingConfig
from parts.scaling.flops import PASSES_OF_A_STEP, Call, Network, noted_calls
from parts.scaling.writing import Case, bare_forward, smallest_model
from text_diffusers import D3PMAbsorbingScheduler
from text_diffusers.data.rows import ShuffledRows
from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.runtime import make_accelerator
from text_diffusers.training.steps.tokens import TokenCorruption

SWEEPS = ("batch", "length", "width")
MAX_STEPS = 1_000  # of the schedule, far more than are taken
COUNTED_STEPS = 20  # over which the number of masks is averaged


def random_rows(size: Size, num_rows: int) -> Dataset:
    """Rows of L random tokens, none of them the mask."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, size.vocab_size - 1, (num_rows, size.length), generator=generator)
    return Dataset.from_dict(
        {"input_ids": tokens.numpy(), "attention_mask": torch.ones_like(tokens).numpy()}
    )


def random_loop(size: Size, folder: str, rows_per_step: int | None = None) -> TrainingLoop:
    """The training loop of a model with random weights.

    Args:
        size: of the model, and the rows of a micro-batch of one process.
        folder: for what the loop writes.
        rows_per_step: of all processes; default: of one.
    """
    config = TrainingConfig(
        output_dir=folder,
        overwrite_output_dir=True,
        train_batch_size=size.batch,
        max_train_steps=MAX_STEPS,
        report_to=["none"],
        num_cpu_threads=1,
    )
    model = random_model(size, mask_token_id=size.vocab_size - 1)
    corruption = TokenCorruption(D3PMAbsorbingScheduler(size.vocab_size - 1), model.config)

    def loss_function(model: Any, batch: Any, uniform: Any, generators: Any) -> torch.Tensor:
        corrupted = corruption(batch, uniform, generators)
        output = model(corrupted.noisy, corrupted.times, positions=corrupted.positions)
        return corrupted.criterion(output.logits)

    per_step = rows_per_step or size.batch
    order = ShuffledRows(random_rows(size, 4 * per_step), per_step)
    return TrainingLoop(config, make_accelerator(config), model, loss_function, order)


def step_of(loop: TrainingLoop) -> Callable[[], Any]:
    """A function that takes the next step."""

    def step():
        loop.train_step()
        loop.step += 1

    return step


def training_cases(options: ScalingConfig, sweep: str) -> list[Case]:
    """The lines of a sweep, in which one thing changes."""
    size = options.size
    if sweep == "batch":
        return [Case(n, replace(size, batch=n), 1) for n in options.batches]
    if sweep == "length":
        return [Case(n, replace(size, length=n), 1) for n in options.lengths]
    return [Case(n, replace(size, width=n), 1) for n in options.widths]


def calls_of_training(size: Size, num_steps: int = COUNTED_STEPS) -> list[Call]:
    """The calls of so many steps; their shapes are those of any model on such rows."""
    smallest = smallest_model(size)
    with tempfile.TemporaryDirectory() as folder:
        loop = random_loop(smallest, folder)
        step = step_of(loop)
        with noted_calls(loop.unwrapped) as calls:
            for _ in range(num_steps):
                step()
    return calls


def measure_training(options: ScalingConfig, sweep: str) -> list[Record]:
    """A record for each case of a sweep; all take turns in one run."""
    cases = training_cases(options, sweep)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        # 1. All that is timed, and first done once to take memory
        runs = {}
        for case in cases:
            loop = random_loop(case.size, folder)
            runs[f"step {case.value}"] = step_of(loop)
            runs[f"forward {case.value}"] = without_gradients(case)
            for name in ("step", "forward"):
                runs[f"{name} {case.value}"]()

        # 2. In turns
        seconds = interleaved(runs, options.repetitions)

    # 3. The lines
    for case in cases:
        size = case.size
        network = Network(size.width, size.layers, size.vocab_size)
        calls = calls_of_training(size)
        flops = network.flops(calls, PASSES_OF_A_STEP) / len(calls)
        step = seconds[f"step {case.value}"]
        num_tokens = size.batch * size.length
        dense_flops = PASSES_OF_A_STEP * num_tokens * network.dense_flops(size.length)
        records.append(
            {
                "value": case.value,
                "batch": size.batch,
                "length": size.length,
                "width": size.width,
                "layers": size.layers,
                "parameters": random_model(size).num_parameters(),
                "seconds": step,
                "forward_seconds": seconds[f"forward {case.value}"],
                "forwards": step / seconds[f"forward {case.value}"],
                "tokens_per_second": num_tokens / step,
                "flops_per_token": flops / num_tokens,
                "flops_share": flops / dense_flops,
            }
        )
    return records


def without_gradients(case: Case) -> Callable[[], Any]:
    """A bare forward pass, as in writing."""
    forward = bare_forward(case, random_model(case.size))

    @torch.no_grad()
    def run():
        forward()

    return run


def all_sweeps(options: ScalingConfig) -> Iterator[tuple[str, Callable[[], list[Record]]]]:
    """Each sweep by its name, and what measures it."""
    for sweep in SWEEPS:
        yield sweep, lambda sweep=sweep: measure_training(options, sweep)
