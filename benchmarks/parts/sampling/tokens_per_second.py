"""Tokens per second beside autoregression: `sampling.py --parts tokens`.

The other side is transformers' GPT2LMHeadModel of the same layers, width and number of parameters under `generate()`
with its cache, sampling from the whole distribution; embeddings are tied on both sides, V = 8,192. Ours is the call of
a pipeline.

Nothing ends a text early: both sides write every token that is asked for. "block-wise" writes with a model of blocks
of 32 tokens and its cache, 8 steps in each.

Shapes: B batch, L length.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from parts.common.results import Record
from parts.sampling.measuring import (
    Size,
    check_written,
    interleaved,
    pipeline_writer,
    random_model,
    verdict,
)
from text_diffusers import D3PMAbsorbingScheduler

STEP_COUNTS = (16, 32, 64)
BLOCK_LENGTH = 32
BLOCK_STEPS = 8

# Lengths of a text. Only long ones have several blocks.
SHORT = 128
LONG = 1_024
AUTOREGRESSION = "autoregression"
# Times the tokens per second of autoregression, by length, batch and case.
TARGETS = {
    (LONG, 1, "diffusion, 16 steps"): 2.3,
    (SHORT, 1, "diffusion, 16 steps"): 2.0,
    (LONG, 1, "block-wise"): 1.5,
}


class Writer(NamedTuple):
    """One side of the comparison: `write` returns (B, L) tokens."""

    num_parameters: int
    write: Callable[[], Tensor]


def gpt2(size: Size) -> GPT2LMHeadModel:
    """GPT-2 with random weights, that reads one start token and writes `size.length` tokens."""
    torch.manual_seed(0)

    # Without an end token `generate` never stops early.
    config = GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=size.length + 1,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def autoregressive_writer(size: Size) -> Writer:
    """GPT-2 under `generate`, a token at a time with a cache of keys and values."""
    model = gpt2(size)
    start = torch.ones(size.batch, 1, dtype=torch.long)  # (B, 1)

    def write() -> Tensor:
        tokens = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=size.length,
            do_sample=True,
            # The default of 50 would be a cheaper distribution than ours.
            top_k=0,
            use_cache=True,
        )
        return check_written(tokens[:, 1:], size)

    return Writer(model.num_parameters(), write)


def diffusion_writer(
    size: Size,
    num_steps: int,
    num_parameters: int,
    block_length: int | None = None,
) -> Writer:
    """A pipeline over a model with as many parameters; with `block_length`, steps are those of a block."""
    # The feed-forward layers, two matrices each, make up for positions and biases of the other side.
    spare = num_parameters - random_model(size, tie_embeddings=True).num_parameters()
    ratio = 4 + spare / (2 * size.layers * size.width**2)
    model = random_model(
        size, tie_embeddings=True, feed_forward_ratio=ratio, block_length=block_length
    )

    scheduler = D3PMAbsorbingScheduler(size.vocab_size - 1)
    write = pipeline_writer(model, scheduler, num_steps, size)
    return Writer(model.num_parameters(), write)


def break_even_steps(seconds_by_steps: dict[int, float], seconds: float) -> float:
    """The number of steps that take `seconds`, by straight lines between measured ones, from no time for no steps.

    Beyond the last measured number its line goes on.
    """
    points = [(0, 0.0), *sorted(seconds_by_steps.items())]
    most_steps = points[-1][0]
    for (steps, start), (more_steps, end) in pairwise(points):
        if seconds <= end or more_steps == most_steps:
            return steps + (more_steps - steps) * (seconds - start) / (end - start)
    raise ValueError("`seconds_by_steps` must not be empty.")


def compare(
    size: Size,
    repetitions: int,
    step_counts: tuple[int, ...],
    block_length: int | None = None,
) -> Iterator[Record]:
    """Yield a line for autoregression, each number of steps, block-wise writing if asked for, and the break-even."""
    # 1. All writers, with as many parameters as GPT-2 has
    writers = {AUTOREGRESSION: autoregressive_writer(size)}
    num_parameters = writers[AUTOREGRESSION].num_parameters
    for steps in step_counts:
        writers[f"diffusion, {steps} steps"] = diffusion_writer(size, steps, num_parameters)
    if block_length is not None:
        writers["block-wise"] = diffusion_writer(size, BLOCK_STEPS, num_parameters, block_length)

    # 2. Their times
    runs = {case: writer.write for case, writer in writers.items()}
    seconds = interleaved(runs, repetitions)

    # 3. The lines of the table
    for case, writer in writers.items():
        ratio = seconds[AUTOREGRESSION] / seconds[case]
        line = {
            "L": size.length,
            "B": size.batch,
            "case": case,
            "parameters": writer.num_parameters,
            "seconds": round(seconds[case], 2),
            "tokens/s": round(size.batch * size.length / seconds[case], 1),
            "x AR": round(ratio, 2),
        }
        target = TARGETS.get((size.length, size.batch, case))
        yield line | verdict(ratio, target, at_least=True)

    # 4. A last line: with how many steps diffusion is as fast
    seconds_by_steps = {steps: seconds[f"diffusion, {steps} steps"] for steps in step_counts}
    most = break_even_steps(seconds_by_steps, seconds[AUTOREGRESSION])
    blank = dict.fromkeys(("parameters", "seconds", "tokens/s", "x AR", "target", "verdict"), "")
    case = f"autoregression wins above {most:.1f} steps"
    yield {"L": size.length, "B": size.batch, "case": case} | blank


@torch.no_grad()
def tokens_per_second(size: Size, repetitions: int, quick: bool = False) -> Iterator[Record]:
    """Yield the lines of 128 tokens, `repetitions` times, and of 1,024, once; at batch 1 and `size.batch`.

    `quick` leaves out 64 steps and 1,024 tokens in a batch.
    """
    step_counts = STEP_COUNTS[:-1] if quick else STEP_COUNTS

    # Short texts, after a call of both sides that is not counted
    for batch in (1, size.batch):
        case_size = replace(size, batch=batch, length=SHORT)
        list(compare(case_size, 1, step_counts[:1]))
        yield from compare(case_size, repetitions, step_counts)

    # Long texts, which take minutes: once, and the block-wise model too
    for batch in (1,) if quick else (1, size.batch):
        case_size = replace(size, batch=batch, length=LONG)
        yield from compare(case_size, 1, step_counts, BLOCK_LENGTH)
