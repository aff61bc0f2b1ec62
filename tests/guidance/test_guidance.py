"""Laws of controls: first-order tilts, length, words that must be in a text.

Whether a text holds a word is judged on its decoded characters, by a regular expression; probabilities by enumeration.
Shapes: B rows, L length, V vocabulary size, N open tokens.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from support.control_states import generators, holds, ids_of, make_state, random_logits
from support.oracles import chi_square_passes

from text_diffusers.guidance.controls import Control, LengthControl, WordsControl
from text_diffusers.guidance.soft_text import soft_text
from text_diffusers.guidance.vocabulary import continues_word
from text_diffusers.pipelines.guidance import TextState


class Linear(Control):
    """A log-probability that is linear in the soft text."""

    def __init__(self, weight, **settings):
        super().__init__(**settings)
        self.weight = weight

    def log_prob(self, probs, state):
        return (probs * self.weight).sum(dim=(1, 2))


class Quadratic(Control):
    """A log-probability under which tokens depend on each other."""

    def __init__(self, weight, **settings):
        super().__init__(**settings)
        self.weight = weight

    def log_prob(self, probs, state):
        return -((probs * self.weight).sum(dim=(1, 2)) ** 2)


@pytest.fixture
def two_rows():
    return make_state([[3, 0, 4, 0], [1, 0, 0, 2]], [[0, 1, 0, 1], [0, 1, 1, 0]])


# The base class


def test_first_order_is_bayes_rule_for_a_linear_log_probability(two_rows):
    weight = torch.randn(4, 6, dtype=torch.float64)
    logits = random_logits(two_rows, 6)
    tilted = Linear(weight, scale=1.7)(logits, two_rows)
    at_open = weight.expand(2, 4, 6)[two_rows.open]
    bayes = logits.softmax(dim=-1) * torch.exp(1.7 * at_open)
    torch.testing.assert_close(tilted.softmax(dim=-1), bayes / bayes.sum(dim=-1, keepdim=True))
    added = tilted - logits
    torch.testing.assert_close(
        (logits.softmax(dim=-1) * added).sum(dim=-1), torch.zeros(4, dtype=torch.float64)
    )


def test_the_tilt_is_the_slope_of_the_log_probability_by_finite_differences(two_rows):
    control = Quadratic(torch.randn(4, 6, dtype=torch.float64))
    logits, h = random_logits(two_rows, 6), 1e-6
    probs = logits.softmax(dim=-1)
    tilt = control(logits, two_rows) - logits
    for row, token in itertools.product(range(4), range(6)):
        towards = torch.nn.functional.one_hot(torch.tensor(token), 6) - probs[row]
        moved = [probs.clone(), probs.clone()]
        moved[0][row] += h * towards
        moved[1][row] -= h * towards
        up, down = (control.log_prob(soft_text(p, two_rows), two_rows).sum() for p in moved)
        assert float(tilt[row, token]) == pytest.approx(float(up - down) / (2 * h), abs=1e-6)


def test_controls_with_linear_scores_add_up_in_any_order(two_rows):
    first = Linear(torch.randn(4, 6, dtype=torch.float64), scale=2.0)
    second = Linear(torch.randn(4, 6, dtype=torch.float64), scale=-0.5)
    logits = random_logits(two_rows, 6)
    there = second(first(logits, two_rows), two_rows)
    back = first(second(logits, two_rows), two_rows)
    tilts = (first(logits, two_rows) - logits) + (second(logits, two_rows) - logits)
    torch.testing.assert_close(there.log_softmax(dim=-1), back.log_softmax(dim=-1))
    torch.testing.assert_close(there.log_softmax(dim=-1), (logits + tilts).log_softmax(dim=-1))


@pytest.mark.parametrize(
    "settings, progress",
    [
        ({"scale": 0.0}, 0.5),
        ({"start": 0.6}, 0.5),
        ({"stop": 0.5}, 0.5),
        ({"start": 0.2, "stop": 0.4}, 0.1),
    ],
)
def test_a_control_that_does_not_act_returns_the_very_logits(two_rows, settings, progress):
    two_rows.progress = progress
    logits = random_logits(two_rows, 6)
    assert Linear(torch.ones(4, 6), **settings)(logits, two_rows) is logits


def test_a_control_acts_from_its_start_until_before_its_stop(two_rows):
    control, logits = Linear(torch.randn(4, 6), start=0.25, stop=0.75), random_logits(two_rows, 6)
    acted = []
    for progress in (0.0, 0.25, 0.5, 0.75):
        two_rows.progress = progress
        acted.append(not torch.equal(control(logits, two_rows), logits))
    assert acted == [False, True, True, False]


def test_tilts_work_without_gradients_and_change_nothing_of_the_caller(two_rows):
    logits = random_logits(two_rows, 6)
    before = logits.clone()
    with torch.no_grad():
        tilted = Quadratic(torch.randn(4, 6))(logits, two_rows)
    assert not tilted.requires_grad and not torch.equal(tilted, logits)
    assert torch.equal(logits, before)


def test_the_mask_is_no_part_of_the_soft_text(two_rows):
    class Seen(Linear):
        def log_prob(self, probs, state):
            self.probs = probs.detach()
            return super().log_prob(probs, state)

    control = Seen(torch.ones(4, 6))
    two_rows.mask_token_id = 5
    control(random_logits(two_rows, 6), two_rows)
    assert (control.probs[..., 5] == 0).all()
    torch.testing.assert_close(control.probs.sum(dim=-1), torch.ones(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    "settings", [{"scale": math.nan}, {"scale": True}, {"start": 0.8, "stop": 0.2}, {"stop": 2}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="`(scale|start` and `stop)` must be"):
        Control(**settings)


def test_text_with_ids_above_the_logits_is_refused(two_rows):
    with pytest.raises(
        ValueError, match="`logits` must have at least 5 tokens, for those of the text, got 4"
    ):
        Linear(torch.ones(4, 4))(random_logits(two_rows, 4), two_rows)


# Length


def test_lengths_are_uniform_within_the_tolerance():
    counts = np.bincount(LengthControl(6, tolerance=2).plan_lengths(generators(4000)), minlength=12)
    probs = np.zeros(12)
    probs[4:9] = 1 / 5
    assert chi_square_passes(counts, probs)
    short = np.bincount(LengthControl(2, tolerance=3).plan_lengths(generators(4000)), minlength=6)
    assert chi_square_passes(short, [0, 0.2, 0.2, 0.2, 0.2, 0.2])


def test_a_length_takes_one_number_of_its_own_generator():
    control = LengthControl([5, 50], tolerance=4)
    both = generators(2)
    planned = control.plan_lengths(both)
    assert planned[1] == LengthControl(50, tolerance=4).plan_lengths(generators(1, seed=1))[0]
    reference = generators(2)
    for ours, theirs in zip(both, reference, strict=True):
        torch.rand(1, generator=theirs, dtype=torch.float64)
        assert torch.equal(ours.get_state(), theirs.get_state())
    assert LengthControl([3, 7]).plan_lengths(generators(2)) == [3, 7]


def test_no_end_may_come_before_the_length_and_only_the_end_is_forbidden(two_rows):
    logits = random_logits(two_rows, 6)
    got = LengthControl(4, eos_token_id=2)(logits, two_rows)
    assert (got[:, 2] == -torch.inf).all()
    kept = [0, 1, 3, 4, 5]
    assert torch.equal(got[:, kept], logits[:, kept]) and torch.isfinite(logits).all()
    nothing_else = torch.full_like(logits, -torch.inf)
    nothing_else[:, 2] = 0
    assert torch.equal(LengthControl(4, eos_token_id=2)(nothing_else, two_rows), nothing_else)


def test_the_log_probability_of_a_length_is_that_of_no_end_by_enumeration(two_rows):
    probs = random_logits(two_rows, 6).softmax(dim=-1)
    got = LengthControl(4, eos_token_id=2).log_prob(soft_text(probs, two_rows), two_rows)
    for row, (a, b) in enumerate([(0, 1), (2, 3)]):
        tokens = [t for t in range(6) if t != 2]
        want = sum(float(probs[a, x] * probs[b, y]) for x, y in itertools.product(tokens, tokens))
        assert float(got[row]) == pytest.approx(math.log(want))


@pytest.mark.parametrize("arguments", [(0,), ([3, -1],), ([],), (4, -1), (4, 0, -2), (4.0,)])
def test_lengths_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="`(length|tolerance|eos_token_id)` must be"):
        LengthControl(*arguments)
    with pytest.raises(ValueError, match="`length` must be one for each of the 3 texts, got 2"):
        LengthControl([3, 4]).plan_lengths(generators(3))


# Words


def supported_logits(state, vocab_size, support, seed=0):
    """Logits under which only the tokens of `support` are possible."""
    logits = torch.full((int(state.open.sum()), vocab_size), -torch.inf, dtype=torch.float64)
    logits[:, support] = random_logits(state, len(support), seed)
    return logits


def enumerated(tokenizer, state, logits, support, words):
    """p(words in text), and p(x_i = v | words in text) (N, V), of one row, by all its texts."""
    places = state.open[0].nonzero().flatten().tolist()
    probs, total, joint = logits.softmax(dim=-1), 0.0, torch.zeros_like(logits)
    last = int(state.attention_mask[0].sum())
    for choice in itertools.product(support, repeat=len(places)):
        ids = state.tokens[0].clone()
        ids[places] = torch.tensor(choice)
        if holds(tokenizer, ids[state.starts[0] : last].tolist(), words):
            weight = float(torch.stack([probs[i, v] for i, v in enumerate(choice)]).prod())
            total += weight
            for i, v in enumerate(choice):
                joint[i, v] += weight
    return total, joint / total


WORD_CASES = {
    "one word": (["cat"], ["Ġcat", "cat", "Ġthe", "s", "[EOS]"], 3),
    "one of two places to each": (["cat", "dog"], ["Ġcat", "Ġdog", "cat", "Ġthe", "s"], 3),
    "two tokens": (["train"], ["Ġtr", "tr", "ain", "Ġthe", "s"], 4),
    "three tokens": (["happy", "dog"], ["Ġ", "hap", "py", "Ġdog", "s"], 4),
    "a phrase and a word of it": (["the cat", "cat"], ["Ġthe", "the", "Ġcat", "cat", "[EOS]"], 4),
    "one word begins another": (["cat", "cats"], ["Ġcat", "cat", "s", "Ġthe"], 4),
}


@pytest.mark.parametrize("name", WORD_CASES)
@pytest.mark.parametrize("layout", ["all open", "given words"])
def test_words_tilt_to_the_exact_marginals_of_texts_that_hold_them(tokenizer, name, layout):
    words, pieces, length = WORD_CASES[name]
    support, eos = ids_of(tokenizer, *pieces), tokenizer.eos_token_id
    tokens, is_open = [[eos] + [0] * length], [[0] + [1] * length]
    if layout == "given words":  # a token at the start, one in the middle, and an end
        the, was = ids_of(tokenizer, "the", "Ġwas")
        tokens, is_open = [[eos, the, 0, 0, 0, was, 0, eos]], [[0, 0, 1, 1, 1, 0, 1, 0]]
    state = make_state(tokens, is_open)
    logits = supported_logits(state, len(tokenizer), support)
    control = WordsControl(tokenizer, words)
    total, marginals = enumerated(tokenizer, state, logits, support, words)
    assert 0 < total < 1
    torch.testing.assert_close(
        control(logits, state).softmax(dim=-1), marginals, atol=1e-12, rtol=1e-10
    )
    soft = soft_text(logits.softmax(dim=-1), state)
    assert float(control.log_prob(soft, state)) == pytest.approx(math.log(total), rel=1e-10)


def test_the_slope_of_the_log_probability_of_words_is_the_tilt(tokenizer):
    state = make_state([[0] * 5], [[0, 1, 1, 1, 1]])
    logits = supported_logits(
        state, len(tokenizer), ids_of(tokenizer, "Ġcat", "Ġdog", "Ġtr", "ain", "s")
    )
    control = WordsControl(tokenizer, ["cat", "train"])
    probs = logits.softmax(dim=-1)
    leaf = probs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(control.log_prob(soft_text(leaf, state), state).sum(), leaf)
    possible = probs > 0
    torch.testing.assert_close(
        slope[possible], torch.exp(control(logits, state) - logits)[possible]
    )


def test_the_scale_multiplies_the_tilt_of_words(tokenizer):
    state = make_state([[0] * 5], [[0, 1, 1, 1, 1]])
    logits = random_logits(state, len(tokenizer))
    once, twice = (
        WordsControl(tokenizer, "cat", scale=scale)(logits, state) - logits for scale in (1, 2)
    )
    torch.testing.assert_close(twice, 2 * once)
    with pytest.raises(ValueError, match="`scale` must be at least 0"):
        WordsControl(tokenizer, "cat", scale=-1)


def test_words_that_are_there_cost_nothing(tokenizer):
    the, cat = ids_of(tokenizer, "the", "Ġcat")
    row = [tokenizer.eos_token_id, the, cat, cat, 0, 0]
    state = make_state([row], [[0, 0, 0, 0, 1, 1]], last=True)
    logits = random_logits(state, len(tokenizer))
    torch.testing.assert_close(
        WordsControl(tokenizer, ["cat", "the"])(logits, state), logits, atol=1e-12, rtol=0
    )


def test_words_do_not_depend_on_the_other_rows_of_the_batch(tokenizer):
    the, cat, eos = *ids_of(tokenizer, "the", "Ġcat"), tokenizer.eos_token_id
    tokens = [[eos, the, 0, 0, 0, eos], [eos, 0, cat, 0, eos, 0], [eos, the, eos, 0, 0, 0]]
    is_open = [[0, 0, 1, 1, 1, 0], [0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    real = torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 6])
    state = make_state(tokens, is_open, [1, 1, 3], attention_mask=real)
    logits = random_logits(state, len(tokenizer))
    control = WordsControl(tokenizer, ["cat", "dog"])
    together = control(logits, state).split(state.open.sum(dim=1).tolist())
    for row, own in enumerate(logits.split(state.open.sum(dim=1).tolist())):
        width = int(real[row].sum())
        alone = make_state([tokens[row][:width]], [is_open[row][:width]], [state.starts[row]])
        torch.testing.assert_close(control(own, alone), together[row])


@pytest.mark.parametrize(
    "words, free_length",
    mostly_slow(
        itertools.product(
            ["cat", "cat, dog, the", "train, happy", "cat, cats, the cat sat"], [False, True]
        ),
        fast=[("cat", True), ("cat, dog, the", False), ("cat, cats, the cat sat", True)],
    ),
)
def test_every_text_that_is_written_holds_its_words(tokenizer, words, free_length):
    """Random predictions, which hardly ever hold the words, revealed in random order and number."""
    words = words.split(", ")
    control, eos, vocab_size = (
        WordsControl(tokenizer, words),
        tokenizer.eos_token_id,
        len(tokenizer),
    )
    shortest = len(tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    for case in range(40):
        length = shortest + case % 4
        tokens = torch.full((2, length + 2), eos)
        is_open = torch.zeros_like(tokens, dtype=torch.bool)
        is_open[:, 1 : length + 1] = True
        steps = 1 + case % 5
        for step in range(steps):
            last = step == steps - 1
            selected = is_open & (
                torch.rand(is_open.shape, generator=generator) < (1 if last else 0.4)
            )
            state = TextState(
                tokens,
                is_open,
                ~is_open,
                torch.ones_like(tokens),
                [1, 1],
                0.5,
                step / steps,
                last,
                selected,
            )
            logits = 3 * torch.randn(int(is_open.sum()), vocab_size, generator=generator)
            logits[:, eos] += 9 if free_length else -torch.inf
            weights = control(logits, state).softmax(dim=-1)
            drawn = torch.zeros_like(tokens)
            drawn[is_open] = torch.multinomial(weights, 1, generator=generator).squeeze(1)
            tokens = torch.where(selected, drawn, tokens)
            is_open = is_open & ~selected
        for row in tokens[:, 1:].tolist():
            assert holds(tokenizer, row, words), tokenizer.decode(row)


def test_words_are_forced_at_their_likeliest_places(tokenizer):
    eos, (cat, dog, the) = tokenizer.eos_token_id, ids_of(tokenizer, "Ġcat", "Ġdog", "Ġthe")
    state = make_state([[eos, the, 0, 0, 0, eos]], [[0, 0, 1, 1, 1, 0]], last=True)
    logits = torch.zeros(3, len(tokenizer), dtype=torch.float64)
    logits[1, cat], logits[2, cat], logits[2, dog] = (
        3.0,
        4.0,
        9.0,
    )  # cat at 2 and dog at 1 would be less likely
    logits[0, cat] = -50.0
    got = WordsControl(tokenizer, ["cat", "dog"])(logits, state)
    weights = got.softmax(dim=-1)
    assert weights[1, cat] == 1 and weights[2, dog] == 1
    logits[
        0, eos
    ] = -torch.inf  # the other place is as it was predicted, but no end comes before the words
    assert torch.equal(got[0], logits[0])


def test_no_end_is_drawn_beside_the_last_word_before_it(tokenizer):
    """Both are likely, but each is drawn without the other, and without the word the end would be too early."""
    eos = tokenizer.eos_token_id
    selected = torch.tensor([[False, True, True, False]])
    state = make_state([[eos, 0, 0, 0]], [[0, 1, 1, 1]], selected=selected)
    control, logits = WordsControl(tokenizer, "cat"), random_logits(state, len(tokenizer))
    assert (control(logits, state)[:, eos] > -torch.inf).tolist() == [False, False, True]
    state.selected = torch.tensor([[False, False, True, False]])
    assert (control(logits, state)[:, eos] > -torch.inf).tolist() == [False, True, True]


def test_forced_words_overrule_what_the_prediction_excludes(tokenizer):
    eos, cat = tokenizer.eos_token_id, ids_of(tokenizer, "Ġcat")[0]
    state = make_state([[eos, 5, 0, eos]], [[0, 0, 1, 0]], last=True)
    logits = torch.zeros(1, len(tokenizer))
    logits[0, cat] = -torch.inf
    weights = WordsControl(tokenizer, "cat")(logits, state).softmax(dim=-1)
    assert weights[0, cat] == 1


def test_in_the_last_step_words_go_to_what_is_drawn_if_they_can(tokenizer):
    """A kernel that revises tokens leaves those that it does not select as they are."""
    cat, the = ids_of(tokenizer, "Ġcat", "Ġthe")
    selected = torch.tensor([[False, False, True, False]])
    state = make_state([[0, the, the, the]], [[0, 1, 1, 1]], last=True, selected=selected)
    logits = torch.zeros(3, len(tokenizer))
    logits[0, cat] = logits[2, cat] = 9.0
    assert WordsControl(tokenizer, "cat")(logits, state).softmax(dim=-1)[1, cat] == 1


def test_words_without_room_are_refused(tokenizer):
    eos, the = tokenizer.eos_token_id, ids_of(tokenizer, "the")[0]
    control = WordsControl(tokenizer, ["cat", "dog"])
    for row, is_open, progress in [([eos, 0, eos], [0, 1, 0], 0.0), ([eos, 0], [0, 1], 0.5)]:
        short, message = (
            make_state([row], [is_open], progress=progress),
            f"1 of its {len(row) - 1} tokens",
        )
        with pytest.raises(
            ValueError, match=r"`words` must fit into the text: \['cat', 'dog'\].* " + message
        ):
            control(torch.zeros(1, len(tokenizer)), short)
    taken = make_state([[eos, the, the, 0, eos]], [[0, 0, 0, 1, 0]])
    with pytest.raises(ValueError, match="`words` must fit into the text"):
        control(torch.zeros(1, len(tokenizer)), taken)
    taken.progress = 0.5  # it may have written these tokens while the control did not act
    assert torch.equal(
        control(torch.zeros(1, len(tokenizer)), taken), torch.zeros(1, len(tokenizer))
    )


@pytest.mark.parametrize(
    "words", [[], "", [" "], ["cat", 3], [str(i) for i in range(9)], ["[MASK]"]]
)
def test_words_that_are_none_are_refused(tokenizer, words):
    with pytest.raises(ValueError, match="`words` must be"):
        WordsControl(tokenizer, words)


def test_tokens_that_continue_a_word_are_known_by_their_first_character(tokenizer):
    continues = continues_word(tokenizer)
    assert continues[ids_of(tokenizer, "he", "s", "7", "_", "Ã")].all()
    assert not continues[
        ids_of(tokenizer, "Ġthe", "Ġ", ",", ".", "'", "Ċ", "[EOS]", "[MASK]")
    ].any()
