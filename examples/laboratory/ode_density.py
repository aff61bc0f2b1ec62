"""The density of an ODE's samples, by the change of variables without jumps (https://arxiv.org/abs/1806.07366).

Along du / ds = v(u, s) from data at s = 0 to noise at s = 1 the log-density falls by the divergence of v:

    log p_0(u(0)) = log p_1(u(1)) + integral of div v(u(s), s) ds

Shapes: N points, n times.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from laboratory.base import standard_normal_log_density

Velocity = Callable[[Tensor, float], Tensor]


def ode_log_density(
    velocity: Velocity, points: Tensor, times: Sequence[float], last_scale: float = 1.0
) -> Tensor:
    """(N,) in nats, by Heun's method.

    Args:
        velocity: of points (N, 2) at one of the times, (N, 2).
        points: (N, 2) at the first time.
        times: (n,) ascending.
        last_scale: by which points at the last time are standard normal.
    """
    change = torch.zeros(len(points))
    for time, next_time in zip(times, times[1:], strict=False):
        step = next_time - time
        first_velocity, first_divergence = with_divergence(velocity, points, time)
        ahead = points + step * first_velocity
        second_velocity, second_divergence = with_divergence(velocity, ahead, next_time)
        points = points + step * (first_velocity + second_velocity) / 2
        change = change + step * (first_divergence + second_divergence) / 2

    log_last = standard_normal_log_density(last_scale * points) + 2 * math.log(last_scale)
    return log_last + change


def with_divergence(velocity: Velocity, points: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """The velocity (N, 2) at points, and its divergence (N,): the derivative of each coordinate by itself."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        moved = velocity(points, time)
        divergence = torch.zeros(len(points))
        for coordinate in range(2):
            whole = moved[:, coordinate].sum()
            (slope,) = torch.autograd.grad(whole, points, retain_graph=True)
            divergence = divergence + slope[:, coordinate]
    return moved.detach(), divergence.detach()
