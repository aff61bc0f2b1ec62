"""The texts of a line of the table, and what they cost."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from parts.common.results import Record
from parts.writing_orders.config import Cell, WritingOrdersConfig
from text_diffusers.common.token_ids import end_ids
from text_diffusers.samplers import samplers_for, with_sampler

NEW_TOKENS = 48  # of a text of a model that does not say how long its texts are


@dataclass
class Calls:
    """Rows that a denoiser was asked about."""

    rows: int = 0


@contextmanager
def counted(denoiser: Any) -> Iterator[Calls]:
    """Count the rows that a denoiser reads, guidance included."""
    calls = Calls()

    def count(_: Any, args: tuple, kwargs: dict[str, Any]):
        calls.rows += len(args[0] if args else kwargs["input_ids"])

    # The head of a model of transformers runs on its own, after the model that it stands on.
    model = getattr(denoiser, "base_model", denoiser)
    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def takes_window(pipe: Any, order: str) -> bool:
    """Whether a window makes a difference to this order; from the left it makes none."""
    if order == "left_to_right":
        return False
    return order == "random" or "window" in samplers_for(pipe)[order].settings


def in_order(pipe: Any, cell: Cell) -> Any:
    """A pipeline of the same model that writes in the order of a cell."""
    settings: dict[str, Any] = {"window": cell.window or None} if cell.window else {}
    if cell.order == "random":
        return with_sampler(pipe, "confidence", order="random", **settings)
    return with_sampler(pipe, cell.order, **settings)


def write_cell(pipe: Any, cell: Cell, options: WritingOrdersConfig) -> Record:
    """The texts of a cell, each from a seed of its own, which is the same in all cells."""
    writer = in_order(pipe, cell)
    arguments: dict[str, Any] = {
        "num_inference_steps": cell.steps,
        "block_length": cell.block_length or None,
        "temperature": cell.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "output_type": "tokens",
    }
    limit = longest_text(pipe, options)
    if limit is not None:
        arguments["max_new_tokens"] = limit
    label = class_label(options.label)
    if label is not None:
        arguments |= {"class_labels": label, "guidance_scale": options.guidance_scale}

    texts = []
    num_tokens = 0
    start = time.process_time()
    with counted(pipe.denoiser) as calls:
        for first in range(0, options.num_texts, options.batch_size):
            numbers = range(first, min(first + options.batch_size, options.num_texts))
            generators = [
                torch.Generator().manual_seed(options.seed + number) for number in numbers
            ]
            written = writer(num_return_sequences=len(numbers), generator=generators, **arguments)
            texts += decoded(writer.tokenizer, written.tokens.tolist())
            num_tokens += count_tokens(writer.tokenizer, written.tokens.tolist())
    return {
        "texts": texts,
        "calls": calls.rows / options.num_texts,
        "tokens": num_tokens / options.num_texts,
        "seconds": (time.process_time() - start) / options.num_texts,
    }


def longest_text(pipe: Any, options: WritingOrdersConfig) -> int | None:
    """The tokens that a text may have; `None` leaves it to the pipeline, which draws or knows it."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    if pipe.config.get("lengths") or "max_new_tokens" in pipe.generation_defaults:
        return None
    return min(NEW_TOKENS, pipe.max_length // 2)


def class_label(label: str | None) -> int | str | None:
    """A label as a pipeline takes it; on the command line a number is text as well."""
    return int(label) if label is not None and label.isdecimal() else label


def decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    """The texts of rows, without special tokens."""
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def count_tokens(tokenizer: Any, rows: list[list[int]]) -> int:
    """Tokens that are not special; ends count, but the start does not."""
    special_ids = {*tokenizer.all_special_ids} - {*end_ids(tokenizer)}
    return sum(token not in special_ids for row in rows for token in row[1:])
