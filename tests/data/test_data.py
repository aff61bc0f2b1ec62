"""Laws of the data: every token is kept, orders are pure functions of (seed, step), errors name file and line."""

import json

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from corpora.chat import CONTACT, PROFANITY
from datasets import Dataset
from scipy.stats import chisquare

from text_diffusers.data import rows as rows_module
from text_diffusers.data.digest import rows_digest
from text_diffusers.data.rows import CroppedRows, ShuffledRows, encode_texts, tokenize
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.training.text_options import TextTrainingConfig, row_order

STRANGE = [
    "Привет, мир! Ёжик.",
    "emoji 🙂 and tabs\t\n",
    "[MASK] is not a token here, nor is [EOS]",
    "  spaces  ",
]


def documents(texts):
    return Dataset.from_dict({"text": list(texts)})


# Sources


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": text, "label": i % 2} for i, text in enumerate(SENTENCES)]
    write(tmp_path, "a.txt", "\n".join(SENTENCES) + "\n\n")
    write(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    write(
        tmp_path,
        "a.csv",
        "label,text\n" + "\n".join(f'{row["label"]},"{row["text"]}"' for row in rows),
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for kind in ("txt", "jsonl", "csv", "parquet"):
        loaded = load_documents(str(tmp_path / f"a.{kind}"))
        assert loaded["text"][:] == SENTENCES and loaded.column_names == ["text"]
    labelled = load_documents(str(tmp_path / "a.jsonl"), label_column="label")
    assert labelled["label"][:] == [0, 1, 0, 1]


def test_a_folder_is_read_in_order_and_a_stream_gives_the_same(tmp_path):
    write(tmp_path, "b.txt", "third\n")
    write(tmp_path, "a.txt", "first\nsecond\n")
    assert load_documents(str(tmp_path))["text"][:] == ["first", "second", "third"]
    assert [row["text"] for row in load_documents(str(tmp_path), streaming=True)] == [
        "first",
        "second",
        "third",
    ]
    whole = load_documents(str(tmp_path / "a.txt"), sample_by="document")
    assert whole["text"][:] == ["first\nsecond\n"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.txt",
            b"fine\nbad \xff byte\n",
            r"a\.txt, line 2: not UTF-8 \(byte 0xff at position 5\)",
        ),
        ("a.txt", b"", r"a\.txt, line 1: the file holds no text"),
        ("a.txt", b"\n \n\n", r"a\.txt, line 3: the file holds no text"),
        ("a.csv", b"words\nhello\n", r"a\.csv, line 1: no column 'text'; it has \['words'\]"),
        ("a.csv", b"text\n", r"a\.csv, line 1: the file holds no text"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        (
            "a.jsonl",
            b'{"text": "fine"}\n{"word": "x"}\n',
            r"a\.jsonl, line 2: expected an object with \['text'\]",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_documents(str(write(tmp_path, name, content)))


def test_missing_and_mixed_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt` does not exist"):
        load_documents(str(tmp_path / "nowhere.txt"))
    with pytest.raises(FileNotFoundError, match="holds no file that ends in .txt"):
        load_documents(str(tmp_path))
    write(tmp_path, "a.txt", "x")
    write(tmp_path, "b.csv", "text\nx")
    with pytest.raises(ValueError, match="mixes .csv, .txt"):
        load_documents(str(tmp_path))


@pytest.mark.slow
def test_chitchat_leaves_out_contact_data_and_profanity():
    pytest.importorskip("chitchat_dataset")
    texts = load_documents("chitchat")["text"][:]
    assert 130_000 < len(texts) < 140_000 and texts[1].startswith("whats up")
    assert not any(CONTACT.search(text) and "@" in text for text in texts)
    assert not any(PROFANITY.search(text) for text in texts)
    assert CONTACT.search("write to me@mail.com") and CONTACT.search("call 555-123-4567")
    assert not CONTACT.search("I was born in 1990 and have 2 cats") and not PROFANITY.search(
        "a classic cocktail, Scunthorpe"
    )


# Tokenizer


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    (ids,) = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.vocab_size and tokenizer.eos_token_id not in ids


def test_mask_takes_in_its_space_and_special_tokens_have_the_last_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        mask = one.mask_token_id
        assert (
            one("the [MASK] [MASK] sat")["input_ids"]
            == one("the")["input_ids"] + [mask, mask] + one(" sat")["input_ids"]
        )
        assert sorted([one.pad_token_id, one.mask_token_id]) == [len(one) - 2, len(one) - 1]
        assert one.bos_token_id == one.eos_token_id == 0


def test_a_vocabulary_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="`vocab_size` must be between 300 and 65536, got 10"):
        train_tokenizer(SENTENCES, 10)
    with pytest.raises(ValueError, match="`vocab_size` must be at most"):
        train_tokenizer(SENTENCES, 5_000)


# Rows


def test_packing_keeps_every_token_in_order(tokenizer):
    rows = tokenize(documents(STRANGE * 5), tokenizer, length=16)
    real = [
        t
        for row in rows
        for t, keep in zip(row["input_ids"], row["attention_mask"], strict=True)
        if keep
    ]
    want = [
        t for ids in encode_texts(tokenizer, STRANGE * 5) for t in (*ids, tokenizer.eos_token_id)
    ]
    assert real == want
    assert all(len(row["input_ids"]) == 16 for row in rows)
    assert all(all(row["attention_mask"]) for row in rows.select(range(len(rows) - 1)))


def test_padding_holds_one_document_a_row_and_its_label(tokenizer):
    source = Dataset.from_dict({"text": STRANGE, "label": [3, 1, 2, 0]})
    rows = tokenize(source, tokenizer, length=24, packing=False)
    assert rows["label"][:] == [3, 1, 2, 0]
    eos = tokenizer.eos_token_id
    for row, ids in zip(rows, encode_texts(tokenizer, STRANGE), strict=True):
        kept = [t for t, keep in zip(row["input_ids"], row["attention_mask"], strict=True) if keep]
        assert kept == [eos, *ids, eos][:24]
    with pytest.raises(ValueError, match="`packing` must be off for labelled documents"):
        tokenize(source, tokenizer, length=24)


def test_the_last_documents_are_held_out():
    train, validation = split_documents(documents(map(str, range(100))), 0.1)
    assert train["text"][:] == list(map(str, range(90))) and validation["text"][:] == list(
        map(str, range(90, 100))
    )
    stream = documents(map(str, range(30))).to_iterable_dataset()
    train, validation = split_documents(stream, validation_documents=5)
    assert len(validation) == 5 and next(iter(train))["text"] == "5"
    with pytest.raises(ValueError, match="at least 2 texts"):
        split_documents(documents(["one"]))
    with pytest.raises(ValueError, match="`validation_fraction`"):
        split_documents(documents(["one", "two"]), 1.5)


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_are_a_pure_function_of_seed_and_step(tokenizer, streaming):
    source = documents(SENTENCES * 20)
    rows = tokenize(source.to_iterable_dataset() if streaming else source, tokenizer, length=16)
    straight = ShuffledRows(rows, rows_per_step=6, seed=1)
    batches = [straight.batch(step)["input_ids"] for step in range(40)]
    resumed = ShuffledRows(rows, rows_per_step=6, seed=1)
    assert torch.equal(resumed.batch(25)["input_ids"], batches[25])
    assert torch.equal(resumed.batch(3)["input_ids"], batches[3])
    assert torch.equal(resumed.batch(4, [1, 5])["input_ids"], batches[4][[1, 5]])
    assert not torch.equal(
        ShuffledRows(rows, rows_per_step=6, seed=2).batch(0)["input_ids"], batches[0]
    )


def test_an_epoch_visits_every_row_once(tokenizer):
    rows = tokenize(
        documents(f"{i} {text}" for i, text in enumerate(SENTENCES * 5)), tokenizer, length=16
    )
    count = len(rows)
    order = ShuffledRows(rows, rows_per_step=1, seed=0)
    for epoch in (0, 1):
        seen = [
            tuple(order.batch(epoch * count + i)["input_ids"][0].tolist()) for i in range(count)
        ]
        assert sorted(seen) == sorted(map(tuple, rows["input_ids"][:]))


# Parts of rows


def numbered_rows(count=30, length=16, ratio=4):
    """Rows whose tokens tell the row and the place, and one of codes, for `ratio` tokens each, that tells the same."""
    places = np.arange(count * length).reshape(count, length)
    columns = {
        "input_ids": places,
        "attention_mask": np.ones_like(places),
        "context_ids": places[:, ::ratio],
    }
    return Dataset.from_dict({name: values.tolist() for name, values in columns.items()})


@pytest.mark.parametrize("streaming", [False, True])
def test_parts_of_rows_are_a_pure_function_of_seed_and_step(streaming):
    rows = numbered_rows()
    rows = rows.to_iterable_dataset() if streaming else rows
    straight = [CroppedRows(rows, 6, seed=1, num_halvings=2).batch(step) for step in range(12)]
    resumed = CroppedRows(rows, 6, seed=1, num_halvings=2)
    for step in (7, 2, 11):
        batch, some = resumed.batch(step), resumed.batch(step, [1, 5])
        for name, column in straight[step].items():
            assert torch.equal(batch[name], column) and torch.equal(some[name], column[[1, 5]])
    other = [
        CroppedRows(rows, 6, seed=2, num_halvings=2).batch(step)["input_ids"].shape
        for step in range(12)
    ]
    assert other != [batch["input_ids"].shape for batch in straight]


def test_parts_are_cut_at_the_same_place_of_all_columns_of_the_rows_of_the_order():
    rows = numbered_rows()
    cropped, whole = CroppedRows(rows, 6, seed=3, num_halvings=2), ShuffledRows(rows, 6, seed=3)
    for step in range(40):
        batch, full = cropped.batch(step), whole.batch(step)
        number, index = cropped.part(step)
        for name, length in (("input_ids", 16), ("attention_mask", 16), ("context_ids", 4)):
            size = length // number
            assert torch.equal(batch[name], full[name][:, index * size : (index + 1) * size])
        assert torch.equal(batch["input_ids"][:, ::4], batch["context_ids"])
    assert torch.equal(
        CroppedRows(rows, 6, seed=3).batch(5)["input_ids"], whole.batch(5)["input_ids"]
    )


def test_each_length_gets_equally_many_tokens_and_each_place_its_share():
    order, steps = CroppedRows(numbered_rows(), 1, num_halvings=3), 6000
    parts = [order.part(step) for step in range(steps)]
    counts = [sum(number == n for number, _ in parts) for n in (1, 2, 4, 8)]
    assert chisquare(counts, steps * np.array([1, 2, 4, 8]) / 15).pvalue > 1e-4
    tokens = np.array(counts) * 16 / np.array([1, 2, 4, 8])
    assert np.ptp(tokens) < 0.25 * tokens.mean()
    for n in (2, 4, 8):
        places = np.bincount([index for number, index in parts if number == n], minlength=n)
        assert len(places) == n and chisquare(places).pvalue > 1e-4


def test_a_row_that_ends_early_shows_its_beginning_and_never_only_padding():
    columns = numbered_rows(4, ratio=8).to_dict()
    columns["attention_mask"][1] = [1] * 5 + [0] * 11
    order = CroppedRows(Dataset.from_dict(columns), 4, num_halvings=2)
    late = [step for step in range(60) if order.part(step) in ((4, 2), (4, 3), (2, 1))]
    assert late
    with pytest.raises(
        ValueError, match=r"up to 4 equal parts; the column 'context_ids' \(4, 2\) cannot be"
    ):
        order.batch(0)
    order = CroppedRows(Dataset.from_dict(columns).remove_columns("context_ids"), 4, num_halvings=2)
    for step in late:
        batch = order.batch(step)
        (row,) = (batch["input_ids"] // 16 == 1).all(dim=1).nonzero()[0]
        number, index = order.part(step)
        assert batch["input_ids"][row, 0] == 16 and batch["attention_mask"][row].sum() == min(
            5, 16 // number
        )
        others = batch["input_ids"][torch.arange(4) != row]
        assert (others[:, 0] % 16 == index * 16 // number).all()


@pytest.mark.parametrize("name", ["label", "given", "prompt_ids", "prompt_mask"])
def test_rows_with_conditions_are_not_cut(name):
    columns = numbered_rows(4).to_dict()
    columns[name] = [0] * 4 if name == "label" else columns["input_ids"]
    with pytest.raises(ValueError, match=f"the column '{name}'"):
        CroppedRows(Dataset.from_dict(columns), 2, num_halvings=1).batch(0)


def test_the_shortest_length_decides_how_rows_are_read(tmp_path):
    rows = numbered_rows()

    def config(**changes):
        return TextTrainingConfig(
            **{"output_dir": str(tmp_path / "run"), "length": 16, "seed": 5} | changes
        )

    assert type(row_order(config(), rows, 3)) is ShuffledRows
    order = row_order(config(min_length=4), rows, 3)
    assert type(order) is CroppedRows and (order.num_halvings, order.rows_per_step, order.seed) == (
        2,
        3,
        5,
    )
    assert row_order(config(min_length=16), rows, 3).num_halvings == 0
    lengths = {order.batch(step)["input_ids"].shape for step in range(30)}
    assert lengths == {(3, 16), (3, 8), (3, 4)}
    for bad in (5, 32, 0):
        with pytest.raises(
            ValueError, match=rf"`min_length` .*`length`=16 halved .* \[16, 8, 4, 2, 1\], got {bad}"
        ):
            config(min_length=bad)
    with pytest.raises(ValueError, match=r"one of \[24, 12, 6, 3\], got 8"):
        config(length=24, min_length=8)
    with pytest.raises(ValueError, match="`min_length` needs `--packing true`"):
        config(min_length=4, packing=False)


# Memory, and what a checkpoint knows the data by


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("as_stream", [False, True])
def test_rows_are_the_same_however_few_texts_the_tokenizer_is_shown(
    tokenizer, monkeypatch, packing, as_stream
):
    texts = [sentence * (1 + place % 5) for place, sentence in enumerate(SENTENCES * 7)]
    data = documents(texts)
    if as_stream:
        data = data.to_iterable_dataset()
    at_once = list(tokenize(data, tokenizer, length=16, packing=packing))
    monkeypatch.setattr(rows_module, "CHARACTERS_AT_ONCE", 100)
    in_parts = list(tokenize(data, tokenizer, length=16, packing=packing))
    assert len(at_once) == len(in_parts) > 20
    for row, other in zip(at_once, in_parts, strict=True):
        assert list(row["input_ids"]) == list(other["input_ids"])


def test_a_digest_is_of_what_rows_hold_and_of_nothing_else(tmp_path):
    columns = {
        "input_ids": [[1, 2], [3, 4], [5, 6]],
        "given": [[True, False]] * 3,
        "label": [0, 1, 2],
    }
    rows = Dataset.from_dict(columns)
    same = [
        Dataset.from_list(list(rows)),
        Dataset.from_dict({name: columns[name] * 2 for name in reversed(columns)}).select(
            [3, 4, 5]
        ),
        rows.to_iterable_dataset(),
    ]
    rows.save_to_disk(str(tmp_path / "rows"))
    same.append(Dataset.load_from_disk(str(tmp_path / "rows")))
    assert {rows_digest(other) for other in same} == {rows_digest(rows)}

    others = [
        rows.select([0, 1]),
        rows.select([1, 0, 2]),
        rows.remove_columns("label"),
        Dataset.from_dict(columns | {"label": [0, 1, 1]}),
        Dataset.from_dict(columns | {"input_ids": [[1, 2, 3], [4], [5, 6]]}),
    ]
    assert len({rows_digest(other) for other in [rows, *others]}) == 6
