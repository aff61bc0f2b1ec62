"""The denoiser of Diffusion-LM's and DiffuSeq's published checkpoints: an encoder of BERT over noisy word embeddings.

Diffusion-LM (https://arxiv.org/abs/2205.14217) and DiffuSeq (https://arxiv.org/abs/2210.08933). The network predicts
clean embeddings; words are read off them by the table of embeddings with a bias of its own.

Shapes: B batch, L sequence length, E embedding width, D hidden width, V vocabulary size.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from text_diffusers.common.stock_loading import StockLoading
from text_diffusers.common.validation import LONGEST_CLOCK, require
from text_diffusers.models.attention import real_tokens, sinusoids
from text_diffusers.models.checks import (
    MOST_LAYERS,
    check_class_labels,
    check_config_types,
    check_shape,
    check_sizes,
    check_vocabulary,
)
from text_diffusers.models.transformer_blocks import CLOCK_SCALE
from text_diffusers.models.transformer_embedding import (
    EmbeddingTransformerOutput,
    distances,
    without_ids,
)


class BertEmbeddingDenoiser(StockLoading, ModelMixin, ConfigMixin):
    """Denoiser over word embeddings with the encoder of BERT, in the layout of Diffusion-LM and DiffuSeq.

    Noisy embeddings go through two layers with a tanh between them to the width of the encoder, where learned
    positions and the time are added, and behind the encoder through two such layers back. `DiffusionLMPipeline` writes
    with it. It has no class labels and no self-conditioning, and is no model for this package's training scripts.

    Args:
        vocab_size: V, with all special tokens.
        embedding_dim: E, the space in which diffusion happens.
        hidden_size: D, width of the encoder.
        num_layers: of the encoder.
        num_attention_heads: heads; D must be a multiple.
        feed_forward_size: width of the feed-forward layers.
        max_length: the longest sequence, in tokens; longer inputs are refused.
        num_positions: entries of the table of positions, at least `max_length`, which is the default.
        time_dim: width of the sinusoids that the time is embedded from; must be even.
        num_train_timesteps: steps of the clock in which `timestep` counts.
        rescale_timesteps: whether the network sees times as if they ran from 0 to a thousand, or as they are.
        project_embeddings: whether there are the layers from E to D and back; without them E must be D.
        partial_noising: whether some embeddings may be given clean, as the source of DiffuSeq.
        source_ends: end tokens between a source and the text that is written from it; DiffuSeq has two.
        norm_eps: of the layer norms.
        dropout: probability, during training.
        mask_token_id, pad_token_id: never written by `round`, unless it is told which ids are not.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> import torch
        >>> from text_diffusers import BertEmbeddingDenoiser
        >>> model = BertEmbeddingDenoiser(20, embedding_dim=4, hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> words = torch.tensor([[3, 9, 7]])
        >>> noisy = model.embed(words) + 0.1
        >>> model(noisy, timestep=300).sample.shape
        torch.Size([1, 3, 4])
        >>> model.logits(model.embed(words)).shape
        torch.Size([1, 3, 20])
    """

    config: Any
    _supports_gradient_checkpointing = True
    # Layers of the encoder stay whole on a device, and are compiled once for all.
    _no_split_modules = ["BertLayer"]
    _repeated_blocks = ["BertLayer"]
    # Read outside of its layer.
    _skip_layerwise_casting_patterns = ["token_embedding"]

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int = 128,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_attention_heads: int = 12,
        feed_forward_size: int = 3072,
        max_length: int = 128,
        num_positions: int | None = None,
        time_dim: int = 128,
        num_train_timesteps: int = 2000,
        rescale_timesteps: bool = True,
        project_embeddings: bool = True,
        partial_noising: bool = False,
        source_ends: int = 1,
        norm_eps: float = 1e-12,
        dropout: float = 0.1,
        mask_token_id: int | None = None,
        pad_token_id: int | None = None,
    ):
        super().__init__()
        self._check_config()

        # 1. Words, which are also read off by their embeddings
        self.token_embedding = nn.Embedding(vocab_size, embedding_dim)
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))

        # 2. What the encoder reads
        self.proj_in = nn.Identity()
        if project_embeddings:
            self.proj_in = tanh_layers(embedding_dim, hidden_size, hidden_size)
        self.position_embedding = nn.Embedding(num_positions or max_length, hidden_size)
        self.time_embedding = nn.Sequential(
            nn.Linear(time_dim, 4 * time_dim), nn.SiLU(), nn.Linear(4 * time_dim, hidden_size)
        )
        self.norm_in = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout_in = nn.Dropout(dropout)

        # 3. The encoder of transformers, and the way back
        encoder_config = BertConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=feed_forward_size,
            hidden_act="gelu",
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            layer_norm_eps=norm_eps,
        )
        # An encoder without the model around it has to be told.
        encoder_config._attn_implementation = "sdpa"
        self.encoder = BertEncoder(encoder_config)
        self.proj_out = nn.Identity()
        if project_embeddings:
            self.proj_out = tanh_layers(hidden_size, hidden_size, embedding_dim)

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        given: Tensor | None = None,
        return_dict: bool = True,
    ) -> EmbeddingTransformerOutput | tuple[Tensor]:
        """Predict the clean embeddings.

        Args:
            sample: (B, L, E) noisy embeddings.
            timestep: () or (B,) of the clock 0, ..., `num_train_timesteps` - 1.
            attention_mask: (B, L), 0 at padding that is no part of the text. The authors' rows are all of one length,
                and see the padding that the model itself has written.
            class_labels: must be `None`.
            given: (B, L) bool, the embeddings that are clean, with `partial_noising`. The network is not told, but for
                their being clean.

        Raises:
            ValueError: if shapes do not fit the model, or it was built without what is passed.
        """
        check_shape("sample", sample, self.config.max_length, self.config.embedding_dim)
        check_class_labels(class_labels, None)
        if given is not None and not self.config.partial_noising:
            raise ValueError(
                "`given` was passed, but this model was built with `partial_noising=False`."
            )

        # 1. What the encoder reads: noisy embeddings, positions and the time
        x = self.proj_in(sample)  # (B, L, D)
        positions = torch.arange(x.shape[1], device=x.device)
        x = x + self.position_embedding(positions) + self._embed_times(timestep, x)
        x = self.dropout_in(self.norm_in(x))

        # 2. Each token sees all that are real.
        real = real_tokens(attention_mask)
        mask = None if real is None else real[:, None, None]  # (B, 1, 1, L)
        x = self.encoder(x, mask).last_hidden_state

        # 3. Back to embeddings
        prediction = self.proj_out(x)  # (B, L, E)
        if not return_dict:
            return (prediction,)
        return EmbeddingTransformerOutput(prediction)

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, L, E) clean embeddings of words (B, L)."""
        return F.embedding(input_ids, self.token_embedding.weight)

    def logits(self, clean: Tensor) -> Tensor:
        """(..., V) logits of words from clean embeddings (..., E)."""
        return F.linear(clean, self.token_embedding.weight, self.head_bias)

    @torch.no_grad()
    def round(self, clean: Tensor, excluded_ids: Sequence[int] | None = None) -> Tensor:
        """(...) ids of the most probable words of clean estimates (..., E).

        Args:
            excluded_ids: ids that are not among them, by default padding and mask.
        """
        if excluded_ids is None:
            special = (self.config.mask_token_id, self.config.pad_token_id)
            excluded_ids = [token for token in special if token is not None]
        return without_ids(self.logits(clean), excluded_ids).argmax(dim=-1)

    @torch.no_grad()
    def nearest_words(self, clean: Tensor) -> Tensor:
        """(..., E) the nearest embeddings, of any token, to clean estimates (..., E)."""
        # The padding behind a text is written as well, so estimates may be near it.
        return self.embed(distances(clean, self.token_embedding.weight).argmin(dim=-1))

    def _embed_times(self, timestep: float | Tensor, x: Tensor) -> Tensor:
        """(B, 1, D) of timesteps () or (B,), in the dtype of x (B, L, D)."""
        times = torch.as_tensor(timestep, device=x.device).float().expand(len(x))
        if self.config.rescale_timesteps:
            times = times * (CLOCK_SCALE / self.config.num_train_timesteps)
        waves = torch.cat(sinusoids(times, self.config.time_dim), dim=-1)
        return self.time_embedding(waves.to(x.dtype)).unsqueeze(1)

    def _check_config(self):
        config = self.config
        check_config_types(self)
        check_sizes(
            config,
            [
                "vocab_size",
                "embedding_dim",
                "hidden_size",
                "num_attention_heads",
                "feed_forward_size",
                "max_length",
                "time_dim",
            ],
        )
        check_sizes(config, ["source_ends"], least=0)
        check_sizes(config, ["num_layers"], most=MOST_LAYERS)
        check_sizes(config, ["num_train_timesteps"], most=LONGEST_CLOCK)
        check_sizes(config, ["num_positions"], least=config.max_length, optional=True)
        check_vocabulary(config, ["mask_token_id", "pad_token_id"])

        width = config.hidden_size
        heads = config.num_attention_heads
        limit = f"a multiple of `num_attention_heads`={heads}"
        require(width % heads == 0, "hidden_size", limit, width)
        limit = f"`hidden_size`={width} without `project_embeddings`"
        fits = config.project_embeddings or config.embedding_dim == width
        require(fits, "embedding_dim", limit, config.embedding_dim)
        # Half of them are cosines, half sines.
        require(config.time_dim % 2 == 0, "time_dim", "even", config.time_dim)
        require(config.norm_eps > 0, "norm_eps", "above 0", config.norm_eps)
        require(0 <= config.dropout < 1, "dropout", "in [0, 1)", config.dropout)


def tanh_layers(in_size: int, inner_size: int, out_size: int) -> nn.Sequential:
    """Two layers with a tanh between them."""
    return nn.Sequential(nn.Linear(in_size, inner_size), nn.Tanh(), nn.Linear(inner_size, out_size))
