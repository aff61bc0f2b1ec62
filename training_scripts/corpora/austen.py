"""Jane Austen's novels by chapters (Debian `r-cran-janeaustenr`)."""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import Dataset

from corpora.parts import data_folder, shuffled_part

AUSTEN_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
R_STRINGS = 16  # the type of a vector of strings in R's serialization
NOVELS = {
    "SENSE AND SENSIBILITY": 1811,
    "PRIDE AND PREJUDICE": 1813,
    "MANSFIELD PARK": 1814,
    "EMMA": 1815,
    "NORTHANGER ABBEY": 1817,
    "PERSUASION": 1817,
}
# In Roman or in Arabic numerals
CHAPTER = re.compile(r"chapter [ivxlc0-9]+", re.IGNORECASE)
NOVEL_END = re.compile(r"finis|the end|a note on the text", re.IGNORECASE)
# Paragraphs of a chapter that are none of its text: divisions, illustrations, stars
NOT_PROSE = re.compile(r"volume [ivx]+|\(end of volume \w+\.\)|\[.*\]|[* ]+", re.IGNORECASE)


def austen_chapters(folder: Path | None = None, part: str | None = None, seed: int = 0) -> Dataset:
    """Chapters of the six novels: `text`, `author`, and the `year` of the novel.

    A paragraph is one line; headings are left out. Chapters come in a random order, so that held-out ones are of all
    novels.

    Args:
        folder: the unpacked package; by default `data/austen`.
        part: "train" or "judge", which share no chapter; `None` is both. The data set "austen" is the first.

    Raises:
        ValueError: if there is no such part, or the file holds another text.
    """
    folder = folder or data_folder("austen", make_target="austen", needed=AUSTEN_FILE)
    file = folder / AUSTEN_FILE

    rows = []
    # The year of a novel is that of all its chapters.
    for lines in r_string_vectors(file.read_bytes()):
        title = lines[0].strip().upper()
        if title not in NOVELS:
            raise ValueError(f"`{file}` must hold the novels {sorted(NOVELS)}, got {title!r}.")
        for chapter in split_chapters(lines):
            rows.append({"text": chapter, "author": "Jane Austen", "year": NOVELS[title]})
    return Dataset.from_list(shuffled_part(rows, part, seed))


def r_string_vectors(records: bytes) -> Iterator[list[str]]:
    """The vectors of strings in an .rdb file of R: its records are a size in 4 bytes, then a zlib stream.

    The format is that of "R Internals", section 1.8.
    """
    while records:
        stream = zlib.decompressobj()
        content = stream.decompress(records[4:])
        records = stream.unused_data

        # A header of 14 bytes: "X\n" and three versions. From version 3 on the length and name of an encoding follow.
        version, _, _, name_length = struct.unpack_from(">iiii", content, 2)
        offset = 14 if version < 3 else 18 + name_length

        # The last byte of the flags is the type of the object; only strings are read.
        flags, count = struct.unpack_from(">Ii", content, offset)
        if flags & 0xFF != R_STRINGS:
            continue

        offset += 8
        strings = []
        for _ in range(count):
            _, size = struct.unpack_from(">Ii", content, offset)
            start = offset + 8
            offset = start + max(size, 0)  # a missing string has the size -1
            strings.append(content[start:offset].decode("utf-8"))
        yield strings


def split_chapters(lines: Iterable[str]) -> list[str]:
    """Chapters of a novel from its wrapped lines: paragraphs are joined to a line each, headings left out.

    Example:
        >>> split_chapters(["EMMA", "", "CHAPTER I", "", "Emma was clever,", "_very_ clever.", "", "FINIS"])
        ['Emma was clever, very clever.']
    """
    chapters: list[list[str]] = []
    stripped = "\n".join(line.strip() for line in lines)

    # Text before the first chapter, a title or a dedication, belongs to none.
    for block in stripped.split("\n\n"):
        paragraph = " ".join(block.replace("_", "").split())
        if NOVEL_END.fullmatch(paragraph):
            break
        if CHAPTER.fullmatch(paragraph):
            chapters.append([])
        elif chapters and paragraph and not NOT_PROSE.fullmatch(paragraph):
            chapters[-1].append(paragraph)

    return ["\n".join(chapter) for chapter in chapters]
