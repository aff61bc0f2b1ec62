"""The comparison of models end to end, on a tiny text: resumable, and its figures are what they are said to be."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import quality
import torch
from datasets import Dataset
from parts.quality import evaluation, report, training
from parts.quality import text as learning_text
from parts.quality.autoregressive import AutoregressiveModel
from transformers import GPT2Config

from text_diffusers.common.token_ids import never_written
from text_diffusers.data.rows import encode_texts, tokenize

# Processes, servers and browsers take their time; continuous integration runs all of these.
pytestmark = pytest.mark.slow


@pytest.fixture
def options(text_file, tmp_path):
    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "quality"),
            "dataset": str(text_file),
            "sample_by": "line",
            "models": ["absorbing", "gpt2"],
            "seeds": [0],
            "cpu_minutes": 0.001,
            "steps": 4,
            "num_samples": 6,
            "num_times": 1,
            "judge": "none",
            "vocab_size": 300,
            "length": 12,
            "hidden_size": 32,
            "num_layers": 1,
            "train_batch_size": 4,
            "num_clusters": 8,
        }
        return quality.QualityConfig(**settings | changes)

    return make


def results(config):
    return {
        path.stem: json.loads(path.read_text())
        for path in Path(config.output_dir, "results").glob("*.json")
    }


@pytest.mark.parametrize("characters", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs_are_complete_resumed_and_reported(options, monkeypatch, capsys, characters):
    config = options(
        characters=characters,
        models=["absorbing", "uniform_auxiliary", "neighbors", "hierarchical", "gpt2:3e-3"],
    )
    quality.main(config)
    records = results(config)
    names = {"absorbing-seed0", "uniform_auxiliary-seed0", "neighbors-seed0", "gpt2-lr3e-3-seed0"}
    names |= {"hierarchical-seed0"}
    assert set(records) == {"data", *names}
    trained = [record for name, record in records.items() if name != "data"]
    for record in trained:
        assert (
            0 < record["nats_per_token"] < 20
            and 0 <= record["standard_error"] < 5
            and record["steps"] >= 1
        )
        assert (
            record["bits_per_character"] > 0
            and record["seconds_per_step"] > 0
            and record["cpu_minutes"] > 0
        )
        assert (
            len(record["texts"]) == 6
            and 0 < record["distinct_1"] <= 1
            and 0 < record["entropy"] <= math.log(12) + 1e-9
        )
        target = records["absorbing-seed0"]["parameters"]
        assert abs(record["parameters"] / target - 1) < 0.02
    assert records["gpt2-lr3e-3-seed0"]["learning_rate"] == 3e-3
    assert records["uniform_auxiliary-seed0"]["auxiliary_weight"] == 0.01
    assert not list(Path(config.output_dir).glob("working*"))

    capsys.readouterr()
    picture = Path(config.output_dir, "quality.png")
    picture.unlink()
    monkeypatch.setattr(training.Trainer, "run", None)  # whoever trains now fails
    quality.main(config)
    printed = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG") and "| absorbing | 1 |" in printed
    config.report = True
    quality.main(config)
    assert capsys.readouterr().out == printed and results(config) == records
    with pytest.raises(
        ValueError, match="`steps` must be 4, as in the runs of .*, got 5: choose another"
    ):
        quality.main(options(characters=characters, steps=5))


def test_a_finished_seed_is_kept_when_another_is_added(options, monkeypatch):
    config = options(models=["gpt2"])
    quality.main(config)
    first, trained = results(config)["gpt2-seed0"], []

    def note_seed(trainer, spec, seed, held_out):
        trained.append(seed)
        return evaluation.train_and_evaluate(trainer, spec, seed, held_out)

    monkeypatch.setattr(quality, "train_and_evaluate", note_seed)
    quality.main(options(models=["gpt2"], seeds=[0, 7]))
    assert trained == [7] and results(config)["gpt2-seed0"] == first
    second = results(config)["gpt2-seed7"]
    assert second["steps"] == first["steps"] and second["nats_per_token"] != first["nats_per_token"]


def make_gpt2(tokenizer, length=12, **settings):
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id}
    sizes = {
        "n_positions": length,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "tie_word_embeddings": False,
    }
    config = GPT2Config(vocab_size=len(tokenizer), eos_token_id=None, **sizes, **ids, **settings)
    model = AutoregressiveModel(config, never_written(tokenizer)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_nats_of_gpt2_are_the_log_probabilities_of_each_token_after_those_before(tokenizer):
    model = make_gpt2(tokenizer)
    texts = ["the cat sat on the mat", "the dog was late", "a bird sang"]
    rows = tokenize(Dataset.from_dict({"text": texts}), tokenizer, length=12)
    nats, tokens = model.row_nats(rows, batch_size=2)
    stream = [
        token for ids in encode_texts(tokenizer, texts) for token in (*ids, tokenizer.eos_token_id)
    ]
    expected = []
    for first in range(0, len(stream), 12):
        row, total = stream[first : first + 12], 0.0
        for place, token in enumerate(row):  # one call a token, no padding, no batch
            context = torch.tensor([[tokenizer.bos_token_id, *row[:place]]])
            with torch.no_grad():
                total -= float(
                    model.gpt2(context).logits[0, -1].double().log_softmax(dim=-1)[token]
                )
        expected.append(total)
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    assert tokens.sum() == len(stream) and len(stream) % 12  # the last row is padded
    held_out = learning_text.HeldOut(tokenizer, rows, sum(len(text) + 1 for text in texts))
    found = evaluation.likelihood(model, 2, held_out)
    np.testing.assert_allclose(found["nats_per_token"], sum(expected) / len(stream), rtol=1e-5)
    bits = sum(expected) / math.log(2) / (len("".join(texts)) + 3)
    np.testing.assert_allclose(found["bits_per_character"], bits, rtol=1e-5)


def test_gpt2_writes_from_its_own_distribution(tokenizer):
    model = make_gpt2(tokenizer, length=2)
    rows = model.write(20_000, seed=1)
    assert rows.shape == (20_000, 2) and torch.equal(rows, model.write(20_000, seed=1))
    start = torch.tensor([[tokenizer.bos_token_id]])
    with torch.no_grad():
        logits = model.gpt2(start).logits[0, -1].double()
        logits[never_written(tokenizer)] = -math.inf
        first = logits.softmax(dim=-1)
    counts = torch.bincount(rows[:, 0], minlength=len(first)).double()
    assert not counts[never_written(tokenizer)].any()
    common = first > 1e-3
    errors = (counts - 20_000 * first)[common] / (20_000 * first * (1 - first))[common].sqrt()
    assert errors.abs().max() < 4.5
    best = int(first.argmax())
    with torch.no_grad():
        logits = (
            model.gpt2(torch.cat([start, torch.tensor([[best]])], dim=1)).logits[0, -1].double()
        )
        logits[never_written(tokenizer)] = -math.inf
        second = logits.softmax(dim=-1)
    after = torch.bincount(rows[rows[:, 0] == best, 1], minlength=len(first)).double()
    likely = second > 1e-2
    errors = (after - after.sum() * second)[likely] / (after.sum() * second * (1 - second))[
        likely
    ].sqrt()
    assert errors.abs().max() < 4.5


@pytest.mark.parametrize("like_denoiser", [True, False])
def test_gpt2_starts_from_the_given_vectors_in_the_scale_of_the_others(tokenizer, like_denoiser):
    model = make_gpt2(tokenizer)
    vectors = torch.randn(100, 16)
    model = AutoregressiveModel(model.gpt2.config)
    model.initialize(vectors, like_denoiser)
    weight = model.gpt2.transformer.wte.weight
    scale = 1.0 if like_denoiser else 0.02
    assert (
        torch.equal(weight[:100], scale * vectors)
        and abs(float(weight[100:].detach().std()) / scale - 1) < 0.1
    )
    if like_denoiser:  # an untrained head is even
        tokens = torch.zeros(2, 12, dtype=torch.long)
        nats = model(tokens, torch.ones_like(tokens))
        np.testing.assert_allclose(nats.detach(), math.log(len(tokenizer)), rtol=1e-5)


def test_characters_are_tokens_and_come_back(tmp_path):
    texts = ["Straße, 東京!\nIt's [MASK] ...  two  spaces", "abc"]
    tokenizer = learning_text.character_tokenizer(texts)
    for text in texts:
        (ids,) = encode_texts(tokenizer, [text])
        assert len(ids) == len(text) and tokenizer.decode(ids) == text
    size = len(set("".join(texts))) + 3
    assert len(tokenizer) == size and tokenizer.eos_token_id == tokenizer.bos_token_id == 0
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (size - 2, size - 1)
    tokenizer.save_pretrained(tmp_path)
    loaded = learning_text.AutoTokenizer.from_pretrained(tmp_path)
    assert (
        encode_texts(loaded, texts) == encode_texts(tokenizer, texts)
        and loaded.decode([1, 2]) is not None
    )


def test_the_table_has_means_and_spreads_and_the_order_is_by_the_mean(tmp_path):
    values = {
        "gpt2": [4.0, 4.0],
        "uniform": [5.0, 6.0],
        "absorbing": [4.4, 4.4],
        "neighbors": [5.0, 5.2],
    }
    records = [
        {
            "model": model,
            "seed": seed,
            "nats_per_token": nats,
            "entropy": 3.0,
            "generative_perplexity": 90.0,
        }
        for model, seeds in values.items()
        for seed, nats in enumerate(seeds)
    ]
    records.append({"model": "data", "seed": 0, "entropy": 3.5, "generative_perplexity": 40.0})
    lines = report.quality_table(records).splitlines()
    assert (
        lines[0]
        == "| model | seeds | nats per token | to GPT-2 | generative perplexity | entropy |"
    )
    assert "| uniform | 2 | 5.500 ± 0.707 | 1.375 ± 0.177 | 90.0 | 3.000 |" in lines
    assert list(report.mean_nats(records)) == ["gpt2", "absorbing", "neighbors", "uniform"]
    found = "\n".join(report.findings(records, characters=True))
    assert "1.100 times" in found and "reached" in found and "uniform: the same" in found
    assert "neighbors: not the same" in "\n".join(report.findings(records, characters=False))
    assert report.plot_quality(records, tmp_path / "quality.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="`records` must hold one with `nats_per_token`"):
        report.plot_quality(records[-1:], tmp_path / "none.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["gpt2_auxiliary"]}, "`models` must be among"),
        ({"models": ["diffusion"]}, "`models` must be among"),
        ({"characters": True, "dataset": "chitchat"}, "`characters` needs a `dataset`"),
        ({"judge": "gpt5"}, "`judge` must be one of"),
        ({"cpu_minutes": 0}, "`cpu_minutes` must be above 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)
