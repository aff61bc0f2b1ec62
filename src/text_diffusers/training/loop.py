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
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from text_diffusers.common.progress import print_beside_bars, progress_bar
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.digest import rows_digest
from text_diffusers.data.rows import Batch, ShuffledRows, unknown_tokens
from text_diffusers.training.checkpoints import (
    CHECKPOINT_FOLDER,
    check_room,
    find_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from text_diffusers.training.config import (
    WARMUP_SHARE,
    WARMUP_STEPS,
    TrainingConfig,
    changes,
    make_optimizer,
    note_training,
)
from text_diffusers.training.runtime import (
    TRACKER_FOLDER,
    StopRequest,
    ThreadTuner,
    end_training,
    most_threads,
)
from text_diffusers.training.state import make_state
from text_diffusers.training.tracking import (
    CURVES_FILE,
    Curves,
    finite,
    log_model,
    log_texts,
    start_trackers,
)

logger = get_logger(__name__)

TRACKED_EVERY = 10

LossFunction = Callable[[torch.nn.Module, Batch, Tensor, list[torch.Generator]], Tensor]


class Step(NamedTuple):
    """One optimizer step: its loss in nats per token, its gradient norm, and the number of tokens it learned from."""

    loss: float
    gradient_norm: float
    tokens: int


@dataclass(eq=False)
class TrainingLoop:
    """Trains the parameters of `model` that require gradients, on `rows`.

    Args:
        config: the options.
        accelerator: from `make_accelerator`.
        model: a diffusers model; prepared here.
        loss_function: `(model, batch, uniform, generators) -> loss`, a scalar: the sum over the tokens of the
            micro-batch. `uniform` (B,) are stratified over the global batch; there is one generator a row.
        rows: order of the training rows, with G rows a step.
        data: what a checkpoint knows the training data by; by default these rows. Rows that were computed may differ
            in a few places on another machine.
        evaluate: `model -> {name: number}`, on all processes; "bound" is compared with and without averaging.
        write: `model -> texts`, on all processes, for the trackers' table of samples.
        on_validation: `(step, metrics)`, on all processes after each validation; may raise to end the run. The metrics
            hold the `progress` too, the share of the budget that is used up.
    """

    config: TrainingConfig
    accelerator: Any
    model: Any
    loss_function: LossFunction
    rows: ShuffledRows
    evaluate: Callable[[Any], dict[str, float]] | None = None
    write: Callable[[Any], list[str]] | None = None
    on_validation: Callable[[int, dict[str, float]], None] | None = None
    data: Any = None

    def __post_init__(self):
        config = self.config
        accelerator = self.accelerator
        model = self.model

        # Prepare the model and its optimizer, and know how to build another one
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        architecture = type(model)  # FSDP2 gives the prepared model a class of its own
        settings = dict(model.config)
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(model, config))
        # Weights go by the names that they have in the model itself, compiled by `--dynamo_backend` or not.
        self.unwrapped: Any = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.state = make_state(
            accelerator,
            self.unwrapped,
            self.optimizer,
            config.ema_decay,
            build=lambda: architecture.from_config(settings).to(accelerator.device),
        )

        # What a checkpoint holds beside the state
        self.micro_batch_size = config.train_batch_size
        self.step = 0
        self.elapsed = 0.0  # seconds in training steps
        self.saved_step = -1  # of the last checkpoint that was written or read
        self.run_id = secrets.token_hex(4)
        self.curves = Curves(Path(config.output_dir, CURVES_FILE))
        self.recent_losses: list[float] = []  # since the last line of the curves

    @property
    def progress(self) -> float:
        """Share of the budget, steps or minutes, that is used up: 0 to 1."""
        share = self.step / self.config.max_train_steps
        if self.config.max_train_minutes is not None:
            share = max(share, self.elapsed / 60 / self.config.max_train_minutes)
        return min(1.0, share)

    @property
    def checkpoint_folder(self) -> Path:
        return Path(self.config.output_dir) / CHECKPOINT_FOLDER

    @cached_property
    def data_digest(self) -> str:
        """By which a checkpoint knows the training data. For the main process."""
        return rows_digest(self.rows.rows if self.data is None else self.data)

    @property
    def local_rows(self) -> range:
        """This process's rows of the global batch: spread over the strata, so that each process sees all times."""
        return range(
            self.accelerator.process_index, self.rows.rows_per_step, self.accelerator.num_processes
        )

    def learning_rate(self) -> float:
        """The rate of the next step: a linear warm-up, and a cosine to 0 over the budget."""
        warmup_steps: int | None = self.config.lr_warmup_steps
        warmup = (self.step + 1) / max(1, WARMUP_STEPS if warmup_steps is None else warmup_steps)
        # Nobody knows how many steps some minutes are, so the warm-up ends by the clock where they are few.
        if warmup_steps is None:
            warmup = max(warmup, self.progress / WARMUP_SHARE)
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return self.config.learning_rate * min(1.0, warmup) * cosine

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
        # Without an end in steps the bar shows none.
        num_steps = None if self.config.max_train_minutes else self.config.max_train_steps
        tuned = self.config.num_cpu_threads == 0 and self.accelerator.device.type == "cpu"
        tuner = ThreadTuner(most_threads(self.accelerator)) if tuned else None
        silent = not self.accelerator.is_main_process
        bar = progress_bar(total=num_steps, initial=self.step, disable=silent)
        with StopRequest() as stop, bar:
            while self.progress < 1:
                # 1. Take a step, and see how long it took
                if tuner:
                    tuner.before_step()
                started = time.perf_counter()
                step = self.train_step()
                seconds = time.perf_counter() - started
                if tuner:
                    tuner.after_step(seconds)

                # 2. Count it; all processes by the same clock
                losses.append(step.loss)
                self.recent_losses.append(step.loss)
                rates = {
                    "learning_rate": self.learning_rate(),
                    "tokens_per_second": step.tokens / seconds,
                }
                slowest_seconds, signal_number = self._agree(seconds, stop.signal_number())
                self.elapsed += slowest_seconds
                self.step += 1

                # 3. Show it
                bar.update()
                bar.set_postfix(
                    loss=f"{step.loss:.3f}",
                    tokens_per_s=f"{rates['tokens_per_second']:,.0f}",
                    budget=f"{self.progress:.0%}",
                    refresh=False,
                )
                if self.step % TRACKED_EVERY == 0:
                    self._log_training({"gradient_norm": step.gradient_norm} | rates)

                # 4. Stop, save or validate, if it is time
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

    def train_step(self) -> Step:
        """One optimizer step.

        The loss is divided by the tokens of the global batch, however they fall on processes and micro-batches.

        Raises:
            FloatingPointError: if the loss or the gradient is not finite; the weights stay.
        """
        accelerator = self.accelerator
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()

        # 1. Gradients of the loss a token
        batch = self.rows.batch(self.step, self.local_rows)
        tokens = int(accelerator.reduce(unknown_tokens(batch).sum().to(accelerator.device)))
        loss = float(accelerator.reduce(self._gradients(batch, tokens))) / tokens
        norm = float(
            accelerator.clip_grad_norm_(self.state.parameters.values(), self.config.max_grad_norm)
        )

        # 2. Stop at what is not finite; but fp16 skips a step whose gradient overflows
        scaler = accelerator.scaler
        skips_overflows = scaler is not None and scaler.get_scale() >= 1
        if not math.isfinite(loss) or not (math.isfinite(norm) or skips_overflows):
            raise FloatingPointError(
                f"Step {self.step}: loss {loss}, gradient norm {norm}; the weights were not changed. "
                f"{self._suspects(batch)} Look at the rows, lower `learning_rate`, or resume from a checkpoint."
            )

        # 3. Step; with DeepSpeed the last backward has stepped
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.update_averages()
        return Step(loss, norm, tokens)

    def _gradients(self, batch: Batch, tokens: int) -> Tensor:
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

            # Outside of the handler, which would keep the failed tensors alive.
            self.micro_batch_size //= 2
            logger.warning(
                f"Out of memory; the batch stays, with {self.micro_batch_size} rows in a micro-batch."
            )
            self.optimizer.zero_grad()
            clear_device_cache(garbage_collection=True)

    def _refuse_to_halve(self, error: RuntimeError):
        rows = self.micro_batch_size
        if rows == 1:
            raise RuntimeError(
                f"Step {self.step}: out of memory with a single row in a micro-batch."
            ) from error
        # DeepSpeed, sharded with one process too, keeps the gradients it has.
        if self.accelerator.num_processes > 1 or self.state.sharded:
            half = rows // 2
            raise RuntimeError(
                f"Step {self.step}: out of memory with {rows} rows in a micro-batch. The same training takes less by "
                f"`--train_batch_size {half}` `--gradient_accumulation_steps {-(-len(self.local_rows) // half)}`."
            ) from error

    def _backward(self, batch: Batch, tokens: int) -> Tensor:
        accelerator = self.accelerator
        # Dropout draws from torch's own generators, which so depend on seed and step only too.
        torch.manual_seed(self.config.seed + 1_000_003 * self.step + accelerator.process_index)
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        count = -(-len(self.local_rows) // self.micro_batch_size)
        for index, (part, uniform, generators) in enumerate(self._micro_batches(batch, count)):
            # Gradients are exchanged once a step. DeepSpeed goes by this alone, and steps in the last backward.
            last = index == count - 1
            accelerator.sync_gradients = last
            with nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss_sum = self.loss_function(self.model, part, uniform, generators)

                # An infinite loss may have finite gradients, with which DeepSpeed would step. Processes average
                # their gradients, which are to be summed.
                finite_or_nan = torch.where(loss_sum.isfinite(), 1.0, math.nan)
                accelerator.backward(finite_or_nan * loss_sum * accelerator.num_processes / tokens)
            total += loss_sum.detach()
        return total

    def _micro_batches(
        self, batch: Batch, count: int
    ) -> Iterator[tuple[Batch, Tensor, list[torch.Generator]]]:
        """This process's rows of a step in `count` parts, each with the uniform numbers and generators of its rows."""
        device = self.accelerator.device
        # The noise of all rows of the step: a row's own is the same whichever process has it
        uniform, generators = row_noise(self.config.seed, self.step, self.rows.rows_per_step)
        for index in range(count):
            rows = self.local_rows[index::count]
            part = {name: column[index::count].to(device) for name, column in batch.items()}
            yield part, uniform[list(rows)].to(device), [generators[row] for row in rows]

    @torch.no_grad()
    def _suspects(self, batch: Batch) -> str:
        """Which rows of a step have a loss that is not finite, computed one by one with their own noise."""
        rows = self.local_rows
        suspects = []
        # Of several processes each names its whole batch: one in shards cannot compute alone.
        if self.accelerator.num_processes == 1:
            for row, inputs in zip(rows, self._micro_batches(batch, len(rows)), strict=True):
                if not math.isfinite(float(self.loss_function(self.unwrapped, *inputs))):
                    suspects.append(row)

        if suspects and len(suspects) < len(rows):
            return f"Not finite alone: {self.rows.describe(self.step, suspects)}."
        return f"The batch of process {self.accelerator.process_index}: {self.rows.describe(self.step, rows)}."

    def _agree(self, seconds: float, signal_number: int) -> tuple[float, int]:
        """The slowest process's time and any process's signal, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds, signal_number
        mine = torch.tensor(
            [[seconds, signal_number]], dtype=torch.float64, device=self.accelerator.device
        )
        slowest, received = self.accelerator.gather(mine).max(dim=0).values.tolist()
        return slowest, int(received)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0 and self.progress < 1

    # Validation and trackers

    def run_validation(self):
        """Evaluate the averaged weights, and the last ones beside them; write samples; tell the trackers."""
        if self.evaluate is None:
            return
        # 1. Figures and texts of the averaged weights; the bound of the last ones beside it
        with self.state.averaged() as model:
            metrics = self.evaluate(model)
            texts = self.write(model) if self.write else []
        del model  # of one in shards a whole copy, which is to make room for the next
        if "bound" in metrics:
            with self.state.current() as model:
                last = self.evaluate(model)["bound"]
            metrics |= {"bound_without_ema": last, "ema_gap": last - metrics["bound"]}

        # 2. Tell trackers, curves and whoever waits for it
        self._log("validation", metrics)
        if self.accelerator.is_main_process:
            plain = {name: value for name, value in metrics.items() if "/" not in name}
            self.curves.add(self.step, {"seconds": round(self.elapsed, 3), "validation": plain})
            log_texts(self.accelerator, "samples", texts, self.step)
            print_beside_bars(
                f"step {self.step}: "
                + ", ".join(f"{name} {value:.4f}" for name, value in plain.items())
            )
        if self.on_validation:
            self.on_validation(self.step, metrics | {"progress": self.progress})

    def _missed_validation(self) -> bool:
        """Whether a resumed run was stopped between the checkpoint of its step and the validation that was due."""
        if self.step == 0 or not self._due(self.config.validation_steps):
            return False
        # Only the main process has the curves.
        missed = ["validation" not in self.curves.rows.get(self.step, {})]
        return broadcast_object_list(missed)[0]

    def _log_training(self, values: dict[str, float]):
        """Tell trackers and curves of the steps since the last time."""
        loss = fmean(self.recent_losses)
        self.recent_losses = []
        self._log("training", {"loss": loss} | values)
        if self.accelerator.is_main_process:
            line = {
                "seconds": round(self.elapsed, 3),
                "loss": loss,
                "learning_rate": values["learning_rate"],
            }
            self.curves.add(self.step, line)

    def _log(self, section: str, values: dict[str, float]):
        # A name with a heading of its own keeps it.
        named = {
            name if "/" in name else f"{section}/{name}": value for name, value in values.items()
        }
        self.accelerator.log(finite(named), step=self.step)

    def log_pipeline(self, metrics: dict[str, float]):
        """Hand the pipeline saved in the output folder to the trackers that keep artifacts."""
        output = Path(self.config.output_dir)
        working_folders = {output / CHECKPOINT_FOLDER, output / TRACKER_FOLDER}
        # Checkpoints and logs are of the run, not of the model.
        files = []
        for path in sorted(output.rglob("*")):
            if path.is_file() and working_folders.isdisjoint(path.parents):
                files.append(path)
        log_model(self.accelerator, output.resolve().name, output, files, metrics)

    # The output folder and its checkpoints

    def _open_output(self):
        """Make sure that the folder takes what will be written; resume or clear what an overwritten run left."""
        config = self.config
        output = Path(config.output_dir)
        # 1. Room for what will be written
        if self.accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            if config.overwrite_output_dir and not config.resume_from_checkpoint:
                for old in (CHECKPOINT_FOLDER, TRACKER_FOLDER):
                    shutil.rmtree(output / old, ignore_errors=True)
            size = self.state.num_bytes() if config.checkpointing_steps else 0
            check_room(output, size, config.checkpoints_total_limit)

        # 2. The state to go on from, and the records of the run so far
        if config.resume_from_checkpoint:
            self.load()
        if self.accelerator.is_main_process:
            self.curves.open(self.step)
            note_training(config, self.accelerator)
        start_trackers(
            self.accelerator,
            project=config.project,
            name=output.resolve().name,
            run_id=self.run_id,
            step=self.step,
            settings=asdict(config),
        )

    def save(self, required: bool = True):
        """Write a checkpoint; if it is not `required` and the disk refuses, say so and train on."""
        if self.step == self.saved_step:
            return
        # All processes gather the tensors, one writes them, and all know whether it could.
        tensors = self.state.tensors(kept=self.accelerator.is_main_process)
        written = torch.ones((), device=self.accelerator.device)
        if self.accelerator.is_main_process:
            self.curves.flush()
            limit = self.config.checkpoints_total_limit
            try:
                write_checkpoint(
                    self.checkpoint_folder, self.step, tensors, self._counters(), limit
                )
            except OSError as error:
                if required:
                    raise
                logger.error(
                    f"No checkpoint at step {self.step}, the older ones are intact: {error}"
                )
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
            "data": self.data_digest,
            "config": asdict(self.config),
        }

    def load(self):
        """Restore the state of `resume_from_checkpoint`; the run then continues as if it had not stopped."""
        path = self._chosen_checkpoint()
        if path is None:
            self.accelerator.print("No checkpoint to resume from: a new run")
            return
        if not path.is_dir():
            raise FileNotFoundError(
                f"{path}: `output_dir` must be in a file system that all nodes share."
            )

        # 1. See what has changed since
        tensors, counters = read_checkpoint(path)
        before = counters["config"] | {"rows_per_step": counters["rows_per_step"]}
        for change in changes(before, self.config, self.rows.rows_per_step):
            logger.warning(f"{change}: the run goes on, but not as it would have.")
        self._check_data(path, counters)

        # 2. Take everything over
        self.state.load_tensors(tensors)
        self.state.ema.optimization_step = counters["ema_step"]
        if self.accelerator.scaler and counters["scaler"]:
            self.accelerator.scaler.load_state_dict(counters["scaler"])
        self.step = counters["step"]
        self.saved_step = self.step
        self.elapsed = counters["elapsed"]
        self.run_id = counters["run_id"]
        self.recent_losses = counters.get("recent_losses", [])  # older checkpoints have none
        if before["train_batch_size"] == self.config.train_batch_size:
            self.micro_batch_size = counters["micro_batch_size"]  # halved when memory was short
        self.accelerator.print(f"Resumed from {path} at step {self.step}")

    def _check_data(self, path: Path, counters: dict[str, Any]):
        """Refuse to go on with other training rows, unless that is meant; older checkpoints do not know theirs."""
        # The main process reads the data, and all hear of it.
        known = counters.get("data")
        differs = [False]
        if self.accelerator.is_main_process and known is not None:
            differs = [known != self.data_digest]
        if not broadcast_object_list(differs)[0]:
            return

        if not self.config.resume_with_other_data:
            raise ValueError(
                f"`resume_from_checkpoint`: the training rows are others than those of {path}. If that is meant, "
                "`--resume_with_other_data true` goes on with them."
            )
        logger.warning(
            f"The training rows are others than those of {path}: the run goes on with them."
        )

    def _chosen_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, as the main process finds it."""
        chosen: list[Any] = [None]
        if self.accelerator.is_main_process:
            path, skipped = find_checkpoint(
                self.checkpoint_folder, str(self.config.resume_from_checkpoint)
            )
            for reason in skipped:
                logger.warning(f"Skipped a damaged checkpoint: {reason}")
            chosen = [path]
        return broadcast_object_list(chosen)[0]

    def _leave(self, signal_number: int):
        self.save()
        self.accelerator.print(
            f"\nStopped by signal {signal_number} at step {self.step}; the checkpoint is in {self.checkpoint_folder}. "
            "The same command with `--resume_from_checkpoint latest` continues."
        )
        end_training(self.accelerator)
        raise SystemExit(128 + signal_number)
