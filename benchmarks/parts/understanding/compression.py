"""A short sentence of a long one: written anew from it, or as marks behind its words."""

from collections.abc import Callable, Sequence
from typing import Any

from parts.understanding.baselines import Row, first_places, kept_share, rarely_dropped
from parts.understanding.config import UnderstandingConfig
from parts.understanding.data import GAP, KEEP, tagged_text
from parts.understanding.filling import fill_gaps, rewrite
from parts.understanding.scores import exact_match, mean_with_error, rouge_l, token_f1
from parts.understanding.training import trained_pipeline
from text_diffusers.data.detokenization import detokenise

TASK = "compression"
SCORES = {"f1": token_f1, "rouge_l": rouge_l, "exact": exact_match}
WRITING_STEPS = 32
FILLING_STEPS = 4


def record(rows: Sequence[Row], texts: Sequence[str], **facts: Any) -> dict[str, Any]:
    """The figures of short sentences, and these sentences."""
    figures = {}
    for name, score in SCORES.items():
        values = [score(text, row["text"]) for text, row in zip(texts, rows, strict=True)]
        figures[name] = mean_with_error(values)
    return {**facts, **figures, "answers": list(texts)}


def text_of(words: Sequence[str], places: Sequence[int]) -> str:
    """The plain text of some words of a sentence."""
    return detokenise([words[place] for place in places])[0]


def copied(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """The sentence as it is."""
    return record(rows, [row["source"] for row in rows])


def first_words(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """The first words, as many of all as are kept on average."""
    share = kept_share(train_rows)
    return record(rows, [text_of(row["words"], first_places(row["words"], share)) for row in rows])


def counted(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """Without the words that are mostly dropped."""
    keep = rarely_dropped(train_rows)
    return record(rows, [text_of(row["words"], keep(row["words"])) for row in rows])


def rewritten(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """Masked diffusion writes the short sentence from the long one."""
    pipe, cost = trained_pipeline(options, f"{TASK}_scratch")
    texts = rewrite(pipe, [row["source"] for row in rows], WRITING_STEPS, options.batch_size)
    return record(rows, texts, **cost)


def marked(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """Masked diffusion fills in what is to be kept; what it does not mark so is dropped."""
    pipe, cost = trained_pipeline(options, f"{TASK}_encoder")
    asked = [tagged_text(row["words"], [GAP] * len(row["words"])) for row in rows]
    marks = fill_gaps(pipe, asked, FILLING_STEPS, options.batch_size)

    texts = []
    for row, own in zip(rows, marks, strict=True):
        places = [place for place, mark in enumerate(own) if mark == KEEP]
        texts.append(text_of(row["words"], places))
    return record(rows, texts, **cost)


SYSTEMS: dict[str, tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "copied": ("the sentence as it is", copied, {}),
    "first": ("its first words", first_words, {}),
    "counted": ("without the words that are mostly dropped", counted, {}),
    "encoder": ("masked diffusion, from MiniLM, marks filled in", marked, {}),
    "scratch": ("masked diffusion, from nothing, written from the sentence", rewritten, {}),
}
