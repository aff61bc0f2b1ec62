"""What the benchmarks of speed share: sizes, random models, the time of interleaved repetitions, targets."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common.tables import met_or_missed

from text_diffusers import TextTransformerModel


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
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


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

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            prepare(name)
            started = clock()
            run()
            seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def verdict(value: float, target: float | None, at_least: bool = False) -> dict[str, str]:
    """The columns `target` and `verdict` of a table."""
    if target is None:
        return {"target": "", "verdict": ""}
    sign = ">=" if at_least else "<="
    return {
        "target": f"{sign} {target:g}",
        "verdict": met_or_missed(value, target, at_most=not at_least),
    }
