"""LLaDA2 as the `Glm4MoeForCausalLM` of transformers: the numbers of its authors' code, and what is refused.

The numbers are of their code at random weights; see the folder `golden/published/llada2`.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeForCausalLM

from text_diffusers.hub.published.checkpoint import check_weights, load_weights, stored_tensors
from text_diffusers.hub.published.llada2 import read
from text_diffusers.models.language_model import LanguageModelDenoiser
from text_diffusers.models.reading import Reading, read_config, write_reading

FOLDER = Path(__file__).parents[2] / "golden/published/llada2"
CONFIG = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
STORED = stored_tensors(FOLDER)

# Their meaning is fixed, and a file of this family may leave them out.
OPTIONAL = {
    "architectures",
    "hidden_act",
    "moe_router_enable_expert_bias",
    "norm_head",
    "norm_topk_prob",
    "rope_scaling",
    "rotary_dim",
    "router_dtype",
    "score_function",
    "tie_word_embeddings",
    "use_bias",
    "use_qk_norm",
    "use_qkv_bias",
    "use_rmsnorm",
    "use_sliding_window",
    "using_split_qkv_in_self_attention",
}
FREE = {
    "attention_dropout",
    "auto_map",
    "dtype",
    "embedding_dropout",
    "initializer_range",
    "max_window_layers",
    "output_dropout",
    "output_router_logits",
    "pad_token_id",
    "sliding_window",
    "transformers_version",
    "use_cache",
}


def blueprint(**changes):
    return read(CONFIG | changes, STORED, "llada2")


@pytest.fixture(scope="module")
def model():
    return load_weights(blueprint(), STORED)


@torch.no_grad()
@pytest.mark.parametrize("case", GOLDEN["forward"], ids=lambda case: case["name"])
def test_logits_are_those_of_the_authors(model, case):
    attention = "bidirectional" if case["block_length"] is None else "block"
    reading = Reading(attention, case["block_length"], mask_token_id=case["mask_id"])
    write_reading(model.config, reading)

    tokens = torch.tensor(case["inputs"]["input_ids"])
    logits = LanguageModelDenoiser(model)(tokens).logits
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), **GOLDEN["tolerance"])


def test_it_is_read_block_by_block():
    model = blueprint().build()
    assert isinstance(model, Glm4MoeForCausalLM)
    # The published ids are not in this small vocabulary.
    assert read_config(model.config) == Reading("block", block_length=32)
    named = blueprint(mask_token_id=90, eos_token_id=[85, 86])
    assert named.mask_token_id == 90
    assert named.end_token_ids == [85, 86]

    whole = blueprint(vocab_size=157184)
    assert (whole.mask_token_id, whole.end_token_ids) == (156895, [156892])
    assert whole.licence == "apache-2.0"
    assert read({"model_type": "llama"}, {}, "llama") is None


@torch.no_grad()
def test_a_saved_folder_opens_in_transformers_alone(tmp_path):
    model = load_weights(blueprint(), STORED)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([[35, 16, 56, 90, 90]])
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.config.is_causal is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bias_that_chooses_experts_stays_in_float32(dtype):
    model = load_weights(blueprint(), STORED, dtype)
    gate = model.model.layers[1].mlp.gate
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert gate.weight.dtype == dtype


@pytest.mark.parametrize("key", CONFIG)
def test_every_key_is_understood(key):
    """A needed one is missed by its name, one with a fixed meaning may have no other, and the rest is free."""
    config = {name: value for name, value in CONFIG.items() if name != key}
    if key == "model_type":
        assert read(config, STORED, "llada2") is None
        return
    if key in FREE:
        assert read(config, STORED, "llada2") is not None
        assert blueprint(**{key: "something else"}) is not None
        return

    if key in OPTIONAL:
        assert read(config, STORED, "llada2") is not None
    else:
        with pytest.raises(ValueError, match=f"`{key}`"):
            read(config, STORED, "llada2")
    with pytest.raises(ValueError, match=f"`{key}`"):
        blueprint(**{key: "something else"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_such_key": 1}, "no_such_key"),
        ({"num_nextn_predict_layers": 1}, "`num_nextn_predict_layers` must be 0"),
        ({"rope_scaling": {"type": "yarn"}}, "`rope_scaling` must be None"),
        ({"rotary_dim": 6}, "`rotary_dim` must be `head_dim`=16 times"),
        ({"partial_rotary_factor": 0.3}, "`rotary_dim` must be"),
        ({"num_experts": 14}, "`num_experts` must be a multiple of `n_group`=4"),
        ({"n_group": 12}, "`num_experts` must be .* twice as many, got 12"),
        ({"topk_group": 5}, "`topk_group` must be at most `n_group`=4, got 5"),
        ({"num_experts_per_tok": 7}, "`num_experts_per_tok` must be from 2 to the 6 experts"),
        ({"num_experts_per_tok": 1}, "`num_experts_per_tok` must be from 2"),
        ({"num_experts": 4 * 10**8}, "`num_experts` must be a number of which each has weights"),
        ({"moe_shared_expert_intermediate_size": 24}, "`moe_shared_expert_intermediate_size` must"),
        ({"mask_token_id": 96}, "`mask_token_id` must be .* below 96"),
    ],
)
def test_a_configuration_of_another_network_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        blueprint(**changes)


def test_every_tensor_is_needed_in_its_shape():
    made = blueprint()
    with torch.device("meta"):
        built = made.build()
    made.build = lambda: built  # once for all

    for name, tensor in STORED.items():
        missing = {other: STORED[other] for other in STORED if other != name}
        with pytest.raises(ValueError, match=f"'{name}'"):
            check_weights(made, missing)

        taller = replace(tensor, shape=(tensor.shape[0] + 1, *tensor.shape[1:]))
        with pytest.raises(ValueError, match=f"'{name}'"):
            check_weights(made, STORED | {name: taller})
    with pytest.raises(ValueError, match="'model.layers.3.mtp.weight'"):
        check_weights(made, STORED | {"model.layers.3.mtp.weight": STORED["model.norm.weight"]})


def test_experts_whose_shapes_make_up_for_each_other_are_refused():
    expert = "model.layers.1.mlp.experts.3."
    changed = {}
    for name, rows in ((f"{expert}gate_proj.weight", 11), (f"{expert}up_proj.weight", 13)):
        changed[name] = replace(STORED[name], shape=(rows, 32))
    with pytest.raises(ValueError, match="gate_proj"):
        check_weights(blueprint(), STORED | changed)
