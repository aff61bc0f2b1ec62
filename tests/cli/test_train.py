"""`text-diffusers train` runs the recipes as they are, and what is mistyped is answered by what was meant."""

import ast
import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.command_line import refused, run
from support.recipes import SCRIPTS, load_script

from text_diffusers.cli.train import NO_RECIPE, RECIPES, recipes
from text_diffusers.training.config import OptionParser, TrainingConfig

TINY = {
    "vocab_size": 300,
    "length": 16,
    "hidden_size": 32,
    "num_layers": 1,
    "num_attention_heads": 2,
    "max_train_steps": 2,
    "train_batch_size": 4,
    "num_cpu_threads": 1,
    "num_length_samples": 2,
    "num_samples": 0,
    "validation_rows": 8,
}


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """A recipe that is run changes the words of the process, and where it finds its modules."""
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_the_version_is_that_of_what_is_installed():
    first, second = run("--version").stdout.splitlines()
    assert first == f"text-diffusers {version('text-diffusers')}"
    others = ("torch", "diffusers", "transformers")
    assert second == ", ".join(f"{package} {version(package)}" for package in others)


# Recipes


def test_an_installation_has_every_file_of_the_recipes():
    if not RECIPES.is_dir():
        pytest.skip("installed before the recipes were part of the package")
    files = {file.relative_to(SCRIPTS) for file in SCRIPTS.rglob("*.py")}
    assert files == {file.relative_to(RECIPES) for file in RECIPES.rglob("*.py")}


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_alone_it_lists_all_recipes_with_their_first_line(words):
    lines = run("train", *words).stdout.splitlines()
    scripts = [script for script in SCRIPTS.glob("train_*.py") if script.stem != NO_RECIPE]
    assert len(scripts) >= 8
    for script in scripts:
        name = script.stem.removeprefix("train_")
        first_line = (ast.get_docstring(ast.parse(script.read_text())) or "").splitlines()[0]
        assert any(line.split() == [name, *first_line.split()] for line in lines), name


@pytest.mark.parametrize(
    "name", ["two_level", "two-level", "train_two_level", "train_two_level.py"]
)
def test_help_is_that_of_the_recipe(name):
    found = run("train", name, "--help").stdout
    assert found.startswith("usage: train_two_level.py") and "--autoencoder AUTOENCODER" in found


def test_it_trains_as_the_script_does(text_file, tmp_path):
    options = {"dataset": str(text_file), **TINY}
    script = load_script("train_d3pm")
    script.main(script.D3PMConfig(output_dir=str(tmp_path / "script"), **options))

    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    run("train", "d3pm", "--output_dir", tmp_path / "command", *words)
    metrics = [
        json.loads(Path(tmp_path, folder, "metrics.json").read_text())
        for folder in ("script", "command")
    ]
    assert metrics[0] == metrics[1] and metrics[0]["bound"] > 0
    note = json.loads(Path(tmp_path, "command", "training_config.json").read_text())
    assert note["recipe"] == "train_d3pm"


# What is mistyped


def test_a_recipe_that_is_not_there_is_refused_with_the_one_that_was_meant():
    assert refused("train", "d3pn").endswith("got 'd3pn'; did you mean 'd3pm'?")
    assert refused("train", "poem").endswith("got 'poem'.")
    assert set(recipes()) > {"d3pm", "diffusion_lm", "distill"}


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["corrupt", "hello", "--kernal", "uniform"],
            "`--kernal` is no option here; did you mean `--kernel`?",
        ),
        (["generate", "--num-step", 3], "did you mean `--steps`?"),
        (["evaluate", "--num_tims", 4], "did you mean `--num-times`?"),
        (["generate", "--zzzz"], "No such option: --zzzz"),
        (["genrate"], "Did you mean 'generate'?"),
        (["corrupt", "hello", "--kernel", "absorbin"], "got 'absorbin'; did you mean 'absorbing'?"),
        (["generate", "--scheduler", "ancestrall"], "got 'ancestrall'; did you mean 'ancestral'?"),
        (["generate", "--label", "Novl"], "got 'Novl'; did you mean 'novel'?"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) and len(value) > 1 else "",
)
def test_commands_say_what_was_meant(words, message):
    assert refused(*words).endswith(message)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--kernal", "uniform"], "`--kernal` is no option here; did you mean `--kernel`?"),
        (
            ["--num-steps=4"],
            "`--num-steps` is no option here; did you mean `--num_train_timesteps`?",
        ),
        (["--batch_size", "4"], "did you mean `--train_batch_size`?"),
        (["--zzzz", "4"], "`--zzzz` is no option here; `--help` shows all of them."),
        (["my", "texts.txt"], "`texts.txt` belongs to no option"),
        (["--kernel", "absorbin"], "got 'absorbin'; did you mean 'absorbing'?"),
        (["--report_to", "wandbb"], "got 'wandbb'; did you mean 'wandb'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_recipes_say_what_was_meant(words, message, tmp_path):
    # A stray word stands behind the value of an option.
    words = ["--dataset", *words] if not words[0].startswith("--") else ["--dataset", "a", *words]
    result = run("train", "d3pm", "--output_dir", tmp_path / "run", *words, code=1)
    assert message in result.output and "HfArgumentParser" not in result.output
    assert result.output.startswith("train_d3pm.py: ")


def test_a_mistyped_required_option_is_named_before_it_is_missed():
    with pytest.raises(
        ValueError, match="`--outputdir` is no option here; did you mean `--output_dir`"
    ):
        OptionParser(TrainingConfig).parse_args_into_dataclasses(["--outputdir", "a"])


def test_the_beginning_of_an_option_stands_for_it_and_the_rest_can_be_asked_for():
    words = ["--output_dir", "a", "--see", "3", "--report_to", "none"]
    assert OptionParser(TrainingConfig).parse_args_into_dataclasses(words)[0].seed == 3
    parsed = OptionParser(TrainingConfig).parse_args_into_dataclasses(
        [*words, "--other", "1"], return_remaining_strings=True
    )
    assert parsed[-1] == ["--other", "1"]
