"""The training loop that every recipe uses: Accelerate, EMA, trackers, checkpoints, exact resume.

The loop knows no diffusion: a recipe gives it a model, rows of tokens and a function from rows to a loss. Data order,
times and noise are pure functions of (seed, step, row in the global batch), so neither the number of processes nor a
restart changes them.

Shapes: G rows of the global batch (over processes and accumulation), B rows of one micro-batch, L row length.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from text_diffusers.data import ShuffledRows

logger = get_logger(__name__)

STATE_FILE = "state.json"
TRACKED_EVERY = 10


@dataclass
class TrainingConfig:
    """Options that all recipes share; a recipe's own dataclass extends it."""

    output_dir: str = field(metadata={"help": "folder of the saved pipeline, its checkpoints and logs"})
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
    num_cpu_threads: int | None = field(default=None, metadata={"help": "torch threads of a process; default: all"})

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
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise ValueError(f'`mixed_precision` must be "no", "fp16" or "bf16", got {self.mixed_precision!r}.')


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """An Accelerator with its trackers, and on a CPU all threads: `accelerate launch` would leave a process one."""
    log_with: Any = [name for name in config.report_to.split(",") if name and name != "none"]
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with=log_with, project_dir=config.output_dir)
    if accelerator.device.type == "cpu":
        default = max(1, (os.cpu_count() or 1) // accelerator.num_processes)
        torch.set_num_threads(config.num_cpu_threads or default)
    if accelerator.is_main_process:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in asdict(config).items() if isinstance(v, (int, float, str, bool))}
    accelerator.init_trackers("logs", config=settings)
    accelerator.print(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
        f"{torch.get_num_threads()} CPU thread(s) each, mixed precision: {config.mixed_precision}"
    )
    return accelerator


def row_noise(seed: int, step: int, num_rows: int) -> tuple[Tensor, list[torch.Generator]]:
    """Stratified uniform numbers (G,) in [0, 1), one a stratum of width 1/G, and a generator for each row."""
    source = torch.Generator().manual_seed((seed << 32) + step)
    strata = torch.arange(num_rows, dtype=torch.float64)
    uniform = (strata + torch.rand(num_rows, generator=source, dtype=torch.float64)) / num_rows
    seeds = torch.randint(2**62, (num_rows,), generator=source)
    return uniform, [torch.Generator().manual_seed(int(row_seed)) for row_seed in seeds]


def uniform_times(uniform: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """`(uniform, weights)`: numbers (B,) in [0, 1) as they are, each of weight 1."""
    return uniform, torch.ones_like(uniform)


def log_uniform_times(uniform: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """`(times, weights)` (B,) that average any loss as uniform numbers would, but as often below 0.1 as above.

    A masked token weighs 1 / t in the bound of the absorbing kernel, and the rows that weigh most hold the fewest of
    them. With these times all masked tokens weigh the same, which leaves the expectation as it is and takes out most
    of the variance of the gradient. The interval (0, first] is one point, as in `training_timesteps`.
    """
    mass = 1 - math.log(first)
    times = first * torch.exp((uniform * mass - 1).clamp(min=0))
    return times, mass * times


TIME_SAMPLINGS = {"uniform": uniform_times, "log_uniform": log_uniform_times}

LossFunction = Callable[[torch.nn.Module, dict[str, Tensor], Tensor, list[torch.Generator]], tuple[Tensor, Tensor]]


class TrainingLoop:
    """Trains `model` on `rows`.

    Args:
        config: the options.
        accelerator: from `make_accelerator`.
        model: a diffusers model; prepared here.
        loss_function: `(model, batch, uniform, generators) -> (loss, tokens)`, both scalars: the loss summed over the
            tokens of the micro-batch, and their number. `uniform` (B,) are stratified over the global batch.
        rows: order of the training rows, with G rows a step.
        validate: `(model, finished) -> {name: number}`, called with the averaged weights on the main process.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: Any,
        loss_function: LossFunction,
        rows: ShuffledRows,
        validate: Callable[[Any, bool], dict[str, float]] | None = None,
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
        if self.config.resume_from_checkpoint:
            self.load()
        losses: list[float] = []
        bar = tqdm(total=self.config.max_train_steps, initial=self.step, disable=not self.accelerator.is_main_process)
        while self.progress < 1:
            started = time.perf_counter()
            loss, gradient_norm, tokens = self.train_step()
            losses.append(loss)
            seconds = time.perf_counter() - started
            self.elapsed += self._agreed(seconds)
            self.step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{tokens / seconds:,.0f}", refresh=False)
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
                    loss_sum, _ = self.loss_function(self.model, batch, *noise)
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
                metrics = self.validate(self.unwrapped, self.progress >= 1)
            self.accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, step=self.step)
            described = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            tqdm.write(f"step {self.step}: {described}")
        self.accelerator.wait_for_everyone()

    def averaged_weights(self) -> "AveragedWeights":
        """A context in which the model has its averaged weights and is in evaluation mode."""
        return AveragedWeights(self.unwrapped, self.ema)

    def _rows(self, micro_batch: int) -> range:
        """This process's rows of the global batch: spread over the strata, so that each micro-batch sees all times."""
        groups = self.config.gradient_accumulation_steps * self.accelerator.num_processes
        first = micro_batch * self.accelerator.num_processes + self.accelerator.process_index
        return range(first, self.rows.rows_per_step, groups)

    def _synchronised(self, last: bool):
        return torch.enable_grad() if last else self.accelerator.no_sync(self.model)

    def _agreed(self, seconds: float) -> float:
        """The slowest process's time, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        return float(self.accelerator.gather(torch.tensor([seconds], device=self.accelerator.device)).max())

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0 and self.progress < 1

    @property
    def checkpoint_folder(self) -> Path:
        return Path(self.config.output_dir) / "checkpoints"

    def save(self):
        """Write a checkpoint beside the older ones, in safetensors and JSON, rename it, then drop the oldest."""
        if self.accelerator.is_main_process:
            target = self.checkpoint_folder / f"step-{self.step:08d}"
            draft = self.checkpoint_folder / f".draft-{self.step:08d}"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            for name, tensors in self._tensors().items():
                save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, draft / name)
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            state = {"step": self.step, "elapsed": self.elapsed, "ema_step": self.ema.optimization_step}
            (draft / STATE_FILE).write_text(json.dumps(state | {"scaler": scaler, "config": asdict(self.config)}))
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
            for old in sorted(self.checkpoint_folder.glob("step-*"))[: -self.config.checkpoints_total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load(self):
        """Restore the state of `resume_from_checkpoint`; the run then continues as if it had not stopped."""
        wanted = str(self.config.resume_from_checkpoint)
        found = sorted(self.checkpoint_folder.glob("step-*")) if wanted == "latest" else [Path(wanted)]
        if not found or not (found[-1] / STATE_FILE).is_file():
            raise FileNotFoundError(f"`resume_from_checkpoint`={wanted!r}: no checkpoint in {self.checkpoint_folder}.")
        state = json.loads((found[-1] / STATE_FILE).read_text())
        for name in ("seed", "train_batch_size", "gradient_accumulation_steps"):
            if state["config"][name] != getattr(self.config, name):
                logger.warning(
                    f"`{name}` was {state['config'][name]} and is {getattr(self.config, name)}: not an exact resume."
                )
        stored = {name: load_file(found[-1] / name, device=str(self.accelerator.device)) for name in self._files}
        named = dict(self.unwrapped.named_parameters())
        with torch.no_grad():
            for name, shadow in zip(named, self.ema.shadow_params, strict=True):
                named[name].copy_(stored["model.safetensors"][name])
                shadow.copy_(stored["ema.safetensors"][name])
        for key, value in stored["optimizer.safetensors"].items():
            name, statistic = key.rsplit("/", 1)
            self.optimizer.optimizer.state[named[name]][statistic] = value
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.elapsed, self.ema.optimization_step = state["step"], state["elapsed"], state["ema_step"]
        self.accelerator.print(f"Resumed from {found[-1]} at step {self.step}")

    _files = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file of a checkpoint, by parameter name."""
        named = dict(self.unwrapped.named_parameters())
        state = self.optimizer.optimizer.state
        statistics = {f"{name}/{key}": value for name, p in named.items() for key, value in state[p].items()}
        averaged = dict(zip(named, self.ema.shadow_params, strict=True))
        return dict(zip(self._files, (named, averaged, statistics), strict=True))


class AveragedWeights:
    """Context manager: swaps in the averaged weights and evaluation mode, and puts the trained ones back."""

    def __init__(self, model: Any, ema: EMAModel):
        self.model, self.ema = model, ema

    def __enter__(self) -> Any:
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        return self.model.eval()

    def __exit__(self, *_):
        self.ema.restore(self.model.parameters())
        self.model.train()
