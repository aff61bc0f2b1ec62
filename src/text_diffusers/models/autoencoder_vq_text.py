"""A hierarchical autoencoder of text: tokens to fine and to few coarse codes, and back to all tokens at once.

The coarse code of a passage says what it is about; the fine codes of its patches of tokens add what the coarse ones
leave open, as in VQ-VAE-2 (https://arxiv.org/abs/1906.00446).

Shapes: B batch, L tokens of a row, W windows of all rows, S tokens of a window, F fine and C coarse codes of a row, D
width, V vocabulary size.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from text_diffusers.common.validation import is_int, is_key, is_list, require
from text_diffusers.models.attention import NORM_EPS
from text_diffusers.models.autoencoder_vq_quantizer import QUANTIZERS, TextQuantizer
from text_diffusers.models.checks import (
    LARGEST_SIZE,
    MOST_LAYERS,
    check_config_types,
    check_sizes,
    check_transformer_sizes,
    check_vocabulary,
)
from text_diffusers.models.transformer_blocks import (
    TransformerModel,
    TransformerStack,
    init_weights,
)


@dataclass
class TextCodes(BaseOutput):
    """Codes of texts: `fine` (B, F) and `coarse` (B, C), the latter None with one level."""

    fine: Tensor
    coarse: Tensor | None = None


@dataclass
class AutoencoderVQTextOutput(BaseOutput):
    """Output of a training pass.

    Attributes:
        logits: (B, L, V).
        commitment_loss: () of the quantisers.
        topic_loss: () nats per token, cross-entropy of the tokens of a window given one of its coarse codes; 0 with
            one level. It makes coarse codes tell what a text is about, rather than its wording.
        codes: of the tokens that the encoder saw.
    """

    logits: Tensor
    # With defaults, as Accelerate makes outputs anew from a mapping in mixed precision.
    commitment_loss: Any = None
    topic_loss: Any = None
    codes: Any = None


class AutoencoderVQTextModel(TransformerModel):
    """Tokens to codes, and codes to logits of all tokens in one pass.

    Everything happens within windows of `window_length` tokens: the cost is linear in the length of a text, and the
    codes of a window depend on its tokens only. Rows are full: a text shorter than its row is followed by `[EOS]`s.

    Args:
        vocab_size: V, with all special tokens.
        hidden_size: D.
        num_encoder_layers: transformer blocks over patches, before the fine codes.
        num_coarse_layers: transformer blocks over passages, before the coarse codes.
        num_decoder_layers: transformer blocks after the codes, the last over tokens, the others over patches.
        num_attention_heads: heads; the head width must be even.
        feed_forward_ratio: width of the feed-forward layers in units of D.
        patch_length: tokens of a fine code.
        coarse_ratio: fine codes of a coarse one; `None` has one level, of fine codes only.
        num_fine_codes, num_coarse_codes: sizes of the codebooks; with "fsq" they follow from the levels.
        fine_levels, coarse_levels: of "fsq", the number of values in each dimension of a code, such as [8, 5, 5, 5].
        codebook_dim: width at which codes are compared.
        quantizer: "ema", "gumbel" or "fsq", see `TextQuantizer`.
        window_length: S, in tokens.
        decay, commitment_weight, dead_code_threshold, rotation_trick: see `TextQuantizer`.
        mask_token_id: of tokens that training hides from the encoder.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> import torch
        >>> from text_diffusers import AutoencoderVQTextModel
        >>> model = AutoencoderVQTextModel(vocab_size=20, hidden_size=8, num_attention_heads=2).eval()
        >>> codes = model.encode(torch.randint(0, 20, (2, 16)))
        >>> codes.fine.shape, codes.coarse.shape
        (torch.Size([2, 8]), torch.Size([2, 2]))
        >>> model.decode(codes.fine, codes.coarse).shape
        torch.Size([2, 16, 20])
    """

    _skip_layerwise_casting_patterns = ["token_embedding"]  # read outside of their layers

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 128,
        num_encoder_layers: int = 2,
        num_coarse_layers: int = 1,
        num_decoder_layers: int = 3,
        num_attention_heads: int = 4,
        feed_forward_ratio: float = 4.0,
        patch_length: int = 2,
        coarse_ratio: int | None = 4,
        num_fine_codes: int = 512,
        num_coarse_codes: int | None = 256,
        fine_levels: list[int] | None = None,
        coarse_levels: list[int] | None = None,
        codebook_dim: int = 16,
        quantizer: str = "ema",
        window_length: int = 128,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        dead_code_threshold: float = 0.1,
        rotation_trick: bool = True,
        mask_token_id: int | None = None,
    ):
        super().__init__()
        self._check_config()
        make_stack = partial(TransformerStack, self.config)
        make_quantizer: Any = partial(
            TextQuantizer,
            quantizer=quantizer,
            hidden_size=hidden_size,
            codebook_dim=codebook_dim,
            decay=decay,
            commitment_weight=commitment_weight,
            dead_code_threshold=dead_code_threshold,
            rotation_trick=rotation_trick,
        )

        # 1. Tokens to fine codes
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.patch_in = nn.Linear(patch_length * hidden_size, hidden_size)
        self.encoder = make_stack(num_encoder_layers)
        self.quantize_fine = make_quantizer(num_codes=fine_levels or num_fine_codes)
        # With "fsq" the numbers of codes follow from the levels, and are told to others by the configuration.
        self.register_to_config(num_fine_codes=self.quantize_fine.num_codes)

        # 2. Patches to coarse codes, and back
        num_coarse_codes_used = None
        if coarse_ratio is not None:
            self.coarse_in = nn.Linear(coarse_ratio * hidden_size, hidden_size)
            self.coarse_encoder = make_stack(num_coarse_layers)
            self.quantize_coarse = make_quantizer(num_codes=coarse_levels or num_coarse_codes)
            self.coarse_out = nn.Linear(hidden_size, coarse_ratio * hidden_size)
            self.topic_out = nn.Linear(hidden_size, hidden_size)
            num_coarse_codes_used = self.quantize_coarse.num_codes
        self.register_to_config(num_coarse_codes=num_coarse_codes_used)

        # 3. Codes to tokens
        self.decoder = make_stack(num_decoder_layers - 1)
        self.patch_out = nn.Linear(hidden_size, patch_length * hidden_size)
        self.token_decoder = make_stack(1)
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.apply(init_weights)

    @property
    def code_length(self) -> int:
        """Tokens of a coarse code, or of a fine one with one level."""
        return self.config.patch_length * (self.config.coarse_ratio or 1)

    def full_length(self, length: int) -> int:
        """The least number of tokens, `length` or more, that makes whole codes and, beyond one, whole windows."""
        # Rounded up, first to codes and then to windows.
        whole_codes = -(-length // self.code_length) * self.code_length
        window = self.config.window_length
        return whole_codes if whole_codes <= window else -(-length // window) * window

    @torch.no_grad()
    @apply_forward_hook
    def encode(self, input_ids: Tensor) -> TextCodes:
        """Codes of tokens (B, L).

        Raises:
            ValueError: if L is not a `full_length`.
        """
        detail = self._features(input_ids)
        coarse = None
        if self.config.coarse_ratio is not None:
            codes = self.quantize_coarse.codes(self._coarse_features(detail))
            # Fine codes are of what the plan leaves open.
            detail = detail - self._plan(self.quantize_coarse.vectors(codes))
            coarse = codes.reshape(len(input_ids), -1)
        fine = self.quantize_fine.codes(detail).reshape(len(input_ids), -1)
        return TextCodes(fine=fine, coarse=coarse)

    @apply_forward_hook
    def decode(self, fine: Tensor | None = None, coarse: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of fine codes (B, F) and coarse codes (B, C); without fine ones, of the coarse alone.

        Raises:
            ValueError: if a level is missing that must be there, the codes do not belong together, or do not exist.
        """
        self._check_codes(fine, coarse)
        longest: Any = fine if coarse is None else coarse
        tokens_each = self.config.patch_length if coarse is None else self.code_length
        window = self._window(longest.shape[1] * tokens_each)

        # The vectors of both levels add up, patch by patch.
        x: Any = None  # (W, F / windows, D)
        if coarse is not None:
            x = self._plan(
                self.quantize_coarse.vectors(coarse.reshape(-1, window // self.code_length))
            )
        if fine is not None:
            details = self.quantize_fine.vectors(
                fine.reshape(-1, window // self.config.patch_length)
            )
            x = details if x is None else x + details
        return self._logits(x, len(longest))

    @torch.no_grad()
    def code_vectors(self, level: str) -> Tensor:
        """(codes, patches, D), the vectors that each code of the level "fine" or "coarse" adds to its patches."""
        number = getattr(self.config, f"num_{level}_codes")
        codes = torch.arange(number, device=self.device).unsqueeze(1)
        if level == "fine":
            return self.quantize_fine.vectors(codes)
        return self._plan(self.quantize_coarse.vectors(codes))

    def forward(
        self,
        input_ids: Tensor,
        hidden: Tensor | None = None,
        without_fine: Tensor | None = None,
        wrong_fine: Tensor | None = None,
        wrong_coarse: Tensor | None = None,
        return_dict: bool = True,
    ) -> AutoencoderVQTextOutput | tuple:
        """Encode and decode, as training does.

        Args:
            input_ids: (B, L) tokens.
            hidden: (B, L) bool, tokens that the encoder sees as the mask.
            without_fine: (B,) bool, rows that are decoded from their coarse codes alone.
            wrong_fine, wrong_coarse: (B, F) and (B, C), codes that the decoder is given instead, -1 where it is not.

        Raises:
            ValueError: if L is not a `full_length`, or tokens are to be hidden and there is no mask.
        """
        batch_size = len(input_ids)
        # The decoder is asked for all tokens, also for those that the encoder does not see.
        seen = input_ids
        if hidden is not None:
            if self.config.mask_token_id is None:
                raise ValueError("`hidden` needs a model with a `mask_token_id`, got None.")
            seen = input_ids.masked_fill(hidden, self.config.mask_token_id)
        features = self._features(seen)  # (W, F / windows, D)

        # 1. The coarse codes: a plan of each window
        plan = 0.0
        coarse = None
        detail = features
        loss = features.new_zeros(())
        topic_loss = loss
        if self.config.coarse_ratio is not None:
            quantised, coarse, loss = self.quantize_coarse(self._coarse_features(features))
            topic_loss = self._topic_loss(quantised, input_ids)
            plan = self._plan(self._replaced(quantised, wrong_coarse, self.quantize_coarse))
            # The plan as it is without mistakes, and without its gradient: else that of the sum would be 0 in it.
            detail = features - self._plan(quantised).detach()
            coarse = coarse.reshape(batch_size, -1)

        # 2. The fine codes: the detail that the plan leaves open
        quantised, fine, fine_loss = self.quantize_fine(detail)
        quantised = self._replaced(quantised, wrong_fine, self.quantize_fine)
        if without_fine is not None:
            # From rows to their windows
            windows = without_fine.repeat_interleave(len(features) // batch_size)  # (W,)
            quantised = quantised.masked_fill(windows[:, None, None], 0.0)

        # 3. Decode
        logits = self._logits(plan + quantised, batch_size)
        codes = TextCodes(fine=fine.reshape(batch_size, -1), coarse=coarse)
        output = AutoencoderVQTextOutput(logits, loss + fine_loss, topic_loss, codes)
        return output if return_dict else output.to_tuple()

    def _features(self, input_ids: Tensor) -> Tensor:
        """(W, F / windows, D) features of the patches of tokens (B, L)."""
        require(input_ids.ndim == 2, "input_ids", "(batch, length)", tuple(input_ids.shape))
        windows = input_ids.reshape(-1, self._window(input_ids.shape[1]))  # (W, S)
        x = self.token_embedding(windows)  # (W, S, D)
        patches = x.unflatten(1, (-1, self.config.patch_length)).flatten(2)  # (W, F / windows, ...)
        return self.encoder(self.patch_in(patches))

    def _coarse_features(self, features: Tensor) -> Tensor:
        """(W, C / windows, D) features of passages, from those of patches."""
        passages = features.unflatten(1, (-1, self.config.coarse_ratio)).flatten(2)
        return self.coarse_encoder(self.coarse_in(passages))

    def _plan(self, quantised: Tensor) -> Tensor:
        """(W, F / windows, D), a vector for each patch from coarse vectors (W, C / windows, D)."""
        return (
            self.coarse_out(quantised).unflatten(-1, (self.config.coarse_ratio, -1)).flatten(1, 2)
        )

    def _logits(self, x: Tensor, batch_size: int) -> Tensor:
        """(B, L, V) from quantised features (W, F / windows, D)."""
        patches = self.patch_out(self.decoder(x))
        x = patches.unflatten(-1, (self.config.patch_length, -1)).flatten(1, 2)  # (W, S, D)
        return self._head(self.token_decoder(x)).reshape(batch_size, -1, self.config.vocab_size)

    def _head(self, x: Tensor) -> Tensor:
        """(..., V) from (..., D), by the token embedding, which has unit entries."""
        return F.linear(
            self.norm_out(x) * self.config.hidden_size**-0.5, self.token_embedding.weight
        )

    def _topic_loss(self, quantised: Tensor, input_ids: Tensor) -> Tensor:
        """() mean over coarse vectors (W, C / windows, D) of -log p of the tokens of its window, in nats per token."""
        # Every coarse code of a window predicts all tokens of it, wherever they stand.
        log_probs = self._head(self.topic_out(quantised)).log_softmax(dim=-1).mean(dim=1)  # (W, V)
        return -log_probs.gather(1, input_ids.reshape(len(quantised), -1)).mean()

    def _replaced(
        self, quantised: Tensor, wrong: Tensor | None, quantizer: TextQuantizer
    ) -> Tensor:
        """Quantised vectors (W, n, D) with those of `wrong` codes (B, C or F) in their places."""
        if wrong is None:
            return quantised
        wrong = wrong.reshape(quantised.shape[:2])
        return torch.where(
            (wrong < 0).unsqueeze(-1), quantised, quantizer.vectors(wrong.clamp(min=0))
        )

    def _window(self, length: int) -> int:
        """S for rows of so many tokens."""
        if length < 1 or self.full_length(length) != length:
            raise ValueError(
                f"The tokens of a row, `input_ids` or what codes stand for, must be a multiple of {self.code_length}, "
                f"and of `window_length`={self.config.window_length} if they are more than that, got {length}."
            )
        return min(length, self.config.window_length)

    def _check_codes(self, fine: Tensor | None, coarse: Tensor | None):
        # Which levels there are
        two_levels = self.config.coarse_ratio is not None
        if (coarse is not None) != two_levels or (fine is None and not two_levels):
            need = "`fine` codes are needed, and no other"
            if two_levels:
                need = "`coarse` codes are needed, and `fine` ones may be"
            raise ValueError(f"{need}, got fine={fine is not None}, coarse={coarse is not None}.")

        # Whether the codes exist
        for name, codes in (("fine", fine), ("coarse", coarse)):
            number = getattr(self.config, f"num_{name}_codes")
            if codes is not None and (
                codes.ndim != 2 or not ((codes >= 0) & (codes < number)).all()
            ):
                raise ValueError(
                    f"`{name}` must be (batch, length) codes from 0 to {number - 1}, got {tuple(codes.shape)} from "
                    f"{codes.min()} to {codes.max()}."
                )

        # Whether they belong together
        ratio = self.config.coarse_ratio or 1
        if (
            fine is not None
            and coarse is not None
            and fine.shape != (len(coarse), ratio * coarse.shape[1])
        ):
            raise ValueError(
                f"`fine` must have {ratio} codes for each of `coarse`, got {tuple(fine.shape)} for "
                f"{tuple(coarse.shape)}."
            )

    def _check_config(self):
        config = self.config
        # 1. Levels, which have messages of their own, and types
        self._check_levels("fine_levels", used=config.quantizer == "fsq")
        self._check_levels(
            "coarse_levels", used=config.quantizer == "fsq" and config.coarse_ratio is not None
        )
        check_config_types(self)

        # 2. Sizes
        sizes = [
            "vocab_size",
            "num_decoder_layers",
            "patch_length",
            "num_fine_codes",
            "codebook_dim",
            "window_length",
        ]
        if config.coarse_ratio is not None:
            sizes += ["coarse_ratio", "num_coarse_layers", "num_coarse_codes"]
        check_transformer_sizes(config, sizes)
        check_sizes(config, ["num_encoder_layers"], least=0, most=MOST_LAYERS)
        check_vocabulary(config, ["mask_token_id"])

        # 3. The quantiser
        require(
            is_key(config.quantizer, QUANTIZERS),
            "quantizer",
            f"one of {QUANTIZERS}",
            config.quantizer,
            QUANTIZERS,
        )
        limit = f"a multiple of {self.code_length}, the tokens of a code"
        require(
            config.window_length % self.code_length == 0,
            "window_length",
            limit,
            config.window_length,
        )
        require(0 <= config.decay < 1, "decay", "at least 0, below 1", config.decay)
        for name in ("commitment_weight", "dead_code_threshold"):
            value = getattr(config, name)
            require(value >= 0, name, "at least 0", value)

    def _check_levels(self, name: str, used: bool):
        levels = getattr(self.config, name)
        limit = 'given with `quantizer` "fsq" and not otherwise'
        require((levels is not None) == used, name, limit, levels)
        if levels is None:
            return
        whole = is_list(levels) and len(levels) > 0 and all(is_int(level, 3) for level in levels)
        require(whole, name, "a list of integers of at least 3", levels)
        require(
            math.prod(levels) <= LARGEST_SIZE,
            name,
            f"a list with a product of at most {LARGEST_SIZE}",
            levels,
        )
