"""Clients of the loopback Hub: fresh processes, since its address, tokens and caches are read at import.

`Client` starts them; what stands below it is for the code that they run, so nothing here imports this package.
"""

import json
import os
import subprocess
import sys
import textwrap
import traceback
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

TOKEN = "hf_canaryThatMustBeSeenNowhere"
STRANGER = "hf_strangersTokenOfAnotherUser"
USERS = {TOKEN: "ada", STRANGER: "bob"}
PACKAGE = "text_diffusers"
TOLD = "told: "


@dataclass
class Client:
    """A machine with a cache of its own in `home`, which knows the Hub at `endpoint`."""

    endpoint: str
    home: Path
    token: str | None = TOKEN
    transcript: list[str] = field(default_factory=list)

    def run(self, code: str, *arguments: Any, **environment: str) -> Any:
        """What `code` gives to `tell`; `arguments` are its `sys.argv[1:]`."""
        prelude = f"import sys\nfrom {__name__} import *\n"
        done = self.start(
            [sys.executable, "-c", prelude + textwrap.dedent(code), *arguments], **environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        # Other threads of the process may print before and behind it, and within its line.
        _, mark, behind = done.stdout.rpartition(TOLD)
        assert mark, done.stdout[-2000:]
        return json.loads(behind.splitlines()[0])

    def start(self, command: list[Any], **environment: str) -> subprocess.CompletedProcess[str]:
        self.home.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        settings = {"env": self.environment() | environment, "cwd": self.home, "timeout": 240}
        done = subprocess.run(words, capture_output=True, text=True, **settings)
        self.transcript += [done.stdout, done.stderr]
        return done

    def environment(self) -> dict[str, str]:
        """That of this process, without its settings of the Hub."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING"))
        }
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home / "huggingface"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DIFFUSERS_VERBOSITY": "debug",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parent.parent),
            **({"HF_TOKEN": self.token} if self.token else {}),
        }


def tell(**facts: Any):
    """Print what `Client.run` returns."""
    sys.stdout.write(f"{TOLD}{json.dumps(facts)}\n")


def refused(call: Any, *arguments: Any, **options: Any) -> dict[str, Any] | None:
    """The classes of the error that a call ends with and all that a user reads; None if there is no error."""
    try:
        call(*arguments, **options)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"kinds": kinds, "text": str(error), "trace": traceback.format_exc()}
    return None


def written(pipe: Any) -> list[list[int]]:
    """The tokens of two texts that a pipeline writes from a seed, by a call that fits its kind."""
    import torch

    if pipe.kind == "codes":
        call = {"num_inference_steps": (3, 2), "prompt": "the cat"}
    elif pipe.label_names:
        call = {"num_inference_steps": 4, "class_labels": "loud", "guidance_scale": 2.0}
    else:
        call = {"num_inference_steps": 4, "max_new_tokens": 8}
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    output = pipe(**call, generator=generator, num_return_sequences=2, output_type="tokens")
    return output.tokens.tolist()


class PackageOnlyFrom:
    """Makes the installed package invisible; with a folder, the one in it takes its place."""

    def __init__(self, folder: str | None = None):
        self.folder = folder
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None):
        if name.partition(".")[0] != PACKAGE:
            return None
        found = PathFinder.find_spec(name, path or [self.folder], target) if self.folder else None
        if found is None:
            raise ModuleNotFoundError(f"{name} is not to be had here", name=name)
        return found
