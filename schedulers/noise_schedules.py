"""How fast text turns into noise: alpha(t), the probability that a token is still itself, and its derivative.

Time runs from 0, clean text, to 1, pure noise. All functions map float64 tensors to float64 tensors of the same shape.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SIGMOID_RANGE = 3.0
GEOMETRIC_RANGE = (1e-4, 20.0)


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
