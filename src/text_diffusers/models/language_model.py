"""Language models of transformers as denoisers: masked LMs, and causal LMs that were made into diffusion models.

A model that predicts masked tokens can undo absorbing noise. It is not told the time: under absorbing noise the
prediction of clean tokens does not depend on it (RADD, https://arxiv.org/abs/2406.03736).

How a model is read, which tokens it sees and whether its logits are shifted, stands in its configuration, see
`Reading`. A masked LM needs no such entry. It read texts with a token at both ends, such as `[CLS]` and `[SEP]`, and
was never asked for these.

Shapes: B batch, L sequence length, D width, V vocabulary size, N selected positions, n tokens that are read.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PreTrainedModel

from text_diffusers.common.token_ids import never_written
from text_diffusers.common.validation import require
from text_diffusers.models.attention import BlockCache, earlier_blocks, real_tokens, two_streams
from text_diffusers.models.language_cache import StaleCache, TransformersCache
from text_diffusers.models.reading import Reading, read_config

# The layers from a masked LM's features to its logits, by `model_type`; they work position by position.
HEADS = {
    "bert": ("cls",),
    "camembert": ("lm_head",),
    "modernbert": ("head", "decoder"),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
}

# The names under which configurations keep the longest input.
LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "model_length",
    "max_seq_len",
)

# Attention that takes a mask of any shape.
MASKABLE = ("sdpa", "eager")


@dataclass
class LanguageModelOutput(BaseOutput):
    """`logits`: (N, V) at the selected positions, (B, L, V) without a selection."""

    logits: Tensor


# What a model is


def uncompiled(model: Any) -> Any:
    """The model that `torch.compile` was given, if `model` is what came of it; else `model` itself."""
    return getattr(model, "_orig_mod", model)


def runs_compiled(model: Any) -> bool:
    """Whether a call of `model` is compiled, by `torch.compile(model)` or by `model.compile()` in place."""
    # Parts of such a model, called by themselves, are not.
    in_place = getattr(model, "_compiled_call_impl", None) is not None
    return in_place or uncompiled(model) is not model


def is_language_model(model: Any) -> bool:
    """Whether `model`, compiled or not, is a transformers model, which must be wrapped to be called as a denoiser."""
    model = uncompiled(model)
    if not isinstance(model, PreTrainedModel):
        return False
    # A denoiser takes the positions whose prediction is asked for.
    return "positions" not in inspect.signature(type(model).forward).parameters


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


def language_model_length(model: Any) -> int:
    """The longest input in tokens; RoBERTa and its kin count positions from the one after their padding id.

    Raises:
        ValueError: if the configuration does not say.
    """
    config = model.config
    limits = [getattr(config, key, None) for key in LENGTH_KEYS]
    limit = next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
    if limit is None:
        raise ValueError(
            f"`config` of a {type(model).__name__} must have the longest input in tokens as one of {LENGTH_KEYS}."
        )

    # Positions that can be embedded, less those that are never given to a token
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return limit - module.padding_idx - 1
    return limit


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


# Calls


@contextmanager
def head_at(model: Any, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Run the output embedding of `model` at the states of `rows` (N,) and `columns` (N,) only.

    What the model does with its logits afterwards, such as scaling and capping, then sees (N, V).
    """
    thread = threading.get_ident()

    def select(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        # Another thread may call the same model meanwhile.
        if threading.get_ident() != thread:
            return inputs
        return (inputs[0][rows, columns], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def logits_at(model: Any, rows: Tensor, columns: Tensor, inputs: dict[str, Any]) -> Tensor:
    """(N, V) logits of a language model at the states of `rows` (N,) and `columns` (N,) of its input.

    The head runs at these states only, if the model is not compiled as a whole.
    """
    head = HEADS.get(model.config.model_type)

    # A head that cannot be called by itself runs everywhere, and its logits are chosen from.
    if runs_compiled(model):
        return model(**inputs).logits[rows, columns]
    if head is not None:
        # The hook of CPU offloading waits for a call of the model as a whole.
        if hasattr(model, "_hf_hook"):
            model._hf_hook.pre_forward(model)
        x = model.base_model(**inputs)[0][rows, columns]  # (N, D)
        for name in head:
            x = getattr(model, name)(x)
        return x

    if model.get_output_embeddings() is None:
        return model(**inputs).logits[rows, columns]
    with head_at(model, rows, columns):
        return model(**inputs).logits


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
        if self.reading.attention == "block":
            self._require_maskable("blocks")
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
        if self.reading.attention == "causal":
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

    def forward(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        positions: Tensor | None = None,
        clean_ids: Tensor | None = None,
        cache: BlockCache | StaleCache | None = None,
    ) -> LanguageModelOutput:
        """Predict the clean token at each position.

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

        Raises:
            ValueError: if there are labels, or clean tokens or a cache do not fit the model.
        """
        if class_labels is not None:
            raise ValueError("`class_labels` were given, but a language model takes no labels.")
        if isinstance(cache, StaleCache) and cache.active is not None:
            logits = self._active_logits(input_ids, attention_mask, positions, cache)
        else:
            inputs = self._inputs(input_ids, attention_mask, clean_ids, cache)
            logits = self._logits(input_ids, positions, clean_ids is not None, inputs)

        # An id with a logit of -inf is never drawn.
        if self.excluded_ids:
            excluded = torch.tensor(self.excluded_ids, dtype=torch.long, device=logits.device)
            logits = logits.index_fill(-1, excluded, -torch.inf)
        return LanguageModelOutput(logits=logits)

    def new_cache(self, capacity: int | None = None) -> BlockCache:
        """An empty cache of up to `capacity` tokens, by default and at most the longest input."""
        limit = language_model_length(self.language_model)
        is_possible = 0 < (capacity or limit) <= limit
        require(is_possible, "capacity", f"between 1 and {limit}", capacity)
        return BlockCache(capacity or limit)

    def _logits(
        self, input_ids: Tensor, positions: Tensor | None, has_clean: bool, inputs: dict[str, Any]
    ) -> Tensor:
        """(N, V) logits at `positions` (B, L), or (B, L, V) without, moved to their own positions."""
        length = input_ids.shape[1]
        # Where all logits are asked for and none is moved, the model is called as it is.
        if positions is None and self.reading.alignment == "aligned":
            return self.language_model(**inputs).logits[:, :length]
        wanted = torch.ones_like(input_ids, dtype=torch.bool) if positions is None else positions

        rows, columns = wanted.nonzero(as_tuple=True)  # (N,)
        if self.reading.alignment == "shifted":
            columns = self._states_before(columns, length if has_clean else None)
        logits = logits_at(self.language_model, rows, columns, inputs)
        return logits.unflatten(0, input_ids.shape) if positions is None else logits

    def _states_before(self, columns: Tensor, num_noisy: int | None) -> Tensor:
        """(N,) columns of the states that predict the tokens at `columns` (N,); the first token has its own.

        Args:
            num_noisy: L where L clean tokens stand behind as many noisy ones: there a block sees the clean tokens
                before it, and its first token is read off the last of these.
        """
        before = (columns - 1).clamp(min=0)
        block_length = self.reading.block_length
        if num_noisy is None or block_length is None:
            return before
        begins_block = (columns % block_length == 0) & (columns > 0)
        return torch.where(begins_block, before + num_noisy, before)

    def _inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        clean_ids: Tensor | None,
        cache: Any,
    ) -> dict[str, Any]:
        """Arguments of the language model, which reads all of `input_ids`, and the clean tokens behind them."""
        if clean_ids is not None:
            return self._two_streams(input_ids, attention_mask, clean_ids, cache)
        start = cache.length if isinstance(cache, BlockCache) else 0
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": self._visible(input_ids, attention_mask, start, cache),
        }
        # Models that write one token after the other would keep keys and values of each call.
        if (
            "use_cache"
            in inspect.signature(type(uncompiled(self.language_model)).forward).parameters
        ):
            inputs["use_cache"] = False
        if cache is not None:
            self._check_cache(cache)
            inputs["past_key_values"] = TransformersCache(cache)
            columns = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
            inputs["position_ids"] = columns.unsqueeze(0).expand(len(input_ids), -1)
        return inputs

    def _two_streams(
        self, input_ids: Tensor, attention_mask: Tensor | None, clean_ids: Tensor, cache: Any
    ) -> dict[str, Any]:
        """Arguments of the language model, which reads 2L tokens: the noisy ones, and the same clean."""
        block_length = self.reading.block_length
        if block_length is None or cache is not None or clean_ids.shape != input_ids.shape:
            raise ValueError(
                f"`clean_ids` must be {tuple(input_ids.shape)} like `input_ids`, come without `cache`, and go to a "
                f"model with blocks, got {tuple(clean_ids.shape)}, and blocks of {block_length} tokens."
            )
        length = input_ids.shape[1]
        visible = two_streams(length, block_length, input_ids.device).expand(
            len(input_ids), 1, -1, -1
        )
        real = real_tokens(attention_mask)
        if real is not None:
            # Padding sees itself, so that no token sees nothing.
            itself = torch.eye(2 * length, dtype=torch.bool, device=input_ids.device)
            visible = (visible & torch.cat([real, real], dim=1)[:, None, None, :]) | itself

        # A clean token has the position of its noisy one.
        columns = torch.arange(length, device=input_ids.device).repeat(2)
        return {
            "input_ids": torch.cat([input_ids, clean_ids], dim=1),
            "attention_mask": self._as_mask(visible),
            "position_ids": columns.unsqueeze(0).expand(len(input_ids), -1),
            "use_cache": False,
        }

    def _visible(
        self, input_ids: Tensor, attention_mask: Tensor | None, start: int, cache: Any
    ) -> Tensor | None:
        """The mask for the language model: (B, S) as given where that says all, else (B, 1, L, S)."""
        if attention_mask is not None and attention_mask.ndim > 2:
            visible = attention_mask if attention_mask.ndim == 4 else attention_mask.unsqueeze(1)
            # Masks that are added to attention are below zero where nothing is seen.
            is_additive = visible.is_floating_point() and bool((visible < 0).any())
            return self._as_mask(visible >= 0 if is_additive else visible.bool())
        if self.reading.attention != "block":
            # Behind a cache transformers would look for a length that it does not have.
            if cache is None or attention_mask is None:
                return attention_mask
            real = attention_mask.bool()[:, None, None, :]
            return self._as_mask(real.expand(-1, 1, input_ids.shape[1], -1))

        # A token sees its own block and all before it.
        length = input_ids.shape[1]
        block_length = self.reading.block_length
        assert block_length is not None
        visible = earlier_blocks(start + length, start, block_length, input_ids.device)
        real = real_tokens(attention_mask)
        if visible is None:
            visible = torch.ones(length, start + length, dtype=torch.bool, device=input_ids.device)
        visible = visible.expand(len(input_ids), 1, -1, -1)
        if real is not None:
            # Padding sees itself, so that no token sees nothing.
            itself = torch.eye(length, dtype=torch.bool, device=input_ids.device)
            itself = torch.cat([itself.new_zeros(length, start), itself], dim=1)
            visible = (visible & real[:, None, None, :]) | itself
        return self._as_mask(visible)

    def _as_mask(self, visible: Tensor) -> Tensor:
        """A mask (B, 1, L, S) as the attention of the language model takes it, the same in all layers."""
        self._require_maskable("a mask of each pair of tokens")
        self._require_wide_windows(visible.shape[-1])
        if self.language_model.config._attn_implementation == "sdpa":
            return visible
        dtype = self.language_model.dtype
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=visible.device)
        return torch.where(visible, torch.zeros_like(hidden), hidden)

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
            "attention_mask": self._as_mask(visible),
            "position_ids": columns,
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

    def _check_cache(self, cache: Any):
        forward = inspect.signature(type(uncompiled(self.language_model)).forward).parameters
        if "past_key_values" not in forward or runs_compiled(self.language_model):
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

    def _require_wide_windows(self, length: int):
        """Refuse rows in which some layers see less than others: a mask that is given would open their windows."""
        config = self.language_model.config
        window = getattr(config, "sliding_window", None)
        if window is None or not getattr(config, "use_sliding_window", True):
            return
        layer_types = getattr(config, "layer_types", None)
        if layer_types is not None and set(layer_types) == {"full_attention"}:
            return
        if length > window:
            raise ValueError(
                f"`sliding_window` of the language model must be at least the {length} tokens of a row with blocks, a "
                f"cache or a mask of each pair of tokens, got {window}."
            )

    def _require_maskable(self, what: str):
        implementation = self.language_model.config._attn_implementation
        if implementation not in MASKABLE:
            raise ValueError(
                f"`attn_implementation` must be one of {MASKABLE} for {what}, got {implementation!r}."
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

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def enable_gradient_checkpointing(self):
        self.language_model.gradient_checkpointing_enable()


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
