"""Options of every training recipe, what a run notes of them, and the optimizers among which they choose."""

import json
import os
import platform
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import torch

from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER
from text_diffusers.training.tracking import check_trackers

SGD_MOMENTUM = 0.9
NOTE_FILE = "training_config.json"
LIBRARIES = (
    *("text-diffusers", "torch", "diffusers", "transformers", "accelerate", "datasets", "tokenizers", "safetensors"),
    "peft",
)
OF_A_SITTING = ("overwrite_output_dir", "resume_from_checkpoint")
# Options without an effect on what the next steps compute, but for rounding.
FREE_WHEN_RESUMING = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "report_to", "project", "num_cpu_threads"),
    *("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "validation_rows", "num_samples"),
    *("num_length_samples", "train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
    "head_chunk_size",
}


@dataclass
class TrainingConfig:
    """Options that all recipes share; a recipe's own dataclass extends it."""

    output_dir: str = field(metadata={"help": "folder of the saved pipeline, its checkpoints and logs"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "train anew over what is in the folder"})
    seed: int = field(default=0, metadata={"help": "of the weights, the data order and the noise"})
    max_train_steps: int = field(default=10_000, metadata={"help": "optimizer steps"})
    max_train_minutes: float | None = field(
        default=None, metadata={"help": "ends earlier, with the schedule finished"}
    )
    train_batch_size: int = field(default=32, metadata={"help": "rows in a micro-batch of one process"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "micro-batches in an optimizer step"})
    optimizer: str = field(default="adamw", metadata={"help": "adamw, or sgd with Nesterov's momentum"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    lr_warmup_steps: int = field(default=100, metadata={"help": "linear warm-up; a cosine to 0 follows"})
    weight_decay: float = field(default=0.01, metadata={"help": "of matrices; vectors have none"})
    adam_beta2: float = field(default=0.99, metadata={"help": "decay of AdamW's second moment"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    ema_decay: float = field(default=0.999, metadata={"help": "of the averaged weights that are evaluated and saved"})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, fp16 or bf16; default: what `accelerate launch` says"}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "trades time for memory"})
    validation_steps: int = field(default=500, metadata={"help": "optimizer steps between validations; 0: at the end"})
    checkpointing_steps: int = field(default=500, metadata={"help": "optimizer steps between checkpoints; 0: none"})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "newest checkpoints that are kept"})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": '"latest", "auto" (the latest, if there is one) or the folder of a checkpoint'}
    )
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"], metadata={"help": "trackers: tensorboard, wandb, ..., or none"}
    )
    project: str = field(default="text-diffusers", metadata={"help": "name of the project in the trackers"})
    num_cpu_threads: int | None = field(
        default=None, metadata={"help": "torch threads of a process; default: all; 0: whatever measures fastest"}
    )

    def __post_init__(self):
        positive = ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpoints_total_limit")
        for name in (*positive, "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}.")
        for name in ("seed", "lr_warmup_steps", "weight_decay", "validation_steps", "checkpointing_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)!r}.")
        if self.max_train_minutes is not None and not self.max_train_minutes > 0:
            raise ValueError(f"`max_train_minutes` must be None or above 0, got {self.max_train_minutes!r}.")
        for name in ("ema_decay", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)!r}.")
        if self.num_cpu_threads is not None and self.num_cpu_threads < 0:
            raise ValueError(f"`num_cpu_threads` must be None or at least 0, got {self.num_cpu_threads!r}.")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {sorted(OPTIMIZERS)}, got {self.optimizer!r}.")
        if self.mixed_precision not in (None, "no", "fp16", "bf16"):
            raise ValueError(f'`mixed_precision` must be "no", "fp16" or "bf16", got {self.mixed_precision!r}.')
        check_trackers(self.report_to)
        trained = ("model_index.json", "pytorch_lora_weights.safetensors", "autoencoder", CHECKPOINT_FOLDER)
        if any(Path(self.output_dir, name).exists() for name in trained) and not (
            self.overwrite_output_dir or self.resume_from_checkpoint
        ):
            raise ValueError(
                f"`output_dir`={self.output_dir!r} holds a trained model: choose another folder, "
                "`--resume_from_checkpoint latest`, or `--overwrite_output_dir true`."
            )


def changes(before: dict, now: dict) -> list[str]:
    """Options that make the rest of a resumed run another one than it would have been."""
    names = sorted(now.keys() & before.keys() - FREE_WHEN_RESUMING)
    return [f"`{name}` was {before[name]} and is {now[name]}" for name in names if before[name] != now[name]]


def note_training(config: TrainingConfig, accelerator: Any):
    """Leave in the output folder what the run was asked for and what it runs on, for the model card.

    Paths are noted by their last name: what stands before it tells of a machine. For the main process.
    """
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    note = {
        "recipe": recipe_name(config),
        "command": training_command(config),
        "options": {name: without_folders(value) for name, value in asdict(config).items()},
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "versions": versions,
    }
    Path(config.output_dir, NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def recipe_name(config: TrainingConfig) -> str:
    """Name of the training script that defines these options."""
    module = sys.modules[type(config).__module__]
    return Path(getattr(module, "__file__", None) or module.__name__).stem


def training_command(config: TrainingConfig) -> str:
    """The command that asks for these options, but for those of one sitting, by what differs from the defaults."""
    words = ["accelerate", "launch", f"training_scripts/{recipe_name(config)}.py"]
    for option in fields(config):
        value = getattr(config, option.name)
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if option.name in OF_A_SITTING or value is None or value == default:
            continue
        values = value if isinstance(value, list) else [without_folders(value)]
        words += [f"--{option.name}", *(str(one).lower() if isinstance(one, bool) else str(one) for one in values)]
    return shlex.join(words)


def without_folders(value: Any) -> Any:
    """The last name of a string that is a path here or an address; anything else as it is."""
    if not isinstance(value, str):
        return value
    address = "://" in value
    absolute = PureWindowsPath(value).is_absolute() or value.startswith(("/", "~", "."))
    if not (address or absolute or os.path.exists(value)):
        return value
    path = urlsplit(value).path if address else value
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def adamw(groups: list[dict], config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.adam_beta2), fused=fused)


def sgd(groups: list[dict], config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=SGD_MOMENTUM, nesterov=True, fused=fused)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


def make_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The configured optimizer of the parameters that require gradients; vectors do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return OPTIMIZERS[config.optimizer]([group for group in groups if group["params"]], config, fused)
