"""What one visitor may ask for. The page shows these limits; here they are enforced."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Upper ends of what is taken, for two CPU cores that are shared by all visitors.

    Attributes:
        characters: of each text that is typed in.
        steps: of one run.
        texts: written at once.
        length: tokens of a text.
        runs: of one comparison.
        words: that a text is told to hold.
        seconds: after which a run is stopped at its next step.
        waiting: requests in the queue; further ones are turned away.
        sessions: whose last results are kept for the replay.
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


LARGEST_SEED = 2**31 - 1


class Refusal(Exception):
    """Something a visitor asked for that is not given, as a key of `TEXTS` with its values; "field" is a key too."""

    def __init__(self, key: str, **values: Any):
        super().__init__(key, values)
        self.key, self.values = key, values


def integer(field: str, value: Any, low: int, high: int) -> int:
    """`value` as an integer from `low` to `high`; sliders send whole numbers as floats."""
    number(field, value, low, high)
    if value != int(value):
        raise Refusal("error.integer", field=field)
    return int(value)


def number(field: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refusal("error.range", field=field, low=low, high=high)
    return float(value)


def text(field: str, value: Any, limit: int) -> str:
    """`value` without the blanks around it, `None` being empty."""
    value = "" if value is None else value
    if not isinstance(value, str):
        raise Refusal("error.text", field=field)
    if len(value) > limit:
        raise Refusal("error.long", field=field, limit=limit, got=len(value))
    if any(0xD800 <= ord(character) <= 0xDFFF or character == "\0" for character in value):
        raise Refusal("error.text", field=field)
    return value.strip()


def one_of(field: str, value: Any, choices: Collection) -> Any:
    if isinstance(value, (list, dict)) or value not in choices:
        raise Refusal("error.choice", field=field)
    return value


def some_of(field: str, values: Any, choices: Sequence) -> list:
    """At least one of the choices, each once, in their own order."""
    if not isinstance(values, (list, tuple)) or not values:
        raise Refusal("error.none", field=field)
    for value in values:
        one_of(field, value, choices)
    return [choice for choice in choices if choice in values]
