"""Whole numbers and decimal fractions between bounds, as regular languages.

Numbers are written as in JSON: without leading zeros, signs of a plus, or exponents. There is no minus zero.
"""

from collections.abc import Sequence as SequenceOf

from text_diffusers.guidance.structure.language import (
    EMPTY,
    Characters,
    Choice,
    Language,
    Repeat,
    Sequence,
    literal,
    optional,
)

DIGIT = Characters(((0x30, 0x39),))
NOT_ZERO = Characters(((0x31, 0x39),))
MINUS = literal("-")
POINT = literal(".")


def digits_between(low: int, high: int) -> Characters:
    return Characters(((0x30 + low, 0x30 + high),))


def same_length_between(low: str, high: str) -> Language:
    """Strings of digits, as many as those of the bounds, from one to the other."""
    if not low:
        return EMPTY
    rest = len(low) - 1
    first = int(low[0])
    last = int(high[0])
    if first == last:
        inner = same_length_between(low[1:], high[1:])
        return Sequence((digits_between(first, last), inner))

    # The first digit is the lower bound's, between both, or the upper bound's.
    options: list[Language] = []
    if low[1:].strip("0"):
        upwards = same_length_between(low[1:], "9" * rest)
        options.append(Sequence((digits_between(first, first), upwards)))
        first += 1
    is_full = not high[1:].strip("9")
    middle_last = last if is_full else last - 1
    if first <= middle_last:
        middle = digits_between(first, middle_last)
        options.append(Sequence((middle, Repeat(DIGIT, rest, rest))))
    if not is_full:
        downwards = same_length_between("0" * rest, high[1:])
        options.append(Sequence((digits_between(last, last), downwards)))
    return Choice(tuple(options))


def natural_between(low: int, high: int) -> Language:
    """The natural numbers from `low`, at least 0, to `high`; none if there are none."""
    options = []
    while low <= high:
        # Those with the same number of digits
        top = min(high, 10 ** len(str(low)) - 1)
        options.append(same_length_between(str(low), str(top)))
        low = top + 1
    return Choice(tuple(options))


def integer_between(low: int, high: int) -> Language:
    """The whole numbers from `low` to `high`.

    Example:
        >>> from text_diffusers.guidance.structure.byte_automaton import compile_language
        >>> from text_diffusers.guidance.structure.json_numbers import integer_between
        >>> from text_diffusers.guidance.structure.language import Named
        >>> automaton = compile_language(Named(integer_between(-3, 12), "schema", "-3 to 12"))
        >>> [number for number in range(-20, 20) if automaton.accepts(str(number))] == list(range(-3, 13))
        True
    """
    options = [natural_between(max(low, 0), high)]
    if low < 0:
        options.append(Sequence((MINUS, natural_between(max(1, -high), -low))))
    return Choice(tuple(options))


def number_between(low: int, high: int, excluded: SequenceOf[int], max_digits: int) -> Language:
    """The decimal fractions between two whole numbers, with up to `max_digits` digits behind the point.

    Args:
        excluded: those of the bounds that are none of them.
    """
    some = Sequence((POINT, Repeat(DIGIT, 1, max_digits)))
    # A fraction that is not 0
    positive = Choice(
        tuple(
            Sequence((POINT, Repeat(DIGIT, count, count), NOT_ZERO, Repeat(DIGIT, 0, left)))
            for count in range(max_digits)
            for left in [max_digits - 1 - count]
        )
    )
    zero = optional(Sequence((POINT, Repeat(digits_between(0, 0), 1, max_digits))))

    def magnitudes(smallest: int, largest: int, left_out: SequenceOf[int]) -> Language:
        """From `smallest`, at least 0, to `largest`, without those left out."""
        if smallest > largest:
            return Choice(())
        options: list[Language] = [
            Sequence((natural_between(smallest + 1, largest - 1), optional(some)))
        ]
        if smallest < largest:
            ends = positive if smallest in left_out else optional(some)
            options.append(Sequence((literal(str(smallest)), ends)))
        if largest not in left_out:
            options.append(Sequence((literal(str(largest)), zero)))
        return Choice(tuple(options))

    options = [magnitudes(max(low, 0), high, excluded)]
    if low < 0:
        # There is no minus zero.
        negated = [-bound for bound in excluded]
        smallest = max(0, -high)
        left_out = [*negated, 0] if smallest == 0 else negated
        options.append(Sequence((MINUS, magnitudes(smallest, -low, left_out))))
    return Choice(tuple(options))
