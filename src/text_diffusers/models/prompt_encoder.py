"""A transformer that reads the prompt for denoisers that look at it by cross-attention.

Shapes: B batch, P prompt tokens, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.models.attention import NORM_EPS, TransformerStack, check_transformer_sizes, init_weights
from text_diffusers.models.config_types import check_config_types


@dataclass
class PromptEncoderOutput(BaseOutput):
    """`last_hidden_state`: (B, P, D)."""

    last_hidden_state: Tensor


class PromptEncoderModel(ModelMixin, AttentionMixin, ConfigMixin):
    """Bidirectional transformer over the tokens of a prompt, called as the encoders of transformers are.

    Args:
        vocab_size: number of tokens.
        hidden_size: D.
        num_layers: number of transformer blocks.
        num_attention_heads: heads; the head width must be even.
        feed_forward_ratio: width of the feed-forward layer in units of D.
        max_length: the longest prompt, in tokens.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.
    """

    _no_split_modules = ["TextTransformerBlock"]
    _repeated_blocks = ["TextTransformerBlock"]
    config: Any

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 128,
        num_layers: int = 2,
        num_attention_heads: int = 4,
        feed_forward_ratio: float = 4.0,
        max_length: int = 128,
    ):
        super().__init__()
        check_config_types(self)
        check_transformer_sizes(self.config, ("vocab_size", "num_layers", "max_length"))
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        feed_forward_size = int(hidden_size * feed_forward_ratio)
        self.encoder = TransformerStack(num_layers, hidden_size, num_attention_heads, feed_forward_size)
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.apply(init_weights)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
    ) -> PromptEncoderOutput | tuple[Tensor]:
        """Read `input_ids` (B, P), whose `attention_mask` (B, P) is 0 at padding; a row may be all padding.

        Raises:
            ValueError: if the prompt is too long, or the mask is not that of the prompt.
        """
        length, limit = input_ids.shape[-1], self.config.max_length
        if input_ids.ndim != 2 or not 0 < length <= limit:
            raise ValueError(
                f"`input_ids` must be (batch, length) with a length of 1 to `max_length`={limit}, "
                f"got {tuple(input_ids.shape)}."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` must be {tuple(input_ids.shape)} as `input_ids`, got {tuple(attention_mask.shape)}."
            )
        x = self.token_embedding(input_ids)  # (B, P, D)
        mask = None
        if attention_mask is not None:
            itself = torch.eye(length, dtype=torch.bool, device=x.device)  # what sees nothing else sees itself
            mask = attention_mask.bool()[:, None, None, :] | itself
        x = self.norm_out(self.encoder(x, mask))
        return PromptEncoderOutput(last_hidden_state=x) if return_dict else (x,)
