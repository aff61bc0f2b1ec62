"""Judges by their names, and figures of texts against counts by hand."""

import math

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from support.masked_lms import make_masked_lm
from transformers import GPT2Config, GPT2LMHeadModel

from text_diffusers.evaluation import distinct_n, generative_perplexity, self_bleu, token_entropy
from text_diffusers.evaluation.judges import (
    LanguageModelJudge,
    WordNgramJudge,
    load_named_judge,
    repetition,
    shares_origin,
    text_figures,
)
from text_diffusers.evaluation.judges.text_figures import length_figure, self_bleu_figure

WORDS = ["a cat sat", "a cat ran a cat ran a cat ran", "", "so it goes"]


def make_gpt2(tokenizer, **changes):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes | special | changes))


def test_a_folder_is_opened_as_a_judge_and_agrees_with_generative_perplexity(tokenizer, tmp_path):
    model = make_gpt2(tokenizer)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    judge = load_named_judge(str(tmp_path))
    texts = [*SENTENCES, "", "a"]
    nats, counts = judge.text_nats(texts)
    found = generative_perplexity(texts, model, tokenizer)
    assert float(nats.sum()) / int(counts.sum()) == pytest.approx(found.nats_per_token, rel=1e-6)
    assert int(counts.sum()) == found.num_tokens and found.num_skipped == int((counts == 0).sum())

    # Each text by itself, and no more of it than the judge takes
    for text, text_nats in zip(SENTENCES, nats, strict=False):
        alone = generative_perplexity([text], model, tokenizer)
        assert float(text_nats) == pytest.approx(alone.nats_per_token * alone.num_tokens, rel=1e-5)
    assert judge.text_nats([" ".join(SENTENCES * 3)])[1].tolist() == [31]


def test_a_judge_of_words_learns_from_the_texts_of_a_file(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES * 2) + "\n")
    judge = load_named_judge(f"words:{tmp_path / 'texts.txt'}")
    known = WordNgramJudge(SENTENCES * 2)
    nats, counts = judge.text_nats(SENTENCES)
    np.testing.assert_allclose(nats, [known.nats(text) for text in SENTENCES], rtol=1e-12)
    assert counts.tolist() == [len(text.split()) + 1 for text in SENTENCES]  # ends count
    verdict = known.judge(SENTENCES)
    assert float(nats.sum() / counts.sum()) == pytest.approx(verdict.nats_per_word)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("words:", ValueError, "must name a file behind 'words:'"),
        ("words:none.txt", FileNotFoundError, "none.txt"),
        ("no/such-judge", OSError, "no/such-judge"),
    ],
)
def test_a_judge_that_cannot_be_had_is_named(name, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        load_named_judge(name)


def test_a_judge_of_the_same_architecture_size_and_vocabulary_is_kin(tokenizer):
    model = make_gpt2(tokenizer)
    further_trained = make_gpt2(tokenizer)
    torch.nn.init.normal_(further_trained.transformer.wte.weight)
    assert shares_origin(model, tokenizer, LanguageModelJudge(further_trained, tokenizer))
    wider = LanguageModelJudge(make_gpt2(tokenizer, n_embd=32), tokenizer)
    assert not shares_origin(model, tokenizer, wider)
    assert not shares_origin(model, tokenizer, WordNgramJudge(SENTENCES * 2))
    bert, bert_tokenizer = make_masked_lm("bert")
    assert not shares_origin(bert, bert_tokenizer, wider)
    assert not shares_origin(model, bert_tokenizer, LanguageModelJudge(model, tokenizer))


def test_figures_are_those_of_the_metrics_by_themselves():
    tokens = [text.split() for text in WORDS]
    nats = torch.tensor([3.0, 10.0, 0.0, 5.0]).double()
    counts = torch.tensor([3, 9, 0, 3])
    found = text_figures(WORDS, tokens, (nats, counts), "word")
    assert (found.num_texts, found.num_empty, found.num_judged_units) == (4, 1, 15)
    assert found.length.value == pytest.approx((3 + 9 + 0 + 3) / 4)
    assert found.token_entropy.value == pytest.approx(token_entropy(tokens))
    for n in (1, 2, 3):
        assert getattr(found, f"distinct_{n}").value == distinct_n(WORDS, n)
    assert found.self_bleu.value == pytest.approx(self_bleu(WORDS))
    assert found.num_bleu_texts == 4
    few = text_figures(WORDS, tokens, max_bleu_texts=3)
    assert few.num_bleu_texts == 3 and few.self_bleu.value == pytest.approx(self_bleu(WORDS[:3]))
    # Of the six 4-grams of the second text three stand there before; the others have none that is longer.
    assert repetition(WORDS[1]) == pytest.approx(3 / 6)
    assert found.repetition.value == pytest.approx(3 / 6 / 4)
    assert found.nats_per_unit.value == pytest.approx(18 / 15)
    assert found.generative_perplexity.value == pytest.approx(math.exp(18 / 15))
    assert found.generative_perplexity.standard_error == pytest.approx(
        math.exp(18 / 15) * found.nats_per_unit.standard_error
    )
    assert text_figures(WORDS, tokens).generative_perplexity is None
    with pytest.raises(ValueError, match="at least one text"):
        text_figures([], [])


@pytest.mark.slow
def test_errors_are_the_spread_of_repeated_draws():
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 201)
    shares /= shares.sum()

    def drawn():
        texts = []
        for length in rng.integers(3, 15, size=80):
            words = rng.choice(200, size=length, p=shares)
            # Words by themselves hardly ever repeat four in a row.
            repeats = 2 if rng.random() < 0.3 else 1
            texts.append(" ".join(f"w{word}" for word in [*words] * repeats))
        tokens = [text.split() for text in texts]
        nats = torch.tensor([sum(-np.log(shares[int(w[1:])]) for w in words) for words in tokens])
        counts = torch.tensor([len(words) for words in tokens])
        return text_figures(texts, tokens, (nats.double(), counts), "word")

    figures = [drawn() for _ in range(60)]
    names = ("length", "token_entropy", "distinct_1", "distinct_2", "distinct_3")
    for name in (*names, "self_bleu", "repetition", "generative_perplexity"):
        spread = np.std([getattr(found, name).value for found in figures], ddof=1)
        error = np.mean([getattr(found, name).standard_error for found in figures])
        assert 0.7 < error / spread < 1.4, (name, error, spread)


@pytest.mark.slow
def test_the_error_of_self_bleu_knows_that_copies_score_together():
    rng = np.random.default_rng(0)

    def drawn():
        # Texts of a source of 600, of which no two share a word
        return [
            " ".join(f"{place}{letter}" for letter in "abcd")
            for place in rng.integers(600, size=60)
        ]

    spread = np.std([self_bleu(drawn()) for _ in range(600)], ddof=1)
    errors = [self_bleu_figure(drawn()).standard_error for _ in range(40)]
    assert 0.8 < np.mean(errors) / spread < 1.25, (np.mean(errors), spread)


def test_the_distance_of_lengths_has_the_error_of_its_mean_where_all_are_moved():
    # Where one set is far above the other, the distance is the difference of their means.
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 10, 400).tolist(), (100 + rng.integers(0, 10, 400)).tolist()
    found = length_figure(first, second)
    assert found.value == pytest.approx(np.mean(second) - np.mean(first))
    expected = math.hypot(np.std(first) / 20, np.std(second) / 20)
    assert found.standard_error == pytest.approx(expected, rel=0.25)
