"""A hierarchical autoencoder of text: tokens to fine and to few coarse codes, and back to all tokens at once.

The coarse code of a passage says what it is about; the fine codes of its patches of tokens add what the coarse ones
leave open, as in VQ-VAE-2 (https://arxiv.org/abs/1906.00446).

Shapes: B batch, L tokens of a row, W windows of all rows, S tokens of a window, F fine and C coarse codes of a row, D
width, V vocabulary size.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from text_diffusers.models.attention import NORM_EPS, TransformerStack, check_transformer_sizes, init_weights
from text_diffusers.models.autoencoder_vq_quantizer import QUANTIZERS, TextQuantizer
from text_diffusers.models.config_types import LARGEST_SIZE, MOST_LAYERS, check_config_types, check_sizes, is_of


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
        topic_loss: () nats per token, how badly each coarse code, on its own, says which tokens its window holds; 0
            with one level. It makes coarse codes tell what a text is about, rather than its wording.
        codes: of the tokens that the encoder saw.
    """

    logits: Tensor
    # With defaults, as Accelerate makes outputs anew from a mapping in mixed precision.
    commitment_loss: Any = None
    topic_loss: Any = None
    codes: Any = None


class AutoencoderVQTextModel(ModelMixin, AttentionMixin, ConfigMixin):
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
    """

    _no_split_modules = ["TextTransformerBlock"]
    _repeated_blocks = ["TextTransformerBlock"]
    _skip_layerwise_casting_patterns = ["token_embedding"]  # read outside of their layers
    config: Any

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
        make_quantizer = self._quantizers()
        width, layer = hidden_size, (hidden_size, num_attention_heads, int(hidden_size * feed_forward_ratio))
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.patch_in = nn.Linear(patch_length * width, width)
        self.encoder = TransformerStack(num_encoder_layers, *layer)
        self.quantize_fine = make_quantizer(fine_levels or num_fine_codes)
        self.register_to_config(num_fine_codes=self.quantize_fine.num_codes)
        if coarse_ratio is not None:
            self.coarse_in = nn.Linear(coarse_ratio * width, width)
            self.coarse_encoder = TransformerStack(num_coarse_layers, *layer)
            self.quantize_coarse = make_quantizer(coarse_levels or num_coarse_codes)
            self.coarse_out = nn.Linear(width, coarse_ratio * width)
            self.topic_out = nn.Linear(width, width)
        self.register_to_config(num_coarse_codes=self.quantize_coarse.num_codes if coarse_ratio is not None else None)
        self.decoder = TransformerStack(num_decoder_layers - 1, *layer)
        self.patch_out = nn.Linear(width, patch_length * width)
        self.token_decoder = TransformerStack(1, *layer)
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPS)
        self.apply(init_weights)

    @property
    def code_length(self) -> int:
        """Tokens of a coarse code, or of a fine one with one level."""
        return self.config.patch_length * (self.config.coarse_ratio or 1)

    def full_length(self, length: int) -> int:
        """The least number of tokens, `length` or more, that makes whole codes and, beyond one, whole windows."""
        codes = -(-length // self.code_length) * self.code_length
        window = self.config.window_length
        return codes if codes <= window else -(-length // window) * window

    @torch.no_grad()
    @apply_forward_hook
    def encode(self, input_ids: Tensor) -> TextCodes:
        """Codes of tokens (B, L).

        Raises:
            ValueError: if L is not a `full_length`.
        """
        features = self._features(input_ids)
        coarse, detail = None, features
        if self.config.coarse_ratio is not None:
            codes = self.quantize_coarse.codes(self._coarse_features(features))
            detail = features - self._plan(self.quantize_coarse.vectors(codes))
            coarse = codes.reshape(len(input_ids), -1)
        fine = self.quantize_fine.codes(detail).reshape(len(input_ids), -1)
        return TextCodes(fine=fine, coarse=coarse)

    @apply_forward_hook
    def decode(self, fine: Tensor | None = None, coarse: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of fine codes (B, F) and coarse codes (B, C); without fine ones, of the coarse alone.

        Raises:
            ValueError: if a level is missing that must be there, the codes do not belong together, or do not exist.
        """
        two, ratio = self.config.coarse_ratio is not None, self.config.coarse_ratio or 1
        if (coarse is not None) != two or (fine is None and not two):
            need = (
                "`coarse` codes are needed, and `fine` ones may be" if two else "`fine` codes are needed, and no other"
            )
            raise ValueError(f"{need}, got fine={fine is not None}, coarse={coarse is not None}.")
        for name, codes in (("fine", fine), ("coarse", coarse)):
            number = getattr(self.config, f"num_{name}_codes")
            if codes is not None and (codes.ndim != 2 or not ((codes >= 0) & (codes < number)).all()):
                raise ValueError(
                    f"`{name}` must be (batch, length) codes from 0 to {number - 1}, got {tuple(codes.shape)} from "
                    f"{codes.min()} to {codes.max()}."
                )
        if fine is not None and coarse is not None and fine.shape != (len(coarse), ratio * coarse.shape[1]):
            raise ValueError(
                f"`fine` must have {ratio} codes for each of `coarse`, got {tuple(fine.shape)} for "
                f"{tuple(coarse.shape)}."
            )
        given: Any = fine if coarse is None else coarse
        tokens_each = self.config.patch_length if coarse is None else self.code_length
        window = self._window(given.shape[1] * tokens_each)
        parts = []
        if coarse is not None:
            parts.append(self._plan(self.quantize_coarse.vectors(coarse.reshape(-1, window // self.code_length))))
        if fine is not None:
            parts.append(self.quantize_fine.vectors(fine.reshape(-1, window // self.config.patch_length)))
        return self._logits(sum(parts[1:], parts[0]), len(given))

    @torch.no_grad()
    def code_vectors(self, level: str) -> Tensor:
        """(codes, patches, D), what each code of the level "fine" or "coarse" adds to the patches it stands for."""
        config = self.config
        if level == "fine":
            return self.quantize_fine.vectors(torch.arange(config.num_fine_codes, device=self.device).unsqueeze(1))
        codes = torch.arange(config.num_coarse_codes, device=self.device)
        return self._plan(self.quantize_coarse.vectors(codes.unsqueeze(1)))

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
        if hidden is not None and self.config.mask_token_id is None:
            raise ValueError("`hidden` needs a model with a `mask_token_id`, got None.")
        seen = input_ids if hidden is None else input_ids.masked_fill(hidden, self.config.mask_token_id)
        features = self._features(seen)  # (W, n, D)
        plan, coarse, detail = 0.0, None, features
        loss = topic_loss = features.new_zeros(())
        if self.config.coarse_ratio is not None:
            quantised, coarse, loss = self.quantize_coarse(self._coarse_features(features))
            topic_loss = self._topic_loss(quantised, input_ids)
            plan = self._plan(self._replaced(quantised, wrong_coarse, self.quantize_coarse))
            # The plan as it is without mistakes, and without its gradient: else that of the sum would be 0 in it.
            detail = features - self._plan(quantised).detach()
            coarse = coarse.reshape(len(input_ids), -1)
        quantised, fine, fine_loss = self.quantize_fine(detail)
        quantised = self._replaced(quantised, wrong_fine, self.quantize_fine)
        if without_fine is not None:
            windows = without_fine.repeat_interleave(len(features) // len(input_ids))
            quantised = quantised.masked_fill(windows[:, None, None], 0.0)
        logits = self._logits(plan + quantised, len(input_ids))
        codes = TextCodes(fine=fine.reshape(len(input_ids), -1), coarse=coarse)
        if not return_dict:
            return logits, loss + fine_loss, topic_loss, codes
        return AutoencoderVQTextOutput(logits, loss + fine_loss, topic_loss, codes)

    def _features(self, input_ids: Tensor) -> Tensor:
        """(W, F / windows, D) features of the patches of tokens (B, L)."""
        if input_ids.ndim != 2:
            raise ValueError(f"`input_ids` must be (batch, length), got {tuple(input_ids.shape)}.")
        windows = input_ids.reshape(-1, self._window(input_ids.shape[1]))  # (W, S)
        patches = self.token_embedding(windows).unflatten(1, (-1, self.config.patch_length)).flatten(2)
        return self.encoder(self.patch_in(patches))

    def _coarse_features(self, features: Tensor) -> Tensor:
        """(W, C / windows, D) features of passages, from those of patches."""
        passages = features.unflatten(1, (-1, self.config.coarse_ratio)).flatten(2)
        return self.coarse_encoder(self.coarse_in(passages))

    def _plan(self, quantised: Tensor) -> Tensor:
        """(W, F / windows, D), what coarse vectors (W, C / windows, D) say of each patch."""
        return self.coarse_out(quantised).unflatten(-1, (self.config.coarse_ratio, -1)).flatten(1, 2)

    def _logits(self, x: Tensor, batch_size: int) -> Tensor:
        """(B, L, V) from quantised features (W, F / windows, D)."""
        x = self.patch_out(self.decoder(x)).unflatten(-1, (self.config.patch_length, -1)).flatten(1, 2)  # (W, S, D)
        return self._head(self.token_decoder(x)).reshape(batch_size, -1, self.config.vocab_size)

    def _head(self, x: Tensor) -> Tensor:
        """(..., V) from (..., D), by the token embedding, which has unit entries."""
        return F.linear(self.norm_out(x) * self.config.hidden_size**-0.5, self.token_embedding.weight)

    def _topic_loss(self, quantised: Tensor, input_ids: Tensor) -> Tensor:
        """() mean over coarse vectors (W, C / windows, D) of -log p of the tokens of its window, in nats per token."""
        log_probs = self._head(self.topic_out(quantised)).log_softmax(dim=-1).mean(dim=1)  # (W, V)
        return -log_probs.gather(1, input_ids.reshape(len(quantised), -1)).mean()

    def _replaced(self, quantised: Tensor, wrong: Tensor | None, quantizer: TextQuantizer) -> Tensor:
        """Quantised vectors (W, n, D) with those of `wrong` codes (B, C or F) in their places."""
        if wrong is None:
            return quantised
        wrong = wrong.reshape(quantised.shape[:2])
        return torch.where((wrong < 0).unsqueeze(-1), quantised, quantizer.vectors(wrong.clamp(min=0)))

    def _window(self, length: int) -> int:
        """S for rows of so many tokens."""
        if length < 1 or self.full_length(length) != length:
            raise ValueError(
                f"The tokens of a row, `input_ids` or what codes stand for, must be a multiple of {self.code_length}, "
                f"and of `window_length`={self.config.window_length} if they are more than that, got {length}."
            )
        return min(length, self.config.window_length)

    def _quantizers(self) -> Any:
        config = self.config

        def make(num_codes: int | list[int]) -> TextQuantizer:
            return TextQuantizer(
                config.quantizer,
                config.hidden_size,
                num_codes,
                config.codebook_dim,
                config.decay,
                config.commitment_weight,
                config.dead_code_threshold,
                config.rotation_trick,
            )

        return make

    def _check_config(self):
        config = self.config
        two = config.coarse_ratio is not None
        self._check_levels(two)
        check_config_types(self)
        sizes = ("vocab_size", "num_decoder_layers", "patch_length", "num_fine_codes", "codebook_dim", "window_length")
        coarse = ("coarse_ratio", "num_coarse_layers", "num_coarse_codes") if two else ()
        check_transformer_sizes(config, (*sizes, *coarse))
        check_sizes(config, ["num_encoder_layers"], least=0, most=MOST_LAYERS)
        if config.quantizer not in QUANTIZERS:
            raise ValueError(f"`quantizer` must be one of {QUANTIZERS}, got {config.quantizer!r}.")
        if config.window_length % self.code_length:
            raise ValueError(
                f"`window_length` must be a multiple of {self.code_length}, the tokens of a code, "
                f"got {config.window_length}."
            )
        for name in ("decay", "commitment_weight", "dead_code_threshold"):
            value = getattr(config, name)
            if not value >= 0 or (name == "decay" and not value < 1):
                raise ValueError(f"`{name}` must be at least 0{', below 1' * (name == 'decay')}, got {value!r}.")
        mask = config.mask_token_id
        if mask is not None and not 0 <= mask < config.vocab_size:
            raise ValueError(f"`mask_token_id` must be in the vocabulary of {config.vocab_size}, got {mask!r}.")

    def _check_levels(self, two: bool):
        for name, used in (("fine_levels", True), ("coarse_levels", two)):
            levels = getattr(self.config, name)
            if (levels is not None) != (used and self.config.quantizer == "fsq"):
                raise ValueError(f'`{name}` must be given with `quantizer` "fsq" and not otherwise, got {levels!r}.')
            if levels is None:
                continue
            if not (is_of(levels, list[int]) and levels and min(levels) > 2):
                raise ValueError(f"`{name}` must be a list of integers of at least 3, got {levels!r}.")
            if math.prod(levels) > LARGEST_SIZE:
                raise ValueError(f"`{name}` must have a product of at most {LARGEST_SIZE}, got {levels!r}.")
