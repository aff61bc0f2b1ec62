"""A preposition in a gap of a sentence: a model that fills in gaps of any kind, and one that was trained for these."""

from collections.abc import Callable, Sequence
from typing import Any

from parts.understanding.baselines import Row, context_keys, counted_prepositions
from parts.understanding.config import UnderstandingConfig
from parts.understanding.data import GAP, PREPOSITIONS
from parts.understanding.filling import fill_gaps, rewrite, size_of
from parts.understanding.scores import share_with_error
from parts.understanding.training import trained_pipeline
from text_diffusers import TextDiffusionPipeline

TASK = "prepositions"
SHIPPED_MODEL = "four-voices"
# The kind of texts, of those it knows, that is most like the prose of the Brown corpus
SHIPPED_LABEL = "speech"


def share_right(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    """The share of gaps with the right word; gaps of one sentence are counted together for its error."""
    right: dict[str, int] = {}
    counts: dict[str, int] = {}
    for row, answer in zip(rows, answers, strict=True):
        text = row["text"]
        right[text] = right.get(text, 0) + (answer.lower() == row["answer"])
        counts[text] = counts.get(text, 0) + 1
    return share_with_error(list(right.values()), list(counts.values()))


def others(tokenizer: Any) -> list[int]:
    """Ids of all tokens but the prepositions; one that the tokenizer cuts apart fits into no gap, and is left out.

    Raises:
        ValueError: if no preposition is a token.
    """
    allowed = set()
    # Behind a word, and at the beginning of a text
    for form in [*PREPOSITIONS, *(f" {word}" for word in PREPOSITIONS)]:
        ids = tokenizer(form, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            allowed.add(ids[0])
    if not allowed:
        raise ValueError(f"`tokenizer` must have a token for one of {PREPOSITIONS}, got none.")
    return [token for token in range(len(tokenizer)) if token not in allowed]


def majority(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """The most frequent preposition everywhere."""
    answer = counted_prepositions(train_rows, GAP).best([None])
    answers = [answer] * len(rows)
    return {"among": share_right(rows, answers), "answers": answers}


def counted(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """The most frequent preposition between the same words."""
    table = counted_prepositions(train_rows, GAP)
    answers = [table.best(context_keys(row["gapped"], GAP)) for row in rows]
    return {"among": share_right(rows, answers), "answers": answers}


def filled(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """The model of the package fills the gap, and has learned neither the task nor the corpus."""
    pipe: Any = TextDiffusionPipeline.from_pretrained(SHIPPED_MODEL)
    asked = [row["gapped"] for row in rows]
    call = {"class_labels": SHIPPED_LABEL, "batch_size": options.batch_size}
    suppressed = others(pipe.tokenizer)
    free = fill_gaps(pipe, asked, 1, **call)
    among = fill_gaps(pipe, asked, 1, suppress_tokens=suppressed, **call)
    return {
        "parameters": size_of(pipe),
        "free": share_right(rows, [words[0] for words in free]),
        "among": share_right(rows, [words[0] for words in among]),
        "answers": [words[0] for words in among],
    }


def rewritten(
    options: UnderstandingConfig, train_rows: Any, rows: Any, start: str
) -> dict[str, Any]:
    """Masked diffusion writes the preposition from the sentence, whose gap it is shown."""
    pipe, cost = trained_pipeline(options, f"{TASK}_{start}")
    sources = [row["source"] for row in rows]
    call = {"length": 1, "batch_size": options.batch_size}
    free = rewrite(pipe, sources, 1, **call)
    among = rewrite(pipe, sources, 1, suppress_tokens=others(pipe.tokenizer), **call)
    return {
        **cost,
        "free": share_right(rows, free),
        "among": share_right(rows, among),
        "answers": among,
    }


SYSTEMS: dict[str, tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "majority": ('"of" everywhere', majority, {}),
    "counted": ("the most frequent one between the same words", counted, {}),
    "shipped": ("masked diffusion, four-voices as it comes", filled, {}),
    "scratch": (
        "masked diffusion, from nothing, written from the sentence",
        rewritten,
        {"start": "scratch"},
    ),
    "encoder": (
        "masked diffusion, from MiniLM, written from the sentence",
        rewritten,
        {"start": "encoder"},
    ),
}
