"""What a report of a bug needs to say of the machine. No secrets, and no paths."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    *(
        "text-diffusers",
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "peft",
        "safetensors",
        "tokenizers",
    ),
    *(
        "huggingface-hub",
        "vector-quantize-pytorch",
        "numpy",
        "typer",
        "datasets",
        "gradio",
        "matplotlib",
        "deepspeed",
    ),
)
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")


def environment() -> dict[str, Any]:
    """Versions, devices, threads, and the variables that change how the package runs."""
    import torch

    packages = {name: installed_version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **packages,
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

    if torch.cuda.is_available():
        found = [
            torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
        ]
        return [f"{device.name}, {device.total_memory / 2**30:.1f} GiB" for device in found]
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [] if kind is None else [f"{kind.type} x {torch.accelerator.device_count()}"]
