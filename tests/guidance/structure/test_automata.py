"""Laws of automata: they accept the texts that `re.fullmatch` accepts, and the tokens that decode to these.

Shapes: S states, V vocabulary size.
"""

import random
import re

import pytest
import torch
from support.tokenizer_kinds import TOKENIZERS

from text_diffusers.guidance.structure.byte_automaton import compile_language
from text_diffusers.guidance.structure.language import Named
from text_diffusers.guidance.structure.regular_expressions import parse_pattern
from text_diffusers.guidance.structure.token_automaton import TokenAutomaton
from text_diffusers.guidance.structure.token_bytes import FIRST, LATER, token_bytes

PATTERNS = [
    r"a*b|c{2,4}",
    r"(?i:straße|K)+",
    r"[^a-c\n]*",
    r".*x.{2}",
    r"(?:ab?)*?c$",
    r"\s?\S+\Z",
    r"^(?:[0-9]{3}-)?\d{2,4}$",
    r"(a|b)*a(a|b){3}",
    r"(?s).{0,3}",
    r"|a",
    "é|日本|😀+",
    r"[^\W\d_]{1,3}",
    r"(?a:\w)+",
    r"x(?:$|y)",
    r"(?x: a b )?c",
    r"(?=.*a)(?=.*1)[ab0-3]{2,5}",
    r"(?!.*bb)(?!.*[AB]\Z)[abAB]+",
    r"(?s)(?=[é-ü]|日)(?!..\n).*",
    r"(?=)(?![^\s\S])a+",
    r"",
]
LETTERS = "abcABCxyz0123 \n-_éKkſsSßß日本😀\u2028٣"


def automaton_of(pattern):
    return compile_language(Named(parse_pattern(pattern), "pattern", repr(pattern)))


def walk_text(automaton, rng, longest=8):
    """A random text of the language, or `None` if a walk of some bytes does not come to an end."""
    state = 0
    text = b""
    for _ in range(4 * longest):
        steps = (automaton.next_state[state] != automaton.num_states).nonzero()[0]
        if automaton.accepting[state] and (not len(steps) or rng.random() < 0.3):
            return text.decode()
        byte = int(rng.choice(list(steps)))
        text += bytes([byte])
        state = int(automaton.next_state[state, byte])
    return None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_automaton_accepts_the_texts_that_match(pattern):
    automaton = automaton_of(pattern)
    rng = random.Random(0)
    texts = ["".join(rng.choices(LETTERS, k=rng.randint(0, 5))) for _ in range(1_000)]
    for text in texts:
        assert automaton.accepts(text) == bool(re.fullmatch(pattern, text)), text

    # Texts of the language itself are hardly met by chance.
    walked = [walk_text(automaton, rng) for _ in range(300)]
    found = [text for text in walked if text is not None]
    assert found
    for text in found:
        assert re.fullmatch(pattern, text), text
        changed = text[:-1] + rng.choice(LETTERS)
        assert automaton.accepts(changed) == bool(re.fullmatch(pattern, changed)), changed


@pytest.mark.parametrize(
    "pattern, reason",
    [
        (r"a(?=b)", "look-around"),
        (r"(?=a(?!b))a", "look-around"),
        (r"(?<!a)b", "look-behind"),
        (r"(?=a)(?!ab?)ab", "match some text"),
        (r"(a)\1", "a back reference"),
        (r"(a)?(?(1)b|c)", "a condition on a group"),
        (r"(?>a|ab)c", "an atomic group"),
        (r"a*+b", "a possessive quantifier"),
        (r"\bword", "a word boundary"),
        (r"(?m)^a", "anchors of lines"),
        (r"a$\n", "nothing behind"),
        (r"[a", "a regular expression, got"),
        (b"a", "a regular expression of characters"),
        (r"[^\s\S]", "match some text"),
        (r"(?:a{1000}){1000}", "smaller"),
    ],
)
def test_patterns_that_are_not_regular_or_not_possible_are_refused(pattern, reason):
    with pytest.raises(ValueError, match=f"`pattern` must .*{reason}"):
        automaton_of(pattern)


KINDS = {
    "ours": [r"the [a-c日é]+( cat)*", r"\s*\w+"],
    "uncased": [r"the( [a-z]+)*", r"[a-z]+[,.]?", r"\S* ?\S*"],
    "words": [r"the cat( .*)?", r"\S+ \S+"],
    "llama": [r"the( \w+)*", r"[é日 a-e]*"],
    "metaspace": [r" ?the( \w+)*", r"[é日 a-e]*"],
}
CASES = [(kind, pattern) for kind, patterns in KINDS.items() for pattern in patterns]


def read_tokens(automaton, edges, ids):
    state = 0
    for place, token in enumerate(ids):
        steps = edges[min(place, 1)]
        state = int(steps.next_state[state, steps.token_class[token]])
        if state == automaton.num_states:
            return False
    return bool(automaton.accepting[state])


@pytest.mark.parametrize("kind, pattern", CASES)
def test_a_token_automaton_accepts_the_tokens_whose_text_matches(kind, pattern):
    tokenizer = TOKENIZERS[kind]()
    automaton = TokenAutomaton(automaton_of(pattern), token_bytes(tokenizer))
    edges = [automaton.edges(FIRST), automaton.edges(LATER)]
    special = set(tokenizer.all_special_ids)
    usable = [token for token in range(len(tokenizer)) if token not in special]
    rng = random.Random(0)

    rows = [rng.choices(usable, k=rng.randint(1, 5)) for _ in range(300)]
    rows += [walk_tokens(automaton, edges, rng) for _ in range(300)]
    accepted = 0
    for ids in rows:
        if not ids:
            continue
        text = tokenizer.decode(ids)
        # Texts are whole characters: "\ufffd" is what a decoder shows for a part of one.
        matches = bool(re.fullmatch(pattern, text)) and "\ufffd" not in text
        assert read_tokens(automaton, edges, ids) == matches, (ids, text)
        accepted += matches
    assert accepted > 50


def walk_tokens(automaton, edges, rng):
    """Random tokens of a text of the language, without the last one in some cases."""
    state = 0
    ids = []
    for place in range(12):
        if ids and automaton.accepting[state] and rng.random() < 0.4:
            break
        steps = edges[min(place, 1)]
        leads = steps.next_state[state, steps.token_class] != automaton.num_states
        choices = leads.nonzero().flatten().tolist()
        if not choices:
            break
        ids.append(rng.choice(choices))
        state = int(steps.next_state[state, steps.token_class[ids[-1]]])
    return ids[: len(ids) - (rng.random() < 0.1)]


def test_a_tokenizer_that_rewrites_its_texts_is_refused():
    with pytest.raises(ValueError, match="`tokenizer` must be a fast tokenizer"):
        token_bytes(TOKENIZERS["slow"]())
    tokenizer = TOKENIZERS["uncased"]()
    tokenizer.clean_up_tokenization_spaces = True
    with pytest.raises(
        ValueError, match="`tokenizer` must be one with `clean_up_tokenization_spac"
    ):
        token_bytes(tokenizer)


def test_classes_of_tokens_do_the_same_in_every_state():
    tokenizer = TOKENIZERS["ours"]()
    automaton = TokenAutomaton(automaton_of(r"(the|a) [a-z]{2,6}[.!]"), token_bytes(tokenizer))
    edges = automaton.edges(LATER, [tokenizer.eos_token_id])
    values = automaton.tokens.later
    for token in range(len(tokenizer)):
        steps = edges.next_state[:-1, edges.token_class[token]]
        if token == tokenizer.eos_token_id:
            ends = torch.where(automaton.accepting[:-1], len(steps), len(steps) + 1)
            assert torch.equal(steps, ends)
            continue
        for state in range(len(steps)):
            reached = automaton.automaton.walk(state, values[token] or b"\xff")
            reached = len(steps) + 1 if reached == len(steps) else reached
            assert steps[state] == reached
