"""A bidirectional transformer that predicts clean tokens from corrupted ones.

The time enters by adaptive layer norm as in DiT (https://arxiv.org/abs/2212.09748), positions by rotation
(https://arxiv.org/abs/2104.09864).

Shapes: B batch, L sequence length, D width, H heads, C head width, V vocabulary size, N selected positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROTARY_BASE = 10_000.0
TIME_SCALE = 1_000.0
NORM_EPS = 1e-6
CHUNK_SIZE = 128  # rows of logits that live at once when the head is trained in chunks

LossFunction = Callable[[Tensor, slice], Tensor]


def sinusoids(values: Tensor, width: int, base: float = ROTARY_BASE) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., width / 2) of `values` (...) at geometrically spaced frequencies, float32."""
    frequencies = torch.exp(-math.log(base) / (width // 2) * torch.arange(width // 2, device=values.device))
    angles = values.float().unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of (B, H, L, C) by cosines and sines (L, C / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotary
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class TextAttention(nn.Module):
    """Self-attention without a causal mask; queries and keys are normalised, which allows high learning rates."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_k = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(hidden_size, hidden_size, bias=False), nn.Dropout(dropout)])
        self.norm_q = nn.RMSNorm(hidden_size // num_heads, eps=NORM_EPS)
        self.norm_k = nn.RMSNorm(hidden_size // num_heads, eps=NORM_EPS)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], key_mask: Tensor | None) -> Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.to_q, self.to_k, self.to_v)
        )  # (B, H, L, C)
        query, key = rotate(self.norm_q(query), rotary), rotate(self.norm_k(key), rotary)
        x = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, attn_mask=key_mask)
        x = x.transpose(1, 2).flatten(2)  # (B, L, D)
        for layer in self.to_out:
            x = layer(x)
        return x


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
        self, x: Tensor, rotary: tuple[Tensor, Tensor], key_mask: Tensor | None, condition: Tensor | None
    ) -> Tensor:
        if self.modulation is None:
            x = x + self.attn(self.norm1(x), rotary, key_mask)
            return x + self.ff(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rotary, key_mask)
        return x + gate2 * self.ff(self.norm2(x) * (1 + scale2) + shift2)


class ChunkedHeadLoss(torch.autograd.Function):
    """Sum of a loss over chunks of the head's logits, of which only one chunk exists at any time.

    The gradients of a chunk are taken and added up as soon as its loss is known. The result is a scalar, so all that
    is left to the backward pass is to multiply them by the gradient of that scalar: nothing is computed twice. Liger
    (https://arxiv.org/abs/2410.10989) fuses the cross-entropy with the head in this way; here the loss may be any.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, loss_function: LossFunction, chunk_size: int) -> Tensor:
        """() sum of `loss_function(x[chunk] @ weight.T, chunk)`; x (N, D), weight (V, D)."""
        device = x.device.type  # here autocast casts nothing: its cache would keep a weight without gradient
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x_cast, weight_cast = x.to(dtype), weight.to(dtype)
        total_dtype = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=total_dtype, device=x.device)
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_x = torch.zeros_like(x) if needs_x else None
        grad_weight = torch.zeros_like(weight, dtype=total_dtype) if needs_weight else None

        for chunk in chunks(len(x), chunk_size):
            loss, grad = loss_and_gradient(F.linear(x_cast[chunk], weight_cast), chunk, loss_function)  # grad (n, V)
            total = total + loss  # in float64 if the loss is
            if grad_x is not None:
                grad_x[chunk] = grad @ weight_cast
            if grad_weight is not None and dtype == total_dtype:
                grad_weight.addmm_(grad.T, x_cast[chunk])  # into the sum, without a second (V, D)
            elif grad_weight is not None:
                grad_weight += grad.T @ x_cast[chunk]
            del grad  # before the next chunk's logits

        ctx.save_for_backward(grad_x, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        # In place: a second backward pass, which would find the gradients scaled already, is refused by autograd.
        grad_x, grad_weight = (grad if grad is None else grad.mul_(grad_output) for grad in ctx.saved_tensors)
        return grad_x, grad_weight, None, None


def chunks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def loss_and_gradient(logits: Tensor, chunk: slice, loss_function: LossFunction) -> tuple[Tensor, Tensor]:
    """The loss of a chunk and its gradient (n, V)."""
    with torch.enable_grad():
        loss = loss_function(logits.requires_grad_(), chunk)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@dataclass
class TextTransformerOutput(BaseOutput):
    """`logits` of clean tokens, (B, L, V), or (N, V) with `positions`; with a loss function its `loss` instead."""

    logits: Tensor | None = None
    loss: Tensor | None = None


class TextTransformerModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Bidirectional denoiser over tokens.

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
        mask_token_id, pad_token_id: kept for loaders and checked against V.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TextTransformerBlock"]
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
        self.apply(self._init_weights)

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
    ) -> TextTransformerOutput | tuple[Tensor]:
        """Predict the clean token at each position.

        Args:
            input_ids: (B, L) corrupted tokens.
            timestep: () or (B,) in [0, 1]; required with time conditioning, ignored without.
            attention_mask: (B, L), 0 at padding.
            class_labels: (B,) ids; `None` is "no label".
            positions: (B, L) bool; the head runs there only.
            loss_function: `(logits (n, V), chunk) -> ()`, the loss summed over `chunk`, a slice of the N positions
                (of all B * L without `positions`). The output then has the sum over all chunks, differentiable once,
                and no logits. Gradients reach this model only, through the logits.
            chunk_size: the most positions whose logits exist at once, with a `loss_function`.

        Raises:
            ValueError: if the sequence is too long, the time or a label is missing or out of range, or the head
                cannot run in chunks.
        """
        self._check_inputs(input_ids, timestep, class_labels)
        x = self.token_embedding(input_ids)  # (B, L, D)
        condition = self._condition(input_ids, timestep, class_labels)  # (B, D) or None
        rotary = sinusoids(torch.arange(input_ids.shape[1], device=x.device), self._head_width)
        rotary = (rotary[0].to(x.dtype), rotary[1].to(x.dtype))
        key_mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            key_mask = attention_mask.bool()[:, None, None, :]
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, rotary, key_mask, condition)
            else:
                x = block(x, rotary, key_mask, condition)
        x = self.norm_out(x)
        if self.modulation_out is not None:
            shift, scale = self.modulation_out(condition).unsqueeze(1).chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        if positions is not None:
            x = x[positions]  # (N, D)
        if self.head is None:  # the shared embedding has unit entries
            x = x * self.config.hidden_size**-0.5
        if loss_function is not None:
            loss = self._chunked_loss(x.reshape(-1, x.shape[-1]), loss_function, chunk_size)
            return TextTransformerOutput(loss=loss) if return_dict else (loss,)
        logits = F.linear(x, self.token_embedding.weight) if self.head is None else self.head(x)
        return TextTransformerOutput(logits=logits) if return_dict else (logits,)

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

    def _condition(self, input_ids: Tensor, timestep, class_labels: Tensor | None) -> Tensor | None:
        """(B, D) sum of the embedded time and label, or None if the model takes neither."""
        dtype, device, batch = self.token_embedding.weight.dtype, input_ids.device, len(input_ids)
        parts = []
        if self.time_embedding is not None:
            times = torch.as_tensor(timestep, device=device, dtype=torch.float32).expand(batch)
            waves = torch.cat(sinusoids(times * TIME_SCALE, self.config.hidden_size), dim=-1)
            parts.append(self.time_embedding(waves.to(dtype)))
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full((batch,), self.config.num_classes, device=device)
            parts.append(self.class_embedding(class_labels))
        return F.silu(sum(parts[1:], parts[0])) if parts else None

    @property
    def _head_width(self) -> int:
        return self.config.hidden_size // self.config.num_attention_heads

    def _init_weights(self, module: nn.Module):
        """Unit embeddings and variance-preserving layers; what closes a residual branch or predicts starts at zero.

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
        if module is self:
            for layer in (self.head, self.modulation_out):
                if layer is not None:
                    nn.init.zeros_(layer.weight)

    def _check_inputs(self, input_ids: Tensor, timestep, class_labels: Tensor | None):
        if input_ids.ndim != 2 or not 0 < input_ids.shape[1] <= self.config.max_length:
            raise ValueError(
                f"`input_ids` must be (batch, length) with a length of 1 to `max_length`={self.config.max_length}, "
                f"got {tuple(input_ids.shape)}."
            )
        if self.time_embedding is not None and timestep is None:
            raise ValueError("`timestep` is required: this model was built with `time_conditioning=True`.")
        if class_labels is not None:
            classes = self.config.num_classes
            if classes is None:
                raise ValueError("`class_labels` were given, but this model was built with `num_classes=None`.")
            if not ((class_labels >= 0) & (class_labels <= classes)).all():
                raise ValueError(
                    f"`class_labels` must be between 0 and {classes - 1} (or {classes} for no label), "
                    f"got {class_labels.tolist()}."
                )

    def _check_config(self):
        config = self.config
        for name in ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "max_length"):
            value = getattr(config, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
        width, heads = config.hidden_size, config.num_attention_heads
        if width % heads or (width // heads) % 2:
            raise ValueError(
                "`hidden_size` must be an even multiple of `num_attention_heads` (an even head width), "
                f"got {width} for {heads} heads."
            )
        if not config.feed_forward_ratio > 0:
            raise ValueError(f"`feed_forward_ratio` must be positive, got {config.feed_forward_ratio!r}.")
        if not 0 <= config.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {config.dropout!r}.")
        if config.num_classes is not None and config.num_classes < 1:
            raise ValueError(f"`num_classes` must be None or at least 1, got {config.num_classes!r}.")
        for name in ("mask_token_id", "pad_token_id"):
            value = getattr(config, name)
            if value is not None and not 0 <= value < config.vocab_size:
                raise ValueError(f"`{name}` must be in the vocabulary of {config.vocab_size}, got {value!r}.")
