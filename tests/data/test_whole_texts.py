"""Laws of rows of whole texts: nothing is lost, labels never mix, and a row begins with a text."""

import pytest
from datasets import Dataset

from text_diffusers.data.whole_texts import label_beginnings, tokenize_whole_texts
from text_diffusers.pipelines.calls.labels import label_frames

TEXTS = [
    "the cat sat on the mat",
    "a bird sang",
    "she was late for the train and ran all the way " * 4,
    "the dog",
]
LABELS = [0, 1, 0, 1]
PROMPTS = ["cat", "the bird"]


def test_each_label_keeps_its_texts_in_their_order(tokenizer):
    documents = Dataset.from_dict({"text": TEXTS * 5, "label": LABELS * 5})
    rows = tokenize_whole_texts(documents, tokenizer, length=40, label_prompts=PROMPTS)
    end = tokenizer.eos_token_id
    beginnings = label_beginnings(tokenizer, PROMPTS)
    streams = {0: [], 1: []}
    for row in rows:
        ids = [
            token
            for token, real in zip(row["input_ids"], row["attention_mask"], strict=True)
            if real
        ]
        (label,) = (
            index for index, ids_of in enumerate(beginnings) if ids[: len(ids_of)] == ids_of
        )
        size = len(beginnings[label])
        assert row["given"] == [True] * size + [False] * (40 - size)
        streams[label] += ids[size:]

    for label, stream in streams.items():
        expected = []
        for text, text_label in zip(TEXTS * 5, LABELS * 5, strict=True):
            if text_label == label:
                expected += [*tokenizer(text, add_special_tokens=False).input_ids, end]
        assert stream == expected


def test_texts_without_a_label_are_learned_behind_what_they_are_written_behind(tokenizer):
    rows = tokenize_whole_texts(
        Dataset.from_dict({"text": TEXTS}), tokenizer, length=40, label_prompts=PROMPTS
    )
    (frame,) = label_frames(tokenizer, PROMPTS, [len(PROMPTS)])
    assert frame.count(tokenizer.mask_token_id) == len(frame) - 2 > 0
    assert all(row["input_ids"][: len(frame)] == frame for row in rows)


def test_rows_begin_with_a_text_unless_it_is_longer_than_they_are(tokenizer):
    short = [text for text in TEXTS if len(text) < 40]
    documents = Dataset.from_dict({"text": short * 9})
    rows = tokenize_whole_texts(documents, tokenizer, length=24)
    for row in rows:
        ids = [
            token
            for token, real in zip(row["input_ids"], row["attention_mask"], strict=True)
            if real
        ]
        texts = tokenizer.decode(ids).split("[EOS]")[1:-1]
        assert texts and all(text in short for text in texts)

    # In training the text that comes next fills a row up.
    filled = tokenize_whole_texts(documents, tokenizer, length=24, fills_rows=True)
    assert len(filled) == len(rows)
    for row, full in zip(rows, filled, strict=True):
        size = sum(row["attention_mask"])
        assert full["input_ids"][:size] == row["input_ids"][:size]
    assert all(sum(row["attention_mask"]) == 24 for row in filled.select(range(len(filled) - 1)))

    # One text a row, which is cut where it does not fit
    alone = tokenize_whole_texts(Dataset.from_dict({"text": TEXTS}), tokenizer, 24, packing=False)
    assert len(alone) == len(TEXTS)
    assert sum(alone[2]["attention_mask"]) == 24


def test_labels_that_leave_no_room_are_refused(tokenizer):
    documents = Dataset.from_dict({"text": TEXTS, "label": LABELS})
    with pytest.raises(ValueError, match="`label_prompts` must leave half of the 12 tokens"):
        tokenize_whole_texts(
            documents, tokenizer, 12, label_prompts=["the cat sat on the mat", "a"]
        )
    with pytest.raises(ValueError, match="`label_prompts` must have a token each, got ''"):
        tokenize_whole_texts(documents, tokenizer, 12, label_prompts=["", "a"])
