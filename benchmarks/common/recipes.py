"""The recipes of training_scripts, and the corpora that they know by name, for benchmarks.

Importing this module makes both importable, wherever a benchmark is started, and registers the names of the corpora,
so that `--dataset austen` means the same to a benchmark as to a recipe.
"""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TRAINING_SCRIPTS = Path(__file__).parent.parent.parent / "training_scripts"
if str(TRAINING_SCRIPTS) not in sys.path:
    sys.path.append(str(TRAINING_SCRIPTS))

from corpora import CORPORA  # noqa: E402 - the path above leads to it

__all__ = ["CORPORA", "QUIET", "load_recipe", "selected_options"]

# Options of a recipe. What it would watch and write on the way costs time that is compared.
QUIET = {
    "validation_steps": 0,
    "num_samples": 0,
    "num_length_samples": 0,
    "report_to": ["none"],
    "num_cpu_threads": 1,
}


def selected_options(options: Any, names: Iterable[str]) -> dict[str, Any]:
    """The options of a benchmark that are also those of a recipe, by name."""
    return {name: getattr(options, name) for name in names}


def load_recipe(name: str = "train_d3pm") -> Any:
    """A recipe as a module of its own: a class that a benchmark replaces in it is replaced nowhere else."""
    spec = importlib.util.spec_from_file_location(
        f"{name}_of_a_benchmark", TRAINING_SCRIPTS / f"{name}.py"
    )
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe  # dataclasses look their module up there
    spec.loader.exec_module(recipe)
    return recipe
