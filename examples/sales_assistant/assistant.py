"""The assistant: replies to a customer that differ, and in which every fact is right.

    python examples/sales_assistant/assistant.py --model runs/assistant --language en

prints a conversation that no training has seen and five replies to it; with `--conversations mine.csv` one of a
company's own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from catalogue import names_of_brands
from conversations import LANGUAGES, Record, as_pair, missing_facts
from data_files import conversations_to_ask
from fact_patterns import fact_pattern, spellings

from text_diffusers import TextDiffusionPipeline
from text_diffusers.common.validation import require
from text_diffusers.evaluation import evaluate_likelihood
from text_diffusers.guidance import RegexControl
from text_diffusers.samplers import with_sampler
from text_diffusers.training.config import check_options, option
from text_diffusers.training.recipes import run

# Draws for each reply that is asked for: some come out alike, and of the others the surest are taken.
DRAWS = 3
# Random times at which the bound of each draw is looked at
NUM_TIMES = 16
# Tokens of the shortest reply beside those of its facts
ROOM = 6
# A token after the other, as the text is read. With the surest tokens first, facts stand before there are words around
# them, which then do not always fit.
SAMPLER = "confidence"
ORDER = "left_to_right"
SETTINGS = {"temperature": 0.5}


class SalesAssistant:
    """Replies of a diffusion model that was trained on pairs of `make_data.py --pairs true`.

    Args:
        pipe: writes a reply from a source and a tone.
        num_inference_steps: of each reply; a step writes one token, or more if there are more tokens than steps.
        forms: what stands in a reply for a fact, by the fact; of a brand the catalogue's full name, which Russian
            declines. `None` takes those of the catalogue.
        texts: of whose tokens replies with facts are made, beside those of their facts and notes, such as
            `plain_replies`; `None` allows all tokens. A small model else puts pieces of other names together.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> pipe = TextDiffusionPipeline.from_pretrained("runs/assistant")  # doctest: +SKIP
        >>> SalesAssistant(pipe).replies("Customer: Anna ...", "formal", ["Anna", "$129"])  # doctest: +SKIP
    """

    def __init__(
        self,
        pipe: Any,
        num_inference_steps: int = 64,
        forms: Mapping[str, Sequence[str]] | None = None,
        texts: Sequence[str] | None = None,
    ):
        self.pipe = with_sampler(pipe, SAMPLER, order=ORDER)
        self.pipe.set_progress_bar_config(disable=True)
        self.num_inference_steps = num_inference_steps
        self.forms = names_of_brands() if forms is None else forms
        self.usual_tokens = None if texts is None else self.tokens_of(texts)

    def replies(
        self,
        source: str,
        tone: str | None,
        facts: Sequence[str] | None = None,
        count: int = 5,
        seed: int = 0,
        kept: Sequence[str] = (),
        guidance_scale: float = 1.0,
        note: str | None = None,
    ) -> list[str]:
        """At most `count` replies, none of them twice, from those that the model is surest of.

        Args:
            source: the note of the team and the turns so far.
            tone: a label of the model, such as "formal"; empty or `None` is no label.
            facts: that every reply must hold, beside which only amounts of the note are said; `None` forces nothing.
            seed: the same seed, the same replies.
            kept: parts of a reply that stay, in their order; the rest is written anew.
            guidance_scale: how much of the tone; 0 is none.
            note: text whose amounts may be said, by default the source.
        """
        number = DRAWS * count
        written = self.write(
            [source] * number,
            [tone] * number,
            None if facts is None and not kept else [facts or ()] * number,
            seed,
            kept,
            guidance_scale,
            None if note is None else [note] * number,
        )
        return self.surest_first(source, tone, [*dict.fromkeys(written)])[:count]

    def surest_first(self, source: str, tone: str | None, texts: Sequence[str]) -> list[str]:
        """Replies by the bound of their -log p per token, the lowest first; those without a word are left out.

        A reply is drawn token by token, and no token is looked at again: this finds the replies whose parts do not
        fit together.
        """
        texts = [text for text in texts if text.strip()]
        if not texts:
            return []
        likelihood = evaluate_likelihood(
            self.pipe,
            texts,
            sources=[source] * len(texts),
            class_labels=[tone] * len(texts) if tone else None,
            num_times=NUM_TIMES,
            max_length=self.pipe.max_length,
        )
        costs = {
            text: nats / max(self.num_tokens([text]), 1)
            for text, nats in zip(texts, likelihood.per_text_nats, strict=True)
        }
        return sorted(texts, key=costs.__getitem__)

    def write(
        self,
        sources: Sequence[str],
        tones: Sequence[str | None],
        facts: Sequence[Sequence[str]] | None = None,
        seed: int = 0,
        kept: Sequence[str] = (),
        guidance_scale: float = 1.0,
        notes: Sequence[str] | None = None,
    ) -> list[str]:
        """A reply to each source.

        Args:
            tones: a label of the model for each source; empty or `None` is no label.
            facts: of each source, which its reply must hold, beside which only amounts of its note are said; `None`
                forces nothing.
            seed: of the first reply; each of the others has the next one.
            kept: parts that stand in every reply, in this order; with `facts` only.
            guidance_scale: how much of the tone; 0 is none.
            notes: of each source, the text whose amounts may be said, by default the source.
        """
        generators = [
            torch.Generator().manual_seed(seed + number) for number in range(len(sources))
        ]
        # A model that was trained without tones takes no labels at all.
        labels: list[str | None] | None = [tone or None for tone in tones]
        if not any(labels):
            labels = None
        options = {
            "guidance_scale": guidance_scale if labels else 1.0,
            "num_inference_steps": self.num_inference_steps,
            **SETTINGS,
        }
        if facts is None:
            return self.pipe(
                source=list(sources), class_labels=labels, generator=generators, **options
            ).texts

        # Replies to one conversation are written together: they may use the same tokens.
        rows: dict[tuple[str, ...], list[int]] = {}
        for place, (own, note) in enumerate(zip(facts, notes or sources, strict=True)):
            rows.setdefault((note, *own), []).append(place)

        texts = [""] * len(sources)
        for (note, *own), places in rows.items():
            control = RegexControl(self.pipe.tokenizer, fact_pattern(own, note, kept, self.forms))
            # The model draws a length first: it must leave room for the facts and for what stands between them.
            room = max(self.num_tokens(self.longest(own)) + ROOM, self.num_tokens(kept))
            written = self.pipe(
                source=[sources[place] for place in places],
                class_labels=labels and [labels[place] for place in places],
                controls=[control],
                generator=[generators[place] for place in places],
                min_new_tokens=room,
                suppress_tokens=self.other_tokens([note, *self.said(own), *kept]),
                **options,
            ).texts
            for place, text in zip(places, written, strict=True):
                texts[place] = text
        return texts

    def said(self, facts: Sequence[str]) -> list[str]:
        """All that may stand for the facts."""
        return [form for fact in facts for form in spellings(fact, self.forms)]

    def other_tokens(self, parts: Sequence[str]) -> list[int]:
        """Tokens that are neither usual nor of these texts; none if all may be written."""
        if self.usual_tokens is None:
            return []
        allowed = self.usual_tokens | self.tokens_of(parts)
        return [token for token in range(len(self.pipe.tokenizer)) if token not in allowed]

    def tokens_of(self, texts: Sequence[str]) -> set[int]:
        """The tokens of texts, at the beginning of a reply and behind a blank, and the special ones."""
        tokenizer = self.pipe.tokenizer
        tokens = set(tokenizer.all_special_ids)
        for text in texts:
            for shown in (text, f" {text}"):
                tokens.update(tokenizer(shown, add_special_tokens=False).input_ids)
        return tokens

    def longest(self, facts: Sequence[str]) -> list[str]:
        """The longest of what may stand for each fact."""
        return [max(spellings(fact, self.forms), key=len) for fact in facts]

    def num_tokens(self, parts: Sequence[str]) -> int:
        """Tokens of a text of these parts."""
        return len(self.pipe.tokenizer(", ".join(parts)).input_ids)


def plain_replies(records: Sequence[Record]) -> list[str]:
    """The replies of conversations in pieces, without facts and names of products: what is said of any of them.

    Example:
        >>> from conversations import generate
        >>> records = generate("en", count=1, seed=0)
        >>> any(fact in text for text in plain_replies(records) for fact in records[0]["facts"])
        False
    """
    all_names = [name for names in names_of_brands().values() for name in names]
    pieces: dict[str, None] = {}
    for record in records:
        names = [record["product"], record["other_product"], *record["facts"], *all_names]
        # The longest first: a brand is a part of a name.
        names = sorted(filter(None, names), key=len, reverse=True)
        apart = "|".join(map(re.escape, names))
        pieces |= dict.fromkeys(
            re.split(apart, record["messages"][-1]["content"], flags=re.IGNORECASE)
        )
    return [*pieces]


def usual_texts(records: Sequence[Record], conversations: str) -> list[str] | None:
    """`texts` of a `SalesAssistant` for these records.

    Args:
        conversations: the file that they are from, if any. What a company says cannot be told from a few of its
            replies, and is left open.
    """
    return None if conversations else plain_replies(records)


@dataclass
class AssistantOptions:
    """Options of the demonstration."""

    model: str = option("runs/assistant", "a folder of `train_d3pm.py --source_column source`")
    language: str = option("en", "en or ru", one_of=LANGUAGES)
    conversations: str = option(
        "", "a .jsonl or .csv file with the columns of data_files.py; empty for made-up ones"
    )
    conversation: int = option(0, "number of the one that is asked", limit="at least 0")
    num_replies: int = option(5, "replies", limit="at least 1")
    seed: int = option(0, "of the replies")

    def __post_init__(self):
        check_options(self)


def main(options: AssistantOptions):
    records = conversations_to_ask(options.language, options.conversations)
    last = len(records) - 1
    require(
        options.conversation <= last,
        "conversation",
        f"at most {last}, the last one",
        options.conversation,
    )
    pair = as_pair(records[options.conversation])
    pipe = TextDiffusionPipeline.from_pretrained(options.model)
    assistant = SalesAssistant(pipe, texts=usual_texts(records, options.conversations))
    print(pair["source"])
    print()

    replies = assistant.replies(
        pair["source"],
        pair["tone"],
        pair["facts"],
        options.num_replies,
        options.seed,
        note=pair["note"],
    )
    for reply in replies:
        lacking = missing_facts(reply, pair["facts"])
        print(f"- {reply}" + (f"   (lacks {', '.join(lacking)})" if lacking else ""))


if __name__ == "__main__":
    run(main, AssistantOptions)
