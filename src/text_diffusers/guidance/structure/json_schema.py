"""JSON schemas as regular languages: the JSON texts that are valid, written in one way or in a few.

What makes a schema regular: properties in the order in which they are named, no property that is not named, and a
bounded number of digits. Keywords that say something else are refused by name.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from text_diffusers.common.validation import is_int, is_number, require, require_int, require_key
from text_diffusers.guidance.structure.json_numbers import integer_between, number_between
from text_diffusers.guidance.structure.language import (
    ANY,
    EMPTY,
    Anchor,
    Characters,
    Choice,
    Language,
    Ranges,
    Repeat,
    Sequence,
    characters,
    literal,
    optional,
    without,
)
from text_diffusers.guidance.structure.regular_expressions import parse_pattern

# Blanks behind a comma and a colon, and within brackets
SPACE = literal(" ")
BLANKS = Repeat(characters(" \n"), 0, 4)
WHITESPACE = {
    "none": (EMPTY, EMPTY),
    "spaced": (SPACE, EMPTY),
    "any": (BLANKS, BLANKS),
}

# Keywords without a meaning for what is valid
ANNOTATIONS = {
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
    "deprecated", "readOnly", "writeOnly",
}  # fmt: skip

# The keywords of each type
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}

# Characters of a JSON string that are written with a backslash, and how
ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}
ESCAPED: Ranges = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C))

YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"  # there is no year 0
MONTH = "(?:0[1-9]|1[0-2])"
DAY = "(?:0[1-9]|1[0-9]|2[0-8])"  # up to the 28th, which every month has
DATE = f"(?:{YEAR}-{MONTH}-{DAY})"
TIME = r"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)"
HEX = "[0-9a-f]"
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "uuid": f"{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}",
}


def schema_language(schema: Any, whitespace: str = "spaced", max_digits: int = 9) -> Language:
    """The JSON texts that are valid under a schema.

    Args:
        whitespace: "none"; "spaced", a space behind each comma and colon; "any", up to four blanks or line breaks
            wherever there may be some.
        max_digits: of a whole number, and behind its point; there are fewer where a double would round a number to a
            bound.

    Raises:
        ValueError: if it is no schema, has a keyword that is not supported, or nothing is valid.

    Example:
        >>> from text_diffusers.guidance.structure.byte_automaton import compile_language
        >>> from text_diffusers.guidance.structure.json_schema import schema_language
        >>> from text_diffusers.guidance.structure.language import Named
        >>> language = schema_language({"type": "array", "items": {"enum": ["a", 1]}, "maxItems": 2})
        >>> automaton = compile_language(Named(language, "schema", "an array"))
        >>> automaton.accepts('["a", 1]'), automaton.accepts("[2]")
        (True, False)
    """
    require_key("whitespace", whitespace, WHITESPACE)
    require_int("max_digits", max_digits, 1, 30)
    is_schema = isinstance(schema, dict)
    require(is_schema, "schema", "a JSON schema, a dictionary", schema)
    behind, around = WHITESPACE[whitespace]
    return SchemaReader(schema, behind, around, max_digits, whitespace).language(schema)


@dataclass
class SchemaReader:
    """Translates the parts of a schema.

    Attributes:
        root: the whole schema, to which references point.
        behind: what stands behind a comma or a colon.
        around: what stands within brackets, and before a comma or a colon.
        max_digits: of numbers.
        whitespace: its name.
        references: those that are being followed.
    """

    root: Any
    behind: Language
    around: Language
    max_digits: int
    whitespace: str
    references: list[str] = field(default_factory=list)

    def language(self, schema: Any) -> Language:
        """The JSON texts that are valid under a part of the schema."""
        if schema is False:
            return Choice(())
        require(
            isinstance(schema, dict), "schema", "made of dictionaries, and not of any value", schema
        )
        for keyword, reader in READERS.items():
            if keyword in schema:
                allowed = {keyword, "type"} if keyword in ("enum", "const") else {keyword}
                self.check_keywords(schema, allowed)
                return reader(self, schema)

        # One type, or one of several; keywords speak of their own type only.
        limit = "with a `type`, `enum`, `const`, `anyOf` or `$ref` in each part"
        require("type" in schema, "schema", limit, schema)
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        known = bool(types) and all(isinstance(one, str) and one in KEYWORDS for one in types)
        require(known, "schema", f"of types among {', '.join(KEYWORDS)}", schema["type"])
        self.check_keywords(schema, {"type"}.union(*(KEYWORDS[one] for one in types)))
        return Choice(tuple(TYPES[one](self, schema) for one in types))

    def check_keywords(self, schema: dict, allowed: set[str]):
        others = sorted(set(schema) - allowed - ANNOTATIONS)
        if others:
            raise ValueError(
                f"`schema` must be without `{others[0]}` here, which is not supported, got {schema!r:.80}."
            )

    # References, and values that are named

    def reference(self, schema: dict) -> Language:
        path = schema["$ref"]
        is_inner = isinstance(path, str) and path.startswith("#/")
        require(is_inner, "schema", "with references `#/...` into itself", path)
        require(
            path not in self.references, "schema", "without recursion, which is not regular", path
        )
        part = self.root
        for name in path.removeprefix("#/").split("/"):
            key = name.replace("~1", "/").replace("~0", "~")
            found = isinstance(part, dict) and key in part
            require(found, "schema", "with references to parts that it has", path)
            part = part[key]
        self.references.append(path)
        language = self.language(part)
        self.references.pop()
        return language

    def any_of(self, schema: dict) -> Language:
        options = schema["anyOf"]
        is_list = isinstance(options, list) and len(options) > 0
        require(is_list, "schema", "with a list of schemas as `anyOf`", options)
        return Choice(tuple(self.language(option) for option in options))

    def enum(self, schema: dict) -> Language:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        is_list = isinstance(values, list) and len(values) > 0
        require(is_list, "schema", "with a list of values as `enum`", values)
        if "type" in schema:
            types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            values = [value for value in values if any(is_of_type(value, one) for one in types)]
        return Choice(tuple(literal(self.written(value)) for value in values))

    def written(self, value: Any) -> str:
        separators = (",", ":") if self.whitespace == "none" else (", ", ": ")
        return json.dumps(value, ensure_ascii=False, separators=separators, allow_nan=False)

    # Types

    def string(self, schema: dict) -> Language:
        least = schema.get("minLength", 0)
        most = schema.get("maxLength")
        is_range = is_int(least, 0) and (most is None or is_int(most, least))
        require(is_range, "schema", "with 0 <= `minLength` <= `maxLength`", (least, most))
        has_length = "minLength" in schema or "maxLength" in schema
        named = [name for name in ("pattern", "format") if name in schema]
        if len(named) + has_length > 1:
            raise ValueError(
                "`schema` must have one of a length, `pattern` and `format` in a string, got "
                f"{schema!r:.80}."
            )
        if "pattern" in schema:
            inside = searched(
                parse_pattern(schema["pattern"], "schema", looks_ahead=False), schema["pattern"]
            )
        elif "format" in schema:
            # A name among others is an annotation to some, and to others a law.
            require_key("schema", schema["format"], FORMATS)
            inside = parse_pattern(FORMATS[schema["format"]])
        else:
            inside = Repeat(ANY, least, most)
        return Sequence((literal('"'), escaped(inside), literal('"')))

    def integer(self, schema: dict) -> Language:
        low, high, excluded = self.bounds(schema)
        low += low in excluded
        high -= high in excluded
        return integer_between(low, high)

    def number(self, schema: dict) -> Language:
        low, high, excluded = self.bounds(schema)
        return number_between(low, high, excluded, self.max_digits)

    def bounds(self, schema: dict) -> tuple[int, int, list[int]]:
        """The least and the greatest whole number, and those of both that are excluded."""
        limit = 10**self.max_digits - 1
        ends = {}
        excluded = []
        for name, sign in (("Minimum", -1), ("Maximum", 1)):
            values = {}
            for key in (name.lower(), f"exclusive{name}"):
                if key in schema:
                    value = schema[key]
                    is_whole = is_number(value) and float(value).is_integer()
                    require(is_whole, "schema", f"with a whole number as `{key}`", value)
                    values[key] = int(value)
            # The narrowest one counts; of equal ones the one that excludes.
            end = sign * min([sign * value for value in values.values()], default=limit)
            if values.get(f"exclusive{name}") == end:
                excluded.append(end)
            # A bound that no number of these digits reaches leaves none, and is refused with its schema.
            ends[name] = max(-limit, end) if name == "Minimum" else min(limit, end)
        return ends["Minimum"], ends["Maximum"], excluded

    def boolean(self, schema: dict) -> Language:
        return Choice((literal("true"), literal("false")))

    def null(self, schema: dict) -> Language:
        return literal("null")

    def array(self, schema: dict) -> Language:
        least = schema.get("minItems", 0)
        most = schema.get("maxItems")
        is_range = is_int(least, 0) and (most is None or is_int(most, least))
        require(is_range, "schema", "with 0 <= `minItems` <= `maxItems`", (least, most))
        require("items" in schema, "schema", "with `items` in each array", schema)
        item = self.language(schema["items"])
        if most == 0:
            return self.bracketed("[", EMPTY, "]")
        others = Repeat(
            Sequence((self.comma, item)), max(least - 1, 0), None if most is None else most - 1
        )
        items: Language = Sequence((self.around, item, others))
        return self.bracketed("[", items if least > 0 else optional(items), "]")

    def object(self, schema: dict) -> Language:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        is_object = isinstance(properties, dict) and isinstance(required, list)
        require(
            is_object, "schema", "with a dictionary as `properties`, a list as `required`", schema
        )
        is_named = all(name in properties for name in required)
        require(is_named, "schema", "with all that is `required` among the `properties`", required)
        # No property is written that is not named, so any value is right here but another schema that must hold.
        others = schema.get("additionalProperties", False)
        is_flag = isinstance(others, bool)
        require(is_flag, "schema", "without a schema as `additionalProperties`", others)

        members = []
        for name, part in properties.items():
            key = literal(json.dumps(name, ensure_ascii=False))
            colon = Sequence((self.around, literal(":"), self.behind))
            members.append((Sequence((key, colon, self.language(part))), name in required))
        inside = self.members(members)
        return self.bracketed("{", inside, "}")

    def members(self, members: list[tuple[Language, bool]]) -> Language:
        """The members of an object in their order, of which some may be left out."""

        def rest(index: int) -> Language:
            """All members from `index` on, each behind a comma."""
            parts: list[Language] = []
            for member, is_required in members[index:]:
                part = Sequence((self.comma, member))
                parts.append(part if is_required else optional(part))
            return Sequence(tuple(parts))

        # Which one is the first; it cannot be behind one that is required.
        options: list[Language] = []
        for index, (member, is_required) in enumerate(members):
            options.append(Sequence((self.around, member, rest(index + 1))))
            if is_required:
                return Choice(tuple(options))
        return Choice((*options, EMPTY))

    @property
    def comma(self) -> Language:
        return Sequence((self.around, literal(","), self.behind))

    def bracketed(self, first: str, inside: Language, last: str) -> Language:
        return Sequence((literal(first), inside, self.around, literal(last)))


READERS: dict[str, Callable[[SchemaReader, dict], Language]] = {
    "$ref": SchemaReader.reference,
    "anyOf": SchemaReader.any_of,
    "enum": SchemaReader.enum,
    "const": SchemaReader.enum,
}
TYPES: dict[str, Callable[[SchemaReader, dict], Language]] = {
    "object": SchemaReader.object,
    "array": SchemaReader.array,
    "string": SchemaReader.string,
    "integer": SchemaReader.integer,
    "number": SchemaReader.number,
    "boolean": SchemaReader.boolean,
    "null": SchemaReader.null,
}


def is_of_type(value: Any, name: str) -> bool:
    """Whether a JSON value is of a type of JSON schema."""
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer":
        return is_number(value) and float(value).is_integer()
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "null": type(None),
    }
    return isinstance(value, kinds.get(name, ()))


def escaped(language: Language) -> Language:
    """The same strings as the inside of a JSON string."""
    if isinstance(language, Characters):
        options: list[Language] = [Characters(without(language.ranges, ESCAPED))]
        # Other control characters are not written.
        for letter, spelling in ESCAPES.items():
            if any(first <= ord(letter) <= last for first, last in language.ranges):
                options.append(literal(spelling))
        return options[0] if len(options) == 1 else Choice(tuple(options))
    if isinstance(language, Sequence):
        return Sequence(tuple(escaped(part) for part in language.parts))
    if isinstance(language, Choice):
        return Choice(tuple(escaped(option) for option in language.options))
    if isinstance(language, Repeat):
        return Repeat(escaped(language.part), language.least, language.most)
    return language


def searched(language: Language, pattern: str) -> Language:
    """Strings in which a pattern is found: of a schema it need not match all of a string.

    Raises:
        ValueError: if it has an anchor elsewhere than at its ends.
    """
    parts = list(language.parts) if isinstance(language, Sequence) else [language]
    begins = bool(parts) and isinstance(parts[0], Anchor) and parts[0].place == "begin"
    ends = bool(parts) and isinstance(parts[-1], Anchor) and parts[-1].place != "begin"
    inner = parts[begins : len(parts) - ends]
    if any(has_anchor(part) for part in inner):
        raise ValueError(
            f"`schema` must have anchors at the ends of a `pattern` only, got {pattern!r}."
        )
    anything = Repeat(ANY, 0, None)
    return Sequence((*([] if begins else [anything]), *inner, *([] if ends else [anything])))


def has_anchor(language: Language) -> bool:
    if isinstance(language, Anchor):
        return True
    if isinstance(language, Repeat):
        return has_anchor(language.part)
    if isinstance(language, Sequence):
        return any(has_anchor(part) for part in language.parts)
    return isinstance(language, Choice) and any(has_anchor(option) for option in language.options)
