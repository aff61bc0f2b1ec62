"""One-token sources with known embeddings, whose exact denoiser and exact bound are known.

Shapes: V words, E embedding width, Z points of noise, T timesteps.
"""

import math

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from text_diffusers.losses.embedding import prior_kl, reconstruction, transition_kl


def cosine_alphas(num_timesteps: int, first: float = 0.8) -> Tensor:
    """(T,) alphas from near `first`, at which the words are still in doubt, to near 0."""
    angles = (
        torch.arange(1, num_timesteps + 1, dtype=torch.float64) / (num_timesteps + 1) * math.pi / 2
    )
    return first * angles.cos() ** 2


class WordSource:
    """Words with `probs` (V,) and embeddings `table` (V, E); tokens are independent."""

    def __init__(self, probs, table):
        self.probs = torch.tensor(probs, dtype=torch.float64)
        self.table = torch.tensor(table, dtype=torch.float64)

    @property
    def entropy(self) -> float:
        return float(-(self.probs * self.probs.log()).sum())

    def log_posterior(self, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
        """(..., V) log p(w | z_t) of noisy embeddings (..., E); `alpha_bar` must broadcast with (..., 1)."""
        means = alpha_bar.double().sqrt().unsqueeze(-1) * self.table  # (..., V, E)
        distances = (noisy.double().unsqueeze(-2) - means).square().sum(dim=-1)
        return (self.probs.log() - distances / (2 * (1 - alpha_bar.double()))).log_softmax(dim=-1)

    def exact_steps(self, alphas: Tensor) -> tuple[Tensor, float]:
        """Nats of each step (T,), the reconstruction at 0, and of the prior; E = 1, integrated over the noise."""
        noise = torch.linspace(-9, 9, 1500, dtype=torch.float64)
        weights = torch.softmax(-noise.square() / 2, dim=0) * self.probs.unsqueeze(1)  # (V, Z)
        clean = self.table.unsqueeze(1).expand(-1, len(noise), -1)  # (V, Z, 1)
        words = torch.arange(len(self.probs)).unsqueeze(1).expand(-1, len(noise))
        steps = []
        for t, alpha in enumerate(alphas):
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise.unsqueeze(1)
            log_posterior = self.log_posterior(noisy, alpha.view(1, 1, 1))
            if t == 0:
                nats = reconstruction(log_posterior, words)
            else:
                nats = transition_kl(clean, log_posterior.exp() @ self.table, alpha, alphas[t - 1])
            steps.append((weights * nats).sum())
        return torch.stack(steps), float(
            self.probs @ prior_kl(self.table.unsqueeze(1), alphas[-1]).squeeze(1)
        )

    def rows(self, count: int, length: int, seed: int = 0, shortest: int | None = None) -> Dataset:
        """Rows of `length` words, or padded to it from at least `shortest`."""
        rng = np.random.default_rng(seed)
        words = rng.choice(len(self.probs), size=(count, length), p=self.probs.numpy())
        lengths = rng.integers(shortest or length, length + 1, size=(count, 1))
        real = (np.arange(length) < lengths).astype(int)
        return Dataset.from_dict({"input_ids": words.tolist(), "attention_mask": real.tolist()})
