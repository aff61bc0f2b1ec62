"""Records of a running training: its curves, in a file of its own, and what goes to Accelerate's trackers.

The trackers get here what Accelerate does not do alike for TensorBoard and Weights & Biases.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from text_diffusers.common.validation import did_you_mean

logger = logging.getLogger(__name__)

CURVES_FILE = "curves.jsonl"


class Curves:
    """The file of a run's curves: a JSON line for every step at which something was measured.

    A resumed run takes up the lines up to its checkpoint, so that each step has one line, however often it was
    stopped. A disk that refuses a line does not stop the run; the next one brings what is missing. For the main
    process.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from text_diffusers.training.tracking import Curves, read_curves
        >>> curves = Curves(Path(tempfile.mkdtemp()) / "curves.jsonl")
        >>> curves.open(step=0)
        >>> curves.add(10, {"loss": 2.5})
        >>> read_curves(curves.path)
        [{'step': 10, 'loss': 2.5}]
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}  # by step
        self.on_disk = True  # whether the file holds all rows

    def open(self, step: int):
        """Take up a run that stands at `step`; 0 begins anew."""
        # Lines after the checkpoint will be written anew.
        self.rows = {row["step"]: row for row in read_curves(self.path) if row["step"] <= step}
        self._write_all()

    def add(self, step: int, values: dict[str, Any]):
        """Add to the line of a step; numbers that are not finite are left out."""
        # A new line is added to the file; a change of an old one, or lines that are missing, need all of it.
        known = step in self.rows
        self.rows[step] = self.rows.get(step, {"step": step}) | finite(values)
        try:
            if known or not self.on_disk:
                self._write_all()
            else:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(self.rows[step]) + "\n")
        except OSError as error:
            self._report(error)

    def flush(self):
        """Make sure that all lines are on the disk."""
        try:
            if not self.on_disk:
                self._write_all()
            elif self.rows:
                # The lines were handed to the system; here it is told to write them.
                with open(self.path, "a") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            self._report(error)

    def _write_all(self):
        if not self.rows:
            self.path.unlink(missing_ok=True)
        else:
            # Beside the old file, which a crash leaves whole.
            draft = self.path.with_name(f"{self.path.name}.draft")
            with open(draft, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in self.rows.values())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        self.on_disk = True

    def _report(self, error: OSError):
        self.on_disk = False
        logger.error(f"{self.path.name} lacks its last lines: {error}")


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of curves, up to one that a crash left torn; none if there is no such file."""
    # After a torn line nothing is trusted: lines are only ever added at the end.
    rows = []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            logger.warning(f"{path}: line {number} is damaged; it and those after it are left out.")
            break
    return rows


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The numbers among the values, and the numbers within them, that JSON can hold.

    Example:
        >>> from text_diffusers.training.tracking import finite
        >>> finite({"loss": 2.5, "validation": {"bound": float("inf")}})
        {'loss': 2.5, 'validation': {}}
    """
    numbers = {}  # JSON has no infinity and no nan
    for name, value in values.items():
        if isinstance(value, dict):
            numbers[name] = finite(value)
        elif math.isfinite(value):
            numbers[name] = value
    return numbers


def check_trackers(names: list[str]) -> list[str]:
    """The trackers that are meant; "none" stands for none.

    Raises:
        ValueError: if Accelerate has no such tracker, or its package is not installed.
    """
    wanted = [name for name in names if name != "none"]

    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            meant = did_you_mean(name, [*LOGGER_TYPE_TO_CLASS, "none"])
            raise ValueError(
                f"`report_to` must name trackers among {known}, or none; got {name!r}{meant}"
            )
        if name not in map(str, get_available_trackers()):
            raise ValueError(f"`report_to`: {name!r} is not installed (pip install {name}).")
    return wanted


def start_trackers(
    accelerator: Any, project: str, name: str, run_id: str, step: int, settings: dict[str, Any]
):
    """Open the trackers of a run that stands at `step`: a resumed one goes on where its checkpoint was made.

    Args:
        project: in which the trackers file the run.
        name: of the run.
        run_id: tells this run from others; the same after a restart.
        settings: the configuration.
    """
    if accelerator.is_main_process:
        Path(accelerator.logging_dir).mkdir(parents=True, exist_ok=True)

    # TensorBoard drops what a killed run wrote after the checkpoint; wandb goes on with the same run.
    options = {
        "tensorboard": {"purge_step": step + 1} if step else {},
        "wandb": {
            "dir": str(accelerator.logging_dir),
            "name": name,
            "id": run_id,
            "resume": "allow",
        },
    }

    # Trackers take numbers and strings only.
    simple = {
        key: value if isinstance(value, (int, float, str)) else str(value)
        for key, value in settings.items()
    }
    accelerator.init_trackers(project, config=simple, init_kwargs=options)


def log_texts(accelerator: Any, name: str, texts: list[str], step: int):
    """A table of texts, in every tracker that shows one. For the main process."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            # TensorBoard shows Markdown; a text must not break out of its cell.
            lines = ["| | text |", "|---|---|"]
            for number, text in enumerate(texts, start=1):
                cell = " ".join(text.split()).replace("|", "\\|")
                lines.append(f"| {number} | {cell} |")
            tracker.tracker.add_text(name, "\n".join(lines), global_step=step)
        elif hasattr(tracker, "log_table"):
            tracker.log_table(
                name, columns=["step", "text"], data=[[step, text] for text in texts], step=step
            )


def log_model(
    accelerator: Any, name: str, folder: Path, files: Iterable[Path], metadata: dict[str, Any]
):
    """The saved model, as an artifact of a tracker that keeps them. For the main process."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb

            # wandb allows fewer characters in names than file systems do.
            artifact = wandb.Artifact(
                re.sub(r"[^\w.-]", "-", name), type="model", metadata=metadata
            )
            for file in files:
                artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
            tracker.tracker.log_artifact(artifact)
        elif tracker.name == "mlflow":
            for file in files:
                tracker.log_artifact(
                    str(file), artifact_path=file.relative_to(folder).parent.as_posix()
                )
