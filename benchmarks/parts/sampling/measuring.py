"""Tools of the benchmarks of speed: sizes, random models, the time of interleaved repetitions, targets.

Shapes: B batch, L length.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from parts.common.tables import met_or_missed
from text_diffusers import TextDiffusionPipeline, TextTransformerModel


@dataclass(frozen=True)
class Size:
    """Sizes of the model, and of the batch it works on."""

    layers: int = 6
    width: int = 512
    heads: int = 8
    batch: int = 8
    length: int = 128
    vocab_size: int = 8_192


def random_model(size: Size, **changes: Any) -> TextTransformerModel:
    """A denoiser with random weights; `changes` are arguments of `TextTransformerModel`."""
    torch.manual_seed(0)
    model = TextTransformerModel(
        size.vocab_size,
        hidden_size=size.width,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        max_length=size.length,
        **changes,
    )

    # A head that starts at zero would predict every token alike.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def plain_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose first id is padding and whose last is the mask, without tokens to start or end a text."""
    words = [f"w{number}" for number in range(1, vocab_size - 1)]
    names = ["[PAD]", *words, "[MASK]"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary)),
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def check_written(tokens: Tensor, size: Size, mask_token_id: int | None = None) -> Tensor:
    """The tokens, which must be (B, L), none of them a mask."""
    # A writer that stops early would look fast.
    masked = mask_token_id is not None and bool((tokens == mask_token_id).any())
    if masked or tokens.shape != (size.batch, size.length):
        raise RuntimeError(f"Of {size.batch} x {size.length} tokens not all were written: {tokens}")
    return tokens


def pipeline_writer(
    model: Any,
    scheduler: Any,
    num_steps: int,
    size: Size,
) -> Callable[[], Tensor]:
    """A function that writes (B, L) tokens by `TextDiffusionPipeline`."""
    pipe = TextDiffusionPipeline(plain_tokenizer(size.vocab_size), model, scheduler)
    pipe.set_progress_bar_config(disable=True)

    # One generator for all calls: each writes other texts.
    generator = torch.Generator().manual_seed(0)

    def write() -> Tensor:
        output = pipe(
            max_new_tokens=size.length,
            num_inference_steps=num_steps,
            num_return_sequences=size.batch,
            generator=generator,
            output_type="tokens",
        )
        return check_written(output.tokens, size, size.vocab_size - 1)

    return write


def interleaved(
    runs: dict[str, Callable[[], Any]],
    repetitions: int,
    prepare: Callable[[str], Any] = lambda name: None,
    clock: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Median seconds of each of `runs`, which take turns, so that a busy spell of the machine meets all of them.

    Args:
        prepare: is called with the name of a run before it, and not timed.
        clock: by default, on one thread, that of the CPU, which a busy machine changes least; on several, the wall's.
    """
    if clock is None:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    seconds = {name: [] for name in runs}
    for _ in range(repetitions):
        # A turn of all
        for name, run in runs.items():
            prepare(name)
            started = clock()
            run()
            seconds[name].append(clock() - started)

    # The median ignores the turns in which the machine was busy with something else.
    return {name: statistics.median(values) for name, values in seconds.items()}


def verdict(value: float, target: float | None, at_least: bool = False) -> dict[str, str]:
    """The columns `target` and `verdict` of a table."""
    # A line without a target has the same columns as the others.
    if target is None:
        return {"target": "", "verdict": ""}

    sign = ">=" if at_least else "<="
    return {
        "target": f"{sign} {target:g}",
        "verdict": met_or_missed(value, target, at_most=not at_least),
    }
