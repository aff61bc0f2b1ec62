"""Laws of LoRA on language models of transformers: what an adapter does to the weights, and which files load."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from support.language_models import chat_pipe
from support.masked_lms import make_masked_lm

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.models import LanguageModelDenoiser
from text_diffusers.pipelines.lora import native_layer

RANK, ALPHA = 3, 12.0
TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "qwen2": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "bert": ["query", "dense"],
}
TOKENS = torch.randint(6, 40, (2, 9), generator=torch.Generator().manual_seed(0))
QUESTION = [{"role": "user", "content": "w8 w9"}]
KINDS = ["llama", "gpt2", "bert"]


def make_pipe(kind="llama", **changes):
    if kind != "bert":
        return chat_pipe(kind, **changes)
    model, tokenizer = make_masked_lm("bert")
    pipe = TextDiffusionPipeline(tokenizer, model, D3PMAbsorbingScheduler(tokenizer.mask_token_id))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def logits(pipe):
    return LanguageModelDenoiser(pipe.denoiser)(TOKENS).logits


def draw_factors(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)


def trained(kind="llama", seed=1, **changes):
    """A pipeline whose language model has the adapter "default", as after training."""
    pipe = make_pipe(kind)
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS[kind]} | changes
    pipe.denoiser.add_adapter(LoraConfig(**settings))
    draw_factors(pipe.denoiser, seed)
    pipe.denoiser.eval()
    return pipe


def save(pipe, folder):
    layers, config = get_peft_model_state_dict(pipe.denoiser), pipe.denoiser.peft_config["default"]
    TextDiffusionPipeline.save_lora_weights(folder, layers, config.to_dict())
    return folder


def save_by_peft(folder, kind="llama", seed=1, **changes):
    """A folder as peft writes it."""
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS[kind]} | changes
    model = get_peft_model(make_pipe(kind).denoiser, LoraConfig(**settings))
    draw_factors(model, seed)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def updated(pipe, folder, scale=ALPHA / RANK, share=1.0):
    """The logits of a model whose weights are W + share * scale * B A, by hand from a file."""
    file = load_file(next(folder.glob("*.safetensors")))
    with torch.no_grad():
        for key, a in file.items():
            if ".lora_A." not in key:
                continue
            layer = key.partition(".lora_")[0]
            layer = layer.removeprefix("base_model.model.").removeprefix("denoiser.")
            update = share * scale * file[key.replace("lora_A", "lora_B")] @ a
            weight = pipe.denoiser.get_submodule(layer).weight
            # GPT-2 keeps its matrices as (in, out).
            weight += update if weight.shape == update.shape and "c_" not in layer else update.T
    return logits(pipe)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_adds_its_update_and_leaves_nothing_behind(kind, tmp_path):
    folder = save(trained(kind), tmp_path / "adapter")
    assert all(
        key.startswith("denoiser.")
        for key in load_file(folder / "pytorch_lora_weights.safetensors")
    )
    by_hand = updated(make_pipe(kind), folder)

    pipe = make_pipe(kind)
    base, keys = logits(pipe), list(pipe.denoiser.state_dict())
    pipe.load_lora_weights(folder, adapter_name="a")
    assert pipe.get_list_adapters() == {"denoiser": ["a"]} and pipe.get_active_adapters() == ["a"]
    adapted = logits(pipe)
    torch.testing.assert_close(adapted, by_hand, atol=1e-4, rtol=1e-4)
    assert (adapted - base).abs().max() > 0.1

    pipe.disable_lora()
    assert torch.equal(logits(pipe), base)
    pipe.enable_lora()
    assert torch.equal(logits(pipe), adapted)

    pipe.fuse_lora()
    torch.testing.assert_close(logits(pipe), adapted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"first call `unfuse_lora\(\)`"):
        pipe.load_lora_weights(folder, adapter_name="b")
    pipe.unfuse_lora()
    torch.testing.assert_close(logits(pipe), adapted, atol=1e-4, rtol=1e-4)

    again = make_pipe(kind)
    again.load_lora_weights(folder)
    again.unload_lora_weights()
    assert torch.equal(logits(again), base) and list(again.denoiser.state_dict()) == keys
    assert again.get_list_adapters() == {}
    again.load_lora_weights(folder)
    assert torch.equal(logits(again), adapted)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_itself_loads(kind, tmp_path):
    """With a scale of its own for one layer, and under rank-stabilised scaling: alpha / sqrt(rank)."""
    first = TARGETS[kind][0]
    for name, changes, scale in (
        ("plain", {}, ALPHA / RANK),
        ("stable", {"use_rslora": True}, ALPHA / RANK**0.5),
        ("single", {"target_modules": [first], "alpha_pattern": {first: 6.0}}, 6.0 / RANK),
    ):
        folder = save_by_peft(tmp_path / name, kind, **changes)
        assert {path.suffix for path in folder.iterdir()} >= {".json", ".safetensors"}
        pipe = make_pipe(kind)
        pipe.load_lora_weights(folder)
        by_hand = updated(make_pipe(kind), folder, scale)
        torch.testing.assert_close(logits(pipe), by_hand, atol=1e-4, rtol=1e-4)


def test_layers_of_the_published_code_are_found_by_their_names_in_transformers(tmp_path):
    """An adapter for LLaDA's own code: q_proj is `model.transformer.blocks.1.q_proj` there."""
    folder = save_by_peft(tmp_path, target_modules=["q_proj", "o_proj", "down_proj", "lm_head"])
    names = {
        "self_attn.q_proj": "q_proj",
        "self_attn.o_proj": "attn_out",
        "mlp.down_proj": "ff_out",
    }
    file = load_file(folder / "adapter_model.safetensors")
    renamed = {}
    for key, weight in file.items():
        for native, published in names.items():
            key = key.replace(native, published)
        key = key.replace("model.layers", "model.transformer.blocks")
        renamed[key.replace("lm_head", "model.transformer.ff_out")] = weight
    pipe = make_pipe()
    pipe.load_lora_weights(folder)
    want = logits(pipe)

    save_file(renamed, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "attn_out", "ff_out"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    pipe = make_pipe()
    pipe.load_lora_weights(folder)
    assert torch.equal(logits(pipe), want)


@pytest.mark.parametrize(
    ("kind", "published", "native"),
    [
        ("llama", "model.transformer.blocks.1.up_proj", "model.layers.1.mlp.up_proj"),
        ("llama", "model.transformer.ff_out", "lm_head"),
        ("gpt2", "denoise_model.h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
        ("llama", "denoise_model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"),
        ("qwen2", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
    ],
)
def test_names_of_published_code_are_those_of_layers(kind, published, native):
    denoiser = make_pipe(kind).denoiser
    assert native_layer(published, denoiser) == native
    assert denoiser.get_submodule(native) is not None


def test_a_model_in_half_precision_keeps_what_it_has_in_float32(tmp_path):
    folder = save_by_peft(tmp_path)
    pipe = make_pipe()
    pipe.denoiser.bfloat16()
    frequencies = pipe.denoiser.model.rotary_emb.inv_freq
    frequencies.data = frequencies.data.float()
    pipe.load_lora_weights(folder)
    assert pipe.denoiser.model.rotary_emb.inv_freq.dtype == torch.float32
    dtypes = {parameter.dtype for parameter in pipe.denoiser.parameters()}
    assert dtypes == {torch.bfloat16}
    assert pipe("w8", max_new_tokens=4, num_inference_steps=2).texts


def test_two_adapters_add_and_one_is_deleted(tmp_path):
    folders = [save(trained(seed=seed), tmp_path / str(seed)) for seed in (1, 2)]
    by_hand = make_pipe()
    for folder in folders:
        want = updated(by_hand, folder, share=0.5)
    pipe = make_pipe()
    for name, folder in zip("ab", folders, strict=True):
        pipe.load_lora_weights(folder, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.5, 0.5])
    torch.testing.assert_close(logits(pipe), want, atol=1e-4, rtol=1e-4)
    pipe.set_adapters("a")
    alone = logits(pipe)
    pipe.delete_adapters("b")
    assert pipe.get_list_adapters() == {"denoiser": ["a"]} and torch.equal(logits(pipe), alone)
    with pytest.raises(ValueError, match="a already in use"):
        pipe.load_lora_weights(folders[0], adapter_name="a")


def test_an_adapter_acts_in_chat_and_a_folder_is_saved_without_its_layers(tmp_path):
    settings = {"messages": QUESTION, "max_new_tokens": 12, "num_inference_steps": 4}
    pipe = make_pipe()
    base = pipe(**settings).texts
    pipe.load_lora_weights(save(trained(), tmp_path / "adapter"))
    adapted = pipe(**settings).texts
    assert adapted != base
    with pytest.raises(ValueError, match="`denoiser` has LoRA layers"):
        pipe.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert loaded(**settings).texts == adapted


def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was(tmp_path):
    pipe = make_pipe()
    base, keys = logits(pipe), list(pipe.denoiser.state_dict())

    def refused(source, message):
        with pytest.raises(ValueError, match=message):
            pipe.load_lora_weights(source)
        assert list(pipe.denoiser.state_dict()) == keys and torch.equal(logits(pipe), base)
        assert pipe.get_list_adapters() == {}

    folder = save_by_peft(tmp_path / "peft")
    weights = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    refused(
        weights | {key: torch.zeros(RANK, 7)}, r"must fit .* q_proj|q_proj.lora_A.weight \(3, 7\)"
    )
    refused(weights | {key.replace("layers.0", "layers.7"): weights[key]}, "layers.7")
    refused(weights | {"base_model.model.lm_head.weight": torch.zeros(44, 32)}, "lm_head.weight")
    refused(tmp_path, "found no pytorch_lora_weights.safetensors or adapter_model.safetensors")

    config = json.loads((folder / "adapter_config.json").read_text())
    for change, message in [
        ({"peft_type": "IA3"}, "`peft_type` of an adapter must be 'LORA', got 'IA3'"),
        ({"peft_type": "MINE"}, "The configuration of the adapter .* is none"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` of an adapter must be one of"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save` of an adapter must be left out"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "`layer_replication` of an adapter"),
        ({"bias": "all"}, "`bias` of an adapter must be 'none'"),
    ]:
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        refused(folder, message)
    (folder / "adapter_config.json").unlink()
    refused(folder, "Can't find 'adapter_config.json'")


def test_an_adapter_of_a_tied_head_acts_but_is_not_fused_into_the_embedding(tmp_path):
    folder = save_by_peft(tmp_path, target_modules=["lm_head"])
    pipe = make_pipe(tie_word_embeddings=True)
    base = logits(pipe)
    pipe.load_lora_weights(folder)
    assert not torch.allclose(logits(pipe), base)
    with pytest.raises(ValueError, match="adapter of its head, .* cannot be fused"):
        pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(logits(pipe), base)
