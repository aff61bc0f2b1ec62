"""Labels that are words, in every recipe that takes labels: they name the classes, and stand for them from then on."""

import json

import pytest
from support.recipes import load_script
from typer.testing import CliRunner

from text_diffusers import DiffusionLMPipeline, TextClassifierModel, TextDiffusionPipeline
from text_diffusers.cli.app import app

train_d3pm = load_script("train_d3pm")
train_diffusion_lm = load_script("train_diffusion_lm")
train_classifier = load_script("train_classifier")


def write_split(path, moods, count=40):
    rows = []
    for number in range(count):
        rows.append({"text": f"text {number} of many", "mood": moods[number % len(moods)]})
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def train(tmp_path):
    def run(script, config_class, dataset, output="run", **changes):
        settings = {
            "dataset": str(dataset),
            "output_dir": str(tmp_path / output),
            "label_column": "mood",
            "packing": False,
            "length": 24,
            "vocab_size": 300,
            "hidden_size": 32,
            "num_layers": 1,
            "num_attention_heads": 2,
            "max_train_steps": 2,
            "train_batch_size": 4,
            "num_cpu_threads": 1,
            "num_samples": 0,
            "num_length_samples": 0,
            "report_to": ["none"],
        }
        if "model_name_or_path" in changes:
            for name in ("vocab_size", "hidden_size", "num_layers", "num_attention_heads"):
                del settings[name]
        script.main(getattr(script, config_class)(**settings | changes))
        return tmp_path / output

    return run


def test_words_name_the_classes_of_a_pipeline_and_of_what_is_made_of_it(train, tmp_path):
    write_split(tmp_path / "data" / "train.jsonl", ["sad", "happy"])
    write_split(tmp_path / "data" / "validation.jsonl", ["happy"], count=5)
    folder = train(train_d3pm, "D3PMConfig", tmp_path / "data")
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    assert pipe.label_names == ["happy", "sad"] and pipe.denoiser.config.num_classes == 2
    assert len(pipe(class_labels=["sad", "happy"], num_inference_steps=2).texts) == 2

    # Held out were the validation texts, all of them.
    words = ["evaluate", str(folder), "--dataset", str(tmp_path / "data"), "--json"]
    options = ["--label-column", "mood", "--split", "validation", "--num-times", "2"]
    result = CliRunner().invoke(app, [*words, *options])
    assert json.loads(result.stdout)["num_texts"] == 5, result.output

    # In other data the same words stand for the same classes, and others for none.
    few = write_split(tmp_path / "few" / "data.jsonl", ["sad"])
    again = train(train_d3pm, "D3PMConfig", few, "again", model_name_or_path=str(folder))
    assert TextDiffusionPipeline.from_pretrained(again).label_names == ["happy", "sad"]
    other = write_split(tmp_path / "other" / "data.jsonl", ["sad", "angry"])
    with pytest.raises(ValueError, match=r"among the names \['happy', 'sad'\], got 'angry'"):
        train(train_d3pm, "D3PMConfig", other, "other_run", model_name_or_path=str(folder))
    result = CliRunner().invoke(app, ["evaluate", str(folder), "--dataset", other, *options[:2]])
    assert result.exit_code == 2 and "got 'angry'" in result.stderr


def test_words_name_the_classes_of_embeddings_and_classifiers(train, tmp_path):
    data = write_split(tmp_path / "data" / "a.jsonl", [True, False])
    small = {"embedding_dim": 8, "num_train_timesteps": 50}
    folder = train(train_diffusion_lm, "DiffusionLMConfig", data, "lm", **small)
    assert DiffusionLMPipeline.from_pretrained(folder).label_names == ["false", "true"]
    folder = train(train_classifier, "ClassifierConfig", data, "classifier")
    assert list(TextClassifierModel.from_pretrained(folder).config.labels) == ["false", "true"]


@pytest.mark.parametrize(
    "script, config_class",
    [
        (train_d3pm, "D3PMConfig"),
        (train_diffusion_lm, "DiffusionLMConfig"),
        (train_classifier, "ClassifierConfig"),
    ],
)
def test_numbers_with_gaps_are_refused_unless_they_are_names(train, tmp_path, script, config_class):
    data = write_split(tmp_path / "data" / "a.jsonl", [1, 2, 4])
    with pytest.raises(ValueError, match="no text has 0, 3.*--label_names 1 2 4"):
        train(script, config_class, data)
    if script is train_d3pm:
        folder = train(script, config_class, data, label_names=["1", "2", "4"])
        assert TextDiffusionPipeline.from_pretrained(folder).label_names == ["1", "2", "4"]
        words = ["generate", str(folder), "--label", "4", "--steps", "2"]
        assert CliRunner().invoke(app, words).exit_code == 0
