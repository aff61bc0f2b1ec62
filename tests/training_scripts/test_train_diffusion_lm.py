"""The recipe over word embeddings end to end: a few steps on a tiny text, in every mode; the folder writes text."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow
from safetensors.torch import load_file
from support.masked_lms import make_masked_lm
from support.recipes import load_script
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from text_diffusers import DiffusionLMPipeline, GuidedDiffusionLMPipeline, TextDiffusionPipeline
from text_diffusers.data.rows import tokenize
from text_diffusers.data.sources import load_documents
from text_diffusers.training.config import marked_options

train_diffusion_lm = load_script("train_diffusion_lm")


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
            "embedding_dim": 8,
            "num_train_timesteps": 100,
            "max_train_steps": 3,
            "train_batch_size": 4,
            "num_cpu_threads": 1,
            "num_length_samples": 4,
            "num_samples": 1,
            "validation_rows": 8,
        }
        return train_diffusion_lm.DiffusionLMConfig(**settings | changes)

    return make


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"question": f"what comes after {i}", "answer": f"it is {i + 1}"} for i in range(80)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        slow({"packing": False, "beta_schedule": "cosine", "given_words": 0.0}),
        slow({"own_evidence": False}),
        slow(
            {"categorical_output": False, "anchor_weight": 0.0, "init_embeddings": "cooccurrence"}
        ),
        slow({"prediction_type": "epsilon", "categorical_output": False, "anchor_weight": 0.0}),
        slow(
            {"prediction_type": "v_prediction", "categorical_output": False, "anchor_weight": 0.0}
        ),
        slow({"objective": "bound", "beta_schedule": "sigmoid", "self_conditioning": 0.0}),
        slow(
            {
                "objective": "simple",
                "prediction_type": "epsilon",
                "train_embeddings": False,
                "categorical_output": False,
                "anchor_weight": 0.0,
            }
        ),
        {"time_sampling": "time_warped", "timing_steps": 2, "rounding": "nearest"},
        slow({"min_length": 8}),
        slow(
            {
                "time_sampling": "loss_aware",
                "timing_steps": 1,
                "rounding": "codebook",
                "normalize_embeddings": False,
            }
        ),
        slow(
            {"mixed_precision": "bf16", "gradient_checkpointing": True, "beta_schedule": "linear"}
        ),
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()) or "default",
)
def test_three_steps_give_a_pipeline_that_writes(config, changes):
    options = config(**changes)
    losses = train_diffusion_lm.main(options)
    assert len(losses) == 3 and all(np.isfinite(losses))
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    assert type(pipe) is DiffusionLMPipeline
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe(num_inference_steps=3).texts[0], str)
    assert (pipe.config.lengths is not None) == (not options.packing)
    metrics = json.loads((Path(options.output_dir) / "metrics.json").read_text())
    assert (
        metrics["bound"] > 0 and metrics["unigram_entropy"] > 0 and metrics["length_distance"] >= 0
    )
    assert 0 <= metrics["rounding_accuracy/99"] <= metrics["rounding_accuracy/0"] <= 1
    assert metrics["nearest_distance"] > 0 and 1 < metrics["effective_rank"] <= 8
    assert (Path(options.output_dir) / "rounding.png").stat().st_size > 5_000


@pytest.mark.parametrize("time_sampling", [slow("time_warped"), "uniform"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(config, tmp_path, time_sampling):
    """To the last bit: self-conditioning, dropout and the times that are measured on the way included."""
    same = {
        "max_train_steps": 8,
        "lr_warmup_steps": 1,
        "checkpointing_steps": 5,
        "timing_steps": 3,
        "dropout": 0.1,
    }
    same |= {"time_sampling": time_sampling}
    straight = train_diffusion_lm.main(config(output_dir=str(tmp_path / "a"), **same))
    train_diffusion_lm.main(config(output_dir=str(tmp_path / "b"), **same))
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000008")
    resumed = train_diffusion_lm.main(
        config(output_dir=str(tmp_path / "b"), resume_from_checkpoint="latest", **same)
    )
    assert len(resumed) == 3 and resumed == straight[5:]
    one, other = (
        load_file(tmp_path / run / "denoiser" / "diffusion_pytorch_model.safetensors")
        for run in ("a", "b")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert ("time_density" in one) == (time_sampling != "uniform")


@pytest.mark.slow
def test_micro_batches_and_padding_do_not_change_the_losses(config, tmp_path):
    whole = train_diffusion_lm.main(
        config(output_dir=str(tmp_path / "a"), train_batch_size=8, packing=False)
    )
    parts = {"train_batch_size": 2, "gradient_accumulation_steps": 4, "packing": False}
    np.testing.assert_allclose(
        train_diffusion_lm.main(config(output_dir=str(tmp_path / "b"), **parts)), whole, 1e-5
    )


def test_pairs_train_a_model_that_writes_from_a_source(config, pairs):
    options = config(
        dataset=pairs, text_column="answer", source_column="question", length=24, packing=False
    )
    assert all(np.isfinite(train_diffusion_lm.main(options)))
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.denoiser.config.partial_noising and pipe.config.lengths is None
    assert (
        len(pipe(source=["what comes after 3", "what comes after 44"], num_inference_steps=3).texts)
        == 2
    )


def test_a_pair_is_a_row_whose_source_is_given(pairs, tokenizer):
    documents = load_documents(pairs, "answer", source_column="question")
    row = tokenize(documents, tokenizer, length=40, packing=False)[3]
    end, known = tokenizer.eos_token_id, row["given"]
    source = [token for token, given in zip(row["input_ids"], known, strict=True) if given]
    rest = row["input_ids"][len(source) :]
    assert source[0] == source[-1] == end and tokenizer.decode(source[1:-1]) == "what comes after 3"
    text, behind = rest[: rest.index(end)], rest[rest.index(end) + 1 :]
    assert tokenizer.decode(text) == "it is 4"

    # Behind the one end there is padding, which is neither learned nor counted.
    assert set(behind) == {tokenizer.pad_token_id} and len(row["input_ids"]) == 40
    assert sum(row["attention_mask"]) == len(source) + len(text) + 1

    short = tokenize(documents, tokenizer, length=12, packing=False)[3]
    assert sum(short["given"]) == 6 and len(short["input_ids"]) == 12
    assert short["input_ids"][sum(short["attention_mask"]) - 1] == end
    with pytest.raises(ValueError, match="`packing` must be off for documents with a source"):
        tokenize(documents, tokenizer, length=40)


def test_labels_make_a_conditional_model(config, tmp_path):
    path = tmp_path / "labelled.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"text {i} of many", "mood": i % 3}) for i in range(60))
    )
    options = config(dataset=str(path), label_column="mood", packing=False)
    train_diffusion_lm.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    assert pipe.denoiser.config.num_classes == 3
    assert len(pipe(class_labels=[0, 2], num_inference_steps=2).texts) == 2


@pytest.mark.slow
def test_dropped_conditions_teach_no_label_and_no_source(config, tmp_path):
    path = tmp_path / "labelled.jsonl"
    lines = [
        {"text": f"text {i} of many", "mood": i % 3, "before": f"after {i}"} for i in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    settings = {
        "dataset": str(path),
        "label_column": "mood",
        "source_column": "before",
        "packing": False,
    }
    settings |= {
        "max_train_steps": 6,
        "train_batch_size": 8,
        "lr_warmup_steps": 1,
        "num_length_samples": 0,
    }
    parts = {"train_batch_size": 2, "gradient_accumulation_steps": 4}
    runs = {
        "off": {},
        "some": {"condition_dropout": 0.5},
        "parts": {"condition_dropout": 0.5} | parts,
    }
    losses, none = {}, {}
    for name, changes in runs.items():
        options = config(output_dir=str(tmp_path / name), **settings | changes)
        losses[name] = train_diffusion_lm.main(options)
        pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
        assert type(pipe) is (DiffusionLMPipeline if name == "off" else GuidedDiffusionLMPipeline)
        none[name] = pipe.denoiser.class_embedding.weight[3].detach()
    np.testing.assert_allclose(
        losses["parts"], losses["some"], 1e-5
    )  # each row is dropped by its own generator
    assert losses["some"] != losses["off"]
    shrunk = none["off"] / none["some"]  # what has no gradient keeps its direction
    assert float(shrunk.std()) > 1e-4
    pipe.set_progress_bar_config(disable=True)
    inputs = {
        "source": "after 3",
        "class_labels": 1,
        "guidance_scale": 2.0,
        "num_inference_steps": 3,
    }
    assert isinstance(pipe(**inputs, generator=torch.Generator().manual_seed(0)).texts[0], str)


def test_embeddings_of_a_pretrained_model_are_projected_and_kept(config, tmp_path):
    model, tokenizer = make_masked_lm("roberta")
    model.save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    options = config(embedding_model=str(tmp_path / "roberta"), train_embeddings=False)
    train_diffusion_lm.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    table = pipe.denoiser.token_embedding.weight.double()
    raw = model.get_input_embeddings().weight.detach().double()
    raw = raw - raw.mean(dim=0)
    values, axes = torch.linalg.eigh(
        raw.T @ raw / len(raw)
    )  # an independent way to the principal axes
    scores = (raw @ axes[:, -8:] / values[-8:].sqrt()).flip(1)[: len(table)]
    torch.testing.assert_close(table.abs(), scores.abs(), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_a_tokenizer_without_padding_and_mask_gets_them(config, tmp_path, capsys):
    """As GPT-2's, whose embeddings have no rows for them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(["the cat sat on the mat", "the dog sat on the cat"], trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end).save_pretrained(
        tmp_path / "gpt2"
    )
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": backend.get_vocab_size()}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    train_diffusion_lm.main(config(embedding_model=str(tmp_path / "gpt2")))
    assert "added to the tokenizer: [PAD], [MASK]" in capsys.readouterr().out
    pipe = TextDiffusionPipeline.from_pretrained(tmp_path / "run")
    assert pipe.denoiser.config.vocab_size == sizes["vocab_size"] + 2
    assert pipe.denoiser.round(100 * torch.randn(500, 8)).max() < sizes["vocab_size"]
    assert isinstance(pipe(num_inference_steps=2).texts[0], str)


@pytest.mark.slow
def test_a_codebook_starts_from_the_learned_embeddings(config):
    options = config(rounding="codebook", learning_rate=0.1)
    train_diffusion_lm.main(options)
    model = TextDiffusionPipeline.from_pretrained(options.output_dir).denoiser
    torch.testing.assert_close(model.codebook, model.embedding_table())


@pytest.mark.slow
def test_a_saved_pipeline_is_trained_further(config, tmp_path):
    base = config(
        output_dir=str(tmp_path / "base"),
        max_train_steps=60,
        learning_rate=3e-3,
        num_length_samples=0,
    )
    losses = train_diffusion_lm.main(base)
    options = train_diffusion_lm.DiffusionLMConfig.__dataclass_fields__
    names = marked_options(train_diffusion_lm.DiffusionLMConfig, "part_of", "pipeline")
    parts = {name: options[name].default for name in names}
    settings = {"model_name_or_path": base.output_dir, "max_train_steps": 5, "lr_warmup_steps": 0}
    further = train_diffusion_lm.main(
        config(output_dir=str(tmp_path / "further"), **settings | parts)
    )
    assert np.mean(further) < np.mean(losses[:5])
    with pytest.raises(
        ValueError, match="`embedding_dim` belongs to the pipeline in `model_name_or_path`"
    ):
        config(output_dir=str(tmp_path / "x"), **settings | parts | {"embedding_dim": 9})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": "elbo"},
            r"`objective` must be one of \['bound', 'diffusion_lm', 'simple'\], got 'elbo'",
        ),
        (
            {"prediction_type": "epsilon", "categorical_output": False},
            "`anchor_weight` and `--objective bound` read",
        ),
        (
            {"objective": "simple"},
            "`--objective simple` predicts noise between embeddings that stay",
        ),
        ({"self_conditioning": 1.5}, "`self_conditioning` must be between 0 and 1, got 1.5"),
        ({"rounding_weight": -1.0}, "`rounding_weight` must be at least 0, got -1.0"),
        ({"source_column": "question"}, "`source_column` needs `--packing false`"),
        (
            {"source_column": "q", "packing": False, "given_words": 0.5},
            "`source_column` needs `--given_words 0`",
        ),
        (
            {"objective": "bound", "time_sampling": "time_warped"},
            "`time_sampling` of `--objective bound` is",
        ),
        (
            {"condition_dropout": 0.1},
            "`condition_dropout` must be .* needs a `label_column` or `source_column`, got 0.1",
        ),
        (
            {"condition_dropout": 1.5, "label_column": "a", "packing": False},
            r"`condition_dropout` must be in \[0, 1\)",
        ),
        ({"timing_steps": 0}, "`timing_steps` must be at least 1, got 0"),
        ({"time_sampling": "cdcd"}, "`time_sampling` must be one of .*, got 'cdcd'"),
    ],
)
def test_options_that_make_no_sense_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mixed_precision", ["no", "fp16", "bf16"])
def test_a_gpu_trains_and_writes_what_the_cpu_would_write(config, mixed_precision):
    options = config(mixed_precision=mixed_precision, time_sampling="time_warped", timing_steps=2)
    assert all(np.isfinite(train_diffusion_lm.main(options)))
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"length": 6, "num_inference_steps": 5, "output_type": "tokens"}
    tokens = [pipe.to(device)(**arguments, generator=torch.Generator().manual_seed(1)).tokens.cpu()
              for device in ("cpu", "cuda")]  # fmt: skip
    assert torch.equal(*tokens)
