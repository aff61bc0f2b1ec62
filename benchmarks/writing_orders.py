"""In which order, and how fast, a model writes best: orders x windows x blocks x steps x temperatures, in one table.

    python benchmarks/writing_orders.py --model chat-and-novels --label chat --dataset chat_and_novels \\
        --output_dir runs/orders
    python benchmarks/writing_orders.py --model runs/minilm --orders left_to_right confidence --windows 0 4 8 \\
        --steps 16 32 48 --temperatures 0.6 0.8 1.0 --output_dir runs/orders-minilm

- bits per character: of a character n-gram model with Witten-Bell smoothing, which has read other texts of the data
  set; the end of a text counts as a character. Real texts, held out from the model and the judge, stand in the first
  line. Below their bits a text is plainer than they are, above them it is worse.
- distinct-2: different pairs of words over all pairs. Fewer bits with fewer different pairs are repetition, not
  quality; a line is good if both are near those of real texts.
- known words: share of words that the judge has seen twice. With loops: texts in which a word, or a pair of words,
  stands three times in a row.
- calls a text: rows that the model reads, guidance included, over the texts.

All lines have the same seeds. Judge and real texts are spelled as the tokenizer spells them, so that a model that
knows lower case only is not judged by its capitals. Finished lines are files in `output_dir`.
"""

from dataclasses import asdict
from typing import Any

import torch
from datasets import disable_progress_bars
from parts.common.options import run
from parts.common.recipes import CORPORA
from parts.common.results import Record, check_settings, read_or_make, write_report
from parts.writing_orders.config import Cell, WritingOrdersConfig
from parts.writing_orders.judge import CharacterJudge
from parts.writing_orders.report import figures_of, shown_texts, table, words_of
from parts.writing_orders.writing import (
    class_label,
    decoded,
    longest_text,
    takes_window,
    write_cell,
)

from text_diffusers import TextDiffusionPipeline
from text_diffusers.data.labels import number_labels
from text_diffusers.data.rows import encode_texts
from text_diffusers.data.sources import load_documents, register_corpora, split_documents
from text_diffusers.samplers import samplers_for
from text_diffusers.training.config import OptionParser


def real_texts(options: WritingOrdersConfig, pipe: Any) -> tuple[list[str], list[str]]:
    """Texts for the judge, and held-out ones, as the pipeline's tokenizer spells them, cut to what is written."""
    label_column = None if options.label is None else options.label_column
    documents: Any = load_documents(options.dataset, options.text_column, label_column)
    if options.label is not None:
        documents, names = number_labels(documents, pipe.label_names)
        label = class_label(options.label)
        number = label if isinstance(label, int) else list(names or []).index(label)
        documents = documents.filter(lambda row: row["label"] == number)
    for_judge, held_out = split_documents(documents)

    # Spread over all of them, since neighbours are alike.
    longest = longest_text(pipe, options) or pipe.max_length
    texts = []
    for part, most in ((for_judge, options.judge_texts), (held_out, options.num_texts)):
        stride = max(1, len(part) // most)
        rows = encode_texts(pipe.tokenizer, list(part["text"])[::stride][:most])
        texts.append(decoded(pipe.tokenizer, [row[:longest] for row in rows]))
    return texts[0], texts[1]


def check_orders(options: WritingOrdersConfig, pipe: Any) -> list[Cell]:
    """The cells that this pipeline can write.

    Raises:
        ValueError: if an order is none of its own.
    """
    known = [*samplers_for(pipe), "random"]
    for order in options.orders:
        if order not in known:
            raise ValueError(f"`orders` must be among {', '.join(known)}, got {order!r}.")

    # An order that knows no windows stands in one line.
    return [cell for cell in options.cells if not cell.window or takes_window(pipe, cell.order)]


def main(options: WritingOrdersConfig):
    """Write what is not finished, judge it, and print the table."""
    # 1. The model, and the texts of others
    register_corpora(CORPORA)
    disable_progress_bars()
    if options.num_cpu_threads:
        torch.set_num_threads(options.num_cpu_threads)
    pipe = TextDiffusionPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    if torch.accelerator.is_available():
        pipe.to(torch.accelerator.current_accelerator())
    cells = check_orders(options, pipe)
    check_settings(options)
    for_judge, held_out = real_texts(options, pipe)

    # 2. Write
    lines: list[tuple[Cell, Record]] = []
    for cell in cells:
        path = options.folder / "results" / f"{cell.name}.json"
        record = read_or_make(
            path, lambda cell=cell: asdict(cell) | write_cell(pipe, cell, options)
        )
        lines.append((cell, record))
        print(f"{cell.name}: {record['calls']:.1f} calls a text", flush=True)

    # 3. Judge
    judge = CharacterJudge(for_judge, options.judge_order)
    vocabulary = words_of(for_judge)
    real = figures_of(held_out, judge, vocabulary)
    judged = [
        (cell, record | figures_of(record["texts"], judge, vocabulary)) for cell, record in lines
    ]
    head = f"{options.num_texts} texts each of {options.model}; the judge has read {len(for_judge):,} texts."
    text = f"{head}\n\n{table(real, judged)}\n\n{shown_texts(judged, options.show)}"
    figures = {"real": real, "lines": [record for _, record in judged]}
    write_report(options.folder, "writing_orders", text, figures)


if __name__ == "__main__":
    run(main, OptionParser(WritingOrdersConfig, description=__doc__))
