"""An autoregressive model: a point is a text of two tokens, and the second is predicted from the first.

A coordinate falls into one of V bins, its token. p(x, y) = p(x) p(y | x) is a product of two softmaxes, as in a
language model, and within a bin the density is constant.

Shapes: B batch, N points, V bins.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from laboratory.base import PointModel, mlp

# The square outside of which the density is 0
LIMIT = 6.0


class AutoregressiveModel(PointModel):
    """One network for both tokens, as of a language model; it is told which one is due.

    Args:
        num_bins: V.
    """

    density_kind = "exact"

    def __init__(self, num_bins: int = 192):
        super().__init__()
        self.num_bins = num_bins
        self.bin_width = 2 * LIMIT / num_bins
        self.network = mlp(2, num_bins, width=96)

    def tokens_of(self, points: Tensor) -> Tensor:
        """(N, 2) tokens of points (N, 2); what is outside of the square gets that of its border."""
        tokens = ((points + LIMIT) / self.bin_width).floor().long()
        return tokens.clamp(0, self.num_bins - 1)

    def centres_of(self, tokens: Tensor) -> Tensor:
        """The coordinates in the middle of bins."""
        return (tokens + 0.5) * self.bin_width - LIMIT

    def next_logits(self, first_tokens: Tensor | None, count: int) -> Tensor:
        """(N, V) of the first token, or of the second one after first tokens (N,)."""
        if first_tokens is None:
            context = torch.zeros(count, 2)
        else:
            is_second = torch.ones(count)
            context = torch.stack([is_second, self.centres_of(first_tokens)], dim=1)
        return self.network(context)

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """(N,) of tokens (N, 2): the chain rule."""
        first_logits = self.next_logits(None, len(tokens))
        second_logits = self.next_logits(tokens[:, 0], len(tokens))
        first_nats = F.cross_entropy(first_logits, tokens[:, 0], reduction="none")
        second_nats = F.cross_entropy(second_logits, tokens[:, 1], reduction="none")
        return -first_nats - second_nats

    def loss(self, batch: Tensor) -> Tensor:
        return -self.log_probabilities(self.tokens_of(batch)).mean()

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        # 1. Token by token
        first = torch.multinomial(self.next_logits(None, count).softmax(dim=1), 1).squeeze(1)
        second = torch.multinomial(self.next_logits(first, count).softmax(dim=1), 1).squeeze(1)

        # 2. Anywhere in the bins
        centres = self.centres_of(torch.stack([first, second], dim=1))
        return centres + (torch.rand(count, 2) - 0.5) * self.bin_width

    @torch.no_grad()
    def log_density(self, points: Tensor) -> Tensor:
        inside = (points.abs() <= LIMIT).all(dim=1)
        log_density = self.log_probabilities(self.tokens_of(points)) - 2 * math.log(self.bin_width)
        return torch.where(inside, log_density, -torch.inf)
