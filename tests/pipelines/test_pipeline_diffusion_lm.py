"""Laws of DiffusionLMPipeline: exact samples, seeds, batches, known words, sources, schedulers, and clear errors."""

import itertools
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from conftest import make_embedding_model as make_model
from conftest import mostly_slow, slow
from support.exact_models import ExactDenoiser
from support.oracles import chi_square_passes
from support.pipeline_calls import Calls

from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
    TextDiffusionPipeline,
    TextTransformerModel,
)

PROMPTS = ["the cat", "a bird sang in the tree and", "she", "the dog sat on"]
OURS = {
    "ddim": EmbeddingDDIMScheduler,
    "ddpm": EmbeddingDDPMScheduler,
    "dpm": EmbeddingDPMSolverScheduler,
    "sde-dpm": lambda **settings: EmbeddingDPMSolverScheduler(
        algorithm_type="sde-dpmsolver++", **settings
    ),
}
STOCK = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
]
NOISY = {"ddpm", "sde-dpm", "DDPMScheduler", "EulerAncestralDiscreteScheduler"}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_scheduler(name, **settings):
    """One of ours, or a stock one with the noise and prediction type of ours."""
    if name in OURS:
        return OURS[name](**settings)
    ancestral = (
        name == "EulerAncestralDiscreteScheduler"
        and settings.get("prediction_type", "sample") == "sample"
    )
    changes = {"prediction_type": "epsilon"} if ancestral else {}
    return getattr(diffusers, name).from_config(
        EmbeddingDDIMScheduler(**settings).config, **changes
    )


def make_pipe(tokenizer, denoiser=None, scheduler="ddim", **changes):
    denoiser = make_model(tokenizer, **changes) if denoiser is None else denoiser
    predicts = denoiser.config.prediction_type
    pipe = DiffusionLMPipeline(
        tokenizer, denoiser, make_scheduler(scheduler, prediction_type=predicts)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tokenizer):
    return make_pipe(tokenizer)


@pytest.fixture
def pair_pipe(tokenizer):
    """One that writes from a source."""
    return make_pipe(tokenizer, partial_noising=True)


def write_pairs(pipe, **arguments):
    """(pairs, 2) the pairs of words of 30 texts, from 0."""
    settings = {"num_return_sequences": 30, "num_inference_steps": 200, "output_type": "tokens"}
    return pipe(generator=seeded(0), **settings | arguments).tokens[:, 1:-1].reshape(-1, 2) - 1


UNIGRAMS = torch.tensor([0.35, 0.05, 0.2, 0.1, 0.25, 0.05], dtype=torch.float64)
BIGRAMS = torch.tensor([[0.1, 0.3, 0.1], [0.2, 0.02, 0.08], [0.05, 0.05, 0.1]], dtype=torch.float64)
COPIES = torch.tensor(
    [[0.49, 0.005, 0.005], [0.005, 0.24, 0.005], [0.005, 0.005, 0.24]], dtype=torch.float64
)


@pytest.mark.parametrize(
    "name, eta",
    mostly_slow(
        [("ddim", 1.0), *((name, 0.0) for name in [*OURS, *STOCK])],
        fast=[("ddim", 0.0), ("EulerDiscreteScheduler", 0.0)],
    ),
)
def test_independent_words_follow_their_frequencies_when_the_denoiser_is_exact(
    tokenizer, name, eta
):
    """The pipeline as a whole, with every scheduler."""
    pipe = make_pipe(tokenizer, ExactDenoiser(UNIGRAMS.outer(UNIGRAMS), len(tokenizer)), name)
    counts = np.bincount(write_pairs(pipe, length=100, eta=eta).flatten().numpy(), minlength=6)
    assert counts.sum() == 3000 and chi_square_passes(counts, UNIGRAMS.numpy())


@pytest.mark.parametrize(
    "name, predicts",
    mostly_slow(
        itertools.product(
            ["ddpm", "dpm", "EulerAncestralDiscreteScheduler"], ["epsilon", "v_prediction"]
        ),
        fast=[("dpm", "v_prediction")],
    ),
)
def test_pairs_of_words_follow_their_table_whatever_the_denoiser_predicts(
    tokenizer, name, predicts
):
    pipe = make_pipe(tokenizer, ExactDenoiser(BIGRAMS, len(tokenizer), predicts), name)
    first, second = write_pairs(pipe, length=100).T
    assert chi_square_passes(
        np.bincount((3 * first + second).numpy(), minlength=9), BIGRAMS.flatten().numpy()
    )


def test_a_gap_beside_given_words_follows_the_conditional_distribution(tokenizer):
    pipe = make_pipe(
        tokenizer, ExactDenoiser(BIGRAMS, len(tokenizer), partial_noising=True), "ddpm"
    )
    text = f"{tokenizer.decode([2])}{tokenizer.mask_token}" * 50
    assert tokenizer(text)["input_ids"] == [2, tokenizer.mask_token_id] * 50
    first, second = write_pairs(pipe, text=text + tokenizer.decode([2])).T
    assert (first == 1).all()
    assert chi_square_passes(
        np.bincount(second.numpy(), minlength=3), (BIGRAMS[1] / BIGRAMS[1].sum()).numpy()
    )


@pytest.mark.parametrize(
    "name, known_words",
    mostly_slow(
        itertools.product(["ddpm", "dpm", "EulerDiscreteScheduler"], ["renoise", "clean"]),
        fast=[("EulerDiscreteScheduler", "clean")],
    ),
)
def test_known_words_shape_the_gap_beside_them(tokenizer, name, known_words):
    """A word is nearly always followed by its copy. Both ways are approximations; neither ignores the known word."""
    pipe = make_pipe(tokenizer, ExactDenoiser(COPIES, len(tokenizer)), name)
    text = f"{tokenizer.decode([2])}{tokenizer.mask_token}" * 50 + tokenizer.decode([2])
    first, second = write_pairs(pipe, text=text, known_words=known_words).T
    assert (first == 1).all()
    assert (second == 1).double().mean() > 0.5  # twice as often as without a known word


# Each of ours, and of the stock ones one that keeps earlier steps and one whose latents have a scale of their own.
SOME = [*OURS, "UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler"]


@pytest.mark.parametrize("name", mostly_slow([*OURS, *STOCK], fast=SOME))
def test_a_text_is_the_same_alone_and_in_a_batch(tokenizer, name):
    """Widths of 8 and rows of unequal length: where noise is drawn in blocks, it must still be the row's own."""
    pipe = make_pipe(tokenizer, scheduler=name)
    settings = {"num_inference_steps": 6, "max_new_tokens": 7, "output_type": "latents"}
    together = pipe(PROMPTS, generator=[seeded(i) for i in range(4)], **settings)
    for i, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, generator=seeded(i), **settings)
        size = alone.tokens.shape[1]
        torch.testing.assert_close(
            alone.latents[0], together.latents[i, :size], atol=2e-3, rtol=2e-3
        )
        assert torch.equal(alone.tokens[0], together.tokens[i, :size])


def test_infilled_texts_and_texts_from_sources_are_the_same_alone_and_in_a_batch(pipe, pair_pipe):
    texts = ["the [MASK] sat", "[MASK] was late for the [MASK] and ran all the way"]
    together = pipe(text=texts, num_inference_steps=6, generator=[seeded(0), seeded(1)]).texts
    assert together[0] == pipe(text=texts[0], num_inference_steps=6, generator=seeded(0)).texts[0]
    settings = {"num_inference_steps": 6, "max_new_tokens": 5}
    together = pair_pipe(source=PROMPTS, generator=[seeded(i) for i in range(4)], **settings).texts
    assert [
        pair_pipe(source=p, generator=seeded(i), **settings).texts[0] for i, p in enumerate(PROMPTS)
    ] == together


@pytest.mark.parametrize("name", mostly_slow([*OURS, *STOCK], fast=SOME))
def test_a_seed_fixes_the_texts_and_noisy_schedulers_draw_noise_at_each_step(tokenizer, name):
    pipe = make_pipe(tokenizer, scheduler=name)
    settings = {"max_new_tokens": 8, "num_inference_steps": 4, "output_type": "latents"}
    runs = [
        pipe(num_return_sequences=2, generator=seeded(seed), **settings).latents
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.allclose(runs[0], runs[2])
    torch.testing.assert_close(
        runs[0][:1], pipe(generator=seeded(0), **settings).latents, atol=1e-4, rtol=1e-4
    )
    pipe.denoiser.forward = lambda sample, *_, **__: SimpleNamespace(
        sample=torch.zeros_like(sample)
    )
    kept = []
    keep = {"callback_on_step_end": lambda _, i, t, tensors: kept.append(tensors["latents"][0, 1:])}
    pipe(generator=seeded(0), **settings, **keep)
    moved = kept[0] / kept[0].std() - kept[1] / kept[1].std()
    assert (moved.abs().max() > 0.1) == (
        name in NOISY
    )  # of a denoiser that says nothing, only noise remains


def test_a_prompt_goes_on_and_known_words_come_back_in_every_step(pipe, tokenizer):
    continued = pipe(PROMPTS, num_inference_steps=4, max_new_tokens=5, generator=seeded(0)).texts
    assert all(text.startswith(prompt) for text, prompt in zip(continued, PROMPTS, strict=True))
    text = "the [MASK] sat on the [MASK]"
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(text)["input_ids"]])
    known = ids != tokenizer.mask_token_id
    final = []
    for known_words in ("renoise", "clean"):
        output = pipe(
            text=text, known_words=known_words, num_inference_steps=9, generator=seeded(0), return_history=True,
            output_type="latents",
        )  # fmt: skip
        assert len(output.history) == 10 and all(
            torch.equal(row[0, known], ids[known]) for row in output.history
        )
        assert torch.equal(output.tokens, output.history[-1])
        assert torch.equal(output.latents[0, known], pipe.denoiser.embed(ids[known]))
        final.append(output.latents)
    assert not torch.allclose(*final)


@pytest.mark.parametrize(
    "name",
    [
        "ddim",
        slow("dpm"),
        slow("DDIMScheduler"),
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
    ],
)
def test_renoised_words_are_as_noisy_as_the_rest_with_fresh_noise_at_each_step(tokenizer, name):
    """What the denoiser sees at known words is N(sqrt(alpha_bar) clean, 1 - alpha_bar), in any scheduler's scale."""
    pipe = make_pipe(tokenizer, scheduler=name)
    text = "the cat sat on the mat and [MASK]"
    with Calls(pipe.denoiser) as calls:
        pipe(text=text, num_inference_steps=5, num_return_sequences=40, generator=seeded(0))
    clean = pipe.denoiser.embed(torch.tensor(tokenizer(text)["input_ids"][:-1]))
    noises = []
    for call in calls:
        alpha_bar = float(pipe.scheduler.alphas_cumprod[int(call.timestep)])
        seen = call.sample[:, 1:-1]
        noises.append((seen - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5)
        count = noises[-1].numel()
        assert (
            abs(noises[-1].mean()) < 4 / count**0.5
            and abs(noises[-1].var() - 1) < 4 * (2 / count) ** 0.5
        )
    assert (
        abs(torch.corrcoef(torch.stack([noises[0].flatten(), noises[1].flatten()]))[0, 1])
        < 4 / count**0.5
    )


@pytest.mark.parametrize("name", ["ddim", "sde-dpm", "EulerDiscreteScheduler"])
def test_pasted_words_are_clean_in_every_call(tokenizer, name):
    pipe = make_pipe(tokenizer, scheduler=name)
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer("the cat")["input_ids"]])
    with Calls(pipe.denoiser) as calls:
        pipe(
            "the cat",
            known_words="clean",
            max_new_tokens=3,
            num_inference_steps=5,
            generator=seeded(0),
        )
    assert len(calls) == 5
    assert all(torch.equal(call.sample[0, : len(ids)], pipe.denoiser.embed(ids)) for call in calls)


@pytest.mark.parametrize("name", ["ddim", "dpm", "EulerAncestralDiscreteScheduler"])
def test_a_source_is_clean_and_given_in_every_call_and_only_what_is_written_comes_back(
    tokenizer, name
):
    pipe = make_pipe(tokenizer, scheduler=name, partial_noising=True)
    eos, sources = tokenizer.eos_token_id, ["the cat", "the dog sat on the mat"]
    rows = [[tokenizer.bos_token_id, *tokenizer(source)["input_ids"], eos] for source in sources]
    with Calls(pipe.denoiser) as calls:
        output = pipe(
            source=sources,
            length=[4, 2],
            num_inference_steps=5,
            generator=seeded(0),
            return_history=True,
        )
    assert len(calls) == 5
    for call in calls:
        for i, (row, length) in enumerate(zip(rows, (4, 2), strict=True)):
            target = slice(len(row), len(row) + length)
            assert torch.equal(call.sample[i, : len(row)], pipe.denoiser.embed(torch.tensor(row)))
            assert (
                call.kwargs["given"][i, : len(row)].all()
                and not call.kwargs["given"][i, target].any()
            )
            assert call.attention_mask[i].sum() == len(row) + length + 1
    pad = tokenizer.pad_token_id
    assert output.tokens.shape == (2, 5) and output.tokens[:, 4].tolist() == [eos, pad]
    assert output.tokens[1, 2:].tolist() == [eos, pad, pad]
    assert all(words.shape == (2, 5) for words in output.history) and torch.equal(
        output.history[-1], output.tokens
    )
    changed = pipe(
        source=["the dog", sources[1]], length=[4, 2], num_inference_steps=5, generator=seeded(0)
    )
    assert changed.texts[1] == output.texts[1] and changed.texts[0] != output.texts[0]


def test_a_text_of_a_given_length_has_it(pipe, tokenizer):
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokens = pipe(length=[3, 6], num_inference_steps=3, generator=seeded(0)).tokens
    assert (
        tokens.shape == (2, 8)
        and tokens[0, 4:].tolist() == [eos, pad, pad, pad]
        and tokens[1, 7] == eos
    )
    tokens = pipe(
        "the cat", length=7, num_return_sequences=2, num_inference_steps=3, generator=seeded(0)
    ).tokens
    assert tokens.shape == (2, 9) and (tokens[:, 8] == eos).all()


def test_a_written_end_cuts_the_text(tokenizer):
    pipe = make_pipe(tokenizer)
    embed, eos, pad = pipe.denoiser.embed, tokenizer.eos_token_id, tokenizer.pad_token_id
    row = embed(torch.tensor([5, 5, 6, eos, 7, eos, 8]))
    pipe.denoiser.forward = lambda sample, *_, **__: SimpleNamespace(sample=row.expand_as(sample))
    tokens = pipe(max_new_tokens=6, num_inference_steps=3, generator=seeded(0)).tokens
    assert tokens.tolist() == [[tokenizer.bos_token_id, 5, 6, eos, pad, pad, pad]]


@pytest.mark.parametrize(
    "name, predicts",
    mostly_slow(
        itertools.product(
            ["ddim", "EulerDiscreteScheduler"], ["sample", "epsilon", "v_prediction"]
        ),
        fast=[("ddim", "sample"), ("ddim", "epsilon"), ("EulerDiscreteScheduler", "v_prediction")],
    ),
)
def test_the_denoiser_sees_its_previous_clean_estimate(tokenizer, name, predicts):
    pipe = make_pipe(tokenizer, scheduler=name, prediction_type=predicts)
    with Calls(pipe.denoiser) as calls:
        pipe("the cat", max_new_tokens=4, num_inference_steps=6, generator=seeded(0))
    assert "self_condition" not in calls[0].kwargs
    for before, call in zip(calls, calls[1:], strict=False):
        alpha_bar = float(EmbeddingDDIMScheduler().alphas_cumprod[int(before.timestep)])
        signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        want = {
            "sample": before.said,
            "epsilon": (before.sample - noise * before.said) / signal,
            "v_prediction": signal * before.sample - noise * before.said,
        }[predicts]
        torch.testing.assert_close(call.kwargs["self_condition"], want, atol=1e-5, rtol=1e-4)
    plain = make_pipe(tokenizer, self_conditioning=False)
    with Calls(plain.denoiser) as calls:
        plain(max_new_tokens=4, num_inference_steps=3, generator=seeded(0))
    assert not any(call.kwargs for call in calls)


def test_each_step_calls_the_denoiser_once_at_the_schedulers_times(pipe):
    with Calls(pipe.denoiser) as calls:
        pipe(max_new_tokens=4, num_inference_steps=7, num_return_sequences=3, generator=seeded(0))
    assert [call.timestep for call in calls] == pipe.scheduler.timesteps.tolist()
    assert calls[0].timestep == 1999 and all(len(call.sample) == 3 for call in calls)


def test_the_last_steps_round_to_words_if_the_scheduler_clamps(tokenizer):
    pipe = make_pipe(tokenizer, rounding="nearest")
    pipe.scheduler = EmbeddingDDIMScheduler(clamp_steps=1)
    output = pipe(
        max_new_tokens=6, num_inference_steps=4, generator=seeded(0), output_type="latents"
    )
    torch.testing.assert_close(output.latents, pipe.denoiser.nearest_words(output.latents))
    pipe.scheduler = EmbeddingDDIMScheduler()
    free = pipe(
        max_new_tokens=6, num_inference_steps=4, generator=seeded(0), output_type="latents"
    ).latents
    assert not torch.allclose(free[:, 1:], pipe.denoiser.nearest_words(free)[:, 1:], atol=1e-2)


def test_class_labels_reach_the_denoiser(tokenizer):
    pipe = make_pipe(tokenizer, num_classes=2)
    settings = {"max_new_tokens": 10, "num_inference_steps": 5, "output_type": "latents"}
    mixed = pipe(class_labels=[0, 1], generator=[seeded(0), seeded(0)], **settings).latents
    assert not torch.allclose(mixed[0], mixed[1])
    alone = pipe(class_labels=1, generator=seeded(0), **settings).latents
    torch.testing.assert_close(mixed[1:], alone, atol=1e-4, rtol=1e-4)


def test_one_of_the_candidates_is_returned_by_choice(pipe):
    seen = []

    def longest(candidates):
        seen.append(candidates)
        return max(range(len(candidates)), key=lambda i: len(candidates[i]))

    settings = {
        "max_new_tokens": 6,
        "num_inference_steps": 4,
        "num_candidates": 5,
        "return_history": True,
    }
    output = pipe(
        PROMPTS[:2], num_return_sequences=2, generator=seeded(0), choose=longest, **settings
    )
    assert [len(candidates) for candidates in seen] == [5] * 4 and len(set(seen[0])) == 5
    assert output.texts == [max(candidates, key=len) for candidates in seen]
    assert len(output.tokens) == 4 and torch.equal(output.history[-1], output.tokens)
    both = pipe(PROMPTS[:2], generator=[seeded(0), seeded(1)], choose=longest, **settings).texts
    assert both == [
        pipe(PROMPTS[i], generator=seeded(i), choose=longest, **settings).texts[0] for i in range(2)
    ]
    with pytest.raises(
        ValueError, match="`choose` must return an index below `num_candidates`=5, got 5"
    ):
        pipe(choose=len, generator=seeded(0), **settings)


def test_a_callback_sees_each_step_and_may_change_the_latents(pipe, tokenizer):
    letter = tokenizer("z")["input_ids"][0]
    word = pipe.denoiser.embed(torch.tensor(letter))
    seen = []

    def overwrite(pipe, step, timestep, tensors):
        seen.append((step, timestep))
        return {"latents": word.expand_as(tensors["latents"])} if step == 2 else tensors

    settings = {"max_new_tokens": 4, "num_inference_steps": 3, "generator": seeded(0)}
    assert pipe(callback_on_step_end=overwrite, **settings).texts == ["zzzz"]
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist()))
    with pytest.raises(ValueError, match='may change "latents"'):
        pipe(callback_on_step_end=lambda _, i, t, kw: {"tokens": kw["tokens"] + 1}, **settings)


def test_stream_ends_with_the_text_of_the_call(pipe, pair_pipe):
    settings = {"max_new_tokens": 8, "num_inference_steps": 10}
    for one, asked in ((pipe, {"prompt": "the cat"}), (pair_pipe, {"source": "the cat"})):
        frames = list(one.stream(**asked, **settings, generator=seeded(2)))
        assert (
            len(frames) == 10 and frames[-1] == one(**asked, **settings, generator=seeded(2)).texts
        )
    assert all(frame[0].startswith("the cat") for frame in pipe.stream("the cat", **settings))


@pytest.mark.parametrize("name", ["ddim", "sde-dpm", "EulerDiscreteScheduler"])
def test_a_pipeline_with_any_scheduler_is_loaded_as_it_was_saved(tokenizer, tmp_path, name):
    pipe = make_pipe(tokenizer, scheduler=name)
    pipe.save_pretrained(tmp_path)
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is DiffusionLMPipeline and type(loaded.scheduler) is type(pipe.scheduler)
    loaded.set_progress_bar_config(disable=True)
    settings = {
        "num_inference_steps": 4,
        "max_new_tokens": 6,
        "num_return_sequences": 2,
        "output_type": "latents",
    }
    outputs = [each("the cat", generator=seeded(0), **settings) for each in (pipe, loaded)]
    assert torch.equal(outputs[0].latents, outputs[1].latents)
    assert torch.equal(outputs[0].tokens, outputs[1].tokens)


def test_output_types(pipe):
    settings = {"num_inference_steps": 2, "max_new_tokens": 4}
    tokens = pipe(generator=seeded(0), output_type="tokens", **settings)
    assert tokens.texts is None and tokens.latents is None and tokens.tokens.dtype == torch.long
    texts, ids, history, latents = pipe(generator=seeded(0), return_dict=False, **settings)
    assert (
        torch.equal(ids, tokens.tokens) and len(texts) == 1 and history is None and latents is None
    )
    latents = pipe(generator=seeded(0), output_type="latents", **settings).latents
    assert torch.equal(pipe.denoiser.round(latents)[:, 1:], ids[:, 1:])


def test_a_denoiser_in_half_precision_writes(tokenizer):
    pipe = make_pipe(tokenizer, scheduler="EulerDiscreteScheduler")
    pipe.denoiser.to(torch.bfloat16)
    settings = {"max_new_tokens": 5, "num_inference_steps": 4, "output_type": "latents"}
    output = pipe("the cat", generator=seeded(0), **settings)
    assert output.latents.dtype == torch.float32 and torch.isfinite(output.latents).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": "a", "source": "b"}, "`source` excludes `prompt` and `text`"),
        ({"source": 3}, "`source` must be a string or a list of strings, got 3"),
        ({"source": "the [MASK]"}, r"`source` must not hold \[MASK\]"),
        ({"source": "the cat " * 20}, "must fit into the model's 32 tokens"),
        ({"length": 0}, "`length` must be integers of at least 1, got 0"),
        ({"length": [2, True]}, "`length` must be integers of at least 1"),
        ({"length": 2, "max_new_tokens": 3}, "`length` excludes `text` and `max_new_tokens`"),
        ({"length": 2, "text": "a [MASK]"}, "`length` excludes `text` and `max_new_tokens`"),
        ({"length": [2, 3], "prompt": "the"}, "`length` must be one or 1, one a text, got 2"),
        (
            {"length": 1, "prompt": "the cat sat"},
            "`length` must be more than the tokens of its `prompt`, ",
        ),
        ({"length": 31}, r"32 tokens \(with the start token\), got 33"),
        (
            {"known_words": "soft"},
            r"`known_words` must be one of \('renoise', 'clean'\), got 'soft'",
        ),
        ({"num_candidates": 0}, "`num_candidates` must be an integer of at least 1, got 0"),
        (
            {"num_candidates": 4},
            "`choose` must be given .* `text_diffusers.evaluation.text_metrics.minimum_bayes_risk`",
        ),
        ({"eta": 1.5}, "`eta` must be between 0 and 1, got 1.5"),
        (
            {"num_inference_steps": 0},
            "`num_inference_steps` must be .* between 1 and `num_train_timesteps`=2000",
        ),
        ({"num_inference_steps": 2001}, "got 2001"),
        (
            {"output_type": "np"},
            '`output_type` must be "text" or "tokens" or "latents", got \'np\'',
        ),
        (
            {"callback_on_step_end_tensor_inputs": ["logits"]},
            r"must be among \['tokens', 'latents'\]",
        ),
        (
            {"generator": [torch.Generator()], "num_return_sequences": 2},
            "`generator` must be one or 2",
        ),
        ({"class_labels": 0}, "`class_labels` were given"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(pair_pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pair_pipe(**arguments)


def test_a_source_needs_a_denoiser_that_was_trained_with_one(pipe):
    with pytest.raises(ValueError, match="`source` needs a denoiser with `partial_noising=True`"):
        pipe(source="the cat")


@pytest.mark.parametrize(
    "name", ["ddpm", "dpm", "UniPCMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_eta_is_refused_where_the_scheduler_has_none(tokenizer, name):
    with pytest.raises(
        ValueError, match="`eta` must be 0 with .*Scheduler, which has no `eta`, got 0.5"
    ):
        make_pipe(tokenizer, scheduler=name)(eta=0.5)


def test_broken_weights_raise_instead_of_returning_words(pipe):
    with torch.no_grad():
        pipe.denoiser.proj_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        pipe("the cat", num_inference_steps=2)


def test_components_that_disagree_are_refused_also_when_they_are_swapped(pipe, tokenizer):
    model = pipe.denoiser
    config = EmbeddingDDIMScheduler().config
    faults = {
        "`num_train_timesteps`=100, but the denoiser was trained with 2000": EmbeddingDDIMScheduler(
            num_train_timesteps=100
        ),
        "'epsilon', but the denoiser predicts 'sample'": EmbeddingDDIMScheduler(
            prediction_type="epsilon"
        ),
        "`clip_sample=False`": diffusers.DDIMScheduler.from_config(config, clip_sample=True),
        "`thresholding=False`": diffusers.DPMSolverMultistepScheduler.from_config(
            config, thresholding=True
        ),
        r"EulerAncestralDiscreteScheduler.from_config\(config, prediction_type='epsilon'\)": (
            diffusers.EulerAncestralDiscreteScheduler.from_config(config)
        ),
        "must be one for embeddings, such as EmbeddingDDIMScheduler": D3PMAbsorbingScheduler(
            tokenizer.mask_token_id
        ),
    }
    for message, scheduler in faults.items():
        with pytest.raises(ValueError, match=message):
            DiffusionLMPipeline(tokenizer, model, scheduler)
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=message):
            pipe()
    with pytest.raises(ValueError, match="TextTransformerModel has no `embed`"):
        DiffusionLMPipeline(
            tokenizer, TextTransformerModel(len(tokenizer), 32, 1, 2), EmbeddingDDIMScheduler()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_denoiser_that_knows_its_noise_is_not_shown_another(tokenizer, dtype):
    model = make_model(tokenizer, categorical_output=True)
    model.set_noise(EmbeddingDDIMScheduler().alphas_cumprod)
    for name in (*OURS, "UniPCMultistepScheduler", "EulerDiscreteScheduler"):
        assert make_pipe(tokenizer, model.to(dtype), name)(length=4, num_inference_steps=2).texts
    pipe = make_pipe(tokenizer, model)
    pipe.scheduler = EmbeddingDDIMScheduler(beta_schedule="cosine")
    with pytest.raises(
        ValueError, match="`scheduler` must have the noise that the denoiser was trained with"
    ):
        pipe(length=4, num_inference_steps=2)
