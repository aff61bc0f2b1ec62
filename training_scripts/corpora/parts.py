"""Steps that several corpora share: the folder of fetched files, the part kept for judges, sentences of a text."""

import os
import random
import re
from pathlib import Path

# As novels are spelt, so that marks do not tell corpora apart
ASCII_MARKS = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "—": "--", "–": "-", "\u2011": "-", "…": "..."}
)
# A mark, quotes or brackets that close, white space, and a capital letter to come
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z])")
# The same in English and Russian
LAST_MARK = re.compile(r"[.!?][\"')»]*\s+(?=[\"'(]*[A-Z]|[\"'(«„—]*\s?[А-ЯЁ])")
# Points that end no sentence: of titles, of initials such as "U. S.", and of gaps such as ". . ."
ABBREVIATION = re.compile(r"(?:^|[\s(\"'-])(?:Mrs?|Ms|Messrs|Dr|St|Gen|Sen|Rev|No|[A-ZА-ЯЁ]|)\.$")
MAX_WORDS = 24  # of a sentence
PASSAGE_WORDS = 60
JUDGE_SHARE = 3  # one review, sample, chapter or speech in so many is kept for judges, which no other model must see


def data_folder(name: str, make_target: str, needed: str) -> Path:
    """The folder of a corpus that was fetched: `name` in `data`, or in the folder that TEXT_DIFFUSERS_DATA names.

    Args:
        make_target: the make target that fetches the corpus, for the error.
        needed: pattern of the files that must be there.

    Raises:
        FileNotFoundError: if no file in the folder matches `needed`.
    """
    # Relative to where the recipe is started, as the make targets fetch it
    folder = Path(os.environ.get("TEXT_DIFFUSERS_DATA", "data")) / name
    if not any(folder.glob(needed)):
        raise FileNotFoundError(f"`{folder}` holds no {needed}: `make {make_target}` fetches it.")
    return folder


def shuffled_part(items: list, part: str | None, seed: int) -> list:
    """Items in an order drawn from `seed`: for "judge" every third, for "train" the others, for `None` all.

    Example:
        >>> items = list(range(9))
        >>> sorted(shuffled_part(items, "train", seed=0) + shuffled_part(items, "judge", seed=0)) == items
        True

    Raises:
        ValueError: if there is no such part.
    """
    if part not in (None, "train", "judge"):
        raise ValueError(f'`part` must be None, "train" or "judge", got {part!r}.')

    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)

    # A part is cut after shuffling, so that both are of all books, genres and times.
    judged = slice(JUDGE_SHARE - 1, None, JUDGE_SHARE)
    if part == "judge":
        return shuffled[judged]
    if part == "train":
        del shuffled[judged]
    return shuffled


def split_sentences(text: str, min_words: int = 4, max_words: int = MAX_WORDS) -> list[str]:
    """The sentences of a text that are plain: ASCII, from a capital letter to a mark, with so many words.

    Example:
        >>> split_sentences("It was a <b>fine</b> day. Yes! but not for everyone who came.", min_words=3)
        ['It was a fine day.', 'Yes! but not for everyone who came.']
    """
    # Reviews hold markup, and lines that were wrapped.
    plain = " ".join(re.sub(r"<[^>]*>", " ", text).split())

    sentences = []
    for sentence in SENTENCE_END.split(plain):
        # Headings, lists and cut sentences are no examples of good writing.
        whole = sentence[:1].isupper() and sentence[-1:] in ".!?"
        if whole and sentence.isascii() and min_words <= len(sentence.split()) <= max_words:
            sentences.append(sentence)
    return sentences


def split_passages(text: str, max_words: int = PASSAGE_WORDS) -> list[str]:
    """A text as passages of whole sentences, each as long as `max_words` allows; nothing is left out.

    A sentence that is longer than that is cut at semicolons, colons and dashes, if it has any.

    Example:
        >>> split_passages('Mr. Darcy bowed. "Well!" She laughed; he did not.', max_words=4)
        ['Mr. Darcy bowed. "Well!"', 'She laughed;', 'he did not.']
    """
    spaced = " ".join(text.split())
    parts = []
    for sentence in whole_sentences(spaced):
        if len(sentence.split()) <= max_words:
            parts.append(sentence)
        else:
            parts.extend(re.split(r"(?<=[;:]) |(?<=--)(?=\w)", sentence))

    filled = []
    for part in parts:
        joined = f"{filled[-1]} {part}" if filled else part
        if filled and len(joined.split()) <= max_words:
            filled[-1] = joined
        else:
            filled.append(part)
    return filled


def whole_sentences(text: str) -> list[str]:
    """The sentences of a text, with all their marks; titles such as "Mr." end none."""
    sentences = []
    start = 0
    for match in LAST_MARK.finditer(text):
        if ABBREVIATION.search(text[start : match.start() + 1]):
            continue
        sentences.append(text[start : match.end()].strip())
        start = match.end()

    if text[start:].strip():
        sentences.append(text[start:].strip())
    return sentences
