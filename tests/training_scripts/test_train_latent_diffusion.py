"""The recipe of latent diffusion end to end: priors, sources and labels, cached latents, and resumed runs."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow
from safetensors.torch import load_file
from support.recipes import load_script

from text_diffusers import LatentTextDiffusionPipeline
from text_diffusers.data import latent_cache
from text_diffusers.models.latent.gaussian_prior import LatentGaussianPrior
from text_diffusers.schedulers.latent.scheduling_flow import LatentFlowEulerScheduler
from text_diffusers.training.loop import TrainingLoop

first_stage = load_script("train_text_autoencoder")
recipe = load_script("train_latent_diffusion")

WORDS = "the cat sat on a mat and dog looked at bird sang in tree she was late for train".split()


def small(**changes):
    sizes = {"num_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "length": 16}
    sizes |= {"train_batch_size": 8, "num_cpu_threads": 1, "report_to": ["none"]}
    sizes |= {"validation_rows": 4, "report_rows": 4, "num_samples": 1, "max_train_steps": 3}
    return sizes | {"validation_fraction": 0.1} | changes


def make_pairs(count=60):
    """Texts of a label, each with a source of its words the other way round; some sources are long."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        words = list(random.choice(WORDS, size=4 + number % 3))
        source = " ".join(reversed(words)) + " and more" * (number % 5)
        row = {"text": " ".join(words), "source": source, "label": ["calm", "loud"][number % 2]}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data, and autoencoders of texts and of pairs."""
    folder = tmp_path_factory.mktemp("latents")
    data = folder / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in make_pairs()), encoding="utf-8")

    latents = {"num_latents": 2, "latent_size": 4, "model_size": 16, "model_layers": 1}
    latents |= {"num_rewritten": 2, "statistics_rows": 60, "vocab_size": 300, "ema_decay": 0.0}
    for name, source in (("texts", None), ("pairs", "source")):
        options = small(dataset=str(data), output_dir=str(folder / name), source_column=source)
        first_stage.main(first_stage.TextAutoencoderConfig(**options | latents))
    return folder


@pytest.fixture
def config(folders, tmp_path):
    def make(autoencoder="texts", **changes):
        options = small(
            dataset=str(folders / "pairs.jsonl"),
            autoencoder=str(folders / autoencoder),
            output_dir=str(tmp_path / "run"),
            latent_cache=str(tmp_path / "cache"),
            num_inference_steps=3,
            num_length_samples=4,
        )
        return recipe.LatentDiffusionConfig(**options | changes)

    return make


def loaded(options):
    pipe = LatentTextDiffusionPipeline.from_pretrained(options.output_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_three_steps_give_a_pipeline_that_writes_from_sources(config):
    """Dior-CVAE: decoder and denoiser are told the source."""
    options = config("pairs", source_column="source", ema_decay=0.5)
    losses = recipe.main(options)
    assert len(losses) == 3 and all(np.isfinite(losses))
    pipe = loaded(options)
    assert isinstance(pipe.scheduler, LatentFlowEulerScheduler)
    assert pipe.autoencoder.config.reads_source
    assert pipe.denoiser.config.prompt_size == pipe.autoencoder.encoder.config.hidden_size
    # As many steps and tokens as the recipe was told, without being told again
    output = pipe(source=["the cat", "a dog"], generator=torch.Generator().manual_seed(0))
    assert pipe.num_timesteps == 3 and len(output.texts) == 2

    metrics = json.loads(Path(options.output_dir, "metrics.json").read_text())
    assert {"bound", "reconstruction", "rate", "standard_rate", "drawn_std"} <= metrics.keys()
    assert metrics["bound"] == pytest.approx(metrics["reconstruction"] + metrics["rate"])


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "sample", "label_column": "label", "self_conditioning": 0.0},
        slow({"prediction_type": "epsilon", "noise_schedule": "sqrt", "draw_latents": True}),
        slow(
            {"prediction_type": "v_prediction", "optimal_transport": True, "weighting": "min_snr"}
        ),
        {
            "prediction_type": "sample",
            "noise_schedule": "straight",
            "time_sampling": "logit_normal",
        },
    ],
    ids=str,
)
def test_every_prediction_is_trained_and_written_by_a_scheduler_that_fits(config, changes):
    options = config(**changes)
    assert all(np.isfinite(recipe.main(options)))
    pipe = loaded(options)
    assert pipe.scheduler.config.prediction_type == changes["prediction_type"]
    labels = {"class_labels": "loud"} if "label_column" in changes else {}
    assert pipe.label_names == (["calm", "loud"] if labels else [])
    latents = pipe(num_return_sequences=2, output_type="latents", **labels).latents
    assert latents.shape == (2, 2, 4) and latents.isfinite().all()


@pytest.mark.parametrize("autoencoder", ["texts", "pairs"])
def test_a_gaussian_prior_takes_the_place_of_diffusion(config, autoencoder):
    """The plain CVAE: one draw, no scheduler; its loss is what its texts' latents cost in nats."""
    sources = {"source_column": "source"} if autoencoder == "pairs" else {}
    options = config(autoencoder, prior="gaussian", **sources, ema_decay=0.0, learning_rate=1e-2)
    losses = recipe.main(options)
    pipe = loaded(options)
    assert pipe.scheduler is None and isinstance(pipe.denoiser, LatentGaussianPrior)
    # Before the first step it is N(0, I): of normalised latents, log(2 pi) / 2 and half their variance each.
    assert losses[0] == pytest.approx(8 * 0.5 * (np.log(2 * np.pi) + 1), rel=0.2)
    told = {"source": "the cat"} if sources else {}
    output = pipe(**told, num_return_sequences=3, generator=torch.Generator().manual_seed(0))
    assert len(output.texts) == 3 and output.latents.shape == (3, 2, 4)


def test_the_latents_of_a_corpus_are_computed_once(config, tmp_path, monkeypatch):
    calls = []
    compute = latent_cache.computed_latents
    monkeypatch.setattr(
        latent_cache, "computed_latents", lambda *parts: calls.append(1) or compute(*parts)
    )
    options = {"num_samples": 0, "num_length_samples": 0, "max_train_steps": 1}
    first = recipe.main(config(**options))
    again = recipe.main(config(**options, output_dir=str(tmp_path / "again")))
    assert first == again and len(calls) == 1
    # Those of other weights are others.
    recipe.main(config("pairs", **options, output_dir=str(tmp_path / "other")))
    assert len(calls) == 2


def tensors_of(folder):
    """Every tensor of the last checkpoint and of the saved denoiser, by file and name."""
    saved = sorted(Path(folder, "checkpoints").iterdir())[-1]
    files = [*saved.glob("*.safetensors"), *Path(folder, "denoiser").glob("*.safetensors")]
    return {
        f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("prior", ["diffusion", "gaussian"])
def test_a_run_that_is_stopped_resumes_to_the_last_digit(config, tmp_path, monkeypatch, prior):
    settings = {"max_train_steps": 5, "lr_warmup_steps": 1, "num_samples": 0, "prior": prior}
    settings |= {"num_length_samples": 0, "source_column": "source", "draw_latents": True}
    straight = recipe.main(config("pairs", output_dir=str(tmp_path / "a"), **settings))
    stopped = []
    step = TrainingLoop.train_step

    def signalled(loop):
        if loop.step == 2:
            signal.raise_signal(signal.SIGTERM)
        result = step(loop)
        stopped.append(result[0])
        return result

    again = settings | {"output_dir": str(tmp_path / "b")}
    monkeypatch.setattr(TrainingLoop, "train_step", signalled)
    with pytest.raises(SystemExit):
        recipe.main(config("pairs", **again))
    monkeypatch.setattr(TrainingLoop, "train_step", step)
    resumed = recipe.main(config("pairs", **again, resume_from_checkpoint="latest"))
    assert stopped + resumed == straight and len(stopped) == 3
    expected, found = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_run_is_not_resumed_with_the_latents_of_another_autoencoder(config):
    settings = {"num_samples": 0, "num_length_samples": 0, "max_train_steps": 1}
    recipe.main(config(**settings))
    with pytest.raises(ValueError, match="`autoencoder` is another one"):
        recipe.main(config("pairs", **settings, resume_from_checkpoint="latest"))


def test_with_guidance_the_condition_is_seen_at_every_step(config, monkeypatch):
    """The fault of Dior-CVAE's code: guidance forgot the condition after the first of all steps."""
    options = config("pairs", source_column="source", num_samples=0, num_length_samples=0)
    recipe.main(options)
    pipe = loaded(options)
    told = []
    forward = pipe.denoiser.forward

    def recorded(*inputs, prompt_mask=None, **others):
        told.append(prompt_mask.bool().any(dim=1).tolist())
        return forward(*inputs, prompt_mask=prompt_mask, **others)

    monkeypatch.setattr(pipe.denoiser, "forward", recorded)
    pipe(source="the cat", guidance_scale=2.0, num_inference_steps=7, output_type="latents")
    # With and without it, in one call or two
    seen = [row for rows in told for row in rows]
    assert seen.count(True) == 7 and seen.count(False) == 7


def test_answers_of_conversations_are_texts_and_the_turns_before_their_sources(config, tmp_path):
    chats = tmp_path / "chats.jsonl"
    roles = ["user", "assistant"] * 2
    lines = []
    for row in make_pairs(30):
        words = row["text"].split()
        turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=False)]
        lines.append(json.dumps({"messages": turns}))
    chats.write_text("\n".join(lines), encoding="utf-8")

    options = config("pairs", dataset=str(chats), source_column="messages", context_turns=2)
    recipe.main(options)
    assert len(loaded(options)(source="the\ncat").texts) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"autoencoder": None}, "`autoencoder` must be given"),
        ({"tokenizer": "other"}, "`tokenizer` is that of the `autoencoder`"),
        ({"packing": True}, "`packing` must be false"),
        ({"streaming": True}, "`streaming` must be false"),
        ({"prediction_type": "noise"}, "`prediction_type` must be one of"),
        (
            {"prediction_type": "epsilon", "noise_schedule": "straight"},
            "`prediction_type` must be one of .* with `noise_schedule`='straight', got 'epsilon'",
        ),
        (
            {"prediction_type": "flow", "noise_schedule": "cosine"},
            "`prediction_type` must be one of .* with `noise_schedule`='cosine', got 'flow'",
        ),
        ({"prior": "gaussian", "label_column": "label"}, "`label_column` goes with `--prior diff"),
        (
            {"optimal_transport": True, "source_column": "source"},
            "`optimal_transport` cannot be used with a `source_column`",
        ),
        ({"source_length": 8}, "`source_length` needs a `source_column`, got 8"),
        ({"source_length": 2, "source_column": "source"}, "`source_length` must be .* at least 3"),
        ({"condition_dropout": 1.0}, r"`condition_dropout` must be in \[0, 1\), got 1.0"),
        ({"label_names": ["a"]}, "`label_names` needs a `label_column`"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_at_once(config, changes, message):
    options = {"autoencoder": changes.pop("autoencoder")} if "autoencoder" in changes else {}
    with pytest.raises(ValueError, match=message):
        if options:
            recipe.LatentDiffusionConfig(output_dir="nowhere", **options, **changes)
        config(**changes)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"autoencoder": "no/such/folder"}, FileNotFoundError, "holds no autoencoder"),
        ({"encoder_length": 99}, ValueError, "`encoder_length` must be at most 16"),
        (
            {"source_column": "source", "source_length": 99},
            ValueError,
            "`source_length` must be at most 16",
        ),
        ({"hidden_size": 15}, ValueError, "`hidden_size` must be an even multiple"),
    ],
    ids=str,
)
def test_models_that_make_no_sense_are_refused_before_the_texts_are_read(
    config, changes, error, message, monkeypatch
):
    monkeypatch.setattr(recipe, "prepare_latent_data", None)
    with pytest.raises(error, match=message):
        recipe.main(config(**changes))


def test_a_reflow_goes_on_from_the_weights_of_a_pipeline_and_refuses_others(config, tmp_path):
    teacher = config(label_column="label", output_dir=str(tmp_path / "teacher"))
    recipe.main(teacher)
    shared = {"label_column": "label", "reflow_from": str(tmp_path / "teacher"), "reflow_steps": 3}
    options = config(**shared, learning_rate=1e-12, ema_decay=0.0)
    assert np.isfinite(recipe.main(options)).all()
    # At no rate to speak of, it is the model that it began with.
    before = loaded(teacher).denoiser.state_dict()
    for name, value in loaded(options).denoiser.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=1e-6)

    fresh = {"overwrite_output_dir": True}
    with pytest.raises(ValueError, match="`num_layers` must be 1 as in `reflow_from`, got 2"):
        recipe.main(config(**shared | fresh, num_layers=2))
    with pytest.raises(ValueError, match="`reflow_from` must be over the latents of `autoencoder`"):
        recipe.main(config("pairs", **shared | fresh))
    for changes, message in (
        ({"noise_schedule": "cosine", "prediction_type": "sample"}, "`noise_schedule` must be"),
        ({"draw_latents": True}, "`draw_latents` cannot be used with `reflow_from`"),
        ({"optimal_transport": True}, "`optimal_transport` cannot be used with `reflow_from`"),
        (
            {"prior": "gaussian", "label_column": None},
            "`reflow_from` goes with `--prior diffusion`",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            config(**shared | fresh | changes)
