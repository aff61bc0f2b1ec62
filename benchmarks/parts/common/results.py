"""The folder of a benchmark: one JSON file for each finished run; several processes may write side by side."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from text_diffusers.training.config import marked_options

Record = dict[str, Any]


def write_json(path: Path, values: Any):
    """Write a file whole or not at all, so that other processes never see half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)

    # Renaming within a folder is atomic; the process id keeps two writers of one file apart.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def as_json(values: Any) -> Any:
    """Values as they come back from a file: JSON has no tuples."""
    return json.loads(json.dumps(values))


def read_or_make(path: Path, make: Callable[[], Any]) -> Any:
    """The values in a file; if there is none, those that `make` returns, which are written first."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def make_folder_once(folder: Path, save: Callable[[Path], Any]) -> Path:
    """A folder that `save` fills, if it is not there; where several processes save at once, the first one wins."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        save(unfinished)

        # A folder cannot be renamed onto a full one: then another process was faster.
        try:
            unfinished.rename(folder)
        except OSError:
            shutil.rmtree(unfinished)
    return folder


def check_settings(options: Any):
    """Write the options of the first run to its `output_dir`, and refuse others in a later one.

    Options that are marked `may_change_on_resume` are left out: results do not depend on them.

    Raises:
        ValueError: naming the option.
    """
    folder = Path(options.output_dir)
    settings = asdict(options)
    for name in marked_options(options, "may_change_on_resume"):
        del settings[name]

    # A folder mixes no runs that cannot be compared.
    first_settings = read_or_make(folder / "settings.json", lambda: settings)
    for name, value in first_settings.items():
        if settings[name] != value:
            raise ValueError(
                f"`{name}` must be {value!r}, as in the runs of {folder}, got {settings[name]!r}: choose another "
                "`output_dir`."
            )


def write_report(
    folder: Path,
    name: str,
    text: str,
    figures: Any,
):
    """Print the report of a benchmark, and write it as Markdown, and its figures as JSON."""
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    write_json(folder / f"{name}.json", figures)
    print(f"\n{text}\n")
