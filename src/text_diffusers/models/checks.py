"""Checks of a model's configuration and inputs.

A configuration is a file of JSON, which can say anything, and a float for a size would fail far from there.

Shapes: B batch, L sequence length.
"""

import inspect
from collections.abc import Collection, Iterable
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import torch
from torch import Tensor

from text_diffusers.common.validation import is_int, is_list, is_number, require, require_key

# Tensors with two sides of this size still have a number of entries that torch can count.
LARGEST_SIZE = 2**24
MOST_LAYERS = 1_000

# The types in the signatures of models, as errors name them.
TYPE_NAMES = {
    int: "an integer",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
    dict: "a mapping",
    NoneType: "None",
    list[int]: "a list, each of it an integer",
    list[str]: "a list, each of it a string",
}


def check_config_types(model: Any):
    """Refuse a value in the configuration that is not of the type in the signature of the model's constructor.

    Raises:
        ValueError: that names the argument.
    """
    for name, parameter in inspect.signature(type(model).__init__).parameters.items():
        # `self` and parameters of a subclass of its own are not in the configuration.
        if name not in model.config:
            continue
        value = model.config[name]
        annotation = parameter.annotation
        # `int | None` and the like are unions of types.
        types = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        limit = " or ".join(TYPE_NAMES[one] for one in types)
        require(any(is_of(value, one) for one in types), name, limit, value)


def is_of(value: Any, type_: Any) -> bool:
    """Whether a value of JSON has one of `TYPE_NAMES`; numbers must be finite, and true is no integer."""
    if type_ is int:
        return is_int(value)
    if type_ is float:
        return is_number(value)
    if get_origin(type_) is list:
        return is_list(value) and all(is_of(entry, get_args(type_)[0]) for entry in value)
    return isinstance(value, type_)


def check_sizes(
    config: Any,
    names: Iterable[str],
    least: int = 1,
    most: int = LARGEST_SIZE,
    optional: bool = False,
):
    """Refuse integers that are out of range; None is allowed if they are `optional`.

    Raises:
        ValueError: that names the argument.
    """
    kind = "None or an integer" if optional else "an integer"
    for name in names:
        size = getattr(config, name)
        if optional and size is None:
            continue
        require(is_int(size, least), name, f"{kind} of at least {least}", size)
        require(size <= most, name, f"{kind} of at most {most}", size)


def check_vocabulary(config: Any, names: Iterable[str]):
    """Refuse token ids that are not in the vocabulary; a model may have none of them."""
    for name in names:
        token_id = getattr(config, name)
        is_known = token_id is None or 0 <= token_id < config.vocab_size
        require(is_known, name, f"in the vocabulary of {config.vocab_size}", token_id)


def check_transformer_sizes(config: Any, sizes: list[str]):
    """Refuse sizes that no transformer can have; `sizes` names those that the model has beside width and heads."""
    # Each layer is a module to be built, so there may be fewer of them than entries of a width.
    layers = [name for name in sizes if name.endswith("_layers")]
    check_sizes(config, ["hidden_size", "num_attention_heads", *sizes])
    check_sizes(config, layers, most=MOST_LAYERS)

    width = config.hidden_size
    heads = config.num_attention_heads
    # Rotary positions turn pairs of entries, so that a head has an even width.
    if width % (2 * heads):
        raise ValueError(
            "`hidden_size` must be an even multiple of `num_attention_heads` (an even head width), "
            f"got {width} for {heads} heads."
        )

    # The inner width of the feed-forward layers is a size like any other.
    ratio = config.feed_forward_ratio
    limit = f"positive and make `hidden_size`={width} at least 1 and at most {LARGEST_SIZE}"
    require(1 <= width * ratio <= LARGEST_SIZE, "feed_forward_ratio", limit, ratio)
    dropout = config.get("dropout", 0.0)
    require(0 <= dropout < 1, "dropout", "in [0, 1)", dropout)


def check_transformer_config(config: Any, more_sizes: Iterable[str] = ()):
    """Refuse a configuration that no denoiser or classifier can have; `more_sizes` names sizes of the model's own."""
    check_transformer_sizes(config, ["vocab_size", "num_layers", "max_length", *more_sizes])
    check_sizes(config, ["num_classes"], optional=True)
    check_vocabulary(config, ["mask_token_id", "pad_token_id"])


def check_transformer_options(config: Any, time_inputs: Collection[str]):
    """Refuse options that no denoiser over tokens can have; `time_inputs` names what it can be shown of the time."""
    # The variance by which a norm divides may be 0.
    require(0 < config.norm_eps <= 1, "norm_eps", "above 0 and at most 1", config.norm_eps)
    check_sizes(config, ["condition_size", "frequency_embedding_size"], optional=True)

    # There is a sine for each cosine.
    waves = config.frequency_embedding_size
    require(waves is None or waves % 2 == 0, "frequency_embedding_size", "None or even", waves)
    require_key("time_input", config.time_input, time_inputs)
    if config.head_bias and config.tie_embeddings:
        raise ValueError("`head_bias` must be False with `tie_embeddings=True`, got True.")


def check_shape(name: str, value: Tensor, max_length: int, width: int | None = None):
    """Refuse an input that is not (B, L), or with a `width` (B, L, width), for an L of 1 to `max_length`."""
    last_axes = () if width is None else (width,)
    shape = tuple(value.shape)
    fits = len(shape) == 2 + len(last_axes) and shape[2:] == last_axes
    # An empty sequence has nothing to predict.
    fits = fits and 0 < shape[1] <= max_length
    axes = ", ".join(["batch", "length", *map(str, last_axes)])
    require(fits, name, f"({axes}) with a length of 1 to `max_length`={max_length}", shape)


def check_class_labels(class_labels: Tensor | None, num_classes: int | None):
    """Refuse labels (B,) that a model with `num_classes` does not know."""
    if class_labels is None:
        return
    if num_classes is None:
        raise ValueError(
            "`class_labels` were given, but this model was built with `num_classes=None`."
        )
    # `num_classes` itself is "no label"; a compiled graph cannot look at values.
    if torch.compiler.is_compiling():
        return
    if not ((class_labels >= 0) & (class_labels <= num_classes)).all():
        raise ValueError(
            f"`class_labels` must be between 0 and {num_classes - 1} (or {num_classes} for no label), "
            f"got {class_labels.tolist()}."
        )
