"""The training loop that every recipe uses: Accelerate, EMA, trackers, checkpoints, exact resume.

The loop knows no diffusion: a recipe gives it a model, rows of tokens and a function from rows to a loss. Data order,
times and noise are pure functions of (seed, step, row in the global batch), so neither the number of processes nor a
restart changes them.

Shapes: G rows of the global batch (over processes and accumulation), B rows of one micro-batch, L row length.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm.auto import tqdm

from text_diffusers.checkpoints import find_checkpoint, read_checkpoint, write_checkpoint
from text_diffusers.data import ShuffledRows
from text_diffusers.noise import row_noise

logger = get_logger(__name__)

TRACKED_EVERY = 10
TRACKER_FOLDER, CHECKPOINT_FOLDER = "logs", "checkpoints"


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
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    lr_warmup_steps: int = field(default=100, metadata={"help": "linear warm-up; a cosine to 0 follows"})
    weight_decay: float = field(default=0.01, metadata={"help": "of matrices; vectors have none"})
    adam_beta2: float = field(default=0.99, metadata={"help": "decay of the second moment"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    ema_decay: float = field(default=0.999, metadata={"help": "of the averaged weights that are evaluated and saved"})
    mixed_precision: str = field(default="no", metadata={"help": "no, fp16 or bf16"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "trades time for memory"})
    validation_steps: int = field(default=500, metadata={"help": "optimizer steps between validations; 0: at the end"})
    checkpointing_steps: int = field(default=500, metadata={"help": "optimizer steps between checkpoints; 0: none"})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "newest checkpoints that are kept"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": '"latest" or a checkpoint folder'})
    report_to: str = field(default="tensorboard", metadata={"help": 'Accelerate trackers, comma-separated, or "none"'})
    num_cpu_threads: int | None = field(
        default=None, metadata={"help": "torch threads of a process; default: all; 0: whatever measures fastest"}
    )

    def __post_init__(self):
        positive = ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpoints_total_limit")
        for name in (*positive, "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}.")
        for name in ("lr_warmup_steps", "weight_decay", "validation_steps", "checkpointing_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)!r}.")
        if self.max_train_minutes is not None and not self.max_train_minutes > 0:
            raise ValueError(f"`max_train_minutes` must be None or above 0, got {self.max_train_minutes!r}.")
        for name in ("ema_decay", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)!r}.")
        if self.num_cpu_threads is not None and self.num_cpu_threads < 0:
            raise ValueError(f"`num_cpu_threads` must be None or at least 0, got {self.num_cpu_threads!r}.")
        trained = Path(self.output_dir) / "model_index.json", Path(self.output_dir) / CHECKPOINT_FOLDER
        if any(path.exists() for path in trained) and not (self.overwrite_output_dir or self.resume_from_checkpoint):
            raise ValueError(
                f"`output_dir`={self.output_dir!r} holds a trained model: choose another folder, "
                "`--resume_from_checkpoint latest`, or `--overwrite_output_dir true`."
            )
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise ValueError(f'`mixed_precision` must be "no", "fp16" or "bf16", got {self.mixed_precision!r}.')


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """An Accelerator, and on a CPU all threads: `accelerate launch` would leave a process one."""
    log_with: Any = [name for name in config.report_to.split(",") if name and name != "none"]
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=log_with or None, project_dir=config.output_dir
    )
    if accelerator.device.type == "cpu":
        torch.set_num_threads(config.num_cpu_threads or most_threads(accelerator))
    accelerator.print(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
        f"{torch.get_num_threads()} CPU thread(s) each, mixed precision: {config.mixed_precision}"
    )
    return accelerator


def most_threads(accelerator: Accelerator) -> int:
    """CPU threads that each process on this machine can have to itself."""
    return max(1, (os.cpu_count() or 1) // accelerator.num_processes)


LossFunction = Callable[[torch.nn.Module, dict[str, Tensor], Tensor, list[torch.Generator]], Tensor]


class ThreadTuner:
    """Sets the number of torch threads to the one with the fastest real steps, tried anew every so often.

    Small models are often faster on few threads, and on a busy machine on one. The number changes the last digits of
    the results.
    """

    steps_of_a_trial, steps_between_trials = 4, 200

    def __init__(self, most: int):
        self.candidates = [2**power for power in range(most.bit_length()) if 2**power <= most]
        self.seconds: dict[int, list[float]] = {}
        self.steps = 0

    def before_step(self):
        trial, step = divmod(self.steps % self.steps_between_trials, self.steps_of_a_trial)
        if trial < len(self.candidates):
            if trial == step == 0:
                self.seconds = {count: [] for count in self.candidates}
            torch.set_num_threads(self.candidates[trial])
        elif trial == len(self.candidates) and step == 0:
            torch.set_num_threads(min(self.candidates, key=lambda count: median(self.seconds[count])))
        self.steps += 1

    def after_step(self, seconds: float):
        if len(self.seconds[torch.get_num_threads()]) < self.steps_of_a_trial:
            self.seconds[torch.get_num_threads()].append(seconds)


class TrainingLoop:
    """Trains `model` on `rows`.

    Args:
        config: the options.
        accelerator: from `make_accelerator`.
        model: a diffusers model; prepared here.
        loss_function: `(model, batch, uniform, generators) -> loss`, a scalar: the sum over the tokens of the
            micro-batch. `uniform` (B,) are stratified over the global batch; there is one generator a row.
        rows: order of the training rows, with G rows a step.
        validate: `model -> {name: number}`, called with the averaged weights on the main process.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: Any,
        loss_function: LossFunction,
        rows: ShuffledRows,
        validate: Callable[[Any], dict[str, float]] | None = None,
    ):
        self.config, self.rows = config, rows
        self.accelerator: Any = accelerator
        self.loss_function, self.validate = loss_function, validate
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.unwrapped = model
        fused = accelerator.device.type in ("cpu", "cuda")
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.adam_beta2), fused=fused)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = EMAModel(model.parameters(), decay=config.ema_decay, foreach=True)
        self.step, self.elapsed = 0, 0.0

    @property
    def progress(self) -> float:
        """Share of the budget, steps or minutes, that is used up: 0 to 1."""
        config = self.config
        minutes = 0.0 if config.max_train_minutes is None else self.elapsed / 60 / config.max_train_minutes
        return min(1.0, max(self.step / config.max_train_steps, minutes))

    def run(self) -> list[float]:
        """Train to the end of the budget; returns the loss of every step taken here, in nats per token."""
        self._open_output()
        if self.config.resume_from_checkpoint:
            self.load()
        losses: list[float] = []
        steps = None if self.config.max_train_minutes else self.config.max_train_steps
        bar = tqdm(total=steps, initial=self.step, disable=not self.accelerator.is_main_process)
        measured = self.config.num_cpu_threads == 0 and self.accelerator.device.type == "cpu"
        tuner = ThreadTuner(most_threads(self.accelerator)) if measured else None
        while self.progress < 1:
            if tuner:
                tuner.before_step()
            started = time.perf_counter()
            loss, gradient_norm, tokens = self.train_step()
            seconds = time.perf_counter() - started
            if tuner:
                tuner.after_step(seconds)
            losses.append(loss)
            self.elapsed += self._agreed(seconds) if self.config.max_train_minutes else seconds
            self.step += 1
            bar.update()
            speed = f"{tokens / seconds:,.0f}"
            bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=speed, budget=f"{self.progress:.0%}", refresh=False)
            if self.step % TRACKED_EVERY == 0:
                rates = {"learning_rate": self.learning_rate(), "tokens_per_second": tokens / seconds}
                self.accelerator.log({"loss": loss, "gradient_norm": gradient_norm, **rates}, step=self.step)
            if self._due(self.config.validation_steps):
                self.run_validation()
            if self._due(self.config.checkpointing_steps):
                self.save()
        bar.close()
        self.run_validation()
        if self.config.checkpointing_steps:
            self.save()
        return losses

    def _open_output(self):
        """Clear what an overwritten run left, now that data and model are known to be good, and start the trackers."""
        config = self.config
        if self.accelerator.is_main_process:
            Path(config.output_dir).mkdir(parents=True, exist_ok=True)
            if config.overwrite_output_dir and not config.resume_from_checkpoint:
                for old in (CHECKPOINT_FOLDER, TRACKER_FOLDER):
                    shutil.rmtree(Path(config.output_dir, old), ignore_errors=True)
        settings = {k: v for k, v in asdict(config).items() if isinstance(v, (int, float, str, bool))}
        self.accelerator.init_trackers(TRACKER_FOLDER, config=settings)

    def train_step(self) -> tuple[float, float, int]:
        """One optimizer step; returns the loss in nats per token, the gradient norm and the number of tokens.

        The loss is divided by the tokens of the global batch, however they fall on processes and micro-batches.
        """
        config, accelerator = self.config, self.accelerator
        self.model.train()
        torch.manual_seed(config.seed + 1_000_003 * self.step + accelerator.process_index)  # dropout
        uniform, generators = row_noise(config.seed, self.step, self.rows.rows_per_step)
        micro_batches = [self._rows(index) for index in range(config.gradient_accumulation_steps)]
        batches = [self.rows.batch(self.step, wanted) for wanted in micro_batches]
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        tokens = int(accelerator.reduce(torch.tensor(tokens, device=accelerator.device)))

        total = torch.zeros((), device=accelerator.device)
        for index, (wanted, batch) in enumerate(zip(micro_batches, batches, strict=True)):
            batch = {name: column.to(accelerator.device) for name, column in batch.items()}
            noise = uniform[list(wanted)].to(accelerator.device), [generators[row] for row in wanted]
            with self._synchronised(index == len(batches) - 1):
                with accelerator.autocast():
                    loss_sum = self.loss_function(self.model, batch, *noise)
                accelerator.backward(loss_sum * accelerator.num_processes / tokens)  # gradients are averaged
            total += loss_sum.detach()
        loss = float(accelerator.reduce(total)) / tokens
        gradient_norm = float(accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)) and config.mixed_precision != "fp16":
            raise FloatingPointError(
                f"Step {self.step}: loss {loss}, gradient norm {gradient_norm}; the weights were not changed. "
                "Lower `learning_rate`, or resume from the last checkpoint."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unwrapped.parameters())
        return loss, gradient_norm, tokens

    def learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / max(1, self.config.lr_warmup_steps))
        return self.config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * self.progress))

    def run_validation(self):
        if self.validate is not None and self.accelerator.is_main_process:
            with self.averaged_weights():
                metrics = self.validate(self.unwrapped)
            self.accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, step=self.step)
            described = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            tqdm.write(f"step {self.step}: {described}")
        self.accelerator.wait_for_everyone()

    @contextmanager
    def averaged_weights(self) -> Iterator[Any]:
        """The model with its averaged weights and in evaluation mode; afterwards it is as before."""
        self.ema.store(self.unwrapped.parameters())
        self.ema.copy_to(self.unwrapped.parameters())
        try:
            yield self.unwrapped.eval()
        finally:
            self.ema.restore(self.unwrapped.parameters())
            self.unwrapped.train()

    def _rows(self, micro_batch: int) -> range:
        """This process's rows of the global batch: spread over the strata, so that each micro-batch sees all times."""
        groups = self.config.gradient_accumulation_steps * self.accelerator.num_processes
        first = micro_batch * self.accelerator.num_processes + self.accelerator.process_index
        return range(first, self.rows.rows_per_step, groups)

    def _synchronised(self, last: bool):
        """Gradients are exchanged between processes once a step, with the last micro-batch."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def _agreed(self, seconds: float) -> float:
        """The slowest process's time, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        return float(self.accelerator.gather(torch.tensor([seconds], device=self.accelerator.device)).max())

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0 and self.progress < 1

    @property
    def checkpoint_folder(self) -> Path:
        return Path(self.config.output_dir) / CHECKPOINT_FOLDER

    def save(self):
        """Write a checkpoint of the weights, their average, the optimizer and the step."""
        if self.accelerator.is_main_process:
            named = dict(self.unwrapped.named_parameters())
            moments = {
                f"{name}/{key}": value
                for name, parameter in named.items()
                for key, value in self.optimizer.optimizer.state[parameter].items()
            }
            tensors = {
                "model": named,
                "ema": dict(zip(named, self.ema.shadow_params, strict=True)),
                "optimizer": moments,
            }
            state = {
                "step": self.step,
                "elapsed": self.elapsed,
                "ema_step": self.ema.optimization_step,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "config": asdict(self.config),
            }
            write_checkpoint(self.checkpoint_folder, self.step, tensors, state, self.config.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def load(self):
        """Restore the state of `resume_from_checkpoint`; the run then continues as if it had not stopped."""
        path = find_checkpoint(self.checkpoint_folder, str(self.config.resume_from_checkpoint))
        tensors, state = read_checkpoint(path, self.accelerator.device)
        for name in ("seed", "train_batch_size", "gradient_accumulation_steps", "max_train_steps"):
            before, now = state["config"][name], getattr(self.config, name)
            if before != now:
                logger.warning(f"`{name}` was {before} and is {now}: the run continues, but not as it would have.")
        named = dict(self.unwrapped.named_parameters())
        with torch.no_grad():
            for name, shadow in zip(named, self.ema.shadow_params, strict=True):
                named[name].copy_(tensors["model"][name])
                shadow.copy_(tensors["ema"][name])
        for key, value in tensors["optimizer"].items():
            name, moment = key.rsplit("/", 1)
            self.optimizer.optimizer.state[named[name]][moment] = value
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.elapsed, self.ema.optimization_step = state["step"], state["elapsed"], state["ema_step"]
        self.accelerator.print(f"Resumed from {path} at step {self.step}")
