"""A variational autoencoder (https://arxiv.org/abs/1312.6114): a point is decoded from a latent vector.

    log p(x) >= E log p(x | z) - KL(q(z | x) | N(0, 1)),    z from q(z | x)

Shapes: B batch, N points, Z width of a latent vector, S draws.
"""

import math

import torch
from torch import Tensor, nn

from laboratory.base import PointModel, mlp, standard_normal_log_density

LATENT_WIDTH = 2
NUM_DRAWS = 64


class VariationalAutoencoder(PointModel):
    """Encoder and decoder are Gaussian; the decoder has one variance for all points, which is learned."""

    density_kind = "64 weighted draws"

    def __init__(self):
        super().__init__()
        self.encoder = mlp(2, 2 * LATENT_WIDTH, width=88)
        self.decoder = mlp(LATENT_WIDTH, 2, width=88)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), (N, Z) each."""
        mean, log_std = self.encoder(points).chunk(2, dim=1)
        return mean, log_std.exp()

    def log_likelihood(self, points: Tensor, latents: Tensor) -> Tensor:
        """(N,) log p(x | z) of points (N, 2) and latents (N, Z)."""
        squares = (points - self.decoder(latents)).square().sum(dim=1)
        return -squares / (2 * self.log_variance.exp()) - self.log_variance - math.log(2 * math.pi)

    def bound(self, points: Tensor) -> Tensor:
        mean, std = self.posterior(points)
        latents = mean + std * torch.randn_like(
            mean
        )  # reparameterised: gradients reach the encoder
        divergence = ((mean.square() + std.square() - 1) / 2 - std.log()).sum(dim=1)
        return self.log_likelihood(points, latents) - divergence

    def loss(self, batch: Tensor) -> Tensor:
        return -self.bound(batch).mean()

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        means = self.decoder(torch.randn(count, LATENT_WIDTH))
        return means + (self.log_variance / 2).exp() * torch.randn(count, 2)

    @torch.no_grad()
    def log_density(self, points: Tensor) -> Tensor:
        """By importance weights: the mean of p(x, z) / q(z | x), which the more draws take the nearer to p(x)."""
        mean, std = self.posterior(points)
        log_weights = []
        for _ in range(NUM_DRAWS):
            noise = torch.randn_like(mean)
            latents = mean + std * noise
            log_joint = self.log_likelihood(points, latents) + standard_normal_log_density(latents)
            log_posterior = standard_normal_log_density(noise) - std.log().sum(dim=1)
            log_weights.append(log_joint - log_posterior)
        return torch.stack(log_weights).logsumexp(dim=0) - math.log(NUM_DRAWS)  # of (S, N)
