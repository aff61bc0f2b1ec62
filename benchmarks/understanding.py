"""Tasks of understanding by filling in and rewriting: what a few CPU minutes of training reach, beside baselines.

    python benchmarks/understanding.py --output_dir runs/understanding
    python benchmarks/understanding.py --tasks tags --budget 0.5 --output_dir runs/short

Parts of speech, prepositions, compression and paraphrase, each on texts that `examples/understanding/make_tasks.py`
makes of the Brown corpus and of two English Bibles. A model is trained by a recipe of the library and asked about
held-out texts; parts/understanding/config.py has its options. A finished figure is a file in `output_dir/figures` and
is not made again; an interrupted training goes on where it was.

- Minutes are those of the CPU in training steps, on one thread.
- Behind ± stands the standard error over texts; that of a share of tokens takes those of one text together.
- Answers are the likeliest tokens; the length of a text that is written anew is drawn from what the model predicts.
"""

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import disable_progress_bars
from parts.common.options import run
from parts.common.processes import in_own_process
from parts.common.results import Record, check_settings, read_or_make, write_report
from parts.understanding.baselines import Row
from parts.understanding.config import UnderstandingConfig
from parts.understanding.data import make_task, read_rows
from parts.understanding.report import task_report

from text_diffusers.training.config import OptionParser

MOST_WORDS = 24


def make_figures(
    options: UnderstandingConfig, task: str, train_rows: list[Row], rows: list[Row]
) -> dict[str, Record]:
    """The records of all systems of a task, in the order of the table; what is there is read."""
    systems = importlib.import_module(f"parts.understanding.{task}").SYSTEMS
    records = {}
    for name, (title, make, settings) in systems.items():
        # In a process of its own, since trainings differ in their precision
        answer = partial(make, **settings)
        records[name] = read_or_make(
            options.figures_file(task, name),
            partial(in_own_process, 1, answer, options, train_rows, rows),
        )
        records[name]["title"] = title
        figures = {key: value for key, value in records[name].items() if key != "answers"}
        print(f"{task}, {name}: {figures}", flush=True)
    return records


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most so many rows, spread evenly over all: neighbours are alike.

    Example:
        >>> spread(list(range(10)), 3)
        [0, 3, 6]
    """
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def main(options: UnderstandingConfig) -> dict[str, dict[str, Record]]:
    """Train and ask what is not there yet; returns the records of each task."""
    # On one thread the minutes of a training mean the same on any number of cores.
    torch.set_num_threads(1)
    disable_progress_bars()
    check_settings(options)

    results = {}
    reports = []
    for task in options.tasks:
        folder = make_task(task, options.data_folder(task), MOST_WORDS)
        train_rows = read_rows(folder / "train.jsonl")
        rows = spread(read_rows(folder / "validation.jsonl"), options.num_texts)
        results[task] = make_figures(options, task, train_rows, rows)
        reports.append(task_report(task, rows, results[task]))
    write_report(options.folder, "report", "\n\n".join(reports), results)
    return results


if __name__ == "__main__":
    run(main, OptionParser(UnderstandingConfig, description=__doc__))
