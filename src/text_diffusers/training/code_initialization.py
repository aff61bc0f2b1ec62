"""Denoisers over codes that begin with what the codes mean to their autoencoder.

A code is a name for a vector. Denoisers that know the vectors learn at once what otherwise takes them long to find
out: which codes are alike, and that a fine code means something else beside another coarse one.

Shapes: K codes of a level, D width of the denoiser, E width of the autoencoder.
"""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def start_from_codebooks(denoiser: Any, autoencoder: Any, level: str):
    """Set the embeddings and the head of a `CodeTransformerModel` by the codebooks of an `AutoencoderVQTextModel`.

    The embedding of a fine code and what is added for the coarse code above it are images of the vectors whose sum the
    decoder reads.

    Args:
        denoiser: of the codes of `level`, changed in place; its other weights stay.
        level: "fine" or "coarse".
    """
    vectors = autoencoder.code_vectors(level)  # (K, patches, E)
    image = random_rotation(vectors.shape[-1], denoiser.config.hidden_size).to(vectors)
    codes = vectors.mean(dim=1) @ image  # (K, D)
    variance = codes.var()
    if denoiser.context_embedding is not None:
        plans = autoencoder.code_vectors("coarse") @ image  # (coarse codes, patches, D)
        variance = variance + plans.var()
        denoiser.context_embedding.weight[: len(plans)] = plans.flatten(1) * variance.rsqrt()
    denoiser.code_embedding.weight[: len(codes)] = codes * variance.rsqrt()
    denoiser.head.weight[: len(codes)] = codes / codes.std() * denoiser.config.hidden_size**-0.5


def random_rotation(rows: int, columns: int) -> Tensor:
    """(rows, columns) with orthonormal rows or columns, whichever are fewer; nothing for equal widths."""
    if rows == columns:
        return torch.eye(rows)
    return torch.nn.init.orthogonal_(torch.empty(rows, columns), generator=torch.Generator().manual_seed(0))
