"""Texts of the systems of benchmarks/two_level.py, and what a text costs.

Shapes: B texts, L tokens of a text, C coarse codes of a text.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from common.processes import peak_of
from common.results import Record, read_or_make
from common.texts import without_special_tokens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from long_texts.cells import ORACLE, SHUFFLED, UNTOLD, Cell, Cost, Costs, Steps
from long_texts.config import SYSTEMS, TOKENS, TWO_LEVEL, TwoLevelConfig
from long_texts.systems import System, parameters_of

SEED_STRIDE = 1_000_003
COUNTED_TEXTS = 2
MEMORY_TEXTS = 8


# --- plans


def shuffled_plans(plans: Tensor, seed: int) -> Tensor:
    """(B, C) plans in which each place has the codes of all texts, but in another order."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(plans), generator=generator) for _ in range(plans.shape[1])]
    return plans.gather(0, torch.stack(orders, dim=1))


def plans_of(pipe: Any, cell: Cell, rows: Tensor) -> Tensor | None:
    """(B, C) plans that a cell is given, the codes of as many real texts (B, L); None if it writes its own."""
    if cell.plan not in (ORACLE, SHUFFLED):
        return None
    plans = pipe.autoencoder.encode(rows).coarse  # (B, C)
    return plans if cell.plan == ORACLE else shuffled_plans(plans, cell.seed)


# --- texts


def write(
    pipe: Any, cell: Cell, first: int, count: int, plans: Tensor | None = None
) -> list[list[int]]:
    """Tokens of texts `first` to `first + count` of a cell, without special ones; each has a seed of its own.

    Untold is a text whose fine denoiser does not know the plan that its decoder is given.
    """
    seeds = range(SEED_STRIDE * cell.seed + first, SEED_STRIDE * cell.seed + first + count)
    arguments = {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
    if plans is None:  # as many texts as plans otherwise
        arguments["num_return_sequences"] = count
    else:
        arguments["plan"] = plans[first : first + count]

    if cell.system == TOKENS:
        # A text begins after a start token, which its row of L tokens holds too.
        arguments |= {"max_new_tokens": cell.length - 1, "num_inference_steps": cell.steps.fine}
    else:
        arguments["max_new_tokens"] = cell.length
        arguments["num_inference_steps"] = (max(1, cell.steps.coarse), cell.steps.fine)
    if cell.plan == UNTOLD:
        arguments["guidance_scale"] = (1.0, 0.0)  # coarse and fine
    output = pipe(output_type="tokens", **arguments)
    return without_special_tokens(output.tokens.tolist(), pipe.tokenizer)


def write_cell(pipe: Any, cell: Cell, options: TwoLevelConfig, rows: Tensor) -> Record:
    """The record of a cell: its texts, CPU seconds, and FLOPs of a text; `rows` (B, L) are real texts for plans."""
    count = options.texts_of(cell.length)
    plans = plans_of(pipe, cell, rows[:count, : cell.length])
    at_once = max(1, options.batch_tokens // cell.length)
    tokens = []
    started = time.process_time()
    for first in range(0, count, at_once):
        tokens += write(pipe, cell, first, min(at_once, count - first), plans)
    seconds = time.process_time() - started

    return {
        "system": cell.system,
        "seed": cell.seed,
        "length": cell.length,
        "plan": cell.plan,
        "coarse_steps": cell.steps.coarse,
        "fine_steps": cell.steps.fine,
        "tokens_per_second": count * cell.length / seconds,
        "flops": flops_of_text(pipe, cell, plans),
        "tokens": tokens,
        "texts": [text.strip() for text in pipe.tokenizer.batch_decode(tokens)],
    }


# --- costs


def count_flops(run: Callable[[], Any]) -> int:
    """FLOPs of a call, two for each multiplication of a matrix product."""
    # The counter does not know the fused attention of the CPU, so attention is computed in its plain form.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def flops_of_text(pipe: Any, cell: Cell, plans: Tensor | None = None) -> float:
    """Mean over the first texts of a cell, each written alone."""
    flops = [
        count_flops(partial(write, pipe, cell, text, 1, plans)) for text in range(COUNTED_TEXTS)
    ]
    return sum(flops) / COUNTED_TEXTS


def measured_cost(pipe: Any, system: str, length: int) -> Cost:
    """What a text costs, from calls of one step a level and of one more: with so few no step is without work."""

    def flops(fine: int, coarse: int = 0) -> int:
        return round(flops_of_text(pipe, Cell(system, 0, length, Steps(fine, coarse))))

    if system != TWO_LEVEL:
        one_step = flops(1)
        fine = flops(2) - one_step
        return Cost(one_step - fine, fine)

    # The difference that one more step of a level makes is the cost of that level.
    one_step = flops(1, 1)
    fine = flops(2, 1) - one_step
    coarse = flops(1, 2) - one_step
    return Cost(one_step - fine - coarse, fine, coarse)


def all_costs(options: TwoLevelConfig) -> Costs:
    """What a text of each system and length costs; measured once, with any trained seed.

    Raises:
        FileNotFoundError: if a system is not trained at all.
    """
    costs = {}
    for name in SYSTEMS:
        system = System(name, options)

        def measure(system: System = system) -> Record:
            pipe = system.load(system.trained_seed)
            measured = {
                str(n): asdict(measured_cost(pipe, system.name, n)) for n in options.lengths
            }
            return measured | {"parameters": parameters_of(pipe)}

        known = read_or_make(options.folder / "costs" / f"{name}.json", measure)
        for length in options.lengths:
            costs[name, length] = Cost(**known[str(length)])
    return costs


def peak_memory(options: TwoLevelConfig, name: str, length: int) -> float:
    """MiB of resident memory (on Linux) at the peak of writing a few texts, beyond the loaded pipeline."""
    system = System(name, options)
    pipe = system.load(system.trained_seed)
    steps = Steps(1, 1) if name == TWO_LEVEL else Steps(1)

    def write_few(length: int, count: int):
        write(pipe, Cell(name, system.trained_seed, length, steps), 0, count)

    write_few(min(options.lengths), 1)  # libraries allocate on first use
    return peak_of(lambda: write_few(length, MEMORY_TEXTS))
