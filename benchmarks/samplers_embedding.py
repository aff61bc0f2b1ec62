"""Samplers of diffusion over word embeddings at 1,000 down to 5 steps: seconds, and what becomes of the texts.

    python benchmarks/samplers_embedding.py --model runs/diffusion_lm --picture docs/samplers_embedding.png

Every sampler writes texts of the same lengths from the same noise with one trained model, which calls it once a step.

- seconds: of the whole call, on the clock of this machine.
- token error: share of tokens other than in the texts of the first, largest number of steps: for solvers of the
  differential equation, those of DDIM; for DDPM its own, from other fresh noise, so that it says how unlike two texts
  are.
- generative perplexity under a judge, entropy of the tokens within a text, and distinct n-grams: those of `data`,
  texts of the same source, are the yardstick. A sampler that repeats itself has a low perplexity and a low entropy.

The second table has a denoiser that makes no mistake, for independent words with Zipf's frequencies and embeddings of
the model: there the token error, and the total variation between the written words and their frequencies, are the
sampler's alone. The line "exact" is the total variation of as many words drawn from the frequencies.

A finished run is a file in `output_dir`; delete it to repeat it.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from parts.common.options import run
from parts.common.recipes import CORPORA  # noqa: F401 - names for `--dataset`
from parts.common.results import Record, read_or_make
from parts.common.tables import Column, TableRow, markdown_table
from parts.common.texts import distinct_ngrams, tokens_of_real_texts, without_special_tokens
from parts.samplers_embedding.config import SamplersConfig
from parts.samplers_embedding.exact_denoiser import exact_pipeline
from parts.samplers_embedding.plots import plot_samplers
from torch import Tensor

from text_diffusers import (
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
)
from text_diffusers.data.sources import load_documents
from text_diffusers.evaluation.text_metrics import token_entropy
from text_diffusers.training.config import OptionParser

# All take over the noise schedule of the trained model's scheduler.
SAMPLERS: dict[str, Callable[[Any], Any]] = {
    "DDPM": EmbeddingDDPMScheduler.from_config,
    "DDIM": EmbeddingDDIMScheduler.from_config,
    "DPM-Solver++ 2": EmbeddingDPMSolverScheduler.from_config,
    "DPM-Solver++ 3": partial(EmbeddingDPMSolverScheduler.from_config, solver_order=3),
    "SDE-DPM-Solver++ 2": partial(
        EmbeddingDPMSolverScheduler.from_config, algorithm_type="sde-dpmsolver++"
    ),
    "UniPC": UniPCMultistepScheduler.from_config,
}
# They add fresh noise, so that each can be compared only with itself.
STOCHASTIC = ("DDPM", "SDE-DPM-Solver++ 2")
# Made for few steps; the others are also run with the most.
FAST = ("DPM-Solver++ 3", "SDE-DPM-Solver++ 2", "UniPC")
# Without fresh noise: with the most steps close to the solution that all solvers look for.
REFERENCE = "DDIM"
# Yardsticks in the place of a sampler.
DATA = "data"
EXACT = "exact"
COLUMNS = {
    "seconds": Column("seconds", ".1f"),
    "token_error": Column("token error", ".3f"),
    "generative_perplexity": Column("generative perplexity", ".0f"),
    "entropy": Column("entropy", ".2f"),
    "distinct_1": Column("distinct-1", ".3f"),
    "distinct_2": Column("distinct-2", ".3f"),
    "total_variation": Column("total variation", ".3f"),
}


# --- texts


def write_texts(
    options: SamplersConfig,
    pipe: Any,
    sampler: str,
    steps: int,
    **arguments: Any,
) -> Record:
    """The texts of one sampler and number of steps, and the seconds they took."""
    # The same seed is the same initial noise for all of them.
    generator = torch.Generator().manual_seed(options.seed)
    started = time.perf_counter()
    tokens = pipe(
        num_return_sequences=options.num_texts,
        num_inference_steps=steps,
        generator=generator,
        output_type="tokens",
        **arguments,
    ).tokens
    return {
        "sampler": sampler,
        "steps": steps,
        "seconds": time.perf_counter() - started,
        "tokens": tokens.tolist(),
    }


def run_all(
    options: SamplersConfig,
    pipe: Any,
    folder: Path,
    **arguments: Any,
) -> list[Record]:
    """A record for each sampler and number of steps, with its token error."""
    records = []
    # The configuration of any of these schedulers has the noise schedule that the others need.
    noise = EmbeddingDDIMScheduler.from_config(pipe.scheduler.config).config
    padding = pipe.tokenizer.pad_token_id
    for sampler, make_scheduler in SAMPLERS.items():
        pipe.scheduler = make_scheduler(noise)
        for steps in options.steps:
            if sampler in FAST and steps > options.most_fast_steps:
                continue

            name = f"{sampler.replace(' ', '-').lower()}-{steps}.json"
            write = partial(write_texts, options, pipe, sampler, steps, **arguments)
            record = read_or_make(folder / name, write)

            # Padding after the end of a text would count as tokens that agree.
            rows = []
            for row in record["tokens"]:
                rows.append([token for token in row if token != padding])
            record["tokens"] = rows

            records.append(record)
            print(f"{folder.name}: {sampler}, {steps} steps: {record['seconds']:.1f} s", flush=True)

    # Solvers of the differential equation share the reference's solution; samplers with fresh noise do not.
    most_steps = [record for record in records if record["steps"] == options.steps[0]]
    references = {record["sampler"]: record["tokens"] for record in most_steps}
    for record in records:
        sampler = record["sampler"] if record["sampler"] in STOCHASTIC else REFERENCE
        if sampler in references:
            record["token_error"] = token_error(record["tokens"], references[sampler])
    return records


def data_record(options: SamplersConfig, pipe: Any) -> Record:
    """The last texts of the data set, cut to what the model can write."""
    documents = load_documents(options.dataset or "")
    first = len(documents) - options.num_texts
    texts = documents.select(range(first, len(documents)))["text"]
    return {"sampler": DATA, "steps": 0, "tokens": tokens_of_real_texts(texts, pipe)}


# --- figures


def token_error(first: list[list[int]], second: list[list[int]]) -> float:
    """Share of tokens that differ; rows that differ in length are compared as far as the longer goes.

    Example:
        >>> token_error([[1, 2], [3, 4]], [[1, 5], [3, 4]])
        0.25
    """
    differ = []
    for first_row, second_row in zip(first, second, strict=True):
        differ += [one != other for one, other in zip_longest(first_row, second_row)]
    return sum(differ) / len(differ)


def judged(records: list[Record], tokenizer: Any, options: SamplersConfig) -> list[Record]:
    """The records with the figures of their texts alone."""
    judge = options.perplexity_judge()
    for record in records:
        # Figures of words: a start and an end in every text would look like repetition.
        rows = without_special_tokens(record["tokens"], tokenizer)
        record["entropy"] = token_entropy(rows)
        record.update(distinct_ngrams(rows))
        if judge is not None:
            record["generative_perplexity"] = judge.score(tokenizer.batch_decode(rows)).perplexity
    return records


def with_total_variation(records: list[Record], prior: Tensor, seed: int) -> list[Record]:
    """The records, and one of words drawn from the frequencies `prior` (V,), with their distance from these."""
    # 1. As many words without any mistake: what their finite number alone costs
    count = sum(map(len, records[0]["tokens"]))
    generator = torch.Generator().manual_seed(seed)
    exact_words = torch.multinomial(prior, count, replacement=True, generator=generator)
    yardstick = {"sampler": EXACT, "steps": 0, "tokens": [exact_words.tolist()]}
    records = [yardstick, *records]

    # 2. Half the sum of absolute differences between the shares of words and `prior`
    for record in records:
        words = torch.tensor(list(chain.from_iterable(record["tokens"])))
        counts = words.bincount(minlength=len(prior))  # (V,)
        difference = counts / counts.sum() - prior  # (V,)
        record["total_variation"] = float(difference.abs().sum() / 2)
    return records


def table(records: list[Record]) -> str:
    """Markdown, a line a record."""
    rows = []
    for record in records:
        steps = f"{record['steps']:,}" if record["steps"] else ""
        rows.append(TableRow([record["sampler"], steps], [record]))
    return markdown_table(["sampler", "steps"], rows, COLUMNS)


def main(options: SamplersConfig) -> tuple[list[Record], list[Record]]:
    """Run what is not finished, print both tables and draw the picture."""
    if options.num_cpu_threads:
        torch.set_num_threads(options.num_cpu_threads)

    # 1. The trained model
    pipe = DiffusionLMPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    if not options.self_conditioning:
        pipe.denoiser.register_to_config(self_conditioning=False)

    records = run_all(options, pipe, options.folder / "trained")
    if options.dataset:
        records.insert(0, data_record(options, pipe))
    records = judged(records, pipe.tokenizer, options)

    # 2. The exact denoiser; the pipeline puts the start and the end of a text, so they are cut off
    exact_pipe, prior = exact_pipeline(pipe, options.num_words, options.seed)
    exact_pipe.set_progress_bar_config(disable=True)
    length = exact_pipe.denoiser.config.max_length
    exact_records = run_all(options, exact_pipe, options.folder / "exact", length=length - 2)
    for record in exact_records:
        record["tokens"] = [row[1 : length - 1] for row in record["tokens"]]
    exact_records = with_total_variation(exact_records, prior, options.seed)

    # 3. Report
    print(f"\nA trained model, {options.num_texts} texts\n\n{table(records)}")
    print(f"\nAn exact denoiser, {options.num_words} words\n\n{table(exact_records)}")
    picture = options.picture or options.folder / "samplers.png"
    print(f"\n{plot_samplers(records, exact_records, picture)}")
    return records, exact_records


if __name__ == "__main__":
    run(main, OptionParser(SamplersConfig, description=__doc__))
