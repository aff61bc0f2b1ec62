"""Does a reply follow its question? Made-up turns with known facts, in English and Russian.

    python benchmarks/conditional.py --output_dir runs/conditional
    python benchmarks/conditional.py --languages ru --systems d3pm --train_minutes 2 --output_dir runs/short

6,000 turns of a sales team: a question with a name, a product and a number, from a kind of customer, and a reply that
must repeat the three in the tone of the kind. Each system is trained on the first 5,700 for the same minutes on one
thread, and asked the questions of the last 200, with lengths that it chooses itself.

- "d3pm": masked diffusion by `training_scripts/train_d3pm.py --source_column --label_column`.
- "diffusion_lm": diffusion over word embeddings by `train_diffusion_lm.py`.
- "gpt2": an autoregressive model of the same width, depth, tokenizer, turns and minutes.

Of a reply, all is determined but one of three greetings and one of three wordings: its entropy is 2 ln 3 = 2.197 nats.
No bound can be below that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from parts.common.options import free_option, run
from parts.common.recipes import QUIET, load_recipe
from parts.common.results import Record, check_settings, read_or_make, write_report
from parts.common.tables import Column, TableRow, markdown_table
from parts.conditional.autoregressive import TEMPERATURE, TOP_P, AutoregressiveReplies
from parts.conditional.turns import (
    ASKED,
    LANGUAGES,
    TRAINED,
    Turn,
    columns_of,
    make_turns,
    shares_of_facts,
    write_table,
)

from text_diffusers import TextDiffusionPipeline
from text_diffusers.data.rows import encode_texts
from text_diffusers.evaluation import evaluate_likelihood
from text_diffusers.samplers import with_sampler
from text_diffusers.training.config import OptionParser, check_options, option

SYSTEMS = ("d3pm", "diffusion_lm", "gpt2")
RECIPES = {"d3pm": "train_d3pm", "diffusion_lm": "train_diffusion_lm"}
# Greeting and wording
REPLY_NATS = 2 * math.log(3)
COLUMNS = {
    "parameters": Column("parameters", ",d"),
    "steps": Column("steps", ",d"),
    "nats_per_token": Column("nats per token of the reply", ".3f"),
    "name": Column("name", ".3f"),
    "product": Column("product", ".3f"),
    "number": Column("number", ".3f"),
    "tone": Column("tone", ".3f"),
    "all": Column("all four", ".3f"),
}


@dataclass
class ConditionalConfig:
    """Options of this benchmark."""

    output_dir: str = free_option(help="folder of finished runs and of the report")
    languages: list[str] = free_option(["en", "ru"], "en, ru")
    systems: list[str] = free_option(list(SYSTEMS), ", ".join(SYSTEMS))
    train_minutes: float = option(8.0, "minutes of each training", limit="above 0")
    hidden_size: int = option(128, "width of each model")
    num_layers: int = option(4, "blocks of each model")
    num_attention_heads: int = option(4, "heads of each model")
    train_batch_size: int = option(16, "rows of a step")
    vocab_size: int = option(800, "tokens")
    length: int = option(96, "tokens of the longest row")
    seed: int = option(0, "of training and writing")

    def __post_init__(self):
        check_options(self)
        for name, choices in (("languages", LANGUAGES), ("systems", SYSTEMS)):
            unknown = set(getattr(self, name)) - set(choices)
            if unknown:
                raise ValueError(f"`{name}` must be among {list(choices)}, got {sorted(unknown)}.")


@dataclass
class Sample:
    """How a diffusion model is asked: the sampler, its options, and the steps."""

    name: str
    sampler: str
    num_inference_steps: int
    options: dict[str, float] = field(default_factory=dict)


SAMPLES = {
    "d3pm": (
        Sample(
            "ancestral, 64 steps", "ancestral", 64, {"temperature": TEMPERATURE, "top_p": TOP_P}
        ),
        Sample("the surest first, 64 steps", "confidence", 64, {"temperature": 0.5}),
        Sample("the surest first, 8 steps", "confidence", 8, {"temperature": 0.5}),
    ),
    "diffusion_lm": (Sample("DDIM, 64 steps", "ddim", 64),),
}


def train_recipe(
    options: ConditionalConfig, system: str, turns: Sequence[Turn], folder: Path
) -> int:
    """Train a diffusion model by its recipe, as a user would, into `folder`; returns the number of steps."""
    columns = columns_of(turns)
    data = write_table(
        folder.with_suffix(".csv"),
        {"question": columns["question"], "reply": columns["reply"], "kind": columns["label"]},
    )

    recipe = load_recipe(RECIPES[system])
    config_class = recipe.D3PMConfig if system == "d3pm" else recipe.DiffusionLMConfig
    config = config_class(
        dataset=str(data),
        text_column="reply",
        source_column="question",
        label_column="kind",
        packing=False,
        condition_dropout=0.1,
        output_dir=str(folder),
        overwrite_output_dir=True,
        max_train_minutes=options.train_minutes,
        max_train_steps=1_000_000,
        learning_rate=1e-3,
        lr_warmup_steps=50,
        hidden_size=options.hidden_size,
        num_layers=options.num_layers,
        num_attention_heads=options.num_attention_heads,
        train_batch_size=options.train_batch_size,
        vocab_size=options.vocab_size,
        length=options.length,
        seed=options.seed,
        checkpointing_steps=0,
        **QUIET,
    )
    return len(recipe.main(config))


def diffusion_records(
    options: ConditionalConfig, system: str, language: str, turns: Sequence[Turn]
) -> list[Record]:
    """The figures of a diffusion model, one record for each way to ask it."""
    folder = model_folder(options, system, language)
    steps = read_or_make(
        folder.with_suffix(".json"),
        lambda: train_recipe(options, system, turns[:TRAINED], folder),
    )
    pipe: Any = TextDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)

    asked = turns[-ASKED:]
    columns = columns_of(asked)
    conditions = {"class_labels": columns["label"]}
    likelihood = evaluate_likelihood(
        pipe, columns["reply"], sources=columns["question"], num_times=16, **conditions
    )

    records = []
    for sample in SAMPLES[system]:
        writer = with_sampler(pipe, sample.sampler, **sample.options)
        replies = writer(
            source=columns["question"],
            num_inference_steps=sample.num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in range(ASKED)],
            **conditions,
        ).texts
        records.append(
            {
                "system": f"{system}, {sample.name}",
                "parameters": pipe.denoiser.num_parameters(),
                "steps": steps,
                "nats_per_token": likelihood.nats_per_token,
                **shares_of_facts(asked, replies),
                "replies": replies,
            }
        )
    return records


def gpt2_records(
    options: ConditionalConfig, system: str, language: str, turns: Sequence[Turn]
) -> list[Record]:
    """The figures of the autoregressive model, with the tokenizer of the diffusion model."""
    torch.manual_seed(options.seed)
    folder = model_folder(options, "d3pm", language)
    tokenizer = TextDiffusionPipeline.from_pretrained(folder).tokenizer
    model = AutoregressiveReplies(
        tokenizer,
        options.hidden_size,
        options.num_layers,
        options.num_attention_heads,
        options.length,
    )
    steps = model.train(
        turns[:TRAINED], options.train_minutes, options.train_batch_size, options.seed
    )
    asked = turns[-ASKED:]
    replies = model.reply(asked, options.seed)
    record = {
        "system": f"{system}, one token after the other",
        "parameters": model.model.num_parameters(),
        "steps": steps,
        "nats_per_token": model.nats_per_token(asked),
        **shares_of_facts(asked, replies),
        "replies": replies,
    }
    return [record]


RECORDS = {"d3pm": diffusion_records, "diffusion_lm": diffusion_records, "gpt2": gpt2_records}


def model_folder(options: ConditionalConfig, system: str, language: str) -> Path:
    """Where the model of a system is saved."""
    return Path(options.output_dir, language, system)


def report(options: ConditionalConfig, results: dict[str, list[Record]]):
    """The table of each language, and the first replies to the first questions, unpicked."""
    lines = []
    for language, records in results.items():
        turns = make_turns(language, TRAINED + ASKED)[-ASKED:]
        lines.append(f"## {language}: {options.train_minutes:g} minutes of one thread each\n")
        rows = [TableRow([record["system"]], [record]) for record in records]
        lines.append(markdown_table(["system"], rows, COLUMNS))
        lines.append(
            f"\nEntropy of a reply: {REPLY_NATS:.3f} nats, {entropy(options, language):.3f} per token.\n"
        )
        for turn in turns[:3]:
            lines.append(f"- {turn.question} ({turn.label})")
            lines += [
                f"  - {record['system']}: {record['replies'][turns.index(turn)]}"
                for record in records
            ]
        lines.append("")
    write_report(Path(options.output_dir), "report", "\n".join(lines), results)


def entropy(options: ConditionalConfig, language: str) -> float:
    """Nats per token of the replies, their ends included, that no model can be below."""
    folder = model_folder(options, "d3pm", language)
    tokenizer = TextDiffusionPipeline.from_pretrained(folder).tokenizer
    replies = [turn.reply for turn in make_turns(language, TRAINED + ASKED)[-ASKED:]]
    num_tokens = sum(len(ids) + 1 for ids in encode_texts(tokenizer, replies))
    return REPLY_NATS * len(replies) / num_tokens


def main(options: ConditionalConfig) -> dict[str, list[Record]]:
    """Train and ask what is not there yet; returns the records of each language."""
    # On one thread the minutes of a training mean the same on any number of cores.
    torch.set_num_threads(1)
    disable_progress_bars()
    check_settings(options)

    results: dict[str, list[Record]] = {}
    for language in options.languages:
        turns = make_turns(language, TRAINED + ASKED)
        results[language] = []
        # The diffusion model over tokens first: its tokenizer is everyone's.
        for system in (name for name in SYSTEMS if name in {"d3pm", *options.systems}):
            file = Path(options.output_dir, language, f"{system}_figures.json")
            make_records = partial(RECORDS[system], options, system, language, turns)
            results[language] += read_or_make(file, make_records)
    report(options, results)
    return results


if __name__ == "__main__":
    run(main, OptionParser(ConditionalConfig, description=__doc__))
