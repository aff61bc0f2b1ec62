"""What the prediction of a continuous denoiser stands for: clean embeddings or latents, noise, velocity.

Shapes: B batch, L sequence length or K latents of a text, E embedding or latent width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from text_diffusers.common.validation import require_key

PREDICTION_TYPES = ("sample", "epsilon", "v_prediction")


def clean_estimate(
    prediction_type: str, prediction: Tensor, noisy: Tensor, alpha_bar: float | Tensor
) -> Tensor:
    """(B, L, E) x_0 of a prediction at x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise.

    Args:
        prediction_type: what the network predicts, "sample" (x_0 itself), "epsilon" (the noise) or "v_prediction"
            (https://arxiv.org/abs/2202.00512).
        prediction: (B, L, E) output of the network.
        noisy: (B, L, E) x_t.
        alpha_bar: one number, or (B,), one a row.

    Raises:
        ValueError: for another `prediction_type`.

    Example:
        >>> import torch
        >>> from text_diffusers.common.clean_estimate import clean_estimate
        >>> clean, noise = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
        >>> noisy = 0.25**0.5 * clean + 0.75**0.5 * noise
        >>> torch.equal(clean_estimate("epsilon", noise, noisy, alpha_bar=0.25), clean)
        True
    """
    require_key("prediction_type", prediction_type, PREDICTION_TYPES)

    # Needs no alpha_bar, by whose root the others divide, and which is 0 at pure noise.
    if prediction_type == "sample":
        return prediction

    # One level of noise a row, or one for all
    if isinstance(alpha_bar, Tensor):
        signal = alpha_bar.sqrt().to(noisy).reshape(-1, 1, 1)
        sigma = (1 - alpha_bar).sqrt().to(noisy).reshape(-1, 1, 1)
    else:
        signal = math.sqrt(alpha_bar)
        sigma = math.sqrt(1 - alpha_bar)

    if prediction_type == "epsilon":
        return (noisy - sigma * prediction) / signal
    # A velocity is sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0.
    return signal * noisy - sigma * prediction


# Noise of any strength: the straight path of flow beside the curved one above


class NoiseLevel(NamedTuple):
    """The noise at one time: x_t = signal x_0 + sigma noise.

    Attributes:
        signal, sigma: one number for all rows, or float64 tensors (B,), one a row.
    """

    signal: float | Tensor
    sigma: float | Tensor


# Each prediction is `of_clean` x_0 + `of_noise` noise, both of the level at which it is made.
PREDICTION_PARTS = {
    "sample": lambda level: (1.0, 0.0),
    "epsilon": lambda level: (0.0, 1.0),
    "v_prediction": lambda level: (-level.sigma, level.signal),
    "flow": lambda level: (-1.0, 1.0),
}


def prediction_of(prediction_type: str, clean: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """(B, K, E) the true prediction at a level of noise, the target of training.

    Args:
        prediction_type: a key of `PREDICTION_PARTS`: "sample" (x_0), "epsilon" (the noise), "v_prediction"
            (https://arxiv.org/abs/2202.00512) or "flow" (noise - x_0, https://arxiv.org/abs/2209.03003).
        clean, noise: (B, K, E) x_0 and standard normal noise.
        level: of one number, or one a row.

    Raises:
        ValueError: for another `prediction_type`.
    """
    require_key("prediction_type", prediction_type, PREDICTION_PARTS)
    of_clean, of_noise = PREDICTION_PARTS[prediction_type](level)
    return by_row(of_clean, clean) * clean + by_row(of_noise, noise) * noise


def convert_prediction(
    prediction: Tensor, noisy: Tensor, level: NoiseLevel, prediction_type: str, target_type: str
) -> Tensor:
    """(B, K, E) the prediction of one type that a prediction of another type stands for.

    Prediction and x_t are two linear equations for x_0 and noise; any third prediction is a sum of these two.

    Args:
        prediction: (B, K, E) output of a network of `prediction_type`.
        noisy: (B, K, E) x_t.
        level: of x_t.
        prediction_type, target_type: keys of `PREDICTION_PARTS`.

    Raises:
        ValueError: for other types, or where a prediction and x_t say the same: "epsilon" without any signal, and
            "sample" without any noise.

    Example:
        >>> import torch
        >>> from text_diffusers.common.clean_estimate import NoiseLevel, convert_prediction
        >>> clean, noise = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
        >>> level = NoiseLevel(signal=0.75, sigma=0.25)
        >>> velocity = convert_prediction(clean, 0.75 * clean, level, "sample", "flow")
        >>> torch.equal(velocity, noise - clean)
        True
    """
    require_key("prediction_type", prediction_type, PREDICTION_PARTS)
    require_key("target_type", target_type, PREDICTION_PARTS)
    if target_type == prediction_type:
        return prediction

    determinant = level_determinant(prediction_type, level)
    if not bool(torch.as_tensor(determinant).all()):
        raise ValueError(
            f"`prediction_type` must say more than x_t does for a `target_type` {target_type!r}, got "
            f"{prediction_type!r} at a signal of {level.signal} and a sigma of {level.sigma}."
        )

    # target = of_prediction * prediction + of_noisy * x_t, by Cramer's rule
    from_clean, from_noise = PREDICTION_PARTS[prediction_type](level)
    to_clean, to_noise = PREDICTION_PARTS[target_type](level)
    of_prediction = (to_clean * level.sigma - to_noise * level.signal) / determinant
    of_noisy = (from_clean * to_noise - from_noise * to_clean) / determinant
    return by_row(of_prediction, noisy) * prediction + by_row(of_noisy, noisy) * noisy


def level_determinant(prediction_type: str, level: NoiseLevel) -> float | Tensor:
    """Of the two linear equations of `convert_prediction`.

    Divided by sigma it is, but for its sign, by how much the prediction changes with x_0 while x_t stays.
    """
    of_clean, of_noise = PREDICTION_PARTS[prediction_type](level)
    return of_clean * level.sigma - of_noise * level.signal


def by_row(values: float | Tensor, like: Tensor) -> float | Tensor:
    """One number as it is; numbers (B,) as (B, 1, 1) in the type of `like`."""
    if not isinstance(values, Tensor):
        return values
    return values.reshape(-1, 1, 1).to(like)
