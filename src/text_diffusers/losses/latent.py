"""Losses of continuous latents of texts, in nats.

Shapes: B batch, K latents, E width of a latent.
"""

import torch
from torch import Tensor


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each entry, in nats: (B, K, E), like both arguments.

    Summed over the entries it is what latents tell of a text beyond the prior.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import gaussian_kl
        >>> gaussian_kl(torch.tensor([0.0, 2.0]), torch.zeros(2)).tolist()
        [0.0, 2.0]
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def with_free_bits(kl: Tensor, free_bits: float) -> Tensor:
    """The divergence of each entry (B, K, E), but at least `free_bits` nats, so that below there is no gradient.

    An entry may tell so much of each text for nothing, which keeps it from telling nothing at all
    (https://arxiv.org/abs/1606.04934). The floor is of each row by itself, so the loss of a row does not depend on its
    batch.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import with_free_bits
        >>> with_free_bits(torch.tensor([0.25, 3.0]), free_bits=0.5).tolist()
        [0.5, 3.0]
    """
    return torch.where(kl > free_bits, kl, free_bits)
