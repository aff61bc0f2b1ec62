"""What a training step costs, in units of plain cross-entropy on all positions with the same model, in one run.

    python benchmarks/training.py [--vocab_size 50258] [--threads 1] [--repetitions 5]

A step is forward, loss and backward; random weights, width 512, rows of 128 tokens. Absorbing and uniform are the
bounds of training_scripts/train_d3pm.py; the absorbing one needs the head on masked positions only. Times of rows are
the midpoints of even strata, `uniform` in [0, 1] or, the recipe's default, `log_uniform`; `share` is the share of the
positions that the loss needs, on average 0.50 and 0.30 for the absorbing kernel.

- time: CPU time of a step from cleared gradients, the median of interleaved repetitions.
- memory: of activations, that is the peak of a step beyond the process with its model and a full set of gradients, to
  which the step adds its own as micro-batches do; resident memory, each step in a process of its own. The gradient of
  a layer counts until it is added: that of a chunked head, as large as the logits of `width` positions, from the
  first chunk on. So chunks save memory where the positions are many times the width.
- error: of the gradients, against the same bound from all logits at once: the largest difference in any parameter, in
  units of that parameter's largest gradient.

Shapes: B batch, L length, V vocabulary size, N positions.
"""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from parts.common.options import run
from parts.common.processes import in_own_process
from parts.common.tables import print_aligned
from parts.sampling.measuring import Size, interleaved, random_model
from torch import Tensor

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.common.training_randomness import TIME_SAMPLINGS
from text_diffusers.evaluation.bounds import D3PMLoss
from text_diffusers.training.config import OptionParser, check_options, option

# A deep model, whose blocks cost most, and a wide batch, whose head does.
SIZES = [Size(layers=6, batch=4), Size(layers=1, batch=32)]
KERNELS = {"absorbing": D3PMAbsorbingScheduler, "uniform": D3PMUniformScheduler}
MIN_TIMESTEP = 0.1  # of the recipe


@dataclass
class TrainingOptions:
    vocab_size: int = option(50_258, "tokens", limit="at least 1")
    threads: int = option(1, "of torch", limit="at least 1")
    repetitions: int = option(5, "of each step", limit="at least 1")

    def __post_init__(self):
        check_options(self)


class PreparedStep(NamedTuple):
    """The loss of a model on a batch whose noise is already drawn, and the share of positions that it needs."""

    loss: Callable[[Any], Tensor]
    share: float


def plain_cross_entropy(clean: Tensor, model: Any) -> Tensor:
    """The loss of predicting clean tokens (B, L) from themselves: the cost of a step without diffusion."""
    logits = model(clean).logits  # (B, L, V)
    return F.cross_entropy(logits.flatten(0, 1), clean.flatten())


@dataclass(frozen=True)
class Step:
    """A line of the table.

    Attributes:
        name: of the line.
        kernel: a key of `KERNELS`; None is plain cross-entropy.
        times: how times are drawn.
        head: where the head runs: "all", "positions" or "chunks".
    """

    name: str
    kernel: str | None = None
    times: str = "uniform"
    head: str = "all"

    def prepare(self, size: Size) -> PreparedStep:
        """Draw a batch and its noise, which are not timed, and return the loss on them."""
        generator = torch.Generator().manual_seed(0)
        mask = size.vocab_size - 1
        clean = torch.randint(0, mask, (size.batch, size.length), generator=generator)  # (B, L)
        if self.kernel is None:
            return PreparedStep(partial(plain_cross_entropy, clean), share=1.0)

        # 1. Noise, as the recipe adds it
        scheduler = KERNELS[self.kernel](mask, min_timestep=MIN_TIMESTEP)
        # Midpoints of strata give a small batch the share of positions that random times have on average.
        midpoints = (torch.arange(size.batch, dtype=torch.float64) + 0.5) / size.batch
        uniform, weights = TIME_SAMPLINGS[self.times](midpoints, MIN_TIMESTEP)
        times = scheduler.training_timesteps(uniform)  # (B,)
        noisy = scheduler.add_noise(clean, times, generator)  # (B, L)

        # 2. The recipe's loss, with the head where it is to run
        batch = {"input_ids": clean, "attention_mask": torch.ones_like(clean)}
        bound = D3PMLoss(scheduler, batch, noisy, times, weights)

        def loss(model: Any) -> Tensor:
            if self.head == "chunks":
                # The model computes logits and loss of a few positions at a time.
                total = model(noisy, positions=bound.positions, loss_function=bound).loss
            elif self.head == "positions":
                total = bound(model(noisy, positions=bound.positions).logits)  # (N, V)
            else:
                total = bound(model(noisy).logits[bound.positions])

            return total / clean.numel()

        return PreparedStep(loss, len(bound.targets) / clean.numel())


# Lines of the table; the first is the unit of the others.
STEPS = [
    Step("cross-entropy on all positions"),
    Step("absorbing, head on masked positions", "absorbing", head="positions"),
    Step("the same, chunked head", "absorbing", head="chunks"),
    Step("absorbing, head on masked positions", "absorbing", "log_uniform", "positions"),
    Step("the same, chunked head", "absorbing", "log_uniform", "chunks"),
    Step("uniform", "uniform"),
    Step("the same, chunked head", "uniform", head="chunks"),
]


def seconds_of_steps(size: Size, repetitions: int) -> list[float]:
    """CPU seconds of each step: medians of interleaved repetitions."""
    model = random_model(size).train()
    runs = {}
    for number, step in enumerate(STEPS):
        loss = step.prepare(size).loss
        runs[str(number)] = lambda loss=loss: loss(model).backward()

    def clear_gradients(name: str):
        model.zero_grad()

    # The first turn allocates; CPU time, which a busy machine changes least, on any number of threads.
    interleaved(runs, 1, clear_gradients)
    seconds = interleaved(runs, repetitions, clear_gradients, clock=time.process_time)
    return list(seconds.values())


def activation_memory(size: Size, step: Step) -> float:
    """MiB of resident memory (on Linux) at the peak of a step, beyond the model and its gradients."""
    model = random_model(size).train()
    # Libraries allocate on first use.
    step.prepare(replace(size, batch=1)).loss(model).backward()

    # Gradients of an earlier micro-batch, to which those of the step are added.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step.prepare(size).loss(model).backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    # Linux counts in KiB.
    return (peak - base) / 1024


def gradient_errors(size: Size) -> list[float | None]:
    """Of each step, the largest relative difference to the gradients of its bound with the head on all positions."""
    model = random_model(size).train()

    def gradients(step: Step) -> list[Tensor]:
        model.zero_grad()
        step.prepare(size).loss(model).backward()
        return [parameter.grad for parameter in model.parameters()]

    errors = []
    for step in STEPS:
        if step.head == "all":
            errors.append(None)
            continue

        dense = gradients(replace(step, head="all"))

        # The reference has the same noise, and the logits of all positions at once.
        relative = []
        for gradient, reference in zip(gradients(step), dense, strict=True):
            difference = (gradient - reference).abs().max()
            relative.append(float(difference / reference.abs().max()))
        errors.append(max(relative))
    return errors


def main(options: TrainingOptions):
    """Print a table for each size, measured in forks of this process."""
    sizes = f"V = {options.vocab_size}, width {SIZES[0].width}"
    print(f"torch {torch.__version__}, {options.threads} thread(s), {sizes}")
    for size in SIZES:
        size = replace(size, vocab_size=options.vocab_size)

        # 1. Measure, before this process computes anything; a peak of memory is that of one step only
        memory = [in_own_process(options.threads, activation_memory, size, step) for step in STEPS]
        errors = in_own_process(options.threads, gradient_errors, size)
        seconds = in_own_process(options.threads, seconds_of_steps, size, options.repetitions)

        # 2. Print a line for each step; ratios are to plain cross-entropy
        load = os.getloadavg()[0]
        print(f"\n{size.layers} layer(s), {size.batch} x {size.length} tokens; load {load:.1f}")
        for number, step in enumerate(STEPS):
            error = errors[number]
            line = {
                "step": step.name,
                "times": step.times if step.kernel else "",
                "share": f"{step.prepare(size).share:.2f}",
                "CPU ms": f"{1000 * seconds[number]:.0f}",
                "time": f"{seconds[number] / seconds[0]:.2f}",
                "MiB": f"{memory[number]:.0f}",
                "memory": f"{memory[number] / memory[0]:.2f}",
                "error": "" if error is None else f"{error:.0e}",
            }
            print_aligned(line, first=number == 0)


if __name__ == "__main__":
    run(main, OptionParser(TrainingOptions, description=__doc__))
