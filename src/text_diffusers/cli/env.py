"""`text-diffusers env`: the facts about a machine that a report of a bug needs. No secrets, and no paths."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from text_diffusers.cli import options

# What the package runs on; the last four are optional.
PACKAGES = """
text-diffusers torch diffusers transformers accelerate peft safetensors tokenizers huggingface-hub
vector-quantize-pytorch numpy typer datasets gradio matplotlib deepspeed
""".split()

# They change threads, devices, or where models come from.
VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
)


def env(as_json: options.AsJson = False):
    """Print what a report of a bug needs: versions, devices, threads.

    `text-diffusers env --json`
    """
    facts = environment()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return

    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        typer.echo(f"{name:{width}}  {'not installed' if shown is None else shown}")


def environment() -> dict[str, Any]:
    """Versions, devices, threads, and the variables that change how the package runs."""
    import torch

    # A variable that is not set is left out; a package that is not installed is named as such.
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: installed_version(package) for package in PACKAGES},
        "devices": [*accelerators(), f"CPU {platform.machine()}, {os.cpu_count()} cores"],
        "CUDA of torch": torch.version.cuda,
        "threads": torch.get_num_threads(),
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def accelerators() -> list[str]:
    """Name and memory of each."""
    import torch

    if not torch.accelerator.is_available():
        return []

    # Only CUDA tells names and memory; of other kinds there is the number.
    if not torch.cuda.is_available():
        kind = torch.accelerator.current_accelerator()
        return [f"{kind.type if kind else None} x {torch.accelerator.device_count()}"]

    devices = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        devices.append(f"{device.name}, {device.total_memory / 2**30:.1f} GiB")
    return devices
