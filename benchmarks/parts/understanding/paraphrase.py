"""Verses of the King James Bible in the English of today."""

from collections.abc import Callable, Sequence
from typing import Any

from parts.understanding.baselines import Row, substituted_words
from parts.understanding.config import UnderstandingConfig
from parts.understanding.filling import rewrite
from parts.understanding.scores import (
    chrf,
    mean_with_error,
    share_of_new_words,
    share_with_error,
    token_f1,
)
from parts.understanding.training import trained_pipeline

TASK = "paraphrase"
WRITING_STEPS = 32


def record(rows: Sequence[Row], texts: Sequence[str], **facts: Any) -> dict[str, Any]:
    """The figures of paraphrases, and the paraphrases."""
    pairs = list(zip(texts, rows, strict=True))
    new = [share_of_new_words(text, row["text"], row["source"]) for text, row in pairs]
    found, wanted = zip(*new, strict=True)
    return {
        **facts,
        "chrf": mean_with_error([chrf(text, row["text"]) for text, row in pairs]),
        "f1": mean_with_error([token_f1(text, row["text"]) for text, row in pairs]),
        "new_words": share_with_error(found, wanted),
        "answers": list(texts),
    }


def copied(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """The verse as it is."""
    return record(rows, [row["source"] for row in rows])


def counted(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """Each word is the one that most often stands in its place."""
    replace = substituted_words(train_rows)
    return record(rows, [replace(row["source"]) for row in rows])


def rewritten(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """Masked diffusion writes the new verse from the old one."""
    pipe, cost = trained_pipeline(options, f"{TASK}_scratch")
    texts = rewrite(pipe, [row["source"] for row in rows], WRITING_STEPS, options.batch_size)
    return record(rows, texts, **cost)


SYSTEMS: dict[str, tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "copied": ("the verse as it is", copied, {}),
    "counted": ("each word as it is mostly replaced", counted, {}),
    "scratch": ("masked diffusion, from nothing, written from the verse", rewritten, {}),
}
