"""Checks of arguments: small predicates, and the one error that names argument, limit and value."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

LONGEST_CLOCK = 2**20
LONGEST_SHOWN = 80
CLOCK_LIMIT = f"an integer of at least 1 and at most {LONGEST_CLOCK}"


def require(condition: bool, name: str, limit: str, value: Any):
    """Raise a `ValueError` that names the argument, its limit and what came, unless `condition` holds.

    Example:
        >>> require(0 <= 1.5 <= 1, "eta", "a number in [0, 1]", 1.5)
        Traceback (most recent call last):
        ValueError: `eta` must be a number in [0, 1], got 1.5.
    """
    if condition:
        return

    shown = repr(value)
    if len(shown) > LONGEST_SHOWN:
        shown = f"{shown[:LONGEST_SHOWN]}..."
    raise ValueError(f"`{name}` must be {limit}, got {shown}.")


def is_int(value: Any, low: float = -math.inf) -> bool:
    """Whether `value` is an integer of at least `low`; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite number in [low, high]; a bool is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return low <= value <= high and abs(value) < math.inf


def is_number_of_steps(value: Any) -> bool:
    """Whether a clock may have so many steps: float32 tells their times apart, and their tables stay small."""
    return is_int(value, 1) and value <= LONGEST_CLOCK


def is_key(value: Any, table: Collection[str]) -> bool:
    return isinstance(value, str) and value in table


def is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def is_table(value: Any, axes: int) -> bool:
    """Whether `value` is a tensor of finite numbers with so many axes."""
    return isinstance(value, Tensor) and value.ndim == axes and bool(torch.isfinite(value).all())


def are_numbers(values: Any) -> bool:
    """Whether `values` is a list, tensor or array of at least one finite number."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    return is_list(values) and len(values) > 0 and all(is_number(value) for value in values)


def check_strings(name: str, value: Any):
    """Raise a `ValueError` unless the argument `name` is a string or a list of at least one string."""
    strings = value if is_list(value) else [value]
    if not strings or not all(isinstance(string, str) for string in strings):
        raise ValueError(f"`{name}` must be a string or a list of strings, got {value!r}.")
