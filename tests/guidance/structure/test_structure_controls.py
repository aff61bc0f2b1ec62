"""Laws of structure controls by themselves: tilts and joint draws against the enumeration of all texts.

Whether a text is right is judged by `re` on its decoded characters. Shapes: B rows, V vocabulary size, N open tokens.
"""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from support.control_states import generators, ids_of, make_state, random_logits
from support.oracles import chi_square_passes
from support.tokenizer_kinds import TOKENIZERS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from text_diffusers.common.token_ids import noise_vocabulary, unwritable_ids
from text_diffusers.guidance import ChoiceControl, RegexControl
from text_diffusers.guidance.soft_text import soft_text
from text_diffusers.guidance.structure.token_bytes import token_bytes
from text_diffusers.pipelines.given_text import GivenText

PIECES = ["the", "Ġcat", "Ġdog", "Ġ", "s", "[EOS]"]


def supported_logits(state, vocab_size, support, seed=0):
    """Logits under which only the tokens of `support` are possible."""
    logits = torch.full((int(state.open.sum()), vocab_size), -torch.inf, dtype=torch.float64)
    logits[:, support] = random_logits(state, len(support), seed)
    return logits


def is_right(tokenizer, pattern, ids, ends):
    for place, token in enumerate(ids):
        if token in ends:
            ids = ids[:place]
            break
    if tokenizer.eos_token_id in ids:
        return False  # an end that ends nothing is not written
    return re.fullmatch(pattern, tokenizer.decode(ids)) is not None


def enumerated(tokenizer, state, logits, support, pattern):
    """All choices of the open tokens of one row with their probabilities, 0 if the text does not match."""
    places = state.open[0].nonzero().flatten().tolist()
    probs = logits.softmax(dim=-1)
    joint = {}
    for choice in itertools.product(support, repeat=len(places)):
        ids = state.tokens[0].clone()
        ids[places] = torch.tensor(choice)
        weight = math.prod(float(probs[i, token]) for i, token in enumerate(choice))
        start = state.starts[0]
        right = is_right(tokenizer, pattern, ids[start:].tolist(), state.end_token_ids)
        joint[choice] = weight * right
    return joint


# A pattern, tokens before, between and behind the open ones, and whether texts may end early
CASES = {
    "all open": (r"the( cat| dog)*s?", None, True),
    "of the whole length": (r"(the|s)( cat| dog| )*", None, False),
    "an end": (r"(the)? ?(cat|dog)?s?", None, True),
    "known tokens": (r"the.*s dog.*", ["the", None, "s", None, None], False),
}


def state_of(tokenizer, known, ends, batch=1, **changes):
    eos = tokenizer.eos_token_id
    if known is None:
        known = [None] * 4
    row = [eos] + [0 if piece is None else ids_of(tokenizer, piece)[0] for piece in known]
    is_open = [0] + [int(piece is None) for piece in known]
    end_ids = [eos] if ends else []
    return make_state([row] * batch, [is_open] * batch, end_token_ids=end_ids, **changes)


@pytest.mark.parametrize("name", CASES)
def test_the_tilt_is_that_of_all_texts_that_match(tokenizer, name):
    pattern, known, ends = CASES[name]
    state = state_of(tokenizer, known, ends)
    support = ids_of(tokenizer, *PIECES)
    logits = supported_logits(state, len(tokenizer), support)
    control = RegexControl(tokenizer, pattern)

    joint = enumerated(tokenizer, state, logits, support, pattern)
    total = sum(joint.values())
    assert 0 < total < 1
    marginals = torch.zeros_like(logits)
    for choice, weight in joint.items():
        for place, token in enumerate(choice):
            marginals[place, token] += weight / total
    tilted = control(logits, state).softmax(dim=-1)
    torch.testing.assert_close(tilted, marginals, atol=1e-12, rtol=1e-10)
    soft = soft_text(logits.softmax(dim=-1), state)
    assert float(control.log_prob(soft, state)) == pytest.approx(math.log(total), rel=1e-10)


def test_the_log_probability_of_a_text_without_open_tokens_says_whether_it_matches(tokenizer):
    eos = tokenizer.eos_token_id
    dog, cat = ids_of(tokenizer, "Ġdog", "Ġcat")
    rows = [[eos, dog, dog], [eos, dog, cat], [eos, dog, 0]]
    state = make_state(rows, [[0, 0, 0], [0, 0, 0], [0, 0, 1]], end_token_ids=[])
    logits = supported_logits(state, len(tokenizer), [dog, cat])
    found = RegexControl(tokenizer, " dog dog").log_prob(
        soft_text(logits.softmax(dim=-1), state), state
    )
    assert found.tolist() == [0, -math.inf, pytest.approx(float(logits.log_softmax(-1)[0, dog]))]


def test_gaps_in_the_ids_of_a_tokenizer_are_no_text():
    words = {"red": 0, "dog": 4, "cat": 9}
    backend = Tokenizer(models.WordLevel(words, unk_token="red"))
    backend.decoder = decoders.ByteFallback()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="red")
    found = token_bytes(tokenizer)
    assert {id: text for id, text in enumerate(found.first) if text} == {4: b"dog", 9: b"cat"}
    assert unwritable_ids(tokenizer, 12) == [1, 2, 3, 5, 6, 7, 8, 10, 11]
    assert noise_vocabulary(tokenizer) == 10


@pytest.mark.parametrize(
    "name, temperature",
    mostly_slow(
        list(itertools.product(CASES, [None, 0.7])),
        fast=[("all open", 0.7), ("known tokens", None)],
    ),
)
def test_tokens_are_drawn_together_from_the_texts_that_match(tokenizer, name, temperature):
    pattern, known, ends = CASES[name]
    batch = 1_000
    one = state_of(tokenizer, known, ends)
    support = ids_of(tokenizer, *PIECES)
    logits = supported_logits(one, len(tokenizer), support)
    joint = enumerated(tokenizer, one, logits, support, pattern)
    choices = list(joint)

    # The second open token stays open, and is of no influence on the law of the others.
    drawn = [place for place in range(len(logits)) if place != 1]
    wanted = shaped_law(joint, drawn, temperature)
    state = state_of(tokenizer, known, ends, batch)
    columns = state.open[0].nonzero().flatten()
    state.selected = torch.zeros_like(state.open)
    state.selected[:, columns[drawn]] = True
    state.generators = generators(batch)
    if temperature is not None:
        state.shape = lambda scores: scores / temperature
    draw = RegexControl(tokenizer, pattern).draw(logits.repeat(batch, 1), state)

    numbers = {choice: index for index, choice in enumerate(wanted)}
    counts = np.zeros(len(numbers))
    for row in draw.tokens.view(batch, -1).tolist():
        counts[numbers[tuple(row)]] += 1
    assert chi_square_passes(counts, list(wanted.values()))
    assert len(choices) > len(numbers)


def shaped_law(joint, drawn, temperature):
    """p(drawn tokens | match) by enumeration: one after the other, each conditional sharpened by a temperature."""
    law = {}
    for choice, weight in joint.items():
        key = tuple(choice[place] for place in drawn)
        law[key] = law.get(key, 0.0) + weight
    total = sum(law.values())
    law = {key: weight / total for key, weight in law.items()}
    if temperature is None:
        return law

    def beginnings(number):
        sums = {}
        for key, weight in law.items():
            sums[key[:number]] = sums.get(key[:number], 0.0) + weight
        return sums

    shaped = dict.fromkeys(law, 1.0)
    for number in range(1, len(drawn) + 1):
        sharpened = {key: weight ** (1 / temperature) for key, weight in beginnings(number).items()}
        before = {}
        for key, weight in sharpened.items():
            before[key[:-1]] = before.get(key[:-1], 0.0) + weight
        for key in shaped:
            scale = before[key[: number - 1]]
            shaped[key] *= sharpened[key[:number]] / scale if scale > 0 else 0.0
    return shaped


def test_no_number_is_too_small_for_a_long_text(tokenizer):
    """A text whose probability is below that of any float is drawn all the same."""
    pattern = r"(?:the cat s){30}"
    state = make_state([[0] * 151], [[0] + [1] * 150])
    state.selected = state.open
    state.generators = generators(1)
    logits = random_logits(state, len(tokenizer)) * 20
    draw = RegexControl(tokenizer, pattern).draw(logits, state)
    assert tokenizer.decode(draw.tokens.tolist()) == "the cat s" * 30


def test_where_a_prediction_excludes_all_texts_the_fewest_excluded_tokens_are_written(tokenizer):
    the, cat, dog, sat = ids_of(tokenizer, "the", "Ġcat", "Ġdog", "Ġsat")
    state = make_state([[0] * 4], [[0, 1, 1, 1]])
    state.selected = state.open
    state.generators = generators(1)
    logits = torch.full((3, len(tokenizer)), -torch.inf, dtype=torch.float64)
    logits[0, the] = logits[1, dog] = logits[2, sat] = 0.0
    draw = RegexControl(tokenizer, r"the cat sat|cat dog cat|the cat cat").draw(logits, state)
    assert draw.tokens.tolist() == [the, cat, sat]
    assert draw.logits.amax(dim=1).isfinite().all()


def test_a_draw_does_not_depend_on_the_other_rows_of_the_batch(tokenizer):
    eos = tokenizer.eos_token_id
    (the,) = ids_of(tokenizer, "the")
    tokens = [[eos, the, 0, 0, 0], [eos, 0, 0, 0, eos], [eos, 0, 0, 0, 0]]
    is_open = [[0, 0, 1, 1, 1], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0]]
    real = torch.tensor([[1] * 5, [1] * 5, [1, 1, 1, 1, 0]])
    patterns = [r"the( .*)?", r"[a-d ]*", r"\S+"]
    tokens[2][2] = the
    state = make_state(tokens, is_open, attention_mask=real, end_token_ids=[eos])
    state.selected = state.open
    state.generators = generators(3)
    logits = random_logits(state, len(tokenizer))
    control = RegexControl(tokenizer, patterns)
    together = control.draw(logits, state)

    counts = state.open.sum(dim=1).tolist()
    parts = zip(together.tokens.split(counts), logits.split(counts), strict=True)
    for row, (drawn, own) in enumerate(parts):
        width = int(real[row].sum())
        alone = make_state([tokens[row][:width]], [is_open[row][:width]], end_token_ids=[eos])
        alone.selected = alone.open
        alone.generators = generators(3)[row : row + 1]
        assert torch.equal(RegexControl(tokenizer, patterns[row]).draw(own, alone).tokens, drawn)


def test_given_characters_are_read_as_they_are(tokenizer):
    """A tokenizer may lose the case of what is given: the pattern is of the text that comes back."""
    state = make_state(
        [[0, *ids_of(tokenizer, "the"), 0, *ids_of(tokenizer, "Ġdog"), 0]], [[0, 0, 1, 0, 1]]
    )
    state.given_texts = [GivenText(["THE", " DOG", "!"], [(2, 3), (4, 5)])]
    state.selected = state.open
    state.generators = generators(1)
    control = RegexControl(tokenizer, r"THE [a-z]+ DOG\w!")
    logits = random_logits(state, len(tokenizer))
    tokens = state.tokens[0].clone()
    tokens[state.open[0]] = control.draw(logits, state).tokens
    text = state.given_texts[0].with_written(tokenizer, tokens.tolist(), start=1)
    assert re.fullmatch(r"THE [a-z]+ DOG\w!", text)


@pytest.mark.parametrize(
    "pattern, known, reason",
    [
        (r"(?:the cat ){4}", None, r"4 tokens are written.*a match has \d+ tokens at least"),
        (r"cat.*", ["the", None, None], r"'the' is given"),
    ],
)
def test_texts_that_cannot_match_are_refused(tokenizer, pattern, known, reason):
    state = state_of(tokenizer, known, ends=False)
    control = RegexControl(tokenizer, pattern)
    with pytest.raises(ValueError, match=f"`pattern` must have a match that fits.*{reason}"):
        control.check_texts(state)
    state.selected = state.open
    state.generators = generators(1)
    with pytest.raises(ValueError, match="`pattern` must have a match that fits"):
        control.draw(random_logits(state, len(tokenizer)), state)


def tokenizer_of_words(*words):
    """Whole words, between which there is a blank; behind them are those that end a text and hide a token."""
    special = {"eos_token": "[EOS]", "mask_token": "[MASK]"}
    names = [*words, *special.values()]
    vocabulary = {word: number for number, word in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[EOS]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


WORDS = ["the", "cat", "dog", "é"]


@pytest.mark.parametrize(
    "pattern, known, character, word",
    [
        (r"the zoo", None, "z", "zoo"),
        # One that is in all texts, and not one that others may stand for
        (r"the (dog|[x-z]+) ж", None, "ж", "ж"),
        (r"(the|q) cat( dog| j)+, cat", None, ",", "dog,"),
        # Of texts that lack several the one that lacks the fewest
        (r"the (xyz|wet|wild) dog", None, "w", "wet"),
        # One that can be shown
        (r"the [\x01-\x1f!-+]", None, "!", "!"),
        # Of what is given the characters need no token, and its texts go on from there.
        (r"the [xyz]+ cat|dog.*", ["the", None, None], "x", "xyz"),
        (r"(the|dog) (cat|x) dog я.*", [None, "cat", "dog", None], "я", "я"),
    ],
)
def test_the_error_names_a_character_that_no_token_has(pattern, known, character, word):
    """With a token for it there is a match."""
    tokenizer = tokenizer_of_words(*WORDS)
    state = state_of(tokenizer, known, ends=known is None)
    reason = re.escape(f"no token has {character!r}")
    given = "" if known is None else " and '.*' is given"
    with pytest.raises(ValueError, match=f"tokens are written( at most)?{given}: {reason}; got"):
        RegexControl(tokenizer, pattern).check_texts(state)

    assert not any(character in one for one in WORDS)
    larger = tokenizer_of_words(*WORDS, word)
    RegexControl(larger, pattern).check_texts(state_of(larger, known, ends=known is None))


@pytest.mark.parametrize(
    "pattern, known, reason",
    [
        (r"tac", None, ": no tokens of the tokenizer make up a match; got"),
        (r"the cat dog the cat", None, ": a match has 5 tokens at least; got"),
        (r"z", ["the", None], "'the' is given; got"),
        (r"the (cat|zoo) dog", ["the", None, None, None], "'the' is given; got"),
    ],
)
def test_no_character_is_named_where_there_are_tokens_for_all(pattern, known, reason):
    tokenizer = tokenizer_of_words(*WORDS)
    with pytest.raises(ValueError, match=f"`pattern` must have a match that fits.*{reason}"):
        RegexControl(tokenizer, pattern).check_texts(state_of(tokenizer, known, ends=known is None))


@pytest.mark.parametrize("kind", ["ours", "llama", "gpt2"])
def test_tokens_of_bytes_have_all_characters(kind):
    """A character of several bytes is written by several tokens."""
    tokenizer = TOKENIZERS[kind]()
    state = make_state([[0] * 3], [[0, 1, 1]])
    with pytest.raises(ValueError, match="a match has [4-8] tokens at least; got"):
        RegexControl(tokenizer, "日本").check_texts(state)
    with pytest.raises(ValueError, match="'the' is given; got"):
        known = tokenizer.encode("the", add_special_tokens=False)
        state = make_state([[0, *known, 0]], [[0, *[0] * len(known), 1]])
        RegexControl(tokenizer, "the日本").check_texts(state)


def test_a_character_that_is_given_needs_no_token():
    """The text that is read with its prompt begins with a letter that the tokenizer has lost."""
    tokenizer = tokenizer_of_words(*WORDS)
    state = make_state([[0, 0, 0]], [[0, 0, 1]])
    state.given_texts = [GivenText(["Ünë", ""], [(2, None)])]
    control = RegexControl(tokenizer, "Ünë zoo", with_prompt=True)
    with pytest.raises(ValueError, match="and 'Ünë' is given: no token has 'z'; got"):
        control.check_texts(state)


def test_arguments_that_make_no_control_are_refused(tokenizer):
    with pytest.raises(ValueError, match="`choices` must be"):
        ChoiceControl(tokenizer, [])
    with pytest.raises(ValueError, match="`choices` must be"):
        ChoiceControl(tokenizer, "yes")
    with pytest.raises(ValueError, match="`with_prompt` must be"):
        RegexControl(tokenizer, "a", with_prompt="yes")
    state = state_of(tokenizer, None, ends=True, batch=2)
    with pytest.raises(ValueError, match="`pattern` must be one for each of the 2 texts, got 3"):
        RegexControl(tokenizer, ["a", "b", "c"]).check_texts(state)
