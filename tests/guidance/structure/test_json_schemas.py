"""Laws of JSON schemas: what their automata accept is JSON that is valid under them, as `jsonschema` judges."""

import itertools
import json
import random
import re
from datetime import datetime, time
from decimal import Decimal

import pytest
import torch
from conftest import mostly_slow, slow
from jsonschema import Draft202012Validator, FormatChecker

from text_diffusers.guidance import JsonControl
from text_diffusers.guidance.structure.byte_automaton import compile_language
from text_diffusers.guidance.structure.json_numbers import integer_between, number_between
from text_diffusers.guidance.structure.json_schema import schema_language
from text_diffusers.guidance.structure.language import Named

# jsonschema checks times only where rfc3339-validator is installed, `datetime` everywhere.
FORMATS = FormatChecker(["date", "uuid"])
FORMATS.checks("time", raises=(TypeError, ValueError))(time.fromisoformat)
FORMATS.checks("date-time", raises=(TypeError, ValueError))(datetime.fromisoformat)

SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 5},
            "age": {"type": "integer", "minimum": -3, "maximum": 120},
            "nick": {"type": "string", "pattern": '^[a-c"\\\\]{1,3}$'},
        },
        "required": ["age"],
        "additionalProperties": False,
    },
    "optional members": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}, "c": {"const": [1, "é"]}},
    },
    "array": {
        "type": "array",
        "items": {"enum": ["x", 2, None, {"k": [True, 1.5]}]},
        "minItems": 2,
        "maxItems": 4,
    },
    "nested": {
        "$defs": {
            "point": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
        },
        "type": "object",
        "properties": {
            "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2},
            "kind": {"anyOf": [{"type": ["integer", "null"]}, {"enum": ["line", "ring"]}]},
        },
        "required": ["points", "kind"],
    },
    "numbers": {"type": "number", "exclusiveMinimum": -2, "maximum": 3},
    "searched": {"type": "string", "pattern": "[0-9]a"},
    "formats": {
        "anyOf": [
            {"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid")
        ]
    },
}


def validator_of(schema):
    return Draft202012Validator(schema, format_checker=FORMATS)


def automaton_of(language):
    return compile_language(Named(language, "schema", "a schema"))


def random_text(automaton, rng, longest=60):
    state = 0
    text = b""
    for _ in range(longest):
        steps = (automaton.next_state[state] != automaton.num_states).nonzero()[0]
        if automaton.accepting[state] and (not len(steps) or rng.random() < 0.5):
            return text.decode()
        # Quotes and brackets are taken more often than they come by chance.
        closing = [step for step in steps if step in b'"]},']
        byte = int(rng.choice(closing if closing and rng.random() < 0.3 else list(steps)))
        text += bytes([byte])
        state = int(automaton.next_state[state, byte])
    return None


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("whitespace", ["none", "spaced", "any"])
def test_all_that_is_accepted_is_valid(name, whitespace):
    schema = SCHEMAS[name]
    automaton = automaton_of(schema_language(schema, whitespace, max_digits=3))
    rng = random.Random(0)
    texts = [random_text(automaton, rng) for _ in range(400)]
    texts = {text for text in texts if text is not None}
    assert len(texts) >= 3
    validator = validator_of(schema)
    for text in texts:
        validator.validate(json.loads(text))
        separators = {"none": (",", ":"), "spaced": (", ", ": ")}.get(whitespace)
        if separators and "\\" not in text and "." not in text:
            value = json.loads(text)
            assert text == json.dumps(value, ensure_ascii=False, separators=separators)


VALUES = [
    {"age": 5},
    {"age": 121},
    {"name": "Ann", "age": -3},
    {"name": "", "age": 3},
    {"name": "élan", "age": 0, "nick": 'a"\\'},
    {"age": 1, "nick": "d"},
    {"name": 5, "age": 1},
    {},
    {"a": None, "c": [1, "é"]},
    {"b": True},
    {"b": 1},
    ["x", 2],
    ["x"],
    [None, {"k": [True, 1.5]}, "x"],
    ["y", 2],
    {"points": [[1, -2.5]], "kind": "ring"},
    {"points": [], "kind": None},
    {"points": [[1]], "kind": 4},
    {"points": [], "kind": "lines"},
    -2,
    -1.999,
    3,
    3.1,
    0.5,
    "x1ay",
    "xay",
    "2026-01-31T10:00:00Z",
]


@pytest.mark.parametrize("name", sorted({*SCHEMAS} - {"formats"}))
def test_values_are_accepted_as_they_are_valid(name):
    """Of values that are written as the schema has them: members in order, and no more than are named."""
    automaton = automaton_of(schema_language(SCHEMAS[name], max_digits=3))
    validator = validator_of(SCHEMAS[name])
    named = set(SCHEMAS[name].get("properties", {}))
    for value in VALUES:
        if isinstance(value, dict) and not set(value) <= named:
            continue
        accepted = automaton.accepts(json.dumps(value, ensure_ascii=False))
        assert accepted == validator.is_valid(value), value


@pytest.mark.parametrize("name, behind", [("date", ""), ("date-time", "T10:00:00Z")])
def test_the_years_of_dates_are_those_of_the_calendar(name, behind):
    schema = {"type": "string", "format": name}
    automaton = automaton_of(schema_language(schema))
    validator = validator_of(schema)
    for year in range(10_000):
        value = f"{year:04}-02-28{behind}"
        assert automaton.accepts(json.dumps(value)) == validator.is_valid(value), value
    assert not validator.is_valid(f"0000-02-28{behind}")


def test_numbers_are_between_their_bounds():
    rng = random.Random(0)
    for _ in range(40):
        low = rng.randint(-1_200, 1_200)
        high = low + rng.randint(0, 1_500)
        automaton = automaton_of(integer_between(low, high))
        for number in {*range(low - 3, low + 4), *range(high - 3, high + 4), 0, -1, 1, 10, 99, 100}:
            assert automaton.accepts(str(number)) == (low <= number <= high), (low, high, number)
        assert not automaton.accepts("-0") and not automaton.accepts("007")

    for low, high, excluded in [
        (-2, 3, []),
        (0, 1, [0, 1]),
        (-1, 0, [-1]),
        (5, 5, []),
        (-9, -8, [-8]),
    ]:
        automaton = automaton_of(number_between(low, high, excluded, 2))
        for hundredths in range(-1_000, 1_000):
            number = hundredths / 100
            right = low <= number <= high and number not in excluded
            for text in {f"{number:.2f}", f"{number:g}"}:
                minus_zero = number == 0 and text.startswith("-")
                assert automaton.accepts(text) == (right and not minus_zero), (low, high, text)


@pytest.mark.parametrize(
    "low, high, excluded, max_digits",
    [
        (-9, 9, [], 1),
        (0, 9, [0], 1),
        (-1, 1, [-1, 1], 2),
        (0, 10, [0, 10], 2),
        (-10, 0, [0], 2),
        (-99, 99, [], 3),
        (9, 11, [9], 3),
        (-10, 10, [-10], 3),
    ],
)
def test_decimals_are_accepted_by_their_value_and_digits(low, high, excluded, max_digits):
    """All strings of some digits, with a sign and a point or without, as `re` and `Decimal` judge."""
    automaton = automaton_of(number_between(low, high, excluded, max_digits))
    digits = ["".join(some) for size in range(4) for some in itertools.product("0159", repeat=size)]
    fractions = ["", *(f".{some}" for some in digits)]
    spelling = re.compile(rf"-?(0|[1-9][0-9]*)(\.[0-9]{{1,{max_digits}}})?")
    num_accepted = 0
    for sign, whole, fraction in itertools.product(["", "-"], digits, fractions):
        text = sign + whole + fraction
        right = spelling.fullmatch(text) is not None
        if right:
            value = Decimal(text)
            right = low <= value <= high and value not in excluded and not (sign and value == 0)
        assert automaton.accepts(text) == right, text
        num_accepted += right
    assert num_accepted > 0


EXCLUSIVE = ["exclusiveMinimum", "exclusiveMaximum"]
BOUNDS = [1, *(10**power for power in range(5, 13)), 999_999_999, 123_456_789_012]

# A double does not hold all of these, so that a number may also be rounded across one.
LARGE_BOUNDS = [10**15, 2**53 + 1, 10**20 - 1]


def near(whole, max_digits):
    """Decimal fractions of whole numbers around one, next to a bound and far from it."""
    for magnitude in range(max(0, whole - 2), whole + 2):
        yield str(magnitude)
        for size in range(1, max_digits + 1):
            yield f"{magnitude}.{'9' * size}"
            yield f"{magnitude}.{'5' * size}"
            yield f"{magnitude}.{'0' * size}"
            yield f"{magnitude}.{'0' * (size - 1)}1"


@pytest.mark.parametrize("sign", [1, slow(-1)])
@pytest.mark.parametrize(
    "names, bounds, max_digits",
    [
        slow(EXCLUSIVE, BOUNDS, 9),
        (EXCLUSIVE, BOUNDS, 15),
        slow([*EXCLUSIVE, "minimum", "maximum"], LARGE_BOUNDS, 30),
    ],
)
def test_numbers_keep_to_their_bounds_as_floats(names, bounds, max_digits, sign):
    """A number next to a bound may be the bound when it is read; with 15 digits it is another one."""
    for name, bound in itertools.product(names, bounds):
        schema = {"type": "number", name: sign * bound}
        is_outer = (sign > 0) == ("inimum" in name)
        if is_outer and bound >= 10**max_digits - 1:
            continue  # it leaves no number of so many digits
        automaton = automaton_of(schema_language(schema, max_digits=max_digits))
        validator = validator_of(schema)
        for magnitude in near(bound, max_digits):
            text = magnitude if sign > 0 else f"-{magnitude}"
            valid = validator.is_valid(json.loads(text))
            accepted = automaton.accepts(text)
            assert valid or not accepted, (schema, text)

            whole = magnitude.partition(".")[0]
            num_digits = len(magnitude.replace(".", ""))
            is_short = num_digits <= 15 and int(whole) < 10**max_digits - 1
            if is_short and (sign > 0 or Decimal(text) != 0):
                assert accepted == valid, (schema, text)


@pytest.mark.parametrize("max_digits", mostly_slow(range(1, 31), fast=[1, 9, 14, 15, 20, 30]))
def test_numbers_have_automata_with_as_many_digits_as_there_may_be(max_digits):
    largest = 10**max_digits - 1
    least = f"0.{'0' * (max_digits - 1)}1"
    positive = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    for schema, text in [
        ({"type": "integer"}, f"-{largest}"),
        ({"type": "number"}, least),
        (positive, least),
        ({"type": "number", "exclusiveMinimum": -7, "exclusiveMaximum": largest}, f"-{least}"),
        ({"type": "number", "exclusiveMinimum": -largest, "exclusiveMaximum": 0}, f"-{least}"),
        ({"type": "array", "items": positive, "maxItems": 2}, f"[{least}, 1]"),
    ]:
        automaton = automaton_of(schema_language(schema, max_digits=max_digits))
        assert automaton.accepts(text), schema


@pytest.mark.parametrize(
    "schema, reason",
    [
        ({"type": "string", "contentEncoding": "base64"}, "without `contentEncoding`"),
        ({"type": "integer", "multipleOf": 3}, "without `multipleOf`"),
        ({"type": "array"}, "with `items`"),
        (
            {"type": "array", "items": {"type": "null"}, "uniqueItems": True},
            "without `uniqueItems`",
        ),
        ({"oneOf": [{"type": "null"}]}, "with a `type`"),
        ({"type": "thing"}, "of types among"),
        ({"type": "number", "minimum": 0.5}, "with a whole number as `minimum`"),
        ({"type": "string", "format": "email"}, "one of date"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "one of a length, `pattern`"),
        ({"type": "string", "pattern": "(?=a)b"}, "without look-around"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
            "without recursion",
        ),
        ({"$ref": "#/$defs/b"}, "with references to parts that it has"),
        ({"type": "object", "required": ["a"]}, "with all that is `required`"),
        ({"type": "object", "additionalProperties": {"type": "null"}}, "without a schema as"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "match some text"),
        (True, "a JSON schema"),
    ],
)
def test_what_a_schema_cannot_say_here_is_refused(schema, reason):
    with pytest.raises(ValueError, match=rf"`schema` must .*{re.escape(reason)}"):
        automaton_of(schema_language(schema))


def test_every_text_of_a_schema_is_valid(pipe):
    """The model is random, and would hardly write a brace."""
    schema = {
        "type": "object",
        "properties": {
            "cat": {"type": "string", "maxLength": 4},
            "age": {"type": "integer", "minimum": 1, "maximum": 30},
        },
        "required": ["cat", "age"],
    }
    for control in (
        JsonControl(pipe.tokenizer, schema),
        JsonControl(pipe.tokenizer, json.dumps(schema)),
    ):
        output = pipe(
            controls=control,
            max_new_tokens=31,
            num_inference_steps=4,
            num_return_sequences=4,
            generator=torch.Generator().manual_seed(0),
        )
        for text in output.texts:
            validator_of(schema).validate(json.loads(text))
    with pytest.raises(ValueError, match="`schema` must be JSON, got"):
        JsonControl(pipe.tokenizer, "{")


def test_a_bound_that_no_number_reaches_is_refused(pipe):
    with pytest.raises(ValueError, match="`schema` must match some text"):
        JsonControl(pipe.tokenizer, {"type": "integer", "minimum": 1_000}, max_digits=2)
    with pytest.raises(ValueError, match="`schema` must match some text"):
        JsonControl(pipe.tokenizer, {"type": "number", "maximum": -1_000}, max_digits=2)
