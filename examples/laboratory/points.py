"""Points in the plane: moons, rings, eight Gaussians, and the words of a model.

The first three are mixtures of many equal Gaussians whose centres lie on a figure, so that their density is known, and
with it the best that any model can reach. All are scaled: their mean is 0, and the mean square of a coordinate is 1.

Shapes: N points, K centres, E width of an embedding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_circles, make_moons
from sklearn.decomposition import PCA
from torch import Tensor

from text_diffusers import TextDiffusionPipeline

NUM_CENTRES = 256  # near enough to each other that a figure has no gaps
SHORTEST_WORD = 3


@dataclass
class GaussianMixture:
    """K equal Gaussians, each as likely as any other.

    Attributes:
        centres: (K, 2).
        std: of each Gaussian, the same in all directions.
    """

    centres: Tensor
    std: float

    def sample(self, count: int) -> Tensor:
        """(N, 2) points, by torch's global generator."""
        which = torch.randint(len(self.centres), (count,))
        return self.centres[which] + self.std * torch.randn(count, 2)

    def log_density(self, points: Tensor) -> Tensor:
        """(N,) of points (N, 2), in nats."""
        squares = torch.cdist(points, self.centres).square()  # (N, K)
        log_kernels = -squares / (2 * self.std**2) - math.log(2 * math.pi * self.std**2)
        return log_kernels.logsumexp(dim=1) - math.log(len(self.centres))


@dataclass
class PointSet:
    """Points to train with, and others to measure with.

    Attributes:
        training, held_out: (N, 2) each.
        truth: where they were drawn from, if that is known.
        names: a word for each of the held-out points, if they are words.
    """

    training: Tensor
    held_out: Tensor
    truth: GaussianMixture | None = None
    names: list[str] | None = None


def scaled(centres: Any, std: float) -> GaussianMixture:
    """A mixture around centres (K, 2), moved and shrunk: the mean is 0, the mean square of a coordinate 1."""
    moved = torch.as_tensor(centres, dtype=torch.float32)
    moved = moved - moved.mean(dim=0)
    scale = math.sqrt(float(moved.square().mean()) + std**2)
    return GaussianMixture(moved / scale, std / scale)


def moons() -> GaussianMixture:
    """Two crescents, one within the other."""
    centres, _ = make_moons(NUM_CENTRES, noise=None, shuffle=False)
    return scaled(centres, std=0.08)


def rings() -> GaussianMixture:
    """A ring around a smaller one: half of the points are in each."""
    centres, _ = make_circles(NUM_CENTRES, noise=None, shuffle=False, factor=0.45)
    return scaled(centres, std=0.06)


def eight_gaussians() -> GaussianMixture:
    """Eight small Gaussians on a circle."""
    angles = np.arange(8) * math.pi / 4
    centres = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return scaled(centres, std=0.08)


FIGURES: dict[str, Callable[[], GaussianMixture]] = {
    "moons": moons,
    "rings": rings,
    "eight_gaussians": eight_gaussians,
}
# The names among which `--points` chooses
POINTS = (*FIGURES, "words")


def make_points(name: str, num_training: int, num_held_out: int, seed: int = 0) -> PointSet:
    """A set by its name, one of `POINTS`; of words there are only so many, of which a part is held out."""
    if name == "words":
        return word_points(num_held_out, seed)

    torch.manual_seed(seed)
    truth = FIGURES[name]()
    return PointSet(truth.sample(num_training), truth.sample(num_held_out), truth)


def word_points(num_held_out: int, seed: int, model: str = "four-voices") -> PointSet:
    """The words of a tokenizer where the first two principal components of their embeddings put them."""
    pipe = TextDiffusionPipeline.from_pretrained(model)
    embeddings = pipe.denoiser.get_input_embeddings().weight.detach().float()  # (V, E)

    # Words in small letters, or their beginnings: such tokens begin with a blank.
    texts = pipe.tokenizer.batch_decode([[token] for token in range(len(pipe.tokenizer))])
    tokens = []
    for token, text in enumerate(texts):
        word = text.strip()
        if text.startswith(" ") and word.isalpha() and word.islower():
            if len(word) >= SHORTEST_WORD:
                tokens.append(token)

    # Whitened coordinates have the mean 0 and the variance 1 each.
    plane = PCA(n_components=2, whiten=True, svd_solver="full")
    points = torch.as_tensor(plane.fit_transform(embeddings[tokens].numpy()))
    torch.manual_seed(seed)
    order = torch.randperm(len(tokens))
    held_out = order[:num_held_out]
    names = [texts[tokens[place]].strip() for place in held_out.tolist()]
    return PointSet(points[order[num_held_out:]], points[held_out], names=names)
