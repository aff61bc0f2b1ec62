"""Transformer blocks over tokens, and the parts that our models share around them.

Shapes: B batch, L sequence length, D width, C width of the condition, n tokens that ask, T timesteps of a clock.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from text_diffusers.common.stock_loading import StockLoading
from text_diffusers.models.attention import (
    NORM_EPS,
    Rotary,
    Store,
    TextAttention,
    rotary_of,
    sinusoids,
    take,
)
from text_diffusers.models.checks import check_class_labels

CLOCK_SCALE = 1_000.0  # the network sees times as if they ran from 0 to a thousand
NOISE_SHARE = 1 - 1e-3  # of the log-linear schedule at time 1, where a little signal is left


def steps_of_time(times: Tensor) -> Tensor:
    """1000 t of times t (...)."""
    return times * CLOCK_SCALE


def fraction_of_time(times: Tensor) -> Tensor:
    """Times t (...) as they are."""
    return times


def total_noise(times: Tensor) -> Tensor:
    """-log(1 - 0.999 t) of times t (...), the total noise of the log-linear schedule."""
    return -torch.log1p(-NOISE_SHARE * times)


# What a network may be shown of the time.
TIME_INPUTS = {"steps": steps_of_time, "fraction": fraction_of_time, "sigma": total_noise}


class TextTransformerBlock(nn.Module):
    """Attention and feed-forward, each on a normalised input; with a condition both are shifted, scaled and gated.

    Args:
        config: of the model, with `hidden_size` D, `num_attention_heads` and `feed_forward_ratio`.
        dropout: probability, during training.
        conditioned: whether `forward` takes a condition.
        condition_size: C, the width of the condition; `None` is D.
        qk_norm: whether queries and keys are normalised in each head.
        norm_eps: added to the variance by which norms divide.
    """

    def __init__(
        self,
        config: Any,
        dropout: float = 0.0,
        conditioned: bool = False,
        condition_size: int | None = None,
        qk_norm: bool = True,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        width = config.hidden_size
        feed_forward_width = int(width * config.feed_forward_ratio)

        # With a condition, the modulation takes the place of the norms' own weights.
        self.norm1 = nn.LayerNorm(width, eps=norm_eps, elementwise_affine=not conditioned)
        self.attn = TextAttention(width, config.num_attention_heads, dropout, qk_norm, norm_eps)

        self.norm2 = nn.LayerNorm(width, eps=norm_eps, elementwise_affine=not conditioned)
        self.ff = nn.Sequential(
            nn.Linear(width, feed_forward_width),
            nn.GELU(approximate="tanh"),
            nn.Linear(feed_forward_width, width),
            nn.Dropout(dropout),
        )
        # Shift, scale and gate of attention and of feed-forward, as in DiT.
        self.modulation = nn.Linear(condition_size or width, 6 * width) if conditioned else None

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        condition: Tensor | None,
        store: Store | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D), or (B, n, D) with `wanted`; `condition` is (B, 1, C) or (B, L, C), the rest as in attention."""
        if self.modulation is None:
            # All tokens are looked at; only the wanted ones go on.
            x = take(x, wanted) + self.attn(self.norm1(x), rotary, mask, store, wanted)
            return x + self.ff(self.norm2(x))

        # Shift and scale of the attention are those of all tokens, which are looked at.
        width = x.shape[-1]
        modulation = self.modulation(condition)  # (B, 1 or L, 6D)
        shift1, scale1 = modulation[..., : 2 * width].chunk(2, dim=-1)

        # From the first gate on only the wanted tokens matter.
        modulation = take(modulation, wanted if modulation.shape[1] > 1 else None)
        gate1, shift2, scale2, gate2 = modulation[..., 2 * width :].chunk(4, dim=-1)

        attended = self.attn(self.norm1(x) * (1 + scale1) + shift1, rotary, mask, store, wanted)
        x = take(x, wanted) + gate1 * attended
        return x + gate2 * self.ff(self.norm2(x) * (1 + scale2) + shift2)


class TransformerModel(StockLoading, ModelMixin, AttentionMixin, ConfigMixin):
    """Base of our models: a model of diffusers that is made of `TextTransformerBlock`s."""

    # Blocks stay whole on a device, and are compiled once for all.
    _no_split_modules = ["TextTransformerBlock"]
    _repeated_blocks = ["TextTransformerBlock"]
    _gradient_checkpointing_func: Any
    gradient_checkpointing = False
    config: Any
    time_embedding: Any
    class_embedding: Any

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """`block(*inputs)`; with gradient checkpointing its activations are computed again in the backward pass."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def embed_times(
        self,
        times: Tensor,
        dtype: torch.dtype,
        time_input: str = "steps",
        num_waves: int | None = None,
    ) -> Tensor:
        """(..., C) in `dtype` of times (...) in [0, 1], float32.

        Args:
            time_input: what is shown of the time, one of `TIME_INPUTS`.
            num_waves: of the sinusoids; `None` is D.
        """
        shown = TIME_INPUTS[time_input](times)
        waves = torch.cat(sinusoids(shown, num_waves or self.config.hidden_size), dim=-1)
        return self.time_embedding(waves.to(dtype))

    def embed_labels(self, class_labels: Tensor | None, like: Tensor) -> Tensor | None:
        """(B, C) of labels (B,), or of "no label" for each row of `like` (B, ...); `None` without classes.

        Raises:
            ValueError: if the model does not know a label.
        """
        num_classes = self.config.num_classes
        check_class_labels(class_labels, num_classes)
        if num_classes is None:
            return None
        # The last label is "no label".
        if class_labels is None:
            class_labels = torch.full((len(like),), num_classes, device=like.device)
        return self.class_embedding(class_labels)

    def embed_clock(
        self, timestep: float | Tensor, class_labels: Tensor | None, x: Tensor
    ) -> Tensor:
        """(B, 1, D) for blocks over x (B, ..., D): the time on a clock of `num_train_timesteps`, and the label.

        Args:
            timestep: () or (B,).
            class_labels: (B,), see `embed_labels`.
        """
        # The network sees times as shares of the clock.
        times = torch.as_tensor(timestep, device=x.device).float() / self.config.num_train_timesteps
        condition = self.embed_times(times.expand(len(x)), x.dtype)
        label = self.embed_labels(class_labels, x)
        if label is not None:
            condition = condition + label
        return F.silu(condition).unsqueeze(1)


class TransformerStack(nn.Module):
    """Transformer blocks, one after the other, without dropout and condition."""

    def __init__(self, config: Any, num_layers: int):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(TextTransformerBlock(config) for _ in range(num_layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) to the same under a `mask` as in attention."""
        rotary = rotary_of(x, self.config)
        for block in self.blocks:
            x = block(x, rotary, mask, None)
        return x


def make_time_layers(hidden_size: int, num_waves: int | None = None) -> nn.Sequential:
    """The layers of `embed_times`, behind sinusoids, as many as the width unless `num_waves` says it."""
    return nn.Sequential(
        nn.Linear(num_waves or hidden_size, hidden_size),
        nn.SiLU(),
        nn.Linear(hidden_size, hidden_size),
    )


def init_weights(module: nn.Module):
    """Unit embeddings and variance-preserving layers; the layer that closes a residual branch starts at zero.

    The usual 0.02 everywhere keeps small models on the plateau of the token frequencies for most of a short run.
    """
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    # A gate of zero: each block begins as the identity.
    if isinstance(module, TextTransformerBlock) and module.modulation is not None:
        nn.init.zeros_(module.modulation.weight)


def zero_weights(*layers: Any):
    """Layers that predict, or add to what is there, start at zero; `None` is a layer that the model does not have."""
    for layer in layers:
        if layer is not None:
            nn.init.zeros_(layer.weight)


def word_evidence(alphas_cumprod: Tensor) -> Tensor:
    """(2, T) factors by which a noisy embedding speaks for each word, in float64.

    By Bayes' rule, all words being as likely beforehand: the log-likelihood of x_t = sqrt(a) e + sqrt(1 - a) noise is
    (sqrt(a) x_t e - a |e|^2 / 2) / (1 - a), but for what all words share. The first row has sqrt(a) / (1 - a), the
    second a / (1 - a).
    """
    alpha = alphas_cumprod.double()
    return torch.stack([alpha.sqrt(), alpha]) / (1 - alpha)
