"""Evaluates one model of benchmarks/quality.py: its likelihood, and what the texts it writes are like.

Shapes: B batch, L row length.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

from parts.common.results import Record
from parts.common.sampling_step import select_first_step
from parts.common.texts import distinct_ngrams
from parts.quality.autoregressive import AutoregressiveModel
from parts.quality.config import ModelSpec, QualityConfig
from parts.quality.text import HeldOut
from parts.quality.training import Trainer
from text_diffusers.evaluation.estimates import count_tokens
from text_diffusers.evaluation.likelihood import estimate_bound, unigram_entropy
from text_diffusers.evaluation.text_metrics import token_entropy

DATA = "data"  # in the place of a model: held-out rows, the yardstick
WRITTEN_AT_ONCE = 64
SEED_STRIDE = 1_000_003  # between the first rows of two batches: more than a batch has rows


def likelihood(model: Any, num_times: int, held_out: HeldOut) -> Record:
    """Nats per token of the held-out rows, their standard error for other rows and noise, and bits per character."""
    if isinstance(model, AutoregressiveModel):
        # Exact, by the chain rule; the error is that of a ratio of means over rows.
        nats, tokens = model.row_nats(held_out.rows)
        per_token = float(nats.sum() / tokens.sum())
        error = float(nats.std() / tokens.mean() / len(nats) ** 0.5)
    else:
        # An upper bound, estimated at random times
        denoiser = model.denoiser
        per_token, error, _ = estimate_bound(denoiser, model.scheduler, held_out.rows, num_times)

    # Characters are what texts have in common under any tokenizer.
    bits = per_token * count_tokens(held_out.rows) / held_out.num_characters / math.log(2)
    return {"nats_per_token": per_token, "standard_error": error, "bits_per_character": bits}


@torch.no_grad()
def write_rows(
    model: Any,
    options: QualityConfig,
    num_rows: int,
    seed: int,
) -> list[list[int]]:
    """Rows of L tokens, all of them written; ends of texts are tokens like others."""
    if isinstance(model, AutoregressiveModel):
        return model.write(num_rows, seed).tolist()

    # A row depends on its own seed only, and not on the batch it is written in.
    generators = [
        torch.Generator().manual_seed(SEED_STRIDE * seed + row) for row in range(num_rows)
    ]

    # From pure noise: a pipeline would end texts, and rows are to be full.
    scheduler = model.scheduler
    scheduler.set_timesteps(options.steps)
    tokens = scheduler.prior((num_rows, options.length), generators)  # (B, L)
    for timestep in scheduler.timesteps.tolist():
        tokens = select_first_step(model.denoiser, scheduler, tokens, timestep, generators)
    return tokens.tolist()


def diversity(rows: list[list[int]], tokenizer: Any) -> Record:
    """Entropy and distinct n-grams of rows, and their texts, a line each."""
    # A row holds several texts, or parts of them.
    texts = []
    for row in rows:
        pieces = split_at(tokenizer.eos_token_id, row)
        pieces = tokenizer.batch_decode(pieces, skip_special_tokens=True)
        texts.append("\n".join(pieces).strip())
    figures = distinct_ngrams(rows, orders=(1, 2, 3))
    return {"entropy": token_entropy(rows), **figures, "texts": texts}


def split_at(end_token: int, row: Iterable[int]) -> list[list[int]]:
    """The texts of a row, each with its end; the last one is empty if the row ends with an end."""
    pieces = [[]]
    for token in row:
        pieces[-1].append(token)
        if token == end_token:
            pieces.append([])
    return pieces


def evaluate_data(options: QualityConfig, held_out: HeldOut) -> Record:
    """The same figures of held-out rows, spread over all full ones; in place of a bound, the unigram entropy."""
    # Full rows, as the models write; neighbours come from one text, so they are spread.
    full_rows = [row["input_ids"] for row in held_out.rows if all(row["attention_mask"])]
    stride = max(1, len(full_rows) // options.num_samples)
    spread_rows = full_rows[::stride][: options.num_samples]
    return {
        "model": DATA,
        "seed": 0,
        "unigram_entropy": unigram_entropy(held_out.rows),
        **diversity(spread_rows, held_out.tokenizer),
    }


def train_and_evaluate(
    trainer: Trainer,
    spec: ModelSpec,
    seed: int,
    held_out: HeldOut,
) -> Record:
    """The record of one model and seed."""
    options = trainer.options

    # 1. Train for as many steps as the CPU minutes allow
    cost = trainer.step_cost(spec)
    steps = max(1, round(60 * options.cpu_minutes / cost))
    print(f"{spec.name}, seed {seed}: {1000 * cost:.1f} CPU ms a step, {steps:,} steps", flush=True)
    model, seconds = trainer.run(spec, seed, steps)

    # 2. Write
    network = model if isinstance(model, AutoregressiveModel) else model.denoiser
    rows = []
    for first in range(0, options.num_samples, WRITTEN_AT_ONCE):
        count = min(WRITTEN_AT_ONCE, options.num_samples - first)
        rows += write_rows(model, options, count, seed=1_000 * seed + first)

    # 3. Evaluate
    return {
        **asdict(spec),
        "model": spec.name,
        "seed": seed,
        "parameters": network.num_parameters(),
        "seconds_per_step": cost,
        "steps": steps,
        "cpu_minutes": sum(seconds) / 60,
        **likelihood(model, options.num_times, held_out),
        **diversity(rows, held_out.tokenizer),
    }
