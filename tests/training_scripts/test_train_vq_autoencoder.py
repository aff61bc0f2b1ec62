"""The recipe of the autoencoder end to end: each quantiser, resumed runs, and what it refuses."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow
from safetensors.torch import load_file
from support.recipes import load_script
from transformers import AutoTokenizer

from text_diffusers import AutoencoderVQTextModel
from text_diffusers.training.config import OptionParser
from text_diffusers.training.loop import TrainingLoop

recipe = load_script("train_vq_autoencoder")


@pytest.fixture
def config(text_file, tmp_path):
    def make(**changes):
        settings = {
            "dataset": str(text_file),
            "output_dir": str(tmp_path / "run"),
            "vocab_size": 300,
            "length": 32,
            "window_length": 16,
            "hidden_size": 32,
            "num_encoder_layers": 1,
            "num_decoder_layers": 2,
            "num_attention_heads": 2,
            "num_fine_codes": 32,
            "num_coarse_codes": 16,
            "max_train_steps": 3,
            "train_batch_size": 8,
            "num_cpu_threads": 1,
            "num_samples": 1,
            "validation_rows": 8,
        }
        return recipe.AutoencoderConfig(**settings | changes)

    return make


FSQ = {"quantizer": "fsq", "fine_levels": [4, 4, 3], "coarse_levels": [4, 3]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantizer": "gumbel"},
        FSQ,
        slow({"levels": 1}),
        {"levels": 1, "quantizer": "fsq", "fine_levels": [4, 4, 3]},
        slow({"packing": False, "length": 16}),
        slow({"mixed_precision": "bf16"}),
        slow({"gradient_accumulation_steps": 2, "ema_decay": 0.9}),
        slow({"min_length": 8}),
        slow(
            {
                "streaming": True,
                "validation_documents": 20,
                "dead_code_threshold": 0.0,
                "rotation_trick": False,
            }
        ),
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()) or "default",
)
def test_three_steps_give_an_autoencoder(config, changes):
    options = config(**changes)
    losses = recipe.main(options)
    assert len(losses) == 3 and all(np.isfinite(losses))
    folder = Path(options.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = AutoencoderVQTextModel.from_pretrained(folder, subfolder="autoencoder")
    assert (
        model.config.vocab_size == len(tokenizer)
        and model.config.mask_token_id == tokenizer.mask_token_id
    )
    assert model.full_length(options.length) == options.length
    tokens = torch.randint(0, 300, (2, options.length), generator=torch.Generator().manual_seed(0))
    codes = model.encode(tokens)
    assert (codes.coarse is None) == (options.levels == 1)
    assert model.decode(codes.fine, codes.coarse).shape == (2, options.length, len(tokenizer))
    metrics = json.loads((folder / "metrics.json").read_text())
    levels = ("fine", "coarse")[: options.levels]
    assert metrics["cross_entropy"] > 0 and metrics["unigram_entropy"] > 0
    assert all(
        1 <= metrics[f"{level}_perplexity"] and 0 < metrics[f"{level}_usage"] <= 1
        for level in levels
    )
    assert ("coarse_cross_entropy" in metrics) == (options.levels == 2)
    assert not [
        path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")
    ]


def test_the_saved_model_is_the_trained_one(config, monkeypatch):
    loops, run = [], TrainingLoop.run
    monkeypatch.setattr(TrainingLoop, "run", lambda self: loops.append(self) or run(self))
    options = config()
    recipe.main(options)
    model = AutoencoderVQTextModel.from_pretrained(options.output_dir, subfolder="autoencoder")
    for name, value in loops[0].unwrapped.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=1e-6)
        if "codebook" in name:
            assert torch.equal(model.state_dict()[name], value), name
    assert bool(model.quantize_fine.layer._codebook.initted)


@pytest.mark.slow
def test_texts_come_back(config):
    learns = {
        "max_train_steps": 120,
        "learning_rate": 3e-3,
        "lr_warmup_steps": 5,
        "decay": 0.9,
        "num_fine_codes": 64,
    }
    options = config(**learns, packing=False, length=16, validation_rows=64)
    losses = recipe.main(options)
    metrics = json.loads(Path(options.output_dir, "metrics.json").read_text())
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
    assert metrics["cross_entropy"] < metrics["coarse_cross_entropy"] + 0.05
    assert metrics["cross_entropy"] < 0.8 * metrics["unigram_entropy"]


def tensors_of(folder):
    """Every tensor of the last checkpoint and the saved model, by file and name."""
    saved = sorted(Path(folder, "checkpoints").iterdir())[-1]
    files = [*saved.glob("*.safetensors"), *Path(folder, "autoencoder").glob("*.safetensors")]
    return {
        f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(
    "changes", [{}, slow({"quantizer": "gumbel"}), FSQ], ids=["ema", "gumbel", "fsq"]
)
def test_a_run_that_is_stopped_resumes_to_the_last_digit_with_its_codebooks(
    config, tmp_path, changes, monkeypatch
):
    """Dead codes are replaced on the way."""
    settings = changes | {
        "max_train_steps": 7,
        "lr_warmup_steps": 1,
        "dead_code_threshold": 0.5,
        "decay": 0.8,
    }
    settings |= {"learning_rate": 1e-2, "num_samples": 0}
    straight = recipe.main(config(output_dir=str(tmp_path / "a"), **settings))
    stopped, step = [], TrainingLoop.train_step

    def signalled(loop):
        if loop.step == 3:
            signal.raise_signal(signal.SIGTERM)
        result = step(loop)
        stopped.append(result[0])
        return result

    monkeypatch.setattr(TrainingLoop, "train_step", signalled)
    with pytest.raises(SystemExit):
        recipe.main(config(output_dir=str(tmp_path / "b"), **settings))
    monkeypatch.setattr(TrainingLoop, "train_step", step)
    resumed = recipe.main(
        config(output_dir=str(tmp_path / "b"), **settings, resume_from_checkpoint="latest")
    )
    assert stopped + resumed == straight and len(stopped) == 4
    expected, found = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert expected.keys() == found.keys()
    assert any("_codebook.embed" in name for name in expected) == (changes is not FSQ)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_micro_batches_move_the_codebook_as_one_batch_does(config):
    """Of the old averages a step keeps `decay`, in however many parts its rows come."""
    for parts in (1, 4):
        options = config(gradient_accumulation_steps=parts, train_batch_size=8 // parts, decay=0.9)
        model = recipe.build_model(options, vocab_size=300, mask_token_id=299)
        assert model.config.decay**parts == pytest.approx(0.9)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"levels": 3}, "`levels` must be 1 or 2, got 3"),
        (
            {"label_column": "mood", "packing": False},
            "`label_column` is not used by an autoencoder",
        ),
        ({"input_masking": 1.0}, "`input_masking` must be in \\[0, 1\\), got 1.0"),
        ({"fine_dropout": -0.1}, "`fine_dropout` must be in \\[0, 1\\), got -0.1"),
        ({"code_corruption": float("nan")}, "`code_corruption` must be in"),
        ({"decay": 1.0}, "`decay` must be in \\[0, 1\\), got 1.0"),
        ({"topic_weight": -1.0}, "`topic_weight` must be at least 0, got -1.0"),
        ({"min_length": 5}, "`min_length`"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"length": 20},
            "`length`.* must be multiples of 8, the tokens of a code, .* such as 32, got 20",
        ),
        ({"length": 24}, "`window_length` if they are longer, such as 32, got 24"),
        ({"min_length": 4}, "down to `min_length`, must be multiples of 8, .* such as 8, got 4"),
        ({"quantizer": "nearest"}, "`quantizer` must be one of"),
        ({"quantizer": "fsq"}, "`fine_levels` must be given with"),
        ({"fine_levels": [4, 4]}, "`fine_levels` must be given with"),
        ({"window_length": 12}, "`window_length` must be a multiple of 8"),
        ({"hidden_size": 33}, "`hidden_size` must be an even multiple"),
        ({"gradient_checkpointing": True}, "does not support gradient checkpointing"),
    ],
)
def test_models_that_make_no_sense_are_refused_before_the_texts_are_read(
    config, changes, message, monkeypatch
):
    monkeypatch.setattr(recipe, "prepare_data", None)
    with pytest.raises(ValueError, match=message):
        recipe.main(config(**changes))


def test_the_command_line_takes_lists_and_numbers():
    words = "--output_dir new --quantizer fsq --fine_levels 8 5 5 5 --coarse_levels 5 5 5 --rotation_trick false"
    options = OptionParser(recipe.AutoencoderConfig).parse_args_into_dataclasses(words.split())[0]
    assert (
        options.fine_levels == [8, 5, 5, 5]
        and options.coarse_levels == [5, 5, 5]
        and not options.rotation_trick
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "changes", [{}, {"quantizer": "gumbel"}, FSQ], ids=["ema", "gumbel", "fsq"]
)
def test_training_on_a_gpu_in_half_precision(config, changes):
    options = config(mixed_precision="bf16", **changes)
    assert all(np.isfinite(recipe.main(options)))
    model = AutoencoderVQTextModel.from_pretrained(options.output_dir, subfolder="autoencoder").to(
        "cuda"
    )
    tokens = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0)).cuda()
    codes = model.encode(tokens)
    assert codes.fine.is_cuda and model.decode(codes.fine, codes.coarse).isfinite().all()
    on_cpu = model.to("cpu").encode(tokens.cpu())
    assert (on_cpu.fine == codes.fine.cpu()).float().mean() > 0.9
