"""Files of weights: damage is found in their headers, and tensors reach their places in their types, once each."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.published_checkpoints import GOLDEN, copy_checkpoint, golden_files, golden_tensors
from torch import nn

from text_diffusers.hub import load_denoiser
from text_diffusers.hub.published.blueprint import Blueprint, Weight
from text_diffusers.hub.published.checkpoint import (
    check_weights,
    load_weights,
    stored_tensors,
)
from text_diffusers.hub.published.repository import published_folder

INDEX = "model.safetensors.index.json"


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "llada"
    shutil.copytree(GOLDEN / "llada", folder)
    return folder


def rewrite(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# Files


def test_headers_say_what_torch_reads():
    stored = stored_tensors(GOLDEN / "llada")
    for name, tensor in golden_tensors("llada").items():
        assert stored[name].shape == tuple(tensor.shape) and stored[name].dtype == "F32"


def test_damaged_missing_and_contradicting_files_are_named(shards):
    first = shards / "model-00001-of-00002.safetensors"
    content = first.read_bytes()
    for damaged in (content[:-1], b"", content[:8] + b"[" + content[9:], b"\xff" * 64):
        first.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{first}.*is damaged"):
            stored_tensors(shards)
    first.unlink()
    with pytest.raises(OSError, match=f"{first}. must be a file"):
        stored_tensors(shards)
    first.write_bytes(content)

    # The index and the shards must agree.
    save_file({"model.transformer.ff_out.weight": torch.zeros(2)}, shards / "more.safetensors")
    rewrite(shards / INDEX, lambda index: index["weight_map"].update(more="more.safetensors"))
    with pytest.raises(ValueError, match="each tensor once, but .*ff_out.* `more.safetensors`"):
        stored_tensors(shards)
    save_file({"other": torch.zeros(2)}, shards / "more.safetensors")
    with pytest.raises(ValueError, match="says that 'more' is in `more.safetensors`"):
        stored_tensors(shards)


@pytest.mark.parametrize("weight_map", [{"a": "../b.safetensors"}, {"a": 3}, {}, None])
def test_an_index_must_name_files_beside_it(shards, weight_map):
    rewrite(shards / INDEX, lambda index: index.update(weight_map=weight_map))
    with pytest.raises(ValueError, match=f"{INDEX}. must have a `weight_map`"):
        stored_tensors(shards)


def test_pickles_and_links_out_of_the_folder_are_not_read(shards, tmp_path):
    for file in shards.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(OSError, match="neither model.safetensors nor"):
        stored_tensors(shards)
    (shards / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="'pytorch_model.bin'.* convert them to model.safetensors"):
        stored_tensors(shards)

    save_file(golden_tensors("llada"), tmp_path / "secret.safetensors")
    (shards / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(ValueError, match="is a link out of the folder"):
        stored_tensors(shards)


# Loading


def test_weights_have_the_type_in_which_most_numbers_are_stored(tmp_path):
    tensors = golden_tensors("llada")
    half = {
        name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()
    }
    folder = copy_checkpoint("llada", tmp_path / "half", tensors=half)
    assert {weight.dtype for weight in load_denoiser(folder).parameters()} == {torch.bfloat16}

    # Any other type is that of the stored numbers, rounded once.
    model = load_denoiser(folder, "float64").language_model
    name = "model.transformer.blocks.0.attn_out.weight"
    weight = model.model.layers[0].self_attn.o_proj.weight
    torch.testing.assert_close(weight, half[name].double(), rtol=0, atol=0)
    assert model.config.dtype == torch.float64 and not model.training
    # Frequencies are no weights.
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_weights_beyond_the_range_of_their_new_type_are_refused(tmp_path):
    tensors = golden_tensors("llada")
    name = "model.transformer.wte.weight"
    tensors[name][0, 0] = 1e6
    folder = copy_checkpoint("llada", tmp_path / "large", tensors=tensors)
    load_denoiser(folder)
    with pytest.raises(ValueError, match=f"{re.escape(name)}' must hold finite numbers in .*16"):
        load_denoiser(folder, "float16")


@pytest.mark.parametrize("device_map", ["cpu", "auto", "sequential", {"": "cpu"}])
def test_a_placement_changes_no_number(device_map):
    tokens = torch.tensor([[75, 90, 70, 90]])
    expected = load_denoiser(GOLDEN / "llada")(tokens).logits
    logits = load_denoiser(GOLDEN / "llada", device_map=device_map)(tokens).logits
    assert torch.equal(logits, expected)


class Parts(nn.Module):
    """A weight that is cut out of a stored one, one that is used twice, a tied one, and a type that must stay."""

    _keep_in_fp32_modules_strict = {"bias"}

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(3, 2, bias=False)
        self.key = nn.Linear(3, 2, bias=False)
        self.embedding = nn.Embedding(4, 3)
        self.copy = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("bias", torch.zeros(2))
        self.register_buffer("frequencies", torch.arange(3.0), persistent=False)


@pytest.fixture
def parts(tmp_path):
    tensors = {
        "fused": torch.arange(12.0).reshape(4, 3),
        "words": torch.randn(4, 3),
        "bias": torch.tensor([1 / 3, 2.0]),
        "frequencies": torch.zeros(3),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    weights = {
        "query.weight": Weight(("fused",), lambda fused: fused[:2]),
        "key.weight": Weight(("fused",), lambda fused: fused[2:]),
        "embedding.weight": Weight(("words",)),
        "copy.weight": Weight(("words",)),
        "bias": Weight(("bias",)),
    }
    ignored = frozenset({"frequencies"})
    blueprint = Blueprint("Parts", Parts, weights, scheduler=lambda mask: None, ignored=ignored)
    return blueprint, stored_tensors(tmp_path), tensors


def test_each_weight_has_memory_of_its_own_but_tied_ones_share_it(parts):
    blueprint, stored, tensors = parts
    model = load_weights(blueprint, stored, torch.bfloat16)
    assert torch.equal(model.query.weight.float(), tensors["fused"][:2])
    assert torch.equal(model.key.weight.float(), tensors["fused"][2:])
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.frequencies, torch.arange(3.0))
    # A third would be another number in bfloat16.
    assert torch.equal(model.bias, tensors["bias"])

    weights = [model.query.weight, model.key.weight, model.embedding.weight, model.copy.weight]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 4
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in weights)
    assert all(weight.requires_grad for weight in weights)


def test_a_blueprint_that_leaves_a_weight_out_or_makes_one_too_many_is_refused(parts):
    blueprint, stored, _ = parts
    copied = blueprint.weights.pop("copy.weight")
    with pytest.raises(ValueError, match="must have 'copy.weight' of a Parts"):
        check_weights(blueprint, stored)
    blueprint.weights |= {"copy.weight": copied, "value.weight": copied}
    with pytest.raises(ValueError, match="must have a weight 'value.weight', but has none"):
        check_weights(blueprint, stored)


# The Hub


def test_of_a_repository_neither_code_nor_pickles_are_downloaded(monkeypatch):
    """The rest by the commit of the first files, whatever is pushed meanwhile."""
    asked = []

    def snapshot(name, allow_patterns, **hub_arguments):
        asked.append((allow_patterns, hub_arguments))
        return str(GOLDEN / "llada")

    monkeypatch.setattr("text_diffusers.hub.published.repository.snapshot_download", snapshot)
    assert published_folder("ada/llada", revision="v1", token="t") == GOLDEN / "llada"
    (first, arguments), (second, later_arguments) = asked
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert {*second} == {"model.safetensors", *shards} and "config.json" in first
    assert not any(name.endswith((".py", ".bin")) or "*" in name for name in first + second)
    assert arguments == {"revision": "v1", "token": "t"}
    assert later_arguments == {"revision": "llada", "token": "t"}


def test_a_causal_model_is_refused_before_its_weights_are_downloaded(tmp_path, monkeypatch):
    asked = []
    (tmp_path / "config.json").write_text((GOLDEN / "diffullama/config.json").read_text())
    monkeypatch.setattr(
        "text_diffusers.hub.published.repository.snapshot_download",
        lambda name, allow_patterns, **arguments: asked.append(allow_patterns) or str(tmp_path),
    )
    with pytest.raises(ValueError, match="--model_name_or_path ada/llama"):
        load_denoiser("ada/llama")
    assert len(asked) == 1


def test_what_is_neither_a_folder_nor_a_repository_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be the name of a repository"):
        load_denoiser(tmp_path / "a" / "b")
    with pytest.raises(
        OSError, match="`ada/none` is no folder here and cannot be had from the Hub"
    ):
        load_denoiser("ada/none")
    config, _ = golden_files("llada")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="neither model.safetensors"):
        load_denoiser(tmp_path)
