"""Laws of ParaGuidePipeline over embeddings and tokens: exact laws of the texts, steering, batches, saving, errors."""

import copy
import itertools

import diffusers
import numpy as np
import pytest
import torch
from conftest import make_denoiser, make_embedding_model, mostly_slow, slow
from support.exact_models import ExactWords, TokenTable
from support.oracles import MarkovSource, chi_square_passes, transition_matrix
from support.pipeline_calls import Recorder
from torch import nn
from transformers import BertConfig, BertModel

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMHybridScheduler,
    D3PMUniformScheduler,
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    ParaGuidePipeline,
    TextClassifierModel,
    TextDiffusionPipeline,
)
from text_diffusers.guidance.classifiers import (
    ClassifierGuidance,
    CleanClassifierGuidance,
    StyleGuidance,
    style_vector,
)
from text_diffusers.guidance.controls import Control, LengthControl, WordsControl

SOURCES = ["the cat", "a bird sang in the tree", "she", "the dog sat on"]
WRITE = {"num_inference_steps": 6, "max_new_tokens": 8}
KINDS = ["absorbing", "uniform", "embeddings"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_paired_model(tokenizer, **changes):
    return make_embedding_model(tokenizer, **{"partial_noising": True} | changes)


def make_pipe(tokenizer, kind, **changes):
    if kind == "embeddings":
        model = make_paired_model(tokenizer, **changes)
        scheduler = EmbeddingDDIMScheduler(prediction_type=model.config.prediction_type)
        return quiet(ParaGuidePipeline(tokenizer, model, scheduler))
    mask, words = tokenizer.mask_token_id, tokenizer.pad_token_id
    scheduler = {
        "absorbing": lambda: D3PMAbsorbingScheduler(mask),
        "uniform": lambda: D3PMUniformScheduler(words),
        "hybrid": lambda: D3PMHybridScheduler(mask, words),
    }[kind]()
    return quiet(ParaGuidePipeline(tokenizer, make_denoiser(tokenizer, **changes), scheduler))


@pytest.fixture
def pipe_of(tokenizer):
    return lambda kind, **changes: make_pipe(tokenizer, kind, **changes)


class Wanted(Control):
    """A log-linear score: how many tokens of the text are among some ids. Only `log_prob` is asked of it."""

    def __init__(self, ids, **arguments):
        super().__init__(**arguments)
        self.ids, self.states = ids, []

    def __call__(self, logits, state):
        raise AssertionError("ParaGuide tilts by itself")

    def log_prob(self, probs, state):
        self.states.append(state)
        places = torch.arange(probs.shape[1]) >= torch.tensor(state.starts).unsqueeze(1)
        return (probs[..., self.ids].sum(dim=-1) * places * state.attention_mask).sum(dim=1)


class Planned(Wanted):
    """Wants nothing, and fixes the length, so that no token ends a text."""

    def __init__(self, length):
        super().__init__([0], scale=0.0)
        self.length = length

    def plan_lengths(self, generators):
        return [self.length] * len(generators)


def table_pipe(tokenizer, scheduler, predict, length):
    return quiet(
        ParaGuidePipeline(tokenizer, TokenTable(predict, length, len(tokenizer)), scheduler)
    )


def write_rows(pipe, length, rows, steps, seed=0, **arguments):
    """(rows, length) tokens written from a source of one token, by the model as it is."""
    source = "the"
    assert len(pipe.tokenizer(source)["input_ids"]) == 1
    settings = {
        "top_p": 1.0,
        "controls": Planned(length),
        "output_type": "tokens",
        "num_return_sequences": rows,
    }
    output = pipe(source, num_inference_steps=steps, generator=seeded(seed), **settings | arguments)
    return output.tokens[:, :length]


def exact_law(source, kernel, num_steps):
    """(K^L,) probabilities of the texts that steps of factorised draws and fresh noise end with, by enumeration.

    The time t of a step is in units of the grid; alpha(t) = 1 - t.
    """
    num_tokens, length = source.num_tokens, source.length
    size = num_tokens + (kernel == "absorbing")
    states = np.array(np.meshgrid(*[range(size)] * length, indexing="ij")).reshape(length, -1).T
    start = np.all(states == num_tokens, axis=1) if kernel == "absorbing" else np.ones(len(states))
    law = start / start.sum()
    for step in range(num_steps):
        time, following = 1 - step / num_steps, 1 - (step + 1) / num_steps
        absorbing = kernel == "absorbing"
        table = (
            (source.masked_denoiser() if absorbing else source.uniform_denoiser(1 - time))
            .exp()
            .numpy()
        )
        clean = np.ones((len(states), len(source.sequences)))
        for place in range(length):
            clean *= table[tuple(states.T)][:, place][:, source.sequences[:, place]]
        law = law @ clean
        if step < num_steps - 1:
            noise = transition_matrix(kernel, 1 - following, size, num_tokens)[:num_tokens]
            law = law @ np.prod(
                [noise[source.sequences[:, [i]], states[:, i]] for i in range(length)], axis=0
            )
    return law


def predictor(source, kernel, tokenizer, leave_out=False):
    """The exact p(x_0 | x_t) of a source; with `leave_out` divided by q(x_t | x_0), as under "plug_in"."""
    masked = source.masked_denoiser()[..., : source.num_tokens]

    def predict(text, time):
        if kernel == "absorbing":
            return masked[
                tuple(
                    text.masked_fill(text == tokenizer.mask_token_id, source.num_tokens).unbind(
                        dim=1
                    )
                )
            ]
        logits = source.uniform_denoiser(1 - time)[tuple(text.unbind(dim=1))]
        seen = torch.tensor(transition_matrix("uniform", 1 - time, source.num_tokens)).log()
        return logits - seen[text] if leave_out else logits

    return predict


def kernel_scheduler(kernel, tokenizer, num_tokens, **settings):
    if kernel == "absorbing":
        return D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    return D3PMUniformScheduler(num_tokens, **settings)


def frequencies(rows, source):
    index = (rows * source.num_tokens ** torch.arange(source.length).flip(0)).sum(dim=1)
    return np.bincount(index.numpy(), minlength=len(source.sequences))


@pytest.mark.parametrize(
    "kernel, num_steps",
    mostly_slow(
        itertools.product(["absorbing", "uniform"], [1, 2, 5]),
        fast=[("absorbing", 2)],
    ),
)
def test_texts_of_an_exact_model_follow_the_enumerated_chain(tokenizer, kernel, num_steps):
    """Every state of a Markov source at every step: factorised draws of clean texts, then q(x_s | x_0)."""
    source = MarkovSource.golden()
    scheduler = kernel_scheduler(kernel, tokenizer, source.num_tokens)
    pipe = table_pipe(tokenizer, scheduler, predictor(source, kernel, tokenizer), source.length)
    rows = write_rows(pipe, source.length, 4000, num_steps)
    assert chi_square_passes(frequencies(rows, source), exact_law(source, kernel, num_steps))


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_fresh_noise_keeps_independent_tokens_exact_and_dependent_ones_nearer_the_more_steps(
    kernel,
):
    golden = MarkovSource.golden()
    free = MarkovSource(
        golden.initial, np.tile(golden.initial, (golden.num_tokens, 1)), golden.length
    )
    for num_steps in (1, 2, 5):
        np.testing.assert_allclose(exact_law(free, kernel, num_steps), free.probs, atol=1e-12)
    distance = [
        np.abs(exact_law(golden, kernel, n) - golden.probs).sum() / 2 for n in (1, 4, 16, 64)
    ]
    assert distance[0] > distance[1] > distance[2] > distance[3]
    assert distance[3] < distance[0] / 3


def test_texts_follow_a_source_of_independent_tokens(tokenizer):
    golden = MarkovSource.golden()
    free = MarkovSource(
        golden.initial, np.tile(golden.initial, (golden.num_tokens, 1)), golden.length
    )
    for kernel in ("absorbing", "uniform"):
        scheduler = kernel_scheduler(kernel, tokenizer, free.num_tokens)
        pipe = table_pipe(tokenizer, scheduler, predictor(free, kernel, tokenizer), free.length)
        assert chi_square_passes(
            frequencies(write_rows(pipe, free.length, 2000, 4), free), free.probs
        )


def test_a_prediction_that_leaves_the_token_itself_out_means_the_same(tokenizer):
    source = MarkovSource.golden()
    rows = []
    for rule in ("marginal", "plug_in"):
        scheduler = D3PMUniformScheduler(source.num_tokens, reverse_rule=rule)
        predict = predictor(source, "uniform", tokenizer, leave_out=rule == "plug_in")
        rows.append(
            write_rows(
                table_pipe(tokenizer, scheduler, predict, source.length), source.length, 500, 5
            )
        )
    assert torch.equal(*rows)


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_tokens_are_noised_afresh_by_the_forward_marginal(tokenizer, kernel):
    """Of a model that is sure of token 2, whatever it sees, what a step leaves is q(x_s | x_0 = 2)."""
    num_tokens, length, steps = 5, 20, 5
    sure = torch.full((num_tokens,), -torch.inf, dtype=torch.float64)
    sure[2] = 0.0
    scheduler = kernel_scheduler(kernel, tokenizer, num_tokens)
    pipe = table_pipe(tokenizer, scheduler, lambda text, time: sure.expand(*text.shape, -1), length)
    recorder = Recorder()
    written = write_rows(pipe, length, 100, steps, callback_on_step_end=recorder)
    assert (written == 2).all()
    before = None
    for timestep, tensors in list(zip(recorder.times, recorder.tensors, strict=True))[:-1]:
        tokens = tensors["tokens"][:, 3 : 3 + length]
        tokens = tokens.masked_fill(tokens == tokenizer.mask_token_id, num_tokens)
        probs = transition_matrix(
            kernel, 1 - (timestep - 1 / steps), num_tokens + (kernel == "absorbing"), num_tokens
        )
        assert chi_square_passes(
            np.bincount(tokens.flatten().numpy(), minlength=len(probs)), probs[2]
        )
        if before is not None:  # what was noise before says nothing of what is noise now
            again = tokens[before != 2]
            assert chi_square_passes(np.bincount(again.numpy(), minlength=len(probs)), probs[2])
            if kernel == "absorbing":
                revealed = tokens[before == 2]
                assert chi_square_passes(
                    np.bincount(revealed.numpy(), minlength=len(probs)), probs[2]
                )
        before = tokens


EMBEDDING_SCHEDULERS = {
    "ddim": lambda: EmbeddingDDIMScheduler(),
    "ddpm": lambda: EmbeddingDDPMScheduler(),
    "stock ddim": lambda: diffusers.DDIMScheduler.from_config(EmbeddingDDIMScheduler().config),
    "stock dpm": lambda: diffusers.DPMSolverMultistepScheduler.from_config(
        EmbeddingDDIMScheduler().config
    ),
}


@pytest.mark.parametrize("name", mostly_slow(EMBEDDING_SCHEDULERS, fast=["ddim", "stock dpm"]))
def test_words_of_an_exact_model_have_their_frequencies_and_their_noise_is_the_forward_marginal(
    tokenizer, name
):
    """x_s given the drawn words is N(sqrt(alpha_bar_s) x_0, 1 - alpha_bar_s), with fresh noise at each step."""
    probs = torch.tensor([0.35, 0.05, 0.2, 0.1, 0.25, 0.05], dtype=torch.float64)
    scheduler = EMBEDDING_SCHEDULERS[name]()
    pipe = quiet(ParaGuidePipeline(tokenizer, ExactWords(probs, len(tokenizer)), scheduler))
    recorder, before = Recorder(), None
    settings = {"length": 100, "top_p": 1.0, "num_inference_steps": 8, "output_type": "latents"}
    output = pipe(
        "the cat",
        num_return_sequences=30,
        generator=seeded(0),
        callback_on_step_end=recorder,
        **settings,
    )
    assert chi_square_passes(
        np.bincount(output.tokens[:, :-1].flatten() - 1, minlength=6), probs.numpy()
    )
    assert torch.equal(output.latents[:, :-1], pipe.denoiser.embed(output.tokens[:, :-1]))
    alphas = EmbeddingDDIMScheduler().alphas_cumprod
    for following, tensors in zip(recorder.times[1:], recorder.tensors, strict=False):
        written = slice(-101, -1)
        clean = pipe.denoiser.embed(tensors["tokens"][:, written])
        alpha = alphas[int(following)]
        noise = (
            (tensors["latents"][:, written] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        ).flatten()
        spread = 5 / len(noise) ** 0.5
        assert noise.mean().abs() < spread and (noise.var() - 1).abs() < 2 * spread
        assert (noise * clean.flatten()).mean().abs() < spread
        if before is not None:
            assert (noise * before).mean().abs() < spread
        before = noise


@pytest.mark.parametrize("kind", [*KINDS, "hybrid"])
def test_strength_0_is_unguided_to_the_last_bit(pipe_of, kind):
    pipe = pipe_of(kind)
    settings = WRITE | {"num_return_sequences": 2, "output_type": "tokens", "return_history": True}

    def history(*controls, **arguments):
        return torch.stack(
            pipe(SOURCES[:2], list(controls), generator=seeded(0), **settings | arguments).history
        )

    unguided = history()
    wanted = Wanted(list(range(20, 60)))
    assert torch.equal(history(wanted, strength=0.0), unguided)
    assert torch.equal(history(Wanted([5], scale=0.0), Wanted([7], start=1.0)), unguided)
    assert not wanted.states
    steered = history(wanted, strength=500.0)
    assert torch.equal(
        steered[:2], unguided[:2]
    )  # noise, and the first step, in which the sine is 0
    assert not torch.equal(steered, unguided)


@pytest.mark.parametrize("kind", ["absorbing", slow("uniform"), slow("embeddings"), slow("hybrid")])
def test_the_texts_have_more_of_what_is_wanted_the_stronger_the_drift(pipe_of, kind):
    pipe, ids = pipe_of(kind), list(range(20, 60))
    shares = []
    for strength in (0.0, 100.0, 1_000.0, 10_000.0):
        output = pipe(
            "the cat", Wanted(ids), strength, num_return_sequences=20, generator=seeded(0), num_inference_steps=12,
            max_new_tokens=10, output_type="tokens",
        )  # fmt: skip
        shares.append(torch.isin(output.tokens, torch.tensor(ids)).double().mean())
    assert shares[0] < shares[1] < shares[2] <= shares[3] and shares[3] - shares[0] > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_the_same_alone_and_in_a_batch(pipe_of, kind):
    pipe = pipe_of(kind)

    def write(source, generator):
        control = Wanted(list(range(20, 60)))
        return pipe(source, control, generator=generator, **WRITE, output_type="tokens").tokens

    together = write(SOURCES, [seeded(i) for i in range(4)])
    for i, source in enumerate(SOURCES):
        alone = write(source, seeded(i))[0]
        assert torch.equal(alone, together[i, : len(alone)])


@pytest.mark.parametrize("kind", KINDS)
def test_controls_are_shown_the_state_of_their_step_and_texts_that_end(pipe_of, tokenizer, kind):
    pipe, control = pipe_of(kind), Wanted([tokenizer.eos_token_id])
    pipe(
        SOURCES, control, 20_000.0, 2, generator=seeded(0), num_inference_steps=5, max_new_tokens=8
    )
    assert [s.progress for s in control.states] == [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8]
    assert [s.last for s in control.states] == [False] * 6 + [True] * 2
    cut = 0
    for state in control.states:
        real = state.attention_mask.bool()
        assert not (state.open & state.settled).any()
        assert not ((state.open | state.settled) & ~real).any()
        assert torch.equal(
            real.cumprod(dim=1).bool(), real
        )  # padding follows the text, and nothing follows it
        lengths = [len(tokenizer(source)["input_ids"]) + 2 for source in SOURCES]
        assert state.starts == lengths
        sizes = real.sum(dim=1) - torch.tensor(lengths)
        assert (sizes >= 1).all() and (sizes <= 8).all()
        cut += int((sizes < 8).sum())
    assert cut > 0
    fixed = Wanted([tokenizer.eos_token_id])  # where the length is fixed, no token ends a text
    pipe(SOURCES, [fixed, Planned(8)], 20_000.0, 2, generator=seeded(0), num_inference_steps=5)
    for state in fixed.states:
        assert state.attention_mask.sum(dim=1).tolist() == [start + 9 for start in state.starts]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_caller_gave_is_not_changed(pipe_of, kind):
    pipe = pipe_of(kind)
    given = {
        "source": list(SOURCES[:2]),
        "controls": [Wanted([30])],
        "generator": [seeded(0), seeded(1)],
    }
    before = given["source"].copy(), given["controls"].copy(), given["generator"].copy()
    plain = vars(copy.copy(given["controls"][0])).copy()
    pipe(**given, **WRITE)
    assert (given["source"], given["controls"], given["generator"]) == before
    assert {k: v for k, v in vars(given["controls"][0]).items() if k != "states"} == {
        k: v for k, v in plain.items() if k != "states"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_pipeline_comes_back_as_its_class_and_writes_the_same(pipe_of, kind, tmp_path):
    pipe = pipe_of(kind)
    pipe.save_pretrained(tmp_path)
    loaded = quiet(TextDiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is type(pipe)
    settings = WRITE | {"controls": Wanted([30, 31])}
    assert (
        loaded(SOURCES, generator=seeded(0), **settings).texts
        == pipe(SOURCES, generator=seeded(0), **settings).texts
    )


@pytest.mark.parametrize("kind", KINDS)
def test_steps_can_be_watched_streamed_and_kept(pipe_of, kind):
    pipe, recorder = pipe_of(kind), Recorder()
    settings = WRITE | {"controls": Wanted([30, 31]), "num_return_sequences": 2}
    output = pipe(
        SOURCES, generator=seeded(0), return_history=True, callback_on_step_end=recorder, **settings
    )
    assert len(output.history) == 7 and len(recorder.times) == 6 and len(output.texts) == 8
    frames = list(pipe.stream(SOURCES, generator=seeded(0), **settings))
    assert len(frames) == 6 and frames[-1] == output.texts
    assert pipe(SOURCES, generator=seeded(0), return_dict=False, **settings)[0] == output.texts


@pytest.mark.parametrize("kind", ["absorbing", slow("uniform"), "embeddings", slow("hybrid")])
def test_the_denoiser_sees_the_source_clean_in_every_step(pipe_of, tokenizer, kind):
    pipe, seen = pipe_of(kind), []
    pipe.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True
    )
    recorder = Recorder()
    pipe("a bird sang in the tree", generator=seeded(0), callback_on_step_end=recorder, **WRITE)
    row = tokenizer(["a bird sang in the tree"])["input_ids"][0]
    row = torch.tensor([[tokenizer.bos_token_id, *row, tokenizer.eos_token_id]])
    size = row.shape[1]
    assert len(seen) > 1 and len(recorder.tensors) == 6
    assert all(torch.equal(tensors["tokens"][:, :size], row) for tensors in recorder.tensors)
    for inputs, kwargs in seen:
        if kind == "embeddings":
            assert torch.equal(inputs[:, :size], pipe.denoiser.embed(row))
            assert kwargs["given"].tolist() == [[True] * size + [False] * 8]
        else:
            assert torch.equal(inputs[:, :size], row)


@pytest.mark.parametrize(
    "changes",
    [
        {"self_conditioning": True},
        {"self_conditioning": False, "normalize_embeddings": False},
        {"prediction_type": "epsilon"},
        {"categorical_output": True},
    ],
    ids=str,
)
def test_every_kind_of_embedding_model_ends_with_the_words_it_drew(tokenizer, changes):
    """Also where another word's embedding is the nearer: unequal norms, and rounding by the largest product."""
    pipe = make_pipe(tokenizer, "embeddings", **changes)
    if changes.get("categorical_output"):
        pipe.denoiser.set_noise(pipe.scheduler.alphas_cumprod)
    settings = WRITE | {
        "generator": seeded(0),
        "output_type": "latents",
        "return_history": True,
        "length": 8,
    }
    del settings["max_new_tokens"]
    output = pipe(SOURCES, Wanted([30]), **settings)
    assert torch.equal(output.tokens, output.history[-1])
    assert torch.equal(output.latents[:, :8], pipe.denoiser.embed(output.tokens[:, :8]))
    special = torch.tensor([tokenizer.mask_token_id, tokenizer.pad_token_id])
    assert not torch.isin(torch.stack(output.history[1:])[:, :, :8], special).any()
    if not changes.get("normalize_embeddings", True):
        assert not torch.equal(pipe.denoiser.round(output.latents[:, :8]), output.tokens[:, :8])


@pytest.mark.parametrize("kind", ["absorbing", "embeddings"])
def test_candidates_are_chosen_among(pipe_of, kind):
    pipe = pipe_of(kind)
    seen = []

    def longest(texts):
        seen.append(texts)
        return max(range(len(texts)), key=lambda i: len(texts[i]))

    texts = pipe(SOURCES, num_candidates=3, choose=longest, generator=seeded(0), **WRITE).texts
    assert [max(three, key=len) for three in seen] == texts and len(seen) == 4


@pytest.mark.parametrize("kind", ["absorbing", "embeddings"])
def test_a_text_of_a_given_length_has_it(pipe_of, tokenizer, kind):
    tokens = pipe_of(kind)(
        SOURCES[:2], length=[3, 5], num_inference_steps=4, generator=seeded(0)
    ).tokens
    assert tokens.shape == (2, 6) and tokens[0, 3] == tokens[1, 5] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", [slow("absorbing"), slow("uniform"), "embeddings"])
def test_classifiers_styles_words_and_lengths_steer_as_controls(pipe_of, tokenizer, kind):
    """The score that each control gives to what was written is higher than without it."""
    torch.manual_seed(0)
    pipe = pipe_of(kind)
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "max_length": 32}
    classifier = TextClassifierModel(len(tokenizer), num_classes=2, **sizes, **ids).eval()
    for parameter in classifier.parameters():
        nn.init.normal_(parameter, std=0.5)
    bert = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    bert |= {"intermediate_size": 16, "max_position_embeddings": 32}
    encoder = BertModel(BertConfig(**bert), add_pooling_layer=False).eval()
    nn.init.normal_(encoder.embeddings.word_embeddings.weight, std=0.5)
    style = style_vector(encoder, tokenizer, ["the cat sat on the mat", "the cat sat on the dog"])
    settings = {
        "num_inference_steps": 8,
        "num_return_sequences": 16,
        "output_type": "tokens",
        "strength": 3_000.0,
    }
    start = torch.full((16, 1), tokenizer.bos_token_id)

    def label_score(tokens):
        return classifier(torch.cat([start, tokens], dim=1)).logits.log_softmax(dim=-1)[:, 1].mean()

    def style_score(tokens):
        features = encoder(torch.cat([start, tokens], dim=1)).last_hidden_state.mean(dim=1)
        return torch.cosine_similarity(features, style, dim=-1).mean()

    def word_score(tokens):
        return np.mean(["cat" in text for text in tokenizer.batch_decode(tokens)])

    length = LengthControl(6)
    for control, score in (
        (CleanClassifierGuidance(classifier, 1), label_score),
        (StyleGuidance(encoder, style, scale=10.0), style_score),
        (WordsControl(tokenizer, "cat"), word_score),
    ):
        with torch.no_grad():
            free = pipe("she", [length], generator=seeded(0), **settings).tokens
            steered = pipe("she", [control, length], generator=seeded(0), **settings).tokens
            assert steered.shape == (16, 7)
            assert score(steered) > score(free)


def test_guidance_by_the_source_is_classifier_free(pipe_of, tokenizer):
    """In one step nothing is noised: the draws at scale 3 are of uncond + 3 (cond - uncond)."""
    pipe = pipe_of("absorbing")
    settings = {
        "num_inference_steps": 1,
        "max_new_tokens": 1,
        "num_return_sequences": 2000,
        "output_type": "tokens",
    }
    got = pipe("the cat", guidance_scale=3.0, top_p=1.0, generator=seeded(0), **settings).tokens[
        :, 0
    ]
    logits = []
    for source in ("the cat", ""):
        row = [
            tokenizer.bos_token_id,
            *tokenizer(source)["input_ids"],
            tokenizer.eos_token_id,
            tokenizer.mask_token_id,
        ]
        with torch.no_grad():
            logits.append(pipe.denoiser(torch.tensor([row]), torch.ones(1)).logits[0, -1].double())
    guided = logits[1] + 3 * (logits[0] - logits[1])
    guided[tokenizer.mask_token_id] = -torch.inf
    assert chi_square_passes(
        np.bincount(got.numpy(), minlength=len(guided)), guided.softmax(dim=-1).numpy()
    )


def test_what_does_not_fit_is_named(pipe_of, tokenizer):
    for kind in KINDS:
        pipe = pipe_of(kind)
        with pytest.raises(
            ValueError, match="`source` must be a string or a list of strings, got None"
        ):
            pipe(None)
        with pytest.raises(TypeError, match="source"):
            pipe()
        with pytest.raises(
            ValueError, match="`strength` must be a finite number of at least 0, got -1"
        ):
            pipe("she", strength=-1)
        with pytest.raises(ValueError, match="`controls` that fix the length exclude"):
            pipe("she", controls=Planned(3), max_new_tokens=3)
        with pytest.raises(ValueError, match="`output_type` must be"):
            pipe("she", output_type="images")
    embedded, tokens = pipe_of("embeddings"), pipe_of("absorbing")
    noisy = ClassifierGuidance(
        TextClassifierModel(len(tokenizer), num_classes=2, hidden_size=16).eval(), 1
    )
    with pytest.raises(
        ValueError, match="`controls` must have a `log_prob` of clean text.*got ClassifierGuidance"
    ):
        tokens("she", noisy)
    plain = make_embedding_model(tokenizer, partial_noising=False)
    with pytest.raises(ValueError, match="`source` needs a denoiser with `partial_noising=True`"):
        ParaGuidePipeline(tokenizer, plain, EmbeddingDDIMScheduler())("she")
    for arguments in ({"guidance_scale": 2.0}, {"negative_prompt": "a"}):
        with pytest.raises(
            ValueError, match="`guidance_scale` must be 1, and `negative_prompt` be left out"
        ):
            embedded("she", **arguments)
    euler = diffusers.EulerDiscreteScheduler.from_config(EmbeddingDDIMScheduler().config)
    with pytest.raises(
        ValueError, match="`scheduler` must noise on the scale of the model.*got EulerDiscrete"
    ):
        ParaGuidePipeline(tokenizer, embedded.denoiser, euler)("she")
    stock = diffusers.BlockRefinementScheduler()
    with pytest.raises(
        ValueError, match="`scheduler` must have `add_noise`.*got BlockRefinementScheduler"
    ):
        ParaGuidePipeline(tokenizer, tokens.denoiser, stock)("she")
    blocks = make_denoiser(tokenizer, block_length=8)
    with pytest.raises(
        ValueError, match="`denoiser` must write whole rows, but has `block_length`=8"
    ):
        ParaGuidePipeline(tokenizer, blocks, tokens.scheduler)("she")
    hybrid = D3PMHybridScheduler(
        tokenizer.mask_token_id, tokenizer.pad_token_id, reverse_rule="plug_in"
    )
    with pytest.raises(
        ValueError, match='`scheduler` must have `reverse_rule="marginal"` or uniform noise'
    ):
        ParaGuidePipeline(tokenizer, tokens.denoiser, hybrid)("she")
