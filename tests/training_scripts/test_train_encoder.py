"""An encoder without a head becomes a diffusion model that is told labels by prompts, from a folder to a pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.masked_lms import SENTENCES, wordpiece_tokenizer
from support.recipes import load_script
from transformers import AutoModelForMaskedLM, BertConfig, BertModel

from text_diffusers import TextDiffusionPipeline
from text_diffusers.models import read_config

train_d3pm = load_script("train_d3pm")

# A text of each label, which no other label has
LABELLED = {"bird": SENTENCES[2], "city": SENTENCES[0]}


@pytest.fixture
def config(tmp_path):
    """Options that adapt a small BERT encoder to texts with labels."""
    tokenizer = wordpiece_tokenizer()
    folder = tmp_path / "encoder"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), intermediate_size=48, **sizes))
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    data = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text, "kind": label}) for label, text in LABELLED.items()]
    data.write_text("\n".join(lines * 100))

    def make(**changes):
        settings = {
            "model_name_or_path": str(folder),
            "dataset": str(data),
            "label_column": "kind",
            "output_dir": str(tmp_path / "run"),
            "length": 40,
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
@pytest.mark.parametrize("vocabulary", ["kept", "pruned", "retrained"])
def test_an_encoder_learns_which_texts_a_label_asks_for(config, vocabulary):
    learns = {"max_train_steps": 150, "train_batch_size": 8, "learning_rate": 1e-2}
    changes = {
        "kept": {"condition_dropout": 0.1},
        "pruned": {"prune_vocabulary": True},
        "retrained": {"retrain_tokenizer": True, "vocab_size": 300, "length": 80},
    }
    options = config(**learns, ema_decay=0.9, **changes[vocabulary])
    train_d3pm.main(options)

    folder = Path(options.output_dir)
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["bound"] < 0.5 * figures["unigram_entropy"]
    assert {f"bits_per_character/{label}" for label in LABELLED} <= figures.keys()

    # What a person would look at: does the text belong to its label, word by word?
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    labels = list(LABELLED)
    generator = torch.Generator().manual_seed(0)
    texts = pipe(class_labels=labels, temperature=0.0, generator=generator).texts
    for label, text in zip(labels, texts, strict=True):
        expected = LABELLED[label]
        assert text == (expected if vocabulary == "retrained" else expected.lower())

    # Stock transformers opens the folder; the vocabulary is the one that was asked for.
    stock = AutoModelForMaskedLM.from_pretrained(folder / "denoiser")
    assert stock.config.vocab_size == len(pipe.tokenizer)
    sizes = {"kept": 120, "pruned": 119, "retrained": 302}
    assert len(pipe.tokenizer) <= sizes[vocabulary]
    assert read_config(stock.config).end_token_ids


@pytest.mark.slow
def test_a_text_is_learned_from_its_source_up_to_its_end(config):
    """The end too: a row has room for more than the text, and what is written is the text alone."""
    options = config(
        label_column=None,
        source_column="kind",
        packing=False,
        max_train_steps=150,
        train_batch_size=8,
        learning_rate=1e-2,
        ema_decay=0.9,
    )
    train_d3pm.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    texts = pipe(source=list(LABELLED), temperature=0.0, generator=generator).texts
    assert texts == [text.lower() for text in LABELLED.values()]

    with pytest.raises(ValueError, match="`label_column` excludes `source_column` for a language"):
        config(label_column="kind", source_column="kind", packing=False, overwrite_output_dir=True)


def test_ends_are_given_only_where_a_text_has_a_row_to_itself_and_is_read_as_before(config):
    alone = {"label_column": None, "packing": False}
    assert config(**alone).gives_ends
    for changes in (
        {"packing": True},
        {"label_column": "kind"},
        {"source_column": "kind"},
        {"attention": "block"},
        {"alignment": "shifted"},
    ):
        assert not config(**alone | changes).gives_ends
    with pytest.raises(ValueError, match='`block_length` must be None without `attention="block"`'):
        train_d3pm.main(config(**alone | {"packing": True, "block_length": 4}))


@pytest.mark.slow
def test_it_resumes_exactly_and_its_pipeline_is_trained_further(config, tmp_path):
    settings = {"prune_vocabulary": True, "condition_dropout": 0.3}
    straight = train_d3pm.main(config(output_dir=str(tmp_path / "a"), **settings))
    kept = {"output_dir": str(tmp_path / "b"), **settings}
    assert train_d3pm.main(config(**kept, checkpointing_steps=4)) == straight
    sorted((tmp_path / "b" / "checkpoints").iterdir())[-1].rename(tmp_path / "later")
    resumed = train_d3pm.main(config(**kept, resume_from_checkpoint="latest"))
    assert resumed == straight[4:]

    more = config(output_dir=str(tmp_path / "c"), model_name_or_path=str(tmp_path / "b"))
    assert all(np.isfinite(train_d3pm.main(more)))
    pipe = TextDiffusionPipeline.from_pretrained(more.output_dir)
    assert pipe.label_names == list(LABELLED) and pipe.generation_defaults["temperature"] > 0


@pytest.mark.slow
def test_texts_without_labels_teach_what_a_model_with_labels_writes_without_one(config, tmp_path):
    first = config(max_train_steps=2)
    train_d3pm.main(first)
    before = TextDiffusionPipeline.from_pretrained(first.output_dir)

    texts = tmp_path / "plain.txt"
    texts.write_text(f"{SENTENCES[1]}\n" * 100)
    second = config(
        model_name_or_path=first.output_dir,
        dataset=str(texts),
        label_column=None,
        output_dir=str(tmp_path / "second"),
        learning_rate=1e-2,
        max_train_steps=150,
        train_batch_size=8,
    )
    train_d3pm.main(second)
    after = TextDiffusionPipeline.from_pretrained(second.output_dir)
    assert after.label_names == before.label_names == sorted(LABELLED)
    after.set_progress_bar_config(disable=True)
    settings = {"temperature": 0.0, "num_inference_steps": 40, "max_new_tokens": 38}
    (written,) = after(generator=torch.Generator().manual_seed(0), **settings).texts
    assert written.strip().lower() == SENTENCES[1].lower()


@pytest.mark.slow
def test_a_run_that_finds_no_checkpoint_to_go_on_from_is_a_new_run(config, tmp_path):
    """Also its first weights, which a checkpoint would bring: the head begins at the frequencies of the tokens."""
    new = train_d3pm.main(config(max_train_steps=3, output_dir=str(tmp_path / "new")))
    auto = config(
        max_train_steps=3, output_dir=str(tmp_path / "auto"), resume_from_checkpoint="auto"
    )
    assert train_d3pm.main(auto) == new
