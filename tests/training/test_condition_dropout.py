"""Laws of dropped conditions: how often, which rows, and that nothing else changes."""

import numpy as np
import pytest
import torch
from support.oracles import chi_square_passes

from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.rows import one_framed_row_each, one_pair_each, to_tensors, unknown_tokens
from text_diffusers.training.steps.condition_dropout import drop_conditions

SOURCES = ["the cat sat on the mat", "a bird", "", "she was late for the train and ran all the way"]
TEXTS = ["the dog", "sang in the tree while the cat slept", "a bird sang", "the cat was not happy"]
NUM_CLASSES = 3


@pytest.fixture
def pairs(tokenizer):
    """Rows of pairs with labels, and those of the same texts with empty sources."""
    columns = {"source": SOURCES * 500, "text": TEXTS * 500}
    batch = to_tensors(one_pair_each(columns, tokenizer, length=48))
    empty = to_tensors(one_pair_each(columns | {"source": [""] * 2000}, tokenizer, length=48))
    label = {"label": torch.arange(2000) % NUM_CLASSES}
    return batch | label, empty


def generators(count, step=0):
    return row_noise(7, step, count)[1]


def test_labels_and_sources_are_lost_independently_with_the_probability(pairs):
    batch, _ = pairs
    dropped = drop_conditions(batch, generators(2000), 0.3, NUM_CLASSES)
    label = dropped["label"] == NUM_CLASSES
    source = (dropped["given"].sum(dim=1) == 2) & (batch["given"].sum(dim=1) > 2)
    label, source = (values[batch["given"].sum(dim=1) > 2] for values in (label, source))
    counts = np.bincount((2 * label.long() + source.long()).numpy(), minlength=4)
    assert chi_square_passes(counts, np.array([0.49, 0.21, 0.21, 0.09]))
    kept = dropped["label"] < NUM_CLASSES
    assert torch.equal(dropped["label"][kept], batch["label"][kept])


def test_a_row_without_its_source_is_the_row_of_an_empty_source_cut_where_the_full_one_was(
    pairs, tokenizer
):
    batch, empty = pairs
    before = {name: values.clone() for name, values in batch.items()}
    dropped = drop_conditions(batch, generators(2000), 0.5, NUM_CLASSES, tokenizer.pad_token_id)
    assert all(torch.equal(batch[name], before[name]) for name in batch)  # never in place
    lost = dropped["given"].sum(dim=1) == 2
    assert 800 < int(lost.sum()) and 200 < int((~lost).sum())
    assert torch.equal(unknown_tokens(dropped).sum(dim=1), unknown_tokens(batch).sum(dim=1))
    real = dropped["attention_mask"].bool()
    assert torch.equal(dropped["input_ids"][lost][real[lost]], empty["input_ids"][lost][real[lost]])
    assert torch.equal(dropped["given"][lost], empty["given"][lost])
    assert (dropped["input_ids"][~real] == tokenizer.pad_token_id).all() and not dropped["given"][
        ~real
    ].any()
    for name in ("input_ids", "attention_mask", "given"):
        assert torch.equal(dropped[name][~lost], batch[name][~lost])


def test_a_row_of_a_batch_is_dropped_by_its_own_generator(pairs):
    batch, _ = pairs
    some = {name: values[40:60] for name, values in batch.items()}
    together = drop_conditions(batch, generators(2000), 0.5, NUM_CLASSES)
    apart = drop_conditions(some, generators(2000)[40:60], 0.5, NUM_CLASSES)
    assert all(torch.equal(apart[name], together[name][40:60]) for name in batch)
    again, other = (
        drop_conditions(batch, generators(2000, step), 0.5, NUM_CLASSES)["label"] for step in (0, 1)
    )
    assert torch.equal(again, together["label"]) and not torch.equal(other, again)


def test_probability_0_draws_nothing_and_1_drops_all(pairs):
    batch, _ = pairs
    unused, fresh = generators(2000), generators(2000)
    assert drop_conditions(batch, unused, 0.0) is batch
    assert all(
        torch.equal(one.get_state(), other.get_state())
        for one, other in zip(unused, fresh, strict=True)
    )
    dropped = drop_conditions(batch, generators(2000), 1.0, NUM_CLASSES)
    assert (dropped["label"] == NUM_CLASSES).all() and (dropped["given"].sum(dim=1) == 2).all()


def test_given_ends_are_no_source(tokenizer):
    batch = to_tensors(one_framed_row_each({"text": [*TEXTS, ""]}, tokenizer, length=32))
    dropped = drop_conditions(batch, generators(5), 1.0)
    assert all(torch.equal(dropped[name], batch[name]) for name in batch)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"probability": 1.5}, r"`probability` must be a number in \[0, 1\], got 1.5"),
        ({"probability": float("nan")}, "`probability` must be a number"),
        ({"num_classes": None}, "`num_classes` must be given to drop a `label`"),
        (
            {"batch": {"input_ids": torch.ones(2, 3)}},
            r"must have a `label` or `given` column to drop",
        ),
    ],
)
def test_what_cannot_be_dropped_is_refused(changes, message):
    batch = {"input_ids": torch.ones(2, 3), "label": torch.tensor([0, 1])}
    settings = {"batch": batch, "generators": generators(2), "probability": 0.1, "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        drop_conditions(**settings | changes)
