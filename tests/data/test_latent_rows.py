"""Rows for two tokenizers: the encoder reads the text that the decoder writes."""

import pytest
from datasets import Dataset
from support.language_models import word_tokenizer

from text_diffusers.data.latent_rows import (
    conversation_pairs,
    room_for_pairs,
    source_prompt_ids,
    with_encoder_columns,
    with_source_columns,
    with_sources_apart,
)
from text_diffusers.data.rows import tokenize


def test_both_tokenizers_have_the_same_text_also_where_it_is_cut(tokenizer):
    texts = [
        "the cat sat on the mat",
        "the dog and the cat and the dog and the cat and the dog",
        "a",
    ]
    rows = tokenize(Dataset.from_dict({"text": texts}), tokenizer, length=12, packing=False)
    other = word_tokenizer()
    # Words that the other tokenizer has one by one, and all others as one unknown word
    both = with_encoder_columns(rows, tokenizer, tokenizer, length=8)
    for row in both:
        real = row["input_ids"][: sum(row["attention_mask"])]
        text = tokenizer.decode(real, skip_special_tokens=True)
        read = row["encoder_ids"][: sum(row["encoder_mask"])]
        assert len(row["encoder_ids"]) == len(row["encoder_mask"]) == 8
        assert text.startswith(tokenizer.decode(read[:-1], skip_special_tokens=True))
        assert set(row["encoder_ids"][len(read) :]) <= {tokenizer.pad_token_id}
    assert both.remove_columns(["encoder_ids", "encoder_mask"])[:] == rows[:]

    short = with_encoder_columns(rows, tokenizer, other, length=30)
    lengths = [sum(mask) for mask in short["encoder_mask"]]
    cut_text = tokenizer.decode(rows[1]["input_ids"], skip_special_tokens=True)
    assert lengths == [6, len(cut_text.split()), 1] and cut_text != texts[1]


PAIRS = {
    "source": ["the dog", "", "a cat and the dog and the mat and the cat on the mat", "the end"],
    "text": ["sat on the mat", "the cat", "a dog", "the dog and the cat and the dog and the cat"],
}


def pair_rows(tokenizer, length=14, source_length=9):
    room = room_for_pairs(length, source_length)
    rows = tokenize(Dataset.from_dict(PAIRS), tokenizer, length=room, packing=False)
    return with_sources_apart(rows, tokenizer, length, source_length)


def test_a_row_is_the_prompt_of_its_source_and_the_text_as_in_a_row_without_one(tokenizer):
    rows = pair_rows(tokenizer)
    texts = Dataset.from_dict({"text": PAIRS["text"]})
    alone = tokenize(texts, tokenizer, length=14, packing=False)
    prompts = source_prompt_ids(tokenizer, PAIRS["source"], max_length=9)
    for row, text, prompt in zip(rows, alone, prompts, strict=True):
        given = sum(row["given"])
        real = row["input_ids"][: sum(row["attention_mask"])]
        assert row["given"] == [True] * given + [False] * (len(row["given"]) - given)
        assert real[:given] == prompt and len(row["input_ids"]) == 9 + 14 - 1
        # Without a source, the start token alone is given; a text that is cut has no end in both.
        assert real[given:] == text["input_ids"][1 : sum(text["attention_mask"])]
    assert [len(prompt) for prompt in prompts[1:3]] == [2, 9]
    assert tokenizer.decode(prompts[2]).endswith("on the mat[EOS]")


def test_the_encoder_reads_the_text_alone_and_sources_have_columns_of_their_own(tokenizer):
    rows = pair_rows(tokenizer)
    other = word_tokenizer()
    both = with_encoder_columns(rows, tokenizer, tokenizer, length=14)
    both = with_source_columns(both, tokenizer, tokenizer, length=9)
    for row, text, source in zip(both, PAIRS["text"], PAIRS["source"], strict=True):
        read = row["encoder_ids"][: sum(row["encoder_mask"])]
        assert text.startswith(tokenizer.decode(read, skip_special_tokens=True)) and read
        told = row["source_ids"][: sum(row["source_mask"])]
        assert source.endswith(tokenizer.decode(told, skip_special_tokens=True).strip())
        assert len(row["source_ids"]) == len(row["source_mask"]) == 9
    # A text without a source is told nothing.
    assert [sum(mask) for mask in both["source_mask"]][1] == 0

    # Of a source that is too long for the encoder, the last words stay, behind the token that it begins with.
    narrow = with_source_columns(rows, tokenizer, other, length=4)
    whole = with_source_columns(rows, tokenizer, other, length=40)
    for short, full in zip(narrow, whole, strict=True):
        tokens = full["source_ids"][: sum(full["source_mask"])]
        kept = short["source_ids"][: sum(short["source_mask"])]
        assert kept == (tokens if len(tokens) <= 4 else [tokens[0], *tokens[-3:]])


def test_each_answer_of_a_conversation_is_a_text_with_the_turns_before_it():
    turns = [("user", "A"), ("assistant", "b"), ("user", "C"), ("assistant", "d"), ("user", "E")]
    messages = [
        {"role": role, "content": content, "learned": role == "assistant"}
        for role, content in turns
    ]
    pairs = conversation_pairs(Dataset.from_dict({"messages": [messages, messages[:2]]}), 2)
    assert pairs["text"][:] == ["b", "d", "b"] and pairs["source"][:] == ["A", "b\nC", "A"]


def test_lengths_that_leave_no_room_are_refused(tokenizer):
    rows = pair_rows(tokenizer)
    with pytest.raises(ValueError, match="`source_length` must be .* at least 2, got 1"):
        with_sources_apart(rows, tokenizer, 14, 1)
    with pytest.raises(ValueError, match="`max_length` must be .* at least 2, got 0"):
        source_prompt_ids(tokenizer, ["the cat"], max_length=0)
    with pytest.raises(ValueError, match="`conversations` must be ones with an answer"):
        conversation_pairs(Dataset.from_dict({"messages": [[]]}), 2)
