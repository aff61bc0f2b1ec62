"""How often a pipeline calls its model: `sampling.py --parts rows`.

Forward passes of one row, per returned row, through `TextDiffusionPipeline`; counts are exact for fixed seeds, and the
two formulas beside them are expectations.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from transformers.utils import ModelOutput

from parts.common.results import Record
from parts.sampling.measuring import Size, pipeline_writer, verdict
from text_diffusers import D3PMAbsorbingScheduler, FirstHittingScheduler

STEPS = (16, 64, 128, 256, 1000, 4096)
BATCHES = (1, 8, 32)
LENGTH = 128
VOCAB_SIZE = 8
TARGETS = {(1000, 32): 125}  # rows per text, at most, by steps and batch


class CountingDenoiser(ModelMixin, ConfigMixin):
    """A model that predicts every token alike, and counts the rows it is called with."""

    config: Any

    @register_to_config
    def __init__(self, vocab_size: int, max_length: int):
        super().__init__()
        self.flat_logits = torch.nn.Parameter(torch.zeros(vocab_size))
        self.num_rows = 0

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        self.num_rows += len(input_ids)
        # (N, V) logits of the N selected positions
        return ModelOutput(logits=self.flat_logits.expand(int(positions.sum()), -1))


def rows_per_text(scheduler: Any, num_steps: int, size: Size) -> float:
    """Rows that `TextDiffusionPipeline` calls the model with, per returned row."""
    denoiser = CountingDenoiser(size.vocab_size, size.length)
    pipeline_writer(denoiser, scheduler, num_steps, size)()
    return denoiser.num_rows / size.batch


def expected_steps(num_steps: int, num_tokens: int) -> float:
    """In how many of T even steps at least one of the tokens is revealed, on average."""
    # A token is revealed in each step with the same probability, 1 / T, independently of others.
    return num_steps * (1 - (1 - 1 / num_steps) ** num_tokens)


def row_counts(
    steps: Iterable[int] = STEPS,
    batches: Iterable[int] = BATCHES,
    length: int = LENGTH,
) -> Iterator[Record]:
    """Yield a line for each number of steps and batch.

    "expected" is the number of steps in which a row has a position selected. "batch-wide cache" is what a sampler
    calls that skips a step only if no row of the batch changes.
    """
    # Calls depend on neither the vocabulary nor the predictions.
    mask = VOCAB_SIZE - 1
    for num_steps in steps:
        for batch in batches:
            size = Size(batch=batch, length=length, vocab_size=VOCAB_SIZE)
            counted = rows_per_text(D3PMAbsorbingScheduler(mask), num_steps, size)

            # First hitting reveals one token a step, so it needs as many steps as there are tokens.
            first_hitting = "-"
            if num_steps >= length:
                first_hitting = rows_per_text(FirstHittingScheduler(mask), num_steps, size)

            line = {
                "T": num_steps,
                "B": batch,
                "rows per text": round(counted, 1),
                "expected": round(expected_steps(num_steps, length), 1),
                "batch-wide cache (formula)": round(expected_steps(num_steps, length * batch), 1),
                "first hitting": first_hitting,
            }
            target = TARGETS.get((num_steps, batch))
            yield line | verdict(counted, target)
