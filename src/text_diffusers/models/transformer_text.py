"""A transformer that predicts clean tokens from corrupted ones: bidirectional, or block by block.

The time enters by adaptive layer norm as in DiT (https://arxiv.org/abs/2212.09748), positions by rotation
(https://arxiv.org/abs/2104.09864).

Shapes: B batch, L sequence length, D width, C width of the condition, H heads, V vocabulary size, N selected
positions.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.common.validation import require
from text_diffusers.models.attention import (
    NORM_EPS,
    BlockCache,
    earlier_blocks,
    real_tokens,
    rotary_of,
    take,
    two_streams,
    wanted_tokens,
)
from text_diffusers.models.checks import (
    check_config_types,
    check_shape,
    check_sizes,
    check_transformer_config,
    check_transformer_options,
)
from text_diffusers.models.chunked_head import CHUNK_SIZE, ChunkedHeadLoss, LossFunction, chunks
from text_diffusers.models.text_lengths import (
    check_length_ids,
    last_tokens,
    require_length_model,
)
from text_diffusers.models.transformer_blocks import (
    TIME_INPUTS,
    TextTransformerBlock,
    TransformerModel,
    init_weights,
    make_time_layers,
    zero_weights,
)


@dataclass
class TextTransformerOutput(BaseOutput):
    """`logits` of clean tokens, (B, L, V), or (N, V) with `positions`; with a loss function its `loss` instead."""

    logits: Tensor | None = None
    loss: Tensor | None = None


class TextTransformerModel(TransformerModel, PeftAdapterMixin):
    """Denoiser over tokens: bidirectional, or with `block_length` block by block (https://arxiv.org/abs/2503.09573).

    The options from `qk_norm` on make it the network of SEDD (https://arxiv.org/abs/2310.16834), MDLM
    (https://arxiv.org/abs/2406.07524), UDLM (https://arxiv.org/abs/2412.10193), GIDD
    (https://arxiv.org/abs/2503.04482), BD3-LM (https://arxiv.org/abs/2503.09573) and Duo
    (https://arxiv.org/abs/2506.10892), whose weights it holds in another form.

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
        block_length: tokens in a block; a token then sees its own block and those before. Blocks begin at multiples
            of it. `None` lets every token see every other.
        mask_token_id, pad_token_id: kept for loaders and checked against V.
        predicts_length: whether the model was trained to say how long a text from a source is, see `length_logits`.
        qk_norm: whether queries and keys are normalised in each head.
        head_bias: whether the head adds a bias; for a head of its own only.
        norm_eps: added to the variance by which norms divide.
        condition_size: C, the width of the vectors of time and label; `None` is D.
        frequency_embedding_size: how many sinusoids are taken of the time, an even number; `None` is D.
        time_input: what they are taken of. "steps" is 1000 t, "fraction" t itself, and "sigma" the total noise
            -log(1 - 0.999 t) of the log-linear schedule.
        silu_before_sum: whether SiLU is applied to the vectors of time and label before they are added, as in UDLM,
            and not to their sum; nothing is then added where `class_labels` is `None`.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> import torch
        >>> from text_diffusers import TextTransformerModel
        >>> model = TextTransformerModel(vocab_size=20, hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> tokens = torch.tensor([[3, 19, 19, 7]])  # 19 is the mask
        >>> model(tokens).logits.shape
        torch.Size([1, 4, 20])
        >>> model(tokens, positions=tokens == 19).logits.shape
        torch.Size([2, 20])
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["token_embedding", "head"]  # read outside of their layers

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
        block_length: int | None = None,
        mask_token_id: int | None = None,
        pad_token_id: int | None = None,
        predicts_length: bool = False,
        qk_norm: bool = True,
        head_bias: bool = False,
        norm_eps: float = NORM_EPS,
        condition_size: int | None = None,
        frequency_embedding_size: int | None = None,
        time_input: str = "steps",
        silu_before_sum: bool = False,
    ):
        super().__init__()
        check_config_types(self)
        check_transformer_config(self.config)
        check_transformer_options(self.config, TIME_INPUTS)
        check_length_ids(self.config)
        check_sizes(self.config, ["block_length"], optional=True)

        # Without time and labels there is nothing to modulate by, and norms keep their own weights.
        conditioned = time_conditioning or num_classes is not None
        condition_size = condition_size or hidden_size
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.class_embedding = None
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, condition_size)
        self.time_embedding = None
        if time_conditioning:
            num_waves = frequency_embedding_size or hidden_size
            self.time_embedding = make_time_layers(condition_size, num_waves)
        self.blocks = nn.ModuleList(
            TextTransformerBlock(
                self.config,
                dropout,
                conditioned=conditioned,
                condition_size=condition_size,
                qk_norm=qk_norm,
                norm_eps=norm_eps,
            )
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=norm_eps, elementwise_affine=not conditioned)
        self.modulation_out = nn.Linear(condition_size, 2 * hidden_size) if conditioned else None
        self.head = None if tie_embeddings else nn.Linear(hidden_size, vocab_size, bias=head_bias)

        # A head of its own starts at zero, where all tokens are equally likely.
        self.apply(init_weights)
        zero_weights(self.head, self.modulation_out)

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
        clean_ids: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> TextTransformerOutput | tuple[Tensor]:
        """Predict the clean token at each position.

        Args:
            input_ids: (B, L) corrupted tokens.
            timestep: (), (B,) or, one a token, (B, L) in [0, 1]; required with time conditioning, ignored without.
            attention_mask: (B, L), 0 at padding; with a cache (B, cache.length + L).
            class_labels: (B,) ids; `None` is "no label".
            positions: (B, L) bool; the head runs there only.
            loss_function: `(logits (n, V), chunk) -> ()`, the loss summed over `chunk`, a slice of the N positions
                (of all B * L without `positions`). The output then has the sum over all chunks, differentiable once,
                and no logits. Gradients reach this model only, through the logits.
            chunk_size: the most positions whose logits exist at once, with a `loss_function`.
            clean_ids: (B, L), to train a model with blocks: each block of `input_ids` then sees itself and, of the
                blocks before it, these clean tokens, whose time is 0. One pass predicts all blocks.
            cache: from `new_cache`, to write with a model with blocks: `input_ids` are the tokens that follow its
                finished blocks, and see them.

        Raises:
            ValueError: if the sequence is too long, the time or a label is missing or out of range, the head cannot
                run in chunks, or clean tokens or a cache do not fit the model or the input.
        """
        self._check_inputs(input_ids, timestep)
        self._check_blocks(input_ids, clean_ids, cache)

        # With a cache, the input stands behind the tokens that the cache holds.
        length = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        mask = self._visible(input_ids, attention_mask, start, two=clean_ids is not None)
        # Time and label, (B, 1, C), (B, L, C) or (B, 2L, C)
        condition = self._condition(input_ids, timestep, class_labels, clean_ids)

        # 1. Embed the tokens; beside clean ones there are 2L from here on, the noisy ones first
        tokens = input_ids if clean_ids is None else torch.cat([input_ids, clean_ids], dim=1)
        x = self.token_embedding(tokens)  # (B, L, D)
        rotary = rotary_of(x[:, :length], self.config, start)
        if clean_ids is not None:
            # A clean token has the position of its noisy one.
            cosines, sines = rotary
            rotary = (cosines.repeat(2, 1), sines.repeat(2, 1))

        # 2. Transform; the last block computes the tokens at `positions` only
        wanted = None if positions is None else wanted_tokens(positions)  # (B, n)
        for layer, block in enumerate(self.blocks):
            store = None if cache is None else partial(cache.extend, layer)
            last = layer == len(self.blocks) - 1
            x = self.run_block(block, x, rotary, mask, condition, store, wanted if last else None)

        # 3. Normalise, and choose the positions
        x = self.norm_out(x[:, :length])

        # The time that the tokens themselves have, of the wanted ones if times differ
        if self.modulation_out is not None and condition is not None:
            condition = take(condition[:, :length], wanted if condition.shape[1] > 1 else None)
            shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
            x = x * (1 + scale) + shift

        # Rows with fewer positions were filled up with other tokens, which are left out here.
        if positions is not None and wanted is not None:
            x = x[positions.gather(1, wanted)]  # (N, D)

        # 4. Predict; a shared embedding has unit entries
        if self.head is None:
            x = x * self.config.hidden_size**-0.5
        if loss_function is not None:
            loss = self._chunked_loss(x.reshape(-1, x.shape[-1]), loss_function, chunk_size)
            return TextTransformerOutput(loss=loss) if return_dict else (loss,)
        logits = F.linear(x, self.token_embedding.weight) if self.head is None else self.head(x)
        return TextTransformerOutput(logits=logits) if return_dict else (logits,)

    def length_logits(
        self,
        source_ids: Tensor,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Ask how many tokens are to be written from each source.

        A model that `predicts_length` was trained to answer at the last token of a row that ends with its source: its
        prediction there, over the ids 0, 1, 2, ..., is that of so many tokens.

        Args:
            source_ids: (B, S) tokens "start source end" of each row, with padding on the right.
            attention_mask: (B, S), 0 at padding.
            class_labels: (B,) ids; `None` is "no label".

        Returns:
            (B, `max_length`) logits of 0, 1, 2, ... tokens.

        Raises:
            ValueError: if the model was not trained to.
        """
        require_length_model(self.config)
        logits = self(
            source_ids,
            0.0,
            attention_mask,
            class_labels,
            positions=last_tokens(source_ids, attention_mask),
        ).logits
        return logits[:, : self.config.max_length]

    def new_cache(self, capacity: int | None = None) -> BlockCache:
        """An empty cache of up to `capacity` tokens, by default and at most `max_length`."""
        limit = self.config.max_length
        require(
            0 < (capacity or limit) <= limit,
            "capacity",
            f"between 1 and `max_length`={limit}",
            capacity,
        )
        return BlockCache(capacity or limit)

    def _chunked_loss(self, x: Tensor, loss_function: LossFunction, chunk_size: int) -> Tensor:
        """() sum of the loss over chunks of the features (N, D)."""
        require(chunk_size >= 1, "chunk_size", "at least 1", chunk_size)
        # A LoRA adapter around the head would be left out: only the weight is read.
        if self.head is not None and type(self.head) is not nn.Linear:
            raise ValueError(
                f"`loss_function` needs a plain linear head, got {type(self.head)}: use `logits`."
            )

        weight = self.token_embedding.weight if self.head is None else self.head.weight
        bias = None if self.head is None else self.head.bias
        parts = [x, weight] if bias is None else [x, weight, bias]
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            return ChunkedHeadLoss.apply(x, weight, loss_function, chunk_size, bias)

        # Without gradients there is nothing to keep from one chunk to the next.
        total = torch.zeros((), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for chunk in chunks(len(x), chunk_size):
            total = total + loss_function(F.linear(x[chunk], weight, bias), chunk)
        return total

    def _visible(
        self, input_ids: Tensor, attention_mask: Tensor | None, start: int, two: bool
    ) -> Tensor | None:
        """Mask that broadcasts to (B, H, L, S), true where attended; None if all is. `two`: as in `two_streams`."""
        length = input_ids.shape[1]
        block_length = self.config.block_length
        mask = None
        if two:
            mask = two_streams(length, block_length, input_ids.device)
        elif block_length is not None:
            mask = earlier_blocks(start + length, start, block_length, input_ids.device)

        real = real_tokens(attention_mask)
        if real is None:
            return mask
        # The clean tokens have the padding of the noisy ones.
        if two:
            real = torch.cat([real, real], dim=-1)
        real = real[:, None, None, :]
        return real if mask is None else real & mask

    def _condition(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None,
        class_labels: Tensor | None,
        clean_ids: Tensor | None,
    ) -> Tensor | None:
        """(B, 1, C) sum of the embedded time and label, (B, L, C) or (B, 2L, C) if tokens differ in time, or None."""
        condition = None
        if self.time_embedding is not None:
            times = torch.as_tensor(timestep, device=input_ids.device, dtype=torch.float32)
            if times.ndim < 2:
                times = times.expand(len(input_ids)).unsqueeze(1)  # (B, 1)
            # The clean tokens stand behind the noisy ones, at time 0.
            if clean_ids is not None:
                clean_times = torch.zeros_like(clean_ids, dtype=times.dtype)
                times = torch.cat([times.expand(input_ids.shape), clean_times], dim=1)
            condition = self.embed_times(
                times,
                self.token_embedding.weight.dtype,
                self.config.time_input,
                self.config.frequency_embedding_size,
            )

        # UDLM was shown nothing in the place of a label where none was asked for.
        if class_labels is None and self.config.silu_before_sum:
            return None if condition is None else F.silu(condition)
        label = self.embed_labels(class_labels, input_ids)
        if label is not None:
            label = label.unsqueeze(1)
            if condition is None:
                condition = label
            elif self.config.silu_before_sum:
                return F.silu(condition) + F.silu(label)
            else:
                condition = condition + label
        return None if condition is None else F.silu(condition)

    def _check_inputs(self, input_ids: Tensor, timestep: float | Tensor | None):
        check_shape("input_ids", input_ids, self.config.max_length)
        if self.time_embedding is not None and timestep is None:
            raise ValueError(
                "`timestep` is required: this model was built with `time_conditioning=True`."
            )
        if (
            isinstance(timestep, Tensor)
            and timestep.ndim == 2
            and timestep.shape != input_ids.shape
        ):
            shape = tuple(input_ids.shape)
            raise ValueError(
                f"`timestep` must be (), (B,) or {shape} like `input_ids`, got {tuple(timestep.shape)}."
            )

    def _check_blocks(self, input_ids: Tensor, clean_ids: Tensor | None, cache: BlockCache | None):
        block_length = self.config.block_length
        for name, value in (("clean_ids", clean_ids), ("cache", cache)):
            if value is not None and block_length is None:
                raise ValueError(
                    f"`{name}` was given, but this model was built with `block_length=None`."
                )

        # Clean tokens, in training
        if clean_ids is not None and (cache is not None or clean_ids.shape != input_ids.shape):
            raise ValueError(
                f"`clean_ids` must be {tuple(input_ids.shape)} like `input_ids` and come without `cache`, "
                f"got {tuple(clean_ids.shape)}."
            )
        if cache is None:
            return

        # The cache, in writing
        if torch.is_grad_enabled():
            raise ValueError(
                "`cache` carries no gradients: call the model under `torch.no_grad()`."
            )
        length = input_ids.shape[1]
        if cache.length % block_length or cache.length + length > cache.capacity:
            raise ValueError(
                f"`cache` must hold whole blocks of {block_length} tokens and have room for the {length} of "
                f"`input_ids`, got {cache.length} of {cache.capacity} in use."
            )
