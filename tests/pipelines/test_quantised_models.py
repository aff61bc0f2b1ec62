"""Pipelines with quantised weights, by the configurations that transformers has for them."""

import diffusers
import pytest
import torch
from diffusers import PipelineQuantizationConfig
from safetensors.torch import load_file, save_file
from support.language_models import chat_pipe
from support.published_checkpoints import GOLDEN
from transformers import BitsAndBytesConfig, TorchAoConfig

from text_diffusers import TextDiffusionPipeline, TextTransformerModel

TOKENS = torch.arange(6, 30).view(2, 12)
SETTINGS = {"max_new_tokens": 12, "num_inference_steps": 4}
MESSAGES = [{"role": "user", "content": "w7 w8"}]


def int8():
    quantization = pytest.importorskip("torchao.quantization", reason="an extra")
    return for_the_denoiser(TorchAoConfig(quant_type=quantization.Int8WeightOnlyConfig()))


def for_the_denoiser(config):
    return PipelineQuantizationConfig(quant_mapping={"denoiser": config})


@torch.no_grad()
def relative_error(model, reference):
    """The root mean square error of logits, in standard deviations of the reference."""
    want = reference(input_ids=TOKENS.to(reference.device)).logits.float().cpu()
    got = model(input_ids=TOKENS.to(model.device)).logits.float().cpu()
    return float((got - want).square().mean().sqrt() / want.std())


@pytest.fixture
def folder(tmp_path):
    pipe = chat_pipe(hidden_size=128, intermediate_size=256)
    pipe.save_pretrained(tmp_path / "full")
    return tmp_path / "full"


def test_int8_weights_are_near_small_and_write_the_same_after_saving(folder, tmp_path):
    pipe = TextDiffusionPipeline.from_pretrained(folder, quantization_config=int8())
    full = TextDiffusionPipeline.from_pretrained(folder)
    # Weights of this size are wrong by half of 1/127 of the largest of their row.
    assert 0 < relative_error(pipe.denoiser, full.denoiser) < 0.15

    written = pipe(messages=MESSAGES, **SETTINGS)
    assert written.tokens.shape == (1, 12)

    pipe.save_pretrained(tmp_path / "int8")
    file = "denoiser/model.safetensors"
    sizes = [(path / file).stat().st_size for path in (tmp_path / "int8", folder)]
    assert sizes[0] < 0.35 * sizes[1]

    again = TextDiffusionPipeline.from_pretrained(tmp_path / "int8")
    assert relative_error(again.denoiser, pipe.denoiser) == 0
    assert torch.equal(again(messages=MESSAGES, **SETTINGS).tokens, written.tokens)


@torch.no_grad()
def test_a_denoiser_of_this_package_takes_the_configuration_of_diffusers(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="an extra")
    model = TextTransformerModel(40, hidden_size=128, num_layers=1, num_attention_heads=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = chat_pipe()
    TextDiffusionPipeline(pipe.tokenizer, model, pipe.scheduler).save_pretrained(tmp_path)

    config = for_the_denoiser(diffusers.TorchAoConfig(quantization.Int8WeightOnlyConfig()))
    settings = {"quantization_config": config, "dtype": torch.float32}
    quantised = TextDiffusionPipeline.from_pretrained(tmp_path, **settings).denoiser
    want = model(TOKENS, 0.5).logits
    error = (quantised(TOKENS, 0.5).logits - want).square().mean().sqrt() / want.std()
    assert 0 < float(error) < 0.05


def test_quantised_weights_that_are_no_numbers_are_refused(folder):
    file = folder / "denoiser/model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 5] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"NaN or infinite numbers in `{name}`"):
        TextDiffusionPipeline.from_pretrained(folder, quantization_config=int8())


def test_a_published_checkpoint_is_not_quantised_before_it_is_converted():
    with pytest.raises(ValueError, match="quantization_config"):
        TextDiffusionPipeline.from_pretrained(GOLDEN / "llada", quantization_config=int8())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_weights_write_on_a_gpu(folder, bits):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    settings = {"quantization_config": for_the_denoiser(config), "dtype": torch.bfloat16}
    pipe = TextDiffusionPipeline.from_pretrained(folder, **settings)
    full = TextDiffusionPipeline.from_pretrained(folder)
    assert 0 < relative_error(pipe.denoiser, full.denoiser) < {8: 0.2, 4: 0.9}[bits]
    assert pipe(messages=MESSAGES, **SETTINGS).tokens.shape == (1, 12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloaded_weights_write_the_same_and_go_back():
    pipe = chat_pipe()
    want = pipe(messages=MESSAGES, **SETTINGS).tokens
    pipe.enable_model_cpu_offload()
    assert torch.equal(pipe(messages=MESSAGES, **SETTINGS).tokens.cpu(), want)
    assert pipe.denoiser.device.type == "cpu"
