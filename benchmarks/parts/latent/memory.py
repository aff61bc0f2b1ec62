"""What writing takes in memory: latents and words apart, beside a model that diffuses tokens."""

from typing import Any

from parts.common.processes import in_own_process, peak_of
from parts.common.results import Record
from parts.latent.config import LatentBenchmarkConfig
from parts.latent.samplers import load

# What is written at once
NUM_TEXTS = 64
LENGTH = 30
MEBIBYTE = 2**20


def memory_records(options: LatentBenchmarkConfig) -> list[Record]:
    """A line for each model; on Linux, before this process computes anything."""
    ways = [
        ("latents alone", options.flow, {"output_type": "latents"}),
        ("latents and words", options.flow, {"max_new_tokens": LENGTH}),
        (f"tokens: {options.tokens_model}", options.tokens_model, {"length": LENGTH}),
    ]
    return [
        {"name": name, **in_own_process(1, measured, folder, inputs)}
        for name, folder, inputs in ways
    ]


def measured(folder: str, inputs: dict[str, Any]) -> Record:
    """MiB of all weights, and of what is beside them at the peak."""
    pipe = load(folder)
    weights = 0
    for part in pipe.components.values():
        # Tokenizers and schedulers have none.
        if hasattr(part, "parameters"):
            weights += sum(weight.nbytes for weight in part.parameters())

    # The peak is that of a step, however many there are.
    peak = peak_of(lambda: pipe(num_return_sequences=NUM_TEXTS, num_inference_steps=4, **inputs))
    return {"weights": weights / MEBIBYTE, "peak": peak}
