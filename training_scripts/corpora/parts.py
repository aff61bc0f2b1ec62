"""What every corpus needs: where it was fetched to, which part is a judge's, and its sentences."""

import os
import re
from pathlib import Path

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z])")
SENTENCE_WORDS = (4, 24)
JUDGE_SHARE = 3  # one review, sample, chapter or speech in so many is kept for judges, which no other model must see


def data_folder(name: str, made_by: str, needed: str) -> Path:
    """The folder of a corpus that was fetched: `name` in `data`, or in the folder that TEXT_DIFFUSERS_DATA names.

    Raises:
        FileNotFoundError: if no file there matches `needed`; tells the make target `made_by` that fetches it.
    """
    folder = Path(os.environ.get("TEXT_DIFFUSERS_DATA", "data")) / name
    if not any(folder.glob(needed)):
        raise FileNotFoundError(f"`{folder}` holds no {needed}: `make {made_by}` fetches it.")
    return folder


def check_part(part: str | None):
    if part not in (None, "train", "judge"):
        raise ValueError(f'`part` must be None, "train" or "judge", got {part!r}.')


def of_part(items: list, part: str | None) -> list:
    """The judge's items, every third, or the others; with `None` all."""
    return [
        item
        for number, item in enumerate(items)
        if part is None or (number % JUDGE_SHARE == JUDGE_SHARE - 1) == (part == "judge")
    ]


def split_sentences(text: str, words: tuple[int, int] = SENTENCE_WORDS) -> list[str]:
    """Sentences in ASCII that begin with a capital letter, end with a mark, and have so many words; no markup."""
    plain = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    low, high = words
    found = []
    for sentence in SENTENCE_END.split(plain):
        whole = sentence[:1].isupper() and sentence[-1:] in ".!?" and sentence.isascii()
        if whole and low <= len(sentence.split()) <= high:
            found.append(sentence)
    return found
