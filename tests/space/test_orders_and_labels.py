"""The Space with orders from the left and windows, with a pipeline's own defaults, and with labels shown as texts."""

import pytest
import torch
from support.language_models import chat_pipe
from support.space_pages import make_pipe

from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline
from text_diffusers.guidance import LengthControl, WordsControl
from text_diffusers.space.limits import Limits, Refusal
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.pieces import spans
from text_diffusers.space.parts.served import Served
from text_diffusers.space.tabs import control as control_tab
from text_diffusers.space.tabs import fill as fill_tab
from text_diffusers.space.tabs import write as write_tab

SETTINGS = {"steps": 5, "window": 0, "temperature": 0.9, "count": 2, "seed": 3}


def labelled_page(attention="bidirectional", **more):
    plain = chat_pipe(attention=attention, alignment="shifted")
    pipe = TextDiffusionPipeline(
        plain.tokenizer, plain.denoiser, plain.scheduler, label_names=["w30", "w31 w32"], **more
    )
    return Page(Served(pipe, "a model", Limits()))


def written(page, prompt="w8 w9", **changes):
    values = {"prompt": prompt, "label": 1, "length": 6, "sampler": page.served.sampler}
    request = write_tab.WriteRequest(**values | SETTINGS | changes)
    return list(write_tab.write_texts(page, request))[-1]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("sampler", ["confidence", "left_to_right"])
def test_an_order_and_a_window_write_what_the_scheduler_writes(sampler, window, tokenizer):
    pipe = quiet(make_pipe("tokens", tokenizer))
    page = Page(Served(pipe, "a model", Limits()))
    assert page.served.takes_window
    run = written(page, "the cat", label=settings.ANY_LABEL, sampler=sampler, window=window)

    config = pipe.scheduler.config
    more = {"order": sampler, "temperature": 0.9, "window": window or None}
    pipe.scheduler = ConfidenceScheduler.from_config(config, **more)
    # A step for every token, whatever the slider says, where a sampler writes them one by one.
    steps = pipe.max_length if sampler == "left_to_right" else 5
    expected = pipe(
        "the cat",
        max_new_tokens=6,
        num_inference_steps=steps,
        num_return_sequences=2,
        generator=torch.Generator().manual_seed(3),
    )
    assert run.output.texts == expected.texts

    with pytest.raises(Refusal):
        written(page, "the cat", label=settings.ANY_LABEL, window=-1)


def test_the_page_begins_with_the_defaults_of_the_pipeline():
    defaults = {"num_inference_steps": 7, "temperature": 0.4, "top_p": 0.9, "max_new_tokens": 4}
    page = labelled_page(generation_defaults=defaults)
    assert settings.steps_slider(page).value == 7
    # The temperature of the scheduler comes before a default.
    assert settings.temperature_slider(page).value == 0.0
    page.served.pipe.scheduler = ConfidenceScheduler(0)
    assert settings.temperature_slider(page).value == 0.4
    assert settings.window_slider(page).value == 0

    # What a visitor leaves alone is the pipeline's, and what the page sends is the visitor's.
    pipe = quiet(page.served.pipe)
    run = written(page, length=0, temperature=0.9)
    expected = pipe(
        "w8 w9",
        class_labels=1,
        temperature=0.9,
        num_inference_steps=5,
        num_return_sequences=2,
        generator=torch.Generator().manual_seed(3),
    )
    assert run.output.texts == expected.texts
    assert page.served.pipe.generation_defaults == defaults


@pytest.mark.parametrize("label", [settings.ANY_LABEL, 0, 1])
@pytest.mark.parametrize("attention", ["bidirectional", "block"])
def test_what_is_shown_of_a_labelled_text_is_the_text(attention, label):
    page = labelled_page(attention)
    tokenizer = page.served.pipe.tokenizer
    assert settings.label_choices(page.served, "en") == [("w30", 0), ("w31 w32", 1)]
    run = written(page, label=label)
    for row, text in enumerate(run.output.texts):
        frames = run.of_row(row)
        ends = page.served.more_ends
        shown = spans(tokenizer, frames, len(frames) - 1, given=run.given, more_ends=ends)
        assert "".join(piece for piece, _ in shown).split() == text.split()
        assert "".join(piece for piece, name in shown if name is None).split() == ["w8", "w9"]

    sampler = page.served.sampler
    request = fill_tab.FillRequest(text="w8 ___ w9", label=label, sampler=sampler, **SETTINGS)
    filled = list(fill_tab.fill_gaps(page, request))[-1]
    for row, text in enumerate(filled.output.texts):
        shown = spans(tokenizer, filled.of_row(row), 5, ends=False, given=filled.given)
        assert "".join(piece for piece, _ in shown) == text


def causal_page(order, **more):
    plain = chat_pipe(attention="block", past="causal", alignment="shifted")
    pipe = TextDiffusionPipeline(
        plain.tokenizer, plain.denoiser, ConfidenceScheduler(0, order=order), **more
    )
    return Page(Served(quiet(pipe), "a model", Limits()))


def test_gaps_beyond_a_block_are_filled_in_with_a_step_for_each():
    page = causal_page("left_to_right", generation_defaults={"num_inference_steps": 2})
    assert settings.steps_slider(page, given={"text": "w8 ___"}).value == settings.DEFAULT_STEPS
    values = {"label": settings.ANY_LABEL, "sampler": page.served.sampler}
    request = fill_tab.FillRequest(text="w8 [7] w9", **values | SETTINGS)
    run = list(fill_tab.fill_gaps(page, request))[-1]
    num_open = [rows[0].count(0) for rows in run.frames]
    assert sorted(set(num_open), reverse=True) == list(range(7, -1, -1))


@pytest.mark.parametrize("asked", [{"words": "w20, w21"}, {"words": "w20", "length": 9}])
def test_over_a_causal_past_texts_are_held_to_words_and_a_length_as_the_pipeline_does(asked):
    page = causal_page("confidence", generation_defaults={"max_new_tokens": 12})
    assert page.served.takes_words
    values = {"labels": [], "prompt": "w8", "negative": "", "words": "", "length": 0}
    values |= {"steps": 6, "temperature": 0.9, "seed": 2} | asked
    grid = control_tab.controlled_texts(page, control_tab.ControlRequest(**values))

    # A beginning is compared with masks in its place, at each scale.
    pipe = page.served.with_sampler(page.served.sampler, 0.9)
    controls = []
    if "words" in asked:
        controls.append(WordsControl(pipe.tokenizer, asked["words"].split(", ")))
    if "length" in asked:
        controls.append(LengthControl(9, eos_token_id=pipe.tokenizer.eos_token_id))
    expected = pipe(
        ["w8"] * len(grid.scales),
        guidance_scale=list(grid.scales),
        guide_by="masked_prompt",
        controls=controls,
        num_inference_steps=6,
        generator=[torch.Generator().manual_seed(2) for _ in grid.scales],
    )
    assert grid.texts == expected.texts


def test_a_label_leaves_less_room_for_a_text():
    page = labelled_page()
    # Start, two tokens and an end before the text, and one end behind it, of 64 tokens
    assert page.served.room == 64 - 4 - 1
    plain = Served(chat_pipe(), "a model", Limits())
    assert plain.room == 62
