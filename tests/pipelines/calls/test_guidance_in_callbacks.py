"""`pipe._guidance_scale = ...` in a callback, diffusers' way to change guidance, holds from the next step on."""

import pytest
import torch
from conftest import SENTENCES, make_denoiser, make_embedding_model, mostly_slow
from support.latent_pipes import make_latent_denoiser, make_latent_pipe
from support.two_level_pipes import make_two_level

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.data.tokenizers import train_tokenizer

TOKENIZER = train_tokenizer(SENTENCES, vocab_size=300)
ABSORBING = D3PMAbsorbingScheduler(TOKENIZER.mask_token_id)
UNIFORM = D3PMUniformScheduler(min(TOKENIZER.mask_token_id, TOKENIZER.pad_token_id))
NUM_STEPS = 8
CHANGED_AFTER = 3  # steps
BEFORE = (0.0, CHANGED_AFTER / NUM_STEPS)
AFTER = (CHANGED_AFTER / NUM_STEPS, 1.0)


def denoiser(**changes):
    return make_denoiser(TOKENIZER, num_classes=2, **changes)


def embedding_model(**changes):
    return make_embedding_model(TOKENIZER, num_classes=2, self_conditioning=True, **changes)


LABEL = {"class_labels": 1, "max_new_tokens": 10}
SOURCE = {"source": "the cat sat on the mat", "max_new_tokens": 10}
CASES = {
    "absorbing": lambda: (TextDiffusionPipeline(TOKENIZER, denoiser(), ABSORBING), LABEL),
    "prompt": lambda: (
        TextDiffusionPipeline(TOKENIZER, denoiser(), ABSORBING),
        {"prompt": "the cat", "max_new_tokens": 10},
    ),
    "uniform": lambda: (TextDiffusionPipeline(TOKENIZER, denoiser(), UNIFORM), LABEL),
    "blocks": lambda: (
        TextDiffusionPipeline(TOKENIZER, denoiser(block_length=16), ABSORBING),
        LABEL,
    ),
    "embeddings": lambda: (
        DiffusionLMPipeline(TOKENIZER, embedding_model(), EmbeddingDDIMScheduler()),
        LABEL,
    ),
    "embeddings_source": lambda: (
        DiffusionLMPipeline(
            TOKENIZER, embedding_model(partial_noising=True), EmbeddingDDIMScheduler()
        ),
        SOURCE,
    ),
    "latents": lambda: (
        make_latent_pipe(TOKENIZER, make_latent_denoiser(num_classes=2, self_conditioning=True)),
        SOURCE | LABEL,
    ),
    "paraphrases": lambda: (
        ParaGuidePipeline(TOKENIZER, make_denoiser(TOKENIZER), ABSORBING),
        SOURCE | {"top_p": 1.0},
    ),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sets(scale, after=CHANGED_AFTER):
    """A callback that sets the scale when so many steps are done."""

    def callback(pipe, step, timestep, tensors):
        if step + 1 == after:
            pipe._guidance_scale = scale
            assert pipe.guidance_scale is scale
            assert pipe.do_classifier_free_guidance or scale == 1.0

    return callback


@pytest.mark.parametrize("name", mostly_slow(CASES, ["absorbing", "blocks", "embeddings_source"]))
def test_a_scale_that_is_set_after_some_steps_is_a_scale_of_the_interval_behind_them(name):
    """From 1 and back to 1, for more than the condition and for nothing of it; the interval is the oracle."""
    pipe, request = CASES[name]()
    request = request | {"num_inference_steps": NUM_STEPS, "output_type": "tokens"}
    quiet(pipe)

    def write(scale=1.0, changed=None, interval=(0.0, 1.0)):
        return pipe(
            **request,
            guidance_scale=scale,
            guidance_interval=interval,
            generator=seeded(),
            callback_on_step_end=None if changed is None else sets(changed),
        ).tokens.tolist()

    plain = write()
    differences = 0
    for scale in (4.0, 0.0):
        expected = write(scale, interval=AFTER)
        assert write(changed=scale) == expected
        differences += expected != plain

        expected = write(scale, interval=BEFORE)
        assert write(scale, changed=1.0) == expected
        differences += expected != plain

        # From one scale to another; what was set for a call is gone in the next.
        assert write(3.0, changed=scale, interval=AFTER) == write(scale, interval=AFTER)
    assert differences
    assert write() == plain


@pytest.mark.parametrize("name", ["absorbing", "embeddings_source"])
def test_each_text_may_get_its_own_scale_and_does_not_depend_on_the_others(name):
    pipe, request = CASES[name]()
    quiet(pipe)
    request = request | {"num_inference_steps": NUM_STEPS, "output_type": "tokens", "length": 6}
    del request["max_new_tokens"]
    starts, ends = [1.0, 4.0, 3.0], [4.0, 4.0, 1.0]
    if name == "absorbing":
        request["class_labels"] = [1, 1, 1]
    else:
        request["source"] = ["the cat sat on the mat", "a bird", "she was late"]
    together = pipe(
        **request,
        guidance_scale=starts,
        generator=[seeded(row) for row in range(3)],
        callback_on_step_end=sets(torch.tensor(ends)),
    ).tokens
    for row in range(3):
        own = {
            key: value[row] if isinstance(value, list) else value for key, value in request.items()
        }
        alone = pipe(
            **own,
            guidance_scale=starts[row],
            generator=[seeded(row)],
            callback_on_step_end=sets(ends[row]),
        ).tokens
        assert together[row].tolist() == alone[0].tolist()


def test_a_level_takes_the_scale_that_was_set_during_the_level_before():
    pipe = make_two_level(TOKENIZER)
    request = {"prompt": ["the cat", "she"], "num_inference_steps": (2, 3)}
    request["num_return_sequences"] = 2

    def write(scale, changed=None):
        callback = None if changed is None else sets(changed, after=2)
        return pipe(
            **request, guidance_scale=scale, callback_on_step_end=callback, generator=seeded()
        )

    for changed in ((1.0, 5.0), 5.0, (9.0, [5.0, 5.0])):
        written = write(1.0, changed)
        assert written.plan.tolist() == write(1.0).plan.tolist()
        assert written.fine_codes.tolist() == write((1.0, 5.0)).fine_codes.tolist()
    assert written.fine_codes.tolist() != write(1.0).fine_codes.tolist()


@pytest.mark.parametrize(
    "make, request_, scale, message",
    [
        (CASES["absorbing"], {"class_labels": None}, 3.0, "must be 1 without a condition"),
        (CASES["absorbing"], {}, "strong", "must be finite numbers, got 'strong'"),
        (CASES["absorbing"], {}, [1.0, 2.0], "must be one or 1, one a text, got 2"),
        (CASES["embeddings"], {"class_labels": None, "prompt": "she"}, 3.0, "without a condition"),
    ],
)
def test_a_scale_that_cannot_be_honoured_is_refused(make, request_, scale, message):
    pipe, request = make()
    with pytest.raises(ValueError, match=f"`guidance_scale` {message}|{message}"):
        quiet(pipe)(**request | request_, num_inference_steps=4, callback_on_step_end=sets(scale))
