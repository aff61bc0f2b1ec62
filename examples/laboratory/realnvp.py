"""A normalising flow, RealNVP (https://arxiv.org/abs/1605.08803): noise and points are one-to-one.

    log p(x) = log N(f(x); 0, 1) + log |det df / dx|

Shapes: B batch, N points.
"""

import torch
from torch import Tensor, nn

from laboratory.base import PointModel, Update, mlp, standard_normal_log_density

# Scales stay between exp(-2) and exp(2) in each layer.
LARGEST_LOG_SCALE = 2.0


class Coupling(nn.Module):
    """One coordinate is scaled and moved by numbers that the other one decides, and which it still knows backwards.

    Args:
        moved: the coordinate, 0 or 1, that is changed.
    """

    def __init__(self, moved: int):
        super().__init__()
        self.moved = moved
        self.network = mlp(1, 2, width=52)

    def parts(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The coordinate that stays, and log-scale and shift of the other one, (N, 1) each."""
        kept = points[:, 1 - self.moved].unsqueeze(1)
        log_scale, shift = self.network(kept).chunk(2, dim=1)
        return kept, LARGEST_LOG_SCALE * torch.tanh(log_scale), shift

    def joined(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, kept] if self.moved == 0 else [kept, changed], dim=1)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Towards the noise: (N, 2), and (N,) the logarithm of the determinant."""
        kept, log_scale, shift = self.parts(points)
        changed = (points[:, self.moved].unsqueeze(1) - shift) * torch.exp(-log_scale)
        return self.joined(kept, changed), -log_scale.squeeze(1)

    def inverse(self, points: Tensor) -> Tensor:
        """Towards the data, (N, 2)."""
        kept, log_scale, shift = self.parts(points)
        changed = points[:, self.moved].unsqueeze(1) * torch.exp(log_scale) + shift
        return self.joined(kept, changed)


class RealNVP(PointModel):
    """Couplings that change the coordinates in turn.

    Args:
        num_layers: of couplings.
    """

    density_kind = "exact"

    def __init__(self, num_layers: int = 6):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(moved=layer % 2) for layer in range(num_layers))

    def noise_of(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The noise (N, 2) of points, and (N,) the logarithm of the determinant."""
        log_determinant = torch.zeros(len(points))
        for layer in self.layers:
            points, log_scale = layer(points)
            log_determinant = log_determinant + log_scale
        return points, log_determinant

    def points_of(self, noise: Tensor) -> Tensor:
        """The points (N, 2) of noise: all layers backwards."""
        for layer in reversed(list(self.layers)):
            assert isinstance(layer, Coupling)
            noise = layer.inverse(noise)
        return noise

    def updates(self) -> list[Update]:
        return [Update(self, self.loss, cost=2)]

    def exact_log_density(self, points: Tensor) -> Tensor:
        noise, log_determinant = self.noise_of(points)
        return standard_normal_log_density(noise) + log_determinant

    def loss(self, batch: Tensor) -> Tensor:
        return -self.exact_log_density(batch).mean()

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        return self.points_of(torch.randn(count, 2))

    @torch.no_grad()
    def log_density(self, points: Tensor) -> Tensor:
        return self.exact_log_density(points)
