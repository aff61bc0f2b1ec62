"""Texts of the systems of benchmarks/two_level.py, and what a text costs.

Shapes: B texts, L tokens of a text, C coarse codes of a text.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parts.common.processes import peak_of
from parts.common.results import Record, read_or_make
from parts.common.texts import without_special_tokens
from parts.two_level.cells import ORACLE, SHUFFLED, UNTOLD, Cell, Cost, Costs, Steps
from parts.two_level.config import SYSTEMS, TOKENS, TWO_LEVEL, TwoLevelConfig
from parts.two_level.systems import System, parameters_of

SEED_STRIDE = 1_000_003  # between the first texts of two seeds: more than a cell has texts
COUNTED_TEXTS = 2  # texts of a cell whose FLOPs are counted
MEMORY_TEXTS = 8  # texts that are written at once for the peak of memory


# --- plans


def shuffled_plans(plans: Tensor, seed: int) -> Tensor:
    """(B, C) plans in which each place has the codes of all texts, but in another order.

    Each place keeps its frequencies of codes; what is lost is which codes belong to one text.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = []
    for _ in range(plans.shape[1]):
        orders.append(torch.randperm(len(plans), generator=generator))
    return plans.gather(0, torch.stack(orders, dim=1))  # (B, C)


def plans_of(pipe: Any, cell: Cell, rows: Tensor) -> Tensor | None:
    """(B, C) coarse codes of as many real texts (B, L), as plans of a cell; None if it writes its own."""
    if cell.plan not in (ORACLE, SHUFFLED):
        return None
    plans = pipe.autoencoder.encode(rows).coarse  # (B, C)
    return plans if cell.plan == ORACLE else shuffled_plans(plans, cell.seed)


# --- texts


def write(
    pipe: Any,
    cell: Cell,
    first: int,
    count: int,
    plans: Tensor | None = None,
) -> list[list[int]]:
    """Tokens of texts `first` to `first + count` of a cell, without special ones."""
    # 1. A text has a seed of its own, so that it is the same in any batch.
    first_seed = SEED_STRIDE * cell.seed + first
    seeds = range(first_seed, first_seed + count)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    arguments = {"generator": generators}

    # 2. A text for each plan, or as many as asked for
    if plans is not None:
        arguments["plan"] = plans[first : first + count]
    else:
        arguments["num_return_sequences"] = count

    # The fine denoiser of an untold text does not see the plan that its decoder is given.
    if cell.plan == UNTOLD:
        arguments["guidance_scale"] = (1.0, 0.0)  # coarse and fine

    # 3. Length and steps
    if cell.system == TOKENS:
        # A text begins after a start token, which its row of L tokens holds too.
        arguments["max_new_tokens"] = cell.length - 1
        arguments["num_inference_steps"] = cell.steps.fine
    else:
        arguments["max_new_tokens"] = cell.length
        # One level ignores its coarse steps, which must be at least one.
        arguments["num_inference_steps"] = (max(1, cell.steps.coarse), cell.steps.fine)

    # 4. Write
    output = pipe(output_type="tokens", **arguments)
    return without_special_tokens(output.tokens.tolist(), pipe.tokenizer)


def write_cell(
    pipe: Any,
    cell: Cell,
    options: TwoLevelConfig,
    rows: Tensor,
) -> Record:
    """The record of a cell: its texts, CPU seconds, and FLOPs of a text; `rows` (B, L) are real texts for plans."""
    count = options.texts_of(cell.length)
    plans = plans_of(pipe, cell, rows[:count, : cell.length])

    # Batches hold as many tokens at every length. CPU time leaves out other work on the machine.
    batch_size = max(1, options.batch_tokens // cell.length)
    tokens = []
    started = time.process_time()
    for first in range(0, count, batch_size):
        tokens += write(pipe, cell, first, min(batch_size, count - first), plans)
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
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()

    return counter.get_total_flops()


def flops_of_text(pipe: Any, cell: Cell, plans: Tensor | None = None) -> float:
    """Mean FLOPs of the first texts of a cell, each written alone."""
    total = 0
    for number in range(COUNTED_TEXTS):
        total += count_flops(partial(write, pipe, cell, number, 1, plans))
    return total / COUNTED_TEXTS


def measured_cost(pipe: Any, system: str, length: int) -> Cost:
    """The cost of a text, from calls of one step a level and of one more: in so few steps there is always work."""

    def flops(fine: int, coarse: int = 0) -> int:
        cell = Cell(system, seed=0, length=length, steps=Steps(fine, coarse))
        return round(flops_of_text(pipe, cell))

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
    """The cost of a text of each system and length; measured once, with any trained seed.

    Raises:
        FileNotFoundError: if a system is not trained at all.
    """
    costs = {}
    for name in SYSTEMS:
        system = System(name, options)

        def measure(system: System = system) -> Record:
            pipe = system.load(system.trained_seed)
            record = {"parameters": parameters_of(pipe)}
            for length in options.lengths:
                # Keys of JSON are text.
                record[str(length)] = asdict(measured_cost(pipe, system.name, length))
            return record

        record = read_or_make(options.folder / "costs" / f"{name}.json", measure)
        for length in options.lengths:
            costs[name, length] = Cost(**record[str(length)])
    return costs


def peak_memory(options: TwoLevelConfig, name: str, length: int) -> float:
    """MiB of resident memory (on Linux) at the peak of writing a few texts, beyond the loaded pipeline."""
    system = System(name, options)
    pipe = system.load(system.trained_seed)
    steps = Steps(1, 1) if name == TWO_LEVEL else Steps(1)

    def write_few(length: int, count: int):
        write(pipe, Cell(name, system.trained_seed, length, steps), 0, count)

    # Libraries allocate on first use.
    write_few(min(options.lengths), 1)
    return peak_of(lambda: write_few(length, MEMORY_TEXTS))
