"""Transformer blocks over tokens: rotary attention, block-causal masks, and a cache for blocks that are finished.

In block diffusion (https://arxiv.org/abs/2503.09573) a token sees its own block and all blocks before it, so the keys
and values of a finished block never change.

Shapes: B batch, L sequence length, D width, H heads, C head width, S tokens that can be seen, n tokens wanted.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from text_diffusers.models.config_types import LARGEST_SIZE, MOST_LAYERS, check_sizes

ROTARY_BASE = 10_000.0
NORM_EPS = 1e-6

Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def sinusoids(values: Tensor, width: int, base: float = ROTARY_BASE) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., width / 2) of `values` (...) at geometrically spaced frequencies, float32."""
    frequencies = torch.exp(-math.log(base) / (width // 2) * torch.arange(width // 2, device=values.device))
    angles = values.float().unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotary_of(x: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, C / 2) of the positions of (B, L, D), whose heads have the width C, in its dtype."""
    cosines, sines = sinusoids(torch.arange(x.shape[1], device=x.device), head_width)
    return cosines.to(x.dtype), sines.to(x.dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of (B, H, L, C) by cosines and sines (L, C / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotary
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def earlier_blocks(length: int, start: int, block_length: int, device: torch.device) -> Tensor | None:
    """(L - start, L) bool: the tokens from `start` on see their own block and all before; None if that is everything.

    `length` is L.
    """
    if start // block_length == (length - 1) // block_length:
        return None
    block = torch.arange(length, device=device) // block_length
    return block[start:].unsqueeze(1) >= block


def two_streams(length: int, block_length: int, device: torch.device) -> Tensor:
    """(2L, 2L) bool: what L noisy tokens, which come first, and the same L tokens clean see in training.

    A noisy token sees the noisy tokens of its own block and the clean ones of earlier blocks, a clean token the clean
    ones of its own block and of earlier ones.
    """
    block = torch.arange(length, device=device) // block_length
    own, earlier = block.unsqueeze(1) == block, block.unsqueeze(1) > block
    noisy = torch.cat([own, earlier], dim=1)
    clean = torch.cat([torch.zeros_like(own), own | earlier], dim=1)
    return torch.cat([noisy, clean])


def wanted_tokens(positions: Tensor) -> Tensor:
    """(B, n) ids of the tokens at `positions` (B, L), ascending, then others up to the largest number in a row."""
    count = max(1, int(positions.sum(dim=1).max()))
    return positions.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def hides_nothing(mask: Tensor) -> bool:
    """Whether a mask can be left out; a compiled graph cannot ask, and keeps it."""
    return not torch.compiler.is_compiling() and bool(mask.all())


def take(x: Tensor, wanted: Tensor | None) -> Tensor:
    """(B, n, D) of (B, L, D) at the ids (B, n), or all of it."""
    return x if wanted is None else x.gather(1, wanted.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def take_queries(mask: Tensor | None, wanted: Tensor) -> Tensor | None:
    """The mask of the queries at the ids (B, n) from one that broadcasts to (B, H, L, S)."""
    if mask is None or mask.shape[-2] == 1:
        return mask
    if mask.ndim == 2:
        return mask[wanted].unsqueeze(1)
    return take(mask.squeeze(1).expand(len(wanted), -1, -1), wanted).unsqueeze(1)


class BlockCache:
    """Keys and values of the first `length` tokens of B rows, all of whose blocks are finished.

    The model writes those of its input behind them and leaves `length` as it is: raise it to declare tokens of that
    input finished, lower it to forget some. Memory for `capacity` tokens is taken at the first call.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._rows: Tensor | None = None

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, S, C) keys and values of the finished tokens and those given, (B, H, L, C), which are stored."""
        if layer == len(self._layers):
            batch, heads, _, width = key.shape
            shape = (batch, heads, self.capacity, width)
            self._layers.append((key.new_empty(shape), value.new_empty(shape)))
        end = self.length + key.shape[2]
        rows = slice(None) if self._rows is None else self._rows
        for stored, new in zip(self._layers[layer], (key, value), strict=True):
            stored[rows, :, self.length : end] = new
        keys, values = self._layers[layer]
        return keys[rows, :, :end], values[rows, :, :end]  # views, or copies of a choice of rows

    def view(self, rows: Tensor) -> "BlockCache":
        """The cache of the rows that `rows`, ids or bool (B,), chooses, on the same memory."""
        chosen = BlockCache(self.capacity)
        if self._layers:
            chosen.length, chosen._layers, chosen._rows = self.length, self._layers, rows
        return chosen

    def keep(self, rows: Tensor):
        """Drop all rows but those that `rows`, ids or bool (B,), chooses."""
        self._layers = [(keys[rows], values[rows]) for keys, values in self._layers]


class TextAttnProcessor:
    """What `TextAttention` computes; another processor may take its place."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "TextAttention",
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        store: Store | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Arguments and result are those of `TextAttention.forward`."""
        asking_rotary = rotary
        if wanted is not None:
            asking_rotary, mask = (
                (rotary[0][wanted].unsqueeze(1), rotary[1][wanted].unsqueeze(1)),
                take_queries(mask, wanted),
            )
        query, key, value = (
            y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for y in attn.project(x, wanted)
        )  # (B, H, L, C)
        query, key = rotate(attn.norm_q(query), asking_rotary), rotate(attn.norm_k(key), rotary)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if store is not None:
            key, value = store(key, value)
        if mask is not None and mask.ndim == 2:  # diffusers takes (L, S) for (B, S) where B is L
            mask = mask[None, None]
        query, key, value = (y.transpose(1, 2) for y in (query, key, value))  # (B, L, H, C)
        backend, parallel = self._attention_backend, self._parallel_config
        x = dispatch_attention_fn(query, key, value, mask, backend=backend, parallel_config=parallel)
        x = x.flatten(2)  # (B, L, D)
        for layer in attn.to_out:
            x = layer(x)
        return x


class TextAttention(nn.Module, AttentionModuleMixin):
    """Self-attention under any mask; queries and keys are normalised, which allows high learning rates."""

    _default_processor_cls = TextAttnProcessor
    _available_processors = [TextAttnProcessor]
    use_bias = False

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_k = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(hidden_size, hidden_size, bias=False), nn.Dropout(dropout)])
        self.norm_q = nn.RMSNorm(hidden_size // num_heads, eps=NORM_EPS)
        self.norm_k = nn.RMSNorm(hidden_size // num_heads, eps=NORM_EPS)
        processor: Any = TextAttnProcessor()
        self.set_processor(processor)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        store: Store | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D); `mask` broadcasts to (B, H, L, S); `store` takes keys and values and returns all to be seen.

        With `wanted`, (B, n) ids, only these tokens look at the others: (B, n, D).
        """
        processor: Any = self.processor
        return processor(self, x, rotary, mask, store, wanted)

    def project(self, x: Tensor, wanted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, n, D) of the `wanted` tokens, or of all, and keys and values (B, L, D) of all."""
        if self.fused_projections:
            query, key, value = self.to_qkv(x).chunk(3, dim=-1)
            return take(query, wanted), key, value
        return self.to_q(take(x, wanted)), self.to_k(x), self.to_v(x)


class TextTransformerBlock(nn.Module):
    """Attention and feed-forward, each on a normalised input; with a condition both are shifted, scaled and gated."""

    def __init__(self, hidden_size: int, num_heads: int, feed_forward_size: int, dropout: float, conditioned: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=NORM_EPS, elementwise_affine=not conditioned)
        self.attn = TextAttention(hidden_size, num_heads, dropout)
        self.norm2 = nn.LayerNorm(hidden_size, eps=NORM_EPS, elementwise_affine=not conditioned)
        self.ff = nn.Sequential(
            nn.Linear(hidden_size, feed_forward_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(feed_forward_size, hidden_size),
            nn.Dropout(dropout),
        )
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size) if conditioned else None

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        condition: Tensor | None,
        store: Store | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D), or (B, n, D) with `wanted`; `condition` is (B, 1, D) or (B, L, D), the rest as in attention."""
        if self.modulation is None:
            x = take(x, wanted) + self.attn(self.norm1(x), rotary, mask, store, wanted)
            return x + self.ff(self.norm2(x))
        modulation = self.modulation(condition)  # (B, 1 or L, 6D)
        shift1, scale1 = modulation[..., : 2 * x.shape[-1]].chunk(2, dim=-1)
        modulation = take(modulation, wanted if modulation.shape[1] > 1 else None)
        gate1, shift2, scale2, gate2 = modulation[..., 2 * x.shape[-1] :].chunk(4, dim=-1)
        attended = self.attn(self.norm1(x) * (1 + scale1) + shift1, rotary, mask, store, wanted)
        x = take(x, wanted) + gate1 * attended
        return x + gate2 * self.ff(self.norm2(x) * (1 + scale2) + shift2)


class TransformerStack(nn.Module):
    """Transformer blocks, one after the other."""

    def __init__(self, num_layers: int, hidden_size: int, num_heads: int, feed_forward_size: int):
        super().__init__()
        self.head_width = hidden_size // num_heads
        self.blocks = nn.ModuleList(
            TextTransformerBlock(hidden_size, num_heads, feed_forward_size, 0.0, conditioned=False)
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) to the same; what `mask`, as in attention, excludes is not seen."""
        rotary = rotary_of(x, self.head_width)
        for block in self.blocks:
            x = block(x, rotary, mask, None)
        return x


def init_weights(module: nn.Module):
    """Unit embeddings and variance-preserving layers; what closes a residual branch starts at zero.

    The usual 0.02 everywhere keeps small models on the plateau of the token frequencies for most of a short run.
    """
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, TextTransformerBlock) and module.modulation is not None:
        nn.init.zeros_(module.modulation.weight)


def check_class_labels(class_labels: Tensor | None, num_classes: int | None):
    """Refuse labels (B,) that a model with `num_classes` does not know."""
    if class_labels is None:
        return
    if num_classes is None:
        raise ValueError("`class_labels` were given, but this model was built with `num_classes=None`.")
    if torch.compiler.is_compiling():  # a graph cannot ask
        return
    if not ((class_labels >= 0) & (class_labels <= num_classes)).all():
        raise ValueError(
            f"`class_labels` must be between 0 and {num_classes - 1} (or {num_classes} for no label), "
            f"got {class_labels.tolist()}."
        )


def check_transformer_sizes(config: Any, sizes: tuple[str, ...]):
    """Refuse sizes that no transformer has; `sizes` are names of a model's own beside those that all have."""
    check_sizes(config, ("hidden_size", "num_attention_heads", *sizes))
    check_sizes(config, [name for name in sizes if name.endswith("_layers")], most=MOST_LAYERS)
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads or (width // heads) % 2:
        raise ValueError(
            "`hidden_size` must be an even multiple of `num_attention_heads` (an even head width), "
            f"got {width} for {heads} heads."
        )
    if not 1 <= width * config.feed_forward_ratio <= LARGEST_SIZE:
        raise ValueError(
            f"`feed_forward_ratio` must be positive and make `hidden_size`={width} at least 1 and at most "
            f"{LARGEST_SIZE}, got {config.feed_forward_ratio!r}."
        )
    dropout = config.get("dropout", 0.0)
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {dropout!r}.")


def check_transformer_config(config: Any, more_sizes: tuple[str, ...] = ()):
    """Refuse what no transformer over tokens has; `more_sizes` are names of a model's own."""
    check_transformer_sizes(config, ("vocab_size", "num_layers", "max_length", *more_sizes))
    check_sizes(config, ["num_classes"], optional=True)
    for name in ("mask_token_id", "pad_token_id"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < config.vocab_size:
            raise ValueError(f"`{name}` must be in the vocabulary of {config.vocab_size}, got {value!r}.")
