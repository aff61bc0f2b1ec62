"""Generative adversarial networks: a generator that a second network tries to tell from the data. No likelihood.

The first is that of https://arxiv.org/abs/1406.2661 with its non-saturating loss, the second the Wasserstein GAN with
a penalty of the critic's gradient (https://arxiv.org/abs/1704.00028).

Shapes: B batch, N points.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from laboratory.base import PointModel, Update, mlp

NOISE_WIDTH = 2
CRITIC_UPDATES = 5  # for one of the generator
PENALTY = 0.1


class GAN(PointModel):
    """A discriminator learns log p_data / p_model as its logit, and the generator to raise it."""

    learning_rate = 1e-3
    adam_betas = (0.0, 0.99)

    def __init__(self):
        super().__init__()
        self.generator = mlp(NOISE_WIDTH, 2, width=88)
        self.discriminator = mlp(2, 1, width=88)

    def generate(self, count: int) -> Tensor:
        return self.generator(torch.randn(count, NOISE_WIDTH))

    def discriminator_loss(self, batch: Tensor) -> Tensor:
        generated = self.generate(len(batch)).detach()
        real_nats = F.softplus(-self.discriminator(batch))  # -log sigmoid(logit)
        generated_nats = F.softplus(self.discriminator(generated))
        return (real_nats + generated_nats).mean()

    def generator_loss(self, batch: Tensor) -> Tensor:
        return F.softplus(-self.discriminator(self.generate(len(batch)))).mean()

    def updates(self) -> list[Update]:
        return [
            Update(self.discriminator, self.discriminator_loss, cost=1),
            Update(self.generator, self.generator_loss, cost=1),
        ]

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        return self.generate(count)


class WassersteinGAN(GAN):
    """The critic's mean over data less that over generated points is the Wasserstein distance of both.

    That holds for critics whose slope is at most 1, to which the penalty keeps it.
    """

    adam_betas = (0.0, 0.9)

    def discriminator_loss(self, batch: Tensor) -> Tensor:
        generated = self.generate(len(batch)).detach()
        distance = self.discriminator(batch).mean() - self.discriminator(generated).mean()

        # The slope somewhere between data and generated points
        share = torch.rand(len(batch), 1)
        between = (share * batch + (1 - share) * generated).requires_grad_()
        critic_sum = self.discriminator(between).sum()
        (slope,) = torch.autograd.grad(critic_sum, between, create_graph=True)  # (B, 2)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        return PENALTY * penalty - distance

    def generator_loss(self, batch: Tensor) -> Tensor:
        return -self.discriminator(self.generate(len(batch))).mean()

    def updates(self) -> list[Update]:
        critic = Update(self.discriminator, self.discriminator_loss, cost=1.5)
        return [critic] * CRITIC_UPDATES + [Update(self.generator, self.generator_loss, cost=1)]
