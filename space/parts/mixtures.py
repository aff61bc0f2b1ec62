"""Mixtures of Gaussians in the plane, whose denoiser is known exactly, and samplers that follow it.

The clean point behind x_t = signal x_0 + sigma noise is a mean over the Gaussians, each with the probability that x_t
came from it, as Bayes' rule has it. Nothing is trained, so what a sampler gets wrong is its own.

Shapes: N points, K Gaussians, T training timesteps, n calls of the denoiser.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from text_diffusers.schedulers.latent.scheduling_score import (
    AnnealedLangevinScheduler,
    ProbabilityFlowScheduler,
)
from text_diffusers.space.parts.running import generator

NUM_TRAIN_TIMESTEPS = 1000
NUM_POINTS = 240
NEAR = 3.0  # standard deviations from a centre, within which 99% of the points of a Gaussian lie


@dataclass(frozen=True)
class Mixture:
    """K equal Gaussians, each as likely as any other.

    Attributes:
        centres: (K, 2) float64.
        std: of each Gaussian, the same in all directions.

    Example:
        >>> import torch
        >>> from text_diffusers.space.parts.mixtures import Mixture
        >>> mixture = Mixture(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64), std=0.1)
        >>> mixture.noise_in(torch.zeros(1, 2, dtype=torch.float64), alpha=0.5)
        tensor([[0., 0.]], dtype=torch.float64)
    """

    centres: Tensor
    std: float

    def sample(self, count: int, draws: torch.Generator) -> Tensor:
        """(N, 2) clean points."""
        which = torch.randint(len(self.centres), (count,), generator=draws)
        noise = torch.randn(count, 2, generator=draws, dtype=torch.float64)
        return self.centres[which] + self.std * noise

    def noise_in(self, noisy: Tensor, alpha: float) -> Tensor:
        """(N, 2) the noise expected in noisy points (N, 2), whose signal is the root of `alpha`."""
        signal = math.sqrt(alpha)
        sigma = math.sqrt(1 - alpha)

        # 1. Which Gaussian a point came from
        variance = (signal * self.std) ** 2 + sigma**2
        squares = (noisy[:, None] - signal * self.centres).square().sum(dim=2)  # (N, K)
        shares = (-squares / (2 * variance)).softmax(dim=1)

        # 2. What is left of the point without its centre is noise, in the share that noise has in the variance.
        surplus = noisy - signal * (shares @ self.centres)
        return sigma * surplus / variance

    def share_near(self, points: Tensor) -> float:
        """The share of points (N, 2) within `NEAR` standard deviations of a centre."""
        distances = torch.cdist(points.double(), self.centres).min(dim=1).values
        return float((distances <= NEAR * self.std).double().mean())


def scaled(centres: Tensor, std: float) -> Mixture:
    """A mixture around centres (K, 2), moved and shrunk: the mean is 0, the mean square of a coordinate 1."""
    moved = centres - centres.mean(dim=0)
    scale = math.sqrt(float(moved.square().mean()) + std**2)
    return Mixture(moved / scale, std / scale)


def on_circle(count: int, first: float = 0.0, arc: float = 2 * math.pi) -> Tensor:
    """(K, 2) points of a circle, evenly along an arc."""
    angles = first + arc * torch.arange(count, dtype=torch.float64) / count
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def moons() -> Mixture:
    """Two crescents, one within the other."""
    upper = on_circle(32, arc=math.pi)
    lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper
    return scaled(torch.cat([upper, lower]), std=0.08)


def rings() -> Mixture:
    """A ring around a smaller one, with the same number of points."""
    return scaled(torch.cat([on_circle(48), 0.45 * on_circle(48)]), std=0.06)


def eight() -> Mixture:
    """Eight small Gaussians on a circle."""
    return scaled(on_circle(8), std=0.08)


FIGURES: dict[str, Callable[[], Mixture]] = {"moons": moons, "rings": rings, "eight": eight}


# Samplers, made for a number of steps


def stock(scheduler_class: type, **more: Any) -> Any:
    """A scheduler of diffusers; points are no pixels, and are not clipped."""
    return scheduler_class(NUM_TRAIN_TIMESTEPS, prediction_type="epsilon", **more)


def by_score(scheduler_class: type, **more: Any) -> Any:
    """A scheduler of this library for the noise of those of diffusers."""
    noise = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
    return scheduler_class(NUM_TRAIN_TIMESTEPS, prediction_type="epsilon", **noise, **more)


PLANE_SAMPLERS: dict[str, Callable[[], Any]] = {
    "ddpm": lambda: stock(DDPMScheduler, clip_sample=False, timestep_spacing="trailing"),
    "ddim": lambda: stock(DDIMScheduler, clip_sample=False, timestep_spacing="trailing"),
    "dpm_solver": lambda: stock(DPMSolverMultistepScheduler, timestep_spacing="trailing"),
    "probability_flow": lambda: by_score(ProbabilityFlowScheduler, solver_order=2),
    "langevin": lambda: by_score(AnnealedLangevinScheduler),
}


@cache
def mixture_of(figure: str) -> Mixture:
    """The mixture of one of `FIGURES`."""
    return FIGURES[figure]()


@cache
def alphas() -> Tensor:
    """(T,) float64, the share of the data in the variance of noisy points at each timestep."""
    return stock(DDPMScheduler).alphas_cumprod.double()


def noisy_points(figure: str, time: float, seed: int) -> tuple[Tensor, Tensor]:
    """Clean points and the same under the noise of a time from 0 to 1, (N, 2) each.

    A seed draws the same points and the same noise for every time.
    """
    draws = generator(seed)
    clean = mixture_of(figure).sample(NUM_POINTS, draws)
    noise = torch.randn(clean.shape, generator=draws, dtype=torch.float64)
    if time == 0:
        return clean, clean
    alpha = float(alphas()[round(time * (NUM_TRAIN_TIMESTEPS - 1))])
    return clean, math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise


def path_of(figure: str, sampler: str, steps: int, seed: int) -> Tensor:
    """(n + 1, N, 2) float32, all points of one of `PLANE_SAMPLERS` on the way from noise to the figure."""
    mixture = mixture_of(figure)
    scheduler = PLANE_SAMPLERS[sampler]()
    scheduler.set_timesteps(steps)

    # All points are one row of N latents with two numbers each, as the schedulers of this library have them.
    draws = generator(seed)
    sample = torch.randn(1, NUM_POINTS, 2, generator=draws, dtype=torch.float64)
    path = [sample]
    for timestep in scheduler.timesteps:
        alpha = float(alphas()[int(timestep)])
        noise = mixture.noise_in(sample[0], alpha).unsqueeze(0)
        sample = scheduler.step(noise, timestep, sample, generator=draws).prev_sample
        path.append(sample)
    return torch.cat(path).float()
