"""Trackers of a training run: what Accelerate's own trackers do not do alike for TensorBoard and Weights & Biases."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers


def check_trackers(names: list[str]) -> list[str]:
    """The trackers that are meant; "none" stands for none.

    Raises:
        ValueError: if Accelerate has no such tracker, or its package is not installed.
    """
    wanted = [name for name in names if name != "none"]
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"`report_to` must name trackers among {known}, or none; got {name!r}.")
        if name not in map(str, get_available_trackers()):
            raise ValueError(f"`report_to`: {name!r} is not installed (pip install {name}).")
    return wanted


def start_trackers(accelerator: Any, project: str, name: str, run_id: str, step: int, settings: dict[str, Any]):
    """Open the trackers of a run that stands at `step`: a resumed one goes on where its checkpoint was made.

    Args:
        name: of the run.
        run_id: tells this run from others; the same after a restart.
        settings: the configuration.
    """
    if accelerator.is_main_process:
        Path(accelerator.logging_dir).mkdir(parents=True, exist_ok=True)
    options = {
        "tensorboard": {"purge_step": step + 1} if step else {},
        "wandb": {"dir": str(accelerator.logging_dir), "name": name, "id": run_id, "resume": "allow"},
    }
    simple = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in settings.items()}
    accelerator.init_trackers(project, config=simple, init_kwargs=options)


def log_texts(accelerator: Any, name: str, texts: list[str], step: int):
    """A table of texts, in every tracker that shows one. For the main process."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            cells = [" ".join(text.split()).replace("|", "\\|") for text in texts]
            rows = [f"| {number} | {cell} |" for number, cell in enumerate(cells, start=1)]
            tracker.tracker.add_text(name, "\n".join(["| | text |", "|---|---|", *rows]), global_step=step)
        elif hasattr(tracker, "log_table"):
            tracker.log_table(name, columns=["step", "text"], data=[[step, text] for text in texts], step=step)


def log_model(accelerator: Any, name: str, folder: Path, files: Iterable[Path], metadata: dict[str, Any]):
    """The saved model, as an artifact of a tracker that keeps them. For the main process."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="model", metadata=metadata)
            for file in files:
                artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
            tracker.tracker.log_artifact(artifact)
        elif tracker.name == "mlflow":
            for file in files:
                tracker.log_artifact(str(file), artifact_path=file.relative_to(folder).parent.as_posix())
