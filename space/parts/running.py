"""A run of a pipeline: watched step by step, stopped when its time is up, with its forward passes counted.

Shapes: B texts, L tokens of a row, K steps.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from text_diffusers.common.token_ids import start_ids
from text_diffusers.models.language_model import is_language_model, reading_of
from text_diffusers.pipelines.calls.labels import (
    behind_frames,
    label_frames,
    moved,
    shown_labels,
)
from text_diffusers.pipelines.calls.steps import written_together
from text_diffusers.pipelines.given_text import GivenText
from text_diffusers.pipelines.text_batch import encode_prompts, text_before
from text_diffusers.pipelines.text_gaps import encode_gaps
from text_diffusers.pipelines.text_inputs import fill_block
from text_diffusers.samplers import most_steps
from text_diffusers.space.parts.pieces import Spans, spans, stacked
from text_diffusers.space.parts.served import Served

# Enough for the eye, and little to send over a slow connection
FRAMES_A_SECOND = 12
PATIENCE = 5.0  # seconds without a reader, after which a run is given up
WORKER = "text-diffusers-run"  # the name of its thread

Rows = list[list[int]]
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
    """Texts that are being written.

    Attributes:
        num_steps: as asked for.
        frames: the tokens (B, L) after each step; once it is done, K + 1 of them with pure noise first.
        output: of the pipeline; `None` until it is done.
        cost: of its forward passes.
        given: the characters that all texts keep; `None` if there are several prompts.
        stopped: whether it ran out of time.
        asked: the settings that a tab was given, by name.
    """

    num_steps: int
    frames: list[Rows] = field(default_factory=list)
    output: Any = None
    cost: Cost = field(default_factory=Cost)
    given: GivenText | None = None
    stopped: bool = False
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def most_steps(self) -> int:
        """Steps that colours are spread over; some samplers take more than they were asked for."""
        return max(1, self.num_steps, len(self.frames) - 1)

    def of_row(self, row: int, last_frame: int | None = None) -> Rows:
        """The frames of one text up to and with a frame, by default the last."""
        frames = self.frames if last_frame is None else self.frames[: last_frame + 1]
        return [rows[row] for rows in frames]


def texts_of(served: Served, run: Run, frame: int | None, ends: bool) -> Spans:
    """All texts of a run at one of its frames, by default the last, in coloured pieces.

    Args:
        ends: whether a text ends where the model wrote an end.
    """
    if not run.frames:  # before the first step
        return []
    tokenizer = served.pipe.tokenizer
    texts = []
    for row in range(len(run.frames[0])):
        frames = run.of_row(row, frame)
        texts.append(spans(tokenizer, frames, run.most_steps, ends, run.given, served.more_ends))
    return stacked(texts)


@contextmanager
def counted(denoiser: Any) -> Iterator[Cost]:
    """Count the forward passes of `denoiser` in this thread."""
    # A hook on the model itself counts what a sampler really calls, guidance included.
    cost = Cost()
    start = time.perf_counter()
    thread = threading.get_ident()

    def count(_, args, kwargs):
        # Another visitor's thread may run the same model.
        if threading.get_ident() == thread:
            cost.calls += 1
            cost.rows += len(args[0] if args else kwargs["input_ids"])

    # The head of a model of transformers runs on its own, after the model that it stands on.
    model = getattr(denoiser, "base_model", denoiser)
    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield cost
    finally:
        handle.remove()
        cost.seconds = time.perf_counter() - start


def steps_to_take(
    served: Served, pipe: Any, sampler: str, steps: int, arguments: dict[str, Any]
) -> int:
    """The steps asked for; a sampler that writes token by token gets as many as it may need.

    Args:
        arguments: of the call.
    """
    return most_steps(pipe, arguments) if served.samplers[sampler].token_a_step else steps


def write(pipe: Any, num_steps: int, seconds: float, **arguments: Any) -> Run:
    """Write texts and count what it takes.

    Args:
        pipe: over tokens or embeddings, from `Served.with_sampler`.
        seconds: after which it stops.
        arguments: further ones of the pipeline.
    """
    # In this thread: nobody watches.
    run = Run(num_steps)
    deadline = time.monotonic() + seconds
    fill(run, pipe, lambda: time.monotonic() > deadline, arguments)
    return run


def watch(pipe: Any, num_steps: int, seconds: float, **arguments: Any) -> Iterator[Run]:
    """As `write`, yielding the run as it grows and at its end. Errors are those of the pipeline."""
    # The generator is read in the thread of the request, the pipeline runs in one of its own.
    run = Run(num_steps)
    return growing(run, lambda expired: fill(run, pipe, expired, arguments), seconds)


def given_text(pipe: Any, arguments: dict[str, Any]) -> GivenText | None:
    """The given characters of a call of a pipeline for one text and its copies."""
    tokenizer = pipe.tokenizer
    if "text" in arguments:
        (given,) = encode_gaps(tokenizer, arguments["text"], arguments.get("mask"))[1]
        frame = label_frame(pipe, arguments.get("class_labels"))
        return given if frame is None else moved(given, len(frame) - len(start_ids(tokenizer)))
    prompt = arguments.get("prompt", "")
    if not isinstance(prompt, str):
        return None
    (row,) = encode_prompts(tokenizer, [prompt])

    # A label may stand before the text, and some models count blocks from the end of the prompt, before which a row is
    # filled up.
    denoiser = pipe.denoiser
    frame = label_frame(pipe, arguments.get("class_labels"))
    if frame is not None:
        (row,) = behind_frames([row], [frame], len(start_ids(tokenizer)))
    if is_language_model(denoiser) and reading_of(denoiser).begins_behind_prompt:
        row = fill_block(row, written_together(pipe, arguments) or 1)
    return text_before(prompt, row)


def label_frame(pipe: Any, labels: int | list[int] | None) -> list[int] | None:
    """The tokens that stand before a text for its label, where a model is shown labels as texts.

    Args:
        labels: of the call, which is for one text and its copies.
    """
    prompts = shown_labels(pipe.denoiser, pipe.config)
    if prompts is None:
        return None
    label = labels[0] if isinstance(labels, list) else labels
    (frame,) = label_frames(pipe.tokenizer, prompts, [len(prompts) if label is None else label])
    return frame


def fill(run: Run, pipe: Any, expired: Callable[[], bool], arguments: dict[str, Any]):
    """Run the pipeline, adding its frames to `run`, until it is done or, after a step, `expired`."""

    run.given = given_text(pipe, arguments)

    # Between two steps is the only place where a run can stop without leaving anything behind.
    def after_step(_, step: int, timestep: float, tensors: dict) -> dict:
        run.frames.append(tensors["tokens"].tolist())
        if expired():
            raise OutOfTime
        return {}

    # Errors of the pipeline pass; only its own interruption ends here.
    with counted(pipe.denoiser) as run.cost:
        try:
            output = pipe(
                **arguments,
                num_inference_steps=run.num_steps,
                return_history=True,
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=["tokens"],
            )
        except OutOfTime:
            run.stopped = True
            return

    # The history begins with the noise, which no step has shown.
    run.frames = [frame.tolist() for frame in output.history]
    run.output = output


def growing(
    state: State, work: Callable[[Callable[[], bool]], None], seconds: float
) -> Iterator[State]:
    """Work in a thread and yield the `state` that it changes, `FRAMES_A_SECOND` times a second and at its end.

    Args:
        work: is given a function that says whether to stop: time is up, or nobody reads the state any more.
        seconds: that it may take.

    Raises:
        Exception: the one that `work` raised.
    """
    # Both times are read by the worker and written by the reader alone.
    last_read = time.monotonic()
    deadline = last_read + seconds
    errors = []

    # A closed browser leaves no message, only a state that nobody reads.
    def expired() -> bool:
        return time.monotonic() > min(deadline, last_read + PATIENCE)

    def run():
        try:
            work(expired)
        except Exception as error:  # it belongs to the thread that reads
            errors.append(error)

    # A daemon, so that a run never keeps the process alive.
    worker = threading.Thread(target=run, name=WORKER, daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(1 / FRAMES_A_SECOND)
            last_read = time.monotonic()
            yield state
    finally:
        last_read = -PATIENCE  # a reader that leaves stops the work
        worker.join()

    # Only now, so that what was written before the error was shown.
    if errors:
        raise errors[0]
    yield state


def generator(seed: int) -> torch.Generator:
    # On the CPU, so that its draws do not depend on the device.
    return torch.Generator().manual_seed(seed)
