"""A transformer that predicts clean codes from masked ones, given coarser codes and a prompt.

Codes are what an autoencoder makes of text. The prompt enters by cross-attention, coarser codes by addition.

Shapes: B batch, L codes of a row, P prompt tokens, D width, E width of the prompt's states, N selected positions, V
codes and the mask.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from text_diffusers.models.attention import (
    NORM_EPS,
    TextTransformerBlock,
    check_transformer_sizes,
    init_weights,
    rotary_of,
)
from text_diffusers.models.config_types import check_config_types
from text_diffusers.models.transformer_text import TextTransformerOutput


class PromptAttention(nn.Module):
    """Attention to the states of a prompt, and to a learned state that stands for its end and is always there."""

    def __init__(self, hidden_size: int, num_heads: int, prompt_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.null_state = nn.Parameter(torch.zeros(prompt_size))
        self.attn = Attention(hidden_size, prompt_size, heads=num_heads, dim_head=hidden_size // num_heads)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) to be added to x, from states (B, P, E), seen where `mask` (B, P) is true."""
        null = self.null_state.to(states.dtype).expand(len(states), 1, -1)
        seen = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        bias = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, float("-inf"))
        return self.attn(self.norm(x), torch.cat([null, states], dim=1), attention_mask=bias.unsqueeze(1))


class CodeTransformerBlock(nn.Module):
    """A transformer block whose codes also look at the prompt, if there can be one."""

    def __init__(
        self, hidden_size: int, num_heads: int, feed_forward_size: int, dropout: float, prompt_size: int | None
    ):
        super().__init__()
        self.prompt = None if prompt_size is None else PromptAttention(hidden_size, num_heads, prompt_size)
        self.block = TextTransformerBlock(hidden_size, num_heads, feed_forward_size, dropout, conditioned=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], states: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, L, D); states (B, P, E) and mask (B, P) are those of the prompt."""
        if self.prompt is not None:
            x = x + self.prompt(x, states, mask)
        return self.block(x, rotary, None, None)


class CodeTransformerModel(ModelMixin, AttentionMixin, ConfigMixin):
    """Denoiser over codes under absorbing noise; the last id, `vocab_size - 1`, is the mask.

    Args:
        vocab_size: V, the number of codes and 1.
        hidden_size: D.
        num_layers: number of transformer blocks.
        num_attention_heads: heads; the head width must be even.
        feed_forward_ratio: width of the feed-forward layer in units of D.
        max_length: the longest row, in codes.
        num_context_codes: number of coarser codes that the model is told; `None` is told none.
        context_ratio: codes of a row for each coarser one.
        prompt_size: E, the width of the prompt's states; `None` takes no prompt.
        dropout: probability, during training.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CodeTransformerBlock"]
    _repeated_blocks = ["CodeTransformerBlock"]
    _gradient_checkpointing_func: Any
    config: Any

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_attention_heads: int = 4,
        feed_forward_ratio: float = 4.0,
        max_length: int = 512,
        num_context_codes: int | None = None,
        context_ratio: int = 1,
        prompt_size: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_config_types(self)
        optional = [name for name in ("num_context_codes", "prompt_size") if self.config[name] is not None]
        check_transformer_sizes(self.config, ("vocab_size", "num_layers", "max_length", "context_ratio", *optional))
        self.gradient_checkpointing = False
        self.code_embedding = nn.Embedding(vocab_size, hidden_size)
        # Stands before the row: without it, rotary positions would not tell the codes of a fully masked row apart.
        self.begin_embedding = nn.Embedding(1, hidden_size)
        # A vector for each code of the row that a coarser one stands for; the last are of a code that is not told.
        told = num_context_codes is not None
        self.context_embedding: Any = (
            nn.Embedding(num_context_codes + 1, context_ratio * hidden_size) if told else None
        )
        feed_forward_size = int(hidden_size * feed_forward_ratio)
        self.blocks: Any = nn.ModuleList(
            CodeTransformerBlock(hidden_size, num_attention_heads, feed_forward_size, dropout, prompt_size)
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)
        self.apply(init_weights)
        closing = [self.head, *(block.prompt.attn.to_out[0] for block in self.blocks if block.prompt is not None)]
        for layer in closing:  # what predicts and what the prompt adds start at zero
            nn.init.zeros_(layer.weight)

    def forward(
        self,
        input_ids: Tensor,
        timestep: Any = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        positions: Tensor | None = None,
        context_ids: Tensor | None = None,
        prompt_states: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> TextTransformerOutput | tuple[Tensor]:
        """Predict the clean code at each position.

        Args:
            input_ids: (B, L) codes and masks.
            timestep: ignored, the number of masks tells the time.
            attention_mask: ignored, rows of codes are full.
            class_labels: must be None; labels are told by a prompt.
            positions: (B, L) bool; the head runs there only.
            context_ids: (B, L / context_ratio) coarser codes; `num_context_codes` is a code that is not told, and
                `None` tells none.
            prompt_states: (B, P, E) of a prompt encoder; `None` is no prompt.
            prompt_mask: (B, P), 0 at padding; a row of zeros has no prompt.

        Returns:
            `logits`, (B, L, V), or (N, V) with `positions`.

        Raises:
            ValueError: if the inputs do not fit the model or each other.
        """
        self._check_inputs(input_ids, class_labels, context_ids, prompt_states, prompt_mask)
        x = self.code_embedding(input_ids)  # (B, L, D)
        if self.context_embedding is not None:
            x = x + self._context(input_ids, context_ids)
        x = torch.cat([self.begin_embedding(torch.zeros_like(input_ids[:, :1])), x], dim=1)  # (B, 1 + L, D)
        rotary = rotary_of(x, self._head_width)
        states, mask = self._prompt(x, prompt_states, prompt_mask)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, rotary, states, mask)
            else:
                x = block(x, rotary, states, mask)
        x = x[:, 1:]
        x = x if positions is None else x[positions]
        logits = self.head(self.norm_out(x))
        return TextTransformerOutput(logits=logits) if return_dict else (logits,)

    def _context(self, input_ids: Tensor, context_ids: Tensor | None) -> Tensor:
        """(B, L, D), what the coarser codes say of each code of the row."""
        ratio = self.config.context_ratio
        if context_ids is None:
            shape = (len(input_ids), input_ids.shape[1] // ratio)
            context_ids = torch.full(shape, self.config.num_context_codes, device=input_ids.device)
        return self.context_embedding(context_ids).unflatten(-1, (ratio, -1)).flatten(1, 2)

    def _prompt(self, x: Tensor, states: Tensor | None, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(B, P, E) states and (B, P) bool of what is seen of them; none of a single one if there is no prompt."""
        size = self.config.prompt_size
        if size is None:
            return None, None
        if states is None:
            return x.new_zeros(len(x), 1, size), torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        seen = torch.ones(states.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
        return states.to(x.dtype), seen

    @property
    def _head_width(self) -> int:
        return self.config.hidden_size // self.config.num_attention_heads

    def _check_inputs(
        self,
        input_ids: Tensor,
        class_labels: Any,
        context_ids: Tensor | None,
        states: Tensor | None,
        mask: Tensor | None,
    ):
        config = self.config
        shape, ratio, known = tuple(input_ids.shape), config.context_ratio, config.num_context_codes
        if len(shape) != 2 or not 0 < shape[1] <= config.max_length or (known is not None and shape[1] % ratio):
            raise ValueError(
                f"`input_ids` must be (batch, length) with a length of 1 to `max_length`={config.max_length}, a "
                f"multiple of `context_ratio`={ratio}, got {shape}."
            )
        if class_labels is not None:
            raise ValueError("`class_labels` must be None: this model is told by coarser codes and prompts only.")
        for name, value, size in (
            ("context_ids", context_ids, config.num_context_codes),
            ("prompt_states", states, config.prompt_size),
        ):
            if value is not None and size is None:
                raise ValueError(f"`{name}` were given, but this model was built to take none.")
        if context_ids is not None and tuple(context_ids.shape) != (shape[0], shape[1] // ratio):
            raise ValueError(
                f"`context_ids` must be {(shape[0], shape[1] // ratio)} for `input_ids` {shape}, "
                f"got {tuple(context_ids.shape)}."
            )
        if states is not None and (states.ndim != 3 or states.shape[::2] != (shape[0], config.prompt_size)):
            raise ValueError(
                f"`prompt_states` must be ({shape[0]}, length, {config.prompt_size}), got {tuple(states.shape)}."
            )
        if mask is not None and (states is None or mask.shape != states.shape[:2]):
            raise ValueError(
                f"`prompt_mask` must be that of `prompt_states`, got {tuple(mask.shape)} for "
                f"{None if states is None else tuple(states.shape)}."
            )
