"""Options of benchmarks/adaptation.py."""

from dataclasses import dataclass
from pathlib import Path

from parts.adaptation.rows import ROWS
from parts.common.options import free_option
from text_diffusers.common.validation import require
from text_diffusers.training.config import check_options, option

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Run:
    """One training of a row.

    Attributes:
        row: its name among `ROWS`.
        seed: of the weights, the order of the rows and the noise.
        minutes: of the CPU, after which it is judged, rising; the last are its budget.
    """

    row: str
    seed: int
    minutes: tuple[float, ...]

    @property
    def name(self) -> str:
        """As its file is called."""
        return f"{self.row}-{self.minutes[-1]:g}min-seed{self.seed}"


@dataclass
class AdaptationBenchmarkConfig:
    """Options of this benchmark.

    Raises:
        ValueError: if a value is outside its range.
    """

    output_dir: str = free_option("runs/adaptation", "folder of finished runs and of both tables")

    # What is trained
    rows: list[str] = free_option(list(ROWS), f"among {', '.join(ROWS)}")
    seeds: list[int] = free_option([0], "of weights, order and noise")
    minutes: list[float] = option(
        [0.0, 4.0, 8.0, 15.0],
        "of one core, in training steps, after which a row is judged; 0: before any step",
    )
    anneal: bool = option(
        False, "a run for each number of minutes, whose learning rate falls to 0 there"
    )
    minilm: str = option("data/models/minilm", "sentence encoder: folder or Hub name")
    smollm2: str = option("data/models/smollm2", "causal LM: folder or Hub name")

    # The text, and how a model is judged
    dataset: str = option("chitchat", "a corpus, a file, a folder or a Hub data set")
    sample_by: str = option("line", "a text in a .txt file: line, paragraph, document")
    length: int = option(64, "tokens in a row", limit="at least 1")
    held_out_rows: int = option(
        512, "at most, on which a model is judged, spread over all", limit="at least 1"
    )

    # Steps of training; what is not named here is the default of the recipe
    lr_warmup_steps: int = option(20, "linear warm-up; a cosine to 0 follows", limit="at least 0")
    ema_decay: float = option(0.99, "of the averaged weights, which are judged", limit="in [0, 1)")
    mixed_precision: str = option("bf16", "no or bf16, also of the judging", one_of=("no", "bf16"))

    # Of the command
    keep_models: bool = free_option(False, "keep the trained pipelines, in `output_dir`/models")
    report: bool = free_option(False, "only print the table of the finished runs")

    # Speed
    speed: bool = free_option(False, "measure tokens a second, and train nothing")
    block_lengths: list[int] = free_option([4, 8, 16], "tokens of the blocks that are written")
    steps: list[int] = free_option([1, 2, 4], "of each block")
    bidirectional: bool = free_option(
        True, "also write bidirectionally, in as many steps as there are tokens"
    )
    batch_sizes: list[int] = free_option([1, 8], "texts that are written together")
    num_tokens: int = free_option(64, "that are written of each text", limit="at least 1")
    repetitions: int = free_option(3, "of each measurement, which take turns", limit="at least 1")
    dtype: str = free_option("float32", "of the weights: float32 or bfloat16", one_of=DTYPES)

    def __post_init__(self):
        check_options(self)
        names = set(self.rows)
        require(names <= ROWS.keys(), "rows", f"among {', '.join(ROWS)}", self.rows)
        rises = sorted(set(self.minutes)) == self.minutes
        is_budget = rises and len(self.minutes) > 0 and self.minutes[0] >= 0 < self.minutes[-1]
        require(is_budget, "minutes", "rising, the last above 0", self.minutes)
        for name in ("block_lengths", "steps", "batch_sizes"):
            values = getattr(self, name)
            require(min(values, default=1) >= 1, name, "numbers of at least 1", values)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def runs(self) -> list[Run]:
        """All trainings of the table, a seed of every row before the next."""
        return [
            Run(row, seed, minutes)
            for seed in self.seeds
            for row in self.rows
            for minutes in self.budgets(row)
        ]

    def budgets(self, row: str) -> list[tuple[float, ...]]:
        """Minutes after which each run of a row is judged; before its first step one of them is."""
        if not self.anneal and not ROWS[row].in_parts:
            return [tuple(self.minutes)]
        untrained = tuple(self.minutes[:1]) if self.minutes[0] == 0 else ()
        first, *others = self.minutes[len(untrained) :]
        return [(*untrained, first), *((minutes,) for minutes in others)]
