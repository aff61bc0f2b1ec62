"""Compare a pipeline with the model it was trained from, on held-out texts and by what both write; draw how.

    python training_scripts/quickstart.py runs/quickstart --before four-voices --dataset movie_reviews

Without `--before` and `--dataset` the pipeline is shown by itself.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch

from text_diffusers import TextDiffusionPipeline
from text_diffusers.common.json_files import read_object
from text_diffusers.data.sources import load_documents, load_train_and_validation
from text_diffusers.evaluation.likelihood import evaluate_likelihood
from text_diffusers.evaluation.plots import plot_denoising
from text_diffusers.pipelines.calls.steps import defaults_in_force
from text_diffusers.training.config import NOTE_FILE
from text_diffusers.training.recipes import hide_bars_of_libraries

NUM_TEXTS = 8
# Where a pipeline has no defaults of its own; below 1, the model writes what it is surer of.
SETTINGS = {"temperature": 0.7}
BEGINNING = "The story"
INFILL = "the [MASK] was so [MASK] that i [MASK] to see it again"

# Held-out texts of the bound, and random times each
NUM_HELD_OUT = 200
NUM_TIMES = 4


def main(folder: str, before: str | None = None, dataset: str | None = None):
    hide_bars_of_libraries()
    # Of a data set its options hold the name, and not the place.
    options = read_object(Path(folder, NOTE_FILE))["options"]
    models = {"before": before, "after": folder} if before else {"trained": folder}

    pipes = {}
    for name, model in models.items():
        pipes[name] = TextDiffusionPipeline.from_pretrained(model)
        pipes[name].set_progress_bar_config(disable=True)
    if dataset:
        texts = held_out_texts(options | {"dataset": dataset})
        print_bounds(pipes, texts, options["length"])

    for name, pipe in pipes.items():
        settings = {} if pipe.generation_defaults else SETTINGS
        print(f"\n{name}, {said(defaults_in_force(pipe, settings) | settings)}")
        written = print_texts(pipe, settings, options["length"])

    # A text of about a line shows best.
    row = min(range(NUM_TEXTS), key=lambda index: abs(len(written.texts[index]) - 80))
    picture = plot_denoising(
        written.history, pipe.tokenizer, Path(folder, "denoising.png"), row=row
    )
    print(f"\nHow one of the last was written, token by token: {picture}")


def held_out_texts(options: dict[str, Any]) -> list[str]:
    """Texts that a training with these options held out, spread over all of them."""
    load_split = partial(
        load_documents,
        options["dataset"],
        text_column=options["text_column"],
        sample_by=options["sample_by"],
        streaming=options["streaming"],
    )
    _, held_out = load_train_and_validation(
        load_split,
        options["dataset"],
        options["split"],
        options["validation_fraction"],
        options["validation_documents"],
    )
    stride = -(-len(held_out) // NUM_HELD_OUT)
    return held_out["text"][::stride]


def print_bounds(pipes: dict[str, Any], texts: list[str], length: int):
    """The bound of each pipeline on the texts that all of them can write."""
    likelihoods = {name: bound(pipe, texts, length) for name, pipe in pipes.items()}

    # One that is longer or shorter than all that a pipeline writes costs infinitely much.
    possible = []
    for index, text in enumerate(texts):
        costs = [likelihood.per_text_nats[index] for likelihood in likelihoods.values()]
        if all(map(math.isfinite, costs)):
            possible.append(text)
    if 0 < len(possible) < len(texts):
        likelihoods = {name: bound(pipe, possible, length) for name, pipe in pipes.items()}

    print(f"\nUpper bound of -log p of {len(possible)} held-out texts of {len(texts)}:")
    for name, likelihood in likelihoods.items():
        nats = f"{likelihood.nats_per_token:.3f} nats per token"
        print(f"  {name:7} {nats}, {likelihood.bits_per_character:.3f} bits per character")


def bound(pipe: Any, texts: list[str], length: int) -> Any:
    return evaluate_likelihood(pipe, texts, num_times=NUM_TIMES, max_length=length)


def said(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def print_texts(pipe: Any, settings: dict[str, Any], length: int) -> Any:
    """Let a pipeline write, continue and fill in, from a fixed seed; returns the texts with their history.

    Args:
        settings: of each call; none where the pipeline has its own.
        length: tokens of a training row.
    """
    generator = torch.Generator().manual_seed(0)
    # A model that does not say where a text ends is told, between a start and an end.
    limits = {} if pipe.predicts_end else {"max_new_tokens": length - 2}
    write = partial(pipe, generator=generator, **limits, **settings)

    print(f"{NUM_TEXTS} texts:")
    written = write(num_return_sequences=NUM_TEXTS, return_history=True)
    for text in written.texts:
        print(f"  - {' '.join(text.split())}")

    # A prompt is a beginning that stays as it is.
    print("A text continued:")
    print(f"  {write(BEGINNING).texts[0]}")

    # Each mask is one token, which sees the text on both sides.
    print("A text filled in:")
    gaps = INFILL.replace("[MASK]", pipe.tokenizer.mask_token)
    filled = pipe(text=gaps, generator=generator, **settings)
    print(f"  {INFILL}\n  {filled.texts[0]}")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="of the trained pipeline")
    parser.add_argument("--before", help="model that it was trained from")
    parser.add_argument("--dataset", help="that it was trained on")
    main(**vars(parser.parse_args()))
