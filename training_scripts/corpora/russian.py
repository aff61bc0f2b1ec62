"""Russian texts: aphorisms and jokes (Debian `fortunes-ru`), texts of a game (Debian `cataclysm-dda-data`)."""

import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from corpora.parts import data_folder, split_passages

FORTUNES = "usr/share/games/fortunes/ru"
GAME_FILE = "usr/share/locale/ru/LC_MESSAGES/cataclysm-dda.mo"
CATALOG_MARK = 0x950412DE  # of gettext's .mo files

# Of adults, and of what is crude as a whole
ADULT_TOPICS = {"adv", "armenian", "flirt", "fomenko", "lovers", "sex"}
CRUDE = re.compile(
    r"\b\w*(?:ху[йеяё]|пизд|бля[дт]|блят|[её]бан|[её]бат|[её]бну|муда[кч]|мудил|залуп|гандон|пид[оа]р|педик|говн"
    r"|дерьм|засран|сран[ыо]|жоп|шлюх|прости?тут|бордел|секс|трахн|трахат|оргазм|эроти|порно|онани|минет|сифилис"
    r"|пенис|сиськ|презерватив|импотен|девственн|гомик|изнасил|голубые)\w*|\bсука\b|\bсуки\b",
    re.IGNORECASE,
)
# Without placeholders, markup, lists, Latin words, numbers of models, shouting, and what the game's makers test it by
PROSE = re.compile(r"[А-Яа-яЁё0-9\s.,!?:;\"'«»()—-]+")
NO_PROSE = re.compile(r"\d{4,}|[А-ЯЁ]{3,}\s[А-ЯЁ]{2,}|[Тт]естов|[Оо]тлад")
SHORTEST = 3  # words
LONGEST = 40
# Descriptions of a kind begin alike, and go on alike.
BEGINNING_WORDS = 4


def russian_texts(folder: Path | None = None, seed: int = 0) -> Dataset:
    """Russian texts of 3 to 40 words with their kind as `label`: "афоризм" or "игра".

    Whole sentences only, of Cyrillic letters; without authors, names of things, placeholders and crude texts. Of texts
    that begin with the same four words one is kept. They come in a random order; passages of one text stay together.

    The texts are copyleft, so they are fetched and not shipped: of the game CC-BY-SA-3.0; of the aphorisms GPL-2 by
    their package, though their authors are many. With seed 0:

    | label | texts | words | characters |
    |---|---|---|---|
    | афоризм | 16,770 | 200,367 | 1,279,070 |
    | игра | 18,893 | 256,788 | 1,792,044 |

    Args:
        folder: of the unpacked packages; by default `data/russian`.
        seed: of the order.

    Raises:
        FileNotFoundError: if it was not fetched.
        ValueError: if the file of the game is no catalog of gettext.
    """
    folder = folder or data_folder("russian", make_target="russian", needed=GAME_FILE)
    game = (folder / GAME_FILE).read_bytes()
    labelled = [("афоризм", text) for text in fortunes(folder / FORTUNES)]
    labelled += [("игра", text) for text in translations(game)]

    random.Random(seed).shuffle(labelled)

    rows = []
    beginnings = set()
    for label, text in labelled:
        plain = plain_russian(text)
        beginning = tuple(plain.lower().split()[:BEGINNING_WORDS])
        if beginning in beginnings:
            continue
        beginnings.add(beginning)
        for passage in russian_passages(plain):
            rows.append({"text": passage, "label": label})
    return Dataset.from_list(rows)


def fortunes(folder: Path) -> Iterator[str]:
    """The entries of all topics that are for everybody, without their authors."""
    for file in sorted(folder.iterdir()):
        if file.suffix == ".dat" or file.name in ADULT_TOPICS:
            continue
        # Files end in various ways; a line of "%" parts two entries.
        for entry in re.split(r"^%\s*$", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            yield re.split(r"^\s*--", entry, flags=re.MULTILINE)[0]


def translations(catalog: bytes) -> Iterator[str]:
    """The translated texts of a .mo file of gettext, without those that have plural forms.

    The format is that of "GNU gettext utilities", section 10.3: two tables of sizes and places.

    Raises:
        ValueError: if it is no such file.
    """
    mark, _, count, originals, translated = struct.unpack_from("<5I", catalog)
    if mark != CATALOG_MARK:
        raise ValueError(f"`catalog` must begin with the mark of gettext, got {catalog[:4]!r}.")

    for index in range(count):
        size, _ = struct.unpack_from("<2I", catalog, originals + 8 * index)
        # The translation of nothing is the file's own header.
        if size == 0:
            continue
        size, place = struct.unpack_from("<2I", catalog, translated + 8 * index)
        text = catalog[place : place + size].decode("utf-8")
        if "\0" not in text:
            yield text


def plain_russian(text: str) -> str:
    """A text on one line, with the dash and the points of print spelt as most of the texts have them.

    Example:
        >>> plain_russian(" Жизнь - это\\nдвижение…")
        'Жизнь — это движение...'
    """
    joined = " ".join(text.split()).replace("…", "...")
    return re.sub(r"(?<=\S) [-–] (?=\S)", " — ", joined)


def russian_passages(text: str) -> list[str]:
    """The passages of a text, none if a part of it is no prose.

    Example:
        >>> russian_passages("Скажи мне, кто твой друг. И я скажу, кто ты.")
        ['Скажи мне, кто твой друг. И я скажу, кто ты.']
        >>> russian_passages("сырых яиц"), russian_passages("Ваш %s шумит.")
        ([], [])
    """
    if not PROSE.fullmatch(text) or NO_PROSE.search(text) or CRUDE.search(text):
        return []
    if not re.match(r'["«„(—]?\s?[А-ЯЁ]', text) or not re.search(r'[.!?]["»)]*$', text):
        return []

    passages = split_passages(text, max_words=LONGEST)
    return [passage for passage in passages if SHORTEST <= len(passage.split()) <= LONGEST]
