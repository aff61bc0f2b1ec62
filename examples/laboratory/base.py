"""What all models share: a small network, a loop that trains, and the names of what may be asked of them.

All models have some 35,000 parameters and the same budget, which is counted in plain steps: a batch goes forwards and
backwards through one network. A model whose step takes as long as several plain ones gets fewer.

Random numbers are those of torch's global generator, which the command seeds for each model.

Shapes: B batch, N points.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


def mlp(num_inputs: int, num_outputs: int, width: int = 128, depth: int = 3) -> nn.Sequential:
    """A network of so many hidden layers."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(num_inputs, width), nn.SiLU()]
        num_inputs = width
    return nn.Sequential(*layers, nn.Linear(width, num_outputs))


class Update(NamedTuple):
    """A part of a training step: one step of an optimizer.

    Attributes:
        module: whose parameters are updated.
        loss: of a batch (B, 2), a scalar.
        cost: the time that it takes, in plain steps, as measured on a CPU.
    """

    module: nn.Module
    loss: Callable[[Tensor], Tensor]
    cost: float


class PointModel(nn.Module):
    """Base of the models. One says what its loss is, and how it draws points."""

    learning_rate = 5e-3
    adam_betas = (0.9, 0.99)
    # How the density is known: "exact", or by which estimate; `None` if it is not.
    density_kind: str | None = None

    def loss(self, batch: Tensor) -> Tensor:
        """Of points (B, 2), a scalar."""
        raise NotImplementedError

    def updates(self) -> list[Update]:
        """The parts of a training step."""
        return [Update(self, self.loss, cost=1)]

    def sample(self, count: int) -> Tensor:
        """(N, 2) points."""
        raise NotImplementedError

    def log_density(self, points: Tensor) -> Tensor | None:
        """(N,) of points (N, 2), in nats, if it is known."""
        return None

    def bound(self, points: Tensor) -> Tensor | None:
        """(N,) a lower bound of the log-density of points (N, 2), on average over the draws, if there is one."""
        return None

    def fit(self, points: Tensor, budget: int, batch_size: int) -> int:
        """Train on points (N, 2) and return the number of steps: Adam, whose rate falls to 0 along a cosine.

        Args:
            budget: in plain steps.
            batch_size: B.
        """
        updates = self.updates()
        num_steps = int(budget / sum(update.cost for update in updates))
        optimizers = {}
        for module in {update.module for update in updates}:
            parameters = module.parameters()
            optimizers[module] = torch.optim.Adam(
                parameters, lr=self.learning_rate, betas=self.adam_betas
            )

        for step in range(num_steps):
            rate = self.learning_rate * (1 + math.cos(math.pi * step / num_steps)) / 2
            for update in updates:
                batch = points[torch.randint(len(points), (batch_size,))]
                loss = update.loss(batch)

                optimizer = optimizers[update.module]
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return num_steps


def standard_normal_log_density(points: Tensor) -> Tensor:
    """(N,) of points (N, 2) under N(0, 1) in each coordinate."""
    return -points.square().sum(dim=1) / 2 - math.log(2 * math.pi)
