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

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.comparison import read_json, write_json
from diffusers import UniPCMultistepScheduler
from embedding_samplers.config import SamplersConfig
from embedding_samplers.exact_denoiser import ExactDenoiser
from transformers import HfArgumentParser

from text_diffusers import (
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
)
from text_diffusers.data.sources import load_documents
from text_diffusers.evaluation.embedding_plots import plot_samplers
from text_diffusers.evaluation.text_metrics import distinct_n, generative_perplexity, load_judge, token_entropy

Record = dict[str, Any]

SAMPLERS: dict[str, Callable[[Any], Any]] = {
    "DDPM": EmbeddingDDPMScheduler.from_config,
    "DDIM": EmbeddingDDIMScheduler.from_config,
    "DPM-Solver++ 2": EmbeddingDPMSolverScheduler.from_config,
    "DPM-Solver++ 3": lambda config: EmbeddingDPMSolverScheduler.from_config(config, solver_order=3),
    "SDE-DPM-Solver++ 2": lambda config: EmbeddingDPMSolverScheduler.from_config(
        config, algorithm_type="sde-dpmsolver++"
    ),
    "UniPC": UniPCMultistepScheduler.from_config,
}
STOCHASTIC = ("DDPM", "SDE-DPM-Solver++ 2")
FAST = ("DPM-Solver++ 3", "SDE-DPM-Solver++ 2", "UniPC")  # for few steps; the others are also run with the most
REFERENCE = "DDIM"
DATA, EXACT = "data", "exact"
FAR = 1e3
COLUMNS = {  # name in a record: title, format
    "seconds": ("seconds", ".1f"),
    "token_error": ("token error", ".3f"),
    "generative_perplexity": ("generative perplexity", ".0f"),
    "entropy": ("entropy", ".2f"),
    "distinct_1": ("distinct-1", ".3f"),
    "distinct_2": ("distinct-2", ".3f"),
    "total_variation": ("total variation", ".3f"),
}


def write_texts(options: SamplersConfig, pipe: Any, sampler: str, steps: int, **arguments: Any) -> Record:
    """The texts of one sampler and number of steps, and the seconds they took."""
    generator = torch.Generator().manual_seed(options.seed)
    started = time.perf_counter()
    tokens = pipe(
        num_return_sequences=options.num_texts,
        num_inference_steps=steps,
        generator=generator,
        output_type="tokens",
        **arguments,
    ).tokens
    return {"sampler": sampler, "steps": steps, "seconds": time.perf_counter() - started, "tokens": tokens.tolist()}


def finished(path: Path, run: Callable[[], Record]) -> Record:
    """The record in a file, made and written first if it is not there."""
    if not path.exists():
        write_json(path, run())
    return read_json(path)


def run_all(options: SamplersConfig, pipe: Any, folder: Path, **arguments: Any) -> list[Record]:
    """A record for each sampler and number of steps, with its token error."""
    records, noise = [], EmbeddingDDIMScheduler.from_config(pipe.scheduler.config).config
    for sampler, make in SAMPLERS.items():
        pipe.scheduler = make(noise)
        for steps in options.steps:
            if sampler in FAST and steps > options.most_fast_steps:
                continue
            name = f"{sampler.replace(' ', '-').lower()}-{steps}.json"
            run = partial(write_texts, options, pipe, sampler, steps, **arguments)
            record = finished(folder / name, run)
            padding = pipe.tokenizer.pad_token_id
            record["tokens"] = [[token for token in row if token != padding] for row in record["tokens"]]
            records.append(record)
            print(f"{folder.name}: {sampler}, {steps} steps: {records[-1]['seconds']:.1f} s", flush=True)
    longest = {record["sampler"]: record["tokens"] for record in records if record["steps"] == options.steps[0]}
    for record in records:
        reference = longest.get(record["sampler"] if record["sampler"] in STOCHASTIC else REFERENCE)
        if reference is not None:
            record["token_error"] = token_error(record["tokens"], reference)
    return records


def token_error(first: list[list[int]], second: list[list[int]]) -> float:
    """Share of tokens that differ; rows that differ in length are compared as far as the longer goes."""
    pairs = [
        pair
        for rows in zip(first, second, strict=True)
        for pair in zip(*(row + [-1] * (max(map(len, rows)) - len(row)) for row in rows), strict=True)
    ]
    return sum(one != other for one, other in pairs) / len(pairs)


def judged(records: list[Record], tokenizer: Any, options: SamplersConfig) -> list[Record]:
    """The records with what their texts are worth by themselves."""
    judge = None if options.judge == "none" else load_judge(options.judge, options.judge_cache)
    special = set(tokenizer.all_special_ids)
    for record in records:
        rows = [[token for token in row if token not in special] for row in record["tokens"]]
        texts = tokenizer.batch_decode(rows)
        record["entropy"] = token_entropy(rows)
        for n in (1, 2):
            record[f"distinct_{n}"] = distinct_n(rows, n)
        if judge is not None:
            record["generative_perplexity"] = generative_perplexity(texts, *judge).perplexity
    return records


def data_record(options: SamplersConfig, pipe: Any) -> Record:
    """The last texts of the data set, cut to what the model can write."""
    documents = load_documents(options.dataset or "")
    texts = documents.select(range(len(documents) - options.num_texts, len(documents)))["text"]
    longest = pipe.denoiser.config.max_length - 2
    tokens = [ids[:longest] for ids in pipe.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    return {"sampler": DATA, "steps": 0, "tokens": tokens}


def exact_pipeline(options: SamplersConfig, pipe: Any) -> tuple[Any, torch.Tensor]:
    """A pipeline without mistakes over some words of the model, and their frequencies (V,)."""
    model, ends = pipe.denoiser, pipe.tokenizer.all_special_ids
    generator = torch.Generator().manual_seed(options.seed)
    words = torch.randperm(model.config.vocab_size - len(ends), generator=generator)[: options.num_words]
    frequencies = 1 / torch.arange(1, len(words) + 1, dtype=torch.float64)
    # Words that are never drawn stand far from all others, so that the tokenizer's ids can stay.
    real = model.embedding_table().detach()
    table = (real + FAR).index_copy(0, words, real[words])
    prior = torch.zeros(len(table), dtype=torch.float64)
    prior[words] = frequencies / frequencies.sum()
    noise = EmbeddingDDIMScheduler.from_config(pipe.scheduler.config)
    denoiser = ExactDenoiser(table, prior, noise.alphas_cumprod, model.config.max_length)
    return DiffusionLMPipeline(pipe.tokenizer, denoiser, noise), prior


def with_total_variation(records: list[Record], prior: torch.Tensor, seed: int) -> list[Record]:
    """The records, and one of words drawn from the frequencies, with their distance from these."""
    count = sum(map(len, records[0]["tokens"]))
    drawn = torch.multinomial(prior, count, replacement=True, generator=torch.Generator().manual_seed(seed))
    records = [{"sampler": EXACT, "steps": 0, "tokens": [drawn.tolist()]}, *records]
    for record in records:
        counts = torch.tensor([token for row in record["tokens"] for token in row]).bincount(minlength=len(prior))
        record["total_variation"] = float((counts / counts.sum() - prior).abs().sum() / 2)
    return records


def table(records: list[Record]) -> str:
    """Markdown, a line a record."""
    shown = {name: column for name, column in COLUMNS.items() if any(name in record for record in records)}
    lines = [["sampler", "steps", *(title for title, _ in shown.values())], ["---", *["---:"] * (len(shown) + 1)]]
    for record in records:
        cells = [format(record[name], style) if name in record else "" for name, (_, style) in shown.items()]
        lines.append([record["sampler"], f"{record['steps']:,}" if record["steps"] else "", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(options: SamplersConfig) -> tuple[list[Record], list[Record]]:
    """Run what is not finished, print both tables and draw the picture."""
    if options.num_cpu_threads:
        torch.set_num_threads(options.num_cpu_threads)
    folder = Path(options.output_dir)
    pipe: Any = DiffusionLMPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    if not options.self_conditioning:
        pipe.denoiser.register_to_config(self_conditioning=False)
    records = run_all(options, pipe, folder / "trained")
    if options.dataset:
        records.insert(0, data_record(options, pipe))
    records = judged(records, pipe.tokenizer, options)
    exact, prior = exact_pipeline(options, pipe)
    exact.set_progress_bar_config(disable=True)
    length = exact.denoiser.config.max_length
    mistakes = run_all(options, exact, folder / "exact", length=length - 2)
    for record in mistakes:  # the ends of a text are not the sampler's
        record["tokens"] = [row[1 : length - 1] for row in record["tokens"]]
    mistakes = with_total_variation(mistakes, prior, options.seed)
    print(f"\nA trained model, {options.num_texts} texts\n\n{table(records)}")
    print(f"\nAn exact denoiser, {options.num_words} words\n\n{table(mistakes)}")
    print(f"\n{plot_samplers(records, mistakes, options.picture or folder / 'samplers.png')}")
    return records, mistakes


if __name__ == "__main__":
    try:
        main(HfArgumentParser(SamplersConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"samplers_embedding.py: {error}")
