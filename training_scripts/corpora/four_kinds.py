"""Texts of four kinds under permissive licences: chat, novels, speeches and scripture, each with its kind."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from corpora.austen import austen_chapters
from corpora.bible import SWORD_FOLDER, bible_chapters
from corpora.chat import PROFANITY, clean_conversations
from corpora.parts import ASCII_MARKS, data_folder, split_passages
from corpora.speeches import state_of_the_union

# A chapter, speech or conversation: texts that continue each other
Piece = list[str]

# Older speeches were written messages, which read oddly beside spoken ones.
FIRST_YEAR = 1900
# More words than that are a written report, with lists.
SPEECH_WORDS = 12_000
# Paragraphs of some speeches follow each other without a blank.
GLUED = re.compile(r"(?<=[a-z][.!?:])(?=[A-Z])|(?<=[a-z][.!?]\")(?=[A-Z])")
NOTE = re.compile(r" ?\((?:Applause|Laughter)\.?\)")


def four_kinds(seed: int = 0) -> Dataset:
    """Texts of at most about 60 words, each with its kind as `label`: "chat", "novel", "speech" or "scripture".

    Chat are the turns of the BYU Chit-Chat Challenge (MIT); novels are Jane Austen's (public domain); speeches are
    those of presidents on the State of the Union (public domain) from 1900 on; scripture are verses of the World
    English Bible (public domain). Conversations, chapters and speeches come in a random order, each in one piece, so
    a text continues the one before it. Held-out texts, the last ones, are of other pieces, but for the one piece that
    lies across the cut.

    Half of the characters are chat; each of the other kinds has a sixth at most. With seed 0:

    | label | pieces | texts | words | characters |
    |---|---|---|---|---|
    | chat | 3,978 conversations | 135,698 | 2,162,598 | 10,991,830 |
    | novel | 248 chapters | 17,441 | 657,419 | 3,647,683 |
    | speech | 110 speeches | 12,472 | 599,168 | 3,535,306 |
    | scripture | 1,073 chapters | 28,900 | 693,408 | 3,661,428 |

    Args:
        seed: of the order, and of the chapters of scripture that are taken.

    Raises:
        FileNotFoundError, ModuleNotFoundError: if a source is missing.
    """
    generator = random.Random(seed)
    chat = [passages(turns) for turns in clean_conversations()]
    share = num_characters(chat) // 3

    novel = [passages(chapter.splitlines()) for chapter in austen_chapters()["text"]]
    generator.shuffle(novel)

    scripture = [passages(verses) for verses in scripture_chapters()]
    generator.shuffle(scripture)

    kinds = {
        "chat": chat,
        "novel": within(novel, share),
        "speech": within(speeches(), share),
        "scripture": within(scripture, share),
    }
    labelled = [(label, piece) for label, pieces in kinds.items() for piece in pieces]
    generator.shuffle(labelled)

    texts = []
    labels = []
    for label, piece in labelled:
        texts.extend(piece)
        labels.extend([label] * len(piece))
    return Dataset.from_dict({"text": texts, "label": labels})


def passages(texts: list[str]) -> Piece:
    """Texts in their order, with marks in ASCII; long ones are cut at ends of sentences, crude ones left out."""
    piece = []
    for text in texts:
        for passage in split_passages(text.translate(ASCII_MARKS)):
            if not PROFANITY.search(passage):
                piece.append(passage)
    return piece


def speeches() -> Iterator[Piece]:
    """Speeches from 1900 on, the latest first."""
    rows = state_of_the_union().to_list()
    for row in sorted(rows, key=by_time, reverse=True):
        spoken = GLUED.sub(" ", NOTE.sub("", row["text"]))
        if row["year"] >= FIRST_YEAR and len(spoken.split()) <= SPEECH_WORDS:
            yield passages([spoken])


def by_time(speech: dict) -> tuple[int, str]:
    return speech["year"], speech["text"]


def scripture_chapters(folder: Path | None = None) -> Iterator[Piece]:
    """The verses of each chapter of the World English Bible."""
    folder = folder or data_folder(
        "bible", make_target="bible", needed=f"web/{SWORD_FOLDER}/mods.d/*.conf"
    )
    return bible_chapters(folder / "web" / SWORD_FOLDER)


def within(pieces: Iterator[Piece] | list[Piece], limit: int) -> list[Piece]:
    """The first pieces that have at most `limit` characters together."""
    kept = []
    size = 0
    for piece in pieces:
        size += num_characters([piece])
        if size > limit:
            break
        kept.append(piece)
    return kept


def num_characters(pieces: list[Piece]) -> int:
    return sum(len(text) for piece in pieces for text in piece)
