"""Settings with which a pipeline writes best. They are saved with it, and hold where a call gives none of its own.

A temperature, `top_k` or `top_p` of the scheduler itself comes before them too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from text_diffusers.common.validation import is_int, is_key, is_list, is_number, require
from text_diffusers.pipelines.guidance import as_controls, weighs_text

# Of a bidirectional language model; see `TextDiffusionPipeline`.
APPROXIMATIONS = ("prefix", "dual")

# Arguments that say how long a text is
LENGTH_SETTINGS = ("max_new_tokens", "min_new_tokens")
# Arguments of writing from the left
BLOCK_SETTINGS = ("block_length", "approximate_cache", "num_inference_steps")


@dataclass(frozen=True)
class CallSetting:
    """The values that an argument of a call may have as a default.

    Attributes:
        accepts: whether a value is one of them.
        limit: these values in words.
    """

    accepts: Callable[[Any], bool]
    limit: str


def is_share(value: Any) -> bool:
    return is_number(value, 0, 1) and value > 0


def are_tokens(value: Any) -> bool:
    """Whether `value` is a list of tokens, each by its name or id."""
    return is_list(value) and all(isinstance(token, str) or is_int(token, 0) for token in value)


WHOLE_NUMBER = CallSetting(partial(is_int, low=1), "an integer of at least 1")

# By the name of the argument; the order of the table is that in which they are shown.
CALL_SETTINGS = {
    "num_inference_steps": WHOLE_NUMBER,
    "temperature": CallSetting(partial(is_number, low=0), "a number of at least 0"),
    "top_k": WHOLE_NUMBER,
    "top_p": CallSetting(is_share, "a number above 0 and at most 1"),
    "block_length": WHOLE_NUMBER,
    "approximate_cache": CallSetting(
        partial(is_key, table=APPROXIMATIONS), f"one of {', '.join(APPROXIMATIONS)}"
    ),
    "max_new_tokens": WHOLE_NUMBER,
    "min_new_tokens": CallSetting(partial(is_int, low=0), "an integer of at least 0"),
    "suppress_tokens": CallSetting(are_tokens, "a list of tokens or ids"),
}


def check_generation_defaults(defaults: Any):
    """Refuse defaults that no call could have given.

    Raises:
        ValueError: that names the argument, its limit and what came.

    Example:
        >>> from text_diffusers.pipelines.calls.generation_defaults import check_generation_defaults
        >>> check_generation_defaults({"num_inference_steps": 32, "top_p": 0.9})
        >>> check_generation_defaults({"top_p": 9})
        Traceback (most recent call last):
        ValueError: `generation_defaults["top_p"]` must be a number above 0 and at most 1, got 9.
    """
    if defaults is None:
        return
    require(
        isinstance(defaults, Mapping),
        "generation_defaults",
        "None or a dictionary of arguments of a call",
        defaults,
    )
    for name, value in defaults.items():
        if name not in CALL_SETTINGS:
            raise ValueError(
                f"`generation_defaults` must hold arguments among {', '.join(CALL_SETTINGS)}, got {name!r}."
            )
        setting = CALL_SETTINGS[name]
        require(setting.accepts(value), f'generation_defaults["{name}"]', setting.limit, value)

    least = defaults.get("min_new_tokens", 0)
    most = defaults.get("max_new_tokens", least)
    limit = f'at most `generation_defaults["max_new_tokens"]`={most}'
    require(least <= most, 'generation_defaults["min_new_tokens"]', limit, least)


def defaults_of_call(
    defaults: Mapping[str, Any],
    given: Mapping[str, Any],
    one_block: bool = False,
    block_length: int | None = None,
) -> dict[str, Any]:
    """The defaults that hold in a call: those of arguments that it does not give, also not as `None`.

    Args:
        defaults: `generation_defaults` of the pipeline.
        given: the arguments of the call by their names.
        one_block: whether all of a text is a single block, see `writes_one_block`.
        block_length: tokens of a block of the pipeline itself; `None` without blocks.

    Example:
        >>> from text_diffusers.pipelines.calls.generation_defaults import defaults_of_call
        >>> defaults = {"temperature": 0.7, "max_new_tokens": 64}
        >>> defaults_of_call(defaults, {"text": "A [MASK].", "num_inference_steps": 8})
        {'temperature': 0.7}
    """
    held = {name: value for name, value in defaults.items() if name not in given}

    # A text that is filled in, or whose length is said otherwise, is as long as it is.
    if says_length(given):
        held = {name: value for name, value in held.items() if name not in LENGTH_SETTINGS}

    # Defaults of short blocks are none of a block that holds all of a text.
    if one_block:
        held = {name: value for name, value in held.items() if name not in BLOCK_SETTINGS}

    # Steps are those of a block, and so of blocks of one length.
    usual_length = defaults.get("block_length") or block_length
    asked_length = given.get("block_length") or block_length
    if "block_length" in given and asked_length != usual_length:
        held.pop("num_inference_steps", None)

    # One limit may be given against the other one's default.
    if given.get("min_new_tokens") and "max_new_tokens" in held:
        if held["max_new_tokens"] < given["min_new_tokens"]:
            del held["max_new_tokens"]
    if given.get("max_new_tokens") and "min_new_tokens" in held:
        held["min_new_tokens"] = min(held["min_new_tokens"], given["max_new_tokens"])

    # Without blocks there is nothing to approximate.
    if "block_length" in given and given["block_length"] is None:
        held.pop("approximate_cache", None)
    return held


def writes_one_block(pipe: Any, given: Mapping[str, Any]) -> bool:
    """Whether a call writes all of its text in one block over a causal past, since it looks at both sides of it.

    Args:
        given: the arguments of the call by their names. It has gaps, or controls that weigh all of a text, and asks
            for no blocks.
    """
    if not getattr(pipe, "has_causal_past", False) or given.get("block_length") is not None:
        return False
    controls = as_controls(given.get("controls"))
    return given.get("text") is not None or any(map(weighs_text, controls))


def says_length(given: Mapping[str, Any]) -> bool:
    """Whether the arguments of a call say how long its texts are, each to the token."""
    if given.get("text") is not None or given.get("length") is not None:
        return True
    return any(hasattr(control, "plan_lengths") for control in as_controls(given.get("controls")))
