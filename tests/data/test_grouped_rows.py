"""Rows of about the same length in a batch: nothing is lost, nothing depends on what came before."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from text_diffusers.data.rows import GroupedRows, ShuffledRows, trimmed, unknown_tokens

ROWS = 1_003
LENGTH = 40


def uneven_rows():
    lengths = np.random.default_rng(0).integers(2, LENGTH + 1, ROWS)
    masks = [[1] * length + [0] * (LENGTH - length) for length in lengths]
    return Dataset.from_dict(
        {"input_ids": [[row] * LENGTH for row in range(ROWS)], "attention_mask": masks}
    )


def rows_of(order, steps):
    return [order.batch(step)["input_ids"][:, 0].tolist() for step in steps]


@pytest.mark.parametrize("rows_per_step", [1, 8, 16])
def test_every_epoch_holds_every_row_once(rows_per_step):
    order = GroupedRows(uneven_rows(), rows_per_step)
    steps = 3 * ROWS // rows_per_step
    flat = [row for batch in rows_of(order, range(steps)) for row in batch]
    for epoch in range(len(flat) // ROWS):
        assert sorted(flat[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))


def test_a_batch_depends_on_seed_and_step_alone():
    rows = uneven_rows()
    straight = rows_of(GroupedRows(rows, 16, seed=3), range(150))
    resumed = GroupedRows(rows, 16, seed=3)
    assert rows_of(resumed, [149, 20, 70]) == [straight[149], straight[20], straight[70]]
    assert rows_of(GroupedRows(rows, 16, seed=4), range(5)) != straight[:5]


def test_little_of_a_batch_is_padding_and_lengths_stand_in_no_order():
    rows = uneven_rows()
    shares = {}
    for kind in (ShuffledRows, GroupedRows):
        order = kind(rows, 16)
        batches = [trimmed(order.batch(step)) for step in range(124)]
        places = sum(batch["input_ids"].numel() for batch in batches)
        real = sum(int(unknown_tokens(batch).sum()) for batch in batches)
        shares[kind] = 1 - real / places
        # Noise levels are given out by the place in a batch, and must not go with lengths.
        masks = torch.stack([order.batch(step)["attention_mask"].sum(dim=1) for step in range(60)])
        centred = masks - masks.float().mean(dim=1, keepdim=True)
        by_place = centred.mean(dim=0)
        assert by_place.abs().max() < 4 * masks.float().std() / 60**0.5
    assert shares[ShuffledRows] > 0.4
    assert shares[GroupedRows] < 0.1
