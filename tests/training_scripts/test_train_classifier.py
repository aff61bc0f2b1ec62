"""The recipe of classifiers end to end: labels and tags, clean and noisy, over tokens and over embeddings."""

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
from transformers import AutoTokenizer

from text_diffusers import (
    BlockAncestralScheduler,
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
    TextClassifierModel,
    TextDiffusionPipeline,
    TextTransformerModel,
)

train_classifier = load_script("train_classifier")

NOUNS, VERBS = (
    ["elephant", "carpenter", "mountain", "umbrella"],
    ["wandered", "listened", "celebrated", "slept"],
)
MOODS = {
    0: ["dreadful", "tedious", "horrible", "slow"],
    1: ["wonderful", "brilliant", "excellent", "quick"],
}


def reviews(count=400, seed=0):
    """Texts whose label shows in every second word; there are twice as many of label 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(rng.random() < 2 / 3)
        words = [
            w
            for _ in range(rng.integers(2, 5))
            for w in (rng.choice(NOUNS), rng.choice(MOODS[label]))
        ]
        rows.append({"review": " ".join(words), "mood": label})
    return rows


def sentences(count=400, seed=0):
    """Words with tags that follow from the words."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        pairs = [(rng.choice(NOUNS), "NOUN"), (rng.choice(VERBS), "VERB")] * int(
            rng.integers(1, 4)
        ) + [(".", "PUNCT")]
        rows.append({"words": [str(word) for word, _ in pairs], "pos": [tag for _, tag in pairs]})
    return rows


@pytest.fixture
def config(tmp_path):
    def make(rows=None, **changes):
        rows = reviews() if rows is None else rows
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        columns = (
            {"text_column": "review", "label_column": "mood"}
            if "mood" in rows[0]
            else {"tags_column": "pos"}
        )
        settings = {
            "dataset": str(path),
            "output_dir": str(tmp_path / "run"),
            "length": 24,
            "hidden_size": 32,
            "num_layers": 1,
            "num_attention_heads": 2,
            "max_train_steps": 3,
            "lr_warmup_steps": 1,
            "train_batch_size": 8,
            "num_cpu_threads": 1,
            "validation_fraction": 0.2,
            "report_to": ["none"],
        }
        settings |= {} if "model_name_or_path" in changes else {"vocab_size": 300}
        return train_classifier.ClassifierConfig(**settings | columns | changes)

    return make


def token_pipeline(tokenizer, scheduler, **changes):
    sizes = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "max_length": 48}
    denoiser = TextTransformerModel(len(tokenizer), **sizes, time_conditioning=True)
    return TextDiffusionPipeline(tokenizer, denoiser, scheduler, **changes)


def embedding_pipeline(tokenizer, **changes):
    sizes = {
        "embedding_dim": 6,
        "hidden_size": 32,
        "num_layers": 1,
        "num_attention_heads": 2,
        "max_length": 48,
    }
    denoiser = EmbeddingTransformerModel(len(tokenizer), **sizes, num_train_timesteps=50, **changes)
    return DiffusionLMPipeline(tokenizer, denoiser, EmbeddingDDIMScheduler(50))


def metrics_of(options):
    return json.loads((Path(options.output_dir) / "metrics.json").read_text())


@pytest.mark.slow
def test_a_separable_language_is_learned_clean_and_guessed_under_noise(config, capsys):
    """At the most noise nothing is left but the frequencies of the labels."""
    settings = {
        "max_train_steps": 150,
        "train_batch_size": 32,
        "learning_rate": 3e-3,
        "ema_decay": 0.9,
    }
    options = config(reviews(1200), noise="absorbing", label_names=["bad", "good"], **settings)
    losses = train_classifier.main(options)
    metrics = metrics_of(options)
    assert metrics["accuracy"] > 0.95 and metrics["cross_entropy"] < 0.2
    assert abs(metrics["majority"] - 2 / 3) < 0.1 and abs(metrics["label_entropy"] - 0.6365) < 0.06
    assert metrics["accuracy_by_noise/0.05"] > metrics["accuracy_by_noise/0.95"]
    assert np.mean(losses[-20:]) < np.mean(losses[:5])
    printed = capsys.readouterr().out
    assert f"none{metrics['accuracy']:17.3f}{metrics['cross_entropy']:16.3f}" in printed
    assert f"majority{metrics['majority']:13.3f}{metrics['label_entropy']:16.3f}" in printed
    model = TextClassifierModel.from_pretrained(options.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(options.output_dir)
    assert model.config.labels == ["bad", "good"] and not model.config.time_conditioning
    for text, label in (
        ("elephant horrible umbrella slow", 0),
        ("mountain quick carpenter excellent", 1),
    ):
        ids = torch.tensor(
            [[tokenizer.eos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]]
        )
        assert int(model(ids).logits.argmax()) == label
    blank = torch.full((1, 20), tokenizer.mask_token_id)
    blank[0, [0, 19]] = tokenizer.eos_token_id
    assert abs(float(model(blank).logits.detach().softmax(dim=-1)[0, 1]) - 2 / 3) < 0.12


def test_a_tagger_is_learned(config):
    settings = {
        "max_train_steps": 60,
        "learning_rate": 3e-3,
        "ema_decay": 0.9,
        "clean_fraction": 1.0,
    }
    options = config(sentences(), **settings)
    train_classifier.main(options)
    metrics, model = metrics_of(options), TextClassifierModel.from_pretrained(options.output_dir)
    assert metrics["accuracy"] > 0.95 and model.config.per_token
    assert model.config.labels == ["NOUN", "PUNCT", "VERB"] and not any(
        "by_noise" in name for name in metrics
    )
    tokenizer = AutoTokenizer.from_pretrained(options.output_dir)
    ids = torch.tensor(
        [[tokenizer.eos_token_id, *tokenizer.encode("carpenter listened."), tokenizer.eos_token_id]]
    )
    names = [model.config.labels[i] for i in model(ids).logits[0, 1:-1].argmax(dim=-1)]
    assert names[0] == "NOUN" and names[-2] == "VERB" and names[-1] == "PUNCT"


@pytest.mark.parametrize(
    "make, sizes",
    [
        (
            lambda t: token_pipeline(t, D3PMAbsorbingScheduler(t.mask_token_id)),
            {"time_conditioning": False},
        ),
        (
            lambda t: token_pipeline(t, D3PMUniformScheduler(len(t) - 2), lengths=[1] * 20),
            {"time_conditioning": True},
        ),
        (
            lambda t: token_pipeline(t, D3PMUniformScheduler(len(t) - 2, 20)),
            {"time_conditioning": True},
        ),
        (
            embedding_pipeline,
            {"embedding_dim": 6, "num_train_timesteps": 50, "time_conditioning": True},
        ),
        (
            lambda t: embedding_pipeline(t, partial_noising=True),
            {"embedding_dim": 6, "num_train_timesteps": 50},
        ),
    ],
    ids=["absorbing", "uniform", "uniform steps", "embeddings", "given words"],
)
@pytest.mark.parametrize("tagged", [False, slow(True)])
def test_the_noise_of_any_pipeline_is_taken(config, tokenizer, tmp_path, make, sizes, tagged):
    pipe = make(tokenizer)
    pipe.save_pretrained(tmp_path / "pipe")
    rows = sentences(60) if tagged else reviews(60)
    losses = train_classifier.main(config(rows, model_name_or_path=str(tmp_path / "pipe")))
    assert len(losses) == 3 and all(np.isfinite(losses))
    model = TextClassifierModel.from_pretrained(tmp_path / "run")
    assert {name: model.config[name] for name in sizes} == sizes
    assert model.config.max_length == 48 and model.config.vocab_size == len(tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab() == tokenizer.get_vocab()
    if "embedding_dim" in sizes:  # it reads words as the pipeline embeds and hides them
        clean, scheduler = pipe.denoiser.embedding_table(), pipe.scheduler
        assert torch.equal(model.word_table, clean)
        late = torch.cat(
            [model.word_probs(clean[None] * scheduler.alphas_cumprod[t].sqrt(), t) for t in (0, 49)]
        )
        assert (
            torch.equal(late[0].argmax(dim=-1), torch.arange(len(tokenizer)))
            and late[1].max() < 0.1
        )
    metrics = metrics_of(config(rows, overwrite_output_dir=True))
    assert {
        "accuracy",
        "cross_entropy",
        "majority",
        "cross_entropy_by_noise/0.95",
    } <= metrics.keys()


def test_the_noise_of_a_masked_lm_is_taken(config, tmp_path):
    model, tokenizer = make_masked_lm("bert")
    pipe = TextDiffusionPipeline(tokenizer, model, D3PMAbsorbingScheduler(tokenizer.mask_token_id))
    pipe.save_pretrained(tmp_path / "pipe")
    assert all(
        np.isfinite(
            train_classifier.main(config(reviews(60), model_name_or_path=str(tmp_path / "pipe")))
        )
    )
    assert (
        TextClassifierModel.from_pretrained(tmp_path / "run").config.vocab_size
        == model.config.vocab_size
    )


@pytest.mark.parametrize("tagged", [False, True])
def test_the_loss_does_not_depend_on_micro_batches(config, tmp_path, tagged):
    rows, same = sentences(100) if tagged else reviews(100), {"noise": "absorbing", "dropout": 0.0}
    whole = train_classifier.main(config(rows, output_dir=str(tmp_path / "a"), **same))
    parts = {
        "train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "output_dir": str(tmp_path / "b"),
    }
    np.testing.assert_allclose(train_classifier.main(config(rows, **parts, **same)), whole, 1e-5)


def test_the_first_loss_is_the_mean_over_labels(config, tmp_path):
    """An untrained model gives every class the same probability, however many tokens the texts have."""
    assert train_classifier.main(config(max_train_steps=1))[0] == pytest.approx(np.log(2), abs=1e-6)
    tagged = config(sentences(), max_train_steps=1, output_dir=str(tmp_path / "tags"))
    assert train_classifier.main(tagged)[0] == pytest.approx(np.log(3), abs=1e-6)


def test_a_resumed_run_is_the_run_that_was_not_stopped(config, tmp_path):
    same = {"max_train_steps": 6, "checkpointing_steps": 4, "noise": "absorbing"}
    straight = train_classifier.main(config(output_dir=str(tmp_path / "a"), **same))
    train_classifier.main(config(output_dir=str(tmp_path / "b"), **same))
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000006")
    resumed = train_classifier.main(
        config(output_dir=str(tmp_path / "b"), resume_from_checkpoint="latest", **same)
    )
    assert resumed == straight[4:]
    one, other = (
        load_file(tmp_path / run / "diffusion_pytorch_model.safetensors") for run in ("a", "b")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"label_column": None}, "Either `label_column` or `tags_column` must be given"),
        ({"tags_column": "pos"}, "Either `label_column` or `tags_column` must be given"),
        ({"clean_fraction": 1.5}, "`clean_fraction` must be between 0 and 1, got 1.5"),
        ({"noise": "uniform"}, "`noise` must be one of"),
        ({"noise": "absorbing", "model_name_or_path": "x"}, "`noise` belongs to the pipeline"),
        ({"label_column": None, "tags_column": "pos", "packing": True}, "`packing` must be off"),
        (
            {"label_column": None, "tags_column": "pos", "streaming": True},
            "goes without `streaming`",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_what_cannot_be_trained_is_refused(config, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"`label_names` must name 2 labels, got \['one'\]"):
        train_classifier.main(config(label_names=["one"]))
    unseen = [*reviews(99), {"review": "elephant new", "mood": 2}]
    with pytest.raises(ValueError, match="`label_column` holds 2 in held-out texts only"):
        train_classifier.main(config(unseen, validation_fraction=0.01))
    pipe = token_pipeline(tokenizer, BlockAncestralScheduler())
    pipe.save_pretrained(tmp_path / "pipe")
    with pytest.raises(
        ValueError, match="token scheduler of this package, got BlockAncestralScheduler"
    ):
        train_classifier.main(config(model_name_or_path=str(tmp_path / "pipe")))
    train_classifier.main(config(checkpointing_steps=0))
    with pytest.raises(ValueError, match="holds a trained model"):
        config()
