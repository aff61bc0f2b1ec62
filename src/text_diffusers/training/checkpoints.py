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
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"

# Beginnings of the names of checkpoints, of those in the making, and of those that go.
FINISHED = "step-"
DRAFT = ".draft-"
TRASH = ".trash-"


def check_room(output: Path, size: int, keep: int):
    """Make sure that `output` can be written and takes `keep` checkpoints of `size` bytes, and one more in the making.

    Raises:
        OSError: if it cannot be written.
        ValueError: if it has too little room.
    """
    # 1. Whether a file can be written
    tempfile.TemporaryFile(dir=output).close()

    # 2. Whether those checkpoints fit that are not there yet
    missing = max(1, keep + 1 - len(list_checkpoints(output / CHECKPOINT_FOLDER)))
    needed = size * missing
    free = shutil.disk_usage(output).free
    if free < needed:
        raise ValueError(
            f"`output_dir`={str(output)!r} has {free / 1e9:.3g} GB free; checkpoints need {needed / 1e9:.3g} GB with "
            f"`checkpoints_total_limit`={keep}."
        )


def write_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int
) -> Path:
    """Write `tensors`, a safetensors file a name, and the JSON `state` as the checkpoint of `step`.

    Afterwards the newest `keep` are left. Checkpoints of this step or later ones belong to a run that was taken back
    to an earlier step, and go first, so that none of them is ever taken for the newest.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: if the disk does not take it; the older checkpoints are all there then.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from text_diffusers.training.checkpoints import find_checkpoint, read_checkpoint, write_checkpoint
        >>> folder = Path(tempfile.mkdtemp())
        >>> weights = {"model": {"bias": torch.ones(2)}}
        >>> write_checkpoint(folder, 10, weights, {"step": 10}, keep=1).name
        'step-00000010'
        >>> path, _ = find_checkpoint(folder, "latest")
        >>> read_checkpoint(path)
        ({'model': {'bias': tensor([1., 1.])}}, {'step': 10})
    """
    target = folder / f"{FINISHED}{step:08d}"
    draft = folder / f"{DRAFT}{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)

    # 1. Make room
    for left_by_a_crash in [*folder.glob(f"{DRAFT}*"), *folder.glob(f"{TRASH}*")]:
        shutil.rmtree(left_by_a_crash)

    try:
        # 2. Write the draft, the manifest last: without it nothing counts
        draft.mkdir()
        manifest = {}
        for name, named in tensors.items():
            contiguous = {key: value.detach().cpu().contiguous() for key, value in named.items()}
            manifest[f"{name}.safetensors"] = write_file(
                draft / f"{name}.safetensors", save(contiguous)
            )
        manifest[STATE_FILE] = write_file(draft / STATE_FILE, json.dumps(state).encode())
        write_file(draft / MANIFEST_FILE, json.dumps({"files": manifest}, indent=2).encode())
        flush(draft)

        # 3. Take away what was taken back, and make the draft a checkpoint
        for path in list_checkpoints(folder):
            if path >= target:
                discard(path)
        draft.rename(target)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)  # room for the next attempt
        raise
    flush(folder)

    # 4. Remove the oldest ones, now that there is a newer one
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

    # Some file systems report a success that is none.
    if size != len(data):
        raise OSError(f"{path}: {size:,} of {len(data):,} bytes are on the disk.")
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def flush(folder: Path):
    """Make sure that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path):
    """Remove a checkpoint; it stops being one before its first file goes."""
    # By its name, in one operation: half a checkpoint would look like a damaged one.
    trash = path.with_name(f"{TRASH}{path.name}")
    path.rename(trash)
    shutil.rmtree(trash)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, valid or not, oldest first."""
    return sorted(folder.glob(f"{FINISHED}*"))


def begins_anew(config: Any) -> bool:
    """Whether a run begins with weights of its own, and not with those of a checkpoint, which "auto" may not find."""
    wanted = config.resume_from_checkpoint
    if wanted != "auto":
        return not wanted
    return not list_checkpoints(Path(config.output_dir) / CHECKPOINT_FOLDER)


def find_checkpoint(folder: Path, wanted: str) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint in `folder`.

    Args:
        folder: of the checkpoints.
        wanted: "latest"; "auto", the same, but there need not be one; or the folder of a checkpoint.

    Returns:
        `(path, skipped)`: the checkpoint, and which newer ones were passed over, and why.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the one that is named is damaged, or all are.
    """
    # 1. The one that is named
    if wanted not in ("latest", "auto"):
        if not Path(wanted).is_dir():
            raise FileNotFoundError(f"`resume_from_checkpoint`={wanted!r} is not a folder.")
        if damage := find_damage(Path(wanted)):
            raise ValueError(f"`resume_from_checkpoint`={wanted!r} is damaged: {damage}.")
        return Path(wanted), []

    # 2. The newest one that is whole
    skipped = []
    for path in reversed(list_checkpoints(folder)):
        damage = find_damage(path)
        if damage is None:
            return path, skipped
        skipped.append(f"{path}: {damage}")

    # 3. None: a run whose checkpoints are all damaged is not begun anew in silence
    if skipped:
        raise ValueError(
            f"`resume_from_checkpoint`={wanted!r}: no valid checkpoint. {'; '.join(skipped)}."
        )
    if wanted == "latest":
        raise FileNotFoundError(f"`resume_from_checkpoint`='latest': no checkpoint in {folder}.")
    return None, []


def find_damage(path: Path) -> str | None:
    """The damage of a checkpoint, or `None`: every file must have the size and sha256 of the manifest."""
    try:
        files = json.loads((path / MANIFEST_FILE).read_bytes())["files"]
        for name, expected in files.items():
            # The size first, as it costs nothing to read.
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


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):  # a checkpoint may be larger than the memory
            digest.update(chunk)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """`(tensors, state)` as they were written; the tensors are on the CPU."""
    tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    return tensors, json.loads((path / STATE_FILE).read_text())


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of the weights and buffers of a model that are saved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        # Bytes of any type, bfloat16 too, which numpy does not know.
        values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()
