"""What a configuration may hold: a file of JSON can say anything, and a float for a size would fail far from there."""

import inspect
import math
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

# Tensors with two sides of this size still have a number of entries that torch can count.
LARGEST_SIZE = 2**24
MOST_LAYERS = 1_000
LONGEST_CLOCK = 2**20
NAMES = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false", NoneType: "None"}


def check_config_types(model: Any):
    """Refuse a value in the configuration that is not of the type that the model's constructor says.

    Raises:
        ValueError: that names the argument.
    """
    for name, parameter in inspect.signature(type(model).__init__).parameters.items():
        if name in model.config and not is_of(model.config[name], parameter.annotation):
            limit = " or ".join(type_names(parameter.annotation))
            raise ValueError(f"`{name}` must be {limit}, got {shortened(model.config[name])}.")


def is_of(value: Any, annotation: Any) -> bool:
    """Whether a value of JSON is what an annotation says; numbers must be finite, and true is no integer."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(is_of(value, choice) for choice in inner)
    if origin is list:
        return isinstance(value, list | tuple) and all(is_of(entry, inner[0]) for entry in value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return is_of(value, int) or isinstance(value, float) and math.isfinite(value)
    return isinstance(value, annotation)


def type_names(annotation: Any) -> list[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return [name for choice in inner for name in type_names(choice)]
    return [f"a list, each of it {NAMES[inner[0]]}" if origin is list else NAMES[annotation]]


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_sizes(config: Any, names: Iterable[str], least: int = 1, most: int = LARGEST_SIZE, optional: bool = False):
    """Refuse integers that are out of range; None is one that may be if they are `optional`.

    Raises:
        ValueError: that names the argument.
    """
    for name in names:
        value = getattr(config, name)
        if optional and value is None:
            continue
        kind = f"{'None or ' * optional}an integer"
        if not is_of(value, int) or value < least:
            raise ValueError(f"`{name}` must be {kind} of at least {least}, got {shortened(value)}.")
        if value > most:
            raise ValueError(f"`{name}` must be {kind} of at most {most}, got {value}.")
