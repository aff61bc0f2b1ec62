"""Language models of transformers as denoisers: masked LMs, and causal LMs that were made into diffusion models.

A model that predicts masked tokens can undo absorbing noise. It is not told the time: under absorbing noise the
prediction of clean tokens does not depend on it (RADD, https://arxiv.org/abs/2406.03736).

How a model is read, which tokens it sees and whether its logits are shifted, stands in its configuration, see
`Reading`. A masked LM needs no such entry. It read texts with a token at both ends, such as `[CLS]` and `[SEP]`, and
was never asked for these.

Shapes: B batch, L sequence length, D width, V vocabulary size, N selected positions, n tokens that are read.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PreTrainedModel

from text_diffusers.common.token_ids import never_written
from text_diffusers.common.validation import require, require_int
from text_diffusers.models.attention import BlockCache
from text_diffusers.models.language.calls import (
    first_position,
    head_at,
    language_model_length,
    logits_at,
    runs_compiled,
    takes_argument,
    takes_past,
    uncompiled,
)
from text_diffusers.models.language.layout import RowLayout, check_layout, check_past_lengths
from text_diffusers.models.language.masks import mask_for, require_maskable, token_positions
from text_diffusers.models.language.streams import TwoStreams
from text_diffusers.models.language_cache import StaleCache, TransformersCache
from text_diffusers.models.reading import Reading, read_config


@dataclass
class LanguageModelOutput(BaseOutput):
    """Output of `LanguageModelDenoiser`.

    Attributes:
        logits: (N, V) at the selected positions, (B, L, V) without a selection.
        clean_logits: (M, V) at the M clean positions, each from the clean tokens before it; `None` without any.
    """

    logits: Tensor
    clean_logits: Tensor | None = None


# What a model is


def is_language_model(model: Any) -> bool:
    """Whether `model`, compiled or not, is a transformers model, which must be wrapped to be called as a denoiser."""
    model = uncompiled(model)
    if not isinstance(model, PreTrainedModel):
        return False
    # A denoiser takes the positions whose prediction is asked for.
    return not takes_argument(model, "positions")


def is_masked_lm(model: Any) -> bool:
    """Whether `model` is a masked LM that knows nothing of diffusion, and so predicts no special token.

    Raises:
        ValueError: if it is another language model that says nothing of diffusion.
    """
    return is_language_model(model) and reading_of(model) == Reading()


def predicts_end(model: Any) -> bool:
    """Whether a model says where a text ends; a language model does only if it says by which tokens."""
    model = getattr(model, "language_model", model)
    return not is_language_model(model) or bool(reading_of(model).end_token_ids)


def reading_of(model: Any) -> Reading:
    """How a language model is read: what its configuration says, or for a masked LM that says nothing, as it is.

    Raises:
        ValueError: if a model of another kind says nothing.
    """
    model = uncompiled(model)
    reading = read_config(model.config)
    if reading is not None:
        return reading
    # Masked LMs that come with code of their own are named like those of transformers.
    is_known = type(model) in MODEL_FOR_MASKED_LM_MAPPING.values()
    if not is_known and not type(model).__name__.endswith("ForMaskedLM"):
        name = model.config.name_or_path or "NAME"
        raise ValueError(
            f"`denoiser` must be a denoiser, a masked LM, or say in its configuration how it is read as a diffusion "
            f"model, but this {type(model).__name__} says nothing of diffusion. A causal LM predicts the next token; "
            "to make a diffusion model of it, train it further: accelerate launch training_scripts/train_d3pm.py "
            f"--model_name_or_path {name}. If its weights are those of a diffusion model, call "
            "`text_diffusers.models.write_reading(model.config, Reading(...))`."
        )
    return Reading()


def ids_never_predicted(model: Any, tokenizer: Any, but: tuple[int | None, ...] = ()) -> list[int]:
    """Ids whose prediction is never asked for: those that no token has, and special tokens that are never written.

    A model that says which tokens end a text may write these and others, and never the mask; a masked LM was trained
    to predict no special token at all.

    Args:
        model: a language model.
        tokenizer: its tokenizer, which may have fewer tokens than the model has logits.
        but: ids that are predicted all the same.
    """
    # Vocabularies are often padded to a round number.
    unused_ids = range(len(tokenizer), model.config.vocab_size)
    if is_masked_lm(model):
        special_ids = set(tokenizer.all_special_ids)
    else:
        # The padding of many tokenizers is an end of texts too.
        special_ids = {*never_written(tokenizer)} - {*reading_of(model).end_token_ids}
    return sorted({*special_ids, *unused_ids} - {*but})


class LanguageModelDenoiser(nn.Module):
    """Calls a language model of transformers as a denoiser.

    Args:
        language_model: any `AutoModelForMaskedLM`; or a causal LM whose configuration has a `Reading`.
        excluded_ids: token ids whose logits become -inf.

    Raises:
        ValueError: if the model says nothing of diffusion, or its attention takes no mask of blocks.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from text_diffusers.models import LanguageModelDenoiser, Reading, write_reading
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> config = LlamaConfig(vocab_size=20, **sizes)
        >>> write_reading(config, Reading(attention="bidirectional", alignment="shifted", mask_token_id=4))
        >>> denoiser = LanguageModelDenoiser(LlamaForCausalLM(config), excluded_ids=[0, 1])
        >>> tokens = torch.tensor([[5, 4, 4, 9]])
        >>> logits = denoiser(tokens, positions=tokens == 4).logits
        >>> logits.shape, logits[0, :2].tolist()
        (torch.Size([2, 20]), [-inf, -inf])
    """

    def __init__(self, language_model: Any, excluded_ids: list[int] | None = None):
        super().__init__()
        self.reading = reading_of(language_model)
        self.language_model = language_model
        self.excluded_ids = list(excluded_ids or [])
        self.first_position = first_position(language_model)
        if self.reading.attention == "block":
            require_maskable(language_model, "blocks")
        self._open_attention()

    def _open_attention(self):
        """Let tokens see what the reading says, whatever the model does where it makes no mask."""
        config = self.language_model.config
        if getattr(config, "num_attention_heads", None) is None:
            raise ValueError(
                f"`language_model` must have attention, which can be opened to both sides; a "
                f"{type(uncompiled(self.language_model)).__name__} has none."
            )
        # Some configurations ask for tuples in the place of outputs with names.
        config.return_dict = True
        # Over a causal past every call has a mask of its own, and transformers writes with the model as it is.
        if self.reading.is_causal:
            return
        for module in self.language_model.modules():
            if getattr(module, "is_causal", False):
                module.is_causal = False

    @property
    def config(self) -> FrozenDict:
        """The arguments of `from_config`, and the entries of a denoiser's configuration that others read."""
        return FrozenDict(
            {
                "vocab_size": self.language_model.config.vocab_size,
                "max_length": language_model_length(self.language_model),
                "architecture": type(uncompiled(self.language_model)).__name__,
                "language_model": self.language_model.config.to_dict(),
                "excluded_ids": self.excluded_ids,
                "num_classes": None,
                "block_length": self.reading.block_length,
                "causal_past": self.reading.has_causal_past,
                "mask_token_id": self.reading.mask_token_id,
            }
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LanguageModelDenoiser":
        """One of the same architecture, with random weights."""
        architecture = getattr(transformers, config["architecture"])
        language_model = architecture(AutoConfig.for_model(**config["language_model"]))
        return cls(language_model, config["excluded_ids"])

    @property
    def reads_state_before(self) -> bool:
        """Whether a prediction is read off the state before it, which a block that is called by itself then needs."""
        return self.reading.alignment == "shifted"

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.dtype

    @property
    def device(self) -> torch.device:
        return self.language_model.device

    @property
    def takes_cache(self) -> bool:
        """Whether the model takes keys and values that were computed before; some masked LMs do not."""
        return takes_past(self.language_model)

    @property
    def has_causal_past(self) -> bool:
        """Whether a past is read token by token, so that blocks of any length may be written over it."""
        return self.reading.has_causal_past

    def with_block_length(self, block_length: int | None) -> "LanguageModelDenoiser":
        """The same weights as a denoiser that writes in blocks of another length; `None` is its own.

        Raises:
            ValueError: if its past is not causal.
        """
        if block_length in (None, self.reading.block_length):
            return self
        require_int("block_length", block_length, 1)
        layout = RowLayout(self.reading, block_length=block_length)
        check_layout(self.language_model, layout, None, None, None)

        other = LanguageModelDenoiser(self.language_model, self.excluded_ids)
        other.reading = replace(self.reading, block_length=block_length)
        return other

    def forward(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        positions: Tensor | None = None,
        clean_ids: Tensor | None = None,
        cache: BlockCache | StaleCache | None = None,
        block_length: int | None = None,
        block_starts: Tensor | None = None,
        clean_positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        past_lengths: Tensor | None = None,
    ) -> LanguageModelOutput:
        """Predict the clean token at each position.

        Over a causal past the last block of a row is read as a block, and all before it token by token: with blocks of
        one token the model is autoregressive.

        Args:
            input_ids: (B, L) corrupted tokens.
            timestep: ignored.
            attention_mask: (B, L), 0 at padding; with a cache of blocks (B, cache.length + L). Or (B, L, S) or
                (B, 1, L, S), nonzero where a token sees another, or 0 there and negative elsewhere, as masks that are
                added to attention; that then is all that is seen.
            class_labels: must be `None`.
            positions: (B, L) bool; the head runs there only.
            clean_ids: (B, L), to train or judge a model with blocks: each block of `input_ids` then sees itself and,
                of the blocks before it, these clean tokens. One pass predicts all blocks.
            cache: from `new_cache`, for a model with blocks: `input_ids` are the tokens that follow its finished
                blocks, and see them. Or a `StaleCache`, for a bidirectional model.
            block_length: tokens of a block over a causal past, if another than the model's own.
            block_starts: with `clean_ids` over a causal past, (B,) columns at each of which a block begins, or (B, L)
                places in blocks; see `places_behind`.
            clean_positions: (B, L) bool, clean tokens that are predicted too, from those before them.
            segment_ids: (B, L), alike in each of several texts that share a row and do not see each other.
            past_lengths: (B,) tokens of each row that are read one by one, all behind them being one block; without
                `clean_ids`, a `block_length` or a mask of pairs.

        Raises:
            ValueError: if there are labels, or clean tokens, blocks or a cache do not fit the model or each other.
        """
        if class_labels is not None:
            raise ValueError("`class_labels` were given, but a language model takes no labels.")
        layout = RowLayout(
            self.reading,
            attention_mask,
            has_cache=cache is not None,
            start=cache.length if isinstance(cache, BlockCache) else 0,
            block_length=block_length or self.reading.block_length,
            block_starts=block_starts,
            segment_ids=segment_ids,
            past_lengths=past_lengths,
            first_position=self.first_position,
        )
        check_layout(self.language_model, layout, clean_ids, cache, clean_positions)
        check_past_lengths(layout, clean_ids, block_length)

        clean_logits = None
        if isinstance(cache, StaleCache) and cache.active is not None:
            logits = self._active_logits(input_ids, attention_mask, positions, cache)
        elif clean_ids is not None:
            self._check_clean(input_ids, clean_ids, cache)
            logits, clean_logits = self._logits_of_streams(
                input_ids, clean_ids, positions, clean_positions, layout
            )
        else:
            logits = self._logits(input_ids, positions, layout, cache)

        return LanguageModelOutput(
            logits=self._without_excluded(logits),
            clean_logits=None if clean_logits is None else self._without_excluded(clean_logits),
        )

    def new_cache(self, capacity: int | None = None) -> BlockCache:
        """An empty cache of up to `capacity` tokens, by default and at most the longest input."""
        limit = language_model_length(self.language_model)
        is_possible = 0 < (capacity or limit) <= limit
        require(is_possible, "capacity", f"between 1 and {limit}", capacity)
        return BlockCache(capacity or limit)

    def _without_excluded(self, logits: Tensor) -> Tensor:
        """Logits (..., V) in which the excluded ids have -inf, and so are never drawn."""
        if not self.excluded_ids:
            return logits
        excluded = torch.tensor(self.excluded_ids, dtype=torch.long, device=logits.device)
        return logits.index_fill(-1, excluded, -torch.inf)

    def _logits(
        self,
        input_ids: Tensor,
        positions: Tensor | None,
        layout: RowLayout,
        cache: BlockCache | StaleCache | None,
    ) -> Tensor:
        """(N, V) logits at `positions` (B, L), or (B, L, V) without, moved to their own positions."""
        model = self.language_model
        reads_itself = self.reading.alignment == "aligned" and not self.has_causal_past
        # Where all logits are asked for and none is moved, the model is called as it is.
        if positions is None and reads_itself:
            return model(**self._inputs(input_ids, layout, cache)).logits

        wanted = torch.ones_like(input_ids, dtype=torch.bool) if positions is None else positions
        rows, columns = wanted.nonzero(as_tuple=True)  # (N,)
        states = layout.states(input_ids, columns)
        read, layout = self._needed_tokens(input_ids, positions, layout)
        logits = logits_at(model, rows, states, self._inputs(read, layout, cache))
        return logits.unflatten(0, input_ids.shape) if positions is None else logits

    def _needed_tokens(
        self, input_ids: Tensor, positions: Tensor | None, layout: RowLayout
    ) -> tuple[Tensor, RowLayout]:
        """The tokens to read, (B, L) or fewer, and their layout: a block is not, if no state of it is asked for.

        The first token of a block is read off the last one of the past, where predictions are shifted.
        """
        reads_all = not self.has_causal_past or layout.past_lengths is not None
        if reads_all or positions is None or self.reading.alignment == "aligned":
            return input_ids, layout
        num_past = layout.last_block(input_ids.shape[1]) - layout.start
        mask = layout.attention_mask
        is_row_mask = mask is None or mask.ndim == 2
        if num_past < 1 or not is_row_mask or bool(positions[:, num_past + 1 :].any()):
            return input_ids, layout

        if mask is not None:
            mask = mask[:, : layout.start + num_past]
        # One block of all that is left would see itself both ways; in blocks of one token nothing does.
        return input_ids[:, :num_past], replace(layout, attention_mask=mask, block_length=1)

    def _inputs(
        self, input_ids: Tensor, layout: RowLayout, cache: BlockCache | StaleCache | None
    ) -> dict[str, Any]:
        """Arguments of the language model, which reads all of `input_ids`."""
        visible = layout.visible(input_ids)
        if visible is not None and visible.ndim == 4:
            visible = mask_for(self.language_model, visible)
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": visible}
        # Models that write one token after the other would keep keys and values of each call.
        if takes_argument(self.language_model, "use_cache"):
            inputs["use_cache"] = False
        if cache is not None:
            self._check_cache(cache)
            inputs["past_key_values"] = TransformersCache(cache)
        if cache is not None or self.has_causal_past or layout.segment_ids is not None:
            inputs["position_ids"] = self._positions(input_ids, layout)
        return inputs

    def _positions(self, input_ids: Tensor, layout: RowLayout) -> Tensor:
        """(B, L) positions of the tokens; over a causal past padding has none, as in stock transformers."""
        mask = layout.attention_mask
        has_mask = self.has_causal_past and mask is not None and mask.ndim == 2
        positions = token_positions(
            input_ids, layout.start, mask if has_mask else None, layout.segment_ids
        )
        return positions + layout.first_position

    def _logits_of_streams(
        self,
        input_ids: Tensor,
        clean_ids: Tensor,
        positions: Tensor | None,
        clean_positions: Tensor | None,
        layout: RowLayout,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the noisy tokens, as in `_logits`, and (M, V) of the clean ones, from a pass over both."""
        wanted = torch.ones_like(input_ids, dtype=torch.bool) if positions is None else positions
        streams = TwoStreams(layout, input_ids, clean_ids, wanted)
        rows, columns = wanted.nonzero(as_tuple=True)  # (N,)
        states = streams.states(rows, columns)
        num_asked = len(rows)
        if clean_positions is not None:
            clean_rows, clean_columns = clean_positions.nonzero(as_tuple=True)  # (M,)
            rows = torch.cat([rows, clean_rows])
            states = torch.cat([states, streams.clean_states(clean_columns)])

        inputs = {
            "input_ids": streams.input_ids,
            "attention_mask": mask_for(self.language_model, streams.visible),
            "position_ids": streams.position_ids,
            "use_cache": False,
        }
        logits = logits_at(self.language_model, rows, states, inputs)
        noisy_logits = logits[:num_asked]
        if positions is None:
            noisy_logits = noisy_logits.unflatten(0, input_ids.shape)
        return noisy_logits, None if clean_positions is None else logits[num_asked:]

    def _active_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        cache: StaleCache,
    ) -> Tensor:
        """(N, V) logits at `positions` (B, L) from the active tokens, all others being as they were."""
        self._check_cache(cache)
        require(positions is not None, "positions", "given with a stale cache", positions)
        assert positions is not None and cache.active is not None
        # A shifted prediction is read off the state before it.
        read_at = positions
        if self.reading.alignment == "shifted":
            read_at = torch.cat([positions[:, 1:], torch.zeros_like(positions[:, :1])], dim=1)
            read_at[:, 0] |= positions[:, 0]
        # Whatever is asked for is read, also outside of the window.
        cache = cache.with_active(cache.active | read_at)

        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        columns, visible = cache.columns(real.bool())
        inputs = {
            "input_ids": input_ids.gather(1, columns),
            "attention_mask": mask_for(self.language_model, visible),
            "position_ids": columns + self.first_position,
            "past_key_values": TransformersCache(cache),
            "use_cache": False,
        }

        # Two neighbouring predictions may be read off the same state, the first token's and the second's.
        rows, wanted = positions.nonzero(as_tuple=True)
        if self.reading.alignment == "shifted":
            wanted = (wanted - 1).clamp(min=0)
        # The place of each column among those that are read: the first that is equal.
        places = (columns[rows] == wanted.unsqueeze(1)).int().argmax(dim=1)
        with head_at(self.language_model, rows, places):
            return self.language_model(**inputs).logits

    def _check_clean(self, input_ids: Tensor, clean_ids: Tensor, cache: Any):
        block_length = self.reading.block_length
        if block_length is None or cache is not None or clean_ids.shape != input_ids.shape:
            raise ValueError(
                f"`clean_ids` must be {tuple(input_ids.shape)} like `input_ids`, come without `cache`, and go to a "
                f"model with blocks, got {tuple(clean_ids.shape)}, and blocks of {block_length} tokens."
            )

    def _check_cache(self, cache: Any):
        if not self.takes_cache or runs_compiled(self.language_model):
            raise ValueError(
                f"`cache` needs a model of transformers that takes `past_key_values` and is not compiled, got "
                f"{type(uncompiled(self.language_model)).__name__}; a pipeline reads blocks without it by "
                "`pipe.use_cache = False`."
            )
        if torch.is_grad_enabled():
            raise ValueError(
                "`cache` carries no gradients: call the model under `torch.no_grad()`."
            )
        has_blocks = self.reading.attention == "block"
        if isinstance(cache, StaleCache) == has_blocks:
            wanted = "a cache from `new_cache`" if has_blocks else "a `StaleCache`"
            raise ValueError(
                f"`cache` must be {wanted} for {self.reading.attention} attention, got {type(cache).__name__}."
            )

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, with each parameter once: tied ones under any of their names; buffers may be left out.

        Raises:
            ValueError: if a parameter is missing.
        """
        # `named_parameters` lists a tied parameter once.
        missing = [name for name, _ in self.named_parameters() if name not in state_dict]
        if strict and missing:
            raise ValueError(
                f"`state_dict` must hold every parameter of the language model, but has no {missing[0]!r}."
            )

        # Not strict: buffers and the further names of tied parameters may be missing.
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def tie_weights(self):
        """Make tied weights one again, after each was moved by itself, as FSDP2 does on its way to shards."""
        self.language_model.tie_weights()

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the classes of its layers, of which FSDP2 gathers one after the other.

        The embeddings, which transformers counts among them, may be the weights of the head too: they stay together.
        """
        names = set()
        embeddings = self.language_model.get_input_embeddings()
        whole = getattr(self.language_model, "_no_split_modules", None) or ()
        for module in self.language_model.modules():
            name = type(module).__name__
            if name in whole and embeddings not in list(module.modules()):
                names.add(name)
        return sorted(names)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def enable_gradient_checkpointing(self):
        # Versions of transformers before 5.23 know the earlier name only.
        earlier: Any = self.language_model.gradient_checkpointing_enable
        enable = getattr(self.language_model, "activation_checkpointing_enable", earlier)
        enable()


def as_denoiser(model: Any, tokenizer: Any, but: tuple[int | None, ...] = ()) -> Any:
    """`model` itself if it is a denoiser; a language model as one that predicts only what may be written.

    Args:
        but: ids that a language model predicts all the same, see `ids_never_predicted`.

    Raises:
        ValueError: if it is a language model that says nothing of diffusion.
    """
    if is_language_model(model):
        return LanguageModelDenoiser(model, ids_never_predicted(model, tokenizer, but))
    return model


def in_blocks_of(denoiser: Any, block_length: int | None) -> Any:
    """A denoiser that writes in blocks of so many tokens; `None` is as it does.

    Raises:
        ValueError: if it writes in others, or in none.
    """
    if isinstance(denoiser, LanguageModelDenoiser):
        return denoiser.with_block_length(block_length)
    own_length = getattr(denoiser.config, "block_length", None)
    limit = f"None or {own_length}, that of the denoiser"
    require(block_length in (None, own_length), "block_length", limit, block_length)
    return denoiser
