"""A run of a pipeline that is watched step by step, stopped when its time is up, and whose forward passes are counted.

Shapes: B texts, L tokens of a row, K steps.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from text_diffusers.models.language_model import is_masked_lm
from text_diffusers.samplers import most_steps
from text_diffusers.space.parts.served import Served

Rows = list[list[int]]
FRAMES_A_SECOND = 12
PATIENCE = 5.0  # seconds without a question, after which a run is given up
WORKER = "text-diffusers-run"  # the name of its thread
State = TypeVar("State")


class OutOfTime(Exception):
    """Raised inside a run, at the end of a step, to stop it."""


@dataclass
class Cost:
    """Forward passes of a model: its calls, the rows in them, and seconds on the clock."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0


@dataclass
class Run:
    """What a run has written.

    Attributes:
        num_steps: as asked for.
        frames: the tokens (B, L) after each step; once it is done, K + 1 of them with pure noise first.
        output: of the pipeline; `None` until it is done.
        cost: of its forward passes.
        stopped: whether it ran out of time.
    """

    num_steps: int
    frames: list[Rows] = field(default_factory=list)
    output: Any = None
    cost: Cost = field(default_factory=Cost)
    stopped: bool = False

    def of_row(self, row: int, frame: int | None = None) -> Rows:
        """The frames of one text up to and with a frame, by default the last."""
        return [rows[row] for rows in (self.frames if frame is None else self.frames[: frame + 1])]


@contextmanager
def counted(model: Any) -> Iterator[Cost]:
    """Count the forward passes of `model` in this thread."""
    cost, start, thread = Cost(), time.perf_counter(), threading.get_ident()

    def count(_, args, kwargs):
        if threading.get_ident() == thread:
            cost.calls += 1
            cost.rows += len(args[0] if args else kwargs["input_ids"])

    # The head of a masked LM runs on its own, after the model that it stands on.
    handle = (model.base_model if is_masked_lm(model) else model).register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield cost
    finally:
        handle.remove()
        cost.seconds = time.perf_counter() - start


def steps_of(served: Served, pipe: Any, sampler: str, steps: int) -> int:
    """The steps to take: a sampler that writes token by token gets as many as it may need."""
    return most_steps(pipe) if served.samplers[sampler].token_a_step else steps


def write(served: Served, pipe: Any, num_steps: int, seconds: float | None = None, **asked: Any) -> Run:
    """Write texts and count what it takes.

    Args:
        pipe: over tokens or embeddings, from `served.with_sampler`.
        seconds: after which it stops, by default those of the limits.
        asked: further arguments of the pipeline.
    """
    run = Run(num_steps)
    deadline = time.monotonic() + (served.limits.seconds if seconds is None else seconds)
    fill(run, pipe, lambda: time.monotonic() > deadline, asked)
    return run


def watch(served: Served, pipe: Any, num_steps: int, **asked: Any) -> Iterator[Run]:
    """Write texts, yielding the run as it grows and at its end. Errors are those of the pipeline."""
    run = Run(num_steps)
    return growing(run, lambda expired: fill(run, pipe, expired, asked), served.limits.seconds)


def fill(run: Run, pipe: Any, expired: Callable[[], bool], asked: dict[str, Any]):
    """Run the pipeline, adding its frames to `run`, until it is done or, after a step, `expired`."""

    def after_step(_, step: int, timestep: float, tensors: dict) -> dict:
        run.frames.append(tensors["tokens"].tolist())
        if expired():
            raise OutOfTime
        return {}

    watched = {"callback_on_step_end": after_step, "callback_on_step_end_tensor_inputs": ["tokens"]}
    with counted(pipe.denoiser) as run.cost:
        try:
            output = pipe(**asked, **watched, num_inference_steps=run.num_steps, return_history=True)
        except OutOfTime:
            run.stopped = True
            return
    run.frames = [frame.tolist() for frame in output.history]
    run.output = output


def growing(state: State, work: Callable[[Callable[[], bool]], None], seconds: float) -> Iterator[State]:
    """Work in a thread and yield the `state` that it changes, `FRAMES_A_SECOND` times a second and at its end.

    Args:
        work: is given a function that says whether to stop: time is up, or nobody asks for the state any more.
        seconds: that it may take.

    Raises:
        Exception: the one that `work` raised.
    """
    asked_at, deadline, errors = [time.monotonic()], time.monotonic() + seconds, []

    def expired() -> bool:
        return time.monotonic() > min(deadline, asked_at[0] + PATIENCE)

    def run():
        try:
            work(expired)
        except Exception as error:  # it belongs to the thread that asks
            errors.append(error)

    worker = threading.Thread(target=run, name=WORKER, daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(1 / FRAMES_A_SECOND)
            asked_at[0] = time.monotonic()
            yield state
    finally:
        asked_at[0] = -PATIENCE  # whoever stops asking stops the work
        worker.join()
    if errors:
        raise errors[0]
    yield state


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_seeds(seed: int, count: int) -> Sequence[torch.Generator]:
    """One generator a text, all with the same numbers."""
    return [generator(seed) for _ in range(count)]
