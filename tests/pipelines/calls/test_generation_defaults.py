"""Defaults of a pipeline hold where a call gives nothing, and nowhere else; they are saved with it."""

import inspect

import pytest
import torch
from conftest import slow
from support.language_models import chat_pipe

from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline
from text_diffusers.guidance import LengthControl
from text_diffusers.pipelines.calls.generation_defaults import CALL_SETTINGS

DEFAULTS = {
    "num_inference_steps": 5,
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.9,
    "block_length": 3,
    "max_new_tokens": 6,
    "min_new_tokens": 2,
    "suppress_tokens": ["w9"],
}


def make_pipe(defaults=None):
    scheduler = ConfidenceScheduler(0, order="left_to_right")
    plain = chat_pipe(scheduler=scheduler)
    pipe = TextDiffusionPipeline(
        plain.tokenizer, plain.denoiser, plain.scheduler, generation_defaults=defaults
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def written(pipe, *args, **arguments):
    return pipe(*args, generator=torch.Generator().manual_seed(0), **arguments).tokens.tolist()


def test_a_call_that_gives_nothing_is_the_call_that_gives_the_defaults():
    plain = make_pipe()
    pipe = make_pipe(DEFAULTS)
    for prompt in ([], ["w8"], ["w8 w10"]):
        assert written(pipe, *prompt) == written(plain, *prompt, **DEFAULTS)

    # Streams take the same arguments.
    frames = list(pipe.stream("w8", generator=torch.Generator().manual_seed(0)))
    assert len(frames) == 2 * 5  # two blocks of three tokens
    assert frames[-1] == pipe("w8", generator=torch.Generator().manual_seed(0)).texts


@pytest.mark.parametrize("name", [*DEFAULTS])
def test_what_a_call_gives_comes_before_the_default(name):
    """Also where it gives what the signature has."""
    plain = make_pipe()
    pipe = make_pipe(DEFAULTS)
    value = inspect.signature(TextDiffusionPipeline.__call__).parameters[name].default
    if name == "num_inference_steps":
        value = 9
    arguments = {name: value}
    rest = DEFAULTS
    if name == "block_length":  # none is another one, which takes other steps
        rest = {name: value for name, value in DEFAULTS.items() if name != "num_inference_steps"}
    expected = written(plain, "w8", **rest | arguments)
    assert written(pipe, "w8", **arguments) == expected


def test_what_a_scheduler_was_given_comes_before_the_default():
    plain = make_pipe()
    pipe = make_pipe(DEFAULTS)
    for one in (plain, pipe):
        one.scheduler = ConfidenceScheduler.from_config(one.scheduler.config, temperature=0.0)
    rest = {name: value for name, value in DEFAULTS.items() if name != "temperature"}
    assert written(pipe, "w8") == written(plain, "w8", **rest)


def test_a_text_whose_length_is_said_has_no_other_limit():
    plain = make_pipe()
    pipe = make_pipe(DEFAULTS)
    rest = {name: value for name, value in DEFAULTS.items() if not name.endswith("new_tokens")}
    for call in (
        {"text": "w8 <|mask|> <|mask|> w10"},
        {"prompt": "w8", "length": 12},
        {"prompt": "w8", "controls": LengthControl(12)},
    ):
        assert written(pipe, **call) == written(plain, **call, **rest)

    # One limit is given against the default of the other.
    assert written(pipe, min_new_tokens=8) == written(plain, **rest, min_new_tokens=8)
    short = {"max_new_tokens": 1, "min_new_tokens": 1}
    assert written(pipe, max_new_tokens=1) == written(plain, **rest, **short)


@pytest.mark.parametrize("has_blocks", [False, slow(True)])
def test_default_steps_are_of_the_blocks_that_they_are_the_defaults_of(has_blocks):
    """Twelve tokens, by default in blocks of three, for two steps each; of other blocks the steps are to be said."""
    defaults = {"num_inference_steps": 2, "max_new_tokens": 12, "min_new_tokens": 12}
    scheduler = ConfidenceScheduler(0, order="left_to_right")
    if has_blocks:
        pipe = chat_pipe(attention="block", past="causal", block_length=3, scheduler=scheduler)
    else:
        pipe = chat_pipe(scheduler=scheduler)
        defaults["block_length"] = 3
    pipe.generation_defaults = defaults

    def num_steps(**arguments):
        return len(list(pipe.stream("w8", **arguments, generator=torch.Generator().manual_seed(0))))

    assert num_steps() == num_steps(block_length=3) == 4 * 2
    assert num_steps(block_length=6, num_inference_steps=2) == 2 * 2
    unsaid = inspect.signature(TextDiffusionPipeline.__call__).parameters["num_inference_steps"]
    assert num_steps(block_length=6) == 2 * unsaid.default


def test_defaults_are_saved_loaded_and_changed(tmp_path):
    pipe = make_pipe(DEFAULTS)
    pipe.save_pretrained(tmp_path)
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.generation_defaults == DEFAULTS
    assert written(loaded, "w8") == written(pipe, "w8")

    loaded.generation_defaults = {"num_inference_steps": 2}
    loaded.save_pretrained(tmp_path / "changed")
    changed = TextDiffusionPipeline.from_pretrained(tmp_path / "changed")
    assert changed.generation_defaults == {"num_inference_steps": 2}
    loaded.generation_defaults = None
    assert loaded.generation_defaults == {}


def test_every_setting_is_an_argument_of_the_call():
    assert (
        CALL_SETTINGS.keys() <= inspect.signature(TextDiffusionPipeline.__call__).parameters.keys()
    )


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"steps": 3}, "`generation_defaults` must hold arguments among num_inference_steps, .*'steps'"),
        ([3], "`generation_defaults` must be None or a dictionary"),
        ({"num_inference_steps": 0}, r'`generation_defaults\["num_inference_steps"\]` must be an integer'),
        ({"temperature": -1}, r'`generation_defaults\["temperature"\]` must be a number of at least 0'),
        ({"top_p": 0.0}, r'`generation_defaults\["top_p"\]` must be a number above 0'),
        ({"approximate_cache": "all"}, r'`generation_defaults\["approximate_cache"\]` must be one of'),
        ({"approximate_cache": "dual"}, "`approximate_cache` goes with `block_length`"),
        ({"suppress_tokens": "w9"}, r'`generation_defaults\["suppress_tokens"\]` must be a list'),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, r'`generation_defaults\["min_new_tokens"\]` must be at most'),
    ],
)  # fmt: skip
def test_bad_defaults_are_refused_by_name(defaults, message):
    with pytest.raises(ValueError, match=message):
        make_pipe(defaults)
    if isinstance(defaults, dict) and "approximate_cache" not in defaults:
        pipe = make_pipe()
        with pytest.raises(ValueError, match=message):
            pipe.generation_defaults = defaults
