"""A transformer that classifies noisy text, or each of its tokens, to guide a diffusion model over text.

It reads tokens, soft tokens or noisy word embeddings, so the gradient of its logits reaches each of them
(https://arxiv.org/abs/2105.05233, https://arxiv.org/abs/2205.14217).

Shapes: B batch, L sequence length, D width, V vocabulary size, E embedding width of a Diffusion-LM, C classes, T steps
of its clock.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.common.validation import LONGEST_CLOCK, require
from text_diffusers.models.attention import NORM_EPS, real_tokens, rotary_of
from text_diffusers.models.checks import (
    check_config_types,
    check_shape,
    check_sizes,
    check_transformer_config,
)
from text_diffusers.models.transformer_blocks import (
    TextTransformerBlock,
    TransformerModel,
    init_weights,
    make_time_layers,
    word_evidence,
    zero_weights,
)

EMBEDDING_STD = 0.1  # of a new model: small embeddings of rare words learn in few steps


@dataclass
class TextClassifierOutput(BaseOutput):
    """`logits` of the classes, (B, C), or (B, L, C) of each token."""

    logits: Tensor


class TextClassifierModel(TransformerModel):
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

    Example:
        >>> import torch
        >>> from text_diffusers import TextClassifierModel
        >>> model = TextClassifierModel(20, num_classes=3, hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> tokens = torch.tensor([[3, 19, 7], [5, 2, 19]])
        >>> model(tokens, timestep=0.4).logits
        tensor([[0., 0., 0.],
                [0., 0., 0.]], grad_fn=<AddmmBackward0>)
    """

    _supports_gradient_checkpointing = True
    # Read outside of their layers.
    _skip_layerwise_casting_patterns = ["token_embedding", "words_in"]

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

        # 1. What the transformer reads: tokens, or embeddings and perhaps the words behind them
        words = None if vocab_size is None else nn.Embedding(vocab_size, hidden_size)
        self.token_embedding = words if embedding_dim is None else None
        self.words_in = None if embedding_dim is None else words
        self.proj_in = None if embedding_dim is None else nn.Linear(embedding_dim, hidden_size)
        self.time_embedding = make_time_layers(hidden_size) if time_conditioning else None

        # 2. The transformer and its head
        self.blocks = nn.ModuleList(
            TextTransformerBlock(self.config, dropout, conditioned=time_conditioning)
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.head = nn.Linear(hidden_size, num_classes)
        self.apply(init_weights)
        zero_weights(self.head)
        if words is not None:
            nn.init.normal_(words.weight, std=EMBEDDING_STD)

        # 3. The words of embeddings, for `set_words`
        if self.words_in is not None and self.proj_in is not None:
            # Small, or the noise that it passes on drowns the words.
            self.proj_in.weight.data.mul_(EMBEDDING_STD)
            self.register_buffer(
                "word_table", torch.zeros(self.words_in.num_embeddings, self.proj_in.in_features)
            )
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
        mask = None if real is None else real[:, None, None]
        condition = self._condition(x, timestep)  # (B, 1, D) or None

        rotary = rotary_of(x, self.config)
        for block in self.blocks:
            x = self.run_block(block, x, rotary, mask, condition)

        # One answer a token, or one of the mean of the tokens
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
        """Tell a model over embeddings with `vocab_size` the words and the noise; both are saved with the weights.

        Args:
            table: (V, E) the clean embedding of every word.
            alphas_cumprod: (T,) of the noise, x_t = sqrt(alphas_cumprod[t]) table[word] + sqrt(1 - ...) noise.

        Raises:
            ValueError: if the model reads no words of embeddings, or shapes or values do not fit.
        """
        self._check_reads_words("set_words")
        shape = tuple(self.word_table.shape)
        if tuple(table.shape) != shape or not table.isfinite().all():
            raise ValueError(f"`table` must be {shape} and finite, got {tuple(table.shape)}.")
        steps = self.config.num_train_timesteps
        if (
            tuple(alphas_cumprod.shape) != (steps,)
            or not ((alphas_cumprod >= 0) & (alphas_cumprod < 1)).all()
        ):
            raise ValueError(
                f"`alphas_cumprod` must be ({steps},), at least 0 and below 1, got {tuple(alphas_cumprod.shape)}, "
                f"{float(alphas_cumprod.min())} to {float(alphas_cumprod.max())}."
            )
        self.word_table.copy_(table)
        self.evidence.copy_(word_evidence(alphas_cumprod))

    def word_probs(self, inputs_embeds: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """(B, L, V) probabilities of the words by their own noisy embeddings (B, L, E) alone, differentiable in these.

        By Bayes' rule, see `word_evidence`. Before `set_words` all words are alike.

        Raises:
            ValueError: if the model reads no words of embeddings, or the times do not fit.
        """
        self._check_reads_words("word_probs")
        # Half precision cannot tell large scores apart.
        exact = torch.promote_types(inputs_embeds.dtype, torch.float32)
        table = self.word_table.to(exact)
        times = self._times(inputs_embeds, timestep).round().long()  # (B,)
        signal, power = self.evidence[:, times, None, None].to(exact)  # (B, 1, 1)

        # At little noise scores are in the thousands, and differ by a few.
        with torch.autocast(inputs_embeds.device.type, enabled=False):
            scores = F.linear(signal * inputs_embeds, table) - power / 2 * table.square().sum(
                dim=-1
            )
            return scores.softmax(dim=-1).to(inputs_embeds.dtype)

    def _inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        timestep: float | Tensor | None,
    ) -> Tensor:
        """(B, L, D) that the blocks read."""
        limit = self.config.max_length
        width = self.config.embedding_dim
        if inputs_embeds is None and input_ids is not None:
            if self.token_embedding is None:
                raise ValueError(
                    f"`inputs_embeds` must be given to a model with `embedding_dim`={width}, got `input_ids`."
                )
            check_shape("input_ids", input_ids, limit)
            return self.token_embedding(input_ids)

        if inputs_embeds is None or input_ids is not None:
            raise ValueError("Either `input_ids` or `inputs_embeds` must be given, and not both.")
        check_shape("inputs_embeds", inputs_embeds, limit, width or self.config.hidden_size)

        # Soft tokens have the width of the network already.
        if self.proj_in is None:
            return inputs_embeds

        # Noisy embeddings, and what they say of their words
        x = self.proj_in(inputs_embeds)
        if self.words_in is not None:
            x = x + self.word_probs(inputs_embeds, timestep) @ self.words_in.weight
        return x

    def _real_tokens(self, x: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """(B, L) bool, or `None` if there is no padding."""
        if attention_mask is None:
            return None
        real = attention_mask.bool()
        # The mean over no token would be NaN; a compiled graph cannot look at values.
        if real.shape != x.shape[:2] or not (
            torch.compiler.is_compiling() or real.any(dim=1).all()
        ):
            raise ValueError(
                f"`attention_mask` must be {tuple(x.shape[:2])} with a real token in each row, got "
                f"{tuple(real.shape)} with {real.sum(dim=-1).tolist()} of them."
            )
        return real_tokens(real)

    def _condition(self, x: Tensor, timestep: float | Tensor | None) -> Tensor | None:
        """(B, 1, D) of the embedded time."""
        if self.time_embedding is None:
            return None

        # Times of embeddings run up to T, those of tokens up to 1.
        share = self._times(x, timestep) / (self.config.num_train_timesteps or 1)
        return F.silu(self.embed_times(share, x.dtype)).unsqueeze(1)

    def _times(self, x: Tensor, timestep: float | Tensor | None) -> Tensor:
        """(B,) times of the rows of `x`, float32."""
        times = torch.as_tensor(0.0 if timestep is None else timestep, device=x.device).float()
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(x))):
            raise ValueError(
                f"`timestep` must be () or ({len(x)},), one a row, got {tuple(times.shape)}."
            )
        return times.expand(len(x))

    def _check_reads_words(self, method: str):
        if self.words_in is None:
            raise ValueError(f"`{method}` needs a model with `embedding_dim` and `vocab_size`.")

    def _check_config(self):
        config = self.config
        check_config_types(self)
        if config.embedding_dim is None:
            check_transformer_config(config)
        else:
            # The width of embeddings is needed, a vocabulary is not.
            vocab_size = config.vocab_size or config.embedding_dim
            check_transformer_config(
                FrozenDict(config | {"vocab_size": vocab_size}), ["embedding_dim"]
            )

        steps = config.num_train_timesteps
        check_sizes(config, ["num_train_timesteps"], most=LONGEST_CLOCK, optional=True)
        optional = config.embedding_dim is None or config.vocab_size is None
        limit = "an integer with both `embedding_dim` and `vocab_size`"
        require(optional or steps is not None, "num_train_timesteps", limit, steps)

        # Names are for readers and loaders; the network only counts them.
        labels = config.labels
        check_sizes(config, ["num_classes"], least=2)
        limit = f"None or {config.num_classes} names, one a class"
        require(labels is None or len(labels) == config.num_classes, "labels", limit, labels)


def mean_of_real(x: Tensor, real: Tensor | None) -> Tensor:
    """(B, D) mean of (B, L, D) over the tokens that are `real` (B, L)."""
    if real is None:
        return x.mean(dim=1)
    weights = real.unsqueeze(-1).to(x.dtype)
    return (x * weights).sum(dim=1) / weights.sum(dim=1)
