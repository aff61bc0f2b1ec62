"""Laws of JSON schemas: what their automata accept is JSON that is valid under them, as `jsonschema` judges."""

import json
import random
import re

import pytest
import torch
from jsonschema import Draft202012Validator

from text_diffusers.guidance import JsonControl
from text_diffusers.guidance.structure.byte_automaton import compile_language
from text_diffusers.guidance.structure.json_numbers import integer_between, number_between
from text_diffusers.guidance.structure.json_schema import schema_language
from text_diffusers.guidance.structure.language import Named

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
    "formats": {"type": "string", "format": "date-time"},
}


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
    validator = Draft202012Validator(schema)
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
    validator = Draft202012Validator(SCHEMAS[name])
    named = set(SCHEMAS[name].get("properties", {}))
    for value in VALUES:
        if isinstance(value, dict) and not set(value) <= named:
            continue
        accepted = automaton.accepts(json.dumps(value, ensure_ascii=False))
        assert accepted == validator.is_valid(value), value


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
            Draft202012Validator(schema).validate(json.loads(text))
    with pytest.raises(ValueError, match="`schema` must be JSON, got"):
        JsonControl(pipe.tokenizer, "{")


def test_a_bound_that_no_number_reaches_is_refused(pipe):
    with pytest.raises(ValueError, match="`schema` must match some text"):
        JsonControl(pipe.tokenizer, {"type": "integer", "minimum": 1_000}, max_digits=2)
    with pytest.raises(ValueError, match="`schema` must match some text"):
        JsonControl(pipe.tokenizer, {"type": "number", "maximum": -1_000}, max_digits=2)
