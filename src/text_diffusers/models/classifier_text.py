"""A transformer that classifies noisy text, or each of its tokens: what guides a diffusion model over text.

It reads tokens, soft tokens or noisy word embeddings, so the gradient of what it says reaches each of them
(https://arxiv.org/abs/2105.05233, https://arxiv.org/abs/2205.14217).

Shapes: B batch, L sequence length, D width, V vocabulary size, E embedding width of a Diffusion-LM, C classes, T steps
of its clock.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.models.attention import (
    NORM_EPS,
    TextTransformerBlock,
    check_transformer_config,
    hides_nothing,
    init_weights,
    rotary_of,
    sinusoids,
)
from text_diffusers.models.config_types import LONGEST_CLOCK, check_config_types, check_sizes

EMBEDDING_STD = 0.1  # of a new model: small embeddings of rare words learn in few steps
WHOLE_CLOCK = 1_000.0  # the network sees times as if they ran from 0 to a thousand


@dataclass
class TextClassifierOutput(BaseOutput):
    """`logits` of the classes, (B, C), or (B, L, C) of each token."""

    logits: Tensor


class TextClassifierModel(ModelMixin, AttentionMixin, ConfigMixin):
    """Noise-aware classifier of texts, or with `per_token` of tokens.

    Args:
        vocab_size: V, with all special tokens; may be left out with `embedding_dim`.
        num_classes: C.
        embedding_dim: E, if the inputs are the noisy word embeddings of a Diffusion-LM; `None` takes tokens. With
            `vocab_size` the network also reads words: Bayes' rule tells what a noisy embedding says of its own word,
            once `set_words` has been called, and the network is shown it, as the mean of learned vectors of width D.
            Without it has to tell words apart by itself, which takes long.
        hidden_size: D.
        num_layers: number of transformer blocks.
        num_attention_heads: the head width, D / heads, must be even.
        feed_forward_ratio: width of the feed-forward layer in units of D.
        max_length: the longest sequence, in tokens; longer inputs are refused.
        per_token: classifies each token; otherwise the whole text, by the mean of its real tokens.
        time_conditioning: whether the network sees the time. Absorbing noise tells it by the number of masks.
        num_train_timesteps: T, of the clock 0, ..., T - 1 of embeddings; `None`, for models that do not read the words
            of embeddings, is time in [0, 1].
        labels: C names of the classes.
        dropout: probability, during training.
        mask_token_id, pad_token_id: kept for loaders and checked against V.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TextTransformerBlock"]
    _repeated_blocks = ["TextTransformerBlock"]
    _skip_layerwise_casting_patterns = ["token_embedding", "words_in"]  # read outside of their layers
    _gradient_checkpointing_func: Any
    config: Any

    @register_to_config
    def __init__(
        self,
        vocab_size: int | None = None,
        num_classes: int = 2,
        embedding_dim: int | None = None,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_attention_heads: int = 4,
        feed_forward_ratio: float = 4.0,
        max_length: int = 128,
        per_token: bool = False,
        time_conditioning: bool = True,
        num_train_timesteps: int | None = None,
        labels: list[str] | None = None,
        dropout: float = 0.0,
        mask_token_id: int | None = None,
        pad_token_id: int | None = None,
    ):
        super().__init__()
        self._check_config()
        self.gradient_checkpointing = False
        over_tokens = embedding_dim is None
        words = None if vocab_size is None else nn.Embedding(vocab_size, hidden_size)
        self.token_embedding = words if over_tokens else None
        self.words_in = None if over_tokens else words
        self.proj_in = None if embedding_dim is None else nn.Linear(embedding_dim, hidden_size)
        self.time_embedding = (
            nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
            if time_conditioning
            else None
        )
        feed_forward_size = int(hidden_size * feed_forward_ratio)
        self.blocks = nn.ModuleList(
            TextTransformerBlock(hidden_size, num_attention_heads, feed_forward_size, dropout, time_conditioning)
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.head = nn.Linear(hidden_size, num_classes)
        self.apply(init_weights)
        nn.init.zeros_(self.head.weight)
        if words is not None:
            nn.init.normal_(words.weight, std=EMBEDDING_STD)
        if self.words_in is not None and self.proj_in is not None:
            self.proj_in.weight.data.mul_(EMBEDDING_STD)  # or the noise that it passes on drowns the words
            self.register_buffer("word_table", torch.zeros(self.words_in.num_embeddings, self.proj_in.in_features))
            self.register_buffer("evidence", torch.zeros(2, num_train_timesteps or 0))

    def forward(
        self,
        input_ids: Tensor | None = None,
        timestep: float | Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> TextClassifierOutput | tuple[Tensor]:
        """Classify.

        Args:
            input_ids: (B, L) tokens, which may be noisy or masked.
            timestep: () or (B,) time in [0, 1], or of the clock of embeddings; `None` is 0, clean text. Ignored
                without time conditioning, but for what noisy embeddings say of their words.
            attention_mask: (B, L), 0 at padding; each row has a real token.
            inputs_embeds: in place of `input_ids`: (B, L, D) soft tokens, probabilities (B, L, V) times
                `get_input_embeddings().weight`; or (B, L, E) noisy word embeddings, with `embedding_dim`.

        Returns:
            `logits`, (B, C), or (B, L, C) with `per_token`; those at padding mean nothing.

        Raises:
            ValueError: if not one of both inputs is given, or the shapes do not fit the model.
        """
        x = self._inputs(input_ids, inputs_embeds, timestep)  # (B, L, D)
        real = self._real_tokens(x, attention_mask)  # (B, L) or None
        condition = self._condition(x, timestep)  # (B, 1, D) or None
        head_width = self.config.hidden_size // self.config.num_attention_heads
        rotary = rotary_of(x, head_width)
        mask = None if real is None else real[:, None, None]
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, rotary, mask, condition)
            else:
                x = block(x, rotary, mask, condition)
        x = self.norm_out(x)
        if not self.config.per_token:
            x = mean_of_real(x, real)
        logits = self.head(x)
        return TextClassifierOutput(logits=logits) if return_dict else (logits,)

    def get_input_embeddings(self) -> nn.Embedding | None:
        """The embedding of tokens, whose `weight` is (V, D); `None` of a model over word embeddings."""
        return self.token_embedding

    @torch.no_grad()
    def set_words(self, table: Tensor, alphas_cumprod: Tensor):
        """Tell a model over embeddings with `vocab_size` what it reads; it is saved with the weights.

        Args:
            table: (V, E) the clean embedding of every word.
            alphas_cumprod: (T,) of the noise, x_t = sqrt(alphas_cumprod[t]) table[word] + sqrt(1 - ...) noise.

        Raises:
            ValueError: if the model reads no words of embeddings, or shapes or values do not fit.
        """
        self._check_reads_words("set_words")
        want = tuple(self.word_table.shape)
        if tuple(table.shape) != want or not table.isfinite().all():
            raise ValueError(f"`table` must be {want} and finite, got {tuple(table.shape)}.")
        steps = self.config.num_train_timesteps
        if tuple(alphas_cumprod.shape) != (steps,) or not ((alphas_cumprod >= 0) & (alphas_cumprod < 1)).all():
            raise ValueError(
                f"`alphas_cumprod` must be ({steps},), at least 0 and below 1, got {tuple(alphas_cumprod.shape)}, "
                f"{float(alphas_cumprod.min())} to {float(alphas_cumprod.max())}."
            )
        alpha = alphas_cumprod.double()
        self.word_table.copy_(table)
        self.evidence.copy_(torch.stack([alpha.sqrt(), alpha]) / (1 - alpha))

    def word_probs(self, inputs_embeds: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """(B, L, V) probabilities of the words by their own noisy embeddings (B, L, E) alone, differentiable in these.

        By Bayes' rule, all words being as likely beforehand. The log-likelihood of x_t = sqrt(a) e + sqrt(1 - a) noise
        is (sqrt(a) x_t e - a |e|^2 / 2) / (1 - a), but for what all words share. Before `set_words` all are alike.

        Raises:
            ValueError: if the model reads no words of embeddings, or the times do not fit.
        """
        self._check_reads_words("word_probs")
        exact = torch.promote_types(inputs_embeds.dtype, torch.float32)
        table = self.word_table.to(exact)
        times = self._times(inputs_embeds, timestep).round().long()  # (B,)
        signal, power = self.evidence[:, times, None, None].to(exact)  # (B, 1, 1)
        # At little noise scores are in the thousands, and differ by a few.
        with torch.autocast(inputs_embeds.device.type, enabled=False):
            scores = F.linear(signal * inputs_embeds, table) - power / 2 * table.square().sum(dim=-1)
            return scores.softmax(dim=-1).to(inputs_embeds.dtype)

    def _inputs(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, timestep: float | Tensor | None
    ) -> Tensor:
        """What the blocks read, (B, L, D)."""
        width, limit = self.config.embedding_dim, self.config.max_length
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Either `input_ids` or `inputs_embeds` must be given, and not both.")
        if inputs_embeds is not None:
            want = width or self.config.hidden_size
            if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != want or not 0 < inputs_embeds.shape[1] <= limit:
                raise ValueError(
                    f"`inputs_embeds` must be (batch, length, {want}) with a length of 1 to `max_length`={limit}, "
                    f"got {tuple(inputs_embeds.shape)}."
                )
            if self.proj_in is None:
                return inputs_embeds
            x = self.proj_in(inputs_embeds)
            return x if self.words_in is None else x + self.word_probs(inputs_embeds, timestep) @ self.words_in.weight
        if self.token_embedding is None:
            raise ValueError(
                f"`inputs_embeds` must be given to a model with `embedding_dim`={width}, got `input_ids`."
            )
        assert input_ids is not None
        if input_ids.ndim != 2 or not 0 < input_ids.shape[1] <= limit:
            raise ValueError(
                f"`input_ids` must be (batch, length) with a length of 1 to `max_length`={limit}, "
                f"got {tuple(input_ids.shape)}."
            )
        return self.token_embedding(input_ids)

    def _real_tokens(self, x: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """(B, L) bool, or `None` if there is no padding."""
        if attention_mask is None:
            return None
        real = attention_mask.bool()
        if real.shape != x.shape[:2] or not (torch.compiler.is_compiling() or real.any(dim=1).all()):
            raise ValueError(
                f"`attention_mask` must be {tuple(x.shape[:2])} with a real token in each row, got "
                f"{tuple(real.shape)} with {real.sum(dim=-1).tolist()} of them."
            )
        return None if hides_nothing(real) else real

    def _condition(self, x: Tensor, timestep: float | Tensor | None) -> Tensor | None:
        """(B, 1, D) of the embedded time."""
        if self.time_embedding is None:
            return None
        share = self._times(x, timestep) / (self.config.num_train_timesteps or 1)
        waves = torch.cat(sinusoids(share * WHOLE_CLOCK, self.config.hidden_size), dim=-1)
        return F.silu(self.time_embedding(waves.to(x.dtype))).unsqueeze(1)

    def _times(self, x: Tensor, timestep: float | Tensor | None) -> Tensor:
        """(B,) times of the rows of `x`, float32."""
        times = torch.as_tensor(0.0 if timestep is None else timestep, device=x.device).float()
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(x))):
            raise ValueError(f"`timestep` must be () or ({len(x)},), one a row, got {tuple(times.shape)}.")
        return times.expand(len(x))

    def _check_reads_words(self, method: str):
        if self.words_in is None:
            raise ValueError(f"`{method}` needs a model with `embedding_dim` and `vocab_size`.")

    def _check_config(self):
        config = self.config
        check_config_types(self)
        if config.embedding_dim is None:
            check_transformer_config(config)
        else:  # the clock and the width of embeddings are needed, a vocabulary is not
            known = FrozenDict(config | {"vocab_size": config.vocab_size or config.embedding_dim})
            check_transformer_config(known, ("embedding_dim",))
        steps, classes, labels = config.num_train_timesteps, config.num_classes, config.labels
        check_sizes(config, ["num_train_timesteps"], most=LONGEST_CLOCK, optional=True)
        if steps is None and config.embedding_dim is not None and config.vocab_size is not None:
            raise ValueError(
                "`num_train_timesteps` must be an integer with both `embedding_dim` and `vocab_size`, got None."
            )
        check_sizes(config, ["num_classes"], least=2)
        if labels is not None and len(labels) != classes:
            raise ValueError(f"`labels` must be None or {classes} names, one a class, got {labels!r}.")


def mean_of_real(x: Tensor, real: Tensor | None) -> Tensor:
    """(B, D) mean of (B, L, D) over the tokens that are `real` (B, L)."""
    if real is None:
        return x.mean(dim=1)
    weights = real.unsqueeze(-1).to(x.dtype)
    return (x * weights).sum(dim=1) / weights.sum(dim=1)
