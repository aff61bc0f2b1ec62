"""Laws of DiffusionLMPipeline under guidance: conditions and their absence, controls, inner updates, batches."""

import copy
import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from conftest import make_embedding_model, slow
from support.exact_models import GaussianDenoiser, Rewritten
from support.gaussian_chains import MEAN, STD, gaussian_denoiser
from support.pipeline_calls import Calls

from text_diffusers import (
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
    TextDiffusionPipeline,
)

KINDS = ["sample", "epsilon", "v_prediction"]
SOURCES = ["the cat", "a bird sang in the tree and", "she"]
# c is x_0 seen under noise of this size.
OBSERVED = -0.4
OBSERVED_STD = 0.6


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_model(tokenizer, **changes):
    return make_embedding_model(tokenizer, **{"num_classes": 3, "partial_noising": True} | changes)


def make_pipe(tokenizer, denoiser=None, scheduler=None, **changes):
    denoiser = make_model(tokenizer, **changes) if denoiser is None else denoiser
    scheduler = scheduler or EmbeddingDDIMScheduler(prediction_type=denoiser.config.prediction_type)
    pipe = DiffusionLMPipeline(tokenizer, denoiser, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tokenizer):
    return make_pipe(tokenizer)


class Linear:
    """log p(c | x_t) = slope * (sum of the embeddings), of noisy embeddings."""

    def __init__(self, slope=1.0, scale=1.0, start=0.0, stop=1.0):
        self.slope, self.scale, self.start, self.stop = slope, scale, start, stop

    def __call__(self, logits, state): ...

    def latent_log_prob(self, latents, timestep, attention_mask):
        return self.slope * latents.sum(dim=(1, 2))


class Wanted:
    """log p(c | soft words): how likely a word is at the open tokens of each row."""

    start, stop = 0.0, 1.0

    def __init__(self, word, scale=1.0, temperature=1.0):
        self.word, self.scale, self.temperature, self.states = word, scale, temperature, []

    def __call__(self, logits, state): ...

    def log_prob(self, probs, state):
        self.states.append(state)
        return (probs[..., self.word].log().masked_fill(~state.open, 0.0)).sum(dim=1)


class ExactGaussian(Linear):
    """log p(c | x_t) of that data, exactly, where c is x_0 seen under Gaussian noise."""

    def latent_log_prob(self, latents, timestep, attention_mask):
        alpha_bar = EmbeddingDDIMScheduler(1000, "cosine").alphas_cumprod[int(timestep)]
        left = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
        off = OBSERVED - gaussian_denoiser(latents, alpha_bar)
        return -off.square().sum(dim=(1, 2)) / (2 * (left + OBSERVED_STD**2))


@pytest.mark.parametrize(
    "kind, eta",
    [slow("sample", 0.0), ("sample", 1.0), slow("epsilon", 1.0), slow("v_prediction", 0.0)],
)
def test_an_exact_classifier_at_scale_1_samples_the_exact_posterior(tokenizer, kind, eta):
    scheduler = EmbeddingDDIMScheduler(1000, "cosine", prediction_type=kind)
    pipe = make_pipe(tokenizer, GaussianDenoiser(len(tokenizer), kind), scheduler)
    settings = {
        "length": 50,
        "num_return_sequences": 5,
        "num_inference_steps": 400,
        "output_type": "latents",
    }
    latents = pipe(controls=ExactGaussian(), eta=eta, generator=seeded(0), **settings).latents[
        :, 1:-1
    ]
    variance = 1 / (1 / STD**2 + 1 / OBSERVED_STD**2)
    mean = variance * (MEAN / STD**2 + OBSERVED / OBSERVED_STD**2)
    assert latents.numel() == 4000
    assert abs(float(latents.mean()) - mean) < 4 * (variance / 4000) ** 0.5 + 0.003
    assert abs(float(latents.var()) / variance - 1) < 0.1  # of which 4 standard errors are 0.09


@pytest.mark.parametrize(
    "make, has_controls",
    [
        (EmbeddingDDIMScheduler, True),
        slow(EmbeddingDDIMScheduler, False),
        slow(EmbeddingDDPMScheduler, True),
        (EmbeddingDDPMScheduler, False),
        (EmbeddingDPMSolverScheduler, True),
        slow(EmbeddingDPMSolverScheduler, False),
        slow("EulerDiscreteScheduler", True),
        ("EulerDiscreteScheduler", False),
    ],
)
def test_scale_1_and_controls_of_scale_0_are_the_unguided_call_to_the_last_bit(
    tokenizer, make, has_controls
):
    controls = [Linear(scale=0.0), Wanted(7, scale=0.0)] if has_controls else None
    base = EmbeddingDDIMScheduler()
    scheduler = (
        getattr(diffusers, make).from_config(base.config) if isinstance(make, str) else make()
    )
    model = make_model(tokenizer)
    plain = make_pipe(tokenizer, model, scheduler)
    guided = make_pipe(tokenizer, model, copy.deepcopy(scheduler))
    settings = {
        "source": SOURCES,
        "class_labels": [0, 1, 2],
        "num_inference_steps": 5,
        "output_type": "latents",
    }
    want = plain(generator=seeded(0), max_new_tokens=6, **settings)
    with Calls(model) as calls:
        found = guided(
            generator=seeded(0), max_new_tokens=6, controls=controls, guidance_scale=1.0, **settings
        )
    assert torch.equal(found.latents, want.latents) and torch.equal(found.tokens, want.tokens)
    assert len(calls) == 5 and all(len(call.sample) == 3 for call in calls)
    inner = guided(
        generator=seeded(0), max_new_tokens=6, controls=Linear(scale=0.0), inner_steps=2, **settings
    )
    assert torch.equal(inner.latents, want.latents)


@pytest.mark.parametrize("self_conditioning", [False, True])
def test_scale_0_is_the_unconditional_text(tokenizer, self_conditioning):
    model = make_model(tokenizer, self_conditioning=self_conditioning)
    settings = {
        "prompt": "the cat",
        "num_inference_steps": 6,
        "max_new_tokens": 7,
        "output_type": "latents",
    }
    pipe = make_pipe(tokenizer, model)
    without, labelled = (
        pipe(generator=seeded(0), class_labels=c, **settings).latents for c in (None, 1)
    )
    found = pipe(generator=seeded(0), class_labels=1, guidance_scale=0.0, **settings).latents
    torch.testing.assert_close(found, without, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(labelled, without, atol=1e-2)


def test_every_step_is_one_call_with_the_condition_and_what_the_caller_gave_stays(pipe):
    """A peer's edit in place left one of a hundred calls with the condition."""
    given = {
        "class_labels": [0, 1, 2],
        "guidance_scale": [0.0, 1.0, 2.5],
        "controls": [Linear(), Wanted(9)],
    }
    before = {name: list(values) for name, values in given.items()}
    with Calls(pipe.denoiser) as calls:
        pipe(**given, max_new_tokens=4, num_inference_steps=7, generator=seeded(0))
    assert given == before
    assert [call.timestep for call in calls] == pipe.scheduler.timesteps.tolist()
    assert all(
        call.class_labels.tolist() == [0, 1, 2, 3, 3] for call in calls
    )  # of scale 1 no unconditional row
    assert all(torch.equal(call.sample[3:], call.sample[[0, 2]]) for call in calls)


def test_guidance_acts_between_its_start_and_its_stop(pipe):
    settings = {
        "class_labels": 1,
        "max_new_tokens": 4,
        "num_inference_steps": 8,
        "generator": seeded(0),
    }
    with Calls(pipe.denoiser) as calls:
        pipe(guidance_scale=3.0, guidance_interval=(0.25, 0.75), **settings)
    assert [len(call.sample) for call in calls] == [1, 1, 2, 2, 2, 2, 1, 1]
    control = Wanted(9)
    control.start, control.stop = 0.5, 0.75
    pipe(controls=control, **settings)
    assert [state.progress for state in control.states] == [0.5, 0.625]


@pytest.mark.parametrize("negative", [None, ["a bird", "", "the dog sat on the cat and the cat"]])
def test_a_row_without_its_source_is_laid_out_as_one_and_the_last_step_is_the_combination(
    pipe, tokenizer, negative
):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    sources, others = (
        [tokenizer(text)["input_ids"] for text in texts]
        for texts in (SOURCES, negative or [""] * 3)
    )
    lengths, scales = [4, 2, 7], [2.0, 3.0, 0.5]
    settings = {
        "length": lengths,
        "num_inference_steps": 5,
        "output_type": "latents",
        "negative_prompt": negative,
    }
    with Calls(pipe.denoiser) as calls:
        output = pipe(source=SOURCES, guidance_scale=scales, generator=seeded(0), **settings)
    assert len(calls) == 5
    for call in calls:
        for i, (source, other, length) in enumerate(zip(sources, others, lengths, strict=True)):
            with_source, without = ([bos, *ids, eos] for ids in (source, other))
            there, here = (slice(len(row), len(row) + length) for row in (with_source, without))
            for row, ids, text in ((i, with_source, there), (3 + i, without, here)):
                assert torch.equal(
                    call.sample[row, : len(ids)], pipe.denoiser.embed(torch.tensor(ids))
                )
                assert torch.equal(
                    call.sample[row, text.stop], pipe.denoiser.embed(torch.tensor(eos))
                )
                assert call.attention_mask[row].tolist() == [
                    int(place <= text.stop) for place in range(call.sample.shape[1])
                ]
                assert call.given[row, : len(ids)].all() and not call.given[row, text].any()
            assert torch.equal(call.sample[3 + i, here], call.sample[i, there])
            if call is calls[-1]:
                cond, uncond = call.said[i, there], call.said[3 + i, here]
                want = uncond + scales[i] * (cond - uncond)
                torch.testing.assert_close(output.latents[i, :length], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "guide_by, labels, length", [(None, 3, 2), ("both", 3, 2), ("label", 3, None), ("prompt", 1, 2)]
)
def test_what_guidance_strengthens_is_what_the_other_row_lacks(
    pipe, tokenizer, guide_by, labels, length
):
    settings = {"max_new_tokens": 4, "num_inference_steps": 3, "generator": seeded(0)}
    with Calls(pipe.denoiser) as calls:
        pipe(source="the cat", class_labels=1, guidance_scale=2.0, guide_by=guide_by, **settings)
    known = len(tokenizer("the cat")["input_ids"]) + 2
    for call in calls:
        assert call.class_labels.tolist() == [1, labels]
        assert call.given[0, :known].all() and not call.given[0, known:].any()
        assert int(call.given[1, : int(call.attention_mask[1].sum())].sum()) == (length or known)


def test_each_part_is_shown_its_own_clean_estimate(tokenizer):
    pipe = make_pipe(tokenizer, prediction_type="sample")
    with Calls(pipe.denoiser) as calls:
        pipe(
            source="the cat",
            guidance_scale=4.0,
            length=5,
            num_inference_steps=4,
            generator=seeded(0),
        )
    assert calls[0].self_condition is None
    for before, call in zip(calls, calls[1:], strict=False):
        real = call.attention_mask.bool()
        torch.testing.assert_close(call.self_condition[real], before.said[real])


@pytest.mark.parametrize("name", [slow("ddim"), "dpm"])
def test_rows_of_mixed_scales_labels_and_lengths_are_the_same_alone(tokenizer, name):
    scheduler = {"ddim": EmbeddingDDIMScheduler, "dpm": EmbeddingDPMSolverScheduler}[name]()
    pipe = make_pipe(tokenizer, scheduler=scheduler)
    word = tokenizer("cat")["input_ids"][0]
    settings = {"num_inference_steps": 5, "output_type": "latents", "guidance_interval": (0.0, 0.8)}
    labels, scales, lengths = [0, 1, 2], [0.0, 1.0, 3.0], [5, 7, 3]
    ways = [
        {},
        {"controls": [Wanted(word, 0.01), Linear(scale=0.01)]},
        {"controls": Wanted(word), "inner_steps": 2},
    ]
    for way in ways:
        more = settings | way
        together = pipe(
            source=SOURCES, class_labels=labels, guidance_scale=scales, length=lengths,
            generator=[seeded(i) for i in range(3)], **more,
        )  # fmt: skip
        for i in range(3):
            one = {"class_labels": labels[i], "guidance_scale": scales[i], "length": lengths[i]}
            alone = pipe(source=SOURCES[i], generator=seeded(i), **one, **more).latents[
                0, : lengths[i]
            ]
            torch.testing.assert_close(
                together.latents[i, : lengths[i]], alone, atol=5e-3, rtol=5e-3
            )


@pytest.mark.parametrize("way", ["labels", "words", "latents"])
def test_guiding_clean_embeddings_noise_and_velocity_is_the_same(tokenizer, way):
    model = make_model(tokenizer)
    guidance = {
        "labels": {"guidance_scale": 3.0},
        "words": {"controls": Wanted(9, 0.01)},
        "latents": {"controls": Linear(0.3)},
    }[way]
    found = []
    for kind in KINDS:
        pipe = make_pipe(tokenizer, Rewritten(model, kind))
        settings = {
            "class_labels": 2,
            "length": 6,
            "num_inference_steps": 10,
            "output_type": "latents",
        }
        found.append(pipe(generator=seeded(0), **settings, **guidance).latents)
    plain = pipe(generator=seeded(0), **settings).latents
    assert not torch.allclose(found[0], plain, atol=0.05)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=0.02, rtol=0.02)


def test_a_control_of_words_moves_the_estimate_by_its_gradient_through_the_denoiser(tokenizer):
    pipe = make_pipe(tokenizer, num_classes=None, self_conditioning=False, partial_noising=False)
    control, model = Wanted(9, 3.0, temperature=2.0), pipe.denoiser
    control.start = 0.75
    settings = {
        "length": 5,
        "num_inference_steps": 4,
        "num_return_sequences": 2,
        "output_type": "latents",
    }
    with Calls(model) as calls:
        output = pipe(controls=control, generator=seeded(0), **settings)
    noisy = calls[-1].sample.detach().clone().requires_grad_()
    clean = model(noisy, calls[-1].timestep, calls[-1].attention_mask).sample
    scores = model.logits(clean)[:, 1:-1] / 2.0
    possible = [
        i
        for i in range(len(tokenizer))
        if i not in (tokenizer.mask_token_id, tokenizer.pad_token_id)
    ]
    log_prob = (scores[..., 9] - scores[..., possible].logsumexp(dim=-1)).sum()
    gradient = torch.autograd.grad(log_prob, noisy)[0]
    alpha_bar = float(pipe.scheduler.alphas_cumprod[int(calls[-1].timestep)])
    want = calls[-1].said + 3 * (1 - alpha_bar) / alpha_bar**0.5 * gradient
    torch.testing.assert_close(output.latents[:, 1:-1], want[:, 1:-1], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(output.latents[:, 1:-1], calls[-1].said[:, 1:-1], atol=1e-2)


@pytest.mark.slow
def test_a_larger_scale_reaches_further_and_several_controls_are_their_sum(tokenizer):
    scheduler = EmbeddingDDIMScheduler(1000, "cosine")
    pipe = make_pipe(tokenizer, GaussianDenoiser(len(tokenizer), "sample"), scheduler)
    settings = {"length": 20, "num_inference_steps": 50, "output_type": "latents"}

    def latents(*controls):
        return pipe(controls=list(controls), generator=seeded(0), **settings).latents[:, 1:-1]

    distances = [
        float((latents(ExactGaussian(scale=s)) - OBSERVED).abs().mean()) for s in (-0.5, 0, 1, 2, 5)
    ]
    assert distances == sorted(distances, reverse=True) and distances[-1] < distances[1] / 3
    both = latents(ExactGaussian(scale=0.5), Linear(0.2, scale=0.5))
    assert not torch.allclose(both, latents(ExactGaussian(scale=0.5)), atol=0.01)
    torch.testing.assert_close(latents(Linear(0.2), Linear(0.5, scale=0.2)), latents(Linear(0.3)))


def test_inner_updates_follow_each_step_but_the_last_and_remember_all_gradients(tokenizer):
    """If the denoiser says 0 and the gradient is constant, the n-th update of Adagrad is step_size / sqrt(n)."""
    pipe = make_pipe(tokenizer)
    pipe.denoiser.forward = lambda sample, *_, **__: SimpleNamespace(
        sample=torch.zeros_like(sample)
    )
    latents = {}

    def run(name, **arguments):
        latents[name] = []
        keep = {
            "callback_on_step_end": lambda _, i, t, tensors: latents[name].append(
                tensors["latents"][:, 1:-1]
            )
        }
        pipe(length=5, num_inference_steps=4, generator=seeded(0), **keep, **arguments)

    run("plain")
    updates = {"inner_steps": 2, "fluency": 0.0, "step_size": 0.05}
    run("adagrad", controls=Linear(slope=30.0), **updates)
    run("sign", controls=Linear(slope=1e-3), optimizer="sign", **updates)
    alphas = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps]
    moved, count = {"adagrad": 0.0, "sign": 0.0}, 0
    for step in range(3):
        shrink = float(((1 - alphas[step + 1]) / (1 - alphas[step])) ** 0.5)
        moved = {name: shrink * shift for name, shift in moved.items()}
        for _ in range(2):
            count += 1
            moved["adagrad"] += 0.05 / count**0.5
            moved["sign"] += 0.05
        for name, shift in moved.items():
            difference = latents[name][step] - latents["plain"][step]
            torch.testing.assert_close(
                difference, torch.full_like(difference, shift), atol=1e-5, rtol=1e-4
            )
    assert torch.equal(latents["sign"][3], latents["plain"][3])  # the clean estimate, which is 0


def test_fluency_pulls_towards_the_mean_of_a_step_that_draws_noise(tokenizer):
    pipe = make_pipe(tokenizer, scheduler=EmbeddingDDPMScheduler())
    pipe.denoiser.forward = lambda sample, *_, **__: SimpleNamespace(
        sample=torch.zeros_like(sample)
    )
    kept = []
    keep = {
        "callback_on_step_end": lambda _, i, t, tensors: kept.append(tensors["latents"][:, 1:-1])
    }
    settings = {
        "length": 5,
        "num_inference_steps": 4,
        "optimizer": "sign",
        "fluency": 1.0,
        "step_size": 1e-3,
    } | keep
    pipe(controls=Linear(slope=0.0), inner_steps=1, generator=seeded(0), **settings)
    pipe(generator=seeded(0), **settings)
    one, other = (float(pipe.scheduler.alphas_cumprod[t]) for t in pipe.scheduler.timesteps[:2])
    start = []
    pipe.denoiser.forward = lambda sample, *_, **__: (
        start.append(sample),
        SimpleNamespace(sample=sample * 0),
    )[1]
    pipe(generator=seeded(0), **settings)
    mean = (
        start[0][:, 1:-1] * (other / one) ** 0.5 * (1 - other) / (1 - one) * one / other
    )  # of p(x_s | x_t, 0)
    torch.testing.assert_close(
        kept[0] - kept[4], -1e-3 * (kept[4] - mean).sign(), atol=1e-6, rtol=1e-3
    )


def test_the_scale_of_a_schedulers_latents_makes_no_difference(tokenizer):
    """Euler's grow with the noise; without fresh noise it takes the steps of DDIM."""
    model = make_model(tokenizer)
    ddim = EmbeddingDDIMScheduler(timestep_spacing="leading")
    settings = {"class_labels": 1, "length": 5, "num_inference_steps": 20, "output_type": "latents"}
    ways = [
        {"controls": Linear(0.1)},
        {"controls": Linear(0.1), "inner_steps": 2, "step_size": 0.02},
        {"controls": Wanted(9), "inner_steps": 1, "step_size": 0.02, "fluency": 0.5},
    ]
    for way in ways:
        found = []
        for scheduler in (ddim, diffusers.EulerDiscreteScheduler.from_config(ddim.config)):
            pipe = make_pipe(tokenizer, model, scheduler)
            found.append(pipe(generator=seeded(0), guidance_scale=2.0, **way, **settings).latents)
        torch.testing.assert_close(*found, atol=0.02, rtol=0.02)


def test_updates_call_the_denoiser_only_for_controls_of_words_and_leave_known_words(
    pipe, tokenizer
):
    settings = {
        "prompt": "the cat",
        "max_new_tokens": 5,
        "num_inference_steps": 4,
        "inner_steps": 3,
    }
    for control, count in ((Linear(), 4), (Wanted(9), 4 + 3 * 3)):
        with Calls(pipe.denoiser) as calls:
            output = pipe(controls=control, generator=seeded(0), **settings)
        assert len(calls) == count and output.texts[0].startswith("the cat")
    known = len(tokenizer("the cat")["input_ids"]) + 1
    assert all(torch.equal(call.sample[:, :known], calls[0].sample[:, :known]) for call in calls)


def test_controls_see_the_texts_as_they_are(pipe, tokenizer):
    control = Wanted(9, 0.1)
    pipe(
        source=SOURCES,
        length=[2, 3, 4],
        controls=control,
        num_inference_steps=4,
        generator=seeded(0),
    )
    assert [state.progress for state in control.states] == [0.0, 0.25, 0.5, 0.75]
    assert [state.last for state in control.states] == [False, False, False, True]
    assert [state.timestep for state in control.states] == pipe.scheduler.timesteps.tolist()
    for state in control.states:
        assert state.starts == [len(tokenizer(source)["input_ids"]) + 2 for source in SOURCES]
        assert torch.equal(state.settled | state.open, state.attention_mask.bool())
        assert not (state.settled & state.open).any() and state.open.sum(dim=1).tolist() == [
            2,
            3,
            4,
        ]
        assert (
            (state.tokens[state.settled & (state.tokens == tokenizer.eos_token_id)]).numel()
            == 3 * 3
        )
        assert state.selected is None and state.mask_token_id == tokenizer.mask_token_id
    control = Wanted(9, 0.1)
    pipe("the cat", controls=control, max_new_tokens=3, num_inference_steps=2, generator=seeded(0))
    assert control.states[0].starts == [1]


def test_a_control_may_fix_the_lengths(pipe):
    class Longer(Linear):
        def plan_lengths(self, generators):
            return [2 + i for i in range(len(generators))]

    output = pipe(
        controls=Longer(0.01), class_labels=[0, 1, 2], num_inference_steps=3, generator=seeded(0)
    )
    assert (output.tokens != pipe.tokenizer.pad_token_id).sum(dim=1).tolist() == [4, 5, 6]
    for arguments in ({"length": 3}, {"text": "a [MASK]"}, {"max_new_tokens": 3}):
        with pytest.raises(ValueError, match="`controls` that fix the length exclude"):
            pipe(controls=Longer(), **arguments)


def test_scales_go_with_candidates_and_a_model_that_knows_its_noise_is_guided_on_its_mean_embedding(
    tokenizer,
):
    model = make_model(tokenizer, categorical_output=True)
    model.set_noise(EmbeddingDDIMScheduler().alphas_cumprod)
    pipe, scales = make_pipe(tokenizer, model), torch.tensor([2.0, 2.0, 0.0, 0.0])[:, None, None]
    settings = {
        "length": 4,
        "num_inference_steps": 4,
        "class_labels": 0,
        "guidance_scale": [2.0, 0.0],
    }
    with Calls(model) as calls:
        found = pipe(
            num_return_sequences=2, output_type="latents", generator=seeded(0), **settings
        ).latents
    cond, uncond = calls[-1].said.split(4)
    torch.testing.assert_close(
        found[:, 1:-1], (uncond + scales * (cond - uncond))[:, 1:-1], atol=1e-5, rtol=1e-5
    )
    choice = {
        "num_candidates": 2,
        "choose": lambda texts: 1,
        "controls": Wanted(9, 0.1),
        "generator": seeded(0),
    }
    with Calls(model) as calls:
        assert len(pipe(**settings, **choice).texts) == 2
    assert all(len(call.sample) == 8 for call in calls)


def test_stream_ends_with_the_text_of_the_call(pipe):
    settings = {
        "source": "the cat",
        "guidance_scale": 2.0,
        "max_new_tokens": 8,
        "num_inference_steps": 6,
    }
    frames = list(pipe.stream(**settings, controls=Linear(0.1), generator=seeded(2)))
    assert (
        len(frames) == 6
        and frames[-1] == pipe(**settings, controls=Linear(0.1), generator=seeded(2)).texts
    )


def test_a_folder_of_the_guided_pipeline_of_the_first_edition_is_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    config = json.loads(index.read_text())
    index.write_text(json.dumps(config | {"_class_name": "GuidedDiffusionLMPipeline"}))

    loaded = TextDiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is DiffusionLMPipeline
    loaded.set_progress_bar_config(disable=True)
    settings = {"class_labels": 1, "guidance_scale": 2.0, "length": 5, "num_inference_steps": 3}
    outputs = [
        each(generator=seeded(0), output_type="latents", **settings) for each in (pipe, loaded)
    ]
    assert torch.equal(outputs[0].latents, outputs[1].latents)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"guidance_scale": 2.0}, "`guidance_scale` must be 1 without a condition, .* got 2.0"),
        (
            {"guidance_scale": 2.0, "prompt": "a"},
            "must be 1 without a condition, `class_labels` or `source`, got 2.0",
        ),
        ({"guidance_scale": float("nan"), "class_labels": 1}, "`guidance_scale` must be finite"),
        (
            {"guidance_scale": [1.0, 2.0], "class_labels": [0, 1, 2]},
            "`guidance_scale` must be one or 3",
        ),
        ({"guidance_interval": (0.5, 0.2)}, "`guidance_interval` must be two shares of the steps"),
        (
            {"guide_by": "length"},
            r"`guide_by` must be one of \('label', 'prompt', 'both', 'masked_prompt'\), got 'length'",
        ),
        ({"guide_by": "label", "source": "a"}, "`guide_by`='label' needs `class_labels`"),
        ({"guide_by": "both", "class_labels": 1}, "`guide_by`='both' needs `source`"),
        ({"negative_prompt": "a", "class_labels": 1}, "`negative_prompt` needs a `source`"),
        (
            {"negative_prompt": ["a", "b"], "source": "a", "guidance_scale": 2.0},
            "`negative_prompt` must be one or 1",
        ),
        (
            {"negative_prompt": "the cat " * 20, "source": "a", "guidance_scale": 2.0},
            "must fit into the model's 32",
        ),
        ({"controls": 3}, "`controls` must be controls"),
        ({"controls": print}, "`controls` must have a `log_prob` or `latent_log_prob`"),
        ({"inner_steps": -1}, "`inner_steps` must be an integer of at least 0, got -1"),
        ({"inner_steps": 2}, "`inner_steps` needs `controls`, got 2 without any"),
        ({"optimizer": "adam"}, r"`optimizer` must be one of \('adagrad', 'sign'\), got 'adam'"),
        ({"fluency": -0.1}, "`fluency` must be at least 0, got -0.1"),
        ({"step_size": 0.0}, "`step_size` must be above 0, got 0.0"),
        ({"controls": Linear(float("nan"))}, "`controls` gave NaN or infinite gradients"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(num_inference_steps=2, **arguments)


def test_log_probabilities_without_a_gradient_are_refused(pipe):
    control = Linear()
    control.latent_log_prob = lambda latents, timestep, mask: latents.detach().sum(dim=(1, 2))
    with pytest.raises(
        ValueError, match="`controls` must give log-probabilities that can be differentiated"
    ):
        pipe(num_inference_steps=2, controls=control)


def test_controls_of_words_need_a_denoiser_with_logits(tokenizer):
    pipe = make_pipe(
        tokenizer,
        GaussianDenoiser(len(tokenizer), "sample"),
        EmbeddingDDIMScheduler(1000, "cosine"),
    )
    with pytest.raises(ValueError, match="GaussianDenoiser has no `logits`"):
        pipe(controls=Wanted(9), num_inference_steps=2)
