"""A mixture of Gaussians as the data: its exact denoiser at any noise, and whether samples are of it.

Shapes: N samples, K latents, E latent width, M components.
"""

import torch
from torch import Tensor

from text_diffusers.common.clean_estimate import NoiseLevel, prediction_of

# Two modes well apart, of unlike shares and widths, with one latent of two dimensions: M = 2, K = 1, E = 2
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[[-1.2, 0.8]], [[0.8, -0.4]]], dtype=torch.float64)  # (M, K, E)
STDS = torch.tensor([0.3, 0.5], dtype=torch.float64)


def exact_clean(noisy: Tensor, level: NoiseLevel) -> Tensor:
    """(N, K, E) E[x_0 | x_t] at x_t (N, K, E)."""
    signal, sigma = float(level.signal), float(level.sigma)
    variances = signal**2 * STDS**2 + sigma**2  # (M,)
    off = noisy.unsqueeze(1) - signal * MEANS  # (N, M, K, E)
    dimensions = MEANS[0].numel()
    log_weights = (
        SHARES.log()
        - dimensions / 2 * variances.log()
        - off.square().sum(dim=(2, 3)) / (2 * variances)
    )
    weights = log_weights.softmax(dim=1)[..., None, None]
    gains = (signal * STDS**2 / variances)[:, None, None]
    return (weights * (MEANS + gains * off)).sum(dim=1)


def exact_prediction(scheduler, noisy: Tensor, timestep) -> Tensor:
    """(N, K, E) what a network that knows the truth says."""
    level = scheduler.noise_level(timestep)
    clean = exact_clean(noisy, level)
    kind = scheduler.config.prediction_type
    # A clean estimate needs no noise, and says it all where there is none.
    noise = (noisy - float(level.signal) * clean) / float(level.sigma)
    return prediction_of(kind, clean, noise, level)


def run(scheduler, noisy: Tensor, generator=None, **arguments) -> Tensor:
    """(N, K, E) samples from noise by the exact prediction."""
    drawing = {} if generator is None else {"generator": generator}
    for timestep in scheduler.timesteps:
        prediction = exact_prediction(scheduler, noisy, timestep)
        noisy = scheduler.step(prediction, timestep, noisy, **drawing, **arguments).prev_sample
    return noisy


def deviations(samples: Tensor) -> dict[str, float]:
    """How many standard errors samples (N, K, E) are off the mixture in shares, means and covariance."""
    count = len(samples)
    points, means = samples.flatten(1).double(), MEANS.flatten(1)  # (N, D), (M, D)
    mean = SHARES @ means
    second = sum(
        share * (torch.outer(m, m) + std**2 * torch.eye(len(m)))
        for share, m, std in zip(SHARES, means, STDS, strict=True)
    )
    covariance = second - torch.outer(mean, mean)

    # Standard errors of products are taken from the samples themselves.
    products = (points - mean).unsqueeze(2) * (points - mean).unsqueeze(1)  # (N, D, D)
    off_products = (products.mean(dim=0) - covariance) / (products.std(dim=0) / count**0.5)
    off_means = (points.mean(dim=0) - mean) / (covariance.diagonal() / count) ** 0.5

    # The half-plane between the modes; its share of the mixture is known by the normal distribution.
    direction = means[1] - means[0]
    threshold = means.mean(dim=0) @ direction
    upper = points @ direction > threshold
    tails = ((means @ direction - threshold) / (STDS * direction.norm())).double()
    expected = float(SHARES @ torch.special.ndtr(tails))
    off_share = (float(upper.double().mean()) - expected) / (
        expected * (1 - expected) / count
    ) ** 0.5
    return {
        "share": abs(off_share),
        "mean": float(off_means.abs().max()),
        "covariance": float(off_products.abs().max()),
    }
