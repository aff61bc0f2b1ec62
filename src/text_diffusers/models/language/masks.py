"""Which tokens a language model of transformers sees, as masks of pairs of tokens, and the positions it is told.

Over a causal past (https://arxiv.org/abs/2503.09573 with a past that is read token by token) clean tokens see those
before them, and the tokens of a block all of the past and each other. What is read of the past so never depends on
blocks, and is what the model read before it was a diffusion model.

Shapes: B batch, L sequence length, n noisy tokens, S tokens that can be seen. A mask is true where a token, its row,
sees another.
"""

from typing import Any

import torch
from torch import Tensor

from text_diffusers.models.attention import real_tokens

# Attention that takes a mask of any shape.
MASKABLE = ("sdpa", "eager")


def over_causal_past(
    length: int, start: int, block_start: int | Tensor, device: torch.device
) -> Tensor:
    """(L, S) bool: the tokens from `start` on see those before them, and those from `block_start` on see all.

    `length` is L, and S is L + `start`. Where rows differ, `block_start` is (B, 1, 1, 1), and the mask (B, 1, L, S).

    Example:
        >>> import torch
        >>> from text_diffusers.models.language.masks import over_causal_past
        >>> over_causal_past(4, start=0, block_start=2, device=torch.device("cpu")).int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    seen = torch.arange(start + length, device=device)
    asking = seen[start:].unsqueeze(1)
    return (seen <= asking) | (asking >= block_start)


def two_streams_over_causal_past(noisy_blocks: Tensor, blocks: Tensor) -> Tensor:
    """(B, n + L, n + L) bool mask of training: n noisy tokens, which come first, and L tokens clean.

    A noisy token sees the noisy tokens of its own block and the clean ones of earlier blocks; a clean token the clean
    ones up to itself.

    Args:
        noisy_blocks: (B, n) the number of each noisy token's block.
        blocks: (B, L) of each clean token's.
    """
    asking = noisy_blocks.unsqueeze(2)
    same_block = asking == noisy_blocks.unsqueeze(1)
    earlier_block = asking > blocks.unsqueeze(1)
    noisy = torch.cat([same_block, earlier_block], dim=2)

    batch_size, length = blocks.shape
    before = noisy.new_ones(length, length).tril().expand(batch_size, -1, -1)
    clean = torch.cat([noisy.new_zeros(batch_size, length, noisy_blocks.shape[1]), before], dim=2)
    return torch.cat([noisy, clean], dim=1)


def within_segments(segment_ids: Tensor) -> Tensor:
    """(B, 1, S, S) bool: the tokens of a segment see each other; `segment_ids` (B, S) are alike in each."""
    return (segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)).unsqueeze(1)


def without_padding(visible: Tensor, attention_mask: Tensor | None, start: int = 0) -> Tensor:
    """(B, 1, L, S) of a mask that broadcasts to it, in which padding is seen by itself only.

    Args:
        attention_mask: (B, S), 0 at padding.
        start: the first of the L tokens among the S.
    """
    real = real_tokens(attention_mask)
    if real is None:
        return visible
    # Padding sees itself, so that no token sees nothing.
    length = visible.shape[-2]
    itself = torch.eye(length, visible.shape[-1] - start, dtype=torch.bool, device=visible.device)
    itself = torch.cat([itself.new_zeros(length, start), itself], dim=1)
    return (visible & real[:, None, None, :]) | itself


def given_mask(attention_mask: Tensor) -> Tensor:
    """(B, 1, L, S) bool of a mask of pairs of tokens in any of its forms."""
    visible = attention_mask if attention_mask.ndim == 4 else attention_mask.unsqueeze(1)
    # Masks that are added to attention are below zero where nothing is seen.
    is_additive = visible.is_floating_point() and bool((visible < 0).any())
    return visible >= 0 if is_additive else visible.bool()


def mask_for(model: Any, visible: Tensor) -> Tensor:
    """A mask (B, 1, L, S) as the attention of the language model takes it, the same in all layers.

    Raises:
        ValueError: if it takes none, or if some of its layers see less of a row than others.
    """
    require_maskable(model, "a mask of each pair of tokens")
    require_wide_windows(model.config, visible.shape[-1])
    if model.config._attn_implementation == "sdpa":
        return visible
    hidden = torch.full((), torch.finfo(model.dtype).min, dtype=model.dtype, device=visible.device)
    return torch.where(visible, torch.zeros_like(hidden), hidden)


def require_maskable(model: Any, what: str):
    """Refuse attention that takes no mask of pairs of tokens."""
    implementation = model.config._attn_implementation
    if implementation not in MASKABLE:
        raise ValueError(
            f"`attn_implementation` must be one of {MASKABLE} for {what}, got {implementation!r}."
        )


def require_wide_windows(config: Any, length: int):
    """Refuse rows in which some layers see less than others: a mask that is given would open their windows."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and set(layer_types) == {"full_attention"}:
        return
    if length > window:
        raise ValueError(
            f"`sliding_window` of the language model must be at least the {length} tokens of a row with blocks, a "
            f"cache or a mask of each pair of tokens, got {window}."
        )


def token_positions(
    tokens: Tensor,
    start: int = 0,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """(B, L) positions of tokens (B, L) that follow `start` others.

    Args:
        attention_mask: (B, start + L); padding before the first token of a row then takes no position.
        segment_ids: (B, L); positions begin anew in each segment.

    Example:
        >>> import torch
        >>> from text_diffusers.models.language.masks import token_positions
        >>> token_positions(torch.zeros(1, 4), attention_mask=torch.tensor([[0, 1, 1, 1]])).tolist()
        [[0, 0, 1, 2]]
    """
    batch_size, length = tokens.shape
    real = real_tokens(attention_mask)
    if real is None:
        columns = torch.arange(start, start + length, device=tokens.device)
        positions = columns.expand(batch_size, -1)
    else:
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
    if segment_ids is None:
        return positions

    # Each token less the first of its segment
    begins = segment_ids != segment_ids.roll(1, dims=1)
    begins[:, 0] = True
    first_positions = torch.where(begins, positions, 0).cummax(dim=1).values
    return positions - first_positions
