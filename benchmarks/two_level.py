"""Long texts by two levels of diffusion, beside one level of codes and a token model: equal parameters and minutes.

    python benchmarks/two_level.py --train_minutes 30 --output_dir runs/two_level_benchmark
    python benchmarks/two_level.py --stage train --systems two-level --seeds 0 1     # processes may share the folder
    python benchmarks/two_level.py --stage write
    python benchmarks/two_level.py --stage report --picture docs/two_level.png

What is done is kept in `output_dir` and not done again: a model, or the texts of a cell; a training that was
interrupted goes on.

- Systems: "two-level", an autoencoder with coarse and fine codes and a denoiser of each; "one-level", an autoencoder
  with fine codes only, as many tokens each, and their denoiser; "tokens", an absorbing D3PM. Each is trained by its
  recipes on the same rows for the same minutes of training steps on one thread, all its parts together. The width of a
  baseline's denoiser is what brings all its parameters closest to those of two levels.
- Equal forwards: calls of denoisers; the decoder's is not one of them, but its FLOPs count. Steps are coarse + fine.
- Equal FLOPs: those that the token model needs for its forwards (the budget); the others take as many steps as fit.
  FLOPs are of a whole call of the pipeline, two for each multiplication of a matrix product.
- Consistency: a judge that has learned from other documents says of each window of about 64 tokens how probable each
  kind of text is (Jane Austen, or speeches of an era); the mean over pairs of windows of sum_c p_i(c) p_j(c). "real
  texts" are held-out ones, "real windows, shuffled" texts that were mixed of theirs. Who writes one kind only is
  consistent too, so "classes, distance" is the total variation between the kinds written and the training texts',
  and "above chance" the consistency beyond that of windows of two different texts of the cell.
- Fluency: share of neighbouring words that stand together in the judge's documents or the training texts.
- Generative perplexity is of the beginnings of a few texts; of cells at equal FLOPs and of plans only.
- Plans: the fine denoiser's plan is that of real, held-out texts ("oracle"); the same codes, but each place shuffled
  among the texts; or the model's own, which the decoder is given, but the fine denoiser is not told ("untold").
- Tokens a second are of CPU time on one thread. Peak memory is beyond the loaded pipeline, for 8 texts at once.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import disable_progress_bars
from parts.common.options import run
from parts.common.processes import in_own_process
from parts.common.results import Record, check_settings, read_or_make, write_json
from parts.two_level.cells import comparisons
from parts.two_level.config import SYSTEMS, TwoLevelConfig
from parts.two_level.figures import judged_rows
from parts.two_level.judges import classed_documents
from parts.two_level.report import REAL, Row, report
from parts.two_level.systems import System, shared_tokenizer
from parts.two_level.writing import all_costs, peak_memory, write_cell
from torch import Tensor

from text_diffusers.data.rows import tokenize
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.training.config import OptionParser

# Texts of each length that are the yardstick, and those that show the kinds of the training texts.
REAL_TEXTS = 64
TRAINING_TEXTS = 512


# --- real texts


def held_out_rows(options: TwoLevelConfig, tokenizer: Any) -> tuple[Tensor, list[str]]:
    """Held-out rows (B, L) of tokens, full ones in a random order, and texts of the beginnings of training rows."""
    documents = load_documents(options.dataset)
    train_texts, held_out = split_documents(documents, options.validation_fraction)

    # 1. Held-out rows; full ones can be cut to every length
    rows = tokenize(held_out, tokenizer, options.length)
    full_rows = [row["input_ids"] for row in rows if all(row["attention_mask"])]

    # The plan of each written text of a cell may be that of another real one.
    needed = max(options.texts_of(length) for length in options.lengths)
    if len(full_rows) < needed:
        raise ValueError(
            f"`dataset` must have {needed} held-out rows of `length`={options.length} tokens, one for each text of a "
            f"cell, got {len(full_rows)}."
        )
    random.Random(0).shuffle(full_rows)

    # 2. The beginnings of training rows, as long as the shortest texts of the table
    train_rows = tokenize(train_texts, tokenizer, options.length)
    count = min(TRAINING_TEXTS, len(train_rows))
    training_texts = []
    for number in random.Random(0).sample(range(len(train_rows)), count):
        beginning = train_rows[number]["input_ids"][: min(options.lengths)]
        training_texts.append(first_text(tokenizer, beginning))
    return torch.tensor(full_rows), decoded(training_texts, tokenizer)


def first_text(tokenizer: Any, row: Sequence[int]) -> list[int]:
    """Tokens of the first text in a row, without its ends."""
    special_ids = set(tokenizer.all_special_ids)
    tokens = []
    for token in row:
        if token not in special_ids:
            tokens.append(token)
        elif tokens:
            # The end of the first text; special tokens before it are skipped.
            break
    return tokens


def decoded(rows: Sequence[list[int]], tokenizer: Any) -> list[str]:
    """The text of each row, without white space around it."""
    return [tokenizer.decode(row).strip() for row in rows]


def real_records(options: TwoLevelConfig, tokenizer: Any, rows: Tensor) -> list[Record]:
    """Held-out texts of each length."""
    records = []
    for length in options.lengths:
        cut_rows = rows[:REAL_TEXTS, :length].tolist()
        tokens = [first_text(tokenizer, row) for row in cut_rows]
        texts = decoded(tokens, tokenizer)
        records.append({"system": REAL, "length": length, "tokens": tokens, "texts": texts})
    return records


# --- the stages


def write_texts(options: TwoLevelConfig):
    """Write the texts of all cells of the chosen systems and seeds that are not there."""
    tokenizer = shared_tokenizer(options)

    # 1. Memory first: it is taken in forks, which should come from a process that has computed little
    memory_file = options.folder / "memory.json"
    if not memory_file.exists():
        memory = {}
        for system in SYSTEMS:
            peaks = {}
            for length in options.lengths:
                peaks[length] = in_own_process(1, peak_memory, options, system, length)
            memory[system] = peaks
        write_json(memory_file, memory)

    # 2. Real texts, the yardstick of all cells
    texts = options.folder / "texts"
    rows, training_texts = held_out_rows(options, tokenizer)
    read_or_make(texts / "training.json", lambda: training_texts)
    read_or_make(texts / "real.json", lambda: real_records(options, tokenizer, rows))

    # 3. Cells, some of which stand in two rows of the table
    costs = all_costs(options)
    for system in options.systems:
        for seed in options.seeds:
            pipe = None
            for comparison in comparisons(options, costs):
                cell = comparison.cell(seed)
                if comparison.system != system or cell is None:
                    continue

                file = texts / cell.file_name
                if file.exists():
                    continue

                request = f"{cell.length} tokens, steps {cell.steps}, plan {cell.plan}"
                print(f"{system}, seed {seed}: {request}", flush=True)
                # A pipeline is loaded only if there is something to write.
                pipe = pipe or System(system, options).load(seed)
                write_json(file, write_cell(pipe, cell, options, rows))


def main(options: TwoLevelConfig) -> list[Row]:
    """Train, write and report what the stage asks for; returns the rows of the table, if there is one."""
    # On one thread the minutes of a training and the seconds of writing mean the same on any number of cores.
    torch.set_num_threads(1)
    disable_progress_bars()
    check_settings(options)

    if options.stage == "all":
        # Errors of the judge's documents come now, and not after the training.
        classed_documents(options.dataset, options.judge_dataset)

    # Seed by seed, so that an early report compares all systems.
    if options.stage in ("all", "train"):
        for seed in options.seeds:
            for name in options.systems:
                system = System(name, options)
                if not system.is_trained(seed):
                    system.train(seed)

    if options.stage in ("all", "write"):
        write_texts(options)

    if options.stage not in ("all", "report"):
        return []

    rows, notes = judged_rows(options, all_costs(options))
    report(options, rows, notes)
    return rows


if __name__ == "__main__":
    run(main, OptionParser(TwoLevelConfig, description=__doc__))
