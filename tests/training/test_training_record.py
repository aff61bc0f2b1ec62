"""What a training leaves beside its model: curves that a kill does not change, and the options and the command."""

import getpass
import json
import shlex
import socket

import pytest
import torch
from accelerate import Accelerator
from conftest import slow
from support.recipes import load_script

from text_diffusers import TextDiffusionCFGPipeline
from text_diffusers.training.config import (
    NOTE_FILE,
    OptionParser,
    TrainingConfig,
    marked_options,
    note_training,
    without_folders,
)
from text_diffusers.training.tracking import Curves, read_curves

SENTENCES = [
    "the cat sat on the mat and looked at the dog",
    "a bird sang in the tree while the cat slept",
]
RECIPES = {  # the class of options of each
    "train_d3pm": "D3PMConfig",
    "train_diffusion_lm": "DiffusionLMConfig",
    "train_classifier": "ClassifierConfig",
    "train_vq_autoencoder": "AutoencoderConfig",
    "train_two_level": "TwoLevelConfig",
    "train_text_autoencoder": "TextAutoencoderConfig",
    "train_latent_diffusion": "LatentDiffusionConfig",
}


class Killed(Exception):
    """Ends a run between two of its operations; nothing of the loop catches it."""


def lines_of(loop):
    """The lines of the file, each without what the clock says."""
    rows = [json.loads(line) for line in loop.curves.path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def run_until(loop, killed_at):
    """Run, and be killed when that step begins."""
    step = loop.train_step

    def kill():
        if loop.step == killed_at:
            raise Killed
        return step()

    loop.train_step = kill
    with pytest.raises(Killed):
        loop.run()


def evaluate(model):
    weights = next(parameter for parameter in model.parameters())
    return {
        "bound": float(weights.detach().abs().mean()),
        "bound_by_noise/0.5": 1.0,
        "broken": float("nan"),
    }


@pytest.mark.parametrize("validation_steps, kills", [(5, [9, 21]), slow(7, [1, 14])])
def test_the_curves_of_a_killed_and_resumed_run_are_those_of_a_straight_one(
    make_loop, validation_steps, kills
):
    options = {
        "max_train_steps": 25,
        "checkpointing_steps": 7,
        "validation_steps": validation_steps,
    }
    options |= {"checkpoints_total_limit": 1, "train_batch_size": 2}
    straight = make_loop("straight", evaluate=evaluate, **options)
    losses = straight.run()
    for killed_at in kills:
        broken = make_loop(f"broken-{killed_at}", evaluate=evaluate, **options)
        run_until(broken, killed_at)
        with open(broken.curves.path, "a") as file:
            file.write('{"step": 9')  # torn
        make_loop(
            f"broken-{killed_at}", evaluate=evaluate, resume_from_checkpoint="auto", **options
        ).run()
        assert lines_of(broken) == lines_of(straight), killed_at
    steps = [row["step"] for row in lines_of(straight)]
    assert steps == sorted({10, 20, 25} | set(range(validation_steps, 26, validation_steps)))
    tenth = next(row for row in lines_of(straight) if row["step"] == 10)
    assert tenth["loss"] == pytest.approx(sum(losses[:10]) / 10) and tenth["learning_rate"] > 0
    assert lines_of(straight)[-1]["validation"].keys() == {"bound", "bound_without_ema", "ema_gap"}


def test_a_kill_between_checkpoint_and_validation_loses_no_validation(make_loop):
    options = {
        "max_train_steps": 12,
        "checkpointing_steps": 6,
        "validation_steps": 6,
        "train_batch_size": 2,
    }
    straight = make_loop("straight", evaluate=evaluate, **options)
    straight.run()

    def killed(model):
        raise Killed

    broken = make_loop("broken", evaluate=killed, **options)
    with pytest.raises(Killed):
        broken.run()
    calls = []
    resumed = make_loop(
        "broken",
        evaluate=lambda m: calls.append(1) or evaluate(m),
        resume_from_checkpoint="latest",
        **options,
    )
    resumed.run()
    assert lines_of(resumed) == lines_of(straight) and [
        row["step"] for row in lines_of(resumed)
    ] == [6, 10, 12]
    again = make_loop("broken", evaluate=evaluate, resume_from_checkpoint="latest", **options)
    again.run()
    assert lines_of(again) == lines_of(straight)


def test_a_run_that_is_resumed_right_after_its_validation_does_not_repeat_it(make_loop):
    options = {
        "max_train_steps": 12,
        "checkpointing_steps": 6,
        "validation_steps": 6,
        "train_batch_size": 2,
    }
    first = make_loop("run", evaluate=evaluate, **options)
    run_until(first, 6)
    validated = []
    second = make_loop("run", evaluate=evaluate, resume_from_checkpoint="latest", **options)
    second.on_validation = lambda step, metrics: validated.append(step)
    second.run()
    assert validated == [12]


def test_a_run_over_an_old_one_begins_its_curves_anew(make_loop):
    make_loop("run", evaluate=evaluate, max_train_steps=20).run()
    new = make_loop("run", max_train_steps=10)
    new.run()
    assert [row["step"] for row in lines_of(new)] == [10] and "validation" not in lines_of(new)[0]


def test_a_disk_that_refuses_a_line_stops_nothing_and_is_made_up_for(tmp_path, caplog):
    curves = Curves(tmp_path / "curves.jsonl")
    curves.open(0)
    curves.add(10, {"loss": 3.0})
    curves.path.unlink()
    curves.path.mkdir()  # what no line can be written to
    curves.add(20, {"loss": 2.0, "wrong": float("inf")})
    curves.flush()
    assert "lacks its last lines" in caplog.text
    curves.path.rmdir()
    curves.add(30, {"loss": 1.0})
    assert read_curves(curves.path) == [
        {"step": step, "loss": loss} for step, loss in ((10, 3.0), (20, 2.0), (30, 1.0))
    ]


@pytest.mark.parametrize(
    "damage", [b'{"step": 2', b"\0\0\0\0", b"[1]", b'{"loss": 1}', b"\xff\xfe"]
)
def test_curves_are_read_up_to_a_damaged_line(tmp_path, damage, caplog):
    path = tmp_path / "curves.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + damage + b'\n{"step": 3, "loss": 1.0}\n')
    assert read_curves(path) == [{"step": 1, "loss": 2.0}] and "line 2 is damaged" in caplog.text


CHOICES = {
    "train_d3pm": {
        "label_column": "label",
        "label_names": ["a 'quoted' name", "$(x)"],
        "packing": False,
        "kernel": "uniform",
    },
    "train_diffusion_lm": {
        "embedding_dim": 8,
        "given_words": 0.0,
        "min_length": 16,
        "report_to": ["none"],
    },
    "train_classifier": {
        "label_column": "label",
        "packing": False,
        "noise": "absorbing",
        "learning_rate": 3e-05,
    },
    "train_vq_autoencoder": {
        "quantizer": "fsq",
        "fine_levels": [8, 5, 5],
        "coarse_levels": [4, 4],
        "levels": 2,
    },
    "train_two_level": {
        "autoencoder": "some/autoencoder",
        "prompt_length": 64,
        "max_train_minutes": 8.5,
    },
    "train_text_autoencoder": {
        "decoder": "some/decoder",
        "lora_rank": 8,
        "num_latents": 16,
    },
    "train_latent_diffusion": {
        "autoencoder": "some/autoencoder",
        "prior": "gaussian",
        "source_column": "source",
        "source_length": 32,
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_noted_command_asks_for_the_same_options(recipe, accelerator_of):
    options = getattr(load_script(recipe), RECIPES[recipe])
    config = options(output_dir="mine", dataset="some/data set", seed=3, **CHOICES[recipe])
    words = shlex.split(accelerator_of(config)["command"])
    assert words[:3] == ["accelerate", "launch", f"training_scripts/{recipe}.py"]
    (again,) = OptionParser(options).parse_args_into_dataclasses(words[3:])
    assert again == config


@pytest.fixture
def accelerator_of(tmp_path, monkeypatch):
    """The note of a configuration, written in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def note(config):
        (tmp_path / config.output_dir).mkdir(parents=True, exist_ok=True)
        note_training(config, Accelerator(cpu=True))
        return json.loads((tmp_path / config.output_dir / NOTE_FILE).read_text())

    return note


def test_the_note_holds_options_and_versions_and_nothing_of_machine_or_person(
    make_loop, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    loop = make_loop("run", max_train_steps=1, checkpointing_steps=1, project="mine")
    loop.run()
    text = (tmp_path / "run" / NOTE_FILE).read_text()
    note = json.loads(text)
    assert note["options"].keys() == TrainingConfig.__dataclass_fields__.keys()
    assert note["options"]["output_dir"] == "run" and note["options"]["project"] == "mine"
    assert note["recipe"] == "config" and note["num_processes"] == 1 and note["device"] == "cpu"
    assert note["versions"]["torch"] == torch.__version__
    assert not any(name in note["command"] for name in marked_options(loop.config, "of_one_start"))
    for secret in (
        str(tmp_path),
        "hf_canary",
        f'"{socket.gethostname()}"',
        f"/{getpass.getuser()}",
    ):
        assert secret not in text


@pytest.mark.parametrize(
    "value, shown",
    [
        ("/home/jane/texts/mine.txt", "mine.txt"),
        ("~/texts/mine.txt", "mine.txt"),
        ("../jane/mine.txt", "mine.txt"),
        ("C:\\Users\\jane\\mine.txt", "mine.txt"),
        ("https://jane:secret@host.example/a/mine.txt?token=secret", "mine.txt"),
        ("https://host.example", ""),
        ("jane/data", "jane/data"),  # of the Hub
        ("linear", "linear"),
        (["a/b"], ["a/b"]),
        (3, 3),
        (None, None),
    ],
)
def test_paths_are_noted_by_their_last_name(value, shown):
    assert without_folders(value) == shown


def test_a_relative_path_that_is_there_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "jane").mkdir()
    (tmp_path / "jane" / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert without_folders("jane/mine.txt") == "mine.txt"


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "labelled.csv"
    path.write_text(
        "text,label\n" + "\n".join(f"{SENTENCES[i % 2]},{i % 2}" for i in range(80)) + "\n"
    )
    return str(path)


@pytest.fixture
def small(tmp_path, labelled):
    sizes = {
        "vocab_size": 300,
        "length": 32,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_cpu_threads": 1,
    }
    settings = {
        "max_train_steps": 10,
        "train_batch_size": 4,
        "validation_steps": 0,
        "num_samples": 0,
    }
    settings |= {
        "num_length_samples": 0,
        "checkpointing_steps": 0,
        "report_to": ["none"],
        "dataset": labelled,
    }
    return sizes | settings | {"output_dir": str(tmp_path / "run")}


def test_label_names_are_saved_with_the_pipeline_and_kept_by_further_training(small, tmp_path):
    recipe = load_script("train_d3pm")
    options = small | {
        "label_column": "label",
        "packing": False,
        "num_layers": 1,
        "label_names": ["cats", "birds"],
    }
    recipe.main(recipe.D3PMConfig(**options))
    pipe = TextDiffusionCFGPipeline.from_pretrained(small["output_dir"])
    assert (
        pipe.config.label_names == ["cats", "birds"]
        and pipe(class_labels="birds", num_inference_steps=2).texts
    )
    note = json.loads((tmp_path / "run" / NOTE_FILE).read_text())
    assert note["recipe"] == "train_d3pm" and note["options"]["dataset"] == "labelled.csv"
    further = small | {
        "label_column": "label",
        "packing": False,
        "output_dir": str(tmp_path / "further"),
    }
    further = {
        name: value for name, value in further.items() if name not in ("vocab_size", "hidden_size")
    }
    further.pop("num_attention_heads")
    recipe.main(recipe.D3PMConfig(**further, model_name_or_path=small["output_dir"]))
    assert TextDiffusionCFGPipeline.from_pretrained(further["output_dir"]).config.label_names == [
        "cats",
        "birds",
    ]


def test_label_names_that_do_not_fit_are_refused(small):
    recipe = load_script("train_d3pm")
    options = small | {"packing": False, "num_layers": 1}
    with pytest.raises(ValueError, match=r"`label_names` needs a `label_column`, got \['a', 'b'\]"):
        recipe.D3PMConfig(**options, label_names=["a", "b"])
    with pytest.raises(ValueError, match="`label_names` must differ from each other"):
        recipe.D3PMConfig(**options, label_column="label", label_names=["a", "a"])
    with pytest.raises(
        ValueError, match=r"`label_names` must name the 2 labels of the data, got \['a'\]"
    ):
        recipe.main(recipe.D3PMConfig(**options, label_column="label", label_names=["a"]))


@pytest.mark.slow
def test_every_recipe_leaves_its_note_and_its_curves(small, tmp_path):
    own = {
        "train_d3pm": {"num_layers": 1},
        "train_diffusion_lm": {"num_layers": 1, "embedding_dim": 8, "num_train_timesteps": 50},
        "train_classifier": {
            "num_layers": 1,
            "label_column": "label",
            "packing": False,
            "noise": "absorbing",
        },
        "train_vq_autoencoder": {
            "window_length": 16,
            "num_fine_codes": 16,
            "num_coarse_codes": 8,
            "codebook_dim": 4,
        },
        "train_two_level": {
            "autoencoder": str(tmp_path / "train_vq_autoencoder"),
            "coarse_layers": 1,
            "fine_layers": 1,
        },
        "train_text_autoencoder": {"num_layers": 1, "model_size": 16, "model_layers": 1},
        "train_latent_diffusion": {
            "autoencoder": str(tmp_path / "train_text_autoencoder"),
            "latent_cache": str(tmp_path / "latents"),
            "num_layers": 1,
        },
    }
    for recipe, changes in own.items():
        options = small | changes | {"output_dir": str(tmp_path / recipe)}
        if recipe == "train_two_level":
            options.pop("vocab_size")
        module = load_script(recipe)
        module.main(getattr(module, RECIPES[recipe])(**options))
        assert json.loads((tmp_path / recipe / NOTE_FILE).read_text())["recipe"] == recipe
        for stage in ("coarse", "fine") if recipe == "train_two_level" else ("",):
            (row,) = read_curves(tmp_path / recipe / stage / "curves.jsonl")
            assert row["step"] == 10 and row["loss"] > 0 and row["validation"]
