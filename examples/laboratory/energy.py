"""An energy-based model: p(x) = exp(-E(x)) / Z, learned by persistent contrastive divergence.

The gradient of -log p is that of E at the data less that of E at points of the model, which Langevin dynamics draw
(https://arxiv.org/abs/1903.08689). Z is an integral, of which only the plane allows a sum over a grid.

Shapes: B batch, N points, C chains, G points of a grid.
"""

import math

import torch
from torch import Tensor

from laboratory.base import PointModel, Update, mlp

NUM_CHAINS = 1024
CHAIN_STEPS = 8  # in a training step
FRESH_SHARE = 0.01  # of the chains that begin anew in a training step
STEP_SIZE = 0.005
SAMPLING_STEPS = 500
GRID_LIMIT = 6.0
GRID_SIZE = 400
# Keeps the energies of data and chains near 0, where only their difference counts
ENERGY_DECAY = 1e-2


class EnergyModel(PointModel):
    """A network for the energy, in a wide bowl, so that exp(-E) has an integral."""

    learning_rate = 1e-3
    adam_betas = (0.0, 0.99)
    density_kind = "sum over a grid"
    chains: Tensor

    def __init__(self):
        super().__init__()
        self.network = mlp(2, 1)
        self.register_buffer("chains", 2 * torch.randn(NUM_CHAINS, 2))

    def energy(self, points: Tensor) -> Tensor:
        """(N,) of points (N, 2)."""
        bowl = points.square().sum(dim=1) / 8
        return self.network(points).squeeze(1) + bowl

    def langevin(self, points: Tensor, num_steps: int) -> Tensor:
        """Points (N, 2) after so many steps: x moves by -h grad E + sqrt(2 h) noise."""
        for _ in range(num_steps):
            points = points.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(points).sum(), points)
            noise = torch.randn_like(points)
            points = points - STEP_SIZE * slope + math.sqrt(2 * STEP_SIZE) * noise
        return points.detach()

    def loss(self, batch: Tensor) -> Tensor:
        # 1. Some of the chains go on, a few of them from anywhere
        which = torch.randperm(NUM_CHAINS)[: len(batch)]
        anywhere = 2 * torch.randn(len(which), 2)
        is_fresh = torch.rand(len(which), 1) < FRESH_SHARE
        begin = torch.where(is_fresh, anywhere, self.chains[which])
        negatives = self.langevin(begin, CHAIN_STEPS)
        self.chains[which] = negatives

        # 2. Lower at the data, higher where the model is
        data_energy = self.energy(batch)
        model_energy = self.energy(negatives)
        size = (data_energy.square() + model_energy.square()).mean()
        return (data_energy - model_energy).mean() + ENERGY_DECAY * size

    def updates(self) -> list[Update]:
        return [Update(self, self.loss, cost=3.5)]

    def sample(self, count: int) -> Tensor:
        # The chains of training go on: from anywhere, modes would take many more steps to find.
        which = torch.randint(NUM_CHAINS, (count,))
        return self.langevin(self.chains[which], SAMPLING_STEPS)

    def log_normaliser(self) -> Tensor:
        """log Z, by a sum over a grid of the plane."""
        axis = torch.linspace(-GRID_LIMIT, GRID_LIMIT, GRID_SIZE)
        grid = torch.cartesian_prod(axis, axis)  # (G, 2)
        area = float(axis[1] - axis[0]) ** 2
        return (-self.energy(grid)).logsumexp(dim=0) + math.log(area)

    @torch.no_grad()
    def log_density(self, points: Tensor) -> Tensor:
        return -self.energy(points) - self.log_normaliser()
