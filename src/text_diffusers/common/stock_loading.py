"""Components that stock `DiffusionPipeline` can load, whatever they inherit from."""

import sys

from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin


class StockLoading:
    """Base of models and schedulers whose subclasses stand in modules of their own.

    To learn how a component is loaded, `DiffusionPipeline` looks for the name `ModelMixin` or `SchedulerMixin` in the
    module of its class. Here it is put there for every subclass.

    Example:
        >>> class Scheduler(StockLoading, SchedulerMixin):
        ...     pass
        >>> hasattr(sys.modules[Scheduler.__module__], "SchedulerMixin")
        True
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        module = sys.modules[cls.__module__]
        for base in (ModelMixin, SchedulerMixin):
            if issubclass(cls, base):
                # A module that has imported the name keeps what it has.
                vars(module).setdefault(base.__name__, base)
