"""Tables of benchmarks that measure for minutes: printed line by line, and kept as JSON."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from parts.common.results import Record
from parts.common.tables import print_aligned


def print_machine(num_threads: int) -> Record:
    """Print and return what times depend on; a busy machine makes them doubtful, so its load is among it."""
    machine = {
        "torch": torch.__version__,
        "threads": num_threads,
        "load": round(os.getloadavg()[0], 2),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    return machine


def print_tables(
    measurements: dict[str, Callable[[], Iterable[Record]]], file: str | None, **facts: Any
):
    """Print the lines of each measurement as they come, and write all tables after each of them.

    Args:
        measurements: by the names of their tables, in order.
        file: of JSON, if there is to be one.
        facts: what else the file says.
    """
    tables: dict[str, Any] = dict(facts)
    for name, measure in measurements.items():
        print(f"\n{name}")
        tables[name] = []
        for line in measure():
            print_aligned(line, first=not tables[name])
            tables[name].append(line)
        if file is not None:
            Path(file).write_text(json.dumps(tables, indent=1), encoding="utf-8")
