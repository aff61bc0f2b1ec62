"""Laws of patterns of tags: enumeration of texts, counts by hand, and texts that a pipeline writes.

Shapes: B rows, L length, V vocabulary size, N open tokens, C tags.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import SENTENCES, make_denoiser
from support.control_states import generators, holds, ids_of, make_state, random_logits
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
    TextClassifierModel,
    TextDiffusionPipeline,
)
from text_diffusers.guidance.controls import Control, LengthControl, WordsControl
from text_diffusers.guidance.patterns import PatternControl, TokenTags, tag_tokens
from text_diffusers.guidance.soft_text import soft_text
from text_diffusers.guidance.vocabulary import continues_word
from text_diffusers.pipelines.guidance import TextState

WHOLE = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1]], dtype=torch.bool)


@pytest.fixture
def token_tags():
    """Of 4 tokens and 3 tags, other tokens being whole words at the start than within a text."""
    scores = 2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return TokenTags(scores.log_softmax(dim=-1), ["DET", "NOUN", "VERB"], WHOLE)


@pytest.fixture
def two_texts():
    """One text after a start token with a known token, one after a source; the second is padded."""
    tokens = [[2, 0, 3, 0, 0], [1, 2, 0, 0, 2]]
    is_open = [[0, 1, 0, 1, 0], [0, 0, 1, 1, 0]]
    return make_state(
        tokens, is_open, [1, 2], attention_mask=torch.tensor([[1] * 5, [1] * 4 + [0]])
    )


@pytest.fixture
def tagger(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "max_length": 32}
    model = TextClassifierModel(
        len(tokenizer), 3, per_token=True, labels=["DET", "NOUN", "VERB"], **sizes
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


# The control


def enumerated(probs, state, row, token_tags, pattern, scale):
    """p(tags and whole words)^scale of one text, and its p(x_i = v | that) (n, V), by all texts of its open tokens."""
    places, vocab_size = state.open[row].nonzero().flatten().tolist(), probs.shape[1]
    total, joint = 0.0, torch.zeros_like(probs)
    for choice in itertools.product(range(vocab_size), repeat=len(places)):
        ids = state.tokens[row].clone()
        ids[places] = torch.tensor(choice)
        weight = math.prod(float(probs[i, v]) for i, v in enumerate(choice))
        for i, tag in enumerate(pattern):
            token = int(ids[state.starts[row] + i])
            weight *= math.exp(token_tags.log_probs[token, tag]) ** scale * bool(
                token_tags.whole_words[min(i, 1), token]
            )
        total += weight
        for i, v in enumerate(choice):
            joint[i, v] += weight
    return total, joint / total


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_pattern_tilts_to_the_exact_marginals_of_texts_with_its_tags(
    token_tags, scale, monkeypatch
):
    monkeypatch.setattr(Control, "tilt", lambda *_: pytest.fail("it is not of first order"))
    state, pattern = make_state([[2, 0, 0, 0]], [[0, 1, 1, 1]]), [1, 0, 2]
    logits = random_logits(state, 4)
    control = PatternControl(token_tags, pattern, scale)
    total, marginals = enumerated(logits.softmax(dim=-1), state, 0, token_tags, pattern, scale)
    assert 0 < total < 1
    torch.testing.assert_close(control(logits, state).softmax(dim=-1), marginals)
    assert (control(logits, state) == -torch.inf).tolist() == (~WHOLE[[0, 1, 1]]).tolist()


def test_the_log_probability_of_a_pattern_is_that_of_all_its_texts(token_tags, two_texts):
    patterns = [["NOUN", "DET", "VERB"], ["VERB", "VERB"]]
    control, logits = PatternControl(token_tags, patterns), random_logits(two_texts, 4)
    tilted, probs = control(logits, two_texts), logits.softmax(dim=-1)
    found = control.log_prob(soft_text(probs, two_texts), two_texts)
    for row, pattern in enumerate([[1, 0, 2], [2, 2]]):
        own = slice(2 * row, 2 * row + 2)
        total, marginals = enumerated(probs[own], two_texts, row, token_tags, pattern, 1.0)
        assert float(found[row]) == pytest.approx(math.log(total))
        torch.testing.assert_close(tilted[own].softmax(dim=-1), marginals)


def test_the_slope_of_the_log_probability_of_a_pattern_is_the_tilt(token_tags, two_texts):
    control, logits = PatternControl(token_tags, [1, 2]), random_logits(two_texts, 4)
    probs = logits.softmax(dim=-1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: control.log_prob(soft_text(p, two_texts), two_texts), probs
    )
    (slope,) = torch.autograd.grad(
        control.log_prob(soft_text(probs, two_texts), two_texts).sum(), probs
    )
    tagged = [0, 2, 3]  # the second open token of the first text comes after the pattern
    torch.testing.assert_close(
        (probs * slope)[tagged], control(logits, two_texts).softmax(dim=-1)[tagged]
    )
    assert torch.equal(control(logits, two_texts)[1], logits[1]) and not slope[1].any()


def test_a_text_without_any_chance_has_a_finite_log_probability_and_slope(token_tags):
    state = make_state(
        [[2, 1, 0]], [[0, 0, 1]]
    )  # token 1 is given, and is no whole word at the start
    probs = torch.tensor([[0.0, 0.0, 1.0, 0.0]], requires_grad=True)
    found = PatternControl(token_tags, [0, 0]).log_prob(soft_text(probs, state), state)
    (slope,) = torch.autograd.grad(found.sum(), probs)
    assert found.isfinite().all() and found < -100 and slope.isfinite().all()


def test_patterns_of_their_own_do_not_leak_between_rows(token_tags, two_texts):
    state, logits = two_texts, random_logits(two_texts, 4)
    control = PatternControl(token_tags, [[0, 1, 2], [2, 0]])
    alone = make_state([state.tokens[1, :4].tolist()], [state.open[1, :4].tolist()], [2])
    own = PatternControl(token_tags, [2, 0])
    torch.testing.assert_close(own(logits[2:], alone), control(logits, state)[2:])
    soft = [
        soft_text(values.softmax(dim=-1), texts)
        for values, texts in ((logits, state), (logits[2:], alone))
    ]
    torch.testing.assert_close(own.log_prob(soft[1], alone)[0], control.log_prob(soft[0], state)[1])
    other = PatternControl(token_tags, [[0, 1, 2], [1, 1]])(logits, state)
    assert torch.equal(other[:2], control(logits, state)[:2])
    assert not torch.equal(other[2:], control(logits, state)[2:])
    assert control.plan_lengths(generators(2)) == [3, 2]
    assert own.plan_lengths(generators(2)) == [2, 2]


def test_a_pattern_never_excludes_all_tokens_of_a_place(token_tags):
    state = make_state([[2, 0, 0]], [[0, 1, 1]])
    logits = torch.full((2, 4), -torch.inf, dtype=torch.float64)
    logits[0, 1], logits[1, 2] = 0.5, -0.5  # the tokens that are no whole words there
    got = PatternControl(token_tags, [1, 1])(logits, state)
    assert torch.equal(got > -torch.inf, logits > -torch.inf)
    impossible = TokenTags(
        torch.tensor([[0.0, -torch.inf]] * 4), [], WHOLE
    )  # a tag that no token has
    got = PatternControl(impossible, [1, 0])(torch.zeros(2, 4), state)
    assert torch.equal(got > -torch.inf, WHOLE) and not got.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_nothing_of_the_caller_is_changed(token_tags, two_texts, dtype):
    logits = random_logits(two_texts, 4, dtype=torch.float64).to(dtype)
    probs = soft_text(random_logits(two_texts, 4).softmax(dim=-1), two_texts)
    given = (logits, probs, token_tags.log_probs, token_tags.whole_words, two_texts.tokens)
    before = [values.clone() for values in given]
    control = PatternControl(token_tags, [1, 0])
    assert control(logits, two_texts).dtype == dtype
    control.log_prob(probs, two_texts)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


def test_a_pattern_acts_at_its_scale_and_within_its_steps_only(token_tags, two_texts):
    logits = random_logits(two_texts, 4)
    assert PatternControl(token_tags, [1, 0], scale=0)(logits, two_texts) is logits
    assert PatternControl(token_tags, [1, 0], start=0.1)(logits, two_texts) is logits
    two_texts.progress = 0.5
    assert PatternControl(token_tags, [1, 0], stop=0.5)(logits, two_texts) is logits


def test_patterns_that_do_not_fit_are_refused(token_tags, two_texts):
    logits = random_logits(two_texts, 4)
    for pattern in ([], ["ADV"], [-1], [3], [True], "NOUN", [[0], []], [[0], ["ADV"]]):
        with pytest.raises(ValueError, match="`pattern` must be"):
            PatternControl(token_tags, pattern)
    with pytest.raises(ValueError, match="`scale` must be at least 0, got -1"):
        PatternControl(token_tags, [0], scale=-1)
    for act in (
        lambda c: c(logits, two_texts),
        lambda c: c.log_prob(torch.ones(2, 5, 4), two_texts),
    ):
        with pytest.raises(
            ValueError, match="`pattern` must be at most as long as its text, 2 tokens, got 3"
        ):
            act(PatternControl(token_tags, [0] * 3))
        with pytest.raises(
            ValueError, match="`pattern` must be one for each of the 2 texts, got 1"
        ):
            act(PatternControl(token_tags, [[0, 1]]))
    control = PatternControl(token_tags, [0, 1])
    for wide in (
        lambda: control(torch.zeros(4, 6), two_texts),
        lambda: control.log_prob(torch.ones(2, 5, 6), two_texts),
    ):
        with pytest.raises(
            ValueError, match="`token_tags` must have 6 tokens, those of the text, got 4"
        ):
            wide()


def test_tags_that_do_not_fit_their_tokens_are_refused():
    log_probs = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"`whole_words` must be of shape \(2, 4\), got \(2, 3\)"):
        TokenTags(log_probs, [], torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="`labels` must be none, or 2 names"):
        TokenTags(log_probs, ["A"], WHOLE)
    first_only = TokenTags(log_probs, ["A", "B"], WHOLE & torch.tensor([[True], [False]]))
    assert PatternControl(first_only, ["B"]).patterns == [[1]]
    with pytest.raises(
        ValueError, match=r"`token_tags` must be of texts with whole words, got \[3, 0\]"
    ):
        PatternControl(first_only, ["B", "A"])


# The tags of tokens


PIECES = ["[UNK]", "[BOS]", "a", "cat", "##s", "aw", "##ful", ".", "[MASK]"]
TEXTS = ["a cats.", "awful cat a.", "cat awful", "a cat"]


@pytest.fixture
def pieces_tokenizer():
    """Words of a few pieces: TEXTS are [a cat ##s .], [aw ##ful cat a .], [cat aw ##ful] and [a cat]."""
    model = models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "bos_token": "[BOS]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


class PlaceTagger(torch.nn.Module):
    """The first of two tags has probability 0.5 of "cat", else 0.9 right after the start and 0.2 elsewhere."""

    def __init__(self, vocab_size=9):
        super().__init__()
        self.embedding, self.sizes = torch.nn.Embedding(vocab_size, 1), []
        self.config = SimpleNamespace(labels=["A", "B"])

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask):
        assert (input_ids[:, 0] == PIECES.index("[BOS]")).all()
        self.sizes.append(tuple(input_ids.shape))
        first = torch.full(input_ids.shape, 0.2)
        first[:, 1] = 0.9
        first[input_ids == PIECES.index("cat")] = 0.5
        first[attention_mask == 0] = torch.nan
        return SimpleNamespace(logits=torch.stack([first, 1 - first], dim=-1).log())


def names_of(mask):
    return {PIECES[i] for i in mask.nonzero().flatten().tolist()}


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_tags_of_tokens_are_means_over_their_occurrences(pieces_tokenizer, batch_size):
    tagger = PlaceTagger()
    found = tag_tokens(tagger, pieces_tokenizer, TEXTS, smoothing=0.5, batch_size=batch_size)
    assert len(tagger.sizes) == math.ceil(4 / batch_size)
    overall = (4 * 0.5 + 3 * 0.9 + 7 * 0.2) / 14
    sums = {
        "a": (0.9 + 0.2 + 0.9, 3),
        "cat": (2.0, 4),
        "##s": (0.2, 1),
        "aw": (0.9 + 0.2, 2),
        "##ful": (0.4, 2),
    }
    sums |= {".": (0.4, 2), "[MASK]": (0, 0)}
    for piece, (total, occurrences) in sums.items():
        first = (total + 0.5 * overall) / (occurrences + 0.5)
        got = found.log_probs[PIECES.index(piece)].exp()
        torch.testing.assert_close(got, torch.tensor([first, 1 - first]))
    assert found.labels == ["A", "B"]
    unsmoothed = tag_tokens(tagger, pieces_tokenizer, TEXTS, smoothing=1e-9)
    torch.testing.assert_close(
        unsmoothed.log_probs[PIECES.index("a"), 0].exp(), torch.tensor(2 / 3)
    )


def test_whole_words_are_those_that_are_mostly_not_continued(pieces_tokenizer):
    def whole(texts):
        return [
            names_of(row) for row in tag_tokens(PlaceTagger(), pieces_tokenizer, texts).whole_words
        ]

    assert whole(TEXTS) == [
        {"a", "cat"},
        {"a", "cat", "."},
    ]  # "cat" is continued once in three times within a text
    assert whole([*TEXTS, "a cats"]) == [{"a", "cat"}, {"a", "cat", "."}]
    assert whole([*TEXTS, "a cats", "a cats"]) == [{"a", "cat"}, {"a", "."}]
    assert whole(["awful", "cats a", "a awful"]) == [{"a"}, {"a"}]
    assert whole(["a b [MASK] [BOS]"]) == [
        {"a"},
        set(),
    ]  # special tokens are none, nor what spells their names


def test_what_is_cut_off_a_text_does_not_count_but_continues_words(pieces_tokenizer):
    tagger = PlaceTagger()
    found = tag_tokens(tagger, pieces_tokenizer, TEXTS, max_length=3, smoothing=1e-9)
    assert tagger.sizes == [(4, 3)]
    assert [names_of(row) for row in found.whole_words] == [{"a", "cat"}, {"cat"}]
    torch.testing.assert_close(found.log_probs[PIECES.index("a"), 0].exp(), torch.tensor(0.9))
    continued = tag_tokens(tagger, pieces_tokenizer, ["a cats", "a cats", "a cat"], max_length=3)
    assert names_of(continued.whole_words[1]) == set()


def test_a_taggers_own_probabilities_are_averaged(tokenizer, tagger):
    found = tag_tokens(
        tagger, tokenizer, [*SENTENCES, ""], smoothing=1e-6, batch_size=3, max_length=32
    )
    totals, counts = torch.zeros(len(tokenizer), 3), torch.zeros(len(tokenizer))
    for ids in tokenizer(SENTENCES, add_special_tokens=False)["input_ids"]:
        shown = [tokenizer.bos_token_id, *ids][:32]
        with torch.no_grad():
            probs = tagger(torch.tensor([shown])).logits[0, 1:].softmax(dim=-1)
        for token, row in zip(shown[1:], probs, strict=True):
            totals[token] += row
            counts[token] += 1
    seen = counts > 0
    torch.testing.assert_close(
        found.log_probs[seen].exp(), totals[seen] / counts[seen].unsqueeze(1), atol=1e-5, rtol=0
    )
    assert not found.whole_words[:, ~seen].any() and found.whole_words.any(dim=1).all()
    assert not found.whole_words[1, continues_word(tokenizer)].any()


def test_a_blank_is_no_word(tokenizer, tagger):
    blank, cat = ids_of(tokenizer, "Ġ", "Ġcat")
    assert tokenizer("the  cat", add_special_tokens=False)["input_ids"][-2:] == [blank, cat]
    within = tag_tokens(tagger, tokenizer, ["the  cat"]).whole_words[1]
    assert within[cat] and not within[blank]


def test_texts_and_taggers_that_give_no_tags_are_refused(pieces_tokenizer, tokenizer, tagger):
    settings = [
        {"texts": []},
        {"texts": "a cat"},
        {"texts": [" "]},
        {"smoothing": 0.0},
        {"smoothing": math.inf},
    ]
    for change in (*settings, {"max_length": 1}, {"max_length": 4.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be"):
            tag_tokens(PlaceTagger(), pieces_tokenizer, **{"texts": TEXTS} | change)
    with pytest.raises(
        ValueError, match="`tagger` must have at least 9 tokens, for those of the text, got 8"
    ):
        tag_tokens(PlaceTagger(8), pieces_tokenizer, TEXTS)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    of_texts = TextClassifierModel(len(tokenizer), **sizes)
    with pytest.raises(
        ValueError, match=r"`tagger` must be of tokens, with logits \(B, L, C\), got \(4, 2\)"
    ):
        tag_tokens(of_texts.eval(), tokenizer, SENTENCES)
    training = TextClassifierModel(len(tokenizer), per_token=True, dropout=0.1, **sizes)
    with pytest.raises(ValueError, match="`tagger` must be in evaluation mode"):
        tag_tokens(training.train(), tokenizer, SENTENCES)


def test_a_larger_vocabulary_of_the_tagger_is_kept_and_never_written(pieces_tokenizer):
    found = tag_tokens(PlaceTagger(12), pieces_tokenizer, TEXTS)
    assert found.log_probs.shape == (12, 2) and not found.whole_words[:, 9:].any()


# Texts


@pytest.fixture
def sentence_tags(tokenizer, tagger):
    return tag_tokens(tagger, tokenizer, SENTENCES, max_length=32)


def check_texts(tokens, pattern, token_tags, tokenizer):
    """Each token is a whole word of the texts that were tagged, and none is left out or added."""
    for row in tokens:
        ids = [token for token in row if token not in tokenizer.all_special_ids]
        assert len(ids) == len(pattern)
        assert token_tags.whole_words[0, ids[0]] and token_tags.whole_words[1, ids[1:]].all()
        known = set(" ".join(SENTENCES).split())
        words = tokenizer.decode(ids).split()
        assert len(words) == len(pattern) and known.issuperset(words)


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_a_random_model_writes_whole_words_only_one_a_tag(tokenizer, sentence_tags, kernel):
    if kernel == "absorbing":
        scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    else:
        scheduler = D3PMUniformScheduler(len(tokenizer))
    pipe = TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), scheduler)
    pipe.set_progress_bar_config(disable=True)
    pattern, likelihoods = ["NOUN", "DET", "VERB", "NOUN", "VERB", "DET"], []
    for scale in (1.0, 30.0):
        control = PatternControl(sentence_tags, pattern, scale)
        arguments = {
            "num_return_sequences": 8,
            "num_inference_steps": 6,
            "generator": generators(8),
        }
        tokens = pipe(controls=control, output_type="tokens", **arguments).tokens.tolist()
        check_texts(tokens, pattern, sentence_tags, tokenizer)
        written = torch.tensor(
            [[t for t in row if t not in tokenizer.all_special_ids] for row in tokens]
        )
        wanted = torch.tensor(control.patterns[0]).expand_as(written)
        likelihoods.append(float(sentence_tags.log_probs[written, wanted].mean()))
    assert likelihoods[1] > likelihoods[0]


def test_a_pattern_guides_a_model_over_word_embeddings_to_whole_words(tokenizer, sentence_tags):
    torch.manual_seed(0)
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {
        "embedding_dim": 8,
        "hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "max_length": 16,
    }
    model = EmbeddingTransformerModel(
        len(tokenizer), num_train_timesteps=100, **sizes, **ids
    ).eval()
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    pipe = DiffusionLMPipeline(tokenizer, model, EmbeddingDDIMScheduler(100))
    pipe.set_progress_bar_config(disable=True)
    arguments = {
        "num_return_sequences": 8,
        "num_inference_steps": 20,
        "inner_steps": 3,
        "output_type": "tokens",
    }
    whole = []
    for scale in (0.0, 5.0):
        control = PatternControl(sentence_tags, [1, 0, 2, 1], scale)
        written = pipe(controls=control, generator=generators(8), **arguments).tokens[:, 1:5]
        whole.append(int(sentence_tags.whole_words[torch.tensor([0, 1, 1, 1]), written].sum()))
    assert whole[1] > 5 + whole[0]


def test_controls_of_all_kinds_combine(tokenizer, sentence_tags):
    """With a length, words and a pattern at once, a random model writes what all of them ask for."""
    eos, generator = tokenizer.eos_token_id, torch.Generator().manual_seed(0)
    controls = [
        LengthControl(4, eos_token_id=eos),
        PatternControl(sentence_tags, [0, 1, 2, 1]),
        WordsControl(tokenizer, ["cat", "dog"]),
    ]
    tokens, is_open = (
        torch.full((1, 6), eos),
        torch.tensor([[False, True, True, True, True, False]]),
    )
    while is_open.any():
        place = int(is_open[0].nonzero().flatten()[0])
        selected = torch.zeros_like(is_open)
        selected[0, place] = True
        last = int(is_open.sum()) == 1
        state = TextState(
            tokens, is_open, ~is_open, torch.ones_like(tokens), [1], 0.5, 0.0, last, selected
        )
        logits = random_logits(state, len(tokenizer))
        for control in controls:
            logits = control(logits, state)
        tokens = tokens.clone()
        tokens[0, place] = torch.multinomial(logits[0].softmax(dim=-1), 1, generator=generator)[0]
        is_open = is_open & ~selected
    text = tokens[0, 1:5].tolist()
    assert holds(tokenizer, text, ["cat", "dog"]) and eos not in text
    assert not continues_word(tokenizer)[text[1:]].any()
