"""Checks of arguments: small predicates, and errors that name the argument, its limit and what came."""

import math
from collections.abc import Collection, Iterable
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypeIs

# The longest clock of T steps: float32 tells their times apart, and tables over them stay small.
LONGEST_CLOCK = 2**20

# Values are shown in errors up to so many characters.
LONGEST_SHOWN = 80

# Names that share at least so much of their letters, in the same order, are taken for misspellings of each other.
LEAST_LIKENESS = 0.6


def require(condition: bool, name: str, limit: str, value: Any, names: Iterable[Any] = ()):
    """Raise a `ValueError` that names the argument, its limit and what came, unless `condition` holds.

    Args:
        names: among which the value chooses; the message says which of them was probably meant.

    Example:
        >>> require(0 <= 1.5 <= 1, "eta", "a number in [0, 1]", 1.5)
        Traceback (most recent call last):
        ValueError: `eta` must be a number in [0, 1], got 1.5.
    """
    if condition:
        return

    # What came may be a whole data set, of which the beginning is enough.
    shown = repr(value)
    if len(shown) > LONGEST_SHOWN:
        shown = f"{shown[:LONGEST_SHOWN]}..."
    raise ValueError(f"`{name}` must be {limit}, got {shown}{did_you_mean(value, names)}")


def did_you_mean(value: Any, names: Iterable[Any]) -> str:
    """The end of a message that refuses a name: the one that was probably meant, or a full stop.

    Example:
        >>> did_you_mean("absorbin", ["absorbing", "uniform"]), did_you_mean("poem", ["chat", "novel"])
        ("; did you mean 'absorbing'?", '.')
    """
    name = closest_name(value, names)
    return "." if name is None else f"; did you mean {name!r}?"


def closest_name(value: Any, names: Iterable[Any]) -> str | None:
    """Which of the names is spelt most like `value`, if one is spelt much like it; case, `-` and `_` do not count.

    Example:
        >>> closest_name("--num-steps", ["--num_clusters", "--num_train_timesteps"])
        '--num_train_timesteps'
    """
    if not isinstance(value, str) or len(value) > LONGEST_SHOWN:
        return None

    closest = None
    most = LEAST_LIKENESS
    for name in names:
        # A name that is there was refused for another reason than its spelling.
        if not isinstance(name, str) or name == value:
            continue
        likeness = likeness_of_names(plain_letters(value), plain_letters(name))
        if likeness > most:
            closest = name
            most = likeness
    return closest


def plain_letters(name: str) -> str:
    return name.lower().replace("-", "_").strip("_")


def likeness_of_names(asked: str, name: str) -> float:
    """The share of letters in common, from 0 to 1; a name that holds every word that is asked for is nearer to 1."""
    likeness = SequenceMatcher(None, asked, name).ratio()

    # Words of one or two letters are in many names.
    if all(len(word) > 2 and word in name for word in asked.split("_")):
        likeness = (likeness + 1) / 2
    return likeness


def require_int(name: str, value: Any, low: int, high: float = math.inf, optional: bool = False):
    """Raise a `ValueError` unless `value` is an integer from `low` to `high`, or `None` where that is `optional`."""
    limit = (
        f"an integer of at least {low}" if high == math.inf else f"an integer from {low} to {high}"
    )
    check_limit(is_int(value, low) and value <= high, name, limit, value, optional)


def require_number(
    name: str, value: Any, low: float, high: float = math.inf, optional: bool = False
):
    """Raise a `ValueError` unless `value` is a number in [`low`, `high`], or `None` where that is `optional`."""
    limit = f"a number of at least {low}" if high == math.inf else f"a number in [{low}, {high}]"
    check_limit(is_number(value, low, high), name, limit, value, optional)


def require_fraction(name: str, value: Any):
    """Raise a `ValueError` unless `value` is a number above 0 and below 1."""
    require(is_number(value) and 0 < value < 1, name, "a number between 0 and 1, exclusive", value)


def require_key(name: str, value: Any, table: Collection[str], optional: bool = False):
    """Raise a `ValueError` unless `value` is one of the names in `table`, or `None` where that is `optional`."""
    limit = f"one of {', '.join(table)}"
    check_limit(is_key(value, table), name, limit, value, optional, names=table)


def check_limit(
    condition: bool,
    name: str,
    limit: str,
    value: Any,
    optional: bool,
    names: Iterable[Any] = (),
):
    if optional:
        condition = condition or value is None
        limit = f"None or {limit}"
    require(condition, name, limit, value, names)


def is_int(value: Any, low: float = -math.inf) -> bool:
    """Whether `value` is an integer of at least `low`; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite number in [low, high]; a bool is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False

    # NaN fails every comparison.
    return low <= value <= high and abs(value) < math.inf


def is_key(value: Any, table: Collection[str]) -> bool:
    """Whether `value` is a string and one of the names in `table`."""
    return isinstance(value, str) and value in table


def is_list(value: Any) -> TypeIs[list[Any] | tuple[Any, ...]]:
    """Whether `value` is a list or a tuple."""
    return isinstance(value, (list, tuple))


def is_table(value: Any, axes: int) -> bool:
    """Whether `value` is a tensor of finite numbers with so many axes."""
    return isinstance(value, Tensor) and value.ndim == axes and bool(torch.isfinite(value).all())


def are_numbers(values: Any) -> bool:
    """Whether `values` is a list, tensor or array of at least one finite number."""
    # Tensors of torch and arrays of numpy alike.
    if hasattr(values, "tolist"):
        values = values.tolist()
    return is_list(values) and len(values) > 0 and all(is_number(value) for value in values)


def as_plain(value: Any) -> Any:
    """Plain numbers and lists for tensors, arrays and the scalars of torch and numpy, also inside of lists.

    Truth values and floats stay what they are, so that what takes integers can refuse them. All else is returned as
    it is.

    Example:
        >>> as_plain([torch.tensor(3), torch.tensor([0.5, 2.0]), "chat"])
        [3, [0.5, 2.0], 'chat']
    """
    # A function of the caller may answer to any name.
    if callable(value):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()

    # A subclass, such as a named tuple, may not be made from its entries.
    if type(value) is list:
        return [as_plain(entry) for entry in value]
    if type(value) is tuple:
        return tuple(as_plain(entry) for entry in value)
    return value


def flat_list(value: Any) -> list[Any]:
    """The entries of a list, and of the lists in it; a single value as the only entry."""
    if not is_list(value):
        return [value]
    return [entry for part in value for entry in flat_list(part)]


def check_strings(name: str, value: Any):
    """Raise a `ValueError` unless the argument `name` is a string or a list of at least one string."""
    strings = value if is_list(value) else [value]
    if not strings or not all(isinstance(string, str) for string in strings):
        raise ValueError(f"`{name}` must be a string or a list of strings, got {value!r}.")


def as_ids(name: str, tokens: Any) -> Tensor:
    """Token ids as int64, in which torch takes indices.

    Raises:
        ValueError: if they are no tensor of int64 or int32, which holds all ids.
    """
    is_wide = isinstance(tokens, Tensor) and tokens.dtype in (torch.int64, torch.int32)
    came = getattr(tokens, "dtype", type(tokens))
    require(is_wide, name, "a tensor of token ids, int64 or int32", came)
    return tokens.long()
