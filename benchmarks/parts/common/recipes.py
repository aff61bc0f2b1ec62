"""The recipes of training_scripts as modules, and the corpora that they know by name.

Importing this module makes both importable, wherever a benchmark is started, and registers the names of the corpora,
so that `--dataset austen` means the same to a benchmark as to a recipe.
"""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TRAINING_SCRIPTS = Path(__file__).parents[3] / "training_scripts"
if str(TRAINING_SCRIPTS) not in sys.path:
    sys.path.append(str(TRAINING_SCRIPTS))

from corpora import CORPORA  # noqa: E402 - the path above leads to it

__all__ = ["CONFIGS", "CORPORA", "QUIET", "load_recipe", "selected_options"]

# The class of the options of each recipe
CONFIGS = {
    "train_classifier": "ClassifierConfig",
    "train_d3pm": "D3PMConfig",
    "train_diffusion_lm": "DiffusionLMConfig",
    "train_distill": "DistillationConfig",
    "train_latent_diffusion": "LatentDiffusionConfig",
    "train_text_autoencoder": "TextAutoencoderConfig",
    "train_two_level": "TwoLevelConfig",
    "train_vq_autoencoder": "AutoencoderConfig",
}

# Options of a recipe that turn off what it evaluates and logs on the way: its time would be compared too.
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

    # Dataclasses look up their module there while it is executed.
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    return recipe
