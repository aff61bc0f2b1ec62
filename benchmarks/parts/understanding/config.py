"""Options of benchmarks/understanding.py, and the trainings of which its tasks are made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.common.options import free_option
from text_diffusers.training.config import check_options, option

TASKS = ("tags", "prepositions", "compression", "paraphrase")
# Stands for the folder of the sentence encoder.
ENCODER = "{minilm}"

# A model from nothing: its size, and a rate that suits it
FROM_SCRATCH: dict[str, Any] = {
    "hidden_size": 128,
    "num_layers": 4,
    "num_attention_heads": 4,
    "train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 50,
    "ema_decay": 0.995,
}
# A masked diffusion model made of a sentence encoder
FROM_ENCODER: dict[str, Any] = {
    "model_name_or_path": ENCODER,
    "attention": "bidirectional",
    "alignment": "aligned",
    "train_batch_size": 16,
    "mixed_precision": "bf16",
    "lr_warmup_steps": 20,
    "ema_decay": 0.99,
}


@dataclass(frozen=True)
class Training:
    """A training: a recipe, its options, and CPU minutes on one thread.

    Attributes:
        recipe: a name of `parts.common.recipes.CONFIGS`.
        options: as the recipe takes them; those of every training are added.
    """

    recipe: str
    minutes: float
    options: dict[str, Any]


TRAININGS = {
    "tags_tagger": Training(
        "train_classifier",
        4,
        FROM_SCRATCH | {"tags_column": "tags", "length": 64, "vocab_size": 4096},
    ),
    "tags_scratch": Training(
        "train_d3pm", 4, FROM_SCRATCH | {"packing": False, "length": 96, "vocab_size": 4096}
    ),
    "tags_encoder": Training(
        "train_d3pm",
        6,
        FROM_ENCODER
        | {"packing": False, "length": 96, "retrain_tokenizer": True, "vocab_size": 8192},
    ),
    "prepositions_scratch": Training(
        "train_d3pm",
        5,
        FROM_SCRATCH
        | {
            "source_column": "source",
            "text_column": "answer",
            "packing": False,
            "length": 96,
            "vocab_size": 4096,
        },
    ),
    "prepositions_encoder": Training(
        "train_d3pm",
        4,
        FROM_ENCODER
        | {
            "source_column": "source",
            "text_column": "answer",
            "packing": False,
            "length": 80,
            "prune_vocabulary": True,
        },
    ),
    "compression_scratch": Training(
        "train_d3pm",
        4,
        FROM_SCRATCH
        | {"source_column": "source", "packing": False, "length": 96, "vocab_size": 4096},
    ),
    "compression_encoder": Training(
        "train_d3pm",
        3,
        FROM_ENCODER
        | {
            "text_column": "marked",
            "packing": False,
            "length": 96,
            "retrain_tokenizer": True,
            "vocab_size": 8192,
        },
    ),
    "paraphrase_scratch": Training(
        "train_d3pm",
        4,
        FROM_SCRATCH
        | {"source_column": "source", "packing": False, "length": 96, "vocab_size": 2048},
    ),
}


@dataclass
class UnderstandingConfig:
    """Options of this benchmark.

    Raises:
        ValueError: if a task is unknown, or a value outside its range.
    """

    output_dir: str = free_option(
        "runs/understanding", help="folder of trained models, figures and the report"
    )
    data: str = free_option(
        "data/understanding",
        help="folder of `examples/understanding/make_tasks.py`; made if missing",
    )
    tasks: list[str] = free_option(list(TASKS), help=", ".join(TASKS))
    num_texts: int = option(500, "held-out texts of a task, spread over all", limit="at least 1")
    budget: float = option(1.0, "all minutes are multiplied by it", limit="above 0")
    vocab_size: int | None = option(
        None, "tokens of every tokenizer that is trained; default: as in `TRAININGS`"
    )
    minilm: str = option("data/models/minilm", "folder of the sentence encoder to start from")
    batch_size: int = free_option(50, help="texts that are answered together", limit="at least 1")
    seed: int = option(0, "of trainings and draws")

    def __post_init__(self):
        check_options(self)
        unknown = set(self.tasks) - set(TASKS)
        if unknown:
            raise ValueError(f"`tasks` must be among {list(TASKS)}, got {sorted(unknown)}.")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    def data_folder(self, task: str) -> Path:
        """Where the texts of a task are."""
        return Path(self.data, task)

    def model_folder(self, name: str) -> Path:
        """Where a trained model is saved."""
        return self.folder / "models" / name

    def figures_file(self, task: str, system: str) -> Path:
        """Where the finished figures of a system are."""
        return self.folder / "figures" / f"{task}-{system}.json"
