"""The memory of models is computed from their published sizes, and as torchao stores weights."""

import model_memory
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TorchAoConfig

pytestmark = pytest.mark.slow

# Parameters as their authors state them, in billions.
STATED = {"llada": 8.02, "dream": 7.6, "sdar": 4.4, "a2d": 0.6, "mdlm": 0.17, "llada2": 16}


@pytest.mark.parametrize("key", STATED)
def test_models_have_as_many_parameters_as_published(key):
    with torch.device("meta"):
        model = model_memory.published_models()[key].build()
    count = model_memory.bytes_of_weights(model)["parameters"] / 1e9
    assert count == pytest.approx(STATED[key], rel=0.05)


def test_int8_weights_take_as_many_bytes_as_torchao_stores(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="an extra")
    config = LlamaConfig(vocab_size=90, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    config.num_attention_heads = config.num_key_value_heads = 4
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    int8 = TorchAoConfig(quant_type=quantization.Int8WeightOnlyConfig())
    quantised = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=int8, dtype=torch.bfloat16
    )

    stored = 0
    for weight in quantised.parameters():
        parts = [weight]
        if hasattr(weight, "__tensor_flatten__"):
            parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
        stored += sum(part.nbytes for part in parts)
    assert stored == model_memory.bytes_of_weights(model)["int8"]


def test_the_command_prints_computed_and_measured_lines(capsys):
    model_memory.main(model_memory.MemoryOptions(length=64, positions=4, measure=[]))
    lines = capsys.readouterr().out.splitlines()
    llada = next(line for line in lines if line.startswith("LLaDA-8B"))
    # 32 layers of keys and values of 4,096 numbers a token
    cache = 2 * 32 * 4096 * 64 * 2 / 1e6
    assert f"{cache:.0f} MB" in llada


@pytest.mark.slow
def test_a_call_at_few_positions_takes_less_than_all_logits():
    line = model_memory.in_own_process(1, model_memory.measured_line, "mdlm", 128, 4)
    logits = 50_258 * 128 * 4 / 1e6
    memory = {name: float(cell.split()[0]) for name, cell in line.items() if name != "case"}
    assert memory["all positions"] - memory["4 positions"] > 0.8 * logits
