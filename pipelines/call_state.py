"""State of a call: calls of one pipeline may be under way at once, in threads or as streams taken in turn.

Each call steps schedulers of its own, and while it takes a step or runs a callback, those attributes of its pipeline
that are declared here, such as `scheduler` and `_interrupt`, are its own. Elsewhere the pipeline shows those of the
call that was begun last, and what is set there concerns all calls under way.
"""

from collections.abc import Callable, Generator
from contextvars import ContextVar, Token
from typing import Any, TypeVar

from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerMixin

Output = TypeVar("Output")

# The configuration of a scheduler is never changed in place, so copies share it.
CONFIGURATION = "_internal_dict"

# Where a pipeline keeps its calls under way, and the attributes of the one that was begun last.
CALLS = "_calls_under_way"
SHOWN = "_attributes_of_last_call"


class CallState:
    """What a call has for itself: copies of its pipeline's schedulers, and values of `CallAttribute`s.

    Inside of `with call:` the pipeline's attributes are those of the call.
    """

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        self.attributes: dict[str, Any] = {}

        # By name: the scheduler of the pipeline, that of the call, and how the latter began.
        self.shared_schedulers: dict[str, Any] = {}
        self.schedulers: dict[str, Any] = {}
        self._beginnings: dict[str, dict[str, Any]] = {}
        for name, scheduler in dict(vars(pipeline)).items():
            is_declared = isinstance(getattr(type(pipeline), name, None), CallScheduler)
            if is_declared and scheduler is not None:
                self.shared_schedulers[name] = scheduler
                self.schedulers[name] = own_copy(scheduler)
                self._beginnings[name] = dict(vars(self.schedulers[name]))

    def step_by(self, name: str, scheduler: Any):
        """Let the call step another scheduler than the copy that it began with, such as one with other settings."""
        if scheduler is not self.schedulers.get(name):
            self.schedulers[name] = scheduler
            # The pipeline's own has other settings, and shows nothing of it.
            self.shared_schedulers.pop(name, None)

    def __enter__(self):
        # A callback may call the pipeline again, or another one.
        self._token: Token = CALL_UNDER_WAY.set(self)

    def __exit__(self, *_: Any):
        CALL_UNDER_WAY.reset(self._token)
        self._show_grids()

    def _show_grids(self):
        """Let the pipeline's own schedulers show the grid of this call, for whoever asks afterwards."""
        # No call reads it there. Settings stay as they are.
        for name, shared in self.shared_schedulers.items():
            beginning = self._beginnings[name]
            changed = {
                key: value
                for key, value in vars(self.schedulers[name]).items()
                if key != CONFIGURATION and beginning.get(key, beginning) is not value
            }
            vars(shared).update(changed)


# In the thread or task that runs a step or a callback, the call that it belongs to.
CALL_UNDER_WAY: ContextVar[CallState | None] = ContextVar("CALL_UNDER_WAY", default=None)


def call_of(pipeline: Any) -> CallState | None:
    """The call of this pipeline whose step or callback is being run here."""
    call = CALL_UNDER_WAY.get()
    return call if call is not None and call.pipeline is pipeline else None


class CallAttribute:
    """An attribute of a pipeline that belongs to a call, which begins with the default."""

    def __init__(self, default: Any):
        self.default = default

    def __set_name__(self, owner: type, name: str):
        self.name = name

    def __get__(self, pipeline: Any, owner: type | None = None) -> Any:
        if pipeline is None:
            return self
        call = call_of(pipeline)
        attributes = vars(pipeline).get(SHOWN, {}) if call is None else call.attributes
        return attributes.get(self.name, self.default)

    def __set__(self, pipeline: Any, value: Any):
        call = call_of(pipeline)
        if call is not None:
            call.attributes[self.name] = value
            return

        # Such as a button that ends whatever is being written
        vars(pipeline).setdefault(SHOWN, {})[self.name] = value
        for call in list(vars(pipeline).get(CALLS, ())):
            call.attributes[self.name] = value


class CallScheduler:
    """A scheduler among the components of a pipeline, in the place of which each call has its own copy."""

    def __set_name__(self, owner: type, name: str):
        self.name = name

    def __get__(self, pipeline: Any, owner: type | None = None) -> Any:
        if pipeline is None:
            return self
        call = call_of(pipeline)
        if call is not None and self.name in call.schedulers:
            return call.schedulers[self.name]
        if self.name not in vars(pipeline):
            raise AttributeError(f"{type(pipeline).__name__} has no `{self.name}`.")
        return vars(pipeline)[self.name]

    def __set__(self, pipeline: Any, scheduler: Any):
        # Of the calls to come; those under way keep theirs.
        vars(pipeline)[self.name] = scheduler


def steps_of_call(
    pipeline: Any, steps: Generator[Any, None, Output], show: Callable[[Any], Any]
) -> Generator[Any, None, Output]:
    """The steps of a call, each taken under the call's own state.

    Args:
        steps: yields a batch after each step, and returns the output.
        show: what is yielded of a batch.
    """
    call = CallState(pipeline)
    calls = vars(pipeline).setdefault(CALLS, [])
    calls.append(call)
    vars(pipeline)[SHOWN] = call.attributes
    try:
        while True:
            with call:
                try:
                    shown = show(next(steps))
                except StopIteration as end:
                    # The output of a generator comes with the exception that ends it.
                    return end.value
            yield shown
    finally:
        # A stream may be left before its end.
        with call:
            steps.close()
        calls.remove(call)


def without_calls(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a pipeline that a copy of it has too: calls under way are none of the copy."""
    return {name: value for name, value in attributes.items() if name not in (CALLS, SHOWN)}


def own_copy(scheduler: Any) -> Any:
    """A scheduler with the same configuration and tables, whose grid and state are its own.

    Tensors are shared, since no scheduler changes them in place; containers, in which some keep their past, are not.

    Example:
        >>> from text_diffusers import D3PMAbsorbingScheduler
        >>> scheduler = D3PMAbsorbingScheduler(mask_token_id=9)
        >>> own = own_copy(scheduler)
        >>> own.set_timesteps(4)
        >>> len(own.timesteps), len(scheduler.timesteps)
        (4, 128)
    """
    copied = object.__new__(type(scheduler))
    # All at once, as another thread may be setting attributes.
    attributes = dict(vars(scheduler))
    vars(copied).update({name: own_value(value) for name, value in attributes.items()})
    return copied


def own_value(value: Any) -> Any:
    """`value`, with copies of the lists, dictionaries, sets and schedulers in it."""
    if isinstance(value, FrozenDict):
        return value
    if isinstance(value, SchedulerMixin):
        return own_copy(value)
    if type(value) is list:
        return [own_value(entry) for entry in list(value)]
    if type(value) is dict:
        return {key: own_value(entry) for key, entry in list(value.items())}
    return set(value) if type(value) is set else value
