"""What is known before a model is trained: frequencies in a text and, from neighbours or a model, embeddings.

Shapes: V vocabulary size, D width, L row length.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

LARGEST_VOCABULARY = 16_384


def pretrained_vectors(model_name_or_path: str, width: int) -> Tensor:
    """(V, D) input embeddings of a transformers model, projected on their D principal axes, each of unit variance.

    Raw embeddings share large offsets and few strong directions, which noise of one strength cannot hide evenly.

    Raises:
        ValueError: if the model's embeddings are narrower than D.
    """
    model: Any = AutoModel.from_pretrained(model_name_or_path, dtype=torch.float32)
    table = model.get_input_embeddings().weight.detach()
    if not 1 <= width <= min(table.shape):
        raise ValueError(f"`width` must be between 1 and {min(table.shape)} for this model, got {width}.")
    centred = (table - table.mean(dim=0)).double()
    left, _, _ = torch.linalg.svd(centred, full_matrices=False)
    return (left[:, :width] * len(table) ** 0.5).float()


def cooccurrence_vectors(batches: Iterable[dict[str, Tensor]], vocab_size: int, width: int, window: int = 2) -> Tensor:
    """(V, D) vectors of unit variance in which tokens with similar neighbours are close.

    The leading singular vectors of the positive pointwise mutual information of tokens up to `window` apart, each
    scaled by the root of its singular value: what word2vec factorises (Levy and Goldberg, NeurIPS 2014). As initial
    embeddings they spare a short training run most of the plateau on which only token frequencies are known.

    Args:
        batches: `input_ids` and `attention_mask`, (rows, L) each; padding is left out.
        vocab_size: V; the counts are a V by V matrix.
        width: D; columns beyond V are zero.
        window: largest distance; a pair at distance d counts 1 / d.

    Raises:
        ValueError: if V is too large for its square to be counted.
    """
    if not 1 <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(f"`vocab_size` must be between 1 and {LARGEST_VOCABULARY}, got {vocab_size}.")
    counts = torch.zeros(vocab_size * vocab_size, dtype=torch.float64)
    for batch in batches:
        tokens, real = batch["input_ids"].long(), batch["attention_mask"].bool()  # (rows, L)
        for distance in range(1, window + 1):
            both = real[:, :-distance] & real[:, distance:]
            pairs = (tokens[:, :-distance] * vocab_size + tokens[:, distance:])[both]
            counts += torch.bincount(pairs, minlength=len(counts)) / distance
    joint = counts.view(vocab_size, vocab_size)
    joint = joint + joint.T
    single = joint.sum(dim=1, keepdim=True) + 1
    information = torch.log((joint * joint.sum() / (single * single.T)).clamp(min=1)).float()
    rank = min(width, vocab_size)
    left, scale, _ = torch.svd_lowrank(information, q=rank, niter=4)
    vectors = F.pad(left * scale.sqrt(), (0, width - rank))  # (V, D)
    return vectors / vectors.std().clamp(min=1e-6)


class TextStatistics:
    """Counts of a text, made when they are asked for first.

    Args:
        batches: returns `input_ids` and `attention_mask`, (rows, L) each, anew at each call.
        vocab_size: V.
        width: D of the vectors.
    """

    def __init__(self, batches: Callable[[], Iterable[dict[str, Tensor]]], vocab_size: int, width: int):
        self._batches, self._vocab_size, self._width = batches, vocab_size, width

    def frequencies(self) -> Tensor:
        """(V,) counts of the tokens, float64."""
        return self._frequencies

    def vectors(self) -> Tensor:
        """(V, D) from `cooccurrence_vectors`."""
        return self._vectors

    @cached_property
    def _frequencies(self) -> Tensor:
        counts = torch.zeros(self._vocab_size, dtype=torch.float64)
        for batch in self._batches():
            real = batch["input_ids"][batch["attention_mask"].bool()].long()
            counts += torch.bincount(real, minlength=self._vocab_size)
        return counts

    @cached_property
    def _vectors(self) -> Tensor:
        return cooccurrence_vectors(self._batches(), self._vocab_size, self._width)
