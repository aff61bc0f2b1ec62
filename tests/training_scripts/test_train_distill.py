"""The recipe of distillation end to end: what is saved, what it learns, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, slow
from support.masked_lms import make_masked_lm
from support.recipes import load_script

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMHybridScheduler,
    D3PMUniformScheduler,
    ReMDMScheduler,
    TextDiffusionPipeline,
    TextTransformerModel,
)

train_distill = load_script("train_distill")


@pytest.fixture
def teacher(tokenizer, tmp_path):
    """Makes the folder of a pipeline with random weights, whose predictions depend on what they see."""

    def make(scheduler=None, label_names=None, **changes):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "max_length": 16}
        model = TextTransformerModel(
            len(tokenizer), mask_token_id=tokenizer.mask_token_id, **sizes | changes
        )
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        scheduler = scheduler or D3PMAbsorbingScheduler(tokenizer.mask_token_id)
        folder = tmp_path / "teacher"
        TextDiffusionPipeline(tokenizer, model, scheduler, label_names=label_names).save_pretrained(
            folder
        )
        return str(folder)

    return make


@pytest.fixture
def config(text_file, tmp_path):
    def make(model_name_or_path, **changes):
        settings = {
            "model_name_or_path": model_name_or_path,
            "dataset": str(text_file),
            "output_dir": str(tmp_path / "run"),
            "length": 16,
            "teacher_steps": 4,
            "student_steps": 2,
            "max_train_steps": 3,
            "lr_warmup_steps": 1,
            "train_batch_size": 4,
            "num_cpu_threads": 1,
            "num_samples": 1,
            "validation_rows": 8,
            "report_to": ["none"],
        }
        return train_distill.DistillationConfig(**settings | changes)

    return make


@pytest.mark.parametrize("noise", ["absorbing", slow("uniform")])
def test_a_student_is_a_pipeline_that_writes_in_its_own_steps(tokenizer, teacher, config, noise):
    """How the teacher's scheduler shapes predictions is in the student's weights, and not done twice."""
    shaping = {"temperature": 0.7, "top_p": 0.9}
    if noise == "absorbing":
        scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id, **shaping)
    else:
        scheduler = D3PMUniformScheduler(len(tokenizer) - 2, **shaping)
    options = config(teacher(scheduler))
    losses = train_distill.main(options)
    assert len(losses) == 3 and np.isfinite(losses).all() and min(losses) > 0

    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.temperature == 1 and pipe.scheduler.config.top_p is None
    output = pipe(max_new_tokens=6, return_history=True)
    assert len(output.history) == 1 + options.student_steps and isinstance(output.texts[0], str)
    metrics = json.loads(Path(options.output_dir, "metrics.json").read_text())
    assert metrics["bound"] > 0 and metrics["divergence"] > 0


def test_labels_and_rows_of_one_text_are_learned_too(teacher, config, tmp_path):
    path = tmp_path / "labelled.jsonl"
    rows = [{"text": SENTENCES[i % 4], "mood": ("sad", "glad")[i % 2]} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    folder = teacher(label_names=["glad", "sad"], num_classes=2)
    options = config(
        folder, dataset=str(path), label_column="mood", packing=False, condition_dropout=0.3
    )
    train_distill.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    assert pipe.label_names == ["glad", "sad"]
    with pytest.raises(ValueError, match="`label_column` must be given if, and only if"):
        train_distill.main(config(folder, output_dir=str(tmp_path / "other")))


@pytest.mark.slow
def test_the_divergence_falls_on_held_out_text(teacher, config):
    found = []
    options = config(
        teacher(), max_train_steps=60, learning_rate=3e-3, validation_steps=5, num_samples=0
    )
    train_distill.main(options, lambda step, metrics: found.append(metrics["divergence"]))
    assert found[-1] < 0.8 * found[0]
    # What was saved is what was watched, up to the average of the weights.
    metrics = json.loads(Path(options.output_dir, "metrics.json").read_text())
    assert metrics["divergence"] == pytest.approx(found[-1], rel=0.05)


def test_what_cannot_be_distilled_is_refused_by_name(tokenizer, teacher, config, tmp_path):
    with pytest.raises(ValueError, match="`model_name_or_path` must be a saved pipeline"):
        config(None)
    with pytest.raises(ValueError, match="`teacher_steps` must be a multiple of `student_steps`=2"):
        config("x", teacher_steps=5)
    with pytest.raises(ValueError, match="`vocab_size` belongs to the pipeline"):
        config("x", vocab_size=700)

    def refusal(folder, **changes):
        with pytest.raises(ValueError) as error:
            train_distill.main(config(folder, **changes))
        return str(error.value)

    mask = tokenizer.mask_token_id
    assert "`length` must be at most 16" in refusal(teacher(), length=32)
    cut = teacher(D3PMAbsorbingScheduler(mask, top_k=5))
    assert "`divergence` must be forward or jensen_shannon" in refusal(cut, divergence="reverse")
    assert "without blocks" in refusal(teacher(block_length=4))
    # One of another noise, and one that revises what it has revealed
    for scheduler in (D3PMHybridScheduler(mask, mask), ReMDMScheduler(mask)):
        message = f"D3PMUniformScheduler, got {type(scheduler).__name__}"
        assert message in refusal(teacher(scheduler))
    greedy = teacher(D3PMAbsorbingScheduler(mask, temperature=0.0))
    assert "temperature=0.0" in refusal(greedy, divergence="reverse")

    model, words = make_masked_lm("bert")
    folder = str(tmp_path / "masked")
    TextDiffusionPipeline(
        words, model, D3PMAbsorbingScheduler(words.mask_token_id)
    ).save_pretrained(folder)
    assert "must have a `TextTransformerModel`, got Bert" in refusal(folder)
