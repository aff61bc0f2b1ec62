"""A causal LM becomes a diffusion model of blocks over its past, from a folder of transformers to a saved pipeline."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow
from support.language_models import make_language_model
from support.masked_lms import wordpiece_tokenizer
from support.recipes import load_script
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from text_diffusers import TextDiffusionPipeline
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.evaluation import evaluate_likelihood
from text_diffusers.models import read_config

train_d3pm = load_script("train_d3pm")


@pytest.fixture(params=["start", slow("end only")])
def config(request, text_file, tmp_path):
    """Options that adapt a small GPT-2 whose tokenizer has a start, or nothing but an end."""
    words = wordpiece_tokenizer().backend_tokenizer
    words.post_processor = None
    names = {"eos_token": "[SEP]", "unk_token": "[UNK]"}
    if request.param == "start":
        names["bos_token"] = "[CLS]"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    folder = tmp_path / "gpt2"
    make_language_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def make(**changes):
        settings = {
            "model_name_or_path": str(folder),
            "dataset": str(text_file),
            "output_dir": str(tmp_path / "run"),
            "length": 24,
            "max_train_steps": 6,
            "train_batch_size": 4,
            "lr_warmup_steps": 1,
            "num_cpu_threads": 1,
            "num_length_samples": 0,
            "num_samples": 0,
            "report_to": ["none"],
        }
        return train_d3pm.D3PMConfig(**settings | changes)

    return make


@pytest.mark.slow
def test_blocks_of_several_lengths_are_learned_beside_next_tokens(config):
    learns = {"max_train_steps": 60, "train_batch_size": 8, "learning_rate": 1e-2}
    options = config(**learns, ema_decay=0.9, block_length=[4, 2], validation_steps=30)
    losses = train_d3pm.main(options)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])

    folder = Path(options.output_dir)
    figures = json.loads((folder / "metrics.json").read_text())
    # Both are near 0 on these few sentences, where rounding decides which is less.
    assert max(figures["ar_loss"], figures["bound"]) < figures["unigram_entropy"] / 2
    assert figures["bound_in_blocks_of_2"] > 0 and figures["ar_bits_per_character"] > 0

    pipe = TextDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    reading = read_config(pipe.denoiser.config)
    assert (reading.attention, reading.past, reading.block_length) == ("block", "causal", 4)
    assert reading.alignment == "shifted"
    for block_length in (None, 1, 2, 8):
        generator = torch.Generator().manual_seed(0)
        arguments = {"max_new_tokens": 8, "num_inference_steps": 2, "generator": generator}
        text = pipe("the cat", block_length=block_length, **arguments).texts[0]
        assert text.startswith("the cat")

    # Stock transformers opens the folder as the causal LM that it is.
    stock = AutoModelForCausalLM.from_pretrained(folder / "denoiser").eval()
    ids = pipe.tokenizer("the cat sat on the mat", return_tensors="pt").input_ids
    other = ids.clone()
    other[0, -1] = pipe.tokenizer.mask_token_id
    with torch.no_grad():
        assert torch.equal(stock(ids).logits[0, :-1], stock(other).logits[0, :-1])


@pytest.mark.parametrize("config", ["start"], indirect=True)
def test_figures_of_texts_with_a_row_each_are_those_of_the_pipeline_that_is_saved(config):
    """The pipeline draws lengths and puts the ends: of blocks of any length, and token by token, one definition."""
    options = config(packing=False, block_length=[4, 2], report_rows=5)
    train_d3pm.main(options)
    figures = json.loads((Path(options.output_dir) / "metrics.json").read_text())

    _, held_out = split_documents(load_documents(options.dataset), options.validation_fraction)
    texts = held_out["text"][:: -(-len(held_out) // 5)]
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    judge = partial(evaluate_likelihood, pipe, texts, num_times=2, max_length=options.length)
    whole, halves = judge(), judge(block_length=2)
    assert pipe.config.lengths and figures["num_tokens"] == whole.num_tokens
    assert figures["bound"] == pytest.approx(whole.nats_per_token)
    assert figures["bound_in_blocks_of_2"] == pytest.approx(halves.nats_per_token)
    assert figures["ar_loss"] == pytest.approx(whole.autoregressive_nats_per_token)
    wanted = whole.autoregressive_bits_per_character
    assert figures["ar_bits_per_character"] == pytest.approx(wanted)


def test_a_run_with_turns_resumes_exactly_and_is_trained_further(config, tmp_path):
    options = {"block_length": [4, 2], "ar_loss_weight": 0.3}
    straight = train_d3pm.main(config(output_dir=str(tmp_path / "a"), **options))
    kept = options | {"output_dir": str(tmp_path / "b")}
    assert train_d3pm.main(config(**kept, checkpointing_steps=4)) == straight
    sorted((tmp_path / "b" / "checkpoints").iterdir())[-1].rename(tmp_path / "later")
    resumed = train_d3pm.main(config(**kept, resume_from_checkpoint="latest"))
    assert resumed == straight[4:]

    # Without a length, blocks stay as they were.
    further = config(output_dir=str(tmp_path / "c"), model_name_or_path=str(tmp_path / "b"))
    assert all(np.isfinite(train_d3pm.main(further)))
    pipe = TextDiffusionPipeline.from_pretrained(tmp_path / "c")
    assert pipe.block_length == 4 and pipe.has_causal_past


def test_what_needs_a_causal_past_is_refused_before_anything_is_read(config):
    for changes, message in [
        ({"block_length": [4, 4]}, "`block_length` must be at least 1, each another"),
        ({"block_length": [4, 0]}, "`block_length` must be at least 1, each another"),
        ({"ar_loss_weight": -1.0}, "`ar_loss_weight` must be None or at least 0"),
        (
            {"model_name_or_path": None, "block_length": [4, 8]},
            "`next_token_share` and several `block_length`s need a language model",
        ),
        (
            {"attention": "bidirectional", "ar_loss_weight": 0.1},
            "`next_token_share` and several `block_length`s need a language model",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            config(**changes)
