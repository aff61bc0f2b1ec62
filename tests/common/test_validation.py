"""Laws of the checks of arguments."""

import math

import pytest

from text_diffusers.common.validation import (
    require,
    require_fraction,
    require_int,
    require_key,
    require_number,
)


@pytest.mark.parametrize(
    ("check", "fitting", "wrong", "limit"),
    [
        (
            lambda x: require_int("n", x, 1),
            [1, 7],
            [0, 1.0, True, "1", None],
            "an integer of at least 1",
        ),
        (lambda x: require_int("n", x, 1, 4), [1, 4], [5], "an integer from 1 to 4"),
        (
            lambda x: require_int("n", x, 1, optional=True),
            [None, 2],
            [0],
            "None or an integer of at least 1",
        ),
        (
            lambda x: require_number("n", x, 0),
            [0, 0.5],
            [-1, math.inf, math.nan, True],
            "a number of at least 0",
        ),
        (lambda x: require_number("n", x, 0, 1), [0, 1], [1.5, None], "a number in [0, 1]"),
        (
            lambda x: require_fraction("n", x),
            [0.5],
            [0, 1, math.nan],
            "a number between 0 and 1, exclusive",
        ),
        (lambda x: require_key("n", x, ("a", "b")), ["a"], ["c", 1, ["a"]], "one of a, b"),
        (
            lambda x: require_key("n", x, {"a": 1}, optional=True),
            ["a", None],
            ["b"],
            "None or one of a",
        ),
    ],
)
def test_checks_let_pass_what_fits_and_name_argument_limit_and_value(check, fitting, wrong, limit):
    for value in fitting:
        check(value)
    for value in wrong:
        with pytest.raises(ValueError) as error:
            check(value)
        assert str(error.value) == f"`n` must be {limit}, got {value!r}."


def test_long_values_are_shown_in_part():
    with pytest.raises(ValueError, match=r"^`n` must be short, got 'x{79}\.\.\.\.$"):
        require(False, "n", "short", "x" * 1000)
