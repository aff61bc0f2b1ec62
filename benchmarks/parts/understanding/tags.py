"""Parts of speech as generated tokens: a tag behind each word, beside counted tags and a plain tagger."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from transformers import AutoTokenizer

from parts.understanding.baselines import Row, frequent_tags
from parts.understanding.config import UnderstandingConfig
from parts.understanding.data import GAP, tagged_text
from parts.understanding.filling import fill_gaps, tag_words
from parts.understanding.scores import share_with_error
from parts.understanding.training import train, trained_pipeline
from text_diffusers import TextClassifierModel

Figures = dict[str, Any]

TASK = "tags"
# Of the model that starts from an encoder: whether it helps to see tags that are settled
SEVERAL_STEPS = 4


def share_right(
    rows: Sequence[Row], tags: Sequence[Sequence[str]], known: Collection[str] = ()
) -> dict[str, float] | None:
    """The share of words with the right tag, those in `known` left out; `None` if no word is left."""
    right = []
    counts = []
    for row, written in zip(rows, tags, strict=True):
        triples = zip(row["words"], row["tags"], written, strict=True)
        hits = [tag == other for word, tag, other in triples if word not in known]
        right.append(sum(hits))
        counts.append(len(hits))
    return share_with_error(right, counts) if sum(counts) else None


def record(
    train_rows: Sequence[Row], rows: Sequence[Row], tags: Sequence[Sequence[str]], **facts: Any
) -> Figures:
    """The figures of tags, of all words and of those that no training sentence has, and the tags themselves."""
    known = {word for row in train_rows for word in row["words"]}
    return {
        **facts,
        "accuracy": share_right(rows, tags),
        "unseen": share_right(rows, tags, known),
        "answers": [" ".join(written) for written in tags],
    }


def counted(options: UnderstandingConfig, train_rows: Any, rows: Any) -> Figures:
    """Each word has its most frequent tag."""
    tag = frequent_tags(train_rows)
    return record(train_rows, rows, [tag(row["words"]) for row in rows])


def plain_tagger(options: UnderstandingConfig, train_rows: Any, rows: Any) -> Figures:
    """A classifier of tokens, by `train_classifier.py`."""
    trained = train(options, f"{TASK}_tagger")
    model = TextClassifierModel.from_pretrained(trained["folder"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained["folder"])
    tags = tag_words(model, tokenizer, [row["words"] for row in rows])
    return record(
        train_rows, rows, tags, minutes=trained["minutes"], parameters=model.num_parameters()
    )


def generated(
    options: UnderstandingConfig, train_rows: Any, rows: Any, start: str, num_steps: int
) -> Figures:
    """Masked diffusion fills a gap behind each word."""
    pipe, cost = trained_pipeline(options, f"{TASK}_{start}")
    asked = [tagged_text(row["words"], [GAP] * len(row["words"])) for row in rows]
    tags = fill_gaps(pipe, asked, num_steps, options.batch_size)
    return record(train_rows, rows, tags, **cost)


SYSTEMS: dict[str, tuple[str, Callable[..., Figures], dict[str, Any]]] = {
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
