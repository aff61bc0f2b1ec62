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

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler, TextTransformerModel
from text_diffusers.common.training_randomness import TIME_SAMPLINGS
from text_diffusers.evaluation.bounds import predicted_positions, token_bound

LENGTH, WIDTH, HEADS = 128, 512, 8
MIN_TIMESTEP = 0.1  # of the recipe


@dataclass(frozen=True)
class Case:
    layers: int
    batch_size: int
    vocab_size: int

    def model(self) -> TextTransformerModel:
        torch.manual_seed(0)
        model = TextTransformerModel(self.vocab_size, WIDTH, self.layers, HEADS, max_length=LENGTH)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return model


@dataclass(frozen=True)
class Step:
    """One line of the table: a kernel (None is plain cross-entropy), times, and where the head runs."""

    name: str
    kernel: str | None = None
    times: str = "uniform"
    head: str = "all"  # all, positions or chunks

    def prepare(self, case: Case) -> tuple[Callable[[Any], Tensor], float]:
        """`(model -> loss, share of the positions that the loss needs)`, the noise drawn."""
        generator = torch.Generator().manual_seed(0)
        mask = case.vocab_size - 1
        clean = torch.randint(0, mask, (case.batch_size, LENGTH), generator=generator)  # (B, L)
        if self.kernel is None:
            return lambda model: F.cross_entropy(model(clean).logits.flatten(0, 1), clean.flatten()), 1.0
        absorbing = self.kernel == "absorbing"
        kernel = D3PMAbsorbingScheduler if absorbing else D3PMUniformScheduler
        scheduler = kernel(mask, min_timestep=MIN_TIMESTEP)
        midpoints = (torch.arange(case.batch_size, dtype=torch.float64) + 0.5) / case.batch_size
        drawn, weights = TIME_SAMPLINGS[self.times](midpoints, MIN_TIMESTEP)
        times = scheduler.training_timesteps(drawn)  # (B,)
        noisy = scheduler.add_noise(clean, times, generator)
        positions = predicted_positions(scheduler, noisy, torch.ones_like(clean))  # (B, L)
        rows = positions.nonzero()[:, 0]
        targets, inputs, times, weights = clean[positions], noisy[positions], times[rows], weights[rows]  # (N,)

        def summed_bound(logits: Tensor, chunk: slice) -> Tensor:
            bound = token_bound(scheduler, logits, targets[chunk], inputs[chunk], times[chunk])
            return (bound * weights[chunk].to(bound)).sum()

        def loss(model) -> Tensor:
            if self.head == "chunks":
                return model(noisy, positions=positions, loss_function=summed_bound).loss / clean.numel()
            dense = self.head == "all"
            logits = model(noisy).logits[positions] if dense else model(noisy, positions=positions).logits  # (N, V)
            return summed_bound(logits, slice(None)) / clean.numel()

        return loss, len(targets) / clean.numel()


STEPS = [
    Step("cross-entropy on all positions"),
    Step("absorbing, head on masked positions", "absorbing", head="positions"),
    Step("the same, chunked head", "absorbing", head="chunks"),
    Step("absorbing, head on masked positions", "absorbing", "log_uniform", "positions"),
    Step("the same, chunked head", "absorbing", "log_uniform", "chunks"),
    Step("uniform", "uniform"),
    Step("the same, chunked head", "uniform", head="chunks"),
]


def seconds_of_steps(case: Case, repetitions: int) -> list[float]:
    """CPU seconds of each step: medians of interleaved repetitions."""
    model = case.model()
    losses = [step.prepare(case)[0] for step in STEPS]
    seconds: list[list[float]] = [[] for _ in STEPS]
    for repetition in range(repetitions + 1):
        for loss, values in zip(losses, seconds, strict=True):
            model.zero_grad()
            started = time.process_time()
            loss(model).backward()
            if repetition:  # the first is warm-up
                values.append(time.process_time() - started)
    return [statistics.median(values) for values in seconds]


def activation_memory(case: Case, step: Step) -> float:
    """MiB of resident memory (on Linux) at the peak of a step, beyond the model and its gradients."""
    model = case.model()
    step.prepare(Case(case.layers, 1, case.vocab_size))[0](model).backward()  # libraries allocate on first use
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step.prepare(case)[0](model).backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024


def gradient_errors(case: Case) -> list[float | None]:
    """Of each step, the largest relative difference to the gradients of its bound with the head on all positions."""
    model, errors, dense = case.model(), [], {}

    def gradients(step: Step) -> list[Tensor]:
        model.zero_grad()
        step.prepare(case)[0](model).backward()
        return [parameter.grad for parameter in model.parameters()]

    for step in STEPS:
        bound = step.kernel, step.times
        if bound not in dense:
            dense = {bound: gradients(replace(step, head="all"))}
        pairs = zip(gradients(step), dense[bound], strict=True) if step.head != "all" else ()
        errors.append(max((float((got - all_).abs().max() / all_.abs().max()) for got, all_ in pairs), default=None))
    return errors


def in_own_process(threads: int, function: Callable, *arguments) -> Any:
    """A fork of this process, which has imported but not computed anything; on Linux its peak memory is its own."""
    with get_context("fork").Pool(1, torch.set_num_threads, (threads,)) as pool:
        return pool.apply(function, arguments)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab_size", type=int, default=50_258)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.threads} thread(s), V = {options.vocab_size}, width {WIDTH}")
    for layers, batch_size in ((6, 4), (1, 32)):
        case = Case(layers, batch_size, options.vocab_size)
        memory = [in_own_process(options.threads, activation_memory, case, step) for step in STEPS]
        errors = in_own_process(options.threads, gradient_errors, case)
        seconds = in_own_process(options.threads, seconds_of_steps, case, options.repetitions)
        print(f"\n{layers} layer(s), {batch_size} x {LENGTH} tokens; load {os.getloadavg()[0]:.1f}")
        print(
            f"{'step':<36} {'times':<12} {'share':>5} {'CPU ms':>7} {'time':>5} {'MiB':>6} {'memory':>6} {'error':>8}"
        )
        for step, cpu, mib, error in zip(STEPS, seconds, memory, errors, strict=True):
            share, times = step.prepare(case)[1], step.times if step.kernel else ""
            figures = f"{1000 * cpu:>7.0f} {cpu / seconds[0]:>5.2f} {mib:>6.0f} {mib / memory[0]:>6.2f}"
            print(f"{step.name:<36} {times:<12} {share:>5.2f} {figures} {'' if error is None else f'{error:.0e}':>8}")


if __name__ == "__main__":
    main()
