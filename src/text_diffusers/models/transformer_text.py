"""A transformer that predicts clean tokens from corrupted ones: bidirectional, or block by block.

The time enters by adaptive layer norm as in DiT (https://arxiv.org/abs/2212.09748), positions by rotation
(https://arxiv.org/abs/2104.09864).

Shapes: B batch, L sequence length, D width, H heads, V vocabulary size, N selected positions.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.models.attention import (
    NORM_EPS,
    BlockCache,
    TextTransformerBlock,
    check_class_labels,
    check_transformer_config,
    earlier_blocks,
    hides_nothing,
    init_weights,
    sinusoids,
    take,
    two_streams,
    wanted_tokens,
)
from text_diffusers.models.chunked_head import CHUNK_SIZE, ChunkedHeadLoss, LossFunction, chunks
from text_diffusers.models.config_types import check_config_types, check_sizes

TIME_SCALE = 1_000.0


@dataclass
class TextTransformerOutput(BaseOutput):
    """`logits` of clean tokens, (B, L, V), or (N, V) with `positions`; with a loss function its `loss` instead."""

    logits: Tensor | None = None
    loss: Tensor | None = None


class TextTransformerModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """Denoiser over tokens: bidirectional, or with `block_length` block by block (https://arxiv.org/abs/2503.09573).

    Args:
        vocab_size: V, with all special tokens.
        hidden_size: D.
        num_layers: number of transformer blocks.
        num_attention_heads: H; the head width D / H must be even.
        feed_forward_ratio: width of the feed-forward layer in units of D.
        max_length: the longest sequence, in tokens; longer inputs are refused.
        time_conditioning: whether the network sees the time. The absorbing kernel does not need it, the number of
            masks tells the time; the uniform kernel does.
        num_classes: number of class labels; `None` takes none. Label `num_classes` means "no label".
        tie_embeddings: whether the head shares its weights with the token embedding.
        dropout: probability, during training.
        block_length: tokens in a block; a token then sees its own block and those before. Blocks begin at multiples
            of it. `None` lets every token see every other.
        mask_token_id, pad_token_id: kept for loaders and checked against V.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TextTransformerBlock"]
    _repeated_blocks = ["TextTransformerBlock"]
    _skip_layerwise_casting_patterns = ["token_embedding", "head"]  # read outside of their layers
    _gradient_checkpointing_func: Any
    config: Any

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 256,
        num_layers: int = 6,
        num_attention_heads: int = 4,
        feed_forward_ratio: float = 4.0,
        max_length: int = 128,
        time_conditioning: bool = False,
        num_classes: int | None = None,
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        block_length: int | None = None,
        mask_token_id: int | None = None,
        pad_token_id: int | None = None,
    ):
        super().__init__()
        self._check_config()
        conditioned = time_conditioning or num_classes is not None
        self.gradient_checkpointing = False
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, hidden_size)
        self.time_embedding = (
            nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
            if time_conditioning
            else None
        )
        feed_forward_size = int(hidden_size * feed_forward_ratio)
        self.blocks = nn.ModuleList(
            TextTransformerBlock(hidden_size, num_attention_heads, feed_forward_size, dropout, conditioned)
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS, elementwise_affine=not conditioned)
        self.modulation_out = nn.Linear(hidden_size, 2 * hidden_size) if conditioned else None
        self.head = None if tie_embeddings else nn.Linear(hidden_size, vocab_size, bias=False)
        self.apply(init_weights)
        for layer in (self.head, self.modulation_out):  # what predicts starts at zero
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def forward(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        positions: Tensor | None = None,
        loss_function: LossFunction | None = None,
        chunk_size: int = CHUNK_SIZE,
        return_dict: bool = True,
        clean_ids: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> TextTransformerOutput | tuple[Tensor]:
        """Predict the clean token at each position.

        Args:
            input_ids: (B, L) corrupted tokens.
            timestep: (), (B,) or, one a token, (B, L) in [0, 1]; required with time conditioning, ignored without.
            attention_mask: (B, L), 0 at padding; with a cache (B, cache.length + L).
            class_labels: (B,) ids; `None` is "no label".
            positions: (B, L) bool; the head runs there only.
            loss_function: `(logits (n, V), chunk) -> ()`, the loss summed over `chunk`, a slice of the N positions
                (of all B * L without `positions`). The output then has the sum over all chunks, differentiable once,
                and no logits. Gradients reach this model only, through the logits.
            chunk_size: the most positions whose logits exist at once, with a `loss_function`.
            clean_ids: (B, L), to train a model with blocks: each block of `input_ids` then sees itself and, of the
                blocks before it, these clean tokens, whose time is 0. One pass predicts all blocks.
            cache: from `new_cache`, to write with a model with blocks: `input_ids` are the tokens that follow its
                finished blocks, and see them.

        Raises:
            ValueError: if the sequence is too long, the time or a label is missing or out of range, the head cannot
                run in chunks, or clean tokens or a cache do not fit the model or the input.
        """
        self._check_inputs(input_ids, timestep, class_labels)
        self._check_blocks(input_ids, clean_ids, cache)
        x = self._features(input_ids, timestep, attention_mask, class_labels, positions, clean_ids, cache)
        if self.head is None:  # the shared embedding has unit entries
            x = x * self.config.hidden_size**-0.5
        if loss_function is not None:
            loss = self._chunked_loss(x.reshape(-1, x.shape[-1]), loss_function, chunk_size)
            return TextTransformerOutput(loss=loss) if return_dict else (loss,)
        logits = F.linear(x, self.token_embedding.weight) if self.head is None else self.head(x)
        return TextTransformerOutput(logits=logits) if return_dict else (logits,)

    def _features(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None,
        attention_mask: Tensor | None,
        class_labels: Tensor | None,
        positions: Tensor | None,
        clean_ids: Tensor | None,
        cache: BlockCache | None,
    ) -> Tensor:
        """What the head reads: (B, L, D), or (N, D) with `positions`; arguments as in `forward`."""
        length, start = input_ids.shape[1], 0 if cache is None else cache.length
        mask = self._visible(input_ids, attention_mask, start, two=clean_ids is not None)
        condition = self._condition(input_ids, timestep, class_labels, clean_ids)  # (B, 1 or L, D) or None
        rotary = sinusoids(torch.arange(start, start + length, device=input_ids.device), self._head_width)
        if clean_ids is not None:  # from here on 2L tokens, the noisy ones first
            input_ids = torch.cat([input_ids, clean_ids], dim=1)
            rotary = (rotary[0].repeat(2, 1), rotary[1].repeat(2, 1))
        x = self.token_embedding(input_ids)  # (B, L, D)
        rotary = (rotary[0].to(x.dtype), rotary[1].to(x.dtype))
        asked = None if positions is None else wanted_tokens(positions)  # (B, n), all that the last block computes
        for layer, block in enumerate(self.blocks):
            wanted = asked if layer == len(self.blocks) - 1 else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, rotary, mask, condition, None, wanted)
            else:
                store = None if cache is None else partial(cache.extend, layer)
                x = block(x, rotary, mask, condition, store, wanted)
        x = self.norm_out(x[:, :length])
        if self.modulation_out is not None and condition is not None:
            condition = take(condition[:, :length], asked if condition.shape[1] > 1 else None)
            shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        return x if positions is None or asked is None else x[positions.gather(1, asked)]

    def new_cache(self, capacity: int | None = None) -> BlockCache:
        """An empty cache of up to `capacity` tokens, by default and at most `max_length`."""
        limit = self.config.max_length
        if not 0 < (capacity or limit) <= limit:
            raise ValueError(f"`capacity` must be between 1 and `max_length`={limit}, got {capacity!r}.")
        return BlockCache(capacity or limit)

    def _chunked_loss(self, x: Tensor, loss_function: LossFunction, chunk_size: int) -> Tensor:
        """() sum of the loss over chunks of the features (N, D)."""
        if chunk_size < 1:
            raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
        if self.head is not None and type(self.head) is not nn.Linear:
            raise ValueError(f"`loss_function` needs a plain linear head, got {type(self.head)}: use `logits`.")
        weight = self.token_embedding.weight if self.head is None else self.head.weight
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return ChunkedHeadLoss.apply(x, weight, loss_function, chunk_size)
        total = torch.zeros((), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for chunk in chunks(len(x), chunk_size):
            total = total + loss_function(F.linear(x[chunk], weight), chunk)
        return total

    def _visible(self, input_ids: Tensor, attention_mask: Tensor | None, start: int, two: bool) -> Tensor | None:
        """Mask that broadcasts to (B, H, L, S), true where attended; None if all is. `two`: as in `two_streams`."""
        mask, size, device = None, self.config.block_length, input_ids.device
        if two:
            mask = two_streams(input_ids.shape[1], size, device)
        elif size is not None:
            mask = earlier_blocks(start + input_ids.shape[1], start, size, device)
        if attention_mask is None or hides_nothing(attention_mask):
            return mask
        real = attention_mask.bool()[:, None, None, :]
        if two:
            real = torch.cat([real, real], dim=-1)
        return real if mask is None else real & mask

    def _condition(
        self, input_ids: Tensor, timestep, class_labels: Tensor | None, clean_ids: Tensor | None
    ) -> Tensor | None:
        """(B, 1, D) sum of the embedded time and label, (B, L, D) or (B, 2L, D) if tokens differ in time, or None."""
        dtype, device, batch = self.token_embedding.weight.dtype, input_ids.device, len(input_ids)
        parts = []
        if self.time_embedding is not None:
            times = torch.as_tensor(timestep, device=device, dtype=torch.float32)
            times = times if times.ndim == 2 else times.expand(batch).unsqueeze(1)
            if clean_ids is not None:
                times = torch.cat([times.expand(input_ids.shape), torch.zeros_like(clean_ids, dtype=times.dtype)], 1)
            waves = torch.cat(sinusoids(times * TIME_SCALE, self.config.hidden_size), dim=-1)
            parts.append(self.time_embedding(waves.to(dtype)))
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full((batch,), self.config.num_classes, device=device)
            parts.append(self.class_embedding(class_labels).unsqueeze(1))
        return F.silu(sum(parts[1:], parts[0])) if parts else None

    @property
    def _head_width(self) -> int:
        return self.config.hidden_size // self.config.num_attention_heads

    def _check_inputs(self, input_ids: Tensor, timestep, class_labels: Tensor | None):
        if input_ids.ndim != 2 or not 0 < input_ids.shape[1] <= self.config.max_length:
            raise ValueError(
                f"`input_ids` must be (batch, length) with a length of 1 to `max_length`={self.config.max_length}, "
                f"got {tuple(input_ids.shape)}."
            )
        if self.time_embedding is not None and timestep is None:
            raise ValueError("`timestep` is required: this model was built with `time_conditioning=True`.")
        if isinstance(timestep, Tensor) and timestep.ndim == 2 and timestep.shape != input_ids.shape:
            want, got = tuple(input_ids.shape), tuple(timestep.shape)
            raise ValueError(f"`timestep` must be (), (B,) or {want} like `input_ids`, got {got}.")
        check_class_labels(class_labels, self.config.num_classes)

    def _check_blocks(self, input_ids: Tensor, clean_ids: Tensor | None, cache: BlockCache | None):
        size = self.config.block_length
        for name, value in (("clean_ids", clean_ids), ("cache", cache)):
            if value is not None and size is None:
                raise ValueError(f"`{name}` was given, but this model was built with `block_length=None`.")
        if clean_ids is not None and (cache is not None or clean_ids.shape != input_ids.shape):
            raise ValueError(
                f"`clean_ids` must be {tuple(input_ids.shape)} like `input_ids` and come without `cache`, "
                f"got {tuple(clean_ids.shape)}."
            )
        if cache is None:
            return
        if torch.is_grad_enabled():
            raise ValueError("`cache` carries no gradients: call the model under `torch.no_grad()`.")
        if cache.length % size or cache.length + input_ids.shape[1] > cache.capacity:
            raise ValueError(
                f"`cache` must hold whole blocks of {size} tokens and have room for the {input_ids.shape[1]} of "
                f"`input_ids`, got {cache.length} of {cache.capacity} in use."
            )

    def _check_config(self):
        check_config_types(self)
        check_transformer_config(self.config)
        check_sizes(self.config, ["block_length"], optional=True)
