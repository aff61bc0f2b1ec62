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
ZERO = Characters(((0x30, 0x30),))
NOT_ZERO = Characters(((0x31, 0x39),))
MINUS = literal("-")
POINT = literal(".")

# Numbers of so many digits are different numbers when they are read as doubles.
KEPT_DIGITS = 15


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


def fraction(digit: Language, most: int) -> Language:
    """Nothing, or a point with up to `most` digits behind it."""
    return optional(Sequence((POINT, Repeat(digit, 1, most)))) if most > 0 else EMPTY


def positive_fraction(most: int) -> Language:
    """A point with up to `most` digits behind it, not all of them 0."""
    options = []
    for num_zeros in range(most):
        zeros = Repeat(ZERO, num_zeros, num_zeros)
        others = Repeat(DIGIT, 0, most - num_zeros - 1)
        options.append(Sequence((POINT, zeros, NOT_ZERO, others)))
    return Choice(tuple(options))


def number_between(low: int, high: int, excluded: SequenceOf[int], max_digits: int) -> Language:
    """The decimal fractions between two whole numbers, with up to `max_digits` digits behind the point.

    They keep to the bounds also when they are read as doubles, which round. So one next to an excluded bound has up to
    15 digits, those before the point among them, and one with more digits before the point has none behind it.

    Args:
        excluded: those of the bounds that are none of them.

    Example:
        >>> from text_diffusers.guidance.structure.byte_automaton import compile_language
        >>> from text_diffusers.guidance.structure.json_numbers import number_between
        >>> from text_diffusers.guidance.structure.language import Named
        >>> automaton = compile_language(Named(number_between(0, 1, [1], 2), "schema", "0 to 1"))
        >>> [text for text in ("0", "0.99", "0.999", "1", "-0.5") if automaton.accepts(text)]
        ['0', '0.99']
    """
    positive = magnitudes_between(max(low, 0), high, excluded, max_digits)
    if low >= 0:
        return positive

    # There is no minus zero.
    left_out = [-bound for bound in excluded] + [0]
    negative = magnitudes_between(max(0, -high), -low, left_out, max_digits)
    return Choice((positive, Sequence((MINUS, negative))))


def magnitudes_between(
    smallest: int, largest: int, left_out: SequenceOf[int], max_digits: int
) -> Language:
    """The decimal fractions from `smallest`, at least 0, to `largest`, without those left out."""
    if smallest > largest:
        return Choice(())

    def with_fractions(first: int, last: int) -> Language:
        """The whole numbers from `first` to `last` with any fraction behind them."""
        border = 10**KEPT_DIGITS
        short = natural_between(first, min(last, border - 1))
        long = natural_between(max(first, border), last)
        return Choice((Sequence((short, fraction(DIGIT, max_digits))), long))

    # Whole numbers from which a fraction could lead to one that is left out
    neighbours = {whole for bound in left_out for whole in (bound - 1, bound)}
    options: list[Language] = []
    first = smallest
    for whole in sorted(neighbours):
        if not smallest <= whole < largest:
            continue
        options.append(with_fractions(first, whole - 1))
        first = whole + 1

        most = min(max_digits, max(0, KEPT_DIGITS - len(str(whole))))
        # A double keeps the digits of a number next to 0, however small it is.
        if whole == 0 and 1 not in left_out:
            most = max_digits
        behind = positive_fraction(most) if whole in left_out else fraction(DIGIT, most)
        options.append(Sequence((literal(str(whole)), behind)))
    options.append(with_fractions(first, largest - 1))

    if largest not in left_out:
        num_zeros = max_digits if len(str(largest)) <= KEPT_DIGITS else 0
        options.append(Sequence((literal(str(largest)), fraction(ZERO, num_zeros))))
    return Choice(tuple(options))
