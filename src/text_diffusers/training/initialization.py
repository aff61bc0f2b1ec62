"""Weights that are known before a model is trained: embeddings of tokens, from neighbours or a model, and of codes.

Shapes: V vocabulary size, D width, B rows of a batch, L row length, K codes of a level, E width of an autoencoder.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

from text_diffusers.data.rows import Batch

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
        raise ValueError(
            f"`width` must be between 1 and {min(table.shape)} for this model, got {width}."
        )

    # In float64: weak axes would lose their digits beside the strong ones.
    centred = (table - table.mean(dim=0)).double()
    left, _, _ = torch.linalg.svd(centred, full_matrices=False)
    return (left[:, :width] * len(table) ** 0.5).float()


def cooccurrence_vectors(
    batches: Iterable[Batch], vocab_size: int, width: int, window: int = 2
) -> Tensor:
    """(V, D) vectors of unit variance in which tokens with similar neighbours are close.

    The leading singular vectors of the positive pointwise mutual information of tokens up to `window` apart, each
    scaled by the root of its singular value: what word2vec factorises (Levy and Goldberg, NeurIPS 2014). As initial
    embeddings they spare a short training run most of the plateau on which only token frequencies are known.

    Args:
        batches: `input_ids` and `attention_mask`, (B, L) each; padding is left out.
        vocab_size: V; the counts are a V by V matrix.
        width: D; columns beyond V are zero.
        window: largest distance; a pair at distance d counts 1 / d.

    Raises:
        ValueError: if V is too large for its square to be counted.

    Example:
        >>> import torch
        >>> from text_diffusers.training.initialization import cooccurrence_vectors
        >>> tokens = torch.randint(0, 9, (20, 12), generator=torch.Generator().manual_seed(0))
        >>> batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        >>> cooccurrence_vectors([batch], vocab_size=9, width=4).shape
        torch.Size([9, 4])
    """
    if not 1 <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(
            f"`vocab_size` must be between 1 and {LARGEST_VOCABULARY}, got {vocab_size}."
        )

    # Count pairs of tokens, as numbers of one axis.
    counts = torch.zeros(vocab_size * vocab_size, dtype=torch.float64)
    for batch in batches:
        tokens = batch["input_ids"].long()  # (B, L)
        real = batch["attention_mask"].bool()
        for distance in range(1, window + 1):
            both = real[:, :-distance] & real[:, distance:]
            pairs = (tokens[:, :-distance] * vocab_size + tokens[:, distance:])[both]
            counts += torch.bincount(pairs, minlength=len(counts)) / distance

    # Positive pointwise mutual information.
    joint = counts.view(vocab_size, vocab_size)
    joint = joint + joint.T
    single = joint.sum(dim=1, keepdim=True) + 1
    information = torch.log(
        (joint * joint.sum() / (single * single.T)).clamp(min=1)
    ).float()  # (V, V)

    # Its leading singular vectors; columns that a small vocabulary does not have are zero.
    rank = min(width, vocab_size)
    left, scale, _ = torch.svd_lowrank(information, q=rank, niter=4)
    vectors = F.pad(left * scale.sqrt(), (0, width - rank))  # (V, D)
    return vectors / vectors.std().clamp(min=1e-6)


class TextStatistics:
    """Counts of a text, made when they are asked for first.

    Args:
        batches: returns `input_ids` and `attention_mask`, (B, L) each, anew at each call.
        vocab_size: V.
        width: D of the vectors.

    Example:
        >>> import torch
        >>> from text_diffusers.training.initialization import TextStatistics
        >>> tokens = torch.tensor([[0, 1, 1, 2]])
        >>> batch = {"input_ids": tokens, "attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> TextStatistics(lambda: [batch], vocab_size=3, width=2).frequencies()
        tensor([1., 2., 0.], dtype=torch.float64)
    """

    def __init__(self, batches: Callable[[], Iterable[Batch]], vocab_size: int, width: int):
        self.batches = batches
        self.vocab_size = vocab_size
        self.width = width
        self._frequencies: Tensor | None = None
        self._vectors: Tensor | None = None

    def frequencies(self) -> Tensor:
        """(V,) counts of the tokens, float64."""
        if self._frequencies is None:
            self._frequencies = torch.zeros(self.vocab_size, dtype=torch.float64)
            for batch in self.batches():
                real = batch["input_ids"][batch["attention_mask"].bool()].long()
                self._frequencies += torch.bincount(real, minlength=self.vocab_size)
        return self._frequencies

    def vectors(self) -> Tensor:
        """(V, D) from `cooccurrence_vectors`."""
        if self._vectors is None:
            self._vectors = cooccurrence_vectors(self.batches(), self.vocab_size, self.width)
        return self._vectors


@torch.no_grad()
def start_from_words(
    denoiser: Any,
    vectors: Tensor | None = None,
    token_ids: list[int] | None = None,
    shared_variance: float = 0.8,
    sets_head: bool = True,
):
    """Set the embeddings and the head of a `TextTransformerModel` from what is known of its words.

    Where a word is masked, the network only has to find its embedding somewhere to predict it, so the head starts as
    the transpose of the embeddings: a word of the source can be repeated before it was ever learned. Vectors of
    neighbours make words alike that stand in the same company, and spare a short run its plateau; a random part keeps
    apart those that a text must not confuse, such as names.

    Args:
        denoiser: changed in place; its other weights stay.
        vectors: (V, D) of unit variance, from `cooccurrence_vectors`; `None` leaves embeddings random.
        token_ids: of the words that have such vectors.
        shared_variance: of embeddings, the share that comes from `vectors`; the rest is random.
        sets_head: whether the head starts so as well, for absorbing noise, whose masks hide what is predicted.

    Example:
        >>> import torch
        >>> from text_diffusers import TextTransformerModel
        >>> from text_diffusers.training.initialization import start_from_words
        >>> denoiser = TextTransformerModel(9, hidden_size=16, num_layers=1, num_attention_heads=2)
        >>> start_from_words(denoiser)
        >>> torch.equal(denoiser.head.weight, denoiser.token_embedding.weight / 4)
        True
    """
    embeddings = denoiser.token_embedding.weight  # (V, D)
    if vectors is not None:
        shared = shared_variance**0.5 * vectors[token_ids]
        own = (1 - shared_variance) ** 0.5 * embeddings[token_ids]
        embeddings[token_ids] = (shared + own).to(embeddings)
    # A tied head has no weight of its own.
    if sets_head and denoiser.head is not None:
        denoiser.head.weight.copy_(embeddings * denoiser.config.hidden_size**-0.5)


@torch.no_grad()
def start_clusters(denoiser: Any, scheduler: Any):
    """Set the embeddings of clusters, and the head, by what a cluster says of its tokens.

    The embedding of a cluster is the mean of those of its tokens, in the length that tokens have. In the head of its
    own that a model may have, the tokens of a cluster begin equally near to it: which of them it stands for, the text
    around it has to tell, and not how near they are to the mean.

    Args:
        denoiser: a `TextTransformerModel`, changed in place.
        scheduler: a `D3PMHierarchicalScheduler`, which says what the clusters are.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMHierarchicalScheduler, TextTransformerModel
        >>> from text_diffusers.training.initialization import start_clusters, start_from_words
        >>> scheduler = D3PMHierarchicalScheduler(4, vocab_size=7, clusters=torch.tensor([0, 0, 1, 1]))
        >>> denoiser = TextTransformerModel(7, hidden_size=16, num_layers=1, num_attention_heads=2)
        >>> start_from_words(denoiser)
        >>> start_clusters(denoiser, scheduler)
        >>> table = denoiser.token_embedding.weight.detach()
        >>> logits = denoiser.head.weight @ table[5]  # of the first cluster
        >>> torch.isclose(logits[0], logits[1])
        tensor(True)
    """
    embeddings = denoiser.token_embedding.weight  # (V, D)
    clusters = scheduler.config.clusters.to(embeddings.device)
    for cluster in range(scheduler.num_clusters):
        tokens = (clusters == cluster).nonzero().squeeze(1)
        members = embeddings[tokens]  # (n, D)
        # A mean of many is short, and would be lost beside the other tokens.
        direction = F.normalize(members.mean(dim=0), dim=0)
        length = members.norm(dim=1).mean()
        embeddings[scheduler.first_cluster_id + cluster] = direction * length

        # A tied head has no weight of its own.
        if denoiser.head is not None:
            head = denoiser.head.weight
            nearness = head[tokens] @ direction  # (n,)
            head[tokens] += (nearness.mean() - nearness).unsqueeze(1) * direction


@torch.no_grad()
def start_from_codebooks(denoiser: Any, autoencoder: Any, level: str):
    """Set the embeddings and the head of a `CodeTransformerModel` by the codebooks of an `AutoencoderVQTextModel`.

    A code is a name for a vector. Denoisers that know the vectors learn at once what otherwise takes them long to find
    out: which codes are alike, and that a fine code means something else beside another coarse one. The embedding of
    a fine code and what is added for the coarse code above it are images of the vectors whose sum the decoder reads.

    Args:
        denoiser: of the codes of `level`, changed in place; its other weights stay.
        autoencoder: whose codes they are.
        level: "fine" or "coarse".
    """
    vectors = autoencoder.code_vectors(level)  # (K, patches, E)
    image = random_rotation(vectors.shape[-1], denoiser.config.hidden_size).to(vectors)  # (E, D)

    # A code may stand for several patches; its embedding is the mean of their vectors.
    codes = vectors.mean(dim=1) @ image  # (K, D)
    variance = codes.var()

    if denoiser.context_embedding is not None:
        plans = autoencoder.code_vectors("coarse") @ image  # (coarse codes, patches, D)
        variance = variance + plans.var()
        denoiser.context_embedding.weight[: len(plans)] = plans.flatten(1) * variance.rsqrt()

    # The sum of both embeddings has unit variance, and logits are of the order of one; the mask keeps its row.
    denoiser.code_embedding.weight[: len(codes)] = codes * variance.rsqrt()
    denoiser.head.weight[: len(codes)] = codes / codes.std() * denoiser.config.hidden_size**-0.5


def random_rotation(rows: int, columns: int) -> Tensor:
    """(rows, columns) with orthonormal rows or columns, whichever are fewer; the identity for equal widths."""
    if rows == columns:
        return torch.eye(rows)
    return torch.nn.init.orthogonal_(
        torch.empty(rows, columns), generator=torch.Generator().manual_seed(0)
    )
