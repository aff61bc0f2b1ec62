"""Grids of the times, from 1, pure noise, to 0, clean text, on which a run steps back.

Shapes: n steps, T training timesteps.
"""

import math
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.validation import are_numbers, as_plain, is_int, require

# Times are given in float32, to which 1 / T is rounded; in units of 1 / T they are integers up to this.
CLOCK_ROUNDING = 1e-6


def step_count(num_inference_steps: Any, most: float, limit: str) -> int:
    """The number of steps as an int, of any integer type.

    Raises:
        ValueError: if it is no integer from 1 to `most`, which `limit` says in words.
    """
    count = as_plain(num_inference_steps)
    require(is_int(count, 1) and count <= most, "num_inference_steps", limit, num_inference_steps)
    return count


def even_grid(num_inference_steps: Any, num_train_timesteps: int | None) -> Tensor:
    """(num_inference_steps + 1,) even times from 1 to 0, float64; those of a model of T steps are multiples of 1 / T.

    Raises:
        ValueError: if there are fewer than 1 or more than `num_train_timesteps` steps.
    """
    most = math.inf if num_train_timesteps is None else num_train_timesteps
    limit = "at least 1"
    if num_train_timesteps is not None:
        limit = f"between 1 and `num_train_timesteps`={num_train_timesteps}"
    count = step_count(num_inference_steps, most, limit)

    grid = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    # A model of T steps knows no other times than i / T.
    if num_train_timesteps is not None:
        grid = (grid * num_train_timesteps).round() / num_train_timesteps
    return grid


def given_grid(
    num_inference_steps: Any,
    timesteps: Any,
    num_train_timesteps: int | None,
    repeats: bool = False,
) -> Tensor:
    """(n + 1,) the times `timesteps` (n,), and 0 at the end, float64.

    Args:
        num_inference_steps: None, since there is a step for each of the times.
        timesteps: floats in (0, 1], descending.
        num_train_timesteps: T of a model of T steps, which knows multiples of 1 / T only.
        repeats: whether a time other than the first may come several times.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from text_diffusers.common.time_grids import given_grid
        >>> given_grid(None, [1.0, 0.5, 0.25], num_train_timesteps=None)
        tensor([1.0000, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    limit = "None where `timesteps` are given"
    require(num_inference_steps is None, "num_inference_steps", limit, num_inference_steps)
    plain_times = as_plain(timesteps)
    limit = "a list of at least one number"
    require(are_numbers(plain_times), "timesteps", limit, timesteps)

    times = torch.tensor(plain_times, dtype=torch.float64)
    falls = times.diff()
    descends = falls <= 0 if repeats else falls < 0
    # Nothing can be repeated before something was done.
    descends[:1] &= falls[:1] < 0
    inside = times.min() > 0 and times.max() <= 1
    limit = "in (0, 1] and descending"
    require(bool(inside and descends.all()), "timesteps", limit, times.tolist())

    if num_train_timesteps is not None:
        steps = times * num_train_timesteps
        rounded = steps.round()
        known = ((steps - rounded).abs() <= CLOCK_ROUNDING * num_train_timesteps).all()
        limit = f"multiples of 1 / T for `num_train_timesteps`={num_train_timesteps}"
        require(bool(known and rounded.min() >= 1), "timesteps", limit, times.tolist())
        times = rounded / num_train_timesteps
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])
