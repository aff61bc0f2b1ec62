"""How fast text turns into noise: alpha(t), the probability that a token is still itself, and its derivative.

Time runs from 0, clean text, to 1, pure noise. All functions map float64 tensors to float64 tensors of the same shape.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.validation import are_numbers, require

SIGMOID_RANGE = 3.0
GEOMETRIC_RANGE = (1e-4, 20.0)
BISECTIONS = 60


def sigmoid_alpha(t: Tensor) -> Tensor:
    low, high = torch.sigmoid(torch.tensor([-SIGMOID_RANGE, SIGMOID_RANGE], dtype=t.dtype, device=t.device))
    return (torch.sigmoid(SIGMOID_RANGE * (1 - 2 * t)) - low) / (high - low)


def sigmoid_alpha_derivative(t: Tensor) -> Tensor:
    low, high = torch.sigmoid(torch.tensor([-SIGMOID_RANGE, SIGMOID_RANGE], dtype=t.dtype, device=t.device))
    value = torch.sigmoid(SIGMOID_RANGE * (1 - 2 * t))
    return -2 * SIGMOID_RANGE * value * (1 - value) / (high - low)


def geometric_alpha(t: Tensor) -> Tensor:
    low, high = GEOMETRIC_RANGE
    return (torch.exp(-(low ** (1 - t)) * high**t) - math.exp(-high)) / (math.exp(-low) - math.exp(-high))


def geometric_alpha_derivative(t: Tensor) -> Tensor:
    low, high = GEOMETRIC_RANGE
    total = low ** (1 - t) * high**t
    return -math.log(high / low) * total * torch.exp(-total) / (math.exp(-low) - math.exp(-high))


def linear_alpha(t: Tensor) -> Tensor:
    return 1 - t


def linear_alpha_derivative(t: Tensor) -> Tensor:
    return -torch.ones_like(t)


# Every schedule falls from exactly 1 to exactly 0, so the prior is exact and no bound needs a prior term. Sigmoid and
# geometric noise are rescaled to do so. "reciprocal" is D3PM's beta_t = 1 / (T - t + 1), whose product is 1 - t / T.
NOISE_SCHEDULES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (linear_alpha, linear_alpha_derivative),
    "reciprocal": (linear_alpha, linear_alpha_derivative),
    "cosine": (
        lambda t: torch.sin(math.pi / 2 * (1 - t)) ** 2,
        lambda t: -math.pi / 2 * torch.sin(math.pi * t),
    ),
    "sigmoid": (sigmoid_alpha, sigmoid_alpha_derivative),
    "sqrt": (lambda t: 1 - torch.sqrt(t), lambda t: -0.5 / torch.sqrt(t)),
    "geometric": (geometric_alpha, geometric_alpha_derivative),
}


def noise_schedule(schedule: str | Sequence[float]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """`(alpha, alpha_derivative)` of a named schedule, or of one that joins values at even times by straight lines.

    Raises:
        ValueError: if there is no such name, or the values do not fall from 1 to 0.
    """
    if isinstance(schedule, str) and schedule in NOISE_SCHEDULES:
        return NOISE_SCHEDULES[schedule]
    limit = f"one of {sorted(NOISE_SCHEDULES)} or a list of numbers"
    require(not isinstance(schedule, str) and are_numbers(schedule), "schedule", limit, schedule)
    values = torch.tensor(list(schedule), dtype=torch.float64)
    if len(values) < 2 or values[0] != 1 or values[-1] != 0 or not (values.diff() < 0).all():
        raise ValueError(f"`schedule` must fall from 1 to 0 at every value, got {values.tolist()}.")
    pieces = len(values) - 1

    def alpha(t: Tensor) -> Tensor:
        piece = (t * pieces).floor().long().clamp(0, pieces - 1)
        table = values.to(t.device)
        return table[piece] + (t * pieces - piece) * (table[piece + 1] - table[piece])

    def alpha_derivative(t: Tensor) -> Tensor:
        piece = (t * pieces).ceil().long().clamp(1, pieces) - 1  # at a corner, that of the interval before
        return values.diff().to(t.device)[piece] * pieces

    return alpha, alpha_derivative


def time_of_noise_level(alpha: Callable[[Tensor], Tensor], level: Tensor) -> Tensor:
    """The times at which 1 - alpha is `level`, float64 of the same shape, by bisection."""
    low, high = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        early = 1 - alpha(middle) < level
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    return high


def mutual_information(
    scheduler: Any, frequencies: Tensor, timesteps: Sequence[float], max_tokens: int = 256
) -> list[float]:
    """I(x_t; x_0) in nats at each of `timesteps`, for tokens of the given frequencies (V,).

    Args:
        scheduler: a token scheduler with `transition`.
        frequencies: (V,) counts or probabilities of the tokens.
        max_tokens: the conditional entropy is averaged over the tokens if there are no more than this, else over a
            systematic sample of that size.
    """
    probs = frequencies.double() / frequencies.sum()
    count = min(max_tokens, len(probs))
    if count == len(probs):
        tokens, weights = torch.arange(count), probs
    else:
        quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        tokens = torch.searchsorted(probs.cumsum(0), quantiles).clamp(max=len(probs) - 1)
        weights = torch.full((count,), 1 / count, dtype=torch.float64)
    found = []
    for timestep in timesteps:
        rows = scheduler.transition(tokens, timestep)  # (count, S)
        mixture = weights @ rows
        entropies = -torch.xlogy(rows, rows).sum(dim=-1)
        found.append(float(-torch.xlogy(mixture, mixture).sum() - weights @ entropies))
    return found


def mutual_information_schedule(scheduler: Any, frequencies: Tensor, num_values: int = 65) -> list[float]:
    """Values of alpha at `num_values` even times under which I(x_t; x_0) falls linearly, D3PM's choice.

    Pass them as `schedule` to a scheduler like the given one. For absorbing noise they are those of "linear".
    """
    times = torch.linspace(0, 1, 4 * num_values, dtype=torch.float64) ** 2  # finer next to the data
    information = torch.tensor(mutual_information(scheduler, frequencies, times.tolist()), dtype=torch.float64)
    share = (information / information[0]).cummin(dim=0).values
    share[-1] = 0
    wanted = torch.linspace(1, 0, num_values, dtype=torch.float64)[1:-1]
    after = torch.searchsorted(-share, -wanted).clamp(1, len(times) - 1)  # the first time with less than is wanted
    low, high = share[after], share[after - 1]
    found = times[after] - (wanted - low) / (high - low) * (times[after] - times[after - 1])
    return [1.0, *scheduler.alpha(found).tolist(), 0.0]
