"""Checkpoints of a training run: safetensors and JSON, whole or not there at all.

A checkpoint is written beside the older ones under a draft name, every file flushed to the disk, a manifest with the
size and sha256 of each file last; then it is renamed, and only then are the oldest removed. A crash, a full disk or a
short write at any moment leaves the checkpoint before it as it was, and what was damaged later is found out.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoints"
MANIFEST_FILE, STATE_FILE = "manifest.json", "state.json"
FINISHED, DRAFT, TRASH = "step-", ".draft-", ".trash-"


def check_room(output: Path, size: int, keep: int):
    """Make sure that `output` can be written and takes `keep` checkpoints of `size` bytes, and one more in the making.

    Raises:
        OSError: if it cannot be written.
        ValueError: if it has too little room.
    """
    tempfile.TemporaryFile(dir=output).close()
    missing = max(1, keep + 1 - len(list_checkpoints(output / CHECKPOINT_FOLDER)))
    needed, free = size * missing, shutil.disk_usage(output).free
    if free < needed:
        raise ValueError(
            f"`output_dir`={str(output)!r} has {free / 1e9:.3g} GB free; checkpoints need {needed / 1e9:.3g} GB with "
            f"`checkpoints_total_limit`={keep}."
        )


def write_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int) -> Path:
    """Write `tensors`, a safetensors file a name, and the JSON `state` as the checkpoint of `step`.

    Afterwards the newest `keep` are left. Checkpoints of this step or later ones belong to a run that was taken back
    to an earlier step, and go first, so that none of them is ever taken for the newest.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: if the disk does not take it; the older checkpoints are all there then.
    """
    target, draft = folder / f"{FINISHED}{step:08d}", folder / f"{DRAFT}{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    for left in [*folder.glob(f"{DRAFT}*"), *folder.glob(f"{TRASH}*")]:  # by a crash
        shutil.rmtree(left)
    try:
        draft.mkdir()
        manifest = {}
        for name, named in tensors.items():
            contiguous = {key: value.detach().cpu().contiguous() for key, value in named.items()}
            manifest[f"{name}.safetensors"] = write_file(draft / f"{name}.safetensors", save(contiguous))
        manifest[STATE_FILE] = write_file(draft / STATE_FILE, json.dumps(state).encode())
        write_file(draft / MANIFEST_FILE, json.dumps({"files": manifest}, indent=2).encode())
        flush(draft)
        for path in list_checkpoints(folder):
            if path >= target:
                discard(path)
        draft.rename(target)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)  # room for the next attempt
        raise
    flush(folder)
    for path in list_checkpoints(folder)[:-keep]:
        try:
            discard(path)
        except OSError as error:
            logger.warning(f"An old checkpoint could not be removed: {error}")
    return target


def write_file(path: Path, data: bytes) -> dict[str, Any]:
    """Write a new file to the disk, past all caches; returns its line in the manifest."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]  # a write may be short
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size != len(data):
        raise OSError(f"{path}: {size:,} of {len(data):,} bytes are on the disk.")
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of the weights and buffers that are saved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def flush(folder: Path):
    """Make sure that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path):
    """Remove a checkpoint; it stops being one before its first file goes."""
    trash = path.with_name(f"{TRASH}{path.name}")
    path.rename(trash)
    shutil.rmtree(trash)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, valid or not, oldest first."""
    return sorted(folder.glob(f"{FINISHED}*"))


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or `None`: every file must have the size and sha256 of the manifest."""
    try:
        files = json.loads((path / MANIFEST_FILE).read_bytes())["files"]
        for name, expected in files.items():
            size = (path / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size:,} bytes instead of {expected['size']:,}"
            if sha256(path / name) != expected["sha256"]:
                return f"the sha256 of {name} is not that of the manifest"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} cannot be read"
    return None


def find_checkpoint(folder: Path, wanted: str) -> tuple[Path | None, list[str]]:
    """`(path, skipped)`: the newest valid checkpoint in `folder` and which newer ones were passed over, and why.

    Args:
        wanted: "latest"; "auto", the same, but there need not be one; or the folder of a checkpoint.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the one that is named is damaged, or all are.
    """
    if wanted not in ("latest", "auto"):
        if not Path(wanted).is_dir():
            raise FileNotFoundError(f"`resume_from_checkpoint`={wanted!r} is not a folder.")
        if damage := find_damage(Path(wanted)):
            raise ValueError(f"`resume_from_checkpoint`={wanted!r} is damaged: {damage}.")
        return Path(wanted), []
    skipped = []
    for path in reversed(list_checkpoints(folder)):
        damage = find_damage(path)
        if damage is None:
            return path, skipped
        skipped.append(f"{path}: {damage}")
    if skipped:
        raise ValueError(f"`resume_from_checkpoint`={wanted!r}: no valid checkpoint. {'; '.join(skipped)}.")
    if wanted == "latest":
        raise FileNotFoundError(f"`resume_from_checkpoint`='latest': no checkpoint in {folder}.")
    return None, []


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """`(tensors, state)` as they were written; the tensors are on the CPU."""
    tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    return tensors, json.loads((path / STATE_FILE).read_text())
