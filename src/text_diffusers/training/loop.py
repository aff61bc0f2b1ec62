"""The training loop that every recipe uses: Accelerate, EMA, trackers, crash-safe checkpoints, exact resume.

The loop knows no diffusion: a recipe gives it a model, rows of tokens and a function from rows to a loss. Data order,
times and noise are pure functions of (seed, step, row in the global batch), so neither the number of processes nor a
restart changes them.

Shapes: G rows of the global batch (over processes and accumulation), B rows of one micro-batch, L row length.
"""

import math
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from tqdm.auto import tqdm

from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.rows import ShuffledRows, unknown_tokens
from text_diffusers.training.checkpoints import (
    CHECKPOINT_FOLDER,
    check_room,
    find_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from text_diffusers.training.config import TrainingConfig, changes, make_optimizer, note_training
from text_diffusers.training.runtime import TRACKER_FOLDER, StopRequest, ThreadTuner, end_training, most_threads
from text_diffusers.training.state import make_state
from text_diffusers.training.tracking import CURVES_FILE, Curves, finite, log_model, log_texts, start_trackers

logger = get_logger(__name__)

TRACKED_EVERY = 10

LossFunction = Callable[[torch.nn.Module, dict[str, Tensor], Tensor, list[torch.Generator]], Tensor]


class TrainingLoop:
    """Trains the parameters of `model` that require gradients, on `rows`.

    Args:
        config: the options.
        accelerator: from `make_accelerator`.
        model: a diffusers model; prepared here.
        loss_function: `(model, batch, uniform, generators) -> loss`, a scalar: the sum over the tokens of the
            micro-batch. `uniform` (B,) are stratified over the global batch; there is one generator a row.
        rows: order of the training rows, with G rows a step.
        evaluate: `model -> {name: number}`, on all processes; "bound" is compared with and without averaging.
        write: `model -> texts`, on all processes, for the trackers' table of samples.
        on_validation: `(step, metrics)`, on all processes after each validation; may raise to end the run. The metrics
            hold the `progress` too, the share of the budget that is used up.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: Any,
        loss_function: LossFunction,
        rows: ShuffledRows,
        evaluate: Callable[[Any], dict[str, float]] | None = None,
        write: Callable[[Any], list[str]] | None = None,
        on_validation: Callable[[int, dict[str, float]], None] | None = None,
    ):
        self.config, self.rows = config, rows
        self.accelerator: Any = accelerator
        self.loss_function, self.evaluate, self.write = loss_function, evaluate, write
        self.on_validation = on_validation
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        architecture, settings = type(model), dict(model.config)  # FSDP2 gives the model a class of its own
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(model, config))
        self.unwrapped: Any = accelerator.unwrap_model(self.model)
        self.state = make_state(
            accelerator,
            self.unwrapped,
            self.optimizer,
            config.ema_decay,
            build=lambda: architecture.from_config(settings).to(accelerator.device),
        )
        self.micro_batch_size = config.train_batch_size
        self.step, self.elapsed, self.saved_step = 0, 0.0, -1
        self.run_id = secrets.token_hex(4)
        self.curves = Curves(Path(config.output_dir, CURVES_FILE))
        self.recent_losses: list[float] = []  # since the last line of the curves

    @property
    def progress(self) -> float:
        """Share of the budget, steps or minutes, that is used up: 0 to 1."""
        config = self.config
        minutes = 0.0 if config.max_train_minutes is None else self.elapsed / 60 / config.max_train_minutes
        return min(1.0, max(self.step / config.max_train_steps, minutes))

    @property
    def checkpoint_folder(self) -> Path:
        return Path(self.config.output_dir) / CHECKPOINT_FOLDER

    def run(self) -> list[float]:
        """Train to the end of the budget; returns the loss of every step taken here, in nats per token.

        Raises:
            SystemExit: with 128 plus the number of a signal, SIGTERM or Ctrl-C, once a checkpoint is saved.
            FloatingPointError: if a loss or a gradient is not finite; the weights are those before the step.
        """
        self._open_output()
        if self._missed_validation():
            self.run_validation()
        losses: list[float] = []
        steps = None if self.config.max_train_minutes else self.config.max_train_steps
        measured = self.config.num_cpu_threads == 0 and self.accelerator.device.type == "cpu"
        tuner = ThreadTuner(most_threads(self.accelerator)) if measured else None
        silent = not self.accelerator.is_main_process
        with StopRequest() as stop, tqdm(total=steps, initial=self.step, disable=silent) as bar:
            while self.progress < 1:
                if tuner:
                    tuner.before_step()
                started = time.perf_counter()
                loss, gradient_norm, tokens = self.train_step()
                seconds = time.perf_counter() - started
                if tuner:
                    tuner.after_step(seconds)
                losses.append(loss)
                self.recent_losses.append(loss)
                rates = {"learning_rate": self.learning_rate(), "tokens_per_second": tokens / seconds}
                seconds, signal_number = self._agreed(seconds, stop.signal_number())
                self.elapsed += seconds
                self.step += 1
                bar.update()
                speed = f"{rates['tokens_per_second']:,.0f}"
                bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=speed, budget=f"{self.progress:.0%}", refresh=False)
                if self.step % TRACKED_EVERY == 0:
                    self._log_training({"gradient_norm": gradient_norm} | rates)
                if signal_number:
                    self._leave(signal_number)
                if self._due(self.config.checkpointing_steps):
                    self.save(required=False)
                if self._due(self.config.validation_steps):
                    self.run_validation()
        if self.config.checkpointing_steps:
            self.save()
        self.run_validation()
        return losses

    def _open_output(self):
        """Make sure that the folder takes what will be written; resume or clear what an overwritten run left."""
        config, output = self.config, Path(self.config.output_dir)
        if self.accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            if config.overwrite_output_dir and not config.resume_from_checkpoint:
                for old in (CHECKPOINT_FOLDER, TRACKER_FOLDER):
                    shutil.rmtree(output / old, ignore_errors=True)
            size = self.state.num_bytes() if config.checkpointing_steps else 0
            check_room(output, size, config.checkpoints_total_limit)
        if config.resume_from_checkpoint:
            self.load()
        if self.accelerator.is_main_process:
            self.curves.open(self.step)
            note_training(config, self.accelerator)
        settings = (config.project, output.resolve().name, self.run_id, self.step, asdict(config))
        start_trackers(self.accelerator, *settings)

    def train_step(self) -> tuple[float, float, int]:
        """One optimizer step; returns the loss in nats per token, the gradient norm and the number of tokens.

        The loss is divided by the tokens of the global batch, however they fall on processes and micro-batches.
        """
        config, accelerator = self.config, self.accelerator
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        batch = self.rows.batch(self.step, self.local_rows)
        tokens = int(accelerator.reduce(unknown_tokens(batch).sum().to(accelerator.device)))
        loss = float(accelerator.reduce(self._gradients(batch, tokens))) / tokens
        norm = float(accelerator.clip_grad_norm_(self.state.parameters.values(), config.max_grad_norm))
        scaled = accelerator.scaler is not None and accelerator.scaler.get_scale() >= 1  # fp16 skips overflowing steps
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
            raise FloatingPointError(
                f"Step {self.step}: loss {loss}, gradient norm {norm}; the weights were not changed. "
                f"{self._suspects(batch)} Look at the rows, lower `learning_rate`, or resume from a checkpoint."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.update_averages()
        return loss, norm, tokens

    @property
    def local_rows(self) -> range:
        """This process's rows of the global batch: spread over the strata, so that each process sees all times."""
        return range(self.accelerator.process_index, self.rows.rows_per_step, self.accelerator.num_processes)

    def _gradients(self, batch: dict[str, Tensor], tokens: int) -> Tensor:
        """Accumulate the gradients of a step; returns the summed loss of this process's rows.

        One process that runs out of memory halves the micro-batch and begins the step anew, with the same rows and
        noise. Of several processes the others may be in the midst of an exchange, so they stop with advice.
        """
        while True:
            try:
                return self._backward(batch, tokens)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._refuse_to_halve(error)
            self.micro_batch_size //= 2
            logger.warning(f"Out of memory; the batch stays, with {self.micro_batch_size} rows in a micro-batch.")
            self.optimizer.zero_grad()
            clear_device_cache(garbage_collection=True)

    def _refuse_to_halve(self, error: RuntimeError):
        rows, count = self.micro_batch_size, len(self.local_rows)
        if rows == 1:
            raise RuntimeError(f"Step {self.step}: out of memory with a single row in a micro-batch.") from error
        if self.accelerator.num_processes > 1 or self.state.sharded:  # DeepSpeed keeps the gradients it has
            raise RuntimeError(
                f"Step {self.step}: out of memory with {rows} rows in a micro-batch. The same training takes less by "
                f"`--train_batch_size {rows // 2}` `--gradient_accumulation_steps {-(-count // (rows // 2))}`."
            ) from error

    def _backward(self, batch: dict[str, Tensor], tokens: int) -> Tensor:
        accelerator = self.accelerator
        torch.manual_seed(self.config.seed + 1_000_003 * self.step + accelerator.process_index)  # dropout
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        count = -(-len(self.local_rows) // self.micro_batch_size)
        for index, (part, noise) in enumerate(self._micro_batches(batch, count)):
            last = index == count - 1  # gradients are exchanged once a step
            accelerator.sync_gradients = last  # DeepSpeed goes by this alone, and steps in the last backward
            with nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss_sum = self.loss_function(self.model, part, *noise)
                finite = torch.where(loss_sum.isfinite(), 1.0, math.nan)  # else DeepSpeed might step
                accelerator.backward(finite * loss_sum * accelerator.num_processes / tokens)  # gradients are averaged
            total += loss_sum.detach()
        return total

    def _micro_batches(self, batch: dict[str, Tensor], count: int) -> Iterator[tuple[dict[str, Tensor], tuple]]:
        """This process's rows of a step in `count` parts, each with the noise of its rows."""
        uniform, generators = row_noise(self.config.seed, self.step, self.rows.rows_per_step)
        for index in range(count):
            rows = self.local_rows[index::count]
            part = {name: column[index::count].to(self.accelerator.device) for name, column in batch.items()}
            yield part, (uniform[list(rows)].to(self.accelerator.device), [generators[row] for row in rows])

    @torch.no_grad()
    def _suspects(self, batch: dict[str, Tensor]) -> str:
        """Which rows of a step have a loss that is not finite, computed one by one with their own noise."""
        rows, suspects = self.local_rows, []
        if self.accelerator.num_processes == 1:
            for row, (part, noise) in zip(rows, self._micro_batches(batch, len(rows)), strict=True):
                if not math.isfinite(float(self.loss_function(self.unwrapped, part, *noise))):
                    suspects.append(row)
        if suspects and len(suspects) < len(rows):
            return f"Not finite alone: {self.rows.describe(self.step, suspects)}."
        return f"The batch of process {self.accelerator.process_index}: {self.rows.describe(self.step, rows)}."

    def learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / max(1, self.config.lr_warmup_steps))
        return self.config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * self.progress))

    def run_validation(self):
        """Evaluate the averaged weights, and the last ones beside them; write samples; tell the trackers."""
        if self.evaluate is None:
            return
        with self.state.averaged() as model:
            metrics = self.evaluate(model)
            texts = self.write(model) if self.write else []
        if "bound" in metrics:
            with self.state.current() as model:
                last = self.evaluate(model)["bound"]
            metrics |= {"bound_without_ema": last, "ema_gap": last - metrics["bound"]}
        self._log("validation", metrics)
        if self.accelerator.is_main_process:
            plain = {name: value for name, value in metrics.items() if "/" not in name}
            self.curves.add(self.step, {"seconds": round(self.elapsed, 3), "validation": plain})
            log_texts(self.accelerator, "samples", texts, self.step)
            tqdm.write(f"step {self.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items() if "/" not in k))
        if self.on_validation:
            self.on_validation(self.step, metrics | {"progress": self.progress})

    def _missed_validation(self) -> bool:
        """Whether a resumed run was stopped between the checkpoint of its step and the validation that was due."""
        if self.step == 0 or not self._due(self.config.validation_steps):
            return False
        missed = ["validation" not in self.curves.rows.get(self.step, {})]
        return broadcast_object_list(missed)[0]

    def _log_training(self, values: dict[str, float]):
        """Tell trackers and curves of the steps since the last time."""
        loss = fmean(self.recent_losses)
        self.recent_losses = []
        self._log("training", {"loss": loss} | values)
        if self.accelerator.is_main_process:
            line = {"seconds": round(self.elapsed, 3), "loss": loss, "learning_rate": values["learning_rate"]}
            self.curves.add(self.step, line)

    def _log(self, section: str, values: dict[str, float]):
        named = {name if "/" in name else f"{section}/{name}": value for name, value in values.items()}
        self.accelerator.log(finite(named), step=self.step)

    def log_pipeline(self, metrics: dict[str, float]):
        """Hand the pipeline saved in the output folder to the trackers that keep artifacts."""
        output = Path(self.config.output_dir)
        working = (output / CHECKPOINT_FOLDER, output / TRACKER_FOLDER)
        files = [path for path in sorted(output.rglob("*")) if path.is_file() and not {*working} & {*path.parents}]
        log_model(self.accelerator, output.resolve().name, output, files, metrics)

    def _agreed(self, seconds: float, signal_number: int) -> tuple[float, int]:
        """The slowest process's time and any process's signal, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds, signal_number
        mine = torch.tensor([[seconds, signal_number]], dtype=torch.float64, device=self.accelerator.device)
        slowest, received = self.accelerator.gather(mine).max(dim=0).values.tolist()
        return slowest, int(received)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0 and self.progress < 1

    def _leave(self, signal_number: int):
        self.save()
        self.accelerator.print(
            f"\nStopped by signal {signal_number} at step {self.step}; the checkpoint is in {self.checkpoint_folder}. "
            "The same command with `--resume_from_checkpoint latest` continues."
        )
        end_training(self.accelerator)
        raise SystemExit(128 + signal_number)

    def save(self, required: bool = True):
        """Write a checkpoint; if it is not `required` and the disk refuses, say so and train on."""
        if self.step == self.saved_step:
            return
        tensors, written = self.state.tensors(), torch.ones((), device=self.accelerator.device)
        if self.accelerator.is_main_process:
            self.curves.flush()
            try:
                limit = self.config.checkpoints_total_limit
                write_checkpoint(self.checkpoint_folder, self.step, tensors, self._counters(), limit)
            except OSError as error:
                if required:
                    raise
                logger.error(f"No checkpoint at step {self.step}, the older ones are intact: {error}")
                written.zero_()
        if self.accelerator.reduce(written) == self.accelerator.num_processes:
            self.saved_step = self.step

    def _counters(self) -> dict[str, Any]:
        """The part of a checkpoint that is not tensors."""
        return {
            "step": self.step,
            "elapsed": self.elapsed,
            "ema_step": self.state.ema.optimization_step,
            "micro_batch_size": self.micro_batch_size,
            "rows_per_step": self.rows.rows_per_step,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "run_id": self.run_id,
            "recent_losses": self.recent_losses,
            "config": asdict(self.config),
        }

    def load(self):
        """Restore the state of `resume_from_checkpoint`; the run then continues as if it had not stopped."""
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            path, skipped = find_checkpoint(self.checkpoint_folder, str(self.config.resume_from_checkpoint))
            for reason in skipped:
                logger.warning(f"Skipped a damaged checkpoint: {reason}")
            found = [path]
        (path,) = broadcast_object_list(found)
        if path is None:
            self.accelerator.print("No checkpoint to resume from: a new run")
            return
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: `output_dir` must be in a file system that all nodes share.")
        tensors, state = read_checkpoint(path)
        rows = {"rows_per_step": self.rows.rows_per_step}
        for change in changes(state["config"] | {"rows_per_step": state["rows_per_step"]}, asdict(self.config) | rows):
            logger.warning(f"{change}: the run goes on, but not as it would have.")
        self.state.load_tensors(tensors)
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.elapsed, self.state.ema.optimization_step = state["step"], state["elapsed"], state["ema_step"]
        self.run_id, self.saved_step = state["run_id"], self.step
        self.recent_losses = state.get("recent_losses", [])
        if state["config"]["train_batch_size"] == self.config.train_batch_size:
            self.micro_batch_size = state["micro_batch_size"]  # halved when memory was short
        self.accelerator.print(f"Resumed from {path} at step {self.step}")
