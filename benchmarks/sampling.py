"""What sampling costs: a step, the rows that the model is called with, tokens per second beside autoregression.

    python benchmarks/sampling.py [--parts steps rows tokens] [--quick] [--json FILE]

- steps: a whole step of every sampler in units of a bare forward pass (parts/sampling/sampling_steps.py).
- rows: forward passes of one row, per returned row, through TextDiffusionPipeline (parts/sampling/forward_passes.py).
- tokens: tokens per second beside transformers' GPT-2 of the same size (parts/sampling/tokens_per_second.py).

Times are CPU time on one thread and wall-clock time on more, and every comparison is of one run in which the cases
take turns. Weights are random. Shapes: B batch, L length, V vocabulary size, T steps.
"""

from dataclasses import asdict, dataclass

import torch
from parts.common.measured_tables import print_machine, print_tables
from parts.common.options import run
from parts.sampling.forward_passes import row_counts
from parts.sampling.measuring import Size
from parts.sampling.sampling_steps import step_costs
from parts.sampling.tokens_per_second import tokens_per_second

from text_diffusers.common.validation import require
from text_diffusers.training.config import OptionParser, check_options, option

PARTS = ("steps", "rows", "tokens")


@dataclass
class SamplingOptions:
    # What is measured
    parts: list[str] = option(list(PARTS), f"among {', '.join(PARTS)}")
    vocab_sizes: list[int] = option([8_192, 50_258], "of the steps")

    # How it is measured
    threads: int = option(1, "of torch", limit="at least 1")
    repetitions: int = option(5, "of the steps, and of 128 tokens", limit="at least 1")
    quick: bool = option(False, "at most 32 steps, and 1,024 tokens at batch 1 only")
    json: str | None = option(None, "file into which all tables are written too")

    def __post_init__(self):
        check_options(self)
        require(set(self.parts) <= set(PARTS), "parts", f"among {list(PARTS)}", self.parts)


def main(options: SamplingOptions, size: Size | None = None):
    """Print the tables of the chosen parts, line by line as they are measured."""
    torch.set_num_threads(options.threads)
    size = size or Size()

    machine = print_machine(options.threads)
    measurements = {
        "steps": lambda: step_costs(options.vocab_sizes, options.repetitions, size),
        "rows": row_counts,
        "tokens": lambda: tokens_per_second(size, options.repetitions, options.quick),
    }
    chosen = {part: measurements[part] for part in options.parts}
    print_tables(chosen, options.json, run=machine, size=asdict(size))


if __name__ == "__main__":
    run(main, OptionParser(SamplingOptions, description=__doc__))
