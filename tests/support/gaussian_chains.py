"""Data whose exact denoiser is known, and the plain sampling loop, for the schedulers of word embeddings.

Shapes: B batch, L sequence length, E embedding width, K components.
"""

import json

from torch import Tensor

from support.oracles import GOLDEN, float64

MEAN, STD = 0.7, 0.5


def embedding_cases(file: str, kind: str) -> list[dict]:
    content = json.loads((GOLDEN / f"{file}.json").read_text())
    return [
        case | {"tolerance": content["tolerance"]}
        for case in content["cases"]
        if case["kind"] == kind
    ]


def gaussian_denoiser(noisy: Tensor, alpha_bar: Tensor) -> Tensor:
    """E[x_0 | x_t] where x_0 ~ N(MEAN, STD^2)."""
    gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
    return MEAN + gain * (noisy - alpha_bar.sqrt() * MEAN)


def gaussian_flow(noisy: Tensor, alpha_bar: Tensor, next_alpha_bar: Tensor) -> Tensor:
    """Where the probability flow carries x_t of `gaussian_denoiser`'s data: its quantile stays the same."""
    quantile = (noisy - alpha_bar.sqrt() * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar).sqrt()
    return (
        next_alpha_bar.sqrt() * MEAN
        + (next_alpha_bar * STD**2 + 1 - next_alpha_bar).sqrt() * quantile
    )


def mixture_denoiser(embedding: list, weights: list, std: float):
    """E[x_0 | x_t] for each position, a mixture of N(e_k, std^2 I) with e_k the rows of `embedding` (K, E)."""
    means, log_weights = float64(embedding), float64(weights).log()

    def denoise(noisy: Tensor, alpha_bar: Tensor) -> Tensor:
        variance = alpha_bar * std**2 + 1 - alpha_bar
        off = noisy.unsqueeze(-2) - alpha_bar.sqrt() * means  # (B, L, K, E)
        share = (
            (log_weights - off.square().sum(dim=-1) / (2 * variance)).softmax(dim=-1).unsqueeze(-1)
        )
        return (share * (means + alpha_bar.sqrt() * std**2 / variance * off)).sum(dim=-2)

    return denoise


def prediction_of(prediction_type: str, clean: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a network of that type says if it means `clean`."""
    noise = (noisy - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
    return {"sample": clean, "epsilon": noise, "v_prediction": velocity}[prediction_type]


def sample(scheduler, noisy: Tensor, denoise=gaussian_denoiser, **arguments) -> Tensor:
    """Runs over all `timesteps`, the prediction being exact."""
    for timestep in scheduler.timesteps:
        alpha_bar = scheduler.alphas_cumprod[timestep]
        clean = denoise(noisy, alpha_bar)
        predicted = prediction_of(scheduler.config.prediction_type, clean, noisy, alpha_bar)
        noisy = scheduler.step(predicted, timestep, noisy, **arguments).prev_sample
    return noisy
