"""Latents of a corpus in a file: the same as computed text by text, found again, and never those of others."""

import pytest
import torch
from datasets import Dataset
from support.latent_models import make_autoencoder

from text_diffusers.data import latent_cache
from text_diffusers.data.latent_cache import LatentRows, cached_latents, latents_digest
from text_diffusers.data.rows import ShuffledRows

LENGTHS = [3, 7, 1, 5, 7, 2, 4]


@pytest.fixture
def rows():
    torch.manual_seed(0)
    columns = {"encoder_ids": [], "encoder_mask": [], "label": list(range(len(LENGTHS)))}
    for length in LENGTHS:
        columns["encoder_ids"].append(
            [*torch.randint(1, 30, (length,)).tolist(), *[0] * (8 - length)]
        )
        columns["encoder_mask"].append([1] * length + [0] * (8 - length))
    return Dataset.from_dict(columns)


@torch.no_grad()
@pytest.mark.parametrize("regularization", ["kl", "noise"])
@pytest.mark.parametrize("at_once", [2, 64])
def test_cached_latents_are_those_of_each_text_alone(
    rows, tmp_path, monkeypatch, regularization, at_once
):
    monkeypatch.setattr(latent_cache, "ENCODED_AT_ONCE", at_once)
    model = make_autoencoder(regularization=regularization)
    computed = cached_latents(model, rows, "weights", tmp_path)
    cached = cached_latents(None, rows, "weights", tmp_path)  # nothing is asked of a model
    assert torch.equal(computed.latents, cached.latents)
    for row, length in enumerate(LENGTHS):
        alone = model.encode(torch.tensor([rows[row]["encoder_ids"][:length]]))
        torch.testing.assert_close(cached.latents[row], alone.latents[0], atol=1e-5, rtol=1e-5)
        if regularization == "kl":
            assert torch.equal(computed.logvar, cached.logvar)
            torch.testing.assert_close(cached.logvar[row], alone.logvar[0], atol=1e-5, rtol=1e-5)
    assert (cached.logvar is None) == (regularization == "noise")
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_other_weights_texts_and_orders_have_other_latents_and_other_columns_the_same(rows):
    known = latents_digest(rows, "weights")
    assert known == latents_digest(rows.remove_columns("label"), "weights")
    others = [
        latents_digest(rows, "other"),
        latents_digest(rows.select(range(6)), "weights"),
        latents_digest(rows.select([1, 0, *range(2, 7)]), "weights"),
    ]
    assert len({known, *others}) == 4


def test_a_computation_that_fails_leaves_no_file(rows, tmp_path, monkeypatch):
    def fail(columns, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(latent_cache, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        cached_latents(make_autoencoder(), rows, "weights", tmp_path)
    assert not list(tmp_path.iterdir())


def test_batches_of_latents_come_in_the_order_of_their_rows(rows, tmp_path):
    cache = cached_latents(make_autoencoder(), rows, "weights", tmp_path)
    order = LatentRows(rows, cache, rows_per_step=3, seed=5)
    plain = ShuffledRows(rows, rows_per_step=3, seed=5)
    for step in range(5):
        batch = order.batch(step)
        places = plain.batch(step)["label"]
        assert torch.equal(batch["label"], places)
        assert torch.equal(batch["latents"], cache.latents[places])
        assert torch.equal(batch["logvar"], cache.logvar[places])
        # Each text counts once.
        assert batch["attention_mask"].tolist() == [[1]] * 3
        part = order.batch(step, [2])
        assert torch.equal(part["latents"][0], batch["latents"][2])
    with pytest.raises(ValueError, match="`cache` must hold 6 rows"):
        LatentRows(rows.select(range(6)), cache, rows_per_step=3)
