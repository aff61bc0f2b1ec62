"""Losses and the variational bound of diffusion over word embeddings, one value a token.

A word w has the clean embedding x = Emb(w), and q(z_t | w) = N(sqrt(a_t) x, (1 - a_t) I), a_t being
`alphas_cumprod[t]` on the clock 0..T-1, larger noisier. `prior_kl`, the sum of `transition_kl` over t = T-1, ..., 1
with s = t - 1, and `reconstruction` at t = 0 add up to a bound of -log p(w) in nats.

Shapes: B batch, L sequence length, E embedding width, V vocabulary size. An `alpha_bar` is (), or (B,), one a row.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.clean_estimate import PREDICTION_TYPES
from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.validation import require_key


class DiffusionLMLoss(NamedTuple):
    """The three terms of Diffusion-LM's loss, (B, L) each; the loss is their sum."""

    mse: Tensor
    rounding: Tensor
    prior: Tensor


def reparameterize(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """A draw of N(mean, std^2) from standard normal `noise`: (B, L, E); `std` is () or (B,)."""
    return mean + per_row(std, noise) * noise


def noisy_start(clean: Tensor, alpha_bar_0: Tensor, noise: Tensor) -> Tensor:
    """Diffusion-LM's x_start, N(Emb(w), (1 - a_0) I): (B, L, E). The mean is not scaled by sqrt(a_0)."""
    return reparameterize(clean, (1 - alpha_bar_0).sqrt(), noise)


def prediction_target(
    prediction_type: str,
    start: Tensor,
    clean: Tensor,
    noise: Tensor,
    alpha_bar_t: Tensor,
    first: Tensor,
) -> Tensor:
    """Target of the network's prediction at z_t = sqrt(a_t) start + sqrt(1 - a_t) noise.

    Args:
        prediction_type: "sample", "epsilon" or "v_prediction".
        start, clean, noise: (B, L, E) x_start, the embeddings without noise, and the noise of z_t.
        alpha_bar_t: () or (B,) a_t.
        first: (B,) bool, t = 0: there the target of "sample" is `clean`, as in Diffusion-LM.

    Returns:
        (B, L, E).

    Raises:
        ValueError: for another `prediction_type`.
    """
    require_key("prediction_type", prediction_type, PREDICTION_TYPES)
    if prediction_type == "sample":
        return torch.where(first.reshape(-1, 1, 1), clean, start)
    if prediction_type == "epsilon":
        return noise

    # The velocity, see https://arxiv.org/abs/2202.00512.
    return (
        per_row(alpha_bar_t.sqrt(), noise) * noise
        - per_row((1 - alpha_bar_t).sqrt(), start) * start
    )


def diffusion_lm_loss(
    prediction: Tensor,
    target: Tensor,
    start_logits: Tensor,
    input_ids: Tensor,
    start: Tensor,
    alpha_bar_T: Tensor,
) -> DiffusionLMLoss:
    """The end-to-end loss of Diffusion-LM (https://arxiv.org/abs/2205.14217): squared error, rounding and prior.

    Args:
        prediction, target: (B, L, E), see `prediction_target`.
        start_logits: (B, L, V) logits of the words given x_start, not given the prediction.
        input_ids: (B, L) the words.
        start: (B, L, E) x_start.
        alpha_bar_T: () at the last timestep, T - 1.

    Returns:
        The terms, unweighted: squared error and prior are means over E, rounding is in nats.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import diffusion_lm_loss
        >>> zeros = torch.zeros(1, 3, 8)
        >>> words = torch.tensor([[4, 0, 2]])
        >>> terms = diffusion_lm_loss(zeros, zeros + 1, torch.zeros(1, 3, 5), words, zeros, torch.tensor(1e-4))
        >>> terms.mse, sum(terms).shape
        (tensor([[1., 1., 1.]]), torch.Size([1, 3]))
    """
    mse = mean_square(prediction - target)
    # Words are read off x_start, so that rounding trains embeddings and not the network.
    rounding = reconstruction(start_logits, input_ids)
    # The mean of z at the last time, which noise should hide: it keeps embeddings small.
    prior = mean_square(per_row(alpha_bar_T.sqrt(), start) * start)
    return DiffusionLMLoss(mse, rounding, prior)


def simple_loss(prediction: Tensor, noise: Tensor) -> Tensor:
    """Squared error of predicted noise, mean over E: (B, L, E) each -> (B, L). See https://arxiv.org/abs/2006.11239."""
    return mean_square(prediction - noise)


def anchor_loss(
    logits_of_estimate: Tensor, input_ids: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the words given the clean *estimate*, Difformer's anchor (https://arxiv.org/abs/2212.09412).

    Args:
        logits_of_estimate: (B, L, V).
        input_ids: (B, L) the words.
        label_smoothing: share of the target that is spread evenly over the vocabulary.

    Returns:
        (B, L) nats.
    """
    return reconstruction(logits_of_estimate, input_ids, label_smoothing)


def reconstruction(logits: Tensor, input_ids: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log p(w | z): logits (B, L, V), words (B, L) -> (B, L) nats."""
    # Half precision is too coarse for a sum over the vocabulary.
    flat_logits = at_least_float32(logits.flatten(0, 1))
    loss = F.cross_entropy(
        flat_logits, input_ids.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return loss.view(input_ids.shape)


def prior_kl(clean: Tensor, alpha_bar_T: Tensor) -> Tensor:
    """KL(q(z_{T-1} | w) || N(0, I)), sum over E: `clean` (B, L, E) -> (B, L) nats."""
    # The two terms of the spread almost cancel, which needs float64.
    alpha = alpha_bar_T.double()
    mean = per_row(alpha.sqrt(), clean) * clean
    # The divergence of the variances in each dimension, times -2: not above 0.
    spread = per_row(alpha + torch.log1p(-alpha), clean).squeeze(-1)
    return 0.5 * (at_least_float32(mean).square().sum(dim=-1) - clean.shape[-1] * spread)


def transition_kl(
    clean: Tensor, estimate: Tensor, alpha_bar_t: Tensor, alpha_bar_s: Tensor
) -> Tensor:
    """KL(q(z_s | z_t, x) || q(z_s | z_t, estimate)), the step of DDPM sampling with variance "fixed_small".

    It is (SNR_s - SNR_t) / 2 times the squared distance, with SNR = a / (1 - a).

    Args:
        clean, estimate: (B, L, E) x, and the network's estimate of it from z_t.
        alpha_bar_t, alpha_bar_s: () or (B,), both below 1, s before t.

    Returns:
        (B, L) nats, sum over E.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import transition_kl
        >>> clean = torch.zeros(1, 2, 4)
        >>> transition_kl(clean, clean + 1, torch.tensor(0.5), torch.tensor(0.75))  # (3 - 1) / 2 * 4
        tensor([[4., 4.]])
    """
    distance = at_least_float32(clean - estimate).square().sum(dim=-1)
    # Next to the data both ratios are large, and their difference is taken in float64.
    gain = signal_to_noise(alpha_bar_s) - signal_to_noise(alpha_bar_t)
    return 0.5 * per_row(gain, clean).squeeze(-1).to(distance) * distance


def signal_to_noise(alpha_bar: Tensor) -> Tensor:
    """a / (1 - a) in float64."""
    alpha = alpha_bar.double()
    return alpha / (1 - alpha)


def mean_square(values: Tensor) -> Tensor:
    return at_least_float32(values).square().mean(dim=-1)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B, 1, 1), or (1, 1, 1) if `values` are one number, in the dtype and on the device of `like`."""
    return values.reshape(-1, 1, 1).to(like)
