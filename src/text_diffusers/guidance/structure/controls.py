"""Controls of structure: a text that matches a regular expression, is valid under a JSON schema, or is one of some.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens, M of them that a step draws.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.randomness import rand_like
from text_diffusers.common.validation import require
from text_diffusers.guidance.controls import Control, for_each_text
from text_diffusers.guidance.soft_text import open_log_probs
from text_diffusers.guidance.structure.byte_automaton import ByteAutomaton, compile_language
from text_diffusers.guidance.structure.json_schema import schema_language
from text_diffusers.guidance.structure.language import Choice, Named, literal
from text_diffusers.guidance.structure.layout import RowLayout, parts_of_row, row_layout
from text_diffusers.guidance.structure.regular_expressions import parse_pattern
from text_diffusers.guidance.structure.texts import StructuredTexts
from text_diffusers.guidance.structure.token_automaton import TokenAutomaton
from text_diffusers.guidance.structure.token_bytes import LATER, token_bytes

# Patterns, schemas and given text are shown in errors up to so many characters.
LONGEST_SHOWN = 80

# Numbers of float64 for the edges of all tokens of the texts that are read together
LARGEST_PART = 2**24


@dataclass
class JointDraw:
    """Tokens that a control has drawn together.

    Attributes:
        logits: (M, V) of these tokens, each tilted as if it were drawn by itself.
        tokens: (M,) ids.
    """

    logits: Tensor
    tokens: Tensor


class StructureControl(Control):
    """Base of the controls under which each text is in a regular language, one of its own or one that all share.

    A prediction of independent tokens p(x) becomes p(x | the text is in the language), exactly: a finite automaton
    reads the tokens, and two passes over its states give p(x_i | in the language) of each token, and draws of several
    tokens together. A step settles tokens only by such joint draws, so what it leaves open can always be completed.
    Where a prediction excludes all texts of the language, those are left that need the fewest excluded tokens.

    Temperature, top_k and top_p shape the tokens of a step one after the other, from left to right, each given those
    before it and the language. The control acts in every step, and behind all other controls.

    Args:
        tokenizer: a fast tokenizer of transformers.
        languages: one for all texts, or one for each.
        shared: whether it is one for all.
        with_prompt: whether a text that continues a prompt is read with it.
    """

    draws_jointly = True
    argument = "pattern"

    def __init__(self, tokenizer: Any, languages: Sequence[Named], shared: bool, with_prompt: bool):
        super().__init__()
        require(isinstance(with_prompt, bool), "with_prompt", "True or False", with_prompt)
        self.tokenizer = tokenizer
        self.with_prompt = with_prompt
        self._shared = shared
        self._languages = list(languages)
        self._special_ids = frozenset(tokenizer.all_special_ids)

        # Equal languages have one automaton.
        tokens = token_bytes(tokenizer)
        self._automata: dict[Named, TokenAutomaton] = {}
        for named in self._languages:
            if named not in self._automata:
                self._automata[named] = TokenAutomaton(compiled(named), tokens)

    def check_texts(self, state: Any):
        """Refuse texts that cannot be in their language, whatever is written.

        Raises:
            ValueError: that names the language, and what is given of the text or how long it is.
        """
        for named, texts in self._texts(None, state):
            self._check_possible(named, texts, state)

    def guided(self, logits: Tensor, state: Any) -> Tensor:
        """(N, V) logits of p(x_i | in the language), each token by itself."""
        tilted = logits.clone()
        for named, texts in self._texts(logits, state):
            self._check_possible(named, texts, state)
            is_open = texts.numbers >= 0
            prospects, _ = texts.evaluate(is_open)
            tilted[self._numbers(state, texts)] += prospects.to(logits.dtype)
        return tilted

    def draw(self, logits: Tensor, state: Any) -> JointDraw:
        """The `selected` tokens of a state, drawn together from p(x | in the language).

        Args:
            logits: (N, V) of the open tokens.

        Raises:
            ValueError: if a text cannot be in its language any more.
        """
        selected = state.selected & state.open  # (B, L)
        is_drawn = selected[state.open]
        tilted = logits.clone() if is_drawn.all() else logits[is_drawn]  # (M, V)
        tokens = torch.zeros(len(tilted), dtype=torch.long, device=logits.device)
        numbers = torch.full(selected.shape, -1, device=logits.device)
        numbers[selected] = torch.arange(len(tilted), device=logits.device)

        # Three numbers for every token, whatever is drawn of the others
        uniforms = torch.stack([rand_like(state.tokens, state.generators) for _ in range(3)])
        for named, texts in self._texts(logits, state):
            self._check_possible(named, texts, state)
            drawn = selected[texts.rows].gather(1, texts.columns) & texts.is_read  # (B, J)
            if not drawn.any():
                continue
            own = numbers[texts.rows].gather(1, texts.columns)[drawn]
            columns = texts.columns.expand(3, -1, -1)
            own_uniforms = uniforms[:, texts.rows].gather(2, columns)
            prospects, tokens[own] = texts.evaluate(drawn, own_uniforms, state.shape)
            prospects = prospects.to(logits.dtype)
            if len(own) == len(tilted):
                tilted += prospects
            else:
                tilted[own] += prospects

        # A token that the prediction excludes is the only one that is left.
        is_excluded = ~tilted.amax(dim=1).isfinite()
        tilted[is_excluded, tokens[is_excluded]] = 0.0
        return JointDraw(tilted, tokens)

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability that each text is in its language, exact for independent tokens."""
        logits = probs[state.open].clamp(min=torch.finfo(probs.dtype).tiny).log()
        total = torch.zeros(len(probs), dtype=torch.float64, device=probs.device)
        # A text without open tokens is in its language or not.
        for _, texts in self._texts(logits, state, rows=range(len(probs))):
            total = total.index_put((texts.rows,), texts.log_accepted)
        return total.to(probs.dtype)

    def _texts(
        self, logits: Tensor | None, state: Any, rows: Sequence[int] | None = None
    ) -> list[tuple[Named, StructuredTexts]]:
        """The rows that are named, or else those with open tokens; those of one language together."""
        languages = for_each_text(self.argument, self._languages, len(state.tokens), self._shared)
        log_probs = None if logits is None else open_log_probs(logits, state)
        owners = state.open.nonzero()[:, 0]

        rows_of: dict[Named, list[int]] = {}
        for row in owners.unique().tolist() if rows is None else rows:
            rows_of.setdefault(languages[row], []).append(row)
        groups = []
        for named, own_rows in rows_of.items():
            automaton = self._automata[named]
            layouts = [self._layout(state, row) for row in own_rows]
            for part in row_parts(automaton, layouts, state):
                own = log_probs
                if log_probs is not None and len(part) < len(state.tokens):
                    part_rows = torch.tensor(own_rows[part.start : part.stop], device=owners.device)
                    own = log_probs[torch.isin(owners, part_rows)]
                texts = StructuredTexts(
                    automaton,
                    own_rows[part.start : part.stop],
                    layouts[part.start : part.stop],
                    state,
                    own,
                )
                groups.append((named, texts))
        return groups

    def _layout(self, state: Any, row: int) -> RowLayout:
        return row_layout(self.tokenizer, state, row, self.with_prompt, self._special_ids)

    def _numbers(self, state: Any, texts: StructuredTexts) -> Tensor:
        """(n,) the numbers, among all open tokens, of those of some rows."""
        return torch.isin(state.open.nonzero()[:, 0], texts.rows).nonzero().flatten()

    def _check_possible(self, named: Named, texts: StructuredTexts, state: Any):
        impossible = (texts.log_accepted == -torch.inf).nonzero().flatten().tolist()
        if not impossible:
            return
        index = impossible[0]
        row = int(texts.rows[index])
        layout = self._layout(state, row)
        num_open = int((texts.numbers[index] >= 0).sum())
        limit = f"text {row}, of which {num_open} tokens are written"
        if state.end_token_ids:
            limit += " at most"

        is_given = bool(layout.given) or num_open < len(layout.columns)
        shortest = None if is_given else texts.automaton.fewest_tokens()
        missing = None
        if shortest is None:
            parts = parts_of_row(layout, state, row, texts.automaton.tokens)
            missing = texts.automaton.missing_character(parts)

        if is_given:
            pieces = list(layout.given.values())
            known = [
                int(state.tokens[row, column])
                for column in layout.columns
                if not state.open[row, column]
            ]
            shown = pieces + ([self.tokenizer.decode(known)] if known else [])
            limit += f" and {quoted_pieces(shown)} is given"

        # A tokenizer without a character leaves no match, however long the text is.
        if missing is not None:
            limit += f": no token has {missing!r}"
        elif not is_given and shortest is None:
            limit += ": no tokens of the tokenizer make up a match"
        elif shortest is not None and shortest > num_open:
            limit += f": a match has {shortest} tokens at least"
        raise ValueError(
            f"`{named.argument}` must have a match that fits into {limit}; got {named.shown}."
        )


def row_parts(automaton: TokenAutomaton, layouts: Sequence[RowLayout], state: Any) -> list[range]:
    """The rows in parts, each of as many as fit into the memory that the edges of a text may take."""
    num_places = max(len(layout.columns) for layout in layouts)
    edges = automaton.edges(LATER, state.end_token_ids)
    size = max(1, LARGEST_PART // max(1, num_places * len(edges.source)))
    firsts = range(0, len(layouts), size)
    return [range(first, min(first + size, len(layouts))) for first in firsts]


@lru_cache(maxsize=64)
def compiled(named: Named) -> ByteAutomaton:
    """The automaton of a language, kept for other controls."""
    return compile_language(named)


def shown(value: str) -> str:
    """A value for an error, cut if it is long."""
    return value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}..."


def quoted_pieces(pieces: Sequence[str]) -> str:
    return shown(" ... ".join(repr(piece) for piece in pieces))


class RegexControl(StructureControl):
    """Texts that match a regular expression, as `re.fullmatch` does. See `StructureControl` for how they are drawn.

    What is matched is the text as the pipeline returns it: behind its prompt, or with `with_prompt` from its start;
    a text that is filled in as a whole. Patterns are those of `re`, Unicode classes and flags included, but for back
    references, conditions, atomic groups, possessive quantifiers, word boundaries, MULTILINE, and look-around behind
    the start. Texts are whole characters, and a text may end in `[EOS]` wherever it matches.

    Look-aheads that a pattern starts with say what else a text must be: `(?=.*Anna)(?=.*129)(?!.*free).*` has both
    words, in any order, and not the third. The smaller the alphabet of a pattern, the smaller its automaton: in this
    one `[ -~]*` instead of the last `.*` halves it.

    Args:
        tokenizer: a fast tokenizer of transformers.
        pattern: a string or a compiled pattern, or a list with one for each text.
        with_prompt: whether the prompt is part of what is matched.

    Raises:
        ValueError: if a pattern is none, has no match, or holds what is not supported; when texts are written, if a
            text is too short for a match, what is given of it excludes all, or no token has a character that it needs.

    Example:
        >>> import torch
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.guidance import RegexControl
        >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> control = RegexControl(pipe.tokenizer, r" (yes|no), [a-z ]{5,30}[.!]")
        >>> output = pipe("do you?", controls=control, num_inference_steps=8, max_new_tokens=16)
        >>> output.texts[0].startswith(("do you? yes, ", "do you? no, "))
        True
    """

    def __init__(self, tokenizer: Any, pattern: Any, with_prompt: bool = False):
        shared = not isinstance(pattern, (list, tuple))
        patterns = [pattern] if shared else list(pattern)
        require(len(patterns) > 0, "pattern", "a pattern, or one for each text", pattern)
        languages = [
            Named(parse_pattern(one), "pattern", shown(repr(getattr(one, "pattern", one))))
            for one in patterns
        ]
        super().__init__(tokenizer, languages, shared, with_prompt)
        self.patterns = patterns


class JsonControl(StructureControl):
    """Texts that are JSON, valid under a schema. See `StructureControl` for how they are drawn.

    Schemas are of the kinds that make regular languages: objects with the properties in their order, arrays, strings,
    numbers with a bounded number of digits, `enum`, `const`, `anyOf`, and `$ref` without recursion. A keyword that is
    not supported is refused by name, and nothing is left out in silence.

    Args:
        tokenizer: a fast tokenizer of transformers.
        schema: a dictionary, or JSON text; or a list with one for each text.
        whitespace: "none"; "spaced", a space behind each comma and colon, as `json.dumps` writes; "any" of these.
        max_digits: of a whole number, and behind its point, from 1 to 30; there are fewer where a double would round
            a number to a bound.
        with_prompt: whether the prompt is part of the JSON.

    Raises:
        ValueError: if a schema is none, has no valid text or a keyword that is not supported; when texts are written,
            as `RegexControl`.

    Example:
        >>> import json
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.guidance import JsonControl
        >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> schema = {
        ...     "type": "object",
        ...     "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0}},
        ...     "required": ["name", "age"],
        ... }
        >>> control = JsonControl(pipe.tokenizer, schema)
        >>> output = pipe(controls=control, num_inference_steps=8, max_new_tokens=32)
        >>> sorted(json.loads(output.texts[0]))
        ['age', 'name']
    """

    argument = "schema"

    def __init__(
        self,
        tokenizer: Any,
        schema: Any,
        whitespace: str = "spaced",
        max_digits: int = 9,
        with_prompt: bool = False,
    ):
        shared = not isinstance(schema, (list, tuple))
        schemas = [schema] if shared else list(schema)
        require(len(schemas) > 0, "schema", "a schema, or one for each text", schema)
        parsed = [as_schema(one) for one in schemas]
        languages = [
            Named(schema_language(one, whitespace, max_digits), "schema", shown(json.dumps(one)))
            for one in parsed
        ]
        super().__init__(tokenizer, languages, shared, with_prompt)
        self.schemas = parsed


class ChoiceControl(StructureControl):
    """Texts that are one of some choices. See `StructureControl` for how they are drawn.

    Args:
        tokenizer: a fast tokenizer of transformers.
        choices: strings; or a list of such lists, one for each text.
        with_prompt: whether the prompt is part of what is chosen.

    Raises:
        ValueError: if there are no choices; when texts are written, as `RegexControl`.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.guidance import ChoiceControl
        >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> control = ChoiceControl(pipe.tokenizer, [" tea", " coffee"])
        >>> output = pipe("i would like some", controls=control, num_inference_steps=4, max_new_tokens=8)
        >>> output.texts[0] in ("i would like some tea", "i would like some coffee")
        True
    """

    argument = "choices"

    def __init__(self, tokenizer: Any, choices: Sequence[Any], with_prompt: bool = False):
        given = list(choices) if isinstance(choices, (list, tuple)) else []
        require(len(given) > 0, "choices", "a list of strings, or one for each text", choices)
        shared = isinstance(given[0], str)
        lists = [given] if shared else given
        for options in lists:
            are_strings = isinstance(options, (list, tuple)) and len(options) > 0
            are_strings = are_strings and all(isinstance(option, str) for option in options)
            require(are_strings, "choices", "strings, at least one for each text", options)
        languages = [
            Named(
                Choice(tuple(literal(option) for option in options)),
                "choices",
                shown(repr(list(options))),
            )
            for options in lists
        ]
        super().__init__(tokenizer, languages, shared, with_prompt)
        self.choices = [list(options) for options in lists]


def as_schema(schema: Any) -> Any:
    """A schema as Python values."""
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except json.JSONDecodeError as error:
        raise ValueError(f"`schema` must be JSON, got {shown(repr(schema))}: {error}.") from None
