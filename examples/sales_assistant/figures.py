"""The sales assistant on conversations that no training has seen: are its facts right, do its replies differ?

    python examples/sales_assistant/make_data.py --language ru --pairs true --output data/sales_ru
    text-diffusers train d3pm --dataset data/sales_ru --source_column source --text_column reply --label_column tone
    python examples/sales_assistant/figures.py --model runs/assistant --dataset data/sales_ru --output_dir runs/figures

Five replies to each conversation by

- the diffusion model alone, and with the facts as a control (`examples/sales_assistant/assistant.py`),
- of the latter, to fewer conversations, the five of fifteen that it is surest of, which the assistant shows,
- an autoregressive model of the same width, depth, tokenizer and pairs, by sampling and by beam search.

- "conversations": how many are asked about, with five replies each, or fewer if fewer differ.
- "right": share of replies in which every fact is and no product has the price of another one, and "all five right"
  the share of conversations.
- "invented": share of replies with money, in digits, that neither the facts nor the note have, or with a number that
  counts something else there: "2 years" for "2 days".
- "another product": share of replies that name a kind of product, such as "kettle", of which the conversation does not
  speak.
- "misnamed": share of replies with a brand that stands without its kind, or with another one.
- "tone": share of replies whose tone a judge recognizes, TF-IDF and logistic regression on training replies.
- "perplexity" is that of word trigrams, with Kneser-Ney smoothing, of other held-out replies than those that are asked
  for; facts are left out of both, so that nobody pays for a name.
- "different": how many of the five are different texts; distinct-2 and self-BLEU are of the five, averaged.
- Seconds are those of the CPU for one reply, written in batches, the control included.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assistant import DRAWS, SalesAssistant, plain_replies
from catalogue import kinds_of, misnamed_brands
from conversations import LANGUAGES, missing_facts
from data_files import conversations_to_ask
from datasets import load_dataset
from fact_patterns import has_exchanged_prices, unknown_amounts
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from text_diffusers import TextDiffusionPipeline
from text_diffusers.evaluation import distinct_n, self_bleu
from text_diffusers.evaluation.judges import WordNgramJudge
from text_diffusers.training.config import OptionParser, check_options, option

# Tables and the yardstick are those of the benchmarks.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from parts.common.options import free_option, run  # noqa: E402
from parts.common.results import check_settings, read_or_make, write_report  # noqa: E402
from parts.common.tables import Column, TableRow, markdown_table  # noqa: E402
from parts.conditional.autoregressive import AutoregressiveReplies  # noqa: E402

REPLIES = 5
BATCH_SIZE = 50
# Pairs by which the judge of tone is made; no model of this size learns them by heart.
JUDGED_PAIRS = 4_000
COLUMNS = {
    "conversations": Column("conversations", "d"),
    "right": Column("right", ".3f"),
    "all_right": Column("all five right", ".3f"),
    "invented": Column("invented", ".3f"),
    "astray": Column("another product", ".3f"),
    "misnamed": Column("misnamed", ".3f"),
    "tone": Column("tone", ".3f"),
    "perplexity": Column("perplexity", ".1f"),
    "different": Column("different", ".2f"),
    "distinct_2": Column("distinct-2", ".2f"),
    "self_bleu": Column("self-BLEU", ".1f"),
    "seconds": Column("CPU seconds a reply", ".2f"),
}
# The columns of how replies to one conversation differ
VARIETY = ("different", "distinct_2", "self_bleu")


@dataclass
class AssistantConfig:
    """Options of this benchmark."""

    output_dir: str = free_option(help="folder of finished figures and of the report")
    model: str = option("runs/assistant", "the trained diffusion model")
    dataset: str = option("data/sales", "folder of `make_data.py --pairs true`")
    language: str = option("en", "of the conversations", one_of=LANGUAGES)
    num_conversations: int = option(500, "held-out conversations", limit="at least 1")
    num_surest: int = option(100, "of these, that get the surest replies", limit="at least 1")
    num_inference_steps: int = option(64, "of a reply", limit="at least 1")
    autoregressive_minutes: float = option(8.0, "of the CPU in its training", limit="above 0")
    autoregressive_batch_size: int = option(16, "rows of a step", limit="at least 1")
    seed: int = option(0, "of all draws")

    def __post_init__(self):
        check_options(self)


@dataclass(frozen=True)
class Pair:
    """A conversation and its reply."""

    question: str
    reply: str
    label: str
    facts: list[str]
    note: str


def read_pairs(options: AssistantConfig, part: str) -> list[Pair]:
    file = str(Path(options.dataset, f"{part}.jsonl"))
    rows: Any = load_dataset("json", data_files=file, split="train")
    return [
        Pair(row["source"], row["reply"], row["tone"], row["facts"], row["note"]) for row in rows
    ]


@dataclass
class Judges:
    """Who tells what replies are like.

    Attributes:
        tone: a classifier of texts.
        language: reads texts without their facts.
    """

    tone: Any
    language: WordNgramJudge


def figures_of(
    pairs: Sequence[Pair], replies: Sequence[Sequence[str]], judges: Judges
) -> dict[str, float]:
    """What the replies of all conversations are like."""
    right = [
        [is_right(pair, text) for text in own] for pair, own in zip(pairs, replies, strict=True)
    ]
    kinds = [kinds_of(pair.question) for pair in pairs]
    written = [
        (pair, spoken_of, text)
        for pair, spoken_of, own in zip(pairs, kinds, replies, strict=True)
        for text in own
    ]
    invented = [bool(unknown_amounts(text, [pair.note, *pair.facts])) for pair, _, text in written]
    astray = [bool(kinds_of(text) - spoken_of) for _, spoken_of, text in written]
    misnamed = [bool(misnamed_brands(text, pair.facts)) for pair, _, text in written]
    tones = judges.tone.predict([text for _, _, text in written])
    wanted = [pair.label for pair, _, _ in written]
    plain = [without_facts(text, pair.facts) for pair, _, text in written]
    return {
        "conversations": len(pairs),
        "right": float(np.mean([is_one for own in right for is_one in own])),
        "all_right": float(np.mean([all(own) for own in right])),
        "invented": float(np.mean(invented)),
        "astray": float(np.mean(astray)),
        "misnamed": float(np.mean(misnamed)),
        "tone": float(np.mean(tones == np.array(wanted))),
        "perplexity": judges.language.judge(plain).perplexity,
        "different": float(np.mean([len(set(own)) for own in replies])),
        "distinct_2": float(np.mean([distinct_n(own, 2) for own in replies])),
        "self_bleu": float(np.mean([self_bleu(own) for own in replies if len(own) > 1])),
    }


def is_right(pair: Pair, reply: str) -> bool:
    """Whether every fact is in a reply, and no product has the price of another one."""
    return not missing_facts(reply, pair.facts) and not has_exchanged_prices(reply, pair.facts)


def without_facts(text: str, facts: Sequence[str]) -> str:
    """A text with one mark in the place of each fact."""
    for fact in facts:
        text = text.replace(fact, "#")
    return text


def make_judges(trained: Sequence[Pair], others: Sequence[Pair]) -> Judges:
    """Judges of tone, from replies to learn from, and of language, from held-out ones."""
    tone = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1_000)
    )
    tone.fit([pair.reply for pair in trained], [pair.label for pair in trained])
    language = WordNgramJudge(without_facts(pair.reply, pair.facts) for pair in others)
    return Judges(tone, language)


def write_replies(
    write: Callable[[Sequence[Pair], int], list[str]], pairs: Sequence[Pair]
) -> tuple[list[list[str]], float]:
    """Five replies to each conversation, and the CPU seconds of each reply."""
    asked = [pair for pair in pairs for _ in range(REPLIES)]
    begin = time.process_time()
    texts: list[str] = []
    for first in range(0, len(asked), BATCH_SIZE):
        texts += write(asked[first : first + BATCH_SIZE], first)
    seconds = (time.process_time() - begin) / len(asked)
    groups = [texts[first : first + REPLIES] for first in range(0, len(texts), REPLIES)]
    return groups, seconds


def make_assistant(options: AssistantConfig) -> SalesAssistant:
    pipe = TextDiffusionPipeline.from_pretrained(options.model)
    texts = plain_replies(conversations_to_ask(options.language))
    return SalesAssistant(pipe, options.num_inference_steps, texts=texts)


def surest_replies(
    options: AssistantConfig, pairs: Sequence[Pair]
) -> tuple[list[list[str]], float]:
    """The replies that the assistant shows to each conversation, and the CPU seconds of each of them."""
    assistant = make_assistant(options)
    begin = time.process_time()
    replies = [
        assistant.replies(
            pair.question,
            pair.label,
            pair.facts,
            REPLIES,
            options.seed + number * DRAWS * REPLIES,
            note=pair.note,
        )
        for number, pair in enumerate(pairs)
    ]
    seconds = (time.process_time() - begin) / sum(map(len, replies))
    return replies, seconds


def diffusion_writer(options: AssistantConfig, with_facts: bool) -> Callable:
    assistant = make_assistant(options)

    def write(pairs: Sequence[Pair], first: int) -> list[str]:
        return assistant.write(
            [pair.question for pair in pairs],
            [pair.label for pair in pairs],
            [pair.facts for pair in pairs] if with_facts else None,
            options.seed + first,
            notes=[pair.note for pair in pairs],
        )

    return write


def autoregressive_model(
    options: AssistantConfig, trained: Sequence[Pair]
) -> tuple[AutoregressiveReplies, int]:
    """The yardstick, and the number of its steps."""
    torch.manual_seed(options.seed)
    pipe = TextDiffusionPipeline.from_pretrained(options.model)
    config = pipe.denoiser.config
    model = AutoregressiveReplies(
        pipe.tokenizer,
        config.hidden_size,
        config.num_layers,
        config.num_attention_heads,
        config.max_length,
    )
    steps = model.train(
        trained, options.autoregressive_minutes, options.autoregressive_batch_size, options.seed
    )
    return model, steps


def beam_writer(model: AutoregressiveReplies) -> Callable:
    """The five best texts of a beam of five."""

    beam = {"num_beams": REPLIES, "num_return_sequences": REPLIES, "do_sample": False}

    def write(pairs: Sequence[Pair], first: int) -> list[str]:
        questions = [question for question, _ in model.encode(pairs[::REPLIES])]
        return [text for question in questions for text in model.continuations(question, **beam)]

    return write


def measure(
    written: tuple[list[list[str]], float], pairs: Sequence[Pair], judges: Judges, **facts: Any
) -> dict[str, Any]:
    """The figures of replies, and of the seconds of each, which `write_replies` or `surest_replies` gives."""
    replies, seconds = written
    return figures_of(pairs, replies, judges) | {"seconds": seconds, **facts, "replies": replies}


def report(options: AssistantConfig, pairs: Sequence[Pair], records: dict[str, dict[str, Any]]):
    """The table, and the replies of each system to the first conversations."""
    rows = [TableRow([name], [record]) for name, record in records.items()]
    lines = [markdown_table(["system"], rows, COLUMNS), ""]
    for number in range(min(4, options.num_surest, len(pairs))):
        lines += [pairs[number].question, ""]
        for name, record in records.items():
            lines += [f"- {name}", *(f"  - {text}" for text in record["replies"][number])]
        lines.append("")
    write_report(Path(options.output_dir), "report", "\n".join(lines), records)


def main(options: AssistantConfig):
    check_settings(options)
    torch.set_num_threads(1)
    trained = read_pairs(options, "train")
    held_out = read_pairs(options, "validation")
    pairs = held_out[: options.num_conversations]
    judges = make_judges(trained[:JUDGED_PAIRS], held_out[len(pairs) :])

    records = {}
    for name, with_facts in (("diffusion", False), ("diffusion, facts controlled", True)):
        file = Path(options.output_dir, "results", f"{name}.json")
        records[name] = read_or_make(
            file,
            lambda with_facts=with_facts: measure(
                write_replies(diffusion_writer(options, with_facts), pairs), pairs, judges
            ),
        )

    def surest_record() -> dict[str, Any]:
        own = pairs[: options.num_surest]
        return measure(surest_replies(options, own), own, judges)

    file = Path(options.output_dir, "results", "diffusion, surest.json")
    records["diffusion, facts controlled, surest"] = read_or_make(file, surest_record)

    file = Path(options.output_dir, "results", "autoregressive.json")

    def autoregressive_records() -> dict[str, Any]:
        model, steps = autoregressive_model(options, trained)

        def sample(own: Sequence[Pair], first: int) -> list[str]:
            return model.reply(own, options.seed + first)

        writers = {
            "autoregressive, sampled": sample,
            "autoregressive, beam of 5": beam_writer(model),
        }
        return {
            name: measure(write_replies(write, pairs), pairs, judges, steps=steps)
            for name, write in writers.items()
        }

    records |= read_or_make(file, autoregressive_records)
    # Five times one reply, of which nothing can be said of variety
    real = [[pair.reply] * REPLIES for pair in pairs]
    found = figures_of(pairs, real, judges)
    records["the team itself"] = {
        name: value for name, value in found.items() if name not in VARIETY
    } | {"replies": real}
    report(options, pairs, records)


if __name__ == "__main__":
    # Type checkers do not take a dataclass for what the parser of transformers asks for.
    options_class: Any = AssistantConfig
    run(main, OptionParser(options_class, description=__doc__))
