"""How fast text turns into noise: alpha(t), the probability that a token is still itself, and its derivative.

Time runs from 0, clean text, to 1, pure noise. All functions map float64 tensors to float64 tensors of the same shape.

Shapes: V vocabulary size, S states of a token, N tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.validation import are_numbers, require

# The sigmoid is taken from minus this number to plus it.
SIGMOID_RANGE = 3.0

# Total noise at times 0 and 1; exp(-total) survives.
GEOMETRIC_RANGE = (1e-4, 20.0)

# Halvings of [0, 1] after which float64 cannot tell the ends apart.
BISECTIONS = 60

TimeFunction = Callable[[Tensor], Tensor]


def linear_alpha(t: Tensor) -> Tensor:
    return 1 - t


def linear_alpha_derivative(t: Tensor) -> Tensor:
    return -torch.ones_like(t)


def sigmoid_ends(like: Tensor) -> Tensor:
    """(2,) the sigmoid at both ends of its range."""
    return torch.sigmoid(
        torch.tensor([-SIGMOID_RANGE, SIGMOID_RANGE], dtype=like.dtype, device=like.device)
    )


def sigmoid_alpha(t: Tensor) -> Tensor:
    low, high = sigmoid_ends(t)
    return (torch.sigmoid(SIGMOID_RANGE * (1 - 2 * t)) - low) / (high - low)


def sigmoid_alpha_derivative(t: Tensor) -> Tensor:
    low, high = sigmoid_ends(t)
    value = torch.sigmoid(SIGMOID_RANGE * (1 - 2 * t))
    return -2 * SIGMOID_RANGE * value * (1 - value) / (high - low)


def geometric_alpha(t: Tensor) -> Tensor:
    low, high = GEOMETRIC_RANGE
    total = low ** (1 - t) * high**t
    return (torch.exp(-total) - math.exp(-high)) / (math.exp(-low) - math.exp(-high))


def geometric_alpha_derivative(t: Tensor) -> Tensor:
    low, high = GEOMETRIC_RANGE
    total = low ** (1 - t) * high**t
    slope = -math.log(high / low) * total * torch.exp(-total)
    return slope / (math.exp(-low) - math.exp(-high))


# Every schedule falls from exactly 1 to exactly 0, so the prior is exact and no bound needs a prior term. Sigmoid and
# geometric noise are rescaled to do so. "reciprocal" is D3PM's beta_t = 1 / (T - t + 1), whose product is 1 - t / T.
NOISE_SCHEDULES: dict[str, tuple[TimeFunction, TimeFunction]] = {
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


def noise_schedule(schedule: str | Sequence[float]) -> tuple[TimeFunction, TimeFunction]:
    """`(alpha, alpha_derivative)` of a named schedule, or of one that joins values at even times by straight lines.

    Raises:
        ValueError: if there is no such name, or the values do not fall from 1 to 0.

    Example:
        >>> import torch
        >>> from text_diffusers.schedulers.noise_schedules import noise_schedule
        >>> alpha, alpha_derivative = noise_schedule([1.0, 0.8, 0.0])
        >>> alpha(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        tensor([0.9000, 0.8000, 0.4000], dtype=torch.float64)
    """
    if isinstance(schedule, str) and schedule in NOISE_SCHEDULES:
        return NOISE_SCHEDULES[schedule]

    limit = f"one of {sorted(NOISE_SCHEDULES)} or a list of numbers"
    require(not isinstance(schedule, str) and are_numbers(schedule), "schedule", limit, schedule)
    values = torch.tensor(list(schedule), dtype=torch.float64)
    if len(values) < 2 or values[0] != 1 or values[-1] != 0 or not (values.diff() < 0).all():
        raise ValueError(f"`schedule` must fall from 1 to 0 at every value, got {values.tolist()}.")

    num_pieces = len(values) - 1

    def alpha(t: Tensor) -> Tensor:
        piece = (t * num_pieces).floor().long().clamp(0, num_pieces - 1)
        table = values.to(t.device)
        return table[piece] + (t * num_pieces - piece) * (table[piece + 1] - table[piece])

    def alpha_derivative(t: Tensor) -> Tensor:
        # At a corner, the slope of the interval before.
        piece = (t * num_pieces).ceil().long().clamp(1, num_pieces) - 1
        return values.diff().to(t.device)[piece] * num_pieces

    return alpha, alpha_derivative


def time_of_noise_level(alpha: TimeFunction, level: Tensor) -> Tensor:
    """The times at which 1 - alpha is `level`, float64 of the same shape, by bisection."""
    low = torch.zeros_like(level)
    high = torch.ones_like(level)

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_early = 1 - alpha(middle) < level
        low = torch.where(too_early, middle, low)
        high = torch.where(too_early, high, middle)
    return high


def mutual_information(
    scheduler: Any,
    frequencies: Tensor,
    timesteps: Sequence[float],
    max_tokens: int = 256,
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
        tokens = torch.arange(count)
        weights = probs
    else:
        # Tokens at even quantiles stand for the same share of the text each.
        quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        tokens = torch.searchsorted(probs.cumsum(0), quantiles).clamp(max=len(probs) - 1)
        weights = torch.full((count,), 1 / count, dtype=torch.float64)

    # H(x_t) - H(x_t | x_0).
    information = []
    for timestep in timesteps:
        rows = scheduler.transition(tokens, timestep)  # (N, S)
        mixture = weights @ rows
        entropy = -torch.xlogy(mixture, mixture).sum()
        conditional_entropies = -torch.xlogy(rows, rows).sum(dim=-1)
        information.append(float(entropy - weights @ conditional_entropies))
    return information


def mutual_information_schedule(
    scheduler: Any, frequencies: Tensor, num_values: int = 65
) -> list[float]:
    """Values of alpha at `num_values` even times under which I(x_t; x_0) falls linearly, D3PM's choice.

    Pass them as `schedule` to a scheduler like the given one. For absorbing noise they are those of "linear".
    """
    # The curve is taken at more times than are wanted, finer next to the data, where it falls fastest.
    times = torch.linspace(0, 1, 4 * num_values, dtype=torch.float64) ** 2
    nats = mutual_information(scheduler, frequencies, times.tolist())
    information = torch.tensor(nats, dtype=torch.float64)
    share = (information / information[0]).cummin(dim=0).values
    share[-1] = 0

    # Each wanted share lies between two times of the curve, which a straight line joins.
    wanted = torch.linspace(1, 0, num_values, dtype=torch.float64)[1:-1]
    after = torch.searchsorted(-share, -wanted).clamp(1, len(times) - 1)
    before = after - 1
    part = (wanted - share[after]) / (share[before] - share[after])
    wanted_times = times[after] - part * (times[after] - times[before])
    return [1.0, *scheduler.alpha(wanted_times).tolist(), 0.0]
