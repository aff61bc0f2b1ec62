"""The benchmark of adaptation: its minutes are the CPU's, an interrupted table goes on, and its figures are exact."""

import json
import math
import os
import signal
from pathlib import Path

import adaptation
import pytest
import torch
from parts.adaptation import speed, training
from parts.adaptation.config import AdaptationBenchmarkConfig
from parts.adaptation.report import bits_table
from support.language_models import make_language_model
from support.masked_lms import make_masked_lm, wordpiece_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from text_diffusers.common.token_ids import never_written
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.data.tokenizers import add_missing_tokens

LENGTH = 24


@pytest.fixture
def options(text_file, tmp_path):
    """Options of a benchmark of tiny models on a tiny text."""
    for part in make_masked_lm("bert"):
        part.save_pretrained(tmp_path / "encoder")
    words = wordpiece_tokenizer().backend_tokenizer
    words.post_processor = None
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    tokenizer.save_pretrained(tmp_path / "causal")
    model = make_language_model("llama", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "causal")

    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "table"),
            "minilm": str(tmp_path / "encoder"),
            "smollm2": str(tmp_path / "causal"),
            "dataset": str(text_file),
            "length": LENGTH,
            "minutes": [0.0, 0.01, 0.02],
            "mixed_precision": "no",
            "num_tokens": 8,
            "repetitions": 1,
        }
        return AdaptationBenchmarkConfig(**settings | changes)

    return make


def results(config):
    folder = Path(config.output_dir, "results")
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.slow
def test_an_interrupted_table_goes_on_and_is_made_once(options, monkeypatch, capsys):
    rows = ["minilm_blocks", "smollm2_autoregressive_lora"]
    config = options(rows=rows)
    train_step = training.JudgedLoop.train_step
    note = training.Judge.note
    steps = []
    judged = []

    def stop_once(loop):
        steps.append(loop.step)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(loop)

    def note_and_keep(judge, minutes, step, metrics):
        judged.append((judge.run.row, minutes, metrics))
        note(judge, minutes, step, metrics)

    monkeypatch.setattr(training.JudgedLoop, "train_step", stop_once)
    monkeypatch.setattr(training.Judge, "note", note_and_keep)
    with pytest.raises(SystemExit):
        adaptation.main(config)
    assert steps == [0, 1, 2] and not results(config)

    # The steps go on where they were, and no figure is found twice.
    adaptation.main(config)
    assert steps[3] == 3
    assert [(row, minutes) for row, minutes, _ in judged] == [
        (row, minutes) for row in rows for minutes in config.minutes
    ]
    records = results(config)
    assert set(records) == {f"{row}-0.02min-seed0" for row in rows}
    for record in records.values():
        counts = [point["steps"] for point in record["points"]]
        assert counts[0] == 0 and counts == sorted(counts)
        assert record["points"][-1]["bits"] < record["points"][0]["bits"]
    encoder, causal = (records[f"{row}-0.02min-seed0"] for row in rows)
    assert encoder["text"] == "lower case" and encoder["trained"] == encoder["parameters"]
    assert all(point["next_token_bits"] > 0 for point in encoder["points"])
    assert causal["trained"] < causal["parameters"]
    # In blocks of one token the bound is, on average over its noise, the loss of next tokens, which stands for it.
    for row, _, metrics in judged:
        if row == rows[1]:
            assert abs(metrics["bound"] - metrics["ar_loss"]) < 5 * metrics["standard_error"]
    scale = causal["tokens_per_character"] / math.log(2)
    last = judged[-1][2]
    assert causal["points"][-1]["bits"] == pytest.approx(scale * last["ar_loss"])
    assert not list(Path(config.output_dir, "working").iterdir())

    # A finished table is read and not trained.
    capsys.readouterr()
    adaptation.main(config)
    assert len(judged) == len(rows) * len(config.minutes)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| MiniLM |") for line in lines) == 1
    assert any("| untrained | 0.01 min | 0.02 min |" in line for line in lines)
    with pytest.raises(ValueError, match="`length` must be 24, as in the runs of"):
        adaptation.main(options(rows=rows, length=32))


@pytest.mark.slow
def test_bits_per_character_of_untrained_weights_are_those_of_stock_transformers(options):
    config = options(rows=["smollm2_autoregressive_lora"], minutes=[0.0, 0.001])
    adaptation.main(config)
    (record,) = results(config).values()

    model = AutoModelForCausalLM.from_pretrained(config.smollm2).eval()
    tokenizer = add_missing_tokens(AutoTokenizer.from_pretrained(config.smollm2))
    excluded = sorted({*never_written(tokenizer)} - {tokenizer.eos_token_id})
    _, held_out = split_documents(load_documents(config.dataset))
    texts = held_out["text"]
    # As many whole texts in a row as there is room for, behind a start
    rows = [[tokenizer.bos_token_id]]
    for text in texts:
        ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        if len(rows[-1]) + len(ids) > LENGTH:
            rows.append([tokenizer.bos_token_id])
        rows[-1] += ids
    nats = 0.0
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        logits[:, excluded] = -torch.inf
        nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    bits = nats / math.log(2) / sum(len(text) + 1 for text in texts)
    assert record["points"][0]["bits"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.slow
def test_all_ways_write_with_the_same_weights(options, capsys):
    config = options(block_lengths=[1, 4], steps=[1, 2], batch_sizes=[1, 3], speed=True)
    model, tokenizer, is_trained = speed.load_causal_lm(config)
    assert is_trained
    writers = speed.Writers(config, model, tokenizer)
    one_by_one = writers.one_by_one(2)
    assert torch.equal(writers.by_diffusion(speed.Case("", 1, 1), 2), one_by_one)

    adaptation.main(config)
    lines = capsys.readouterr().out.splitlines()
    calls = {line.split(" | ")[0]: line.split(" | ")[1] for line in lines if line.startswith("| ")}
    assert calls["| autoregressive"] == calls["| bidirectional, 8 steps"] == "8"
    # A block is read as often as it has steps.
    assert calls["| blocks of 4, 1 step"] == "2" and calls["| blocks of 4, 2 steps"] == "4"
    figures = json.loads(Path(config.output_dir, "speed.json").read_text())
    assert {record["batch"] for record in figures} == {1, 3}
    for record in figures:
        if record["case"] == "autoregressive":
            assert record["ratio"] == 1
        assert record["tokens_per_second"] == pytest.approx(8 * record["batch"] / record["seconds"])


def test_the_table_has_means_and_the_spread_of_seeds():
    records = [
        {
            "row": "minilm_blocks",
            "seed": seed,
            "start": "MiniLM",
            "objective": "blocks",
            "text": "lower case",
            "parameters": 22_700_000,
            "trained": 22_700_000,
            "held_out_tokens": 1000,
            "points": [
                {"minutes": 0, "steps": 0, "bits": 4.0, "error": 0.1, "next_token_bits": 5.0},
                {"minutes": 4, "steps": 90, "bits": bits, "error": 0.1, "next_token_bits": 1.5},
            ],
        }
        for seed, bits in enumerate([1.9, 2.1])
    ]
    head, _, line = bits_table(records).splitlines()
    assert "| untrained | 4 min | steps | seeds | between seeds |" in head
    assert "| 4.000 ± 0.100 (5.000) | 2.000 ± 0.100 (1.500) | 90 | 2 | 0.141 |" in line


def test_a_run_has_one_budget_or_one_for_each_number_of_minutes(tmp_path):
    settings = {"output_dir": str(tmp_path), "minutes": [0.0, 4.0, 8.0], "rows": ["scratch"]}
    (run,) = AdaptationBenchmarkConfig(**settings).runs
    assert run.minutes == (0, 4, 8) and run.name == "scratch-8min-seed0"
    runs = AdaptationBenchmarkConfig(**settings, anneal=True).runs
    assert [run.minutes for run in runs] == [(0, 4), (8,)]
    # Before it learns blocks, a model is worth little in blocks.
    settings["rows"] = ["minilm_next_then_blocks"]
    runs = AdaptationBenchmarkConfig(**settings).runs
    assert [run.minutes for run in runs] == [(0, 4), (8,)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ["bert"]}, "`rows` must be among scratch"),
        ({"minutes": [4.0, 2.0]}, "`minutes` must be rising"),
        ({"minutes": [0.0]}, "`minutes` must be rising, the last above 0"),
        ({"steps": [0]}, "`steps` must be numbers of at least 1"),
        ({"dtype": "int8"}, "`dtype` must be one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        AdaptationBenchmarkConfig(output_dir=str(tmp_path), **changes)
