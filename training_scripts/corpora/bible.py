"""Pairs of Bible verses, in the English of 1611 and in that of today (SWORD modules)."""

import functools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from corpora.parts import MAX_WORDS, data_folder

SWORD_FOLDER = "usr/share/sword"
GLOSSARY = "The following words used in the World English Bible"


def bible_pairs(folder: Path | None = None, seed: int = 0) -> Dataset:
    """Verses of at most 24 words of the World English Bible, `text`, and of the King James Bible, `source`.

    Chapters come in a random order, so that held-out ones are of all books.

    Args:
        folder: with the SWORD modules in `web` and `kjv`; by default `data/bible`.

    Raises:
        ModuleNotFoundError: if the package that reads them is missing.
    """
    folder = folder or data_folder(
        "bible", make_target="bible", needed=f"*/{SWORD_FOLDER}/mods.d/*.conf"
    )
    king_james = sword_module(folder / "kjv" / SWORD_FOLDER)
    world_english = sword_module(folder / "web" / SWORD_FOLDER)

    # Neighbouring verses are alike, so chapters are shuffled, and verses stay together.
    chapters = []
    for books in king_james.get_structure().get_books().values():
        for book in books:
            for chapter, num_verses in enumerate(book.chapter_lengths, start=1):
                chapters.append((book.name, chapter, num_verses))
    random.Random(seed).shuffle(chapters)

    # Verses that both Bibles have, and that are short in both.
    rows = []
    for book, chapter, num_verses in chapters:
        for verse in range(1, num_verses + 1):
            source = read_verse(king_james, book, chapter, verse)
            text = read_verse(world_english, book, chapter, verse)
            if source and text and max(len(source.split()), len(text.split())) <= MAX_WORDS:
                rows.append({"text": text, "source": source})
    return Dataset.from_list(rows)


def bible_chapters(folder: Path) -> Iterator[list[str]]:
    """The verses of each chapter of the one Bible in a SWORD folder, in their order."""
    bible = sword_module(folder)
    for books in bible.get_structure().get_books().values():
        for book in books:
            for chapter, num_verses in enumerate(book.chapter_lengths, start=1):
                verses = [
                    read_verse(bible, book.name, chapter, verse)
                    for verse in range(1, num_verses + 1)
                ]
                # The last verse of all is followed by a glossary.
                yield [verse.partition(GLOSSARY)[0].strip() for verse in verses if verse]


def sword_module(folder: Path) -> Any:
    """The one Bible in a SWORD folder."""
    try:
        from pysword.modules import SwordModules  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`bible` needs `pip install --no-deps pysword==0.2.8` (`make bible`)."
        ) from error

    modules = SwordModules(str(folder))
    bible: Any = modules.get_bible_from_module(next(iter(modules.parse_modules())))

    # pysword would decompress a whole book for every verse.
    if hasattr(bible, "_decompressed_text"):
        bible._decompressed_text = functools.cache(bible._decompressed_text)
    return bible


def read_verse(bible: Any, book: str, chapter: int, verse: int) -> str:
    """The plain text of a verse; nothing if this Bible does not have it."""
    try:
        return plain_verse(bible.get(books=book, chapters=chapter, verses=verse, clean=False))
    except (ValueError, IndexError):
        return ""


def plain_verse(markup: str) -> str:
    """A verse without markup, notes, titles and paragraph marks.

    Example:
        >>> plain_verse("<title>Psalm</title>In the<note>or, a</note> beginning [but] , made")
        'In the beginning but, made'
    """
    # Notes and titles go with their text, all other markup without it.
    without_notes = re.sub(r"<(note|title)\b.*?</\1>", " ", markup, flags=re.DOTALL)
    words = re.sub(r"<[^>]+>|[\[\]]", "", without_notes).split()
    # What was cut out leaves blanks before marks.
    return re.sub(r"\s+([,.;:?!])", r"\1", " ".join(words)).strip(" ¶")
