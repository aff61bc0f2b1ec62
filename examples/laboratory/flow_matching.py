"""Flow matching on straight paths (https://arxiv.org/abs/2210.02747, https://arxiv.org/abs/2209.03003).

    x_t = (1 - t) x_0 + t noise,    loss = |noise - x_0 - network(x_t, t)|^2

A network learns the mean velocity at a place, and an ODE carries noise along it to data.

Shapes: B batch, N points, n times.
"""

import torch
from torch import Tensor, nn

from laboratory.base import PointModel
from laboratory.diffusion import TimeNetwork
from laboratory.ode_density import ode_log_density
from laboratory.samplers import path_of
from text_diffusers.schedulers.latent.scheduling_flow import LatentFlowEulerScheduler

SAMPLING_STEPS = 50
ODE_STEPS = 100


class FlowMatching(PointModel):
    """A network for the velocity; diffusers' Euler steps, on the even grid of this library.

    Args:
        network: of points (B, 1, 2) and times (B,) in [0, 1].
    """

    learning_rate = 1e-2
    density_kind = "ODE"

    def __init__(self, network: nn.Module | None = None):
        super().__init__()
        self.network = TimeNetwork() if network is None else network
        self.scheduler = LatentFlowEulerScheduler()

    def loss(self, batch: Tensor) -> Tensor:
        clean = batch.unsqueeze(1)  # (B, 1, 2)
        times = torch.rand(len(batch))
        share = times[:, None, None]

        noise = torch.randn_like(clean)
        noisy = (1 - share) * clean + share * noise
        return (self.network(noisy, times) - (noise - clean)).square().mean()

    def predict(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """(B, 1, 2) of points (B, 1, 2) at a timestep of the scheduler."""
        times = timestep.float().expand(len(noisy)) / self.scheduler.config.num_train_timesteps
        return self.network(noisy, times)

    @torch.no_grad()
    def path(self, noise: Tensor) -> Tensor:
        """(n + 1, N, 2) all points on the way from noise (N, 2)."""
        self.scheduler.set_timesteps(SAMPLING_STEPS)
        return path_of(self.scheduler, self.predict, noise)

    def sample(self, count: int) -> Tensor:
        return self.path(torch.randn(count, 2))[-1]

    def velocity(self, points: Tensor, time: float) -> Tensor:
        """(N, 2) at points (N, 2), at a time in [0, 1]."""
        times = torch.full((len(points),), time)
        return self.network(points.unsqueeze(1), times).squeeze(1)

    def log_density(self, points: Tensor) -> Tensor:
        # Shorter steps near the data, where the velocity changes fastest
        times = torch.linspace(0, 1, ODE_STEPS + 1).square().tolist()
        return ode_log_density(self.velocity, points, times)
