"""Checkpoints of a training run: safetensors and JSON, complete or absent.

A checkpoint is written beside the older ones under a draft name, flushed to the disk and renamed; only then are the
oldest removed. A crash at any moment leaves the previous checkpoint as it was.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

STATE_FILE = "state.json"
DRAFT_PREFIX = ".draft-"


def write_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int) -> Path:
    """Write `tensors`, a safetensors file a name, and the JSON `state` as the checkpoint of `step`; keep the newest.

    Returns:
        The folder of the checkpoint.
    """
    target, draft = folder / f"step-{step:08d}", folder / f"{DRAFT_PREFIX}{step:08d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, named in tensors.items():
        contiguous = {key: value.detach().cpu().contiguous() for key, value in named.items()}
        save_file(contiguous, draft / f"{name}.safetensors")
    (draft / STATE_FILE).write_text(json.dumps(state))
    for path in (*draft.iterdir(), draft):
        flush(path)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    flush(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def flush(path: Path):
    """Make sure that a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_checkpoint(folder: Path, wanted: str) -> Path:
    """The newest checkpoint in `folder` if `wanted` is "latest", else the folder `wanted`.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = sorted(folder.glob("step-*")) if wanted == "latest" else [Path(wanted)]
    if not found or not (found[-1] / STATE_FILE).is_file():
        raise FileNotFoundError(f"`resume_from_checkpoint`={wanted!r}: no checkpoint in {folder}.")
    return found[-1]


def read_checkpoint(path: Path, device: Any) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """`(tensors, state)` as they were written."""
    tensors = {file.stem: load_file(file, device=str(device)) for file in path.glob("*.safetensors")}
    return tensors, json.loads((path / STATE_FILE).read_text())
