"""What it costs to write, with random weights: against length, steps, batch and size of a model, and with a cache.

Every text is written whole by `TextDiffusionPipeline`, absorbing noise. "forwards" is the time of a text in units of
bare forward passes of the same model on as many rows of the same length, all logits included, one for each step, in
the same run: below 1 where steps predict some of the tokens only.

Shapes: B batch, L length, V vocabulary size.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from parts.common.results import Record
from parts.sampling.measuring import Size, interleaved, pipeline_writer, random_model
from parts.scaling.config import ScalingConfig
from parts.scaling.flops import Call, Network, noted_calls
from text_diffusers import D3PMAbsorbingScheduler

SWEEPS = ("length", "steps", "batch", "width", "blocks")
MIDDLE = 0.5  # of the noise, at which the bare forward is shown half of the tokens


class Case(NamedTuple):
    """A line of a table.

    Attributes:
        value: of what is changed.
        size: of model and batch.
        steps: of a text; with `block_length` of each block.
        block_length: of blocks with a cache; `None` is whole rows.
    """

    value: int | str
    size: Size
    steps: int
    block_length: int | None = None

    @property
    def num_steps(self) -> int:
        """All steps of a text."""
        if self.block_length is None:
            return self.steps
        return self.steps * -(-self.size.length // self.block_length)


def writing_cases(options: ScalingConfig, sweep: str) -> list[Case]:
    """The lines of a sweep, in which one thing changes."""
    size = options.size
    if sweep == "length":
        return [Case(n, replace(size, length=n), options.steps) for n in options.lengths]
    if sweep == "steps":
        return [Case(n, size, n) for n in options.step_counts]
    if sweep == "batch":
        return [Case(n, replace(size, batch=n), options.steps) for n in options.batches]
    if sweep == "width":
        return [Case(n, replace(size, width=n), options.steps) for n in options.widths]

    # As many steps a token, whole rows beside blocks
    cases = []
    for length in options.block_rows:
        long = replace(size, length=length)
        blocks = Case(f"{length}, blocks", long, options.block_steps, options.block_length)
        cases += [Case(f"{length}, whole", long, blocks.num_steps), blocks]
    return cases


def model_of(case: Case) -> Any:
    return random_model(
        case.size, block_length=case.block_length, mask_token_id=case.size.vocab_size - 1
    )


def writer_of(case: Case, model: Any) -> Callable[[], Any]:
    """A function that writes the B texts of a case."""
    scheduler = D3PMAbsorbingScheduler(case.size.vocab_size - 1)
    return pipeline_writer(model, scheduler, case.steps, case.size)


def bare_forward(case: Case, model: Any) -> Callable[[], Any]:
    """A function that predicts all tokens of B rows, half of them masks."""
    size = case.size
    mask = size.vocab_size - 1
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, mask, (size.batch, size.length), generator=generator)  # (B, L)
    noisy = D3PMAbsorbingScheduler(mask).add_noise(clean, MIDDLE, generator)
    return lambda: model(noisy).logits


def smallest_model(size: Size) -> Size:
    """The same batch for a model that costs nothing: where noise is masks, calls do not depend on what it says."""
    return replace(size, width=4, heads=2, layers=1, vocab_size=8)


def calls_of_writing(case: Case) -> list[Call]:
    """The calls of a pipeline that writes the B texts of a case."""
    smallest = case._replace(size=smallest_model(case.size))
    model = model_of(smallest)
    with noted_calls(model) as calls:
        writer_of(smallest, model)()
    return calls


@torch.no_grad()
def measure_writing(options: ScalingConfig, sweep: str) -> list[Record]:
    """A record for each case of a sweep; all take turns in one run."""
    cases = writing_cases(options, sweep)

    # 1. All that is timed; a first forward pass takes the memory
    runs = {}
    flops = {}
    for case in cases:
        model = model_of(case)
        flops[case.value] = Network.of(model).flops(calls_of_writing(case))
        runs[f"text {case.value}"] = writer_of(case, model)
        runs[f"forward {case.value}"] = bare_forward(case, model)
        runs[f"forward {case.value}"]()

    # 2. In turns
    seconds = interleaved(runs, options.repetitions)

    # 3. The lines
    records = []
    for case in cases:
        size = case.size
        text = seconds[f"text {case.value}"]
        forward = seconds[f"forward {case.value}"]
        num_tokens = size.batch * size.length
        network = Network.of(model_of(case))
        records.append(
            {
                "value": case.value,
                "batch": size.batch,
                "length": size.length,
                "width": size.width,
                "layers": size.layers,
                "steps": case.num_steps,
                "parameters": random_model(size).num_parameters(),
                "seconds": text,
                "forward_seconds": forward,
                "forwards": text / (case.num_steps * forward),
                "tokens_per_second": num_tokens / text,
                "flops_per_token": flops[case.value] / num_tokens,
                # In units of a token in a dense forward pass, for each step
                "flops_share": flops[case.value]
                / (num_tokens * case.num_steps * network.dense_flops(size.length)),
            }
        )
    return records


def all_sweeps(options: ScalingConfig) -> Iterator[tuple[str, Callable[[], list[Record]]]]:
    """Each sweep by its name, and what measures it."""
    for sweep in SWEEPS:
        yield sweep, lambda sweep=sweep: measure_writing(options, sweep)
