"""Vectors to codes and back, one interface to the quantisers of `vector_quantize_pytorch`.

VQ-VAE (https://arxiv.org/abs/1711.00937) with codebooks that follow moving averages, codes sampled by the Gumbel trick
(https://arxiv.org/abs/1611.01144), FSQ (https://arxiv.org/abs/2309.15505).

Shapes: B batch, n vectors of a row, D width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, VectorQuantize

QUANTIZERS = ("ema", "gumbel", "fsq")


class TextQuantizer(nn.Module):
    """One codebook.

    Args:
        quantizer: "ema", the nearest code; "gumbel", in training a code drawn by the softmax of minus its distance,
            with straight-through gradients; "fsq", rounding.
        hidden_size: D.
        num_codes: of the codebook; with "fsq" the list of its levels.
        codebook_dim: width at which vectors are compared.
        decay: of the moving averages that the codebook follows.
        commitment_weight: of the squared distance of a vector to its code in the loss.
        dead_code_threshold: a code is replaced by a vector of the batch once its moving share of the vectors is below
            this part of an even share; 0 keeps all codes.
        rotation_trick: gradients by rotation (https://arxiv.org/abs/2410.06424) and not straight through.

    Example:
        >>> import torch
        >>> from text_diffusers.models import TextQuantizer
        >>> quantizer = TextQuantizer("fsq", 8, [3, 5], 4, 0.99, 0.25, 0.1, rotation_trick=False)
        >>> quantised, codes, loss = quantizer(torch.zeros(2, 6, 8))
        >>> quantised.shape, codes.shape, quantizer.num_codes
        (torch.Size([2, 6, 8]), torch.Size([2, 6]), 15)
    """

    def __init__(
        self,
        quantizer: str,
        hidden_size: int,
        num_codes: int | list[int],
        codebook_dim: int,
        decay: float,
        commitment_weight: float,
        dead_code_threshold: float,
        rotation_trick: bool,
    ):
        super().__init__()
        self.num_codes = num_codes if isinstance(num_codes, int) else math.prod(num_codes)
        self.dead_code_threshold = dead_code_threshold

        # Vectors keep one size, so that distances to the codes mean the same all through training.
        self.norm = nn.LayerNorm(hidden_size)
        self.layer: Any
        if quantizer == "fsq":
            assert not isinstance(num_codes, int)
            self.layer = FSQ(list(num_codes), dim=hidden_size)
            return

        assert isinstance(num_codes, int)
        sampled = quantizer == "gumbel"
        self.layer = VectorQuantize(
            hidden_size,
            num_codes,
            codebook_dim=codebook_dim,
            decay=decay,
            kmeans_init=True,
            threshold_ema_dead_code=dead_code_threshold,  # pyright: ignore[reportArgumentType]
            commitment_weight=commitment_weight,
            stochastic_sample_codes=sampled,
            # Codes that are drawn take straight-through gradients.
            rotation_trick=rotation_trick and not sampled,
            # The averages are those of the batches of all processes.
            sync_codebook=num_processes() > 1,
        )
        nn.init.normal_(self.layer._codebook.embed)  # until training sets it by k-means

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; in training the codebook follows x.

        Args:
            x: (B, n, D).

        Returns:
            `(quantised (B, n, D), codes (B, n), loss ())`; the commitment loss is 0 outside of training and of "fsq".
        """
        # Distances and averages need all digits.
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.to(self.norm.weight.dtype))
            if isinstance(self.layer, FSQ):
                quantised, codes = self.layer(x)
                return quantised, codes.long(), x.new_zeros(())

            # Outside of training nothing is drawn, and the codebook stays as it is.
            if not self.training:
                codes = self._nearest(x)
                return self.vectors(codes), codes, x.new_zeros(())

            if self.dead_code_threshold:
                self._set_threshold(num_vectors=x.shape[0] * x.shape[1] * num_processes())
            quantised, codes, loss = self.layer(x)
            return quantised, codes, loss.sum()

    def _nearest(self, x: Tensor) -> Tensor:
        """(B, n) codes of x (B, n, D). The library would start the codebook by k-means here too."""
        projected = self.layer.project_in(x).float()
        return torch.cdist(projected, self.layer.codebook.float()).argmin(dim=-1)

    def _set_threshold(self, num_vectors: int):
        """Set the count below which a code is dead, and with which a new one begins.

        The library counts vectors a batch; a new code begins with an even share, and so has time to be used. The
        share is one of the batches so far, whatever their sizes, or of the `num_vectors` of the first.
        """
        codebook = self.layer._codebook
        even_share = num_vectors / self.num_codes
        if codebook.initted:
            even_share = float(codebook.cluster_size.mean())
        codebook.reset_cluster_size = even_share
        codebook.threshold_ema_dead_code = self.dead_code_threshold * even_share

    def codes(self, x: Tensor) -> Tensor:
        """(B, n) codes of x (B, n, D), in training too without chance and without a change of the codebook."""
        # In eval mode for this call only, even if it fails.
        training = self.training
        self.eval()
        try:
            return self(x)[1]
        finally:
            self.train(training)

    def vectors(self, codes: Tensor) -> Tensor:
        """(B, n, D) of codes (B, n)."""
        if isinstance(self.layer, FSQ):
            # The codes of FSQ are the points of a grid, which is not learned.
            codebook: Any = self.layer.implicit_codebook
            return self.layer.project_out(codebook[codes].to(self.norm.weight.dtype))
        return self.layer.get_output_from_indices(codes)


def num_processes() -> int:
    """Number of processes that share one codebook."""
    group = torch.distributed
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1
