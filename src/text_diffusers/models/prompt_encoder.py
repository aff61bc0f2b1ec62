"""A transformer that reads the prompt for denoisers that look at it by cross-attention.

Shapes: B batch, P prompt tokens, D width.
"""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.models.attention import NORM_EPS
from text_diffusers.models.checks import check_config_types, check_shape, check_transformer_sizes
from text_diffusers.models.transformer_blocks import (
    TransformerModel,
    TransformerStack,
    init_weights,
)


@dataclass
class PromptEncoderOutput(BaseOutput):
    """`last_hidden_state`: (B, P, D)."""

    last_hidden_state: Tensor


class PromptEncoderModel(TransformerModel):
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

    Example:
        >>> import torch
        >>> from text_diffusers import PromptEncoderModel
        >>> encoder = PromptEncoderModel(vocab_size=20, hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> encoder(torch.tensor([[3, 7, 1]])).last_hidden_state.shape
        torch.Size([1, 3, 8])
    """

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
        check_transformer_sizes(self.config, ["vocab_size", "num_layers", "max_length"])

        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        # Not told the time: a prompt has no noise, and is read once for all steps.
        self.encoder = TransformerStack(self.config, num_layers)
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.apply(init_weights)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
    ) -> PromptEncoderOutput | tuple[Tensor]:
        """Read a prompt.

        Args:
            input_ids: (B, P) tokens.
            attention_mask: (B, P), 0 at padding; a row may be all padding.

        Raises:
            ValueError: if the prompt is too long, or the mask is not that of the prompt.
        """
        check_shape("input_ids", input_ids, self.config.max_length)
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` must be {tuple(input_ids.shape)} as `input_ids`, got {tuple(attention_mask.shape)}."
            )

        x = self.token_embedding(input_ids)  # (B, P, D)
        mask = None
        if attention_mask is not None:
            # A token of a row of padding sees itself: attention to nothing would be NaN.
            itself = torch.eye(input_ids.shape[1], dtype=torch.bool, device=x.device)
            mask = attention_mask.bool()[:, None, None, :] | itself  # (B, 1, P, P)
        x = self.norm_out(self.encoder(x, mask))
        return PromptEncoderOutput(last_hidden_state=x) if return_dict else (x,)
