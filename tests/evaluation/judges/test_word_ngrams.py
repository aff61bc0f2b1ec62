"""The word n-gram judge against Kneser-Ney smoothing as it is written down, and as a distribution."""

import math
from collections import Counter
from itertools import pairwise

import pytest

from text_diffusers.evaluation.judges.word_ngrams import (
    END,
    START,
    UNKNOWN,
    WordNgramJudge,
    words_of,
)

TEXTS = [
    "the cat sat on the mat",
    "the dog sat on a mat",
    "a cat ran",
    "the dog ran to the cat",
] * 2


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_judge_of_words_is_a_distribution_behind_every_context(order):
    judge = WordNgramJudge(TEXTS, order)
    words = [*judge.vocabulary, UNKNOWN, END]
    contexts = [[START] * (order - 1), ["the", "cat", "sat"], ["mat", UNKNOWN, "mat"]]
    for context in contexts:
        context = context[len(context) - order + 1 :] if order > 1 else []
        total = sum(judge.probability(context, word) for word in words)
        assert total == pytest.approx(1, abs=1e-12)


def test_the_judge_of_pairs_is_kneser_ney_as_it_is_written_down():
    judge = WordNgramJudge(TEXTS, order=2)
    pairs = Counter()
    for text in TEXTS:
        pairs.update(pairwise([START, *words_of(text), END]))
    frequencies = Counter(pairs.values())
    discount = frequencies[1] / (frequencies[1] + 2 * frequencies[2]) if frequencies[1] else 0.5
    contexts = Counter(second for _, second in pairs)
    behind = Counter(contexts.values())
    lower_discount = behind[1] / (behind[1] + 2 * behind[2])
    for first, second in [("the", "cat"), ("cat", "the"), ("sat", "on"), (START, "a")]:
        count = sum(number for pair, number in pairs.items() if pair[0] == first)
        kinds = sum(1 for pair in pairs if pair[0] == first)
        uniform = 1 / (len(judge.vocabulary) + 2)
        lower = max(contexts[second] - lower_discount, 0) / len(pairs)
        lower += lower_discount * len(contexts) / len(pairs) * uniform
        expected = (
            max(pairs[first, second] - discount, 0) / count + discount * kinds / count * lower
        )
        assert judge.probability([first], second) == pytest.approx(expected, rel=1e-12)


def test_the_judge_prefers_language_and_makes_unknown_words_pay():
    judge = WordNgramJudge(TEXTS, order=3)
    shuffled = "mat the on sat cat the"
    assert judge.judge([TEXTS[0]]).perplexity < judge.judge([shuffled]).perplexity
    short, long = judge.nats("the cat qx"), judge.nats("the cat qxqx")
    assert long - short == pytest.approx(2 * math.log(27))
    verdict = judge.judge(["the cat qx"])
    assert verdict.known_words == pytest.approx(2 / 3)
    assert verdict.seen_pairs == pytest.approx(1 / 2)


def test_a_judge_needs_words_to_learn_from():
    with pytest.raises(ValueError, match="`texts` must be texts with a word"):
        WordNgramJudge([" ", ""])
    with pytest.raises(ValueError, match="`order` must be an integer of at least 1"):
        WordNgramJudge(TEXTS, order=0)
