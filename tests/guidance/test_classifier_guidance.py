"""Laws of guidance by classifiers, against golden numbers, enumeration of neighbours, and Bayes' rule.

Shapes: B rows, L length, V vocabulary size, S states of a token, N open tokens, C classes.
"""

import itertools

import pytest
import torch
from support.oracles import assert_golden, float64, golden_cases
from transformers import BertConfig, BertForSequenceClassification, BertModel

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.guidance.classifiers import (
    ROWS_AT_A_TIME,
    ClassifierGuidance,
    CleanClassifierGuidance,
    StyleGuidance,
    style_vector,
)
from text_diffusers.guidance.soft_text import soft_text
from text_diffusers.models.classifier_text import TextClassifierModel
from text_diffusers.pipelines.guidance import TextState

SMALL = {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "max_length": 16}


class BagOfPlaces(torch.nn.Module):
    """Logits bias + sum over l of weight[l, x_l], of real tokens; keeps what it was asked for."""

    def __init__(self, weight, bias):
        super().__init__()
        length, vocab_size, _ = weight.shape
        self.weight, self.bias, self.length = (
            torch.nn.Parameter(weight),
            torch.nn.Parameter(bias),
            length,
        )
        self.embedding = torch.nn.Embedding.from_pretrained(
            torch.eye(vocab_size, dtype=weight.dtype)
        )
        self.asked, self.times = [], []

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, timestep=None):
        if inputs_embeds is None:
            self.asked.append(input_ids)
            inputs_embeds = self.embedding(input_ids)
        self.times.append(timestep)
        real = attention_mask.unsqueeze(-1).to(inputs_embeds)
        logits = self.bias + torch.einsum(
            "blv,lvc->bc", inputs_embeds * real, self.weight[: inputs_embeds.shape[1]]
        )
        return type("Output", (), {"logits": logits})


def bag(length=5, vocab_size=6, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(length, vocab_size, num_classes, generator=generator, dtype=torch.float64)
    return BagOfPlaces(weight, torch.randn(num_classes, generator=generator, dtype=torch.float64))


class UnnormalisedGuidance(ClassifierGuidance):
    """With a score that is linear where a log-softmax is not."""

    def label_log_probs(self, logits, labels):
        return torch.stack([row[label] for row, label in zip(logits, labels, strict=True)])


def make_state(tokens, is_open, **changes):
    real = changes.pop("attention_mask", torch.ones_like(tokens))
    fields = {
        "starts": [1] * len(tokens),
        "timestep": 0.5,
        "progress": 0.0,
        "last": False,
    } | changes
    return TextState(tokens, is_open, ~is_open & real.bool(), real, **fields)


@pytest.fixture
def noisy():
    """Three texts of five tokens out of five and a mask, with what is open in each, and log p(x_s | x_t)."""
    tokens = torch.tensor([[0, 5, 2, 5, 1], [0, 3, 5, 4, 4], [0, 5, 5, 5, 5]])
    state = make_state(tokens, tokens == 5, mask_token_id=5)
    logits = torch.randn(
        7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).log_softmax(dim=-1)
    return state, logits


# D-CBG


@pytest.mark.parametrize("order", ["exact", "first"])
@pytest.mark.parametrize("case", golden_cases("cfg", "dcbg"), ids=lambda case: case["name"])
def test_tilted_steps_are_the_golden_ones(case, order):
    inputs = case["inputs"]
    classifier = BagOfPlaces(
        float64(inputs["classifier_weight"]), float64(inputs["classifier_bias"])
    )
    control = ClassifierGuidance(classifier, inputs["label"], float(inputs["gamma"]), order)
    tokens, rows = torch.tensor(inputs["xt"]), []
    for row in range(len(tokens)):  # each row has a step of its own
        alphas = [1.0, 1 - inputs["s"][row], 1 - inputs["t"][row], 0.0]
        settings = {"schedule": alphas, "num_train_timesteps": 3}
        if inputs["kernel"] == "absorbing":
            scheduler = D3PMAbsorbingScheduler(inputs["mask_id"], **settings)
            is_open = tokens[row : row + 1] == inputs["mask_id"]
        else:
            scheduler = D3PMUniformScheduler(
                inputs["vocab_size"], reverse_rule="plug_in", **settings
            )
            is_open = torch.ones_like(tokens[row : row + 1], dtype=torch.bool)
        scheduler.set_timesteps(3)
        sample = tokens[row : row + 1]
        reverse = scheduler.reverse_probs(float64(inputs["logits"])[row : row + 1], 2 / 3, sample)
        state = make_state(sample, is_open, mask_token_id=inputs["mask_id"], starts=[0])
        guided = control(reverse[is_open].log(), state)
        rows.append(reverse.index_put((is_open,), guided.softmax(dim=-1)))
    assert_golden(
        torch.cat(rows), case["outputs"]["p_exact" if order == "exact" else "p_first_order"], case
    )


@pytest.mark.parametrize("candidates", [None, 2])
def test_first_order_is_exact_for_a_score_that_is_linear(noisy, candidates):
    state, logits = noisy
    exact = UnnormalisedGuidance(bag(), [0, 2, 1], 1.5, "exact", candidates)(logits, state)
    first = UnnormalisedGuidance(bag(), [0, 2, 1], 1.5, "first")(logits, state)
    torch.testing.assert_close(exact, first)
    assert not torch.allclose(ClassifierGuidance(bag(), [0, 2, 1])(logits, state), exact)


def test_the_exact_gain_is_that_of_each_neighbour_in_the_whole_text(noisy):
    state, logits = noisy
    classifier, labels = bag(), [0, 2, 1]
    gains = ClassifierGuidance(classifier, labels, 2.0, "exact")(logits, state) - logits

    def score(row, tokens):
        places = classifier.weight[torch.arange(5), tokens].sum(dim=0) + classifier.bias
        return places.log_softmax(dim=-1)[labels[row]]

    for n, (row, place) in enumerate(state.open.nonzero().tolist()):
        for value in range(6):
            neighbour = state.tokens[row].clone()
            neighbour[place] = value
            want = 2 * (score(row, neighbour) - score(row, state.tokens[row]))
            assert float(gains[n, value]) == pytest.approx(want.item(), abs=1e-12)


def test_only_neighbours_at_one_open_place_are_asked_for_and_not_too_many_at_once(noisy):
    state, logits = noisy
    copies = 8
    many = make_state(state.tokens.repeat(copies, 1), state.open.repeat(copies, 1))
    many.starts = [1] * len(many.tokens)
    classifier = bag()
    ClassifierGuidance(classifier, 1, order="exact")(logits.repeat(copies, 1), many)
    assert max(len(asked) for asked in classifier.asked) <= ROWS_AT_A_TIME < 7 * 5 * copies
    asked = torch.cat(classifier.asked)[len(many.tokens) :]
    assert (
        len(asked) == 7 * 5 * copies
    )  # five values that differ from the present one at each open place
    texts = many.tokens[many.open.nonzero()[:, 0]].repeat_interleave(5, dim=0)
    changed = asked != texts
    assert (changed.sum(dim=1) == 1).all()
    assert (changed <= many.open[many.open.nonzero()[:, 0]].repeat_interleave(5, dim=0)).all()


def test_candidates_are_asked_for_and_the_others_gain_the_first_order(noisy):
    state, logits = noisy
    exact, first, some = (
        ClassifierGuidance(bag(), 1, 1.0, **settings)(logits, state)
        for settings in (
            {"order": "exact"},
            {"order": "first"},
            {"order": "exact", "candidates": 3},
        )
    )
    likeliest = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(3).indices, True)
    torch.testing.assert_close(some, torch.where(likeliest, exact, first))
    assert not torch.allclose(exact, first)


@pytest.mark.parametrize("order", ["exact", "first"])
def test_to_stay_as_it_is_gains_nothing(noisy, order):
    state, logits = noisy
    gains = ClassifierGuidance(bag(), 1, 3.0, order)(logits, state) - logits
    assert (gains[:, 5] == 0).all() and (gains[:, :5] != 0).all()


@pytest.mark.parametrize("order", ["exact", "first"])
def test_values_that_cannot_be_stay_impossible(noisy, order):
    state, logits = noisy
    logits[:, 2] = -torch.inf
    guided = ClassifierGuidance(bag(), 1, 3.0, order)(logits, state)
    assert torch.equal(guided == -torch.inf, logits == -torch.inf) and not guided.isnan().any()


@pytest.mark.parametrize("control", [ClassifierGuidance, CleanClassifierGuidance])
def test_scale_0_and_texts_without_label_are_not_guided(noisy, control):
    state, logits = noisy
    assert control(bag(), 1, 0.0)(logits, state) is logits
    assert control(bag(), None, 2.0)(logits, state) is logits
    some = control(bag(), [None, 2, None], 2.0)(logits, state)
    rows = state.open.nonzero()[:, 0]
    assert torch.equal(some[rows != 1], logits[rows != 1])
    assert not torch.equal(some[rows == 1], logits[rows == 1])


CONTROLS = {
    "first": lambda classifier, labels: ClassifierGuidance(classifier, labels, 2.0),
    "exact": lambda classifier, labels: ClassifierGuidance(classifier, labels, 2.0, "exact"),
    "clean": lambda classifier, labels: CleanClassifierGuidance(
        classifier, labels, 2.0, temperature=0.7, steps=3
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_labels_of_other_rows_do_not_leak(noisy, name):
    state, logits = noisy
    together = CONTROLS[name](bag(), torch.tensor([0, 2, 1]))(logits, state)
    rows = state.open.nonzero()[:, 0]
    for row, label in enumerate([0, 2, 1]):
        alone = make_state(state.tokens[[row]], state.open[[row]], mask_token_id=5)
        got = CONTROLS[name](bag(), label)(logits[rows == row], alone)
        torch.testing.assert_close(got, together[rows == row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CONTROLS)
def test_guidance_runs_without_gradients_and_leaves_none(noisy, name):
    state, logits = noisy
    classifier, before = bag(), logits.clone()
    tokens = state.tokens.clone()
    with torch.no_grad():
        guided = CONTROLS[name](classifier, 1)(logits, state)
    assert not guided.requires_grad and not torch.equal(guided, logits)
    assert torch.equal(logits, before) and torch.equal(state.tokens, tokens)
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_labels_may_be_names(noisy):
    state, logits = noisy
    own = text_classifier(6, labels=["bad", "good"])
    torch.testing.assert_close(
        ClassifierGuidance(own, "good")(logits, state),
        ClassifierGuidance(own, 1)(logits, state),
        rtol=0,
        atol=0,
    )
    named = CleanClassifierGuidance(bert(6), ["LABEL_2", None, "LABEL_0"])
    assert named.labels == [2, None, 0]
    with pytest.raises(
        ValueError, match="`labels` must be .* among the names .*'bad', 'good'.* got 'ugly'"
    ):
        ClassifierGuidance(own, "ugly")


def test_a_noise_aware_classifier_is_told_the_time_and_a_clean_one_is_not(noisy):
    state, logits = noisy
    state.timestep = 0.25
    for order in ("first", "exact"):
        classifier = bag()
        ClassifierGuidance(classifier, 1, order=order)(logits, state)
        assert all(torch.equal(times, torch.full_like(times, 0.25)) for times in classifier.times)
    classifier = bag()
    CleanClassifierGuidance(classifier, 1)(logits, state)
    assert classifier.times == [None]


def text_classifier(vocab_size, seed=0, **changes):
    torch.manual_seed(seed)
    model = TextClassifierModel(vocab_size, **SMALL | changes).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("order", ["first", "exact"])
def test_a_source_and_padding_are_not_shown_to_the_classifier(order):
    """A text after a source is guided as it is alone."""
    classifier = text_classifier(8)
    control = ClassifierGuidance(classifier, 1, order=order)
    tokens = torch.tensor([[7, 1, 2, 7, 6, 3, 6], [7, 6, 2, 7, 0, 0, 0]])
    real = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    state = make_state(tokens, tokens == 6, starts=[4, 1], attention_mask=real)
    logits = torch.randn(3, 8, dtype=torch.float64)
    together = control(logits, state)
    after = make_state(tokens[:1, 3:], tokens[:1, 3:] == 6)
    padded = make_state(tokens[1:, :4], tokens[1:, :4] == 6)
    torch.testing.assert_close(control(logits[:2], after), together[:2])
    torch.testing.assert_close(control(logits[2:], padded), together[2:])


def test_the_first_order_is_the_slope_of_a_transformer_at_the_present_token():
    classifier = text_classifier(8)
    tokens = torch.tensor([[7, 6, 2, 6, 3]])
    state = make_state(tokens, tokens == 6)
    control = ClassifierGuidance(classifier, 1)
    gains = control(torch.zeros(2, 8, dtype=torch.float64), state)
    one_hot, h = torch.nn.functional.one_hot(tokens, 8).double(), 1e-6
    for (n, place), value in itertools.product(enumerate((1, 3)), range(8)):
        towards = torch.zeros_like(one_hot)
        towards[0, place, value] += h
        towards[0, place, 6] -= h
        slope = (
            control.log_prob(one_hot + towards, state) - control.log_prob(one_hot - towards, state)
        ) / (2 * h)
        assert float(gains[n, value]) == pytest.approx(slope.item(), abs=1e-6)


def test_a_classifier_over_embeddings_scores_latents_with_a_gradient():
    classifier = text_classifier(None, embedding_dim=4, num_train_timesteps=100)
    latents = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    got = ClassifierGuidance(classifier, [1, None]).latent_log_prob(latents, 40, real)
    want = classifier(inputs_embeds=latents[:1], timestep=40.0).logits.log_softmax(dim=-1)[0, 1]
    torch.testing.assert_close(got, torch.stack([want, torch.zeros_like(want)]))
    (gradient,) = torch.autograd.grad(got.sum(), latents)
    assert (gradient[0] != 0).all() and (gradient[1] == 0).all()
    state = make_state(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(
        ValueError, match="`classifier` must read tokens, got one that reads latents"
    ):
        ClassifierGuidance(classifier, 1)(torch.zeros(5, 8), state)


# Clean text


def bert(vocab_size, model=BertForSequenceClassification):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    module = model(
        BertConfig(vocab_size=vocab_size, max_position_embeddings=16, num_labels=3, **sizes)
    ).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.eval()


@pytest.mark.parametrize(
    "make", [bert, lambda size: text_classifier(size, num_classes=3)], ids=["bert", "own"]
)
def test_a_classifier_of_clean_text_says_of_one_hot_text_what_it_says_of_tokens(noisy, make):
    state, _ = noisy
    classifier = make(6)
    tokens = torch.where(state.open, 2, state.tokens)
    got = CleanClassifierGuidance(classifier, [0, 2, 1]).log_prob(
        torch.nn.functional.one_hot(tokens, 6).double(), state
    )
    want = classifier(input_ids=tokens, attention_mask=state.attention_mask).logits.log_softmax(
        dim=-1
    )
    torch.testing.assert_close(got, want[range(3), [0, 2, 1]])


@pytest.mark.parametrize(
    "make", [bert, lambda size: text_classifier(size, num_classes=3)], ids=["bert", "own"]
)
def test_more_scale_makes_the_label_likelier(noisy, make):
    state, logits = noisy
    classifier = make(6)
    scored = []
    for scale in (-1.0, -0.5, 0.0, 0.5, 1.0):
        control = CleanClassifierGuidance(classifier, [0, 2, 1], scale, steps=10)
        tilted = control(logits, state)
        probs = tilted.index_fill(1, torch.tensor(5), -torch.inf).softmax(dim=-1)
        scored.append(control.log_prob(soft_text(probs, state), state))
    assert (torch.stack(scored).diff(dim=0) > 0).all()


def test_the_temperature_divides_the_logits_of_the_soft_text(noisy):
    state, logits = noisy
    cold = CleanClassifierGuidance(bag(), 1, temperature=0.5)(logits, state) - logits
    scaled = CleanClassifierGuidance(bag(), 1)(logits / 0.5, state) - logits / 0.5
    torch.testing.assert_close(cold, scaled)


def test_steps_share_the_scale_and_go_on_from_each_other(noisy):
    state, logits = noisy
    step = CleanClassifierGuidance(bag(), 1, 0.5)
    twice = CleanClassifierGuidance(bag(), 1, 1.0, steps=2)
    torch.testing.assert_close(twice(logits, state), step(step(logits, state), state))


def test_logits_of_half_precision_stay_so(noisy):
    state, logits = noisy
    guided = CleanClassifierGuidance(bert(6).float(), 1)(logits.bfloat16(), state)
    assert guided.dtype == torch.bfloat16 and guided.isfinite().all()


# Style


def test_the_style_of_texts_has_a_cosine_of_1_with_itself(tokenizer):
    encoder = bert(len(tokenizer), BertModel)
    text = "the cat sat"
    row = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    tokens = torch.tensor([row, [0, 301, 17, 90][: len(row)]])
    state = make_state(tokens, torch.zeros_like(tokens, dtype=torch.bool))
    control = StyleGuidance(encoder, style_vector(encoder, tokenizer, [text]))
    cosines = control.log_prob(torch.nn.functional.one_hot(tokens, len(tokenizer)).double(), state)
    assert cosines[0].item() == pytest.approx(1.0)
    assert -1 < cosines[1].item() < 0.999


def test_a_style_is_the_mean_over_texts_each_as_it_is_alone(tokenizer):
    encoder = bert(len(tokenizer), BertModel)
    texts = ["the cat sat", "a bird", "the dog was late"]
    alone = torch.stack([style_vector(encoder, tokenizer, [text]) for text in texts])
    torch.testing.assert_close(style_vector(encoder, tokenizer, texts), alone.mean(dim=0))
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("a bird")["input_ids"]]])
    torch.testing.assert_close(alone[1], encoder(input_ids=ids).last_hidden_state[0].mean(dim=0))


def test_style_guidance_turns_each_text_to_its_own_style(noisy):
    state, logits = noisy
    encoder = bert(6, BertModel)
    targets = torch.randn(3, 16, dtype=torch.float64)
    rows = state.open.nonzero()[:, 0]
    guided = StyleGuidance(encoder, targets, scale=5.0)(logits, state)
    control = StyleGuidance(encoder, targets)
    before, after = (
        control.log_prob(
            soft_text(x.index_fill(1, torch.tensor(5), -torch.inf).softmax(dim=-1), state), state
        )
        for x in (logits, guided)
    )
    assert (after > before).all()
    alone = make_state(state.tokens[[1]], state.open[[1]], mask_token_id=5)
    got = StyleGuidance(encoder, targets[1], scale=5.0)(logits[rows == 1], alone)
    torch.testing.assert_close(got, guided[rows == 1])


# Errors


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((1, 1.0, "second"), "order"),
        ((1, 1.0, "first", 3), "candidates"),
        ((1, 1.0, "exact", 0), "candidates"),
        (([],), "labels"),
        (([0, -1],), "labels"),
        ((1.5,), "labels"),
        ((1, float("inf")), "scale"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        ClassifierGuidance(bag(), *arguments)


def test_clean_guidance_refuses_settings_out_of_range():
    for settings in ({"temperature": 0}, {"steps": 0}, {"steps": 1.5}):
        with pytest.raises(ValueError, match="`(temperature|steps)` must be"):
            CleanClassifierGuidance(bag(), 1, **settings)
    with pytest.raises(ValueError, match="`target` must be finite"):
        StyleGuidance(bert(6, BertModel), torch.zeros(16))


def test_what_does_not_fit_the_texts_is_refused(noisy):
    state, logits = noisy
    with pytest.raises(ValueError, match="`labels` must be below the 3 classes, got 3"):
        ClassifierGuidance(bag(), 3)(logits, state)
    with pytest.raises(ValueError, match="`labels` must be one for each of the 3 texts, got 2"):
        CleanClassifierGuidance(bag(), [0, 1])(logits, state)
    with pytest.raises(
        ValueError, match="`classifier` must have 6 tokens, those of the text, got 7"
    ):
        CleanClassifierGuidance(bag(vocab_size=7), 1)(logits, state)
    with pytest.raises(
        ValueError, match="`classifier` must have at least 6 tokens, for those of the text, got 5"
    ):
        ClassifierGuidance(bag(vocab_size=5), 1)(logits, state)
    with pytest.raises(ValueError, match="`classifier` must be of whole texts"):
        CleanClassifierGuidance(text_classifier(6, per_token=True), 1)(logits, state)
    with pytest.raises(
        ValueError, match="`target` must be of the 16 features of the encoder, got 8"
    ):
        StyleGuidance(bert(6, BertModel), torch.ones(8))(logits, state)
    with pytest.raises(ValueError, match="`encoder` must have 6 tokens, those of the text, got 9"):
        StyleGuidance(bert(9, BertModel), torch.ones(16))(logits, state)


def test_a_classifier_that_drops_units_is_refused():
    with pytest.raises(ValueError, match="`classifier` must be in evaluation mode"):
        CleanClassifierGuidance(bert(6).train(), 1)
