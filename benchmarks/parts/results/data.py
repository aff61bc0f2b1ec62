"""The texts of benchmarks/results.py: to train on, to hold out, to compare with, and for the judge."""

import json
from pathlib import Path

from parts.common.recipes import CORPORA  # noqa: F401 - names for `--dataset`
from parts.common.results import make_folder_once
from parts.results.config import ResultsConfig
from text_diffusers.data.sources import load_documents

# Of the texts, the first for training, the last for the judge; what is measured stands between them.
TRAIN_SHARE = 0.6


def prepare_texts(options: ResultsConfig):
    """Write the files of all parts, if they are not there.

    Raises:
        ValueError: if there are too few texts.
    """
    make_folder_once(options.texts_file("train").parent, lambda folder: write(options, folder))


def write(options: ResultsConfig, folder: Path):
    """The files of all parts into a folder."""
    least, most = options.fewest_characters, options.most_characters
    documents = load_documents(options.dataset)["text"]
    texts = [text for text in documents if least <= len(text) <= most and "\n" not in text]

    num_train = int(TRAIN_SHARE * len(texts))
    first_for_judge = num_train + options.num_held_out + 2 * options.num_written
    if first_for_judge >= len(texts):
        raise ValueError(
            f"`dataset` must have more than {first_for_judge:,} texts of {least} to {most} characters, got "
            f"{len(texts):,}."
        )
    held_out = texts[num_train : num_train + options.num_held_out]
    parts = {
        "train": texts[:num_train],
        "held_out": held_out,
        # Twice as many as are written: the distance of one half from the other is that of texts that are alike.
        "reference": texts[num_train + options.num_held_out : first_for_judge],
        "judge": texts[first_for_judge:],
    }
    folder.mkdir(parents=True)
    for name, part in parts.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in part)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
