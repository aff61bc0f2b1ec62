"""Calls of language models of transformers: their arguments, their heads at chosen states, their longest input.

Shapes: B batch, L sequence length, D width, V vocabulary size, N selected positions.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn

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


def uncompiled(model: Any) -> Any:
    """The model that `torch.compile` was given, if `model` is what came of it; else `model` itself."""
    return getattr(model, "_orig_mod", model)


def runs_compiled(model: Any) -> bool:
    """Whether a call of `model` is compiled, by `torch.compile(model)` or by `model.compile()` in place."""
    # Parts of such a model, called by themselves, are not.
    in_place = getattr(model, "_compiled_call_impl", None) is not None
    return in_place or uncompiled(model) is not model


def takes_argument(model: Any, name: str) -> bool:
    """Whether the call of a model has an argument of this name."""
    return name in argument_names(type(uncompiled(model)))


def takes_past(model: Any) -> bool:
    """Whether a model of transformers takes keys and values that were computed before, by itself or for its body."""
    if takes_argument(model, "past_key_values"):
        return True
    # Masked LMs hand arguments that they do not know on to their body, which may be a decoder's too.
    body = getattr(uncompiled(model), "base_model", model)
    return takes_argument(model, "kwargs") and takes_argument(body, "past_key_values")


@cache
def argument_names(architecture: type) -> frozenset[str]:
    """The names of the arguments of `forward`, which are slow to read."""
    return frozenset(inspect.signature(architecture.forward).parameters)


def language_model_length(model: Any) -> int:
    """The longest input in tokens; RoBERTa and its kin count positions from the one after their padding id.

    Raises:
        ValueError: if the configuration does not say.
    """
    limit = configured_length(model.config)
    if limit is None:
        raise ValueError(
            f"`config` of a {type(model).__name__} must have the longest input in tokens as one of {LENGTH_KEYS}."
        )

    # Positions that can be embedded, less those that are never given to a token
    return limit - first_position(model)


def configured_length(config: Any) -> int | None:
    """The number of positions that a configuration of transformers names; `None` if it names none."""
    limits = [getattr(config, key, None) for key in LENGTH_KEYS]
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def first_position(model: Any) -> int:
    """The position of a row's first token: 0, or of RoBERTa and its kin the one after their padding id."""
    for name, module in model.named_modules():
        padding_id = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding_id is not None:
            return padding_id + 1
    return 0


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
