"""Varied replies that must be right: made-up turns with known facts, and small models that learn them here."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

from parts.common.recipes import QUIET, load_recipe
from parts.common.results import Record, read_or_make
from parts.conditional.turns import Turn, columns_of, facts_of, make_turns
from parts.latent.config import ASKED, LatentBenchmarkConfig
from parts.latent.replies import STEPS, variety
from parts.latent.samplers import load
from parts.latent.writing import decode, text_record, write_latents

TRAINED = 5_700
MOST_STEPS = 1_000_000
TEMPERATURES = (0.7, 1.0)
# Tokens of a row, of a question, and of the vocabulary
LENGTH = 64
SOURCE_LENGTH = 64
VOCABULARY = 800
# What a question leaves open, one of three greetings and one of three wordings, is 3.2 bits. Latents that could hold
# the facts would be believed where the question says something else.
NUM_LATENTS = 1
LATENT_SIZE = 4
NOISE_SCALE = 0.5
# Half of the replies are written without latents, from the question alone.
TEXT_DROPOUT = 0.5
# Of all models
WIDTH = 128
LAYERS = 4
HEADS = 4

PRIORS = ("diffusion", "gaussian")


def question_of(turn: Turn) -> str:
    """What a reply is written from: the kind of customer and the question."""
    return f"{turn.label}: {turn.question}"


def fact_records(options: LatentBenchmarkConfig, language: str) -> list[Record]:
    """A line for each way to reply."""
    turns = make_turns(language, TRAINED + ASKED)
    folder = options.folder / "facts" / language
    data = write_turns(folder / "turns.csv", turns[:TRAINED])

    # 1. Models, as a user would train them
    common = {
        "dataset": str(data),
        "text_column": "reply",
        "source_column": "question",
        "length": LENGTH,
        "source_length": SOURCE_LENGTH,
        "max_train_steps": MOST_STEPS,
        "lr_warmup_steps": 50,
        "checkpointing_steps": 0,
        "overwrite_output_dir": True,
        "seed": options.seed,
        **QUIET,
    }
    steps = read_or_make(
        folder / "autoencoder.json", lambda: train_autoencoder(options, folder, common)
    )
    print(f"{language}: autoencoder, {steps} steps", flush=True)
    pipes = {}
    for prior in PRIORS:
        make = partial(train_prior, options, folder, prior, common)
        steps = read_or_make(folder / f"{prior}.json", make)
        print(f"{language}: {prior} prior, {steps} steps", flush=True)
        pipes[prior] = load(str(folder / prior))

    # 2. Replies
    asked = [turn for turn in turns[-ASKED:][: options.num_questions]]
    repeated = [turn for turn in asked for _ in range(options.num_replies)]
    sources = [question_of(turn) for turn in repeated]
    count = len(repeated)
    diffusion, _ = write_latents(pipes["diffusion"], options, count, STEPS, source=sources)
    gaussian, _ = write_latents(pipes["gaussian"], options, count, None, source=sources)
    ways: list[tuple[str, Any, Any, float]] = []
    for temperature in TEMPERATURES:
        name = f"the decoder alone, temperature {temperature:g}"
        ways.append((name, pipes["diffusion"], None, temperature))
    ways.append(("CVAE, Gaussian prior, greedy", pipes["gaussian"], gaussian, 0.0))
    ways.append(("Dior-CVAE, greedy", pipes["diffusion"], diffusion, 0.0))

    records = []
    for number, (name, pipe, latents, temperature) in enumerate(ways):
        make = partial(replies, pipe, options, latents, temperature, sources)
        record = read_or_make(folder / f"replies-{number}.json", make)
        texts = record["texts"]
        size = options.num_replies
        right = [facts_of(turn, text) for turn, text in zip(repeated, texts, strict=True)]
        shares = {fact: sum(facts[fact] for facts in right) / count for fact in right[0]}
        groups = [texts[first : first + size] for first in range(0, count, size)]
        record |= {"system": name, **shares, **variety(groups)}
        record["question"] = sources[0]
        records.append(record)
    return records


def replies(
    pipe: Any, options: LatentBenchmarkConfig, latents: Any, temperature: float, sources: list[str]
) -> Record:
    """Replies to sources."""
    return text_record(decode(pipe, options, latents, temperature, sources, len(sources))[0])


def write_turns(file: Path, turns: list[Turn]) -> Path:
    """The turns as a file that a recipe reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["question", "reply"])
        replies_of = columns_of(turns)["reply"]
        writer.writerows(zip(map(question_of, turns), replies_of, strict=True))
    return file


def train_autoencoder(options: LatentBenchmarkConfig, folder: Path, common: dict[str, Any]) -> int:
    """Train a small encoder and decoder along; returns the number of steps."""
    recipe = load_recipe("train_text_autoencoder")
    config = recipe.TextAutoencoderConfig(
        output_dir=str(folder / "autoencoder"),
        max_train_minutes=options.train_minutes,
        vocab_size=VOCABULARY,
        model_size=WIDTH,
        model_layers=LAYERS,
        num_latents=NUM_LATENTS,
        latent_size=LATENT_SIZE,
        noise_scale=NOISE_SCALE,
        text_dropout=TEXT_DROPOUT,
        memory_dropout=0.0,
        words_share=0.0,
        words_weight=0.0,
        learning_rate=1e-3,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        train_batch_size=16,
        report_rows=50,
        num_rewritten=0,
        **common,
    )
    return len(recipe.main(config))


def train_prior(
    options: LatentBenchmarkConfig, folder: Path, prior: str, common: dict[str, Any]
) -> int:
    """Train a prior over the latents; returns the number of steps."""
    recipe = load_recipe("train_latent_diffusion")
    config = recipe.LatentDiffusionConfig(
        output_dir=str(folder / prior),
        autoencoder=str(folder / "autoencoder"),
        latent_cache=str(folder / "latents"),
        prior=prior,
        max_train_minutes=options.prior_minutes,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        train_batch_size=64,
        report_rows=50,
        **common,
    )
    return len(recipe.main(config))
