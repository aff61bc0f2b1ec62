"""The recipe end to end: a few steps on a tiny text, in every mode, and the saved folder writes text."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mostly_slow, slow
from safetensors.torch import load_file
from support.language_models import make_language_model
from support.masked_lms import make_masked_lm, wordpiece_tokenizer
from support.recipes import load_script
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from text_diffusers import (
    TextBlockDiffusionPipeline,
    TextDiffusionCFGPipeline,
    TextDiffusionPipeline,
)
from text_diffusers.data.tokenizers import add_missing_tokens
from text_diffusers.models import read_config
from text_diffusers.training.adaptation.language_models import fit_vocabulary
from text_diffusers.training.config import marked_options

train_d3pm = load_script("train_d3pm")


@pytest.fixture
def config(text_file, tmp_path):
    def make(**changes):
        settings = {
            "dataset": str(text_file),
            "output_dir": str(tmp_path / "run"),
            "vocab_size": 300,
            "length": 16,
            "hidden_size": 32,
            "num_layers": 1,
            "num_attention_heads": 2,
            "max_train_steps": 3,
            "train_batch_size": 4,
            "num_cpu_threads": 1,
            "num_length_samples": 4,
            "num_samples": 1,
            "validation_rows": 8,
        }
        return train_d3pm.D3PMConfig(**settings | changes)

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        slow({"kernel": "uniform"}),
        slow({"kernel": "uniform", "reverse_rule": "marginal", "num_train_timesteps": 50}),
        slow({"num_train_timesteps": 200, "schedule": "cosine", "auxiliary_weight": 0.01}),
        slow({"packing": False}),
        {"kernel": "uniform", "head_chunk_size": 7, "optimizer": "sgd"},
        slow({"kernel": "hybrid", "schedule": "mutual_information", "packing": False}),
        slow(
            {
                "kernel": "neighbors",
                "auxiliary_weight": 0.01,
                "num_train_timesteps": 40,
                "packing": False,
            }
        ),
        slow({"kernel": "hierarchical", "num_clusters": 8, "packing": False}),
        slow({"kernel": "hierarchical", "num_train_timesteps": 40, "head_chunk_size": 7}),
        slow({"kernel": "bit_flip", "bit_codes": "frequency", "num_train_timesteps": 40}),
        slow({"kernel": "gaussian", "num_train_timesteps": 10, "head_chunk_size": 7}),
        slow({"kernel": "band", "num_train_timesteps": 10}),
        {"streaming": True, "validation_documents": 20},
        slow({"min_length": 4, "kernel": "uniform"}),
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()) or "default",
)
def test_three_steps_give_a_pipeline_that_writes(config, changes):
    options = config(**changes)
    losses = train_d3pm.main(options)
    assert len(losses) == 3 and all(np.isfinite(losses))
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe(num_inference_steps=3).texts[0], str)
    assert (pipe.config.lengths is not None) == (not options.packing)
    metrics = json.loads((Path(options.output_dir) / "metrics.json").read_text())
    assert (
        metrics["bound"] > 0 and metrics["unigram_entropy"] > 0 and metrics["length_distance"] >= 0
    )
    events = list(Path(options.output_dir, "logs").rglob("events*"))
    assert events and sum(event.stat().st_size for event in events) > 100


def test_labels_make_a_conditional_model(config, tmp_path):
    path = tmp_path / "labelled.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"text {i} of many", "mood": i % 3}) for i in range(60))
    )
    options = config(dataset=str(path), label_column="mood", packing=False, vocab_size=300)
    train_d3pm.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    assert pipe.denoiser.config.num_classes == 3
    assert len(pipe(class_labels=[0, 2], num_inference_steps=2).texts) == 2


@pytest.fixture
def labelled_pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"text": f"text {i} of many", "mood": i % 3, "before": f"number {i}"} for i in range(60)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"dataset": str(path), "label_column": "mood", "packing": False, "vocab_size": 300}


@pytest.mark.parametrize("dropout", [slow(0.0), 0.5])
def test_labels_and_sources_are_conditions_that_guidance_strengthens(
    config, labelled_pairs, dropout
):
    options = config(**labelled_pairs, source_column="before", length=32, condition_dropout=dropout)
    train_d3pm.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    assert type(pipe) is TextDiffusionCFGPipeline
    written = pipe(
        source="number 7",
        class_labels=2,
        guidance_scale=2.0,
        guide_by="both",
        num_inference_steps=2,
    )
    assert len(written.texts) == 1


def test_sources_longer_than_half_a_row_are_cut_and_told_of(config, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"text": f"text {i}", "before": " ".join(f"number {n}" for n in range(i, i + 20))}
        for i in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    options = config(
        dataset=str(path), source_column="before", packing=False, length=32, max_train_steps=2
    )
    train_d3pm.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    longest = max(len(pipe.tokenizer(row["before"]).input_ids) for row in rows)
    printed = capsys.readouterr().out
    assert re.search(r"(\d+) of \1 sources have more than 14 tokens", printed)
    assert f"`--length {2 * (longest + 2)}`" in printed
    assert "length_distance" in json.loads(Path(options.output_dir, "metrics.json").read_text())


def test_dropped_conditions_are_what_the_model_is_shown(config, labelled_pairs, monkeypatch):
    """The share of rows without label, and that they are otherwise the rows that they were."""
    seen, forward = [], train_d3pm.TextTransformerModel.forward

    def recorded(self, input_ids, timestep=None, attention_mask=None, class_labels=None, **others):
        if torch.is_grad_enabled():
            seen.append((input_ids.clone(), class_labels.clone()))
        return forward(self, input_ids, timestep, attention_mask, class_labels, **others)

    monkeypatch.setattr(train_d3pm.TextTransformerModel, "forward", recorded)
    settings = {
        "num_samples": 0,
        "num_length_samples": 0,
        "max_train_steps": 30,
        "train_batch_size": 8,
    }
    train_d3pm.main(config(**labelled_pairs, condition_dropout=0.25, **settings))
    labels = torch.cat([labels for _, labels in seen])
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert 0.15 < (labels == 3).float().mean() < 0.35
    with pytest.raises(
        ValueError, match="`condition_dropout` must be in .* needs a `label_column`"
    ):
        config(condition_dropout=0.1, output_dir="new")
    with pytest.raises(ValueError, match="`source_column` needs `--packing false`"):
        config(source_column="before", output_dir="new")


def test_the_same_seed_gives_the_same_losses_and_resuming_continues_them(config, tmp_path):
    straight = train_d3pm.main(
        config(output_dir=str(tmp_path / "a"), max_train_steps=6, lr_warmup_steps=1)
    )
    again = train_d3pm.main(
        config(output_dir=str(tmp_path / "b"), max_train_steps=6, lr_warmup_steps=1)
    )
    assert straight == again
    kept = {"output_dir": str(tmp_path / "b"), "max_train_steps": 6, "lr_warmup_steps": 1}
    assert train_d3pm.main(config(**kept, resume_from_checkpoint="latest")) == []


def parts_of_a_pipeline():
    """The defaults of all options that a saved pipeline has settled."""
    options = train_d3pm.D3PMConfig.__dataclass_fields__
    return {
        name: options[name].default
        for name in marked_options(train_d3pm.D3PMConfig, "part_of", "pipeline")
    }


def test_lora_trains_and_saves_adapters_only_and_they_load(config, tmp_path):
    learns = {"max_train_steps": 100, "learning_rate": 1e-2, "lr_warmup_steps": 5, "num_samples": 0}
    base = config(output_dir=str(tmp_path / "base"), num_length_samples=0, **learns)
    train_d3pm.main(base)
    settings = {
        "model_name_or_path": base.output_dir,
        "lora_rank": 2,
        "learning_rate": 3e-2,
        "lr_warmup_steps": 0,
    }
    parts = parts_of_a_pipeline()
    tuned = config(
        output_dir=str(tmp_path / "tuned"), lora_alpha=8, max_train_steps=20, **settings | parts
    )
    losses = train_d3pm.main(tuned)
    assert len(losses) == 20
    files = {path.name for path in Path(tuned.output_dir).iterdir()}
    assert "pytorch_lora_weights.safetensors" in files and "model_index.json" not in files
    saved = [
        path
        for path in Path(tuned.output_dir).rglob("*")
        if path.suffix in (".bin", ".pt", ".pth", ".pkl")
    ]
    assert not saved
    pipe = TextDiffusionPipeline.from_pretrained(base.output_dir)
    tokens = pipe.tokenizer("the cat sat", return_tensors="pt").input_ids
    before = pipe.denoiser(tokens).logits
    pipe.load_lora_weights(tuned.output_dir)
    adapted = pipe.denoiser(tokens).logits
    assert (adapted - before).abs().max() > 1e-3
    names = [name for name in pipe.denoiser.state_dict() if "lora_A" in name]
    assert len(names) == 6 and pipe.denoiser.peft_config["default_0"].lora_alpha == 8
    resumed = config(
        output_dir=tuned.output_dir, resume_from_checkpoint="latest", **settings | parts
    )
    assert train_d3pm.main(resumed) == []
    pipe.unload_lora_weights()
    assert torch.equal(pipe.denoiser(tokens).logits, before)


def test_a_saved_pipeline_is_trained_further(config, tmp_path):
    base = config(output_dir=str(tmp_path / "base"), kernel="uniform")
    train_d3pm.main(base)
    parts = parts_of_a_pipeline()
    more = config(output_dir=str(tmp_path / "more"), model_name_or_path=base.output_dir, **parts)
    train_d3pm.main(more)
    pipe = TextDiffusionPipeline.from_pretrained(more.output_dir)
    assert pipe.scheduler.corruption == "uniform" and pipe.denoiser.config.hidden_size == 32
    with pytest.raises(ValueError, match="`kernel` belongs to the pipeline"):
        config(model_name_or_path=base.output_dir, **parts | {"kernel": "uniform"})
    with pytest.raises(ValueError, match="`lora_rank` must be at least 1 and needs a model"):
        config(lora_rank=4)
    with pytest.raises(ValueError, match="`length` must be at most 16"):
        train_d3pm.main(
            config(
                output_dir=str(tmp_path / "x"),
                model_name_or_path=base.output_dir,
                length=32,
                **parts,
            )
        )


@pytest.mark.slow
def test_a_model_with_blocks_is_trained_saved_trained_further_and_adapted(config, tmp_path):
    settings = {"packing": False, "head_chunk_size": 7, "gradient_checkpointing": True}
    base = config(output_dir=str(tmp_path / "base"), block_length=6, **settings)
    losses = train_d3pm.main(base)
    assert len(losses) == 3 and all(np.isfinite(losses))
    pipe = TextBlockDiffusionPipeline.from_pretrained(base.output_dir)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.denoiser.config.block_length == 6 and isinstance(
        pipe("the cat", num_inference_steps=2).texts[0], str
    )
    metrics = json.loads((Path(base.output_dir) / "metrics.json").read_text())
    assert 0 < metrics["bound"] < np.inf and metrics["length_distance"] >= 0
    parts = parts_of_a_pipeline()
    tuned = config(
        output_dir=str(tmp_path / "b"),
        model_name_or_path=base.output_dir,
        lora_rank=2,
        **settings | parts,
    )
    assert all(np.isfinite(train_d3pm.main(tuned)))
    pipe.load_lora_weights(tuned.output_dir)
    with pytest.raises(ValueError, match="`block_length` belongs to the pipeline"):
        config(model_name_or_path=base.output_dir, **parts | {"block_length": 6})
    with pytest.raises(ValueError, match="`block_length` must be at least 1"):
        config(output_dir=str(tmp_path / "c"), block_length=0)
    with pytest.raises(
        ValueError, match="`block_length` .* needs `kernel` \"absorbing\", got 4 with 'uniform'"
    ):
        config(output_dir=str(tmp_path / "c"), block_length=4, kernel="uniform")


def test_one_block_of_the_whole_row_trains_like_a_model_without_blocks(config, tmp_path):
    same = {"max_train_steps": 5, "num_samples": 0, "num_length_samples": 0, "learning_rate": 1e-2}
    whole = train_d3pm.main(config(output_dir=str(tmp_path / "a"), **same))
    blocks = train_d3pm.main(config(output_dir=str(tmp_path / "b"), block_length=16, **same))
    np.testing.assert_allclose(whole, blocks, rtol=1e-4)


@pytest.mark.parametrize("kernel", mostly_slow(train_d3pm.KERNELS, fast=["neighbors"]))
def test_padding_and_mask_may_stand_before_the_words(config, tmp_path, kernel):
    wordpiece_tokenizer().save_pretrained(tmp_path / "tokenizer")
    steps = None if kernel == "absorbing" else 8
    options = config(
        tokenizer=str(tmp_path / "tokenizer"), kernel=kernel, num_train_timesteps=steps
    )
    assert np.isfinite(train_d3pm.main(options)).all()
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    tokens = pipe(num_return_sequences=16, num_inference_steps=4, generator=generator).tokens
    # Padding fills up what stands behind the end of a text, and nothing before.
    ended = (tokens == pipe.tokenizer.sep_token_id).cumsum(dim=1) > 0
    never = torch.isin(tokens, torch.tensor([pipe.tokenizer.pad_token_id, 4])) & ~ended
    assert pipe.tokenizer.mask_token_id == 4 and not never.any()


@pytest.mark.slow
def test_embeddings_begin_by_cooccurrence_wherever_padding_stands(config, tmp_path):
    wordpiece_tokenizer().save_pretrained(tmp_path / "tokenizer")
    weights = {}
    for init in ("cooccurrence", "random"):
        options = config(
            tokenizer=str(tmp_path / "tokenizer"),
            init_embeddings=init,
            output_dir=str(tmp_path / init),
            max_train_steps=1,
        )
        train_d3pm.main(options)
        denoiser = TextDiffusionPipeline.from_pretrained(options.output_dir).denoiser
        weights[init] = denoiser.token_embedding.weight.detach()
    changed = (weights["cooccurrence"] - weights["random"]).abs().amax(dim=1) > 0.1
    assert changed[5:].float().mean() > 0.8 and not changed[[0, 4]].any()


@pytest.fixture
def masked_lm_config(config, tmp_path):
    """Options that train a masked LM further, from a folder that transformers wrote."""
    parts = parts_of_a_pipeline()

    def make(model_type="bert", **changes):
        folder = tmp_path / model_type
        if not folder.exists():
            for part in make_masked_lm(model_type):
                part.save_pretrained(folder)
        settings = {"model_name_or_path": str(folder), "packing": False, "length": 24}
        return config(**parts | settings | changes)

    return make


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
@pytest.mark.slow
def test_a_masked_lm_becomes_a_pipeline_that_knows_the_texts(masked_lm_config, model_type):
    learns = {
        "max_train_steps": 150,
        "train_batch_size": 16,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 5,
    }
    options = masked_lm_config(model_type, **learns, ema_decay=0.9, validation_rows=64, length=40)
    losses = train_d3pm.main(options)
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])
    folder = Path(options.output_dir)
    assert json.loads((folder / "metrics.json").read_text())["bound"] < 0.85 * np.mean(losses[:5])
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    plain = AutoModelForMaskedLM.from_pretrained(folder / "denoiser")
    assert type(pipe.denoiser) is type(plain) and pipe.denoiser.config.model_type == model_type
    ids = pipe.tokenizer("the cat sat", return_tensors="pt").input_ids
    assert torch.equal(plain(ids).logits, pipe.denoiser(ids).logits)
    assert (
        len(set(pipe(num_return_sequences=3, num_inference_steps=4).texts)) > 1
    )  # of drawn lengths
    assert not [
        path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")
    ]
    tied = [name for name in plain.state_dict() if name not in dict(plain.named_parameters())]
    averages = load_file(next(folder.glob("checkpoints/*/ema.safetensors")))
    for name, parameter in plain.named_parameters():
        assert torch.equal(averages[f"language_model.{name}"], parameter)
    assert tied and not [name for name in tied if f"language_model.{name}" in averages]


@pytest.mark.slow
def test_a_masked_lm_resumes_exactly_and_its_pipeline_is_trained_further(
    masked_lm_config, tmp_path
):
    settings = {
        "max_train_steps": 6,
        "lr_warmup_steps": 1,
        "streaming": True,
        "validation_documents": 20,
    }
    straight = train_d3pm.main(masked_lm_config(output_dir=str(tmp_path / "a"), **settings))
    kept = {"output_dir": str(tmp_path / "b"), **settings}
    assert train_d3pm.main(masked_lm_config(**kept, checkpointing_steps=4)) == straight
    later = sorted((tmp_path / "b" / "checkpoints").iterdir())[-1]
    assert train_d3pm.main(masked_lm_config(**kept, resume_from_checkpoint="latest")) == []
    later.rename(tmp_path / "later")
    resumed = train_d3pm.main(masked_lm_config(**kept, resume_from_checkpoint="latest"))
    assert resumed == straight[4:]
    more = masked_lm_config(output_dir=str(tmp_path / "c"), model_name_or_path=str(tmp_path / "b"))
    assert all(np.isfinite(train_d3pm.main(more)))
    pipe = TextDiffusionPipeline.from_pretrained(more.output_dir)
    assert type(pipe.denoiser).__name__ == "BertForMaskedLM" and pipe.config.lengths


def test_what_a_masked_lm_cannot_be_trained_with_is_refused(masked_lm_config):
    with pytest.raises(ValueError, match="`head_chunk_size` cannot be used with a language model"):
        train_d3pm.main(masked_lm_config(head_chunk_size=8))
    with pytest.raises(ValueError, match="`min_length` cannot be used with a language model"):
        masked_lm_config(packing=True, length=16, min_length=8)
    with pytest.raises(ValueError, match='`attention` must be "bidirectional" or "block"'):
        train_d3pm.main(masked_lm_config(packing=True, attention="causal"))
    with pytest.raises(ValueError, match="`length` must be at most 62 for this model, got 63"):
        train_d3pm.main(masked_lm_config("roberta", length=63))


@pytest.mark.parametrize("kernel", [slow("absorbing"), "uniform"])
def test_a_head_in_chunks_trains_alike(config, tmp_path, kernel):
    same = {
        "kernel": kernel,
        "max_train_steps": 10,
        "num_samples": 0,
        "num_length_samples": 0,
        "learning_rate": 1e-2,
    }
    whole = train_d3pm.main(config(output_dir=str(tmp_path / "whole"), **same))
    chunked = train_d3pm.main(
        config(output_dir=str(tmp_path / "chunked"), head_chunk_size=5, **same)
    )
    np.testing.assert_allclose(whole[:3], chunked[:3], rtol=1e-6)
    np.testing.assert_allclose(
        whole, chunked, rtol=1e-4
    )  # at this rate rounding grows from step to step


def test_a_folder_with_a_model_is_not_overwritten_unasked(config):
    train_d3pm.main(config())
    with pytest.raises(ValueError, match="holds a trained model"):
        config()
    for _ in range(
        2
    ):  # tracked steps and checkpoints of the first run must not be mixed with those of the second
        options = config(overwrite_output_dir=True, max_train_steps=12, checkpointing_steps=6)
        train_d3pm.main(options)
    assert len(list(Path(options.output_dir, "logs").rglob("events*"))) <= 2
    assert len(list(Path(options.output_dir, "checkpoints").iterdir())) == 2


def test_overwriting_loses_nothing_when_the_new_data_is_bad(config, tmp_path):
    options = config(checkpointing_steps=3)
    train_d3pm.main(options)
    kept = sorted(path for path in Path(options.output_dir).rglob("*") if path.is_file())
    with pytest.raises(FileNotFoundError):
        train_d3pm.main(config(overwrite_output_dir=True, dataset=str(tmp_path / "typo.txt")))
    assert sorted(path for path in Path(options.output_dir).rglob("*") if path.is_file()) == kept


def test_options_that_do_not_fit_are_refused(config):
    with pytest.raises(ValueError, match="`kernel` must be one of .*absorbing.* got 'gauss'"):
        config(kernel="gauss")
    with pytest.raises(ValueError, match="`bit_codes` must be one of"):
        config(kernel="bit_flip", bit_codes="gray")
    with pytest.raises(ValueError, match="`label_column` needs"):
        config(label_column="mood")


@pytest.mark.slow
def test_quickstart_writes_texts_and_a_picture(config, capsys):
    options = config(length=32)
    train_d3pm.main(options)
    capsys.readouterr()
    load_script("quickstart").main(options.output_dir)
    printed = capsys.readouterr().out
    assert printed.count("\n  - ") == 8 and "A text filled in" in printed and "[MASK]" in printed
    picture = Path(options.output_dir, "denoising.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_two_minutes_on_chitchat_beat_the_token_frequencies(tmp_path, kernel):
    pytest.importorskip("chitchat_dataset")
    recipe = {
        "vocab_size": 1024,
        "length": 64,
        "hidden_size": 128,
        "num_layers": 4,
        "train_batch_size": 8,
    }
    limits = {
        "max_train_steps": 10**6,
        "max_train_minutes": 2,
        "checkpointing_steps": 0,
        "validation_steps": 0,
    }
    settings = {
        "lr_warmup_steps": 50,
        "ema_decay": 0.995,
        "num_cpu_threads": 0,
        "num_length_samples": 0,
    }
    train_d3pm.main(
        train_d3pm.D3PMConfig(
            output_dir=str(tmp_path), kernel=kernel, **recipe, **limits, **settings
        )
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["gap"] > (0.3 if kernel == "absorbing" else 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_training_and_writing_on_a_gpu(config, kernel):
    options = config(kernel=kernel, mixed_precision="bf16")
    assert all(np.isfinite(train_d3pm.main(options)))
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir).to("cuda")
    assert isinstance(pipe(num_inference_steps=3).texts[0], str)


@pytest.mark.slow
def test_a_wide_uniform_model_sees_the_time(config):
    options = config(kernel="uniform", max_train_steps=1)
    train_d3pm.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    assert pipe.denoiser.config.time_conditioning
    assert pipe.scheduler.config.vocab_size == 300 == len(pipe.tokenizer) - 2
    tokens = pipe(
        num_inference_steps=4, output_type="tokens", generator=torch.Generator().manual_seed(0)
    ).tokens
    assert int(tokens.max()) < 301  # noise is never padding or mask; padding may follow the end


@pytest.fixture
def causal_lm_config(config, tmp_path):
    """Options that make a diffusion model of a small GPT-2, from a folder that transformers wrote."""
    parts = parts_of_a_pipeline()
    words = wordpiece_tokenizer().backend_tokenizer
    words.post_processor = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]"
    )
    folder = tmp_path / "gpt2"
    make_language_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def make(**changes):
        settings = {"model_name_or_path": str(folder), "length": 24}
        return config(**parts | settings | changes)

    return make


@pytest.mark.slow
def test_a_causal_lm_becomes_a_bidirectional_diffusion_model(causal_lm_config):
    learns = {"max_train_steps": 100, "train_batch_size": 16, "learning_rate": 1e-2}
    learns["attention"] = "bidirectional"
    options = causal_lm_config(**learns, lr_warmup_steps=5, ema_decay=0.9, validation_rows=16)
    losses = train_d3pm.main(options)
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])

    folder = Path(options.output_dir)
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    reading = read_config(pipe.denoiser.config)
    tokenizer = pipe.tokenizer
    assert reading.alignment == "shifted" and reading.mask_token_id == tokenizer.mask_token_id
    assert reading.end_token_ids == [tokenizer.eos_token_id]
    assert len(pipe("the cat", max_new_tokens=8, num_inference_steps=8).texts) == 1

    # Stock transformers opens the folder, and lets every token see every other.
    stock = AutoModelForCausalLM.from_pretrained(folder / "denoiser").eval()
    ids = tokenizer("the cat sat on the mat", return_tensors="pt").input_ids
    other = ids.clone()
    other[0, -1] = tokenizer.mask_token_id
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, pipe.denoiser(ids).logits)
        assert not torch.allclose(stock(ids).logits[0, 0], stock(other).logits[0, 0])


@pytest.mark.slow
def test_a_causal_lm_resumes_exactly_and_its_pipeline_is_trained_further(
    causal_lm_config, tmp_path
):
    settings = {"max_train_steps": 6, "lr_warmup_steps": 1}
    straight = train_d3pm.main(causal_lm_config(output_dir=str(tmp_path / "a"), **settings))
    kept = {"output_dir": str(tmp_path / "b"), **settings}
    assert train_d3pm.main(causal_lm_config(**kept, checkpointing_steps=4)) == straight
    sorted((tmp_path / "b" / "checkpoints").iterdir())[-1].rename(tmp_path / "later")
    resumed = train_d3pm.main(causal_lm_config(**kept, resume_from_checkpoint="latest"))
    assert resumed == straight[4:]
    more = causal_lm_config(output_dir=str(tmp_path / "c"), model_name_or_path=str(tmp_path / "b"))
    assert all(np.isfinite(train_d3pm.main(more)))


def test_the_vector_of_a_new_mask_is_the_mean_of_all_others():
    tokenizer = add_missing_tokens(wordpiece_tokenizer())
    num_known = len(tokenizer) - 1
    model = make_language_model("llama", vocab_size=num_known)
    before = model.get_input_embeddings().weight.detach().clone()
    fit_vocabulary(model, tokenizer, tokenizer)
    after = model.get_input_embeddings().weight
    assert torch.equal(after[:num_known], before)
    torch.testing.assert_close(after[num_known], before.mean(dim=0))
