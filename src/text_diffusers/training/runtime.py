"""The process that a training run lives in: Accelerate, its launcher, CPU threads, signals."""

import os
import re
import signal
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration
from torch.distributed.fsdp import MixedPrecisionPolicy

from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.tracking import check_trackers

logger = get_logger(__name__)

TRACKER_FOLDER = "logs"
GLOO_SECONDS = 0.5
LAUNCHER = re.compile(  # in a command line whose words end in NUL
    r"(^|[\0/\\])(accelerate(\.exe|[./\\]commands[./\\]accelerate_cli(\.py)?)?\0launch"
    r"|accelerate(-launch(\.exe)?|[./\\]commands[./\\]launch(\.py)?))\0"
)


def refuse_shards(accelerator: Accelerator):
    """Refuse FSDP and DeepSpeed for models whose training needs them whole."""
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "These models cannot be trained in shards; they are small: use `--multi_gpu`."
        )


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """An Accelerator, and on a CPU all threads: `accelerate launch` would leave a process one.

    Raises:
        ValueError: if the launcher was asked for several processes and started one, or for a precision that the
            device does not have.
    """
    with_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"

    # 1. Accelerate, on the CPU where there is nothing else
    trackers: list[Any] = check_trackers(config.report_to)
    on_cpu = not torch.accelerator.is_available()
    gloo = InitProcessGroupKwargs(backend="gloo")  # not DeepSpeed's own backend for CPUs
    accelerator = Accelerator(
        cpu=on_cpu and not (with_fsdp or with_deepspeed),
        kwargs_handlers=[gloo] if on_cpu and with_deepspeed else [],
        mixed_precision=config.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(
            config.output_dir, logging_dir=str(Path(config.output_dir, TRACKER_FOLDER))
        ),
    )
    check_processes(accelerator)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "`mixed_precision` must be no or bf16 on a CPU, for which Accelerate has no fp16, got fp16."
        )

    # 2. Shards. Autocast lowers the precision where it is safe; FSDP2 would lower the times too.
    if accelerator.is_fsdp2:
        plugin: Any = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # Imported here, as DeepSpeed may not be installed.
        from text_diffusers.training.deepspeed import set_up

        set_up(accelerator.state.deepspeed_plugin, config, accelerator.mixed_precision)

    # 3. Threads
    if accelerator.device.type == "cpu":
        torch.set_num_threads(config.num_cpu_threads or most_threads(accelerator))

    accelerator.print(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
        f"{torch.get_num_threads()} CPU thread(s) each, mixed precision: {accelerator.mixed_precision}"
    )
    return accelerator


def check_processes(accelerator: Accelerator):
    """Refuse a run with another number of processes than its launcher was asked for, or started.

    Raises:
        ValueError: with the command that starts as many.
    """
    asked = processes_asked_for()
    if asked is not None and accelerator.num_processes == 1 < asked:
        raise ValueError(
            f"`accelerate launch` was asked for `--num_processes`={asked} and started 1, as it does with `--cpu`. "
            f"`accelerate launch --multi_gpu --num_processes {asked}` starts {asked}, on CPUs too, and so does "
            f"`torchrun --nproc_per_node {asked}`."
        )
    started = os.environ.get("WORLD_SIZE", "1")
    if accelerator.num_processes != int(started):
        raise ValueError(
            f"The launcher started WORLD_SIZE={started} processes, and they did not find each other: "
            f"Accelerate sees {accelerator.num_processes}, {accelerator.distributed_type}."
        )


def end_training(accelerator: Accelerator):
    """Close the trackers and the process group, when all processes are here."""
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        # A thread of gloo may still have to drop the tensors of the last exchange, for which it needs Python's lock.
        # Destroying the process group holds that lock and waits for the thread: a deadlock, seen in one run of ten.
        time.sleep(GLOO_SECONDS)
    accelerator.end_training()


def launch_arguments() -> tuple[list[str], str] | None:
    """Arguments and folder of the `accelerate launch` that is this process's parent, or `None` if that is not one."""
    try:
        parent = psutil.Process().parent()
        if parent is None:
            return None
        line = "\0".join(parent.cmdline()) + "\0"
        folder = parent.cwd()
    except psutil.Error:
        return None

    # What follows `launch` is for the launcher; the script and its options are among it.
    launcher = LAUNCHER.search(line)
    if launcher is None:
        return None
    return line[launcher.end() :].split("\0")[:-1], folder


def processes_asked_for() -> int | None:
    """`--num_processes` of the `accelerate launch` above, from its arguments or its configuration file, if given."""
    launch = launch_arguments()
    if launch is None:
        return None

    # Accelerate's own parser knows where the launcher's arguments end and the script's begin.
    words, folder = launch
    arguments = launch_command_parser().parse_args(words)
    configured = arguments.config_file or (
        os.path.isfile(default_config_file) and not arguments.cpu
    )
    if arguments.num_processes is not None or not configured:
        return arguments.num_processes

    # The path of a configuration file is seen from the launcher's folder.
    file = arguments.config_file and os.path.join(folder, arguments.config_file)
    return getattr(load_config_from_file(file), "num_processes", None)


def most_threads(accelerator: Any) -> int:
    """CPU threads that each process on this machine can have to itself."""
    return max(1, (os.cpu_count() or 1) // accelerator.num_processes)


class ThreadTuner:
    """Sets the number of torch threads to the one with the fastest real steps, tried anew every so often.

    Small models are often faster on few threads, and on a busy machine on one. The number changes the last digits of
    the results.

    Args:
        most: threads that are tried at most; 1, 2, 4, ... up to it are.

    Example:
        >>> from text_diffusers.training.runtime import ThreadTuner
        >>> ThreadTuner(most=6).candidates
        [1, 2, 4]
    """

    steps_of_a_trial = 4
    steps_between_trials = 200

    def __init__(self, most: int):
        # Powers of two: finer steps would cost more in trials than they gain.
        self.candidates = [2**power for power in range(most.bit_length()) if 2**power <= most]
        self.seconds: dict[int, list[float]] = {}
        self.steps = 0

    def before_step(self):
        trial, step = divmod(self.steps % self.steps_between_trials, self.steps_of_a_trial)
        # Each candidate is tried for some steps in a row; then the fastest has the rest of the round.
        if trial < len(self.candidates):
            if trial == step == 0:
                self.seconds = {count: [] for count in self.candidates}
            torch.set_num_threads(self.candidates[trial])
        elif trial == len(self.candidates) and step == 0:
            fastest = min(self.candidates, key=lambda count: median(self.seconds[count]))
            torch.set_num_threads(fastest)
        self.steps += 1

    def after_step(self, seconds: float):
        # Steps after the trials say nothing of the other candidates.
        measured = self.seconds[torch.get_num_threads()]
        if len(measured) < self.steps_of_a_trial:
            measured.append(seconds)


class StopRequest:
    """Notices that a run should end: SIGTERM, Ctrl-C, or that its `accelerate launch` is gone.

    `accelerate launch` with one process dies of a SIGTERM without passing it on, and would leave the run behind.
    A second Ctrl-C interrupts at once. As a context manager it holds the signals and gives them back at the end.
    """

    def __init__(self):
        self.received: int | None = None
        self.launcher = os.getppid() if launch_arguments() is not None else None
        self.previous: dict[int, Any] = {}

    def __enter__(self):
        # Python lets only the main thread hold signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._receive)
        else:
            logger.warning("Not in the main thread: SIGTERM will not save a checkpoint.")
        return self

    def __exit__(self, *exception):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame):
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = number  # the step that is under way is finished

    def signal_number(self) -> int:
        """The signal to stop for, or 0."""
        # A process whose parent has died gets another one.
        if self.received is None and self.launcher is not None and os.getppid() != self.launcher:
            self.received = signal.SIGTERM
        return int(self.received or 0)
