"""Calls that take steps: as an ordinary call, which runs to its end, and as a stream of the texts of each step."""

import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from text_diffusers.common.validation import as_plain
from text_diffusers.pipelines.call_state import Output, steps_of_call
from text_diffusers.pipelines.calls.generation_defaults import (
    defaults_of_call,
    writes_one_block,
)
from text_diffusers.pipelines.scheduler_adapters import SHAPING
from text_diffusers.pipelines.text_batch import TextBatch

# Of a `__call__`, so that the wrapped call and `stream` keep its signature for editors and pyright.
CallArguments = ParamSpec("CallArguments")
Pipeline = TypeVar("Pipeline")

# A call that stops after every step to show the rows as they are then, and returns its output at the end.
Steps = Generator[TextBatch, None, Output]


def runs_to_its_end(
    call: Callable[Concatenate[Pipeline, CallArguments], Generator[Any, None, Output]],
) -> Callable[Concatenate[Pipeline, CallArguments], Output]:
    """Make a `__call__` that yields after each step an ordinary one, which returns its output.

    Numbers of numpy and torch, arrays and tensors are as good as plain numbers and lists of them.
    """

    @functools.wraps(call)
    def run(self: Pipeline, *args: CallArguments.args, **kwargs: CallArguments.kwargs) -> Output:
        steps = call_with_plain_arguments(call, self, args, kwargs)
        taken = steps_of_call(self, steps, show=lambda batch: batch)
        while True:
            try:
                next(taken)
            except StopIteration as end:
                return end.value

    return run


def texts_of_each_step(
    call: Callable[Concatenate[Pipeline, CallArguments], Any],
) -> Callable[Concatenate[Pipeline, CallArguments], Iterator[list[str]]]:
    """Make `stream` of a `__call__` under `runs_to_its_end`: the same arguments, and the texts after every step."""
    # The generator below the wrapper, still under its `torch.no_grad`.
    steps_of: Any = inspect.unwrap(call, stop=inspect.isgeneratorfunction)

    @functools.wraps(call)
    def stream(
        self: Any, *args: CallArguments.args, **kwargs: CallArguments.kwargs
    ) -> Iterator[list[str]]:
        steps = call_with_plain_arguments(steps_of, self, args, kwargs)
        yield from steps_of_call(self, steps, show=self.texts_so_far)

    # `wraps` has copied both from `__call__`.
    stream.__name__ = "stream"
    stream.__doc__ = "Yield the texts after every step, the last of them finished; arguments and errors of `__call__`."
    return stream


def defaults_in_force(pipeline: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a pipeline that hold in a call with the arguments `given` by their names."""
    defaults = pipeline.generation_defaults
    if not defaults:
        return {}
    own_length = getattr(pipeline, "block_length", None)
    held = defaults_of_call(defaults, given, writes_one_block(pipeline, given), own_length)

    # A temperature, or what else shapes predictions, that the scheduler was given comes before a default.
    scheduler = getattr(pipeline, "scheduler", None)
    config = getattr(scheduler, "config", {})
    parameters = inspect.signature(type(scheduler).__init__).parameters
    for name in SHAPING:
        if name in parameters and name in config and config[name] != parameters[name].default:
            held.pop(name, None)
    return held


def written_together(pipeline: Any, given: Mapping[str, Any]) -> int | None:
    """Tokens that a call with the arguments `given` writes together, in a block; `None` is all of a text."""
    if writes_one_block(pipeline, given):
        return None
    arguments = defaults_in_force(pipeline, given) | dict(given)
    return arguments.get("block_length") or pipeline.block_length


def call_with_plain_arguments(call: Any, pipeline: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`call(pipeline, *args, **kwargs)` with plain numbers and lists in the place of those of numpy and torch.

    What is not given is taken from the defaults of the pipeline, if it has any.
    """
    plain_args = as_plain(args)
    plain_kwargs = {name: as_plain(value) for name, value in kwargs.items()}

    # Some arguments may be given without their names; the first of all is the pipeline.
    _, *names = inspect.signature(call).parameters
    given = dict(zip(names, plain_args, strict=False)) | plain_kwargs
    defaults = defaults_in_force(pipeline, given)
    return call(pipeline, *plain_args, **defaults, **plain_kwargs)
