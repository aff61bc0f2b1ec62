"""Options of benchmarks/scaling.py, the sizes that it trains and those that it extrapolates to."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from parts.common.options import free_option
from parts.sampling.measuring import Size
from text_diffusers.common.validation import require
from text_diffusers.kernels import KERNELS
from text_diffusers.training.config import check_options, option

LOSS = "loss"
WRITING = "writing"
TRAINING = "training"
PROCESSES = "processes"
PARTS = (WRITING, TRAINING, PROCESSES, LOSS)
HEAD_WIDTH = 32  # of the models that are trained
FEED_FORWARD_RATIO = 4


class Shape(NamedTuple):
    """Width and depth of a model that is trained."""

    width: int
    layers: int

    @property
    def heads(self) -> int:
        return self.width // HEAD_WIDTH

    @property
    def name(self) -> str:
        return f"{self.width}x{self.layers}"

    @classmethod
    def parse(cls, name: str) -> "Shape":
        """From `widthxlayers`, such as 128x4.

        Raises:
            ValueError: if that is no shape.
        """
        match = re.fullmatch(r"(\d+)x(\d+)", name)
        # A shape that is none has no layer.
        width, layers = map(int, match.groups()) if match else (0, 0)
        fits = layers > 0 and width > 0 and width % HEAD_WIDTH == 0
        require(fits, "sizes", f"WIDTHxLAYERS, the width a multiple of {HEAD_WIDTH}", name)
        return cls(width, layers)


class LargeModel(NamedTuple):
    """A size that nothing here trains: `TextTransformerModel` with heads of 64 or 128 numbers."""

    name: str
    width: int
    layers: int
    heads: int


LARGE_MODELS = [
    LargeModel("100M", 640, 12, 10),
    LargeModel("350M", 1_024, 22, 16),
    LargeModel("1B", 2_048, 18, 16),
    LargeModel("3B", 2_560, 36, 20),
    LargeModel("8B", 4_096, 38, 32),
]
TOKENS_A_DAY = (10**6, 10**7, 10**8, 10**9)


@dataclass
class ScalingConfig:
    """Options of this benchmark.

    Raises:
        ValueError: if a value is outside its range.
    """

    output_dir: str = free_option("runs/scaling", "folder of finished figures and of the report")
    parts: list[str] = free_option(list(PARTS), f"among {', '.join(PARTS)}")

    # Loss against compute
    kernels: list[str] = free_option(["absorbing"], f"among {', '.join(KERNELS)}")
    sizes: list[str] = free_option(
        ["64x2", "96x3", "128x4", "192x6"], "width x layers, the second in proportion to the first"
    )
    budgets: list[float] = free_option(
        [3e11, 1.2e12, 4.8e12], "FLOPs of training, for each size and seed"
    )
    seeds: list[int] = free_option([0], "of weights, order and noise")
    learning_rate: float = option(
        1e-3, "peak at `rate_width`; of other widths in inverse proportion", limit="above 0"
    )
    rate_width: int = option(256, "at which the learning rate is as given", limit="at least 1")
    train_batch_size: int = option(8, "rows in a step", limit="at least 1")

    # The text, and how a model is judged
    dataset: str = option("chitchat", "a corpus, a file or a folder of texts")
    sample_by: str = option("paragraph", "a text in a .txt file: line, paragraph, document")
    vocab_size: int = option(2_048, "of the tokenizer that is trained on it", limit="at least 1")
    length: int = option(64, "tokens in a row", limit="at least 1")
    held_out_rows: int = option(800, "that are judged", limit="at least 1")
    num_times: int = option(2, "random numbers of masks for each of them", limit="at least 1")
    num_resamples: int = free_option(1_000, "of the bootstrap")

    # What writing and training cost: one model, of which one thing at a time is changed
    width: int = option(256, "of the model whose cost is measured", limit="at least 1")
    layers: int = option(4, "its blocks", limit="at least 1")
    heads: int = option(4, "its heads", limit="at least 1")
    cost_vocab_size: int = option(8_192, "its tokens", limit="at least 1")
    cost_length: int = option(128, "tokens in a row", limit="at least 1")
    batch: int = option(8, "rows", limit="at least 1")
    steps: int = option(8, "in which a row is written", limit="at least 1")
    lengths: list[int] = option([32, 64, 128, 256, 512], "of rows")
    step_counts: list[int] = option([1, 4, 16, 64, 128], "in which rows are written")
    batches: list[int] = option([1, 8, 32, 128], "rows that are written, or trained on, at once")
    widths: list[int] = option([128, 256, 384, 512], "of models with as many layers")
    block_rows: list[int] = option(
        [128, 512], "tokens in a row that is written in blocks, or whole"
    )
    block_length: int = option(32, "tokens of a block with a cache", limit="at least 1")
    block_steps: int = option(8, "in which a block is written", limit="at least 1")
    repetitions: int = option(2, "of each measurement; the median counts", limit="at least 1")

    # What is assumed of larger models and of a GPU
    peak_tflops: float = free_option(989.0, "of a GPU, bf16 without sparsity: an H100 or H200")
    utilisation: float = free_option(0.4, "of the peak, in training: an assumption")
    writing_utilisation: float = free_option(0.2, "of the peak, in writing: an assumption")
    tokens_per_parameter: float = free_option(20.0, "that a model is trained on: an assumption")
    gpus: int = free_option(8, "that share a model in shards")
    large_vocab_size: int = free_option(32_768, "tokens of the larger models")
    large_length: int = free_option(1_024, "tokens in a row of the larger models")
    large_batch: int = free_option(8, "rows in a micro-batch of the larger models")
    lora_rank: int = free_option(16, "of adapters in all linear layers of the blocks")

    report: bool = free_option(False, "only print the tables and draw the pictures")
    pictures: str | None = free_option(
        None, "folder of scaling_loss.png and scaling_cost.png; default: `output_dir`"
    )

    def __post_init__(self):
        check_options(self)

        # Whatever is chosen by a name
        require(set(self.parts) <= set(PARTS), "parts", f"among {list(PARTS)}", self.parts)
        known = set(self.kernels) <= set(KERNELS)
        require(known, "kernels", f"among {list(KERNELS)}", self.kernels)
        for name in self.sizes:
            Shape.parse(name)

        # Lists of numbers, each of which must be there
        for name in (
            "budgets",
            "seeds",
            "lengths",
            "step_counts",
            "batches",
            "widths",
            "block_rows",
        ):
            values = getattr(self, name)
            least = 0 if name == "seeds" else 1
            fits = bool(values) and min(values) >= least and len(set(values)) == len(values)
            require(fits, name, f"different numbers of at least {least}", values)

        # Numbers that no result depends on have no mark of their own
        for name in (
            "peak_tflops",
            "utilisation",
            "writing_utilisation",
            "tokens_per_parameter",
            "gpus",
            "large_vocab_size",
            "large_length",
            "large_batch",
            "lora_rank",
            "num_resamples",
        ):
            require(getattr(self, name) > 0, name, "above 0", getattr(self, name))

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def shapes(self) -> list[Shape]:
        return [Shape.parse(name) for name in self.sizes]

    @property
    def size(self) -> Size:
        """The model and batch whose cost is measured."""
        return Size(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            batch=self.batch,
            length=self.cost_length,
            vocab_size=self.cost_vocab_size,
        )

    def picture(self, name: str) -> Path:
        return Path(self.pictures or self.output_dir, name)
