"""Rotary self-attention over tokens: block-causal masks, and a cache for blocks that are finished.

In block diffusion (https://arxiv.org/abs/2503.09573) a token sees its own block and all blocks before it, so the keys
and values of a finished block never change.

Shapes: B batch, L sequence length, D width, H heads, C head width, S tokens that can be seen, n tokens that ask.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
NORM_EPS = 1e-6

# Cosines and sines of the positions, (L, C / 2) each.
Rotary = tuple[Tensor, Tensor]

# Takes new keys and values (B, H, L, C), and returns all that can be seen (B, H, S, C).
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def sinusoids(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., width / 2) of `values` (...) at geometrically spaced frequencies, float32."""
    frequencies = torch.exp(
        -math.log(ROTARY_BASE) / (width // 2) * torch.arange(width // 2, device=values.device)
    )
    # In half precision large positions would fall together.
    angles = values.float().unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotary_of(x: Tensor, config: Any, start: int = 0) -> Rotary:
    """Cosines and sines (L, C / 2) of the positions `start`, ... of (B, L, D) in the dtype of x."""
    positions = torch.arange(start, start + x.shape[1], device=x.device)
    cosines, sines = sinusoids(positions, config.hidden_size // config.num_attention_heads)
    return cosines.to(x.dtype), sines.to(x.dtype)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding of (B, H, L, C) by cosines and sines (L, C / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotary
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def real_tokens(attention_mask: Tensor | None) -> Tensor | None:
    """(B, L) bool, false at padding; `None` if there is none, since attention is faster without a mask."""
    if attention_mask is None:
        return None
    real = attention_mask.bool()
    # A compiled graph cannot look at values, and keeps the mask.
    if not torch.compiler.is_compiling() and bool(real.all()):
        return None
    return real


def earlier_blocks(
    length: int, start: int, block_length: int, device: torch.device
) -> Tensor | None:
    """(L - start, L) bool: the tokens from `start` on see their own block and all before; None if that is everything.

    `length` is L.
    """
    # The tokens that ask are all in the last block.
    if start // block_length == (length - 1) // block_length:
        return None
    block = torch.arange(length, device=device) // block_length
    return block[start:].unsqueeze(1) >= block


def two_streams(length: int, block_length: int, device: torch.device) -> Tensor:
    """(2L, 2L) bool mask of training: L noisy tokens, which come first, and the same L tokens clean.

    A noisy token sees the noisy tokens of its own block and the clean ones of earlier blocks, a clean token the clean
    ones of its own block and of earlier ones.
    """
    block = torch.arange(length, device=device) // block_length
    same_block = block.unsqueeze(1) == block
    earlier_block = block.unsqueeze(1) > block

    noisy = torch.cat([same_block, earlier_block], dim=1)
    clean = torch.cat([torch.zeros_like(same_block), same_block | earlier_block], dim=1)
    return torch.cat([noisy, clean])


def wanted_tokens(positions: Tensor) -> Tensor:
    """(B, n) ids of the tokens at `positions` (B, L), ascending, then others up to the largest number in a row."""
    # A stable sort brings the wanted tokens of each row to the front, in their order.
    count = max(1, int(positions.sum(dim=1).max()))
    return positions.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def take(x: Tensor, wanted: Tensor | None) -> Tensor:
    """(B, n, D) of (B, L, D) at the ids (B, n), or all of it."""
    if wanted is None:
        return x
    return x.gather(1, wanted.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def take_queries(mask: Tensor | None, wanted: Tensor) -> Tensor | None:
    """The mask of the queries at the ids (B, n) from one that broadcasts to (B, H, L, S)."""
    # One row of a mask stands for all queries.
    if mask is None or mask.shape[-2] == 1:
        return mask
    # The same (L, S) for each row, or one a row, (B, 1, L, S).
    if mask.ndim == 2:
        return mask[wanted].unsqueeze(1)
    return take(mask.squeeze(1).expand(len(wanted), -1, -1), wanted).unsqueeze(1)


class BlockCache:
    """Keys and values of the first `length` tokens of B rows, all of whose blocks are finished.

    The model writes those of its input behind them and leaves `length` as it is: raise it to declare tokens of that
    input finished, lower it to forget some. Memory for `capacity` tokens is taken at the first call.

    Example:
        >>> import torch
        >>> from text_diffusers import TextTransformerModel
        >>> model = TextTransformerModel(20, hidden_size=8, num_layers=1, num_attention_heads=2, block_length=4)
        >>> cache = model.new_cache(capacity=8)
        >>> with torch.no_grad():
        ...     _ = model(torch.tensor([[5, 6, 7, 8]]), cache=cache)
        ...     cache.length += 4
        ...     next_block = model(torch.tensor([[9, 9, 9, 9]]), cache=cache)
        >>> next_block.logits.shape
        torch.Size([1, 4, 20])
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0

        # Keys and values of each layer, (B, H, capacity, C) each, and the rows of them that a view reads.
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._rows: Tensor | None = None

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, S, C) keys and values of the finished tokens and those given, (B, H, L, C), which are stored."""
        # The first call takes the memory.
        if layer == len(self._layers):
            batch, heads, _, width = key.shape
            shape = (batch, heads, self.capacity, width)
            self._layers.append((key.new_empty(shape), value.new_empty(shape)))

        keys, values = self._layers[layer]
        rows = slice(None) if self._rows is None else self._rows
        end = self.length + key.shape[2]
        keys[rows, :, self.length : end] = key
        values[rows, :, self.length : end] = value
        return keys[rows, :, :end], values[rows, :, :end]  # views, or copies of a choice of rows

    def view(self, rows: Tensor) -> "BlockCache":
        """The cache of the rows that `rows`, ids or bool (B,), chooses, on the same memory."""
        chosen = BlockCache(self.capacity)
        if self._layers:
            chosen.length = self.length
            chosen._layers = self._layers
            chosen._rows = rows
        return chosen

    def keep(self, rows: Tensor):
        """Drop all rows but those that `rows`, ids or bool (B,), chooses."""
        self._layers = [(keys[rows], values[rows]) for keys, values in self._layers]


class TextAttnProcessor:
    """The computation of `TextAttention`; another processor may take its place."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "TextAttention",
        x: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        store: Store | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Arguments and result are those of `TextAttention.forward`."""
        query_rotary = rotary
        if wanted is not None:
            cosines, sines = rotary
            # The positions differ from row to row, (B, 1, n, C / 2).
            query_rotary = (cosines[wanted].unsqueeze(1), sines[wanted].unsqueeze(1))
            mask = take_queries(mask, wanted)

        # 1. Project to heads, and tell queries and keys their positions
        query, key, value = attn.project(x, wanted)
        value = split_heads(value, attn.num_heads)  # (B, H, L, C)
        query = attn.norm_q(split_heads(query, attn.num_heads))
        key = attn.norm_k(split_heads(key, attn.num_heads))
        query = rotate(query, query_rotary).to(value.dtype)
        key = rotate(key, rotary).to(value.dtype)
        if store is not None:
            key, value = store(key, value)

        # 2. Attend; diffusers takes a mask (L, S) for (B, S) where B is L
        if mask is not None and mask.ndim == 2:
            mask = mask[None, None]
        x = dispatch_attention_fn(
            query.transpose(1, 2),  # (B, L, H, C)
            key.transpose(1, 2),
            value.transpose(1, 2),
            mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )

        # 3. Join the heads
        x = x.flatten(2)  # (B, L, D)
        for layer in attn.to_out:
            x = layer(x)
        return x


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, H, L, C) of (B, L, D)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class TextAttention(nn.Module, AttentionModuleMixin):
    """Self-attention under any mask.

    Args:
        hidden_size: D.
        num_heads: H.
        dropout: probability, during training.
        qk_norm: whether queries and keys are normalised, which allows high learning rates.
        norm_eps: added to the mean square by which they are normalised.
    """

    # Read by diffusers, which exchanges processors and fuses projections.
    _default_processor_cls = TextAttnProcessor
    _available_processors = [TextAttnProcessor]
    use_bias = False

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float,
        qk_norm: bool = True,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_k = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_out = nn.ModuleList(
            [nn.Linear(hidden_size, hidden_size, bias=False), nn.Dropout(dropout)]
        )
        head_size = hidden_size // num_heads
        self.norm_q = nn.RMSNorm(head_size, eps=norm_eps) if qk_norm else nn.Identity()
        self.norm_k = nn.RMSNorm(head_size, eps=norm_eps) if qk_norm else nn.Identity()
        processor: Any = TextAttnProcessor()
        self.set_processor(processor)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        store: Store | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) to the same.

        Args:
            x: (B, L, D).
            rotary: of the L positions, see `rotary_of`.
            mask: bool that broadcasts to (B, H, L, S), true where attended; `None` attends to all.
            store: takes the keys and values of x, and returns all that can be seen.
            wanted: (B, n) ids; only these tokens look at the others, and the result is (B, n, D).
        """
        processor: Any = self.processor
        return processor(self, x, rotary, mask, store, wanted)

    def project(self, x: Tensor, wanted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, n, D) of the `wanted` tokens, or of all, and keys and values (B, L, D) of all."""
        if self.fused_projections:
            query, key, value = self.to_qkv(x).chunk(3, dim=-1)
            return take(query, wanted), key, value
        return self.to_q(take(x, wanted)), self.to_k(x), self.to_v(x)
