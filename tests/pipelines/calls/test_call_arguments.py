"""Arguments of calls: numbers of numpy and torch are as good as plain ones, and what may mean anything is refused."""

import inspect
import math

import numpy as np
import pytest
import torch
from conftest import SENTENCES, make_denoiser, make_embedding_model
from support.latent_pipes import make_latent_denoiser, make_latent_pipe
from support.two_level_pipes import make_two_level

from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.evaluation.text_metrics import minimum_bayes_risk

TOKENIZER = train_tokenizer(SENTENCES, vocab_size=300)
ABSORBING = D3PMAbsorbingScheduler(TOKENIZER.mask_token_id)

INTEGERS = {"num_inference_steps", "num_return_sequences", "num_candidates", "max_new_tokens"}
INTEGERS |= {"length", "top_k", "drift_steps", "inner_steps", "max_attempts"}
NUMBERS = {"guidance_scale", "guidance_interval", "temperature", "top_p", "strength", "eta"}
NUMBERS |= {"drift_temperature", "fluency", "step_size"}
FUNCTIONS = {"callback_on_step_end", "choose", "text_filter"}


def over_tokens():
    return TextDiffusionPipeline(TOKENIZER, make_denoiser(TOKENIZER, num_classes=2), ABSORBING)


def over_embeddings():
    denoiser = make_embedding_model(TOKENIZER, num_classes=2)
    return DiffusionLMPipeline(TOKENIZER, denoiser, EmbeddingDDIMScheduler())


LABELLED = {
    "prompt": ["the cat", "she"],
    "class_labels": [1, 0],
    "guidance_scale": [2.0, 0.5],
    "guidance_interval": [0.0, 0.75],
    "length": [6, 5],
    "num_inference_steps": 4,
    "num_return_sequences": 2,
}
CASES = {
    "tokens": (over_tokens, LABELLED | {"temperature": 0.5, "top_k": 20, "top_p": 0.875}),
    "masks": (
        over_tokens,
        {"text": ["the cat sat"], "mask": [[False, True, True]], "num_inference_steps": 2},
    ),
    "embeddings": (
        over_embeddings,
        LABELLED | {"eta": 0.5, "num_candidates": 2, "choose": minimum_bayes_risk},
    ),
    "paraphrases": (
        lambda: ParaGuidePipeline(TOKENIZER, make_denoiser(TOKENIZER), ABSORBING),
        {"source": ["the cat"], "strength": 2.0, "drift_steps": 1, "drift_temperature": 2.0}
        | {"top_p": 0.5, "max_new_tokens": 5, "num_inference_steps": 3, "guidance_scale": 2.0},
    ),
    "two_levels": (
        lambda: make_two_level(TOKENIZER),
        {"plan": [[0, -1], [2, 3]], "num_inference_steps": (2, 3), "guidance_scale": (1.0, 2.0)}
        | {"temperature": 0.5, "top_p": 0.5, "max_attempts": 1},
    ),
    "latents": (
        lambda: make_latent_pipe(TOKENIZER, make_latent_denoiser(num_classes=2)),
        {name: value for name, value in LABELLED.items() if name != "length"}
        | {"max_new_tokens": 6, "temperature": 0.5, "top_k": 20, "top_p": 0.875},
    ),
    "given_latents": (
        lambda: make_latent_pipe(TOKENIZER),
        {"latents": [[[0.5] * 4] * 3], "max_new_tokens": 6},
    ),
}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def converted(value, convert):
    """Numbers and lists of them converted; a tuple is a pair, whose entries are."""
    if isinstance(value, tuple):
        return tuple(converted(entry, convert) for entry in value)
    is_text = isinstance(value, str) or isinstance(value, list) and isinstance(value[0], str)
    if value is None or callable(value) or is_text and convert is torch.tensor:
        return value
    return convert(value)


@pytest.mark.parametrize("convert", [np.array, torch.tensor, lambda v: np.array(v)[()]])
@pytest.mark.parametrize("name", CASES)
def test_numbers_and_arrays_of_numpy_and_torch_are_as_good_as_plain_ones(name, convert):
    make, request = CASES[name]
    pipe = quiet(make())
    written = [
        pipe(**arguments, generator=torch.Generator().manual_seed(0)).texts
        for arguments in (request, {key: converted(v, convert) for key, v in request.items()})
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_integer_number_or_function_is_refused_by_its_name(name):
    make, request = CASES[name]
    pipe = quiet(make())
    request = request | {"num_inference_steps": 2}
    bad_values = {
        **dict.fromkeys(INTEGERS, (True, 2.0, "2", np.float64(2), torch.tensor(2.0), -1)),
        **dict.fromkeys(NUMBERS, (True, "1", math.nan, np.bool_(True), {})),
        **dict.fromkeys(FUNCTIONS, (3, "f")),
        "callback_on_step_end_tensor_inputs": ("tokens", 3),
        "output_type": (1, ["text"]),
    }
    parameters = inspect.signature(type(pipe).__call__).parameters
    assert len(set(bad_values) & set(parameters)) > 8
    for argument in set(bad_values) & set(parameters):
        # What excludes it, or says the same
        others = {"length": "max_new_tokens", "max_new_tokens": "length"}
        given = {key: v for key, v in request.items() if key != others.get(argument)}
        if argument == "length" and name == "masks":
            continue
        for value in bad_values[argument]:
            with pytest.raises(ValueError, match=f"`{argument}`"):
                pipe(**given | {argument: value})


@pytest.mark.parametrize("make", [over_tokens, over_embeddings])
def test_labels_are_integers_of_the_model_or_names(make):
    """A truth value or a float may be meant as anything; 2 of 2 labels is no label."""
    pipe = quiet(make())
    settings = {"max_new_tokens": 4, "num_inference_steps": 3}
    for label in (True, 1.0, 7, -1, "chat", [0, True], torch.tensor([1.0]), np.array(False), {}):
        with pytest.raises(ValueError, match="`class_labels` must be"):
            pipe(class_labels=label, **settings)

    without = [
        pipe(class_labels=label, generator=torch.Generator().manual_seed(1), **settings).texts
        for label in (None, [None], np.int64(2))
    ]
    assert without[0] == without[1] == without[2]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "generator", [42, np.int64(42), "42", np.random.default_rng(0), [42], [torch.Generator(), None]]
)
def test_a_generator_is_one_of_torch(name, generator):
    """Neither a seed nor a generator of numpy, which draws other numbers; an integer gets the way to make one."""
    make, request = CASES[name]
    # Of a list it is first counted whether there is one a text.
    expected = (TypeError, ValueError) if isinstance(generator, list) else TypeError
    with pytest.raises(expected, match="`generator` must be") as error:
        quiet(make())(**request, generator=generator)
    if isinstance(generator, (int, np.integer)):
        assert "torch.Generator().manual_seed(42)" in str(error.value)
