"""Training scripts as modules: they stand outside the package."""

import importlib.util
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent.parent / "training_scripts"


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
