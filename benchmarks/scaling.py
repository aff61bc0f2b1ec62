"""What it costs to train, and to write with, larger models: measured slopes on a CPU, and what they come to on GPUs.

    python benchmarks/scaling.py --output_dir runs/scaling
    python benchmarks/scaling.py --parts writing training --output_dir runs/scaling   # without the trained models
    python benchmarks/scaling.py --report --pictures docs --output_dir runs/scaling

- loss: every size is trained for every budget of FLOPs and every seed, each run by training_scripts/train_d3pm.py
  with a schedule of its own. The least bound at each budget gives a power law, by least squares on logarithms; its
  error is that of resampled held-out rows, the same rows for all runs, and of seeds if there are several.
- writing and training: one model with random weights, of which the length, the steps, the batch or the width changes.
  Cases of a table take turns in one run.
- processes: one beside two, in writing and, through Accelerate, in training.
- computed: FLOPs, GPU-days, memory and GPUs of models of 100 million to 8 billion parameters. The calls of a small
  model say what a large one would compute; the speed of a GPU is an assumption. No GPU is used or measured.

FLOPs are products of matrices, two for a multiplication with its addition: 2 N for a token in the blocks, the scores
and sums of attention, the head where it runs; three times as many in training. So embeddings cost nothing, and where
noise is masks the head and most of the last block run at masks only. Times are CPU seconds of one thread; of
processes, which run at once, seconds by the wall beside the load of the machine.

A finished run or table is a file in `output_dir/results` and is not made again.
"""

import torch
from datasets import disable_progress_bars
from parts.common.options import run
from parts.common.results import check_settings, read_or_make, write_report
from parts.scaling import losses, training, writing
from parts.scaling.config import LOSS, PARTS, PROCESSES, TRAINING, WRITING, ScalingConfig
from parts.scaling.memory import measure_memory
from parts.scaling.processes import measure_processes
from parts.scaling.report import finished, full_report

from text_diffusers.training.config import OptionParser


def run_missing(options: ScalingConfig):
    """Measure what is not finished."""
    check_settings(options)
    torch.set_num_threads(1)
    disable_progress_bars()

    # Costs first: they take minutes, and the trained models most of an hour.
    tables = {}
    if WRITING in options.parts:
        tables |= {(WRITING, name): measure for name, measure in writing.all_sweeps(options)}
    if TRAINING in options.parts:
        tables[TRAINING, "memory"] = lambda: measure_memory(options)
        tables |= {(TRAINING, name): measure for name, measure in training.all_sweeps(options)}
    if PROCESSES in options.parts:
        for task in (WRITING, TRAINING):
            tables[PROCESSES, task] = lambda task=task: measure_processes(options, task)
    for (part, name), measure in tables.items():
        file = options.folder / "results" / part / f"{name}.json"
        if not file.exists():
            print(f"{part}: {name}", flush=True)
        read_or_make(file, measure)

    if LOSS in options.parts:
        losses.run_missing(options)


def main(options: ScalingConfig):
    """Measure what is not finished, unless only the report is asked for, and report."""
    if not options.report:
        run_missing(options)

    figures = {part: finished(options.folder / "results" / part) for part in PARTS}
    # The nats of single rows are in the files of their runs.
    for record in figures[LOSS].values():
        record.pop("row_nats", None)
        record.pop("row_tokens", None)
    write_report(options.folder, "scaling", full_report(options), figures)


if __name__ == "__main__":
    run(main, OptionParser(ScalingConfig, description=__doc__))
