"""Published language models compute what their authors' code computes, and stay plain models of transformers."""

import pytest
import torch
from support.published_checkpoints import (
    GOLDEN,
    LANGUAGE_MODELS,
    golden_numbers,
    golden_tensors,
    numbered_tokenizer,
    real_rows,
)
from transformers import AutoModelForCausalLM

from text_diffusers import TextDiffusionPipeline
from text_diffusers.hub import convert, load_denoiser
from text_diffusers.models import read_config


def check_case(family, case, denoiser, tolerance):
    """Compare the logits of a golden case, pads aside."""
    tokens = torch.tensor(case["inputs"]["input_ids"])
    real = real_rows(family, case)
    with torch.no_grad():
        logits = denoiser(tokens, 0.5, real).logits

    expected = torch.tensor(case["logits"])
    compared = torch.ones_like(tokens) if real is None else real
    if denoiser.reading.alignment == "shifted":
        # Theirs are before the shift; the first token keeps its own.
        before = (torch.arange(tokens.shape[1]) - 1).clamp(min=0)
        expected = expected[:, before]
        compared = compared * compared[:, before]
    torch.testing.assert_close(logits[compared.bool()], expected[compared.bool()], **tolerance)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_logits_are_those_of_the_authors_code(family):
    numbers = golden_numbers(family)
    for case in numbers["forward"]:
        # Of SDAR one case is of other blocks than its configuration says.
        denoiser = load_denoiser(GOLDEN / family, block_length=case.get("block_length"))
        check_case(family, case, denoiser, numbers["tolerance"])


@pytest.mark.parametrize("family", ["llada", "illada", "dream", "a2d_qwen3", "diffugpt"])
def test_a_converted_folder_is_one_of_stock_transformers(family, tmp_path):
    """transformers reads from the configuration that all tokens see each other; shifts are ours."""
    numbers = golden_numbers(family)
    case = numbers["forward"][0]
    num_tokens = case["logits_shape"][-1]
    tokenizer = numbered_tokenizer(num_tokens, mask_token="w66", eos_token="w7")
    tokenizer.mask_token = f"w{case.get('mask_token_id', {'illada': 5}.get(family, 90))}"
    convert(GOLDEN / family, tmp_path / "out", tokenizer=tokenizer)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/denoiser", dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor(case["inputs"]["input_ids"])).logits
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), **numbers["tolerance"])

    # Our own loader reads the same, with the shift.
    pipe = TextDiffusionPipeline.from_pretrained(tmp_path / "out")
    reading = read_config(pipe.denoiser.config)
    assert reading.alignment == load_denoiser(GOLDEN / family).reading.alignment
    assert reading.mask_token_id == tokenizer.mask_token_id and 7 in reading.end_token_ids


def test_a_llama_is_known_as_diffullama_by_its_name_or_by_the_callers_word(tmp_path):
    folder = tmp_path / "models" / "llama-2-7b"
    folder.parent.mkdir()
    folder.symlink_to(GOLDEN / "diffullama")
    with pytest.raises(ValueError, match="train_d3pm.py --model_name_or_path .*llama-2-7b"):
        load_denoiser(folder)
    assert load_denoiser(folder, family="diffullama").reading.alignment == "shifted"
    with pytest.raises(ValueError, match="`family` must be that of .* got 'dream'"):
        load_denoiser(folder, family="dream")


def test_rotary_frequencies_have_the_base_of_the_configuration():
    """transformers takes 10000 where it finds none."""
    rotary = load_denoiser(GOLDEN / "llada").language_model.model.rotary_emb
    exponents = torch.arange(0, 12, 2, dtype=torch.float64) / 12
    torch.testing.assert_close(rotary.inv_freq.double(), 500_000.0**-exponents)


def test_every_weight_is_that_of_the_file():
    model = load_denoiser(GOLDEN / "illada").language_model
    stored = golden_tensors("illada")
    own = dict(model.named_parameters())
    assert sum(tensor.numel() for tensor in own.values()) == sum(
        tensor.numel() for tensor in stored.values()
    )
    name = "model.transformer.blocks.1.ff_out.weight"
    torch.testing.assert_close(own["model.layers.1.mlp.down_proj.weight"], stored[name])
    # The head is the embedding itself.
    assert model.lm_head.weight is model.model.embed_tokens.weight
