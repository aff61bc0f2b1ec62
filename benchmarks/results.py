"""What the library reaches, in one table: every kind of model, trained for minutes on the same texts.

    python benchmarks/results.py --output_dir runs/results
    python benchmarks/results.py --rows absorbing hierarchical --seeds 0 --output_dir runs/results
    python benchmarks/results.py --report --output_dir runs/results

A row is trained by its recipe, or writes with the model of another row, and is then measured by
`text-diffusers evaluate`; parts/results/rows.py says how. A finished row and seed is a file in `output_dir/results`
and is not made again, an interrupted training goes on where it was, and processes with different rows may share the
folder.

- Minutes are those of the CPU in training steps, on one thread; of stages they add up.
- Bits per character are the bound of held-out texts, ends included, and exact for GPT-2: vocabularies compare.
- The judge counts word trigrams, with Kneser-Ney smoothing, of texts that no model has seen; a word that it does not
  know is paid for by the letter. No model is its kin.
- Entropy is that of the tokens within a text, in nats; MMD² and the divergence curve (1 for texts that are alike)
  compare embeddings of written and of real texts by MiniLM. A row of texts of people has what another sample of them
  gets.
- Tokens a second are those of `text-diffusers evaluate` on one thread, loading left out. Of GPT-2 they are of the CPU.
- A figure of several seeds is their mean, with the standard deviation behind ±.
"""

import torch
from datasets import disable_progress_bars
from parts.common.options import run
from parts.common.processes import in_own_process
from parts.common.results import check_settings, write_json, write_report
from parts.results.config import ResultsConfig, Run
from parts.results.data import prepare_texts
from parts.results.evaluation import evaluate_run
from parts.results.report import commands, read_records, results_table
from parts.results.rows import ROWS
from parts.results.training import train_stage

from text_diffusers.training.config import OptionParser


def make(options: ResultsConfig, training: Run):
    """Train and measure a run, and the model of another row that it needs."""
    file = options.figures_file(training)
    if file.exists():
        return
    row = ROWS[training.row]
    if row.model is not None:
        train(options, Run(row.model, training.seed))
    train(options, training)
    record = evaluate_run(options, training)
    record["minutes"] = minutes_of(options, training)
    write_json(file, record)
    print(f"{training.name}: {record}", flush=True)


def train(options: ResultsConfig, training: Run):
    """Train all stages of a run, each in a process of its own."""
    for number in range(len(ROWS[training.row].stages)):
        in_own_process(1, train_stage, options, training, number)


def minutes_of(options: ResultsConfig, training: Run) -> float:
    """CPU minutes of all trainings that led to the model that writes."""
    row = ROWS[training.row]
    minutes = sum(stage.minutes for stage in row.stages) * options.budget
    return minutes if row.model is None else minutes + minutes_of(options, Run(row.model, 0))


def main(options: ResultsConfig):
    if not options.report:
        check_settings(options)
        torch.set_num_threads(1)
        disable_progress_bars()
        prepare_texts(options)
        for training in options.runs:
            make(options, training)
    records = read_records(options)
    if records:
        text = f"{results_table(records)}\n\n{commands(records)}"
        write_report(options.folder, "results", text, records)


if __name__ == "__main__":
    run(main, OptionParser(ResultsConfig, description=__doc__))
