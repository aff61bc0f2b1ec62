"""Laws of resuming when the training data has changed, and of what a run is announced to do."""

import json
import logging

import pytest
import torch
from conftest import SENTENCES
from datasets import Dataset

from text_diffusers.data.rows import tokenize
from text_diffusers.training.checkpoints import list_checkpoints
from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.runtime import make_accelerator


@pytest.fixture
def other_rows(tokenizer):
    texts = [sentence.replace("cat", "dog") for sentence in SENTENCES * 30]
    return tokenize(Dataset.from_dict({"text": texts}), tokenizer, length=16)


def resume(make_loop, rows=None, **settings):
    loop = make_loop(resume_from_checkpoint="latest", checkpointing_steps=4, **settings)
    if rows is not None:
        loop.rows.rows = rows
    loop.load()
    return loop


def test_a_run_does_not_go_on_with_other_texts_unless_it_is_meant(make_loop, other_rows, caplog):
    make_loop(checkpointing_steps=4).run()
    with pytest.raises(ValueError, match="training rows are others .*`--resume_with_other_data"):
        resume(make_loop, other_rows)

    with caplog.at_level(logging.WARNING):
        loop = resume(make_loop, other_rows, resume_with_other_data=True)
    assert loop.step == 8 and "training rows are others than those of" in caplog.text


def test_the_same_texts_elsewhere_are_the_same_data(make_loop, tmp_path, caplog):
    first = make_loop(checkpointing_steps=4)
    first.run()
    first.rows.rows.save_to_disk(str(tmp_path / "moved"))
    assert resume(make_loop, Dataset.load_from_disk(str(tmp_path / "moved"))).step == 8
    assert not caplog.text


def test_a_checkpoint_that_does_not_know_its_data_is_resumed(make_loop, other_rows, monkeypatch):
    first = make_loop(checkpointing_steps=4)
    counters = first._counters
    monkeypatch.setattr(
        first,
        "_counters",
        lambda: {name: value for name, value in counters().items() if name != "data"},
    )
    first.run()
    newest = list_checkpoints(first.checkpoint_folder)[-1]
    assert "data" not in json.loads((newest / "state.json").read_text())
    assert resume(make_loop, other_rows).step == 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_a_precision_that_the_device_does_not_have_is_refused(tmp_path):
    config = TrainingConfig(
        output_dir=str(tmp_path / "run"), mixed_precision="fp16", report_to=["none"]
    )
    with pytest.raises(ValueError, match="`mixed_precision` must be no or bf16 on a CPU.* fp16"):
        make_accelerator(config)


@pytest.mark.slow
def test_a_compiled_model_is_trained_and_saved_under_its_own_names(make_loop, monkeypatch):
    plain = make_loop("plain")
    losses = plain.run()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    compiled = make_loop("compiled")
    assert type(compiled.model) is not type(plain.model)
    assert compiled.run() == losses
    assert compiled.state.averages().keys() == plain.state.averages().keys()
