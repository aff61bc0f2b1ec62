"""Laws of reading: the texts that come out are those of the file, in order, or the error names file and line."""

import codecs
import csv
import io
import json
import logging
import random

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets.config import HF_DATASETS_CACHE

from text_diffusers.data import local_files
from text_diffusers.data.labels import check_classes, number_labels
from text_diffusers.data.sources import (
    CORPORA,
    load_documents,
    load_train_and_validation,
    register_corpora,
)
from text_diffusers.data.tagged_text import load_tagged

# Words that tables take for missing, numbers and dates, marks of the formats, any script, and other separators
TEXTS = [
    *["None", "NA", "N/A", "null", "nan", "NaN", "n/a", "True", "007", "1.50", "1e3", "2023-01-07"],
    *[
        'a "quoted" word',
        "commas, semicolons; tabs\t and | bars",
        "  spaces  ",
        "back\\slash",
        "#",
        "=1",
    ],
    *[
        "Привет, Ёжик",
        "日本語",
        "🙂 emoji 👩‍👩‍👧",
        "sep\u2028ar\x85ated\x0b",
        "e\u0301 and \u00e9",
        "[EOS] [MASK]",
    ],
]
MULTILINE = [*TEXTS, "two\nlines", 'a "quote"\n\nand an empty line', "the end\r\nof Windows"]
KINDS = ["txt", "csv", "tsv", "json", "jsonl", "parquet"]
SPECIAL_NAMES = [
    *[
        "notes[1]",
        "data [v2]",
        "a*b",
        "what?",
        "{a,b}",
        "a,b",
        "file::x",
        "a#b",
        "100%",
        "a'b",
        "!x",
        "данные",
    ]
]


def rows_of(texts):
    return [{"id": number, "text": text, "label": number % 2} for number, text in enumerate(texts)]


def write(path, texts, mark=b"", encoding="utf-8", end="\n"):
    """A file of the texts in the kind of its name, by Python's own modules and pyarrow."""
    rows = rows_of(texts)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    stream = io.StringIO(newline="")
    if path.suffix in (".csv", ".tsv"):
        delimiter = "," if path.suffix == ".csv" else "\t"
        table = csv.DictWriter(
            stream, ["id", "text", "label"], delimiter=delimiter, lineterminator=end
        )
        table.writeheader()
        table.writerows(rows)
    elif path.suffix == ".json":
        json.dump(rows, stream, indent=1, ensure_ascii=False)
    elif path.suffix == ".jsonl":
        stream.writelines(json.dumps(row, ensure_ascii=False) + end for row in rows)
    else:
        stream.writelines(text + end for text in texts)
    path.write_bytes(mark + stream.getvalue().encode(encoding))
    return str(path)


def texts_of(documents):
    return [row["text"] for row in documents]


# What stands in the file


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_the_file_in_order(tmp_path, kind, streaming):
    texts = TEXTS if kind == "txt" else MULTILINE
    path = write(tmp_path / f"a.{kind}", texts)
    assert texts_of(load_documents(path, streaming=streaming)) == texts
    if kind != "txt":
        labelled = load_documents(path, label_column="label", streaming=streaming)
        assert [row["label"] for row in labelled] == [row["label"] for row in rows_of(texts)]


@pytest.mark.parametrize(
    "encoding, mark",
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
    ],
)
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_byte_order_mark_is_no_text_and_line_ends_are_any(tmp_path, kind, encoding, mark):
    for number, end in enumerate(["\r\n", "\n", "\r"]):
        path = write(tmp_path / f"{number}.{kind}", TEXTS, mark, encoding, end)
        if kind == "jsonl" and end == "\r":
            continue  # white space of JSON
        assert texts_of(load_documents(path)) == TEXTS


def test_parts_of_a_text_file_are_those_that_python_splits(tmp_path):
    content = "one\n\n\ntwo\nlines\r\n\r\nthree\n\n\n\n\nfour\n"
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    plain = path.read_text()
    lines = [line for line in plain.split("\n") if line]
    paragraphs = [paragraph for paragraph in plain.split("\n\n") if paragraph.strip()]
    for sample_by, texts in (("line", lines), ("paragraph", paragraphs), ("document", [plain])):
        assert texts_of(load_documents(str(path), sample_by=sample_by)) == texts
    with pytest.raises(
        ValueError, match="`sample_by` must be one of line, paragraph, document, got 'word'"
    ):
        load_documents(str(path), sample_by="word")


def test_random_texts_survive_every_kind_of_file(tmp_path):
    rng = random.Random(0)
    letters = [
        "a",
        "é",
        "я",
        "🙂",
        '"',
        "'",
        ",",
        ";",
        "\t",
        "|",
        "\\",
        " ",
        "\u2028",
        "\x1c",
        "\x85",
        "-",
        "0",
    ]
    texts = ["x" + "".join(rng.choices(letters, k=rng.randint(0, 12))) for _ in range(2_500)]
    for kind in KINDS:
        assert texts_of(load_documents(write(tmp_path / f"a.{kind}", texts))) == texts


def test_a_book_is_one_field(tmp_path):
    book = "word, " * 100_000
    assert load_documents(write(tmp_path / "a.csv", [book]))["text"][:] == [book]


def test_numbers_dates_and_truth_values_are_texts_as_they_are_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 1.50}\n{"text": 7e1}\n{"text": true}\n')
    assert load_documents(str(path))["text"][:] == ["1.50", "7e1", "true"]
    table = pyarrow.table({"text": pyarrow.array([1, 20], pyarrow.date32())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert load_documents(str(tmp_path / "a.parquet"))["text"][:] == ["1970-01-02", "1970-01-21"]


@pytest.mark.parametrize("name", SPECIAL_NAMES)
def test_the_file_that_is_named_is_the_file_that_is_read(tmp_path, name):
    # Neighbours that a pattern of this name would find
    for neighbour in ("notes1", "data v", "aXb", "whats", "a", "b", "file", "100"):
        write(tmp_path / f"{neighbour}.txt", ["WRONG"])
    for kind in ("txt", "parquet"):
        assert load_documents(write(tmp_path / f"{name}.{kind}", ["right"]))["text"][:] == ["right"]
    folder = tmp_path / name
    folder.mkdir()
    write(folder / "a.txt", ["right"])
    assert load_documents(str(folder))["text"][:] == ["right"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
def test_a_delimiter_is_known_by_the_columns_that_it_gives(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerows(
            [["label", "text"], *[[number, text] for number, text in enumerate(MULTILINE)]]
        )
    assert load_documents(str(path))["text"][:] == MULTILINE


def test_columns_that_are_not_asked_for_may_be_anything(tmp_path):
    rows = [{"text": "first", "more": 1}, {"text": "second", "more": {"a": [1]}, "other": None}]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
    assert load_documents(str(tmp_path))["text"][:] == ["first", "second"]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.jsonl").unlink()
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([row]), tmp_path / f"{number}.parquet"
        )
    assert load_documents(str(tmp_path))["text"][:] == ["first", "second"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "corpus"])
def test_a_column_may_have_the_name_of_another_role(tmp_path, kind):
    columns = {"text": ["t"], "summary": ["s"], "label": [1], "mood": [0], "source": ["q"]}
    source = str(tmp_path / f"a.{kind}")
    if kind == "corpus":
        register_corpora({source: lambda: Dataset.from_dict(columns)})
    elif kind == "csv":
        Dataset.from_dict(columns).to_csv(source)
    else:
        Dataset.from_dict(columns).to_json(source)
    swapped = load_documents(source, "summary", label_column="mood", source_column="text")
    assert swapped[:] == {"text": ["s"], "label": [0], "source": ["t"]}
    assert load_documents(source, "text", source_column="text")[:] == {
        "text": ["t"],
        "source": ["t"],
    }
    CORPORA.pop(source, None)


# What is left out, and what is refused


def test_rows_that_lack_something_are_left_out_and_counted(tmp_path, caplog):
    rows = [
        {"text": "fine", "label": 1, "source": "s"},
        {"text": None, "label": 1, "source": "s"},
        {"text": " ", "label": 1, "source": "s"},
        {"text": "a", "label": None, "source": "s"},
        {"text": "b", "label": 0, "source": None},
        {"text": "c", "label": float("nan"), "source": "s"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    counts = "left out 5 of 6 rows: 1 with a null text, 1 with a blank text, 2 without a label, 1 with a null source."
    for kind in ("jsonl", "parquet"):
        for streaming in (False, True):
            caplog.clear()
            options = {"label_column": "label", "source_column": "source", "streaming": streaming}
            documents = load_documents(str(tmp_path / f"a.{kind}"), **options)
            assert list(documents) == [{"text": "fine", "label": 1, "source": "s"}]
            assert [record.getMessage() for record in caplog.records] == [
                f"`{tmp_path / f'a.{kind}'}`: {counts}"
            ]
    caplog.clear()
    assert (
        len(load_documents(write(tmp_path / "b.csv", TEXTS))) == len(TEXTS) and not caplog.records
    )


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.csv",
            "text,label\nfine,0\na, b,0\n",
            r"a\.csv, line 3: 3 fields between ',', but 2 columns",
        ),
        ("a.csv", 'text,label\n"two\nlines",0\nalone\n', r"a\.csv, line 4: 1 fields between ','"),
        (
            "a.csv",
            'text,label\nfine,0\n"open,0\nfine,1\n',
            r"a\.csv, line 3: a quote that is not closed",
        ),
        (
            "a.csv",
            'text,label\n"so" it was,0\n',
            r"a\.csv, line 2: a quote that is not closed, or stands within",
        ),
        (
            "a.csv",
            "words;label\na;b\n",
            r"a\.csv, line 1: no column 'text'; it has \['words', 'label'\]",
        ),
        ("a.csv", "text,text\na,b\n", r"a\.csv, line 1: the column 'text' is there twice"),
        ("a.csv", "text\n\n\n", r"a\.csv, line 1: the file holds no text"),
        ("a.tsv", "text\tlabel\na\tb\tc\n", r"a\.tsv, line 2: 3 fields between '\\t'"),
        (
            "a.jsonl",
            '{"text": "fine"}\n\n{"text": "a \\ud83d b"}\n',
            r"line 3: `text` must be valid Unicode",
        ),
        (
            "a.json",
            '[{"text": "fine"},\n\n {"text": "\\ud83d"}]',
            r"line 3: `text` must be valid Unicode",
        ),
        (
            "a.json",
            '[{"text": "fine"},\n {"word": "a"}]',
            r"line 2: expected an object with \['text'\]",
        ),
        ("a.json", '[{"text": "fine"}\n {"text": "a"}]', r"line 2: not JSON"),
        ("a.json", '[{"text": "fine"},\n {"text": a}]', r"line 2: not JSON"),
        ("a.json", "[]", r"a\.json, line 1: the file holds no text"),
        (
            "a.jsonl",
            '{"text": [{"role": "user", "content": "Hi"}]}',
            r"line 1: `text` .* got a list of messages",
        ),
        (
            "a.jsonl",
            '{"text": {"en": "Hi"}}',
            r"line 1: `text` must hold a text, got \"{'en': 'Hi'}\"",
        ),
        ("a.jsonl", '{"text": null}\n', r"a\.jsonl, line 1: the file holds no text"),
        (
            "a.txt",
            "Привет\n".encode("cp1251"),
            r"a\.txt, line 1: not UTF-8 .*iconv -f cp1251 -t utf-8",
        ),
        (
            "a.txt",
            "fine\nПривет\n".encode("utf-16-le"),
            r"a\.txt, line 1: no text in UTF-8.*iconv -f utf-16le",
        ),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\0\n\0b", r"a\.txt, line 2: not UTF-16"),
        ("a.parquet", "no table", r"a\.parquet: not Parquet"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for streaming in (False, True):
        with pytest.raises(ValueError, match=message):
            load_documents(str(tmp_path / name), streaming=streaming)


def test_half_of_a_character_is_no_label_and_matters_in_no_other_column(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": "\\ud83d"}\n')
    assert load_documents(str(path))["text"][:] == ["a"]
    with pytest.raises(ValueError, match="line 1: `label` must be valid Unicode"):
        load_documents(str(path), label_column="label")


def test_tags_are_words_or_numbers_and_words_are_as_they_stand(tmp_path):
    rows = [{"words": ["In", 1990, "NA"], "tags": [2, 0, 10]}, {"words": [], "tags": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_tagged(str(tmp_path / "a.jsonl"), "words", "tags")
    assert found[:] == {"words": [["In", "1990", "NA"]], "tags": [[2, 0, 10]]}
    for words in ("In 1990", [None], [["In"]]):
        (tmp_path / "b.jsonl").write_text(json.dumps({"words": words, "tags": [1]}))
        with pytest.raises(
            ValueError, match=r"b\.jsonl, line 1: `words` must hold a list of words"
        ):
            load_tagged(str(tmp_path / "b.jsonl"), "words", "tags")


def test_names_that_stand_for_nothing_are_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="`dataset` 'imdbb' is no file or folder here, .*from the Hub"
    ):
        load_documents("imdbb")
    path = write(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(ValueError, match=r"line 1: expected an object with \['text', 'mood'\]"):
        load_documents(path, label_column="mood")
    register_corpora({"two_texts": lambda: Dataset.from_dict({"text": ["a", "b"]})})
    with pytest.raises(ValueError, match=r"`two_texts` has no column 'mood'; it has \['text'\]"):
        load_documents("two_texts", label_column="mood")
    with pytest.raises(
        ValueError, match="`split` must be train, all that 'two_texts' has, got 'test'"
    ):
        load_documents("two_texts", split="test")
    del CORPORA["two_texts"]


@pytest.mark.parametrize("stream", [False, True])
def test_other_data_sets_are_read_by_the_same_rules(stream, caplog):
    def load(columns, **options):
        documents = Dataset.from_dict(columns)
        register_corpora(
            {"other": lambda: documents.to_iterable_dataset() if stream else documents}
        )
        return load_documents("other", **options)

    columns = {
        "text": ["a", None, "b", " ", "c"],
        "mood": [1.0, 0.0, 0.0, 1.0, None],
        "more": [[1]] * 5,
    }
    labelled = load(columns, label_column="mood")
    assert list(labelled) == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    assert ("rows with a null text are left out" if stream else "1 with a null text") in caplog.text
    assert texts_of(load({"text": [7, 10]})) == ["7", "10"]
    with pytest.raises(ValueError, match="`other`, row 2: a label must be a whole number"):
        list(load({"text": ["a", "b"], "mood": [1, -1]}, label_column="mood"))
    with pytest.raises(ValueError, match="`other`: the column 'text' must hold texts, got"):
        list(load({"text": [[{"role": "user", "content": "Hi"}]]}))
    del CORPORA["other"]


# Splits


@pytest.mark.parametrize(
    "names",
    [
        ["train.jsonl", "validation.jsonl", "test.jsonl"],
        ["my-train.jsonl", "my-dev_0.jsonl", "my-dev_1.jsonl", "my-test.jsonl"],
        ["train/a.jsonl", "train/more/test.jsonl", "valid/a.jsonl", "test/train.jsonl"],
        ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
        ["contest.jsonl", "latest/a.jsonl"],
        ["training.jsonl", "eval.jsonl"],
    ],
)
def test_a_folder_has_the_splits_that_datasets_finds(tmp_path, names):
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "in" / name, [f"{name} {number}" for number in range(5)])
    expected = load_dataset(
        "json", data_dir=str(tmp_path / "in"), cache_dir=str(tmp_path / "cache")
    )
    for split, rows in expected.items():
        assert sorted(texts_of(load_documents(str(tmp_path / "in"), split=str(split)))) == sorted(
            rows["text"]
        )
    listed = ", ".join(map(str, expected))
    for split in {"train", "validation", "test", "tets"} - {*expected}:
        with pytest.raises(ValueError, match=f"`split` must be one of {listed}, .* got '{split}'"):
            load_documents(str(tmp_path / "in"), split=split)


def test_training_sees_no_other_split_and_holds_out_the_validation_split(tmp_path):
    def kinds(texts):
        return {text.split()[0] for text in texts}

    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.csv", [f"{split} {number}" for number in range(30)])

    def load(split, source=tmp_path, **options):
        return load_documents(str(source), split=split, **options)

    for streaming in (False, True):
        train, validation = load_train_and_validation(
            lambda split, streaming=streaming: load(split, streaming=streaming), str(tmp_path)
        )
        assert (kinds(texts_of(train)), kinds(validation["text"])) == ({"train"}, {"dev"})
        assert len(texts_of(train)) == len(validation) == 30

    # A share of the texts to train on, of those that are not held out anyway
    for streaming, split in ((False, "train"), (True, "train"), (False, "test")):
        options = {"split": split, "max_train_samples": 7}
        whole, _ = load_train_and_validation(load, str(tmp_path), split)
        train, validation = load_train_and_validation(
            lambda split, streaming=streaming: load(split, streaming=streaming),
            str(tmp_path),
            **options,
        )
        assert texts_of(train) == texts_of(whole)[:7]
        assert len(validation) == (30 if split == "train" else 2)

    # One file is what it is, whatever stands beside it.
    file = tmp_path / "test.csv"
    train, validation = load_train_and_validation(
        lambda split: load(split, file), str(file), "test"
    )
    assert kinds(train["text"]) == kinds(validation["text"]) == {"test"}
    (tmp_path / "dev.csv").unlink()
    train, validation = load_train_and_validation(load, str(tmp_path))
    assert kinds(train["text"]) == kinds(validation["text"]) == {"train"}


def test_files_of_no_split_are_named_and_hidden_ones_are_none(tmp_path, caplog):
    for name in (
        "train.txt",
        "test.txt",
        "labels.txt",
        ".cache/train.txt",
        "__MACOSX/train.txt",
        "._train.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [name])
    assert load_documents(str(tmp_path))["text"][:] == ["train.txt"]
    assert "left out, since their names are of none of them: labels.txt" in caplog.text
    write(tmp_path / "train_and_test.txt", ["which?"])
    with pytest.raises(
        ValueError, match=r"must be of one split, but its name says \['test', 'train'\]"
    ):
        load_documents(str(tmp_path))


# Labels


def labelled_file(tmp_path, labels, kind="jsonl"):
    path = tmp_path / f"labels.{kind}"
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "csv":
        cells = ["" if label is None else label for label in labels]
        path.write_text(
            "text,label\n" + "".join(f"text {n},{cell}\n" for n, cell in enumerate(cells))
        )
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "labels, numbers, names",
    [
        ([1, 0, 2, 1], [1, 0, 2, 1], None),
        ([1.0, 0.0, 2.0], [1, 0, 2], None),
        ([1, 0, None, 2], [1, 0, 2], None),
        (["sad", "happy", "sad"], [1, 0, 1], ["happy", "sad"]),
        (["sad", None, "NA"], [1, 0], ["NA", "sad"]),
        ([True, False, True], [1, 0, 1], "truth"),
        (["1", "0"], [1, 0], None),
    ],
)
def test_labels_are_numbers_or_words_with_numbers(
    tmp_path, kind, streaming, labels, numbers, names
):
    path = labelled_file(tmp_path, labels, kind)
    documents, found = number_labels(
        load_documents(path, label_column="label", streaming=streaming)
    )
    assert [row["label"] for row in documents] == numbers
    if names == "truth":
        assert [name.lower() for name in found] == ["false", "true"]
    else:
        assert found == names


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1, -1], r"{third}: a label must be a whole number from 0, or a word, got -1"),
        ([0.0, 1.0, 0.5], r"{third}: a label must be a whole number from 0, or a word, got 0.5"),
        (
            ["0", "1", "N/A"],
            r"must be all numbers or all words, got 0 \(.*\) and 'N/A' \(.*{third}\)",
        ),
    ],
)
def test_labels_of_no_class_are_named_with_their_line(tmp_path, kind, labels, message):
    third = {"csv": "line 4", "jsonl": "line 3", "parquet": "row 3"}[kind]
    path = labelled_file(tmp_path, labels, kind)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=message.format(third=third)):
            load_documents(path, label_column="label", streaming=streaming)


def numbered(labels, names=None):
    texts = [str(number) for number in range(len(labels))]
    return number_labels(Dataset.from_dict({"text": texts, "label": labels}), names)


def test_only_classes_with_texts_are_learned(caplog):
    def classes(labels, held_out=(), names=None, **options):
        train, found = numbered(labels, names)
        validation, _ = numbered(list(held_out) or labels[:1], found)
        return check_classes(train, validation, found, **options), found

    assert classes([2, 0, 1]) == (3, None)
    assert classes(["b", "a"], ["a"]) == (2, ["a", "b"])
    with pytest.raises(ValueError, match=r"got 1, 2, 4: no text has 0, 3. .*--label_names 1 2 4"):
        classes([1, 2, 4])
    assert classes([1, 2, 4], names=["1", "2", "4"]) == (3, ["1", "2", "4"])
    with pytest.raises(ValueError, match="`label_column` holds 2 in held-out texts only"):
        classes([0, 1], [2])
    with pytest.raises(ValueError, match=r"must be among the names \['a', 'b'\], got 'c'"):
        classes(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"got 0, 1850, 1999: no text has 1, 2, 3, .*, 20\. Make"):
        classes([1999, 0, 1850])
    assert classes([1, 2], known_classes=True) == (3, None) and not caplog.records
    assert classes(["b"], names=["a", "b"])[0] == 2
    assert "No text has the labels 'a': nothing is learned of them" in caplog.text


def test_a_data_set_that_names_its_numbers_keeps_both_unless_a_model_has_others():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    register_corpora(
        {
            "named": lambda: Dataset.from_dict(
                {"text": [*"abc"], "label": [0, 1, -1]}, features=features
            )
        }
    )
    documents = load_documents("named", label_column="label")
    assert documents["label"][:] == [0, 1]
    for names, wanted in (
        (None, ([0, 1], ["z", "a"])),
        (["a", "z"], ([1, 0], ["a", "z"])),
        ([], ([0, 1], [])),
    ):
        found, found_names = number_labels(documents, names)
        assert (found["label"][:], found_names) == wanted
    del CORPORA["named"]


# The cache


def cached_files():
    folder = local_files.Path(HF_DATASETS_CACHE, "text_diffusers")
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def test_what_was_read_is_kept_until_its_content_changes(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", TEXTS)

    def rows():
        return load_documents(path).map(lambda row: {"size": len(row["text"])})["text"][:]

    assert rows() == TEXTS
    before = cached_files()
    with monkeypatch.context() as patch:
        patch.setattr(local_files, "read_files", None)
        assert rows() == TEXTS
    assert cached_files() == before

    # Of the same size, and written at once
    write(tmp_path / "a.csv", [*TEXTS[:-1], TEXTS[-1][::-1]])
    assert rows() == [*TEXTS[:-1], TEXTS[-1][::-1]]

    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    before = cached_files()
    with pytest.raises(ValueError, match="line 2: not JSON"):
        load_documents(str(tmp_path / "bad.jsonl"))
    assert cached_files() == before


def test_a_cache_that_cannot_be_written_to_costs_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(local_files, "HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        documents = load_documents(write(tmp_path / "a.txt", TEXTS))
        assert documents.map(lambda row: {"size": len(row["text"])})["text"][:] == TEXTS
    assert "cannot be written to" in caplog.text
