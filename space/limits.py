"""Limits on a visitor's input: the page shows them, and these checks enforce them whatever the browser sends."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Limits:
    """Upper limits of a page, by default for two CPU cores that all visitors share.

    Attributes:
        characters: of each text that is typed in.
        steps: of one run.
        texts: written at once.
        length: tokens of a text.
        runs: of one comparison.
        words: that a text must contain.
        seconds: after which a run is stopped at its next step.
        waiting: requests in the queue; further ones are turned away.
        sessions: whose last results are kept for the replay.

    Example:
        >>> from text_diffusers.space.limits import Limits
        >>> limits = Limits(steps=256, seconds=120.0)
        >>> limits.steps, limits.texts
        (256, 4)
    """

    characters: int = 600
    steps: int = 128
    texts: int = 4
    length: int = 256
    runs: int = 9
    words: int = 4
    seconds: float = 45.0
    waiting: int = 16
    sessions: int = 200


class Refusal(Exception):
    """An input that is not accepted.

    Args:
        key: of the message in `TEXTS`.
        values: that the message shows; "field" is a key of `TEXTS` as well.
    """

    def __init__(self, key: str, **values: Any):
        super().__init__(key, values)
        self.key = key
        self.values = values


def integer(field: str, value: Any, low: int, high: int) -> int:
    """`value` as an integer from `low` to `high`; sliders send whole numbers as floats."""
    # The range first: `int` fails for infinity and for what is not a number.
    number(field, value, low, high)
    if value != int(value):
        raise Refusal("error.integer", field=field)
    return int(value)


def number(field: str, value: Any, low: float, high: float) -> float:
    """`value` as a float from `low` to `high`; not a number is not between them."""
    # For Python a boolean is an integer; no slider sends one.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refusal("error.range", field=field, low=low, high=high)
    return float(value)


def text(field: str, value: Any, limit: int) -> str:
    """`value` without the blanks around it; `None` is empty."""
    # An empty box of Gradio may send either.
    value = "" if value is None else value
    if not isinstance(value, str):
        raise Refusal("error.text", field=field)
    if len(value) > limit:
        raise Refusal("error.long", field=field, limit=limit, got=len(value))

    # Lone surrogates cannot be encoded, and no tokenizer takes them.
    if any(0xD800 <= ord(character) <= 0xDFFF or character == "\0" for character in value):
        raise Refusal("error.text", field=field)
    return value.strip()


def one_of(field: str, value: Any, choices: Collection) -> Any:
    """`value`, which must be one of the choices."""
    # What cannot be hashed is in no set of choices, and would raise there.
    if isinstance(value, (list, dict)) or value not in choices:
        raise Refusal("error.choice", field=field)
    return value


def some_of(field: str, values: Any, choices: Sequence) -> list:
    """At least one of the choices, each once, in their own order."""
    if not isinstance(values, (list, tuple)) or not values:
        raise Refusal("error.none", field=field)
    for value in values:
        one_of(field, value, choices)
    # The order of the page, whatever the order of the clicks
    return [choice for choice in choices if choice in values]
