"""`text-diffusers train`: the recipes of `training_scripts/`, which are installed as `text_diffusers/recipes/`."""

import ast
import runpy
import sys
from pathlib import Path

import typer

RECIPES = Path(__file__).parent.parent / "recipes"

# Trains on points in the plane, with the examples of the repository, which are not installed.
NO_RECIPE = "train_2d"

# All options belong to the recipe, also `--help`.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
HELP_OPTIONS = ("--help", "-h")

USAGE = """Usage: text-diffusers train RECIPE [OPTIONS]

Train a model. `text-diffusers train RECIPE --help` shows the options of a recipe, and
`accelerate launch -m text_diffusers.cli train RECIPE ...` runs it on several devices.

Recipes:"""


def train(context: typer.Context):
    """Train a model by a recipe: `d3pm`, `diffusion_lm` and others; alone, list them all.

    `text-diffusers train d3pm --dataset my_texts.txt --output_dir runs/mine`

    `text-diffusers train d3pm --help` shows the options of a recipe. Several devices share the work under `accelerate
    launch -m text_diffusers.cli train d3pm ...`.
    """
    words = list(context.args)
    if not words or words[0] in HELP_OPTIONS:
        typer.echo(list_of_recipes())
        return
    run_recipe(words[0], words[1:])


def recipes() -> dict[str, Path]:
    """The scripts by their names, which are spelt with `_`."""
    scripts = sorted(RECIPES.glob("train_*.py"))
    return {
        script.stem.removeprefix("train_"): script for script in scripts if script.stem != NO_RECIPE
    }


def list_of_recipes() -> str:
    """A line for each recipe: its name, and the first line of its docstring."""
    scripts = recipes()
    width = max(map(len, scripts))

    lines = [USAGE]
    for name, script in scripts.items():
        # Read, and not imported, which would take seconds.
        manual = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        first_line = manual.splitlines()[0] if manual else ""
        lines.append(f"  {name:{width}}  {first_line}")
    return "\n".join(lines)


def run_recipe(name: str, options: list[str]):
    """Run a recipe in this process, as `python training_scripts/train_<name>.py` does.

    Raises:
        ValueError: if there is no such recipe.
    """
    from text_diffusers.common.validation import require_key

    # The name of the script itself is understood, too.
    asked = Path(name).stem.replace("-", "_").removeprefix("train_")
    scripts = recipes()
    require_key("recipe", asked, scripts)
    # Of an editable installation the file itself, and not the link to it
    script = scripts[asked].resolve()

    # As Python starts a script, which finds its neighbours, such as the corpora, beside itself
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *options]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"training needs {error.name}: pip install 'text-diffusers[train]'"
        ) from error
