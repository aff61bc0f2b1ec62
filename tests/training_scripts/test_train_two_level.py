"""The recipe of two-level diffusion end to end: stages alone and together, prompts of every kind, and the report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, slow
from safetensors.torch import load_file
from support.recipes import load_script
from transformers import BertConfig, BertModel

from text_diffusers import (
    AutoencoderVQTextModel,
    D3PMAbsorbingScheduler,
    PromptEncoderModel,
    TextDiffusionPipeline,
    TwoLevelVQDiffusionPipeline,
)
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.code_rows import code_rows
from text_diffusers.data.rows import ShuffledRows
from text_diffusers.evaluation.bounds import batch_bound
from text_diffusers.training.runtime import make_accelerator
from text_diffusers.training.steps.codes import shown_plans, shown_prompts

train_two_level = load_script("train_two_level")


@pytest.fixture
def autoencoder(tokenizer, tmp_path):
    """Makes a folder as train_vq_autoencoder.py does, of an autoencoder with random weights."""

    def make(levels=2):
        folder = tmp_path / f"autoencoder-{levels}"
        if folder.exists():
            return str(folder)
        sizes = {
            "hidden_size": 16,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "num_attention_heads": 2,
        }
        sizes |= {
            "patch_length": 2,
            "coarse_ratio": 2 if levels == 2 else None,
            "num_fine_codes": 7,
        }
        sizes |= {
            "num_coarse_codes": 5 if levels == 2 else None,
            "codebook_dim": 4,
            "window_length": 8,
        }
        torch.manual_seed(0)
        model = AutoencoderVQTextModel(len(tokenizer), **sizes)
        ids = tokenizer(" ".join(SENTENCES))["input_ids"]
        model.train()(
            torch.tensor(ids[:64]).view(4, 16)
        )  # the codebooks begin with the first batch
        model.eval().save_pretrained(folder / "autoencoder")
        tokenizer.save_pretrained(folder / "tokenizer")
        return str(folder)

    return make


@pytest.fixture
def config(text_file, autoencoder, tmp_path):
    def make(levels=2, run="run", **changes):
        settings = {
            "dataset": str(text_file),
            "autoencoder": autoencoder(levels),
            "output_dir": str(tmp_path / run),
            "length": 16,
            "hidden_size": 16,
            "coarse_layers": 1,
            "fine_layers": 2,
            "prompt_layers": 1,
            "num_attention_heads": 2,
            "max_train_steps": 3,
            "lr_warmup_steps": 1,
            "train_batch_size": 4,
            "num_cpu_threads": 1,
            "validation_rows": 8,
            "report_to": ["none"],
        }
        return train_two_level.TwoLevelConfig(**settings | changes)

    return make


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"text": f"text {i} of many", "before": f"number {i} and more"} for i in range(60)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"dataset": str(path), "source_column": "before", "packing": False}


def weights(*parts):
    (file,) = Path(*parts).glob("*.safetensors")
    return load_file(file)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metrics_of(options):
    return json.loads((Path(options.output_dir) / "metrics.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        slow({"levels": 1}),
        slow({"prompt_length": 6}),
        slow({"levels": 1, "prompt_length": 6}),
        slow({"min_length": 8}),
        slow({"packing": False}),
        slow(
            {
                "plan_corruption": 0.0,
                "plan_dropout": 0.0,
                "time_sampling": "uniform",
                "optimizer": "sgd",
            }
        ),
        slow({"streaming": True, "validation_documents": 20, "prompt_length": 6}),
        slow(
            {
                "mixed_precision": "bf16",
                "gradient_checkpointing": True,
                "prompt_length": 6,
                "report_to": ["tensorboard"],
            }
        ),
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()) or "default",
)
def test_three_steps_a_stage_give_a_pipeline_that_writes(config, changes):
    options = config(**changes)
    losses = train_two_level.main(options)
    levels = ["fine"] if changes.get("levels") == 1 else ["coarse", "fine"]
    assert list(losses) == levels and all(
        len(taken) == 3 and np.isfinite(taken).all() for taken in losses.values()
    )
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    assert type(pipe) is TwoLevelVQDiffusionPipeline
    pipe.set_progress_bar_config(disable=True)
    prompt = "the cat sat" if options.prompt_length else None
    output = pipe(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert isinstance(output.texts[0], str) and output.fine_codes.shape == (1, 8)
    assert (output.plan is None) == (len(levels) == 1)
    assert pipe.config.prompt_begins_text == bool(options.prompt_length)
    metrics = metrics_of(options)
    terms = [
        metrics[name]
        for name in ("coarse_bound", "fine_bound", "decoder_cross_entropy")
        if name in metrics
    ]
    assert len(terms) == len(levels) + 1 and metrics["bound"] == pytest.approx(sum(terms))
    assert metrics["unigram_entropy"] > 0 and metrics["standard_error"] > 0
    assert ("fine_bound_with_shuffled_plans" in metrics) == (len(levels) == 2)
    for level in levels:
        assert bool(list(Path(options.output_dir, level).rglob("events*"))) == (
            options.report_to == ["tensorboard"]
        )
        assert len(list(Path(options.output_dir, level, "checkpoints").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"prompt_length": 5, "condition_dropout": 0.3}, id="prompts"),
    ],
)
def test_stages_alone_are_the_stages_together_to_the_last_digit(config, changes):
    together = config(run="together", **changes)
    losses = train_two_level.main(together)
    alone = config(run="alone", stage="coarse", **changes)
    assert train_two_level.main(alone) == {"coarse": losses["coarse"]}
    assert not Path(alone.output_dir, "model_index.json").exists()
    assert train_two_level.main(config(run="alone", stage="fine", **changes)) == {
        "fine": losses["fine"]
    }
    assert metrics_of(alone) == metrics_of(together)
    for part in ("coarse_denoiser", "fine_denoiser", *(["prompt_encoder"] if changes else [])):
        assert same(weights(alone.output_dir, part), weights(together.output_dir, part))


@pytest.mark.slow
def test_without_prompts_the_fine_stage_may_come_first(config):
    together = config(run="together")
    losses = train_two_level.main(together)
    assert train_two_level.main(config(run="alone", stage="fine")) == {"fine": losses["fine"]}
    assert not Path(together.output_dir).with_name("alone").joinpath("model_index.json").exists()
    alone = config(run="alone", stage="coarse")
    assert train_two_level.main(alone) == {"coarse": losses["coarse"]}
    assert metrics_of(alone) == metrics_of(together)


@pytest.mark.slow
def test_a_resumed_stage_is_the_stage_that_was_not_stopped(config):
    settings = {"max_train_steps": 6, "checkpointing_steps": 4, "prompt_length": 5, "dropout": 0.1}
    straight = train_two_level.main(config(run="a", **settings))
    train_two_level.main(config(run="b", **settings))
    folder = Path(config(run="c").output_dir).with_name("b")
    for level in ("fine", "coarse"):
        shutil.rmtree(folder / level / "checkpoints" / "step-00000006")
        shutil.rmtree(folder / level / "denoiser")
        resumed = train_two_level.main(
            config(run="b", stage=level, resume_from_checkpoint="latest", **settings)
        )
        assert resumed == {level: straight[level][4:]}
        for part in ("denoiser", "prompt_encoder"):
            assert same(weights(folder, level, part), weights(folder.with_name("a"), level, part))
        shutil.rmtree(
            folder / "fine", ignore_errors=True
        )  # it would not know the prompt encoder of another coarse stage


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["auto", "latest"])
def test_all_stages_go_on_where_the_first_was_stopped(config, resume):
    settings = {"max_train_steps": 6, "checkpointing_steps": 4, "prompt_length": 5}
    straight = train_two_level.main(config(run="a", **settings))
    folder = Path(config(run="b", stage="coarse", **settings).output_dir)
    train_two_level.main(config(run="b", stage="coarse", **settings))
    shutil.rmtree(folder / "coarse" / "checkpoints" / "step-00000006")
    resumed = train_two_level.main(config(run="b", resume_from_checkpoint=resume, **settings))
    assert resumed == {"coarse": straight["coarse"][4:], "fine": straight["fine"]}
    again = train_two_level.main(config(run="b", resume_from_checkpoint=resume, **settings))
    assert again == {"coarse": [], "fine": []}
    assert same(weights(folder, "fine_denoiser"), weights(folder.with_name("a"), "fine_denoiser"))


@pytest.mark.slow
def test_a_run_over_another_one_that_is_stopped_and_resumed_takes_up_nothing_of_the_other(config):
    train_two_level.main(config())

    def stop(step, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_two_level.main(config(overwrite_output_dir=True), on_validation=stop)
    resumed = train_two_level.main(config(resume_from_checkpoint="auto"))
    assert len(resumed["coarse"]) == 0 and len(resumed["fine"]) == 3


@pytest.mark.slow
def test_what_is_frozen_stays_and_what_is_trained_moves(config):
    options = config(prompt_length=6, learning_rate=1e-2, max_train_steps=5, ema_decay=0.5)
    train_two_level.main(options)
    run = Path(options.output_dir)
    assert same(weights(run, "autoencoder"), weights(options.autoencoder, "autoencoder"))
    coarse, fine = weights(run, "coarse", "prompt_encoder"), weights(run, "fine", "prompt_encoder")
    assert same(coarse, fine) and same(coarse, weights(run, "prompt_encoder"))
    averages = {
        level: load_file(next(run.glob(f"{level}/checkpoints/*/ema.safetensors")))
        for level in ("coarse", "fine")
    }
    assert not [name for name in averages["fine"] if name.startswith("prompt_encoder")]
    for level, named in averages.items():
        saved = {
            f"denoiser.{name}": value for name, value in weights(run, level, "denoiser").items()
        }
        saved |= {
            f"prompt_encoder.{name}": value for name, value in coarse.items() if level == "coarse"
        }
        assert same(saved, named)
    stage = train_two_level.stage_configs(
        config(run="new", prompt_length=6, stage="coarse"), autoencoder_of(options)
    )[0]
    first = train_two_level.build_model(
        stage, autoencoder_of(options), tokenizer_of(options)
    ).prompt_encoder
    moved = [
        name for name, value in first.state_dict().items() if not torch.equal(value, coarse[name])
    ]
    assert len(moved) > len(coarse) / 2


def autoencoder_of(options):
    return train_two_level.load_autoencoder(options)


def tokenizer_of(options):
    return TextDiffusionPipeline.from_pretrained(options.output_dir).tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["fine", "coarse"])
def test_the_loss_is_the_bound_of_what_is_shown(config, monkeypatch, stage):
    """With even times, and weights that tell codes apart; what is hidden comes from the rows' generators, in order."""
    build, models = train_two_level.build_model, []

    def randomized(*arguments):
        model = build(*arguments)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.denoiser.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
        models.append(model)
        return model

    monkeypatch.setattr(train_two_level, "build_model", randomized)
    shares = {"condition_dropout": 0.4, "plan_corruption": 0.5, "plan_dropout": 0.3}
    steps = {
        "max_train_steps": 2,
        "learning_rate": 1e-12,
        "train_batch_size": 16,
        "time_sampling": "uniform",
    }
    plain = {"condition_dropout": 0.0, "plan_corruption": 0.0, "plan_dropout": 0.0}
    if stage == "fine":
        train_two_level.main(config(stage="coarse", prompt_length=6, **shares))
        shutil.copytree(
            Path(config(run="x").output_dir).with_name("run"), Path(config(run="y").output_dir)
        )
    for run, given in (("run", shares), ("y" if stage == "fine" else "z", plain)):
        options = config(run=run, stage=stage, prompt_length=6, **given, **steps)
        losses = train_two_level.main(options)[stage]
        autoencoder, model = train_two_level.load_autoencoder(options), models[-1].eval()
        data = train_two_level.prepare_texts(options, make_accelerator(options))
        order = ShuffledRows(code_rows(autoencoder, data.train_rows, stage), 16)
        for step, loss in enumerate(losses):
            batch, (uniform, generators) = order.batch(step), row_noise(0, step, 16)
            whole = dict(batch)
            batch = shown_prompts(batch, generators, given["condition_dropout"], suffixes=True)
            batch = shown_plans(
                batch, generators, given["plan_corruption"], given["plan_dropout"], 5
            )
            assert (stage == "fine" and any(given.values())) == (
                "context_ids" in batch
                and not torch.equal(batch["context_ids"], whole["context_ids"])
            )
            scheduler = D3PMAbsorbingScheduler(model.config.vocab_size - 1, min_timestep=0.1)
            with torch.no_grad():
                nats = batch_bound(model, scheduler, batch, uniform, generators).sum()
            assert loss == pytest.approx(float(nats) / batch["input_ids"].numel(), rel=1e-5)


@pytest.mark.slow
def test_both_ways_to_draw_times_have_the_same_mean_loss(config, monkeypatch):
    build = train_two_level.build_model

    def randomized(*arguments):
        model = build(*arguments)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
        return model

    monkeypatch.setattr(train_two_level, "build_model", randomized)
    settings = {
        "stage": "fine",
        "max_train_steps": 100,
        "learning_rate": 1e-12,
        "train_batch_size": 16,
    }
    means, errors = [], []
    for sampling in ("uniform", "log_uniform"):
        losses = train_two_level.main(config(run=sampling, time_sampling=sampling, **settings))[
            "fine"
        ]
        means.append(np.mean(losses))
        errors.append(np.std(losses) / len(losses) ** 0.5)
    assert abs(means[0] - means[1]) < 4 * np.hypot(*errors) and errors[1] < errors[0]


@pytest.mark.slow
def test_sources_are_prompts_that_texts_are_written_from(config, pairs):
    options = config(**pairs)
    assert options.prompt_length == 16
    train_two_level.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)
    assert not pipe.config.prompt_begins_text and pipe.prompt_encoder.config.max_length == 16
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(["number 7", "number 8"], num_inference_steps=(2, 1)).texts) == 2


@pytest.mark.slow
def test_an_encoder_of_transformers_reads_prompts_and_stays_as_it_is(config, tokenizer, tmp_path):
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **sizes))
    encoder.save_pretrained(tmp_path / "bert")
    settings = {"prompt_length": 6, "prompt_encoder": str(tmp_path / "bert")}
    together = config(run="together", **settings)
    losses = train_two_level.main(together)
    pipe = TextDiffusionPipeline.from_pretrained(together.output_dir)
    assert type(pipe.prompt_encoder) is BertModel and pipe.coarse_denoiser.config.prompt_size == 8
    saved = pipe.prompt_encoder.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in encoder.state_dict().items())
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe("the cat", num_inference_steps=(2, 1)).texts[0], str)
    # It is there before either stage, so these may come in any order.
    for stage in ("fine", "coarse"):
        assert train_two_level.main(config(run="alone", stage=stage, **settings)) == {
            stage: losses[stage]
        }
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight += 0.1
    encoder.save_pretrained(tmp_path / "other")
    for stage in ("fine", "coarse"):
        again = {
            "stage": stage,
            "overwrite_output_dir": True,
            "prompt_encoder": str(tmp_path / "other"),
        }
        with pytest.raises(
            ValueError, match="`prompt_encoder`: stage .* was trained with another one"
        ):
            train_two_level.main(config(run="alone", **settings | again))
    with pytest.raises(
        ValueError, match="`prompt_length` must be at most 12 for this prompt encoder, got 13"
    ):
        train_two_level.main(config(run="long", **settings | {"prompt_length": 13}))


@pytest.mark.slow
def test_parts_of_rows_are_read_with_the_codes_of_shorter_texts(config, monkeypatch):
    """The codes of a part are those of the autoencoder for the tokens of the part alone."""
    shapes, seen = [], []
    forward = train_two_level.PromptedDenoiser.forward

    def recorded(self, input_ids, *others, **columns):
        if torch.is_grad_enabled():
            shapes.append((tuple(input_ids.shape), tuple(columns["context_ids"].shape)))
            seen.append(columns["context_ids"])
        return forward(self, input_ids, *others, **columns)

    monkeypatch.setattr(train_two_level.PromptedDenoiser, "forward", recorded)
    plain = {"plan_corruption": 0.0, "plan_dropout": 0.0}
    options = config(stage="fine", min_length=8, max_train_steps=12, **plain)
    train_two_level.main(options)
    assert set(shapes) == {((4, 8), (4, 4)), ((4, 4), (4, 2))}
    autoencoder = train_two_level.load_autoencoder(options)
    data = train_two_level.prepare_texts(options, make_accelerator(options))
    halves = torch.tensor(data.train_rows["input_ids"][:]).view(-1, 8)
    alone = {tuple(codes) for codes in autoencoder.encode(halves).coarse.tolist()}
    assert {
        tuple(codes) for plans in seen if plans.shape[1] == 2 for codes in plans.tolist()
    } <= alone


@pytest.mark.slow
def test_a_language_of_topics_is_planned(config, tmp_path, tokenizer):
    """The bounds fall below those of even codes, and the fine one rises with the plans of others, or none."""
    texts = [" ".join([word] * 8) for word in ("cat", "dog", "bird", "train") for _ in range(60)]
    np.random.default_rng(0).shuffle(texts)
    path = tmp_path / "topics.txt"
    path.write_text("\n".join(texts))
    settings = {
        "max_train_steps": 150,
        "learning_rate": 5e-3,
        "ema_decay": 0.9,
        "train_batch_size": 16,
    }
    options = config(
        dataset=str(path), hidden_size=32, **settings, validation_steps=0, checkpointing_steps=0
    )
    losses = train_two_level.main(options)
    metrics = metrics_of(options)
    assert np.mean(losses["fine"][-20:]) < 0.8 * np.mean(losses["fine"][:20])
    assert metrics["coarse_bound"] < np.log(5) / 4 and metrics["fine_bound"] < 0.75 * np.log(7) / 2
    assert metrics["fine_bound"] < 0.75 * metrics["fine_bound_with_shuffled_plans"]
    assert metrics["fine_bound"] < 0.9 * metrics["fine_bound_without_plans"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"autoencoder": None}, "`autoencoder` must be given"),
        ({"stage": "both"}, r"`stage` must be one of .*, got 'both'"),
        ({"time_sampling": "even"}, "`time_sampling` must be one of"),
        ({"plan_corruption": 1.0}, r"`plan_corruption` must be in \[0, 1\), got 1.0"),
        ({"vocab_size": 300}, "`vocab_size` belongs to the autoencoder in `autoencoder`"),
        ({"label_column": "mood", "packing": False}, "`label_column` is not used"),
        ({"prompt_length": 0}, "`prompt_length` must be None or at least 1"),
        (
            {"prompt_length": 4, "packing": False},
            "`prompt_length` needs packed rows, or a `source_column`",
        ),
        (
            {"source_column": "before"},
            "`prompt_length` needs packed rows, or a `source_column` and `--packing false`",
        ),
        ({"prompt_encoder": "bert"}, "`prompt_encoder` needs prompts"),
        ({"prompt_length": 4, "min_length": 8}, "`min_length` cannot be used with prompts"),
        ({"resume_from_checkpoint": "some/folder"}, "is the checkpoint of one stage"),
    ],
)
def test_options_that_make_no_sense_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"length": 20}, "`length` must be one that the autoencoder takes, such as 24, got 20"),
        ({"length": 6}, "`length` must be one that the autoencoder takes, such as 8, got 6"),
        (
            {"min_length": 4},
            "`min_length` must be a multiple of the autoencoder's `window_length`=8, got 4",
        ),
        (
            {"levels": 1, "stage": "coarse"},
            "`stage` must be fine or all for an autoencoder of one level",
        ),
        (
            {"stage": "fine", "prompt_length": 4},
            "needs the prompt encoder that `--stage coarse` trains",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(config, changes, message):
    options = config(**changes)
    with pytest.raises(ValueError, match=message):
        train_two_level.main(options)
    assert not Path(options.output_dir).exists()


def test_an_autoencoder_that_is_not_there_is_named(config, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nowhere' holds nothing that train_vq_autoencoder.py made"
    ):
        train_two_level.main(config(autoencoder=str(tmp_path / "nowhere")))


@pytest.mark.slow
def test_a_trained_stage_is_not_overwritten_unasked_and_stages_go_together(config):
    train_two_level.main(config(prompt_length=4, stage="coarse", checkpointing_steps=0))
    with pytest.raises(ValueError, match="coarse' holds a trained model: choose another"):
        train_two_level.main(config(prompt_length=4))
    with pytest.raises(ValueError, match="stage coarse in .* was trained with prompts"):
        train_two_level.main(config(stage="fine"))
    with pytest.raises(
        ValueError, match="`prompt_length` must be at most 4 for this prompt encoder, got 5"
    ):
        train_two_level.main(config(stage="fine", prompt_length=5))
    train_two_level.main(config(stage="fine", prompt_length=3, checkpointing_steps=0))
    again = {"stage": "coarse", "overwrite_output_dir": True}
    with pytest.raises(
        ValueError, match="would train a prompt encoder that the fine denoiser .* does not know"
    ):
        train_two_level.main(config(prompt_length=4, **again))
    with pytest.raises(ValueError, match="stage fine in .* was trained with prompts"):
        train_two_level.main(config(**again))
    train_two_level.main(config(prompt_length=4, overwrite_output_dir=True))


def test_texts_too_short_for_a_prompt_are_refused(config, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("a\nb\nc\nd\n")
    with pytest.raises(
        ValueError, match="`dataset` must have a text after a prompt in its .* rows"
    ):
        train_two_level.main(config(dataset=str(path), prompt_length=30))


@pytest.mark.slow
def test_a_new_prompt_encoder_has_the_sizes_that_were_asked_for(config):
    options = config(prompt_length=6, prompt_layers=2, stage="coarse")
    train_two_level.main(options)
    encoder = PromptEncoderModel.from_pretrained(
        options.output_dir, subfolder="coarse/prompt_encoder"
    )
    assert (encoder.config.num_layers, encoder.config.hidden_size, encoder.config.max_length) == (
        2,
        16,
        6,
    )


@pytest.mark.parametrize(
    "again",
    [slow({"stage": "fine"}), {"resume_from_checkpoint": "auto"}],
    ids=["other stage", "resumed"],
)
def test_codes_of_another_autoencoder_are_refused_before_anything_is_trained(
    config, again, monkeypatch
):
    options = config(stage="coarse")
    train_two_level.main(options)
    folder = Path(options.autoencoder, "autoencoder")
    changed = AutoencoderVQTextModel.from_pretrained(folder)
    with torch.no_grad():
        changed.patch_in.bias += 1
    changed.save_pretrained(folder)
    monkeypatch.setattr(train_two_level, "prepare_texts", None)
    with pytest.raises(
        ValueError, match="`autoencoder` is another one than .*coarse' was trained with"
    ):
        train_two_level.main(config(**{"stage": "coarse"} | again))
