"""Pooling of an encoder's states, one a token, to a fixed number of vectors.

Learned queries look at the states and at each other, and become what they saw, as in Perceiver
(https://arxiv.org/abs/2103.03206).

Shapes: B batch, L tokens of the encoder, S width of its states, K latents, D width of the perceiver, C head width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from text_diffusers.models.attention import NORM_EPS, Rotary
from text_diffusers.models.transformer_blocks import TextTransformerBlock


class LatentPerceiver(nn.Module):
    """States of any number of tokens to K vectors.

    Args:
        config: of the model, with `num_latents` K, `hidden_size` D, `num_attention_heads`, `feed_forward_ratio` and
            `num_layers`.
        state_size: S.
    """

    def __init__(self, config: Any, state_size: int):
        super().__init__()
        self.config = config
        self.norm_in = nn.LayerNorm(state_size, eps=NORM_EPS)
        self.state_in = nn.Linear(state_size, config.hidden_size)
        self.queries = nn.Embedding(config.num_latents, config.hidden_size)
        self.blocks = nn.ModuleList(TextTransformerBlock(config) for _ in range(config.num_layers))
        self.norm_out = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)

    def forward(
        self, states: Tensor, real: Tensor | None, run_block: Callable[..., Tensor]
    ) -> Tensor:
        """(B, K, D) of states (B, L, S).

        Args:
            real: (B, L) bool, false at padding; `None` without.
            run_block: calls a block with its inputs, see `TransformerModel.run_block`.
        """
        batch_size, length, _ = states.shape
        num_latents = self.config.num_latents
        numbers = torch.arange(num_latents, device=states.device).expand(batch_size, -1)  # (B, K)
        x = self.queries(numbers)  # (B, K, D)
        seen = self.state_in(self.norm_in(states))  # (B, L, D)

        # All that the queries see, themselves first; the states stay as they are.
        mask = None
        if real is not None:
            mask = torch.cat([torch.ones_like(numbers, dtype=torch.bool), real], dim=1)
            mask = mask[:, None, None, :]  # (B, 1, 1, K + L)
        rotary = self._no_rotation(num_latents + length, x)
        for block in self.blocks:
            x = run_block(block, torch.cat([x, seen], dim=1), rotary, mask, None, None, numbers)
        return self.norm_out(x)

    def _no_rotation(self, length: int, like: Tensor) -> Rotary:
        """Cosines and sines (L, C / 2) that turn nothing: the encoder has told its states where they stand."""
        half_width = self.config.hidden_size // self.config.num_attention_heads // 2
        ones = torch.ones(length, half_width, dtype=like.dtype, device=like.device)
        return ones, torch.zeros_like(ones)
