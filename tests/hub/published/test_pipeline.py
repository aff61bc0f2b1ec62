"""Published checkpoints as pipelines: the tokenizer gets the mask, the model says how texts end, both are saved."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.published_checkpoints import GOLDEN, copy_checkpoint, numbered_tokenizer
from support.tokenizer_kinds import gpt2_tokenizer
from transformers import AutoTokenizer

from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    TextDiffusionPipeline,
)
from text_diffusers.hub import convert, load_denoiser, load_published_pipeline
from text_diffusers.models import read_config

# As in the published repositories: the mask of LLaDA and Dream is registered nowhere.
CHAT = {85: "<|endoftext|>", 89: "<|im_end|>", 90: "<|mask|>"}
ENDS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def with_tokenizer(family, folder, tokenizer):
    copy_checkpoint(family, folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def dream(tmp_path):
    return with_tokenizer("dream", tmp_path / "dream", numbered_tokenizer(94, CHAT, **ENDS))


def write(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    sizes = {"max_new_tokens": 6, "num_inference_steps": 3}
    return pipe("w11 w12", generator=generator, **sizes | arguments).texts


def test_mask_start_ends_and_limit_are_those_of_the_model(dream):
    pipe = load_published_pipeline(dream)
    assert isinstance(pipe, TextDiffusionPipeline)
    assert pipe.tokenizer.mask_token == "<|mask|>" and pipe.tokenizer.mask_token_id == 90
    # The tokenizer itself puts no start token before a text.
    assert pipe.tokenizer.bos_token is None and pipe.tokenizer.eos_token_id == 85
    assert pipe.tokenizer.model_max_length == pipe.max_length == 128
    # Of the configuration, and the end of a turn.
    assert read_config(pipe.denoiser.config).end_token_ids == [85, 89]
    assert pipe.scheduler.config.quota == "truncated" and pipe.scheduler.config.allow_mask


def test_ends_of_the_generation_config_count(dream):
    (dream / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 85]}))
    pipe = load_published_pipeline(dream)
    assert read_config(pipe.denoiser.config).end_token_ids == [85, 7, 89]


def test_a_saved_pipeline_writes_the_same(dream, tmp_path):
    pipe = convert(dream, tmp_path / "out")
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert write(again) == write(pipe)
    assert again.tokenizer.bos_token is None and again.tokenizer.mask_token_id == 90
    assert read_config(again.denoiser.config) == read_config(pipe.denoiser.config)


def test_components_and_types_of_the_caller_are_taken(dream):
    tokenizer = AutoTokenizer.from_pretrained(dream)
    scheduler = D3PMAbsorbingScheduler(90)
    pipe = load_published_pipeline(
        dream,
        tokenizer=tokenizer,
        scheduler=scheduler,
        torch_dtype=torch.bfloat16,
        device_map="cpu",
        low_cpu_mem_usage=True,
    )
    assert pipe.scheduler.config.items() >= {"mask_token_id": 90, "schedule": "linear"}.items()
    assert not isinstance(pipe.scheduler, ConfidenceScheduler)
    assert pipe.denoiser.dtype == torch.bfloat16 and pipe.block_length is None
    # The caller's own tokenizer stays as it was.
    assert tokenizer.mask_token is None and pipe.tokenizer.mask_token_id == 90

    for arguments in (
        {"variant": "fp16"},
        {"use_safetensors": False},
        {"dtype": "x"},
        {"block_length": 4},
    ):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            load_published_pipeline(dream, **arguments)


def test_a_mask_one_past_the_tokenizer_is_added_there(tmp_path):
    """As in MDLM: GPT-2's tokenizer, and one row more in the embedding."""
    end = {"eos_token": "w79", "bos_token": "w79"}
    folder = with_tokenizer("mdlm", tmp_path / "mdlm", numbered_tokenizer(90, **end))
    pipe = load_published_pipeline(folder)
    assert pipe.tokenizer.mask_token_id == 90 and len(pipe.tokenizer) == 91
    assert pipe.tokenizer.bos_token == "w79" and len(write(pipe)) == 1

    # With a token fewer it would get another id.
    with pytest.raises(ValueError, match="must have the mask at 90, .* 89 tokens"):
        load_published_pipeline(folder, tokenizer=numbered_tokenizer(89, **end))


def test_an_ordinary_token_can_be_the_mask(tmp_path):
    """DiffuGPT's is one of GPT-2's tokens, by the code of its authors alone."""
    config = json.loads((GOLDEN / "diffugpt/config.json").read_text())
    config |= {"vocab_size": 10_600, "n_embd": 4, "n_layer": 1, "n_head": 1}
    shapes = {
        "embed_tokens.weight": (10_600, 4),
        "denoise_model.wpe.weight": (32, 4),
        "denoise_model.ln_f.weight": (4,),
        "denoise_model.ln_f.bias": (4,),
    }
    parts = {
        "ln_1": (4,),
        "attn.c_attn": (4, 12),
        "attn.c_proj": (4, 4),
        "ln_2": (4,),
        "mlp.c_fc": (4, 16),
        "mlp.c_proj": (16, 4),
    }
    for part, shape in parts.items():
        shapes[f"denoise_model.h.0.{part}.weight"] = shape
        shapes[f"denoise_model.h.0.{part}.bias"] = shape[-1:]
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    folder = copy_checkpoint("diffugpt", tmp_path / "gpt", config, tensors)
    numbered_tokenizer(10_600, eos_token="w79").save_pretrained(folder)

    tokenizer = load_published_pipeline(folder).tokenizer
    assert tokenizer.mask_token == "w10541" and len(tokenizer) == 10_600
    assert tokenizer("w10541 w3")["input_ids"] == [10_541, 3]


def test_noise_without_a_mask_still_has_a_sign_for_gaps(tmp_path):
    folder = with_tokenizer("duo", tmp_path / "duo", numbered_tokenizer(85, eos_token="w7"))
    pipe = load_published_pipeline(folder)
    assert pipe.tokenizer.mask_token_id == 85 and pipe.scheduler.config.get("mask_token_id") is None
    assert "[MASK]" not in write(pipe)[0]


def test_a_tokenizer_with_code_of_its_own_is_read_by_the_class_it_was_made_from(tmp_path):
    """As in Dream, which names a class of its own beside files of Qwen2's tokenizer."""
    byte_level = gpt2_tokenizer()
    byte_level.save_pretrained(tmp_path / "made")
    model = json.loads((tmp_path / "made/tokenizer.json").read_text())["model"]
    config = json.loads((GOLDEN / "dream/config.json").read_text())
    size = len(model["vocab"])

    # With another vocabulary the network needs as many rows.
    denoiser = load_denoiser(GOLDEN / "dream")
    tensors = {
        name: tensor.clone() for name, tensor in denoiser.language_model.state_dict().items()
    }
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.randn(size + 8, tensors[name].shape[1])
    ids = {"mask_token_id": size, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    config |= {"vocab_size": size + 8, **ids}
    folder = copy_checkpoint("dream", tmp_path / "dream", config, tensors)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    names = {"tokenizer_class": "DreamTokenizer", "eos_token": "<|endoftext|>"}
    code = {"auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}
    mask = {"added_tokens_decoder": {str(size): {"content": "<|mask|>", "special": True}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | code | mask))
    (folder / "generation_config.json").unlink()

    tokenizer = load_published_pipeline(folder).tokenizer
    text = "a bird sang in the tree"
    assert tokenizer(text)["input_ids"] == byte_level(text)["input_ids"]
    assert tokenizer.mask_token == "<|mask|>" and tokenizer.mask_token_id == size


def test_without_a_tokenizer_or_a_mask_the_caller_is_told_to_pass_one(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer: pass that of SDAR as `tokenizer=`"):
        load_published_pipeline(GOLDEN / "sdar")
    tokenizer = numbered_tokenizer(80, eos_token="w2")
    with pytest.raises(ValueError, match="must have a mask token.* pass one that has"):
        load_published_pipeline(GOLDEN / "diffullama", tokenizer=tokenizer)


# Converting


def test_a_card_names_source_commit_and_licence(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--Dream-org--Dream-v0-Base-7B/snapshots/abc123"
    with_tokenizer("dream", snapshot, numbered_tokenizer(94, CHAT, **ENDS))
    monkeypatch.setattr(
        "text_diffusers.hub.published.repository.snapshot_download",
        lambda name, **arguments: str(snapshot),
    )
    convert("Dream-org/Dream-v0-Base-7B", tmp_path / "out", "bfloat16")
    card = (tmp_path / "out/README.md").read_text()
    for part in (
        "license: apache-2.0\nbase_model: Dream-org/Dream-v0-Base-7B\n",
        "`Dream-org/Dream-v0-Base-7B` at commit `abc123`, of the family Dream",
    ):
        assert part in card
    weights = load_file(tmp_path / "out/denoiser/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}

    # Of a folder nobody knows the licence, and no Hub page is named.
    convert(snapshot, tmp_path / "other")
    card = (tmp_path / "other/README.md").read_text()
    assert "unknown here" in card and "license:" not in card and "base_model" not in card


def test_a_folder_with_something_in_it_is_not_written_to(dream, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="`folder` must be new or empty"):
        convert(dream, tmp_path / "out")
    save_file({"a": torch.zeros(1)}, tmp_path / "file")
    with pytest.raises(ValueError, match="`folder` must be new or empty"):
        convert(dream, tmp_path / "file")
