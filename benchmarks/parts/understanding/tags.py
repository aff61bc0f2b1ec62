"""Parts of speech as generated tokens: a tag behind each word, beside counted tags and a plain tagger."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import AutoTokenizer

from parts.understanding.baselines import Row, frequent_tags
from parts.understanding.config import UnderstandingConfig
from parts.understanding.data import GAP, tagged_text
from parts.understanding.filling import fill_gaps, size_of, tag_words
from parts.understanding.scores import share_with_error
from parts.understanding.training import train
from text_diffusers import TextClassifierModel, TextDiffusionPipeline

TASK = "tags"
# Of the model that starts from an encoder: whether it helps to see tags that are settled
SEVERAL_STEPS = 4


def score(rows: Sequence[Row], tags: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The share of words with the right tag, of all words."""
    right = []
    for row, written in zip(rows, tags, strict=True):
        right.append(sum(tag == other for tag, other in zip(row["tags"], written, strict=True)))
    counts = [len(row["tags"]) for row in rows]
    return {"accuracy": share_with_error(right, counts)}


def record(rows: Sequence[Row], tags: Sequence[Sequence[str]], **facts: Any) -> dict[str, Any]:
    """The figures of tags, and the tags of each sentence."""
    shown = [" ".join(written) for written in tags]
    return {**facts, **score(rows, tags), "answers": shown}


def counted(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """Each word has its most frequent tag."""
    tag = frequent_tags(train_rows)
    return record(rows, [tag(row["words"]) for row in rows])


def plain_tagger(options: UnderstandingConfig, train_rows: Any, rows: Any) -> dict[str, Any]:
    """A classifier of tokens, by `train_classifier.py`."""
    trained = train(options, f"{TASK}_tagger")
    model = TextClassifierModel.from_pretrained(trained["folder"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained["folder"])
    tags = tag_words(model, tokenizer, [row["words"] for row in rows])
    return record(rows, tags, minutes=trained["minutes"], parameters=model.num_parameters())


def generated(
    options: UnderstandingConfig, train_rows: Any, rows: Any, start: str, num_steps: int
) -> dict[str, Any]:
    """Masked diffusion fills a gap behind each word."""
    trained = train(options, f"{TASK}_{start}")
    pipe: Any = TextDiffusionPipeline.from_pretrained(trained["folder"])
    asked = [tagged_text(row["words"], [GAP] * len(row["words"])) for row in rows]
    tags = fill_gaps(pipe, asked, num_steps, options.batch_size)
    return record(rows, tags, minutes=trained["minutes"], parameters=size_of(pipe))


SYSTEMS: dict[str, tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "counted": ("the most frequent tag of the word", counted, {}),
    "tagger": ("a plain tagger, from nothing", plain_tagger, {}),
    "scratch": (
        "masked diffusion, from nothing, all tags at once",
        generated,
        {"start": "scratch", "num_steps": 1},
    ),
    "encoder": (
        "masked diffusion, from MiniLM, all tags at once",
        generated,
        {"start": "encoder", "num_steps": 1},
    ),
    "encoder_steps": (
        f"the same, in {SEVERAL_STEPS} steps, the surest first",
        generated,
        {"start": "encoder", "num_steps": SEVERAL_STEPS},
    ),
}
