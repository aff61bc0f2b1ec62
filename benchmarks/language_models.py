"""Language models of transformers as denoisers: the head at selected positions, caches, early stops.

    python benchmarks/language_models.py [--parts heads blocks caches replies steps] [--train_minutes 20]

- heads: a call that asks for one position, by architecture, in units of a forward pass with all logits; toy models
  under a vocabulary as large as LLaDA's (parts/language_models/heads.py).
- blocks: a reply of a block-causal model with its exact cache and without, by the number of blocks.
- caches: approximate caches of a bidirectional model: speed, with random weights.
- replies: what approximate caches change: a small model is trained to answer made-up questions whose facts are known.
- steps: the same model with a threshold, that stops when all tokens are sure.

The trained model is tiny, and its replies are short: it shows how the options trade, and not how much an 8B model
loses by them. Comparisons are of one run in which the cases take turns, in CPU time on one thread.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from parts.common.options import run
from parts.common.results import Record
from parts.common.tables import print_aligned
from parts.language_models.heads import HeadSize, head_costs
from parts.language_models.models import ModelSize, Trained, train
from parts.language_models.writing import (
    early_stops,
    exact_caches,
    faithfulness_of_approximations,
    speeds_of_approximations,
)

from text_diffusers.common.validation import require
from text_diffusers.training.config import OptionParser, check_options, option

PARTS = ("heads", "blocks", "caches", "replies", "steps")


@dataclass
class LanguageModelOptions:
    parts: list[str] = option(list(PARTS), f"among {', '.join(PARTS)}")
    threads: int = option(1, "of torch", limit="at least 1")
    repetitions: int = option(3, "of each measurement of time", limit="at least 1")
    train_minutes: float = option(20.0, "of the model that replies", limit="above 0")
    num_questions: int = option(100, "that it is asked", limit="at least 1")

    def __post_init__(self):
        check_options(self)
        require(set(self.parts) <= set(PARTS), "parts", f"among {list(PARTS)}", self.parts)


def main(
    options: LanguageModelOptions, size: ModelSize | None = None, head_size: HeadSize | None = None
):
    """Print the tables of the chosen parts, line by line as they are measured."""
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {options.threads} thread(s), load {load:.1f}")
    size = size or ModelSize()

    @cache
    def trained() -> Trained:
        result = train(options.train_minutes, options.num_questions)
        print(f"{result.num_steps} steps of training, {result.nats:.3f} nats a masked token")
        return result

    measurements = {
        "heads": lambda: head_costs(head_size or HeadSize(), options.repetitions),
        "blocks": lambda: exact_caches(size, options.repetitions),
        "caches": lambda: speeds_of_approximations(size, options.repetitions),
        "replies": lambda: faithfulness_of_approximations(trained()),
        "steps": lambda: early_stops(trained()),
    }
    for part in options.parts:
        print(f"\n{part}")
        print_lines(measurements[part]())


def print_lines(lines: Iterator[Record]):
    for number, line in enumerate(lines):
        print_aligned(line, first=number == 0)


if __name__ == "__main__":
    run(main, OptionParser(LanguageModelOptions, description=__doc__))
