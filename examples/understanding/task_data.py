"""Rows of four tasks of understanding, from the Brown corpus and two English Bibles, and their files.

Example:
    >>> train, held_out = split([{"text": str(number)} for number in range(40)])
    >>> len(train), [row["text"] for row in held_out]
    (38, ['38', '39'])
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from compression import compress, kept_places, marks_of
from gaps import SHOWN_GAP, preposition_places, tagged_text, with_gap

from text_diffusers.data.detokenization import detokenise

TRAINING_SCRIPTS = Path(__file__).resolve().parents[2] / "training_scripts"
if str(TRAINING_SCRIPTS) not in sys.path:
    sys.path.append(str(TRAINING_SCRIPTS))

from corpora.bible import bible_pairs  # noqa: E402 - the path above leads to them
from corpora.brown import brown_documents  # noqa: E402

Row = dict[str, Any]
FEWEST_WORDS = 5
# One row in so many is held out.
HELD_OUT_SHARE = 20


def brown_sentences(most_words: int) -> list[Row]:
    """Sentences of the Brown corpus with 5 to `most_words` words, marks among them: `words` and `tags`."""
    sentences: Any = brown_documents(part="train")
    return [
        {"words": row["words"], "tags": row["tags"]}
        for row in sentences
        if FEWEST_WORDS <= len(row["words"]) <= most_words
    ]


def make_tags(most_words: int) -> list[Row]:
    """Sentences in which each word is followed by its part of speech."""
    rows = []
    for row in brown_sentences(most_words):
        rows.append({"text": tagged_text(row["words"], row["tags"]), **row})
    return rows


def make_prepositions(most_words: int) -> list[Row]:
    """Sentences with a gap for one preposition, a row for each preposition of a sentence."""
    rows = []
    for row in brown_sentences(most_words):
        words = row["words"]
        text, _ = detokenise(words)
        for place in preposition_places(words, row["tags"]):
            rows.append(
                {
                    "text": text,
                    "gapped": with_gap(words, place),
                    "source": with_gap(words, place, SHOWN_GAP),
                    "answer": words[place],
                }
            )
    return rows


def make_compression(most_words: int) -> list[Row]:
    """Sentences and what the rule of `compression` makes of them, where it makes something good."""
    rows = []
    for row in brown_sentences(most_words):
        kept = compress(row["words"], row["tags"])
        if kept is not None:
            words = row["words"]
            places = kept_places(words, row["tags"])
            rows.append(
                {
                    "text": detokenise(kept)[0],
                    "source": detokenise(words)[0],
                    "marked": tagged_text(words, marks_of(words, places)),
                    "words": words,
                    "kept": places,
                }
            )
    return rows


def make_paraphrase(most_words: int) -> list[Row]:
    """Verses of at most `most_words` words in the English of today, and as `source` in that of 1611."""
    rows: Any = bible_pairs()
    return [
        {"text": row["text"], "source": row["source"]}
        for row in rows
        if max(len(row["text"].split()), len(row["source"].split())) <= most_words
    ]


TASKS: dict[str, Callable[[int], list[Row]]] = {
    "tags": make_tags,
    "prepositions": make_prepositions,
    "compression": make_compression,
    "paraphrase": make_paraphrase,
}


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """`(train, held_out)`: the last twentieth is held out; a text that stands in both is not learned from.

    Example:
        >>> train, held_out = split([{"text": str(n)} for n in range(40)] + [{"text": "3"}])
        >>> len(train), [row["text"] for row in held_out]
        (38, ['39', '3'])
    """
    first = len(rows) - len(rows) // HELD_OUT_SHARE
    held_out = list(rows[first:])
    texts = {row[column] for row in held_out for column in ("text", "source") if column in row}
    train = [
        row for row in rows[:first] if row["text"] not in texts and row.get("source") not in texts
    ]
    return train, held_out


def write_rows(rows: Iterable[Row], path: Path):
    """A .jsonl file, a row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """The rows of such a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def make_task(task: str, folder: Path, most_words: int) -> Path:
    """Write both parts of a task into `folder`, if they are not there; returns the folder."""
    if not (folder / "validation.jsonl").exists():
        train, held_out = split(TASKS[task](most_words))
        write_rows(train, folder / "train.jsonl")
        write_rows(held_out, folder / "validation.jsonl")
        print(f"{folder}: {len(train):,} rows, and {len(held_out):,} held out", flush=True)
    return folder
