"""Options of every training recipe, what a run records of them, and the optimizers among which they choose.

An option is a field of a dataclass and stands nowhere else. What is known of it is marked in the metadata of its
field, beside the help:

| mark | says |
|---|---|
| `limit` | a key of `LIMITS`: the range of its value |
| `one_of` | the values among which it chooses |
| `part_of` | what it is a part of, one name or several: "pipeline" for what a saved pipeline has settled |
| `not_for` | "language_model": what such a model cannot be trained with |
| `may_change_on_resume` | True if the next steps compute the same whatever it is, but for rounding |
| `of_one_start` | True if it says how one command starts, and nothing of what is trained |
"""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import HfArgumentParser

from text_diffusers.common.validation import closest_name, require
from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER
from text_diffusers.training.tracking import check_trackers

MARKS = ("limit", "one_of", "part_of", "not_for", "may_change_on_resume", "of_one_start")
LIMITS = {
    "above 0": lambda value: value > 0,
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "between 0 and 1": lambda value: 0 <= value <= 1,
}

SGD_MOMENTUM = 0.9

# The warm-up of the learning rate: so many steps, and where nothing says how many, at most this share of the budget
WARMUP_STEPS = 100
WARMUP_SHARE = 0.1

# The record of a run, and the libraries whose versions it notes
NOTE_FILE = "training_config.json"
LIBRARIES = (
    "text-diffusers",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "peft",
)

# Any of these in a folder shows that a model was trained there.
TRACES_OF_TRAINING = (
    "model_index.json",
    "config.json",
    "pytorch_lora_weights.safetensors",
    "autoencoder",
    "denoiser",
    CHECKPOINT_FOLDER,
)


def adamw(groups: list[dict], config: "TrainingConfig", fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(0.9, config.adam_beta2), fused=fused
    )


def sgd(groups: list[dict], config: "TrainingConfig", fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=SGD_MOMENTUM, nesterov=True, fused=fused
    )


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


def option(default: Any = MISSING, help: str = "", **marks: Any) -> Any:
    """A field of a dataclass of options, with its help on the command line and its marks."""
    # argparse formats help texts, in which a percent sign is written twice.
    metadata = {"help": help.replace("%", "%%")} | marks
    # A list is copied for each instance, as dataclasses demand.
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainingConfig:
    """Options that all recipes share; a recipe's own dataclass extends it.

    Raises:
        ValueError: if a value is outside its range, or `output_dir` holds a trained model.

    Example:
        >>> from text_diffusers.training.config import TrainingConfig
        >>> TrainingConfig(output_dir="runs/mine", max_train_steps=100, report_to=["none"]).learning_rate
        0.001
        >>> TrainingConfig(output_dir="runs/mine", ema_decay=1.0, report_to=["none"])
        Traceback (most recent call last):
        ValueError: `ema_decay` must be in [0, 1), got 1.0.
    """

    # Where a run leaves what it makes, and what it repeats
    output_dir: str = option(
        help="folder of the saved pipeline, its checkpoints and logs", may_change_on_resume=True
    )
    overwrite_output_dir: bool = option(
        False, "train anew over what is in the folder", may_change_on_resume=True, of_one_start=True
    )
    seed: int = option(0, "of the weights, the data order and the noise", limit="at least 0")

    # Budget
    max_train_steps: int = option(10_000, "optimizer steps", limit="above 0")
    max_train_minutes: float | None = option(
        None, "ends earlier, with the schedule finished", limit="above 0"
    )

    # Rows of a step: these two times the number of processes
    train_batch_size: int = option(
        32, "rows in a micro-batch of one process", limit="above 0", may_change_on_resume=True
    )
    gradient_accumulation_steps: int = option(
        1, "micro-batches in an optimizer step", limit="above 0", may_change_on_resume=True
    )

    # Optimizer
    optimizer: str = option("adamw", "adamw, or sgd with Nesterov's momentum", one_of=OPTIMIZERS)
    learning_rate: float = option(1e-3, "peak learning rate", limit="above 0")
    lr_warmup_steps: int = option(
        WARMUP_STEPS, "linear warm-up; a cosine to 0 follows", limit="at least 0"
    )
    weight_decay: float = option(0.01, "of matrices; vectors have none", limit="at least 0")
    adam_beta2: float = option(0.99, "decay of AdamW's second moment", limit="in [0, 1)")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", limit="above 0")
    ema_decay: float = option(
        0.999, "of the averaged weights that are evaluated and saved", limit="in [0, 1)"
    )

    # Speed and memory
    mixed_precision: str | None = option(
        None,
        "no, fp16 or bf16; default: what `accelerate launch` says",
        one_of=("no", "fp16", "bf16"),
    )
    gradient_checkpointing: bool = option(
        False, "trades time for memory", may_change_on_resume=True
    )

    # Validation, checkpoints and resuming
    validation_steps: int = option(
        500,
        "optimizer steps between validations; 0: at the end",
        limit="at least 0",
        may_change_on_resume=True,
    )
    checkpointing_steps: int = option(
        500,
        "optimizer steps between checkpoints; 0: none",
        limit="at least 0",
        may_change_on_resume=True,
    )
    checkpoints_total_limit: int = option(
        2, "newest checkpoints that are kept", limit="above 0", may_change_on_resume=True
    )
    resume_from_checkpoint: str | None = option(
        None,
        '"latest", "auto" (the latest, if there is one) or the folder of a checkpoint',
        may_change_on_resume=True,
        of_one_start=True,
    )
    resume_with_other_data: bool = option(
        False,
        "resume though the training rows are others than those of the checkpoint",
        may_change_on_resume=True,
        of_one_start=True,
    )

    # Trackers and process
    report_to: list[str] = option(
        ["tensorboard"], "trackers: tensorboard, wandb, ..., or none", may_change_on_resume=True
    )
    project: str = option(
        "text-diffusers", "name of the project in the trackers", may_change_on_resume=True
    )
    num_cpu_threads: int | None = option(
        None,
        "torch threads of a process; default: all; 0: whatever measures fastest",
        limit="at least 0",
        may_change_on_resume=True,
    )

    def __post_init__(self):
        check_options(self)
        check_trackers(self.report_to)

        # A trained model is not written over by mistake.
        trained = any(Path(self.output_dir, name).exists() for name in TRACES_OF_TRAINING)
        if trained and not (self.overwrite_output_dir or self.resume_from_checkpoint):
            raise ValueError(
                f"`output_dir`={self.output_dir!r} holds a trained model: choose another folder, "
                "`--resume_from_checkpoint latest`, or `--overwrite_output_dir true`."
            )


class OptionParser(HfArgumentParser):
    """The command line of dataclasses of options: `HfArgumentParser`, which would hand argparse their marks too.

    A word that belongs to no option is refused by its name, with the option that was probably meant.

    Example:
        >>> from text_diffusers.training.config import OptionParser, TrainingConfig
        >>> words = ["--output_dir", "runs/mine", "--report_to", "none", "--learning_rate", "3e-4"]
        >>> OptionParser(TrainingConfig).parse_args_into_dataclasses(words)[0].learning_rate
        0.0003
    """

    def add_argument(self, *names: str, **settings: Any):
        # Marks are for this package; argparse would take them for options of its own.
        known_to_argparse = {name: value for name, value in settings.items() if name not in MARKS}
        return super().add_argument(*names, **known_to_argparse)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.refuse_unknown_options(args)
        return super().parse_args(args, namespace)

    def parse_args_into_dataclasses(
        self, args: Any = None, return_remaining_strings: bool = False, **settings: Any
    ) -> tuple[Any, ...]:
        if return_remaining_strings:
            return super().parse_args_into_dataclasses(args, True, **settings)

        # Before argparse, which would first miss the required option whose name is mistyped
        self.refuse_unknown_options(args)
        *parsed, remaining = super().parse_args_into_dataclasses(args, True, **settings)
        if remaining:
            raise ValueError(
                f"`{remaining[0]}` belongs to no option; put values with blanks in quotes."
            )
        return (*parsed,)

    def refuse_unknown_options(self, words: Sequence[str] | None = None):
        """Refuse an option that is not there; a beginning of one stands for it, as argparse has it.

        Args:
            words: of the command line; by default those of this process.

        Raises:
            ValueError: naming the option, and the one that was probably meant.
        """
        known = [*self._option_string_actions]
        for word in sys.argv[1:] if words is None else words:
            name = word.partition("=")[0]
            is_option = name.startswith("--") and name != "--"
            if not is_option or any(option.startswith(name) for option in known):
                continue

            meant = closest_name(name, known)
            hint = "`--help` shows all of them." if meant is None else f"did you mean `{meant}`?"
            raise ValueError(f"`{name}` is no option here; {hint}")


def marked_options(config: Any, mark: str, value: Any = True) -> list[str]:
    """Names of the options, of a dataclass or one of its instances, whose mark is `value` or has it among others.

    Example:
        >>> from text_diffusers.training.config import TrainingConfig, marked_options
        >>> marked_options(TrainingConfig, "of_one_start")
        ['overwrite_output_dir', 'resume_from_checkpoint', 'resume_with_other_data']
    """
    names = []
    for option in fields(config):
        marked = option.metadata.get(mark)
        # A mark has one value, or several in a tuple.
        if marked == value or (isinstance(marked, tuple) and value in marked):
            names.append(option.name)
    return names


def check_options(config: Any):
    """Refuse values that the marks `limit` and `one_of` do not allow; `None` is allowed where it is the default.

    Raises:
        ValueError: naming the option, what it may be and what it is.
    """
    for option in fields(config):
        value = getattr(config, option.name)
        if value is None and option.default is None:
            continue

        # 1. The range of a number
        limit = option.metadata.get("limit")
        if limit is not None and not LIMITS[limit](value):
            none = "None or " if option.default is None else ""
            raise ValueError(f"`{option.name}` must be {none}{limit}, got {value!r}.")

        # 2. The choices of a name
        choices = option.metadata.get("one_of")
        if choices is not None and value not in choices:
            limit = f"one of {sorted(choices)}"
            require(False, option.name, limit, value, choices)


def refuse_parts_of_a_pipeline(
    config: Any,
    what: str = "pipeline",
    option: str = "model_name_or_path",
    allowed: Collection[str] = (),
):
    """Refuse options that say how a pipeline, or `what`, is made where a saved one, the `option`, is trained with.

    Args:
        allowed: names of such options that the saved one has not settled.

    Raises:
        ValueError: naming the first such option.
    """
    # An option at its default was not asked for, and may be another one in the pipeline.
    defaults = {part.name: part.default for part in fields(config)}
    for name in marked_options(config, "part_of", "pipeline"):
        if name in allowed:
            continue
        if getattr(config, option) and getattr(config, name) != defaults[name]:
            raise ValueError(f"`{name}` belongs to the {what} in `{option}`; leave it out.")


def changes(before: dict[str, Any], config: Any, rows_per_step: int) -> list[str]:
    """Options that make the rest of a resumed run another one than it would have been.

    Args:
        before: the options of the run so far, with its `rows_per_step`.
    """
    # Options that only one of the two versions of the program knows cannot be compared.
    now = asdict(config) | {"rows_per_step": rows_per_step}
    names = now.keys() & before.keys() - {*marked_options(config, "may_change_on_resume")}
    return [
        f"`{name}` was {before[name]} and is {now[name]}"
        for name in sorted(names)
        if before[name] != now[name]
    ]


def note_training(config: TrainingConfig, accelerator: Any):
    """Leave in the output folder what the run was asked for and what it runs on, for the model card.

    Paths are noted by their last name: what stands before it tells of a machine. For the main process.
    """
    # 1. Versions of what is installed
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)

    # 2. Options, command and machine
    note = {
        "recipe": recipe_name(config),
        "command": training_command(config),
        "options": {name: without_folders(value) for name, value in asdict(config).items()},
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "versions": versions,
    }
    Path(config.output_dir, NOTE_FILE).write_text(
        json.dumps(note, indent=2) + "\n", encoding="utf-8"
    )


def recipe_name(config: TrainingConfig) -> str:
    """Name of the training script that defines these options."""
    # A script that is run is the module `__main__`, whose file has the name.
    module = sys.modules[type(config).__module__]
    return Path(getattr(module, "__file__", None) or module.__name__).stem


def training_command(config: TrainingConfig) -> str:
    """The command that asks for these options, by what differs from the defaults."""
    of_one_start = marked_options(config, "of_one_start")
    words = ["accelerate", "launch", f"training_scripts/{recipe_name(config)}.py"]
    for option in fields(config):
        value = getattr(config, option.name)
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if option.name in of_one_start or value is None or value == default:
            continue

        # As the command line reads it: lists word by word, truth values in lower case.
        words.append(f"--{option.name}")
        if isinstance(value, list):
            words += map(str, value)
        else:
            words.append(
                str(value).lower() if isinstance(value, bool) else str(without_folders(value))
            )
    return shlex.join(words)


def without_folders(value: Any) -> Any:
    """The last name of a string that is a path here or an address; anything else as it is.

    Example:
        >>> from text_diffusers.training.config import without_folders
        >>> without_folders("/home/jane/texts/mine.txt"), without_folders("linear"), without_folders(3)
        ('mine.txt', 'linear', 3)
    """
    if not isinstance(value, str):
        return value

    address = "://" in value
    absolute = PureWindowsPath(value).is_absolute() or value.startswith(("/", "~", "."))
    if not (address or absolute or os.path.exists(value)):
        return value

    # Of an address, neither user, host nor query is kept.
    path = urlsplit(value).path if address else value
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def make_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The configured optimizer of the parameters that require gradients; vectors do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]

    groups = []
    if matrices:
        groups.append({"params": matrices, "weight_decay": config.weight_decay})
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})

    # One kernel for all parameters, on devices that have it.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return OPTIMIZERS[config.optimizer](groups, config, fused)
