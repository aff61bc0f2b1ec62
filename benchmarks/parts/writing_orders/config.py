"""Options of benchmarks/writing_orders.py."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from parts.common.options import free_option
from text_diffusers.common.validation import require
from text_diffusers.training.config import check_options, option


@dataclass(frozen=True)
class Cell:
    """The settings of a line of the table.

    Attributes:
        order: a sampler by its name, or "random".
        window: first open tokens that may be committed; 0 is all.
        block_length: tokens of a block; 0 is those of the model, or none.
        steps: of a text, or of each block.
        temperature: of the predictions.
    """

    order: str
    window: int
    block_length: int
    steps: int
    temperature: float

    @property
    def name(self) -> str:
        """As a file is called."""
        return (
            f"{self.order}-window{self.window}-block{self.block_length}-steps{self.steps}-"
            f"temperature{self.temperature:g}"
        )


@dataclass
class WritingOrdersConfig:
    """Options of this benchmark."""

    model: str = option(help="folder or name of a pipeline over tokens, of absorbing noise")
    output_dir: str = free_option(help="folder of finished texts and of the report")

    # What is compared, each with each
    orders: list[str] = free_option(
        ["ancestral", "random", "confidence", "entropy", "left_to_right"],
        "samplers of `text-diffusers generate --scheduler list`, or random",
    )
    windows: list[int] = free_option([0], "first open tokens that may be committed; 0: all")
    block_lengths: list[int] = free_option([0], "tokens of a block; 0: those of the model, or none")
    steps: list[int] = free_option([16, 64], "steps of a text, or of each block")
    temperatures: list[float] = free_option([0.8], "of the predictions")

    # How texts are written
    num_texts: int = option(60, "texts of each line, from the same seeds", limit="at least 1")
    max_new_tokens: int | None = option(
        None,
        "tokens of the longest text; default: as the model says, or 48",
        limit="at least 1",
    )
    label: str | None = option(None, "class label, a number or its name; also of real texts")
    guidance_scale: float = option(1.0, "of the label")
    top_k: int | None = option(None, "choose among the k likeliest")
    top_p: float | None = option(0.95, "choose among this mass")
    batch_size: int = free_option(30, "texts in one call", limit="at least 1")
    seed: int = option(0, "of the texts")

    # Texts of others
    dataset: str = option("chitchat", "a corpus, a file, a folder or a Hub data set")
    text_column: str = option("text", "column of the texts")
    label_column: str = option("label", "column of their labels, if a label is asked for")
    judge_texts: int = option(50_000, "texts that the judge learns from, none of them held out")
    judge_order: int = option(6, "characters of the judge's n-grams", limit="at least 1")

    # Of the run
    show: int = free_option(2, "texts shown of each line", limit="at least 0")
    num_cpu_threads: int | None = free_option(None, "torch threads; default: all")

    def __post_init__(self):
        check_options(self)
        for name, least in (("windows", 0), ("block_lengths", 0), ("steps", 1)):
            values = getattr(self, name)
            is_list = len(values) > 0 and min(values) >= least
            require(is_list, name, f"numbers of at least {least}", values)
        for name in ("orders", "temperatures"):
            require(len(getattr(self, name)) > 0, name, "at least one", getattr(self, name))

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def cells(self) -> list[Cell]:
        """All lines of the table, in order."""
        compared = product(
            self.orders, self.windows, self.block_lengths, self.steps, self.temperatures
        )
        # What is named twice is one line.
        return list(dict.fromkeys(Cell(*settings) for settings in compared))
