"""Laws of the ids that begin and end a text."""

from types import SimpleNamespace

import pytest

from text_diffusers.common.token_ids import end_ids, never_written, start_ids

NAMES = ("bos", "eos", "cls", "sep", "mask", "pad")


def tokenizer(**ids):
    return SimpleNamespace(**{f"{name}_token_id": ids.get(name) for name in NAMES})


@pytest.mark.parametrize(
    ("ids", "start", "end"),
    [
        ({}, [], []),
        ({"bos": 1, "eos": 2}, [1], [2]),
        ({"cls": 3, "sep": 4}, [3], [4]),
        ({"bos": 1, "eos": 2, "cls": 3, "sep": 4}, [1], [2]),
        ({"eos": 0}, [], [0]),
    ],
)
def test_texts_begin_and_end_with_their_own_tokens_or_those_of_bert(ids, start, end):
    assert start_ids(tokenizer(**ids)) == start
    assert end_ids(tokenizer(**ids)) == end


def test_masks_and_padding_are_never_written_but_padding_that_ends_a_text_is():
    assert never_written(tokenizer(mask=5, pad=0, eos=2)) == [0, 5]
    assert never_written(tokenizer(mask=5, pad=2, eos=2)) == [5]
    assert never_written(tokenizer()) == []
