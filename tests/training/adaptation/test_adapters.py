"""Laws of adapters in training: what is trained, what is saved, and weights of few bits under them."""

import json
from pathlib import Path

import pytest
import torch
from support.language_models import chat_pipe, make_language_model, word_tokenizer
from support.recipes import load_script
from transformers import AutoModelForCausalLM

from text_diffusers import TextDiffusionPipeline
from text_diffusers.models import LanguageModelDenoiser, Reading
from text_diffusers.pipelines.lora import has_lora
from text_diffusers.training.adaptation.adapters import (
    add_adapters,
    merge_adapters,
    names_of_layers,
    quantize,
)

train_d3pm = load_script("train_d3pm")

TOKENS = torch.arange(6, 30).view(2, 12)
READING = Reading(alignment="shifted", mask_token_id=0, end_token_ids=[2])
KINDS = ["llama", "gpt2"]


def make_denoiser(kind="llama", **changes):
    return LanguageModelDenoiser(make_language_model(kind, READING, **changes))


@torch.no_grad()
def logits(denoiser):
    return denoiser.eval()(TOKENS).logits


@torch.no_grad()
def draw_factors(denoiser):
    """Random adapters, as if they were trained, by name."""
    generator = torch.Generator().manual_seed(1)
    factors = {}
    for name, parameter in denoiser.named_parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.2, generator=generator)
            factors[name] = parameter.clone()
    return factors


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing_and_merged_ones_what_they_change_unmerged(kind):
    denoiser = make_denoiser(kind)
    base = logits(denoiser)
    names = list(denoiser.state_dict())
    add_adapters(denoiser, rank=3, alpha=6)
    assert torch.equal(logits(denoiser), base)
    trained = {name for name, weight in denoiser.named_parameters() if weight.requires_grad}
    assert trained and all(".lora_" in name for name in trained)

    factors = draw_factors(denoiser)
    adapted = logits(denoiser)
    assert (adapted - base).abs().max() > 0.1
    denoiser.language_model.disable_adapters()
    assert torch.equal(logits(denoiser), base)
    denoiser.language_model.enable_adapters()
    assert torch.equal(logits(denoiser), adapted)

    # The averages are what is merged, whatever the adapters are now.
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    merged = merge_adapters(denoiser, factors)
    torch.testing.assert_close(logits(merged), adapted, atol=1e-5, rtol=1e-5)
    assert list(merged.state_dict()) == names and not has_lora(merged)


def test_all_linear_layers_but_the_head_are_adapted_unless_some_are_named():
    denoiser = make_denoiser()
    usual = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert names_of_layers(denoiser.language_model) == usual
    add_adapters(denoiser, rank=2, targets=["q_proj", "layers.1.mlp.up_proj"])
    adapted = {
        name.partition(".lora_")[0]
        for name, weight in denoiser.named_parameters()
        if weight.requires_grad
    }
    assert adapted == {
        f"language_model.model.layers.{layer}"
        for layer in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj")
    }
    for target in ("lm_head", "embed_tokens", "mlp", "proj"):
        with pytest.raises(ValueError, match="`lora_targets` must be ends of the names of linear"):
            add_adapters(make_denoiser(), rank=2, targets=[target])


# A training


@pytest.fixture
def settings(text_file, tmp_path):
    words = "\n".join(f"w{6 + index % 30} w{7 + index % 9} w9" for index in range(80))
    text_file.write_text(words)
    return {
        "dataset": str(text_file),
        "output_dir": str(tmp_path / "run"),
        "length": 16,
        "max_train_steps": 6,
        "train_batch_size": 4,
        "learning_rate": 3e-2,
        "lr_warmup_steps": 0,
        "ema_decay": 0.5,
        "lora_rank": 2,
        "num_cpu_threads": 1,
        "num_samples": 0,
        "num_length_samples": 0,
        "validation_steps": 0,
        "checkpointing_steps": 2,
        "checkpoints_total_limit": 3,
        "report_to": ["none"],
    }


@pytest.fixture
def causal_lm(tmp_path):
    """A folder as the authors of a model publish it."""
    folder = tmp_path / "causal_lm"
    make_language_model(bos_token_id=4, eos_token_id=2).save_pretrained(folder)
    names = {"mask_token": None, "pad_token": "<|pad|>", "eos_token": "<|end|>"}
    word_tokenizer(**names).save_pretrained(folder)
    return folder


def files_in(folder):
    return {path.name for path in Path(folder).iterdir()}


def test_a_causal_lm_becomes_a_whole_pipeline_of_weights_that_hold_the_adapters(
    settings, causal_lm
):
    config = train_d3pm.D3PMConfig(**settings | {"model_name_or_path": str(causal_lm)})
    losses = train_d3pm.main(config)
    assert len(losses) == 6
    assert "model_index.json" in files_in(config.output_dir)
    model = AutoModelForCausalLM.from_pretrained(Path(config.output_dir, "denoiser"))
    start = AutoModelForCausalLM.from_pretrained(causal_lm)
    before, after = start.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    vectors = {"model.embed_tokens.weight", "lm_head.weight"}
    for name in before.keys() - vectors:
        update = after[name] - before[name]
        if "_proj" in name:
            assert 0 < torch.linalg.matrix_rank(update.double(), atol=1e-6) <= 2
        else:
            assert not update.any(), name

    # What is frozen keeps its vectors, and the mask is their mean.
    for name in vectors:
        assert torch.equal(after[name][:40], before[name][:40])
        torch.testing.assert_close(after[name][40], before[name][:40].mean(dim=0))
    checkpoint = Path(config.output_dir, "checkpoints/step-00000006/manifest.json")
    sizes = json.loads(checkpoint.read_text())["files"]
    assert sizes["model.safetensors"]["size"] < 40_000

    with pytest.raises(ValueError, match="`merge_lora` must be true where a model is no saved"):
        train_d3pm.D3PMConfig(
            **settings
            | {"model_name_or_path": str(causal_lm), "merge_lora": False, "output_dir": "new"}
        )


def test_a_resumed_training_of_adapters_goes_on_bit_for_bit(settings, causal_lm, tmp_path):
    settings |= {"model_name_or_path": str(causal_lm)}
    straight = train_d3pm.main(train_d3pm.D3PMConfig(**settings))
    checkpoint = tmp_path / "run/checkpoints/step-00000002"
    settings |= {"output_dir": str(tmp_path / "again"), "resume_from_checkpoint": str(checkpoint)}
    assert train_d3pm.main(train_d3pm.D3PMConfig(**settings)) == straight[2:]
    files = [tmp_path / run / "denoiser/model.safetensors" for run in ("run", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_adapters_of_a_saved_pipeline_are_saved_alone_or_merged(settings, tmp_path):
    base = tmp_path / "base"
    chat_pipe(alignment="shifted").save_pretrained(base)
    settings |= {"model_name_or_path": str(base)}
    train_d3pm.main(train_d3pm.D3PMConfig(**settings))
    assert "model_index.json" not in files_in(settings["output_dir"])

    pipe = TextDiffusionPipeline.from_pretrained(base)
    before = logits(LanguageModelDenoiser(pipe.denoiser))
    pipe.load_lora_weights(settings["output_dir"])
    adapted = logits(LanguageModelDenoiser(pipe.denoiser))
    assert (adapted - before).abs().max() > 1e-3
    pipe.disable_lora()
    assert torch.equal(logits(LanguageModelDenoiser(pipe.denoiser)), before)

    # The same training, saved as a whole
    settings |= {"output_dir": str(tmp_path / "merged"), "merge_lora": True}
    train_d3pm.main(train_d3pm.D3PMConfig(**settings))
    merged = TextDiffusionPipeline.from_pretrained(settings["output_dir"])
    found = logits(LanguageModelDenoiser(merged.denoiser))
    torch.testing.assert_close(found, adapted, atol=1e-5, rtol=1e-5)


# Weights of few bits


def test_adapters_learn_over_weights_of_8_bits_and_are_merged_into_those_of_32(settings, causal_lm):
    pytest.importorskip("torchao.quantization", reason="an extra")
    whole = make_denoiser(hidden_size=64, intermediate_size=128)
    narrow = make_denoiser(hidden_size=64, intermediate_size=128)
    quantize(narrow, "int8", torch.device("cpu"))
    add_adapters(narrow, rank=2)
    error = (logits(narrow) - logits(whole)).square().mean().sqrt() / logits(whole).std()
    assert 0 < error < 0.2

    settings |= {"model_name_or_path": str(causal_lm), "quantization": "int8"}
    losses = train_d3pm.main(train_d3pm.D3PMConfig(**settings))
    assert len(losses) == 6
    model = AutoModelForCausalLM.from_pretrained(Path(settings["output_dir"], "denoiser"))
    start = AutoModelForCausalLM.from_pretrained(causal_lm)
    for name, weight in start.named_parameters():
        if "_proj" in name:
            update = model.get_parameter(name) - weight
            assert 0 < torch.linalg.matrix_rank(update.double(), atol=1e-6) <= 2


@pytest.mark.slow
def test_adapters_over_weights_of_16_bits_learn_what_they_do_over_those_of_32(settings, causal_lm):
    settings |= {"model_name_or_path": str(causal_lm), "mixed_precision": "bf16"}
    settings |= {"num_samples": 1}  # which are written on the way
    wide = train_d3pm.main(train_d3pm.D3PMConfig(**settings))
    settings |= {"output_dir": settings["output_dir"] + "-narrow", "quantization": "bf16"}
    narrow = train_d3pm.main(train_d3pm.D3PMConfig(**settings))
    assert narrow == pytest.approx(wide, rel=0.01) and narrow != wide

    # The weights that are saved were never rounded, and what does not learn is as it was.
    saved = Path(settings["output_dir"], "denoiser")
    model = AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
    start = AutoModelForCausalLM.from_pretrained(causal_lm)
    for name, weight in start.named_parameters():
        update = model.get_parameter(name) - weight
        if "_proj" in name:
            assert 0 < torch.linalg.matrix_rank(update.double(), atol=1e-6) <= 2
        elif "embed" not in name and "lm_head" not in name:
            assert torch.equal(update, torch.zeros_like(update)), name


def test_frozen_weights_are_half_as_wide_and_adapters_are_not():
    denoiser = make_denoiser()
    quantize(denoiser, "bf16", torch.device("cpu"), mixed_precision="bf16")
    add_adapters(denoiser, rank=2)
    for name, weight in denoiser.named_parameters():
        assert weight.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_adapters_learn_over_weights_of_few_bits_on_a_gpu(settings, causal_lm, quantization):
    pytest.importorskip({"int8": "torchao", "nf4": "bitsandbytes"}[quantization])
    changes = {"model_name_or_path": str(causal_lm), "quantization": quantization}
    config = train_d3pm.D3PMConfig(**settings | changes | {"max_train_steps": 60})
    losses = train_d3pm.main(config)
    assert sum(losses[-5:]) < sum(losses[:5])
    pipe = TextDiffusionPipeline.from_pretrained(config.output_dir)
    assert len(pipe(max_new_tokens=4, num_inference_steps=4).texts) == 1


def test_options_of_adapters_that_make_no_sense_are_refused_by_name(settings, causal_lm):
    def config(**changes):
        return train_d3pm.D3PMConfig(
            **settings | {"model_name_or_path": str(causal_lm), "output_dir": "new"} | changes
        )

    with pytest.raises(ValueError, match="`quantization` goes with `lora_rank`, got 'int8'"):
        config(lora_rank=None, quantization="int8")
    with pytest.raises(ValueError, match="`quantization` must be .*int8.*nf4.*, got 'int3'"):
        config(quantization="int3")
    with pytest.raises(ValueError, match="`lora_rank` must be at least 1"):
        config(lora_rank=0)
    with pytest.raises(ValueError, match="`quantization` needs a language model"):
        config(model_name_or_path="chat-and-novels", quantization="int8")
    with pytest.raises(ValueError, match='`quantization` must be .*"int8" without a CUDA device'):
        quantize(make_denoiser(), "nf4", torch.device("cpu"))
    with pytest.raises(ValueError, match='`mixed_precision` must be "bf16" with `quantization`'):
        quantize(make_denoiser(), "bf16", torch.device("cpu"))
