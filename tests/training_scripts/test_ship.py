"""The way of a trained pipeline into the package."""

import json
import re
import shlex

import pytest
import torch
from conftest import SENTENCES
from datasets import Dataset
from huggingface_hub import metadata_load
from support.masked_lms import make_masked_lm
from support.recipes import load_script

from text_diffusers import TextDiffusionPipeline
from text_diffusers.data.sources import register_corpora

train_d3pm = load_script("train_d3pm")
ship = load_script("ship")


@pytest.fixture
def run(tmp_path):
    """Train a pipeline for two steps, of nothing or of a pretrained model, and return its folder."""
    documents = Dataset.from_dict({"text": SENTENCES * 20, "label": list("abab") * 20})
    register_corpora({"made_up": lambda: documents})

    def train(**options):
        folder = tmp_path / "run"
        config = train_d3pm.D3PMConfig(
            dataset="made_up",
            label_column="label",
            output_dir=str(folder),
            length=16,
            max_train_steps=2,
            train_batch_size=4,
            num_cpu_threads=1,
            num_samples=0,
            num_length_samples=0,
            validation_rows=8,
            report_to=["none"],
            **options,
        )
        train_d3pm.main(config)
        return folder

    return train


def check_shipped(run, folder):
    """Weights are those of the run, rounded; figures are those of the rounded weights, which are near."""
    shipped = TextDiffusionPipeline.from_pretrained(folder)
    trained = TextDiffusionPipeline.from_pretrained(run)
    for name, weight in trained.denoiser.state_dict().items():
        rounded = shipped.denoiser.state_dict()[name]
        assert rounded.dtype == weight.dtype == torch.float32
        assert torch.equal(rounded, weight.half().float())
    assert shipped.tokenizer.get_vocab() == trained.tokenizer.get_vocab()

    figures = [json.loads((place / "metrics.json").read_text()) for place in (run, folder)]
    assert figures[0]["num_tokens"] == figures[1]["num_tokens"]
    assert figures[1]["bound"] == pytest.approx(figures[0]["bound"], abs=0.02)
    return shipped


@pytest.mark.slow
def test_a_pipeline_from_nothing_is_shipped(run, tmp_path):
    trained = run(
        packing=False, vocab_size=300, hidden_size=32, num_layers=1, num_attention_heads=2
    )
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "old.txt").touch()
    ship.main(trained, folder)
    assert check_shipped(trained, folder).label_names == ["a", "b"]
    assert not (folder / "old.txt").exists()
    card = metadata_load(folder / "README.md")
    assert card["license"] == "apache-2.0" and "base_model" not in card

    # What is shipped may be a stage of what is shipped next, in its place.
    command = json.loads((trained / "training_config.json").read_text())["command"]
    ship.main(trained, folder, "somebody/encoder", stages=[trained, folder])
    text = (folder / "README.md").read_text()
    assert "in 3 stages, the first from somebody/encoder and each from the model of the" in text
    shown = re.findall(r"```bash\n(.*?)\n```", text, flags=re.DOTALL)
    words = [shlex.split(block.replace("\\\n", "")) for block in shown]
    assert words == [shlex.split(command)] * 3
    assert text.count("Stage 1, 2 optimizer steps in") == 1
    assert "trust_remote_code" not in text  # no code lies beside the weights
    stages = ship.stages_up_to(folder)
    assert [stage["command"] for stage in stages] == [command] * 3


def test_what_is_written_by_default_fills_a_row_of_training_behind_the_longest_label():
    pipe = TextDiffusionPipeline.from_pretrained("four-voices")
    labels = pipe.tokenizer(pipe.label_names, add_special_tokens=False)["input_ids"]
    block_length = pipe.block_length
    for length in (50, 96, 97):
        settings = ship.shipped_defaults(pipe, length)
        # A label stands between two other tokens.
        left = length - settings["max_new_tokens"] - max(len(label) + 2 for label in labels)
        assert 0 <= left < block_length and settings["max_new_tokens"] % block_length == 0
        assert settings["num_inference_steps"] == block_length


@pytest.mark.slow
def test_what_was_made_of_a_pretrained_model_names_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(ship.SOURCES, "made_up", ("sentences (public domain)",))
    model, tokenizer = make_masked_lm("bert")
    model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    trained = run(model_name_or_path=str(tmp_path / "start"), prune_vocabulary=True)

    folder = tmp_path / "shipped"
    with pytest.raises(ValueError, match="`base_model` must name the repository"):
        ship.main(trained, folder)
    ship.main(trained, folder, "somebody/encoder")
    assert check_shipped(trained, folder).label_names == ["a", "b"]
    assert metadata_load(folder / "README.md")["base_model"] == "somebody/encoder"
    assert "- sentences (public domain)\n" in (folder / "README.md").read_text()

    # One that is too large is refused before the older one is lost.
    monkeypatch.setattr(ship, "LARGEST", 1_000)
    with pytest.raises(ValueError, match="`run` must hold at most 1,000 bytes of weights"):
        ship.main(trained, folder, "somebody/encoder")
    check_shipped(trained, folder)
