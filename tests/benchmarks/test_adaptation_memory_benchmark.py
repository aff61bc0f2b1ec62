"""What adaptation takes on GPUs is computed from what a step really holds and multiplies, on small models."""

import adaptation_memory
import pytest
import torch
from support.doc_blocks import ROOT
from support.language_models import make_language_model
from torch.utils.flop_counter import FlopCounterMode

from text_diffusers.models import LanguageModelDenoiser, Reading
from text_diffusers.training.adaptation.adapters import add_adapters, quantize
from text_diffusers.training.config import TrainingConfig, make_optimizer
from text_diffusers.training.state import TrainingState

pytestmark = pytest.mark.slow

# Parameters as their authors state them, in billions
STATED = {"Qwen2.5-0.5B": 0.49, "Qwen2.5-1.5B": 1.54, "Qwen2.5-3B": 3.09, "Llama-3.1-8B": 8.03}


def small_denoiser():
    reading = Reading(attention="block", past="causal", block_length=4, alignment="shifted")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 90}
    return LanguageModelDenoiser(make_language_model("llama", reading, **sizes))


def test_models_have_as_many_parameters_as_published():
    for name, sizes in adaptation_memory.published_sizes().items():
        assert sizes.total / 1e9 == pytest.approx(STATED[name], abs=0.006)


@pytest.mark.parametrize("rank", [None, 4])
def test_a_trained_weight_takes_as_many_bytes_as_the_state_of_a_step_holds(tmp_path, rank):
    denoiser = small_denoiser()
    sizes = adaptation_memory.sizes_of(denoiser.language_model)
    num_trained = sizes.total
    if rank is not None:
        add_adapters(denoiser, rank)
        num_trained = rank * sizes.ends

    config = TrainingConfig(output_dir=str(tmp_path), report_to=["none"])
    optimizer = make_optimizer(denoiser, config)
    state = TrainingState(denoiser, optimizer, ema_decay=0.9, build=small_denoiser)
    denoiser(torch.arange(8).unsqueeze(0)).logits[..., 1:].sum().backward()
    optimizer.step()
    state.update_averages()

    held = [*state.parameters.values(), *state.ema.shadow_params]
    held += [parameter.grad for parameter in state.parameters.values()]
    held += [moment for name, moment in state.moments().items() if not name.endswith("/step")]
    assert sum(tensor.nbytes for tensor in held) == adaptation_memory.TRAINED * num_trained


def test_frozen_weights_take_as_many_bytes_as_torchao_stores():
    pytest.importorskip("torchao.quantization", reason="an extra")
    denoiser = small_denoiser()
    model = denoiser.language_model
    sizes = adaptation_memory.sizes_of(model)
    quantize(denoiser, "int8", torch.device("cpu"))

    stored = 0
    for weight in model.parameters():
        parts = [weight]
        if hasattr(weight, "__tensor_flatten__"):
            parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
        stored += sum(part.nbytes for part in parts)

    # Beside the adapters and the copies of autocast
    whole = adaptation_memory.adapters(sizes, 0, "int8")
    copies = adaptation_memory.BFLOAT16 * (sizes.head + sizes.linear / sizes.num_layers)
    assert stored == whole - copies


def test_frozen_weights_in_16_bits_take_as_many_bytes_as_are_stored():
    denoiser = small_denoiser()
    sizes = adaptation_memory.sizes_of(denoiser.language_model)
    quantize(denoiser, "bf16", torch.device("cpu"), mixed_precision="bf16")
    stored = sum(weight.nbytes for weight in denoiser.parameters())
    assert stored == adaptation_memory.adapters(sizes, 0, "bf16")


@pytest.mark.parametrize("has_adapters", [False, True])
def test_hours_are_those_of_the_counted_operations(has_adapters):
    denoiser = small_denoiser()
    model = denoiser.language_model
    sizes = adaptation_memory.sizes_of(model)
    if has_adapters:
        add_adapters(denoiser, 1)
    model.train()
    denoiser.enable_gradient_checkpointing()
    length = 8
    tokens = torch.arange(length).unsqueeze(0)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)

    # Every state of both streams is read, and has logits.
    with FlopCounterMode(display=False) as counter:
        inputs = {"clean_ids": tokens, "clean_positions": everywhere}
        output = denoiser(tokens, positions=everywhere, **inputs)
        (output.logits.sum() + output.clean_logits.sum()).backward()

    peak = 1 / adaptation_memory.TERA / adaptation_memory.UTILISATION
    computed = 3600 * adaptation_memory.hours(sizes, length, peak, has_adapters)
    # Attention and adapters come on top, and the head runs forward once.
    assert counter.get_total_flops() == pytest.approx(computed, rel=0.1)


def test_the_page_shows_the_tables_that_the_command_prints(capsys):
    adaptation_memory.main(adaptation_memory.MemoryOptions())
    page = (ROOT / "docs/adaptation.md").read_text(encoding="utf-8")
    tables = [part for part in capsys.readouterr().out.split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert table.strip() in page
