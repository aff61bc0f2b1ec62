"""A transformer that predicts clean codes from masked ones, given coarser codes and a prompt.

The codes are those of an autoencoder of text. The prompt enters by cross-attention, coarser codes by addition.

Shapes: B batch, L codes of a row, P prompt tokens, D width, E width of the prompt's states, N selected positions, V
codes and the mask.
"""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from text_diffusers.common.validation import require
from text_diffusers.models.attention import NORM_EPS, Rotary, rotary_of
from text_diffusers.models.checks import check_config_types, check_transformer_sizes
from text_diffusers.models.transformer_blocks import (
    TextTransformerBlock,
    TransformerModel,
    init_weights,
    zero_weights,
)
from text_diffusers.models.transformer_text import TextTransformerOutput


class PromptAttention(nn.Module):
    """Attention to the states of a prompt, and to a learned state that stands for its end and is always there."""

    def __init__(self, config: Any):
        super().__init__()
        width = config.hidden_size
        heads = config.num_attention_heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.null_state = nn.Parameter(torch.zeros(config.prompt_size))
        self.attn = Attention(width, config.prompt_size, heads=heads, dim_head=width // heads)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) to be added to x, from states (B, P, E), seen where `mask` (B, P) is true."""
        # A prompt of padding leaves the learned state alone to be seen: attention to nothing would be NaN.
        null = self.null_state.to(states.dtype).expand(len(states), 1, -1)
        seen = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        # The attention of diffusers adds its mask to the scores.
        bias = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(
            ~seen, float("-inf")
        )
        return self.attn(
            self.norm(x), torch.cat([null, states], dim=1), attention_mask=bias.unsqueeze(1)
        )


class CodeTransformerBlock(nn.Module):
    """A transformer block whose codes also look at the prompt, if there can be one."""

    def __init__(self, config: Any):
        super().__init__()
        self.prompt = None if config.prompt_size is None else PromptAttention(config)
        self.block = TextTransformerBlock(config, config.dropout)

    def forward(
        self, x: Tensor, rotary: Rotary, states: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """(B, L, D); states (B, P, E) and mask (B, P) are those of the prompt."""
        # Look at the prompt first, then at the other codes.
        if self.prompt is not None:
            x = x + self.prompt(x, states, mask)
        return self.block(x, rotary, None, None)


class CodeTransformerModel(TransformerModel):
    """Denoiser over codes under absorbing noise; the last id, `vocab_size - 1`, is the mask.

    Args:
        vocab_size: V, the number of codes and 1.
        hidden_size: D.
        num_layers: number of transformer blocks.
        num_attention_heads: heads; the head width must be even.
        feed_forward_ratio: width of the feed-forward layer in units of D.
        max_length: the longest row, in codes.
        num_context_codes: number of coarser codes that the model can be given; `None` takes none.
        context_ratio: codes of a row for each coarser one.
        prompt_size: E, the width of the prompt's states; `None` takes no prompt.
        dropout: probability, during training.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> import torch
        >>> from text_diffusers import CodeTransformerModel
        >>> model = CodeTransformerModel(
        ...     vocab_size=17, hidden_size=8, num_layers=1, num_attention_heads=2, num_context_codes=6, context_ratio=2
        ... )
        >>> codes = torch.tensor([[3, 16, 16, 9]])  # 16 is the mask
        >>> model(codes, context_ids=torch.tensor([[5, 0]]), positions=codes == 16).logits.shape
        torch.Size([2, 17])
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CodeTransformerBlock"]
    _repeated_blocks = ["CodeTransformerBlock"]

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

        # Sizes that may be None are checked where they are given.
        optional = [
            name for name in ("num_context_codes", "prompt_size") if self.config[name] is not None
        ]
        check_transformer_sizes(
            self.config, ["vocab_size", "num_layers", "max_length", "context_ratio", *optional]
        )

        self.code_embedding = nn.Embedding(vocab_size, hidden_size)
        # Stands before the row: without it, rotary positions would not tell the codes of a fully masked row apart.
        self.begin_embedding = nn.Embedding(1, hidden_size)
        # A vector for each code of the row that a coarser one stands for; the last are of an unknown coarser code.
        self.context_embedding: Any = None
        if num_context_codes is not None:
            self.context_embedding = nn.Embedding(
                num_context_codes + 1, context_ratio * hidden_size
            )

        self.blocks: Any = nn.ModuleList(
            CodeTransformerBlock(self.config) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)

        # The head, and what the prompt adds, start at zero.
        self.apply(init_weights)
        zero_weights(self.head)
        if prompt_size is not None:
            zero_weights(*(block.prompt.attn.to_out[0] for block in self.blocks))

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
            class_labels: must be None; labels enter by a prompt.
            positions: (B, L) bool; the head runs there only.
            context_ids: (B, L / context_ratio) coarser codes; `num_context_codes` is an unknown code, and `None` is
                a row of these.
            prompt_states: (B, P, E) of a prompt encoder; `None` is no prompt.
            prompt_mask: (B, P), 0 at padding; a row of zeros has no prompt.

        Returns:
            `logits`, (B, L, V), or (N, V) with `positions`.

        Raises:
            ValueError: if the inputs do not fit the model or each other.
        """
        if class_labels is not None:
            raise ValueError(
                "`class_labels` must be None: this model is told by coarser codes and prompts only."
            )
        # A row has whole coarser codes, if the model takes any.
        limit = f"`max_length`={self.config.max_length}, a multiple of `context_ratio`={self.config.context_ratio}"
        shape = tuple(input_ids.shape)
        fits = len(shape) == 2 and 0 < shape[1] <= self.config.max_length
        if self.context_embedding is not None:
            fits = fits and shape[1] % self.config.context_ratio == 0
        require(fits, "input_ids", f"(batch, length) with a length of 1 to {limit}", shape)

        x = self.code_embedding(input_ids)  # (B, L, D)
        context = self._context(input_ids, context_ids)  # (B, L, D) or None
        if context is not None:
            x = x + context
        begin = self.begin_embedding(torch.zeros_like(input_ids[:, :1]))  # (B, 1, D)
        x = torch.cat([begin, x], dim=1)  # (B, 1 + L, D)

        # Positions count from the vector before the row.
        rotary = rotary_of(x, self.config)
        states, mask = prompt_inputs(x, self.config.prompt_size, prompt_states, prompt_mask)
        for block in self.blocks:
            x = self.run_block(block, x, rotary, states, mask)

        # The vector before the row has no prediction.
        x = x[:, 1:]
        if positions is not None:
            x = x[positions]  # (N, D)
        logits = self.head(self.norm_out(x))
        return TextTransformerOutput(logits=logits) if return_dict else (logits,)

    def _context(self, input_ids: Tensor, context_ids: Tensor | None) -> Tensor | None:
        """(B, L, D), the part of each code of the row in the embedding of its coarser code."""
        if self.context_embedding is None:
            check_not_given("context_ids", context_ids)
            return None

        ratio = self.config.context_ratio
        shape = (len(input_ids), input_ids.shape[1] // ratio)
        if context_ids is None:
            context_ids = torch.full(shape, self.config.num_context_codes, device=input_ids.device)
        if tuple(context_ids.shape) != shape:
            raise ValueError(
                f"`context_ids` must be {shape} for `input_ids` {tuple(input_ids.shape)}, "
                f"got {tuple(context_ids.shape)}."
            )

        # A coarser code has one vector for each of the codes that it stands for.
        return self.context_embedding(context_ids).unflatten(-1, (ratio, -1)).flatten(1, 2)


def prompt_inputs(
    x: Tensor, prompt_size: int | None, states: Tensor | None, mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """(B, P, E) states and (B, P) bool, where they are seen; without a prompt a single state that is not seen.

    Args:
        x: (B, L, D) the rows that look at the prompt.
        prompt_size: E; `None` is that of a model without prompts, for which both results are `None`.
        states, mask: as a model with prompts is given them, or `None`.

    Raises:
        ValueError: if they do not fit the model or each other.
    """
    if mask is not None and (states is None or mask.shape != states.shape[:2]):
        raise ValueError(
            f"`prompt_mask` must be that of `prompt_states`, got {tuple(mask.shape)} for "
            f"{None if states is None else tuple(states.shape)}."
        )
    if prompt_size is None:
        check_not_given("prompt_states", states)
        return None, None

    # Nothing but the learned state of `PromptAttention` is seen.
    if states is None:
        unseen = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        return x.new_zeros(len(x), 1, prompt_size), unseen

    if states.ndim != 3 or states.shape[::2] != (len(x), prompt_size):
        raise ValueError(
            f"`prompt_states` must be ({len(x)}, length, {prompt_size}), got {tuple(states.shape)}."
        )
    if mask is None:
        mask = torch.ones(states.shape[:2], device=x.device)
    return states.to(x.dtype), mask.bool()


def check_not_given(name: str, value: Tensor | None):
    if value is not None:
        raise ValueError(f"`{name}` were given, but this model was built to take none.")
