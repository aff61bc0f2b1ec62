"""The clean embeddings that a prediction stands for.

Shapes: B batch, L sequence length, E embedding width.
"""

import math

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
