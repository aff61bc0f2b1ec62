"""Laws of LoRA on TextDiffusionPipeline: what a file holds, what it does to the weights, and what is refused."""

import json

import pytest
import torch
from conftest import make_denoiser
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline

BLOCK_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.0", "ff.2"]
RANK, ALPHA = 3, 12.0
FILE = "pytorch_lora_weights.safetensors"
IDS = torch.arange(24).view(2, 12)


def write(pipe, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return pipe(num_return_sequences=8, num_inference_steps=12, generator=generator).tokens


@torch.no_grad()
def logits(pipe):
    return pipe.denoiser(IDS, torch.full((2,), 0.5)).logits


def make_pipe(tokenizer, **changes):
    pipe = TextDiffusionPipeline(
        tokenizer,
        make_denoiser(tokenizer, **changes),
        D3PMAbsorbingScheduler(tokenizer.mask_token_id),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trained(tokenizer, seed=1, sizes=None, **changes):
    """A pipeline whose denoiser has the adapter "default", as after training: no factor is at its starting point."""
    pipe = make_pipe(tokenizer, **sizes or {})
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": BLOCK_LAYERS} | changes
    pipe.denoiser.add_adapter(LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in pipe.denoiser.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    pipe.denoiser.eval()
    return pipe


def save(pipe, folder):
    layers, config = get_peft_model_state_dict(pipe.denoiser), pipe.denoiser.peft_config["default"]
    TextDiffusionPipeline.save_lora_weights(folder, layers, config.to_dict())
    return folder


@pytest.fixture
def adapter(tokenizer, tmp_path):
    """The folder of an adapter, and the pipeline that it was trained in."""
    pipe = trained(tokenizer)
    return save(pipe, tmp_path / "adapter"), pipe


def updates(folder):
    """{layer: alpha / rank * B A}, by hand from the file."""
    file = load_file(folder / FILE)
    layers = {key.removeprefix("denoiser.").split(".lora_")[0] for key in file}
    factors = {
        layer: [file[f"denoiser.{layer}.lora_{side}.weight"] for side in "BA"] for layer in layers
    }
    return {layer: ALPHA / RANK * b @ a for layer, (b, a) in factors.items()}


def test_a_file_holds_prefixed_factors_and_the_config(adapter):
    folder, pipe = adapter
    assert [path.name for path in folder.iterdir()] == [FILE]
    with safe_open(folder / FILE, framework="pt") as file:
        keys, metadata = set(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
    layers = [
        name for name, module in pipe.denoiser.named_modules() if hasattr(module, "base_layer")
    ]
    assert keys == {f"denoiser.{layer}.lora_{side}.weight" for layer in layers for side in "AB"}
    assert (metadata["denoiser.r"], metadata["denoiser.lora_alpha"]) == (RANK, ALPHA)
    assert set(metadata["denoiser.target_modules"]) == set(BLOCK_LAYERS)


def test_rank_alpha_and_target_modules_survive_the_round_trip(pipe, adapter):
    folder, source = adapter
    pipe.load_lora_weights(folder, adapter_name="a")
    assert pipe.get_list_adapters() == {"denoiser": ["a"]} and pipe.get_active_adapters() == ["a"]
    loaded, saved = pipe.denoiser.peft_config["a"], source.denoiser.peft_config["default"]
    for name in ("r", "lora_alpha", "target_modules"):
        assert getattr(loaded, name) == getattr(saved, name), name


def test_a_loaded_adapter_writes_what_the_trained_denoiser_wrote(pipe, adapter):
    folder, source = adapter
    base = write(pipe)
    pipe.load_lora_weights(str(folder))
    assert torch.equal(logits(pipe), logits(source)) and torch.equal(write(pipe), write(source))
    assert not torch.equal(write(pipe), base)


@pytest.mark.filterwarnings(
    "ignore:Adapter 'default'"
)  # peft takes any LoRA bias for half a matrix
@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"rank_pattern": {"to_q": 5}, "alpha_pattern": {"ff.0": 1.0}},
        {"lora_bias": True, "target_modules": ["ff.0", "ff.2"]},
        {"use_dora": True},
        {"target_modules": r"blocks\.1\..*(to_[qkv]|ff\.2)"},
        {
            "target_modules": [
                "modulation",
                "modulation_out",
                "head",
                "time_embedding.0",
                "time_embedding.2",
            ]
        },
    ],
    ids=lambda changes: "-".join(changes),
)
def test_variants_of_lora_survive_the_round_trip(tokenizer, tmp_path, changes):
    sizes = {"time_conditioning": True}
    source, pipe = trained(tokenizer, sizes=sizes, **changes), make_pipe(tokenizer, **sizes)
    base = logits(pipe)
    pipe.load_lora_weights(save(source, tmp_path))
    assert torch.equal(logits(pipe), logits(source)) and not torch.allclose(
        logits(pipe), base, atol=1e-2
    )


def test_stock_diffusers_reads_the_same_adapter_from_the_file(tokenizer, adapter):
    folder, source = adapter
    denoiser = make_denoiser(tokenizer)
    denoiser.load_lora_adapter(
        str(folder), prefix="denoiser", use_safetensors=True, weight_name=FILE
    )
    assert torch.equal(denoiser(IDS).logits, logits(source))


def test_a_dict_without_config_has_its_rank_for_alpha(pipe, adapter):
    folder, _ = adapter
    weights = load_file(folder / FILE)
    expected = {layer: RANK / ALPHA * update for layer, update in updates(folder).items()}
    base = {layer: pipe.denoiser.get_submodule(layer).weight.clone() for layer in expected}
    pipe.load_lora_weights(weights)
    pipe.fuse_lora()
    for layer, update in expected.items():
        fused = pipe.denoiser.get_submodule(layer).base_layer.weight
        torch.testing.assert_close(fused, base[layer] + update, atol=1e-6, rtol=0)


def test_a_fused_weight_is_the_base_plus_alpha_over_rank_times_b_a(pipe, adapter):
    folder, _ = adapter
    base = {name: weight.clone() for name, weight in pipe.denoiser.state_dict().items()}
    by_hand = {
        f"{layer}.weight": base[f"{layer}.weight"] + update
        for layer, update in updates(folder).items()
    }
    assert len(by_hand) == 2 * len(BLOCK_LAYERS)
    pipe.load_lora_weights(folder)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = pipe.denoiser.state_dict()
    assert fused.keys() == base.keys()
    for name, weight in fused.items():
        torch.testing.assert_close(weight, by_hand.get(name, base[name]), atol=1e-6, rtol=0)
    assert pipe.get_list_adapters() == {}


def test_fusing_keeps_the_outputs_and_unfusing_restores_the_weights(pipe, adapter):
    base = {name: weight.clone() for name, weight in pipe.denoiser.state_dict().items()}
    pipe.load_lora_weights(adapter[0])
    adapted = logits(pipe)
    pipe.fuse_lora()
    assert not torch.equal(
        pipe.denoiser.blocks[0].attn.to_q.base_layer.weight, base["blocks.0.attn.to_q.weight"]
    )
    torch.testing.assert_close(logits(pipe), adapted, atol=1e-5, rtol=0)
    pipe.unfuse_lora()
    torch.testing.assert_close(logits(pipe), adapted, atol=1e-5, rtol=0)
    pipe.unload_lora_weights()
    for name, weight in pipe.denoiser.state_dict().items():
        torch.testing.assert_close(weight, base[name], atol=1e-6, rtol=0)


def test_fusing_at_a_scale_adds_that_share_and_is_undone(pipe, adapter):
    folder, _ = adapter
    layer = pipe.denoiser.blocks[1].ff[0]
    base, update = layer.weight.clone(), updates(folder)["blocks.1.ff.0"]
    pipe.load_lora_weights(folder)
    pipe.fuse_lora(lora_scale=0.25)
    torch.testing.assert_close(layer.weight, base + 0.25 * update, atol=1e-6, rtol=0)
    pipe.unfuse_lora()
    torch.testing.assert_close(layer.weight, base, atol=1e-6, rtol=0)


def test_unloading_gives_back_exactly_the_base_model(pipe, adapter):
    base, tokens, keys = logits(pipe), write(pipe), list(pipe.denoiser.state_dict())
    pipe.load_lora_weights(adapter[0])
    assert not torch.equal(logits(pipe), base)
    pipe.unload_lora_weights()
    assert torch.equal(logits(pipe), base) and torch.equal(write(pipe), tokens)
    assert list(pipe.denoiser.state_dict()) == keys


def test_disabling_is_the_base_model_and_enabling_the_adapter(pipe, adapter):
    base = logits(pipe)
    pipe.load_lora_weights(adapter[0])
    adapted = logits(pipe)
    pipe.disable_lora()
    assert torch.equal(logits(pipe), base)
    pipe.enable_lora()
    assert torch.equal(logits(pipe), adapted)


def test_two_adapters_add_their_weighted_updates(pipe, tokenizer, tmp_path):
    folders = {
        name: save(trained(tokenizer, seed), tmp_path / name) for seed, name in enumerate("ab")
    }
    by_hand = make_denoiser(tokenizer)
    with torch.no_grad():
        for folder in folders.values():
            for layer, update in updates(folder).items():
                by_hand.get_submodule(layer).weight += 0.5 * update
    for name, folder in folders.items():
        pipe.load_lora_weights(folder, adapter_name=name)
    assert pipe.get_active_adapters() == ["b"]  # the last one alone
    pipe.set_adapters(["a", "b"], [0.5, 0.5])
    torch.testing.assert_close(logits(pipe), by_hand(IDS).logits, atol=1e-5, rtol=0)
    pipe.fuse_lora()
    torch.testing.assert_close(logits(pipe), by_hand(IDS).logits, atol=1e-5, rtol=0)


def test_a_fused_and_unloaded_pipeline_is_saved_as_one_without_adapters(pipe, adapter, tmp_path):
    keys = set(pipe.denoiser.state_dict())
    pipe.load_lora_weights(adapter[0])
    tokens = write(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    assert set(load_file(tmp_path / "saved/denoiser/diffusion_pytorch_model.safetensors")) == keys
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(write(loaded), tokens)


@pytest.mark.parametrize("prepare", ["load_lora_weights", "fuse_lora", "delete_adapters"])
def test_a_pipeline_with_adapter_layers_is_not_saved(pipe, adapter, tmp_path, prepare):
    """Stock diffusers writes `to_q.base_layer.weight`, and loads it as a model with missing weights."""
    pipe.load_lora_weights(adapter[0], adapter_name="a")
    if prepare == "fuse_lora":
        pipe.fuse_lora()
    if prepare == "delete_adapters":
        pipe.delete_adapters("a")
    assert "blocks.0.attn.to_q.base_layer.weight" in pipe.denoiser.state_dict()
    with pytest.raises(
        ValueError, match=r"call `fuse_lora\(\)`, if wanted, and `unload_lora_weights\(\)`"
    ):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_dropout_of_an_adapter_is_off_in_a_loaded_pipeline(pipe, tokenizer, tmp_path):
    source = trained(tokenizer, lora_dropout=0.5)
    pipe.load_lora_weights(save(source, tmp_path))
    assert torch.equal(logits(pipe), logits(source)) and torch.equal(logits(pipe), logits(pipe))


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe, folder: pipe.load_lora_weights(folder, adapter_name="b"),
        lambda pipe, folder: pipe.set_adapters(["a"], [0.5]),
        lambda pipe, folder: pipe.fuse_lora(lora_scale=0.5),
    ],
    ids=["load", "set", "fuse"],
)
def test_nothing_changes_under_a_fused_adapter(pipe, adapter, change):
    """Stock diffusers would ignore the change, and subtract something else than it added when unfusing."""
    layer = pipe.denoiser.blocks[0].attn.to_v
    base = layer.weight.clone()
    pipe.load_lora_weights(adapter[0], adapter_name="a")
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"first call `unfuse_lora\(\)`"):
        change(pipe, adapter[0])
    pipe.unfuse_lora()
    torch.testing.assert_close(layer.weight, base, atol=1e-6, rtol=0)
    change(pipe, adapter[0])


def refused(pipe, source, message, **arguments):
    """Nothing of a refused adapter stays in the denoiser."""
    base, keys = logits(pipe), list(pipe.denoiser.state_dict())
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(source, **arguments)
    assert list(pipe.denoiser.state_dict()) == keys and torch.equal(logits(pipe), base)
    assert pipe.get_list_adapters() == {}


def test_pickled_and_missing_files_are_refused(pipe, adapter, tmp_path):
    torch.save(load_file(adapter[0] / FILE), tmp_path / "pytorch_lora_weights.bin")
    refused(
        pipe,
        tmp_path,
        "must be a .safetensors file, never a pickled one",
        weight_name="pytorch_lora_weights.bin",
    )
    refused(pipe, tmp_path, f"found no {FILE} or adapter_model.safetensors in '{tmp_path}'")
    refused(pipe, tmp_path, f"found no {FILE}", use_safetensors=None)
    refused(pipe, adapter[0], "found no other.safetensors", weight_name="other.safetensors")
    refused(pipe, tmp_path / "nowhere", f"found no {FILE}")
    (tmp_path / FILE).write_bytes((tmp_path / "pytorch_lora_weights.bin").read_bytes())
    with pytest.raises(Exception, match="header"):  # of safetensors, which runs nothing
        pipe.load_lora_weights(tmp_path)


def test_weights_that_do_not_fit_the_denoiser_are_refused(pipe, adapter, tokenizer, tmp_path):
    weights = load_file(adapter[0] / FILE)
    key = "denoiser.blocks.0.attn.to_q.lora_B.weight"
    wrong = {"blocks.0": "blocks.7", "denoiser.": "transformer.", "lora_B": "lora_B.default"}
    for changed in (key.replace(old, new) for old, new in wrong.items()):
        renamed = {changed if name == key else name: weight for name, weight in weights.items()}
        refused(pipe, renamed, f"must fit the denoiser's layers, got {changed}")
    refused(pipe, {"denoiser.head.weight": torch.zeros(2, 2)}, "got 'denoiser.head.weight'")
    refused(
        pipe,
        weights | {"denoiser.token_embedding.lora_embedding_A": torch.zeros(3, 9)},
        "token_embedding",
    )
    wider = save(trained(tokenizer, sizes={"hidden_size": 64}), tmp_path / "wider")
    refused(pipe, wider, rf"must fit the denoiser's layers, got denoiser\S+ \({RANK}, 64\)")


def test_a_name_that_is_taken_or_unknown_is_refused(pipe, adapter):
    pipe.load_lora_weights(adapter[0], adapter_name="a")
    with pytest.raises(ValueError, match="a already in use"):
        pipe.load_lora_weights(adapter[0], adapter_name="a")
    with pytest.raises(ValueError, match="'b'"):
        pipe.set_adapters(["b"])


def test_a_denoiser_that_takes_no_adapters_is_refused(pipe, adapter):
    """Of neither diffusers nor transformers: any module that is called as a denoiser is one."""

    class Denoiser(torch.nn.Module):
        config = pipe.denoiser.config
        forward = None

    pipe.denoiser = Denoiser()
    for call in (
        lambda: pipe.load_lora_weights(adapter[0]),
        pipe.fuse_lora,
        lambda: pipe.set_adapters("a"),
    ):
        with pytest.raises(ValueError, match="`PeftAdapterMixin` of diffusers, got Denoiser"):
            call()


def test_the_names_reach_every_linear_layer_of_the_blocks(tokenizer):
    pipe = trained(
        tokenizer, sizes={"time_conditioning": True}, target_modules=[*BLOCK_LAYERS, "modulation"]
    )
    plain = make_denoiser(tokenizer, time_conditioning=True).blocks.named_modules()
    linear = {f"blocks.{name}" for name, module in plain if isinstance(module, torch.nn.Linear)}
    assert {
        name for name, module in pipe.denoiser.named_modules() if hasattr(module, "base_layer")
    } == linear
    trainable = {
        name for name, parameter in pipe.denoiser.named_parameters() if parameter.requires_grad
    }
    assert trainable and all(".lora_" in name for name in trainable)
