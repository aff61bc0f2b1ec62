"""Options of benchmarks/results.py, and the files that a run of it has."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from parts.common.options import free_option
from parts.results.rows import ROWS
from text_diffusers.common.validation import require
from text_diffusers.training.config import check_options, option

# Distances need some texts.
FEWEST_WRITTEN = 20


@dataclass
class ResultsConfig:
    """Options of this benchmark.

    Raises:
        ValueError: if a value is outside its range.
    """

    output_dir: str = free_option("runs/results", "folder of models, figures and the table")

    # What is measured
    rows: list[str] = free_option(list(ROWS), f"among {', '.join(ROWS)}")
    seeds: list[int] = free_option([0, 1, 2], "of rows that are repeated; others have the first")
    budget: float = option(1.0, "all minutes of training are multiplied by it", limit="above 0")
    minilm: str = option("data/models/minilm", "sentence encoder: folder or Hub name")
    smollm2: str = option("data/models/smollm2", "causal LM: folder or Hub name")

    # Texts
    vocab_size: int = option(2_048, "tokens of the models from scratch", limit="at least 1")
    dataset: str = option("chitchat", "a corpus, a file, a folder or a Hub data set")
    fewest_characters: int = option(20, "of a text; others are left out", limit="at least 1")
    most_characters: int = option(90, "of a text; others are left out", limit="at least 1")
    num_held_out: int = option(1_000, "texts whose bound is measured", limit="at least 1")
    num_written: int = option(1_000, "texts that each model writes, 20 or more", limit="at least 1")
    num_times: int = option(4, "random times a text in the bound", limit="at least 1")

    report: bool = free_option(False, "only print the table of the finished rows")

    def __post_init__(self):
        check_options(self)
        names = set(self.rows)
        require(names <= ROWS.keys(), "rows", f"among {', '.join(ROWS)}", self.rows)
        require(self.num_written >= FEWEST_WRITTEN, "num_written", "at least 20", self.num_written)
        require(len(self.seeds) > 0, "seeds", "at least one number", self.seeds)
        limit = f"at least `fewest_characters`={self.fewest_characters}"
        fits = self.most_characters >= self.fewest_characters
        require(fits, "most_characters", limit, self.most_characters)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def runs(self) -> list["Run"]:
        """All rows, a seed of every row before the next."""
        runs = []
        for index, seed in enumerate(self.seeds):
            runs += [Run(name, seed) for name in self.rows if index == 0 or ROWS[name].repeated]
        return runs

    def figures_file(self, run: "Run") -> Path:
        """What was measured of a run."""
        return self.folder / "results" / f"{run.name}.json"

    def model_folder(self, run: "Run", stage: int = -1) -> Path:
        """What a stage of a run has trained, by default the last one."""
        number = range(len(ROWS[run.row].stages))[stage]
        return self.folder / "models" / f"{run.name}-stage{number}"

    def texts_file(self, part: str) -> Path:
        """The texts of a part: train, held_out, reference or judge."""
        return self.folder / "texts" / f"{part}.jsonl"


class Run(NamedTuple):
    """A row of the table with a seed."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"{self.row}-seed{self.seed}"
