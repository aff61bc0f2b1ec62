"""Corpora of texts that continue each other: four kinds of English, conversations as messages, and Russian."""

import gettext
import io
import sys
from itertools import groupby
from pathlib import Path

import pytest
from corpora import CORPORA
from corpora.austen import AUSTEN_FILE
from corpora.bible import GLOSSARY, SWORD_FOLDER, bible_chapters
from corpora.chat import chitchat_messages, is_chat
from corpora.four_kinds import four_kinds
from corpora.parts import split_passages
from corpora.russian import FORTUNES, GAME_FILE, russian_texts, translations
from support.made_up_corpora import (
    gettext_catalog,
    r_record,
    write_conversations,
    write_sword_module,
)

from text_diffusers.data.sources import load_documents

DATA = Path(__file__).parent.parent.parent / "data"


@pytest.fixture
def chats(tmp_path, monkeypatch):
    """Install a package of made-up conversations in place of the real one."""

    def install(conversations):
        write_conversations(tmp_path, conversations)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "chitchat_dataset", raising=False)

    yield install
    sys.modules.pop("chitchat_dataset", None)


@pytest.fixture
def kinds(chats, tmp_path, monkeypatch):
    """A folder of data with 40 conversations of three turns, 3 chapters, 2 speeches, 2 old ones, and 3 psalms."""
    pytest.importorskip("pysword", reason="`make bible` installs it")
    chats([[[f"Chat {n}.{turn}!", "How nice."] for turn in range(3)] for n in range(40)])

    file = tmp_path / "austen" / AUSTEN_FILE
    file.parent.mkdir(parents=True)
    lines = []
    for number in range(3):
        lines += [f"CHAPTER {number}", "", f"Mr. Novel {number}.0 it is.", "", f"Novel {number}.1."]
        lines += [""]
    file.write_bytes(r_record(["EMMA", "", *lines]))

    speeches = tmp_path / "state_of_the_union"
    speeches.mkdir()
    for year in (1850, 1899, 1950, 1990):
        text = f"Speech {year} — “so” it is.Thank you. (Applause.)"
        (speeches / f"{year}_a_b_r.txt").write_text(text, encoding="utf-8")

    verses = {}
    for chapter in range(1, 4):
        verses[("Psalms", chapter, 1)] = f"Verse {chapter}.1,"
        verses[("Psalms", chapter, 2)] = f"verse {chapter}.2 of the ‘bastard’."
        verses[("Psalms", chapter, 3)] = f"Verse {chapter}.3 — so."
    verses[("Psalms", 3, 4)] = f"Verse 3.4. {GLOSSARY} are not very common."
    write_sword_module(tmp_path / "bible" / "web" / SWORD_FOLDER, verses)
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))


def test_four_kinds_are_whole_pieces_in_their_order(kinds):
    documents = load_documents("four_kinds", label_column="label")
    pieces = {}
    for number in range(40):
        pieces[f"Chat {number}."] = ("chat", [f"Chat {number}.{n}! How nice." for n in range(3)])
    for number in range(3):
        texts = [f"Mr. Novel {number}.0 it is.", f"Novel {number}.1."]
        pieces[f"Novel {number}."] = ("novel", texts)
        verses = [f"Verse {number + 1}.1,", f"Verse {number + 1}.3 -- so."]
        pieces[f"Verse {number + 1}."] = ("scripture", verses + ["Verse 3.4."] * (number == 2))
    for year in (1950, 1990):
        pieces[f"Speech {year}"] = ("speech", [f'Speech {year} -- "so" it is. Thank you.'])

    # What names a piece stands in all of its texts, so they can be told apart by it.
    found = []
    for row in documents:
        (name,) = [name for name in pieces if name.lower() in row["text"].lower()]
        found.append((name, row["label"], row["text"]))
    groups = [(name, list(rows)) for name, rows in groupby(found, key=lambda row: row[0])]
    assert sorted(name for name, _ in groups) == sorted(pieces)  # each once, so in one piece
    for name, rows in groups:
        label, texts = pieces[name]
        assert [text for _, _, text in rows] == texts
        assert {kind for _, kind, _ in rows} == {label}

    assert four_kinds()[:] == documents[:]
    assert four_kinds(seed=1)[:] != documents[:]


def test_no_kind_has_more_than_a_third_of_the_characters_of_chat(kinds, tmp_path):
    long = " ".join(["word"] * 30)
    for year in range(1960, 1990):
        file = tmp_path / "state_of_the_union" / f"{year}_a_b_r.txt"
        file.write_text(f"Speech {year} {long}.", encoding="utf-8")
    sizes = {}
    speeches = []
    for row in four_kinds():
        sizes[row["label"]] = sizes.get(row["label"], 0) + len(row["text"])
        if row["label"] == "speech":
            speeches.append(row["text"])
    assert max(sizes["speech"], sizes["novel"], sizes["scripture"]) <= sizes["chat"] / 3
    # The latest come first.
    years = sorted(int(text.split()[1]) for text in speeches)
    assert years[-1] == 1990 and years == [*range(1991 - len(years), 1991)]


def test_passages_lose_nothing_and_are_as_long_as_they_may_be():
    text = (
        'Mr. A. B. Knightley came. "Is it so?" asked Mrs. Weston (who knew). It was; and it was late: '
        "they went home--all of them . . . and slept. Так сказал А. С. Пушкин. «Да!» — ответил он."
    )
    for max_words in (3, 8, 20, 60):
        passages = split_passages(text, max_words)
        # A dash within a sentence is the only place that has no blank.
        assert "".join(passages).replace(" ", "") == text.replace(" ", "")
        assert not any(passage.endswith(("Mr.", "A.", "B.", "Mrs.", "С.")) for passage in passages)
        for passage, following in zip(passages, passages[1:], strict=False):
            assert len(f"{passage} {following}".split()) > max_words
    assert split_passages(text, 60) == [text]
    assert split_passages("") == []


def test_a_chapter_ends_where_the_glossary_of_the_translation_begins(tmp_path):
    pytest.importorskip("pysword", reason="`make bible` installs it")
    verses = {
        ("Mark", 1, 1): "One<note>or 1</note>.",
        ("Mark", 1, 3): f"Amen. {GLOSSARY} are rare.",
    }
    write_sword_module(tmp_path / SWORD_FOLDER, verses)
    chapters = [chapter for chapter in bible_chapters(tmp_path / SWORD_FOLDER) if chapter]
    assert chapters == [["One.", "Amen."]]


def test_conversations_become_messages_of_two_who_take_turns(chats):
    chats(
        [
            [["Hi!", "How are you?"], ["Fine."], ["Good to hear"]],
            [["Hello?"]],
            [["Look at www.example.com"], ["Why?"], ["It is *fun*", "Look*"], ["I see"], ["bye"]],
            [["My number is 555 123 4567"], ["..."], ["ok"], ["cool"]],
        ]
    )
    conversations = chitchat_messages()["messages"]
    assert [[turn["role"] for turn in turns] for turns in conversations] == [
        ["user", "assistant"],
        ["user", "assistant"] * 2,
        ["user", "assistant"],
    ]
    assert [[turn["content"] for turn in turns] for turns in conversations] == [
        ["Hi! How are you?", "Fine."],
        ["Why?", "It is", "I see", "bye"],
        ["ok", "cool"],
    ]


@pytest.mark.parametrize(
    "turn", ["...", "see https://a.b", "a@b.com it is", "h" * 31, "so " * 101, "x_y", "<b>bold</b>"]
)
def test_what_is_no_chat_is_left_out(turn):
    assert not is_chat(turn)
    assert is_chat("Haha! It's 50% of $5 (or so), isn't it? :)")


def test_catalogs_of_gettext_are_read_as_gettext_reads_them():
    catalog = {
        "": "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=n>1;\n"
    }
    catalog |= {"Yes.": "Да.", "No.": "Нет, «никогда».", "one\0many": "один\0много"}
    written = gettext_catalog(catalog)
    stock = gettext.GNUTranslations(io.BytesIO(written))
    assert sorted(translations(written)) == sorted([stock.gettext("Yes."), stock.gettext("No.")])
    with pytest.raises(ValueError, match="must begin with the mark of gettext, got b'PK"):
        list(translations(b"PK\3\4" + bytes(40)))


@pytest.fixture
def russian(tmp_path, monkeypatch):
    """Made-up aphorisms of three topics, one of adults, and texts of a game."""
    folder = tmp_path / "russian"
    topics = {
        "life": "Жизнь - это движение…\n\t\t-- Кто-то\n%\nЖизнь — это движение вперёд.\n%\nскромность\n",
        "time": "Время\nлечит всех,\nно не сразу.\n\t-- Неизвестный автор\n%\nЯ читал книгу в 1984 году.\n%\n",
        "sex": "Это для взрослых людей.\n%\n",
        "time.dat": "\1\2",
    }
    (folder / FORTUNES).mkdir(parents=True)
    for topic, text in topics.items():
        (folder / FORTUNES / topic).write_text(text, encoding="utf-8")
    first = " ".join(["Первое предложение было довольно длинным и скучным на вид."] * 4)
    game = {
        "long": f"{first} Второе короче, но тоже не помещается.",
        "item": "сырых яиц",
        "name": "Бензопила",
        "placeholder": "Ваша %s громко шумит.",
        "markup": "Она <info>хорошо</info> вам подходит.",
        "latin": "Патрон от фирмы ACME здесь.",
        "crude": "Полное дерьмо, а не игра.",
        "word": "Нет.",
        "again": "Время лечит всех, но не всегда.",
    }
    (folder / GAME_FILE).parent.mkdir(parents=True)
    (folder / GAME_FILE).write_bytes(gettext_catalog(game))
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))
    return first


def test_russian_texts_are_whole_sentences_that_begin_in_their_own_way(russian):
    documents = load_documents("russian_texts", label_column="label")
    texts = dict(zip(documents["text"], documents["label"], strict=True))
    assert len(texts) == len(documents) == 5
    # Of two that begin alike, one is left.
    life = {"Жизнь — это движение...", "Жизнь — это движение вперёд."}
    time = {"Время лечит всех, но не сразу.", "Время лечит всех, но не всегда."}
    assert life <= set(texts) and len(time & set(texts)) == 1
    # What is longer than 40 words is cut at the end of a sentence.
    place = documents["text"].index(russian)
    assert documents["text"][place + 1] == "Второе короче, но тоже не помещается."
    assert texts[russian] == "игра" and texts["Жизнь — это движение..."] == "афоризм"
    assert russian_texts()[:] == documents[:]
    assert all(3 <= len(text.split()) <= 40 for text in texts)


def test_a_corpus_that_was_not_fetched_is_named_with_its_make_target(chats, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="`make russian` fetches it"):
        CORPORA["russian_texts"]()
    chats([[["Hi!"], ["Hello!"]]])
    with pytest.raises(FileNotFoundError, match="`make austen` fetches it"):
        CORPORA["four_kinds"]()
    makefile = (DATA.parent / "Makefile").read_text(encoding="utf-8")
    assert "\nrussian:" in makefile and "\nausten:" in makefile


@pytest.mark.slow
@pytest.mark.skipif(
    not all((DATA / name).exists() for name in ("austen", "bible", "state_of_the_union")),
    reason="`make four_kinds` fetches the texts",
)
def test_the_real_four_kinds(monkeypatch):
    pytest.importorskip("chitchat_dataset")
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(DATA))
    documents = CORPORA["four_kinds"]()
    sizes = {}
    for row in documents:
        sizes.setdefault(row["label"], []).append(len(row["text"]))
    assert {label: (len(size), sum(size)) for label, size in sizes.items()} == {
        "chat": (135_698, 10_991_830),
        "novel": (17_441, 3_647_683),
        "speech": (12_472, 3_535_306),
        "scripture": (28_900, 3_661_428),
    }


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "russian").exists(), reason="`make russian` fetches the texts")
def test_the_real_russian_texts(monkeypatch):
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(DATA))
    documents = CORPORA["russian_texts"]()
    assert len(documents) == 35_663
    assert sum(map(len, documents["text"])) == 3_071_114
