"""Configurations of schedulers that go from one class to another: of whose noise they are, and what was chosen."""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from text_diffusers.common.subclasses import loaded_subclasses

# Values of `corruption` of noise that only hides: a token that is no mask, nor shown as its cluster, is x_0.
HIDING_NOISES = ("absorbing", "hierarchical")


def untouched_defaults(scheduler: Any) -> list[str]:
    """Names of the settings that were left out and have their default.

    diffusers takes all that was passed by position for a default, which `from_config` would then drop.
    """
    parameters = inspect.signature(type(scheduler).__init__).parameters
    return [
        name
        for name in scheduler.config.get("_use_default_values", ())
        if name in parameters and is_same(scheduler.config.get(name), parameters[name].default)
    ]


def is_same(value: Any, default: Any) -> bool:
    """Whether a setting is its default; defaults are plain values, while a setting may be a tensor."""
    return type(value) is type(default) and value == default


def required_settings(cls: type) -> list[str]:
    """Names of the arguments without which a class cannot be made."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [
        parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty
    ]


def check_same_noise(cls: Any, config: Mapping[str, Any], changes: Mapping[str, Any]):
    """Raise a `ValueError` unless a scheduler of the class `cls` can be made from a configuration.

    That of another noise serves if `changes` have all that the class is made of, such as its `mask_token_id`.
    """
    required = required_settings(cls)
    if set(required) <= set(changes):
        return

    # A class that is not loaded is unknown; one of diffusers has no noise of tokens to its name.
    origins = {child.__name__: child for child in loaded_subclasses(SchedulerMixin)}
    origin = config.get("_class_name")
    noise = getattr(origins.get(str(origin)), "corruption", None)
    missing = [name for name in required if name not in config and name not in changes]
    if missing or noise not in (None, cls.corruption):
        source = f"{origin} ({noise} noise)" if noise else origin or sorted(config)
        wanted = " and ".join(f"`{name}`" for name in missing or required)
        raise ValueError(
            f"`config` must be that of a scheduler of {cls.corruption} noise for {cls.__name__}, or come with its "
            f"{wanted}, got that of {source}."
        )
