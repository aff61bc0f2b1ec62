"""Varied replies that must be right: made-up turns with known facts, and small models that learn them here."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from parts.common.recipes import QUIET, load_recipe
from parts.common.results import Record, read_or_make
from parts.conditional.turns import (
    ASKED,
    TRAINED,
    Turn,
    columns_of,
    make_turns,
    shares_of_facts,
    write_table,
)
from parts.latent.config import LatentBenchmarkConfig
from parts.latent.replies import ReplyWriter, variety
from parts.latent.samplers import load

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

    # 2. Ways to reply: to each question several times, from latents of its own
    asked = turns[-ASKED:][: options.num_questions]
    repeated = [turn for turn in asked for _ in range(options.num_replies)]
    sources = [question_of(turn) for turn in repeated]
    told = {"source": sources}

    ways = []
    for temperature in TEMPERATURES:
        name = f"the decoder alone, temperature {temperature:g}"
        ways.append((name, ReplyWriter(pipes["diffusion"], options, None), temperature))
    by_prior = {"CVAE, Gaussian prior, greedy": "gaussian", "Dior-CVAE, greedy": "diffusion"}
    for name, prior in by_prior.items():
        ways.append((name, ReplyWriter(pipes[prior], options, told), 0.0))

    # 3. Replies, and their facts
    records = []
    for number, (name, writer, temperature) in enumerate(ways):
        make = partial(writer.write, sources, temperature)
        record = read_or_make(folder / f"replies-{number}.json", make)

        texts = record["texts"]
        record["system"] = name
        record["question"] = sources[0]
        record |= shares_of_facts(repeated, texts)
        record |= variety(texts, options.num_replies)
        records.append(record)
    return records


def write_turns(file: Path, turns: Sequence[Turn]) -> Path:
    """The turns as a file that a recipe reads."""
    questions = [question_of(turn) for turn in turns]
    return write_table(file, {"question": questions, "reply": columns_of(turns)["reply"]})


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
