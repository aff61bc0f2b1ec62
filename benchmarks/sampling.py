"""What sampling costs: a step, the rows that the model is called with, tokens per second beside autoregression.

    python benchmarks/sampling.py [--parts steps rows tokens] [--quick] [--json FILE]

- steps: a whole step of every sampler in units of a bare forward pass (sampling_steps.py).
- rows: forward passes of one row, per returned row, through TextDiffusionPipeline; exact counts for fixed seeds.
- tokens: tokens per second beside transformers' GPT-2 of the same size (tokens_per_second.py).

Times are CPU time on one thread and wall-clock time on more, and every comparison is of one run in which the cases
take turns. Weights are random. Shapes: B batch, L length, V vocabulary size, T steps.
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from speed.measuring import Size, verdict
from speed.sampling_steps import step_costs
from speed.tokens_per_second import plain_tokenizer, tokens_per_second
from transformers.utils import ModelOutput

from text_diffusers import D3PMAbsorbingScheduler, FirstHittingScheduler, TextDiffusionPipeline

PARTS = ("steps", "rows", "tokens")
ROW_STEPS, ROW_BATCHES, ROW_LENGTH, ROW_VOCAB_SIZE = (16, 64, 128, 256, 1000, 4096), (1, 8, 32), 128, 8
ROW_TARGETS = {(1000, 32): 125}


class CountingDenoiser(ModelMixin, ConfigMixin):
    """Predicts every token alike, and counts the rows it is called with."""

    config: Any

    @register_to_config
    def __init__(self, vocab_size: int, max_length: int):
        super().__init__()
        self.flat = torch.nn.Parameter(torch.zeros(vocab_size))
        self.calls = self.rows = 0

    def forward(self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(input_ids)
        return ModelOutput(logits=self.flat.expand(int(positions.sum()), -1))


def rows_per_text(scheduler: Any, num_steps: int, batch: int, length: int) -> float:
    """Rows that TextDiffusionPipeline calls the model with, per returned row."""
    denoiser = CountingDenoiser(ROW_VOCAB_SIZE, length)
    pipe = TextDiffusionPipeline(plain_tokenizer(ROW_VOCAB_SIZE), denoiser, scheduler)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        max_new_tokens=length,
        num_inference_steps=num_steps,
        num_return_sequences=batch,
        generator=torch.Generator().manual_seed(0),
        output_type="tokens",
    )
    assert output.tokens.shape == (batch, length) and (output.tokens != scheduler.config.mask_token_id).all()
    return denoiser.rows / batch


def row_counts(
    steps: Iterable[int] = ROW_STEPS, batches: Iterable[int] = ROW_BATCHES, length: int = ROW_LENGTH
) -> Iterator[dict[str, Any]]:
    """Yield a line for each number of steps and batch; the two formulas are expectations, the rest is counted.

    "expected" is the number of steps in which a row has a position selected. "batch-wide cache" is what a sampler
    calls that skips a step only if no row of the batch changes.
    """
    for num_steps in steps:
        for batch in batches:
            counted = rows_per_text(D3PMAbsorbingScheduler(ROW_VOCAB_SIZE - 1), num_steps, batch, length)
            hitting = "-"  # it needs as many steps as there are tokens
            if num_steps >= length:
                hitting = rows_per_text(FirstHittingScheduler(ROW_VOCAB_SIZE - 1), num_steps, batch, length)
            line = {
                "T": num_steps,
                "B": batch,
                "rows per text": round(counted, 1),
                "expected": round(expected_steps(num_steps, length), 1),
                "batch-wide cache (formula)": round(expected_steps(num_steps, length * batch), 1),
                "first hitting": hitting,
            }
            yield line | verdict(counted, ROW_TARGETS.get((num_steps, batch)))


def expected_steps(num_steps: int, num_tokens: int) -> float:
    """In how many of T even steps at least one of the tokens is revealed, on average."""
    return num_steps * (1 - (1 - 1 / num_steps) ** num_tokens)


def print_table(lines: Iterable[dict[str, Any]], head: bool = True):
    """Aligned columns; a column is as wide as its name or, for text, 38 characters."""
    for line in lines:
        widths = {name: max(len(name), 38 if name in ("step", "case") else 9) for name in line}
        if head:
            print("  ".join(f"{name:<{width}}" for name, width in widths.items()))
            head = False
        print("  ".join(f"{line[name]!s:<{width}}" for name, width in widths.items()).rstrip(), flush=True)


def main(arguments: list[str] | None = None, size: Size | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=[8_192, 50_258], help="of the steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5, help="of the steps, and of 128 tokens")
    parser.add_argument("--quick", action="store_true", help="at most 32 steps, and 1,024 tokens at batch 1 only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all tables there too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    size = size or Size()
    run = {"torch": torch.__version__, "threads": options.threads, "load": round(os.getloadavg()[0], 2)}
    print(", ".join(f"{name} {value}" for name, value in run.items()))
    tables: dict[str, Any] = {"run": run, "size": vars(size)}
    makers = {
        "steps": lambda: step_costs(options.vocab_sizes, options.repetitions, size),
        "rows": lambda: row_counts(),
        "tokens": lambda: tokens_per_second(size, options.repetitions, options.quick),
    }
    for part in options.parts:
        print(f"\n{part}")
        tables[part] = []
        for line in makers[part]():
            print_table([line], head=not tables[part])
            tables[part].append(line)
        if options.json is not None:
            options.json.write_text(json.dumps(tables, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
