"""A run as GIF, PNG and JSON: every state of it, readable in Russian, and enough to run it again, of every tab."""

import base64
import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from support.space_pages import make_page

from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts import drawing
from text_diffusers.space.parts.pieces import color_map, settled_steps
from text_diffusers.space.parts.saving import (
    MOST_FRAMES,
    SaveJsonRequest,
    SaveRequest,
    json_saver,
    saver,
)
from text_diffusers.space.tabs import compare, control
from text_diffusers.space.tabs.fill import FillRequest, fill_gaps
from text_diffusers.space.tabs.write import WriteRequest, write_texts

RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю"
SETTINGS = {"label": -1, "window": 0, "temperature": 1.0, "count": 2, "seed": 3}


def written(page, **changes):
    values = {"prompt": "the cat", "length": 12, "steps": 6, "sampler": page.served.sampler}
    asked = WriteRequest(**SETTINGS | values | changes)
    *_, run = write_texts(page, asked)
    run.asked = asdict(asked)
    return run


def saved(page, run, kind, tab="write", ends=True):
    file = json.loads(saver(page.served, tab, kind, ends)(SaveRequest(run), "en"))
    assert file["name"].endswith(f"{tab}-3.{kind}")
    return base64.b64decode(file["data"])


@pytest.mark.parametrize("kind", ["labelled", "embeddings"])
def test_a_gif_has_a_frame_for_each_state_and_ends_with_the_text(kind, tokenizer):
    page = make_page(kind, tokenizer)
    run = written(page)
    gif = Image.open(io.BytesIO(saved(page, run, "gif")))
    assert gif.n_frames == len(run.frames) == 7
    assert gif.info["loop"] == 0  # for ever

    durations, pictures = [], []
    for frame in range(gif.n_frames):
        gif.seek(frame)
        durations.append(gif.info["duration"])
        pictures.append(np.asarray(gif.convert("L")))
    assert durations[-1] >= 2000 > durations[0]
    changed = [
        np.abs(a.astype(int) - b).max() for a, b in zip(pictures, pictures[1:], strict=False)
    ]
    assert min(changed) > 50


@pytest.mark.slow
def test_a_long_run_becomes_a_short_gif_with_its_first_and_last_state(tokenizer):
    page = make_page("labelled", tokenizer)
    run = written(page, steps=120, count=1)
    gif = Image.open(io.BytesIO(saved(page, run, "gif")))
    assert len(run.frames) == 121 and 1 < gif.n_frames <= MOST_FRAMES


def test_a_png_shows_each_colour_of_the_run(tokenizer):
    page = make_page("labelled", tokenizer)
    run = written(page)
    picture = Image.open(io.BytesIO(saved(page, run, "png"))).convert("RGB")
    colors = {color for _, color in picture.getcolors(1 << 20)}
    steps = {step for row in (0, 1) for step in settled_steps(run.of_row(row)) if step}
    names = color_map(6)
    assert {drawing.on_paper(names[str(step)]) for step in steps} <= colors


def test_cyrillic_letters_are_drawn_and_differ_from_each_other():
    """A font without a letter draws the same box for all of them."""
    for file, size in ((drawing.TEXT_FONT, 22), (drawing.NOTE_FONT, 15)):
        letters = drawing.font(file, size)
        shapes = {bytes(letters.getmask(letter)) for letter in sorted(set(RUSSIAN) - {" "})}
        assert len(shapes) == len(set(RUSSIAN) - {" "})
        assert bytes(letters.getmask("\uffff")) not in shapes


@pytest.mark.parametrize("text", [RUSSIAN * 4, "a" * 400, "one\n\ntwo", "  blanks   within ", ""])
def test_lines_hold_all_the_text_and_stay_within_the_picture(text):
    width = 300
    pieces = [(text[place : place + 3], "1") for place in range(0, len(text), 3)]
    lines = drawing.lines_of(pieces, width)
    drawn = "".join("".join(part for _, part, _ in line) for line in lines)
    assert "".join(drawn.split()) == "".join(text.split())
    letters = drawing.font(drawing.TEXT_FONT, drawing.TEXT_SIZE)
    for line in lines:
        for left, part, _ in line:
            assert left + letters.getlength(part) <= width + 1


@pytest.mark.parametrize("kind", ["labelled", "blocks", "chat"])
def test_the_settings_of_the_json_write_the_same_texts_again(kind, tokenizer):
    page = make_page(kind, tokenizer)
    run = written(page, prompt="w7 w8" if kind == "chat" else "the cat")
    content = json.loads(saved(page, run, "json"))
    again = written(page, **content["settings"])
    assert content["texts"] == again.output.texts == run.output.texts
    assert content["settings"]["seed"] == 3 and content["steps"] == len(run.frames) - 1
    assert set(content["versions"]) >= {"python", "torch", "text-diffusers"}
    for text, settling in zip(content["texts"], content["settling"], strict=True):
        assert "".join(piece for piece, _ in settling).strip() == text.strip()
        assert {step for _, step in settling} <= set(range(content["steps"] + 1))


def test_a_text_with_gaps_is_saved_as_it_was_given(tokenizer):
    page = make_page("labelled", tokenizer)
    asked = FillRequest(text="Ω ___ sat", steps=4, sampler=page.served.sampler, **SETTINGS)
    *_, run = fill_gaps(page, asked)
    run.asked = asdict(asked)
    content = json.loads(saved(page, run, "json", "fill", ends=False))
    assert content["settings"]["text"] == "Ω ___ sat"
    assert content["settling"][0][0] == ["Ω ", 0]
    assert (
        Image.open(io.BytesIO(saved(page, run, "png", "fill", ends=False))).width == drawing.WIDTH
    )


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_a_run_that_did_not_end_cannot_be_saved(seconds, tokenizer):
    page = make_page("tokens", tokenizer, seconds=seconds or 0.0)
    run = None if seconds is None else written(page)
    for kind in ("gif", "png", "json"):
        with pytest.raises(Refusal) as refused:
            saver(page.served, "write", kind, True)(SaveRequest(run), "en")
        assert refused.value.key == "error.save"


def saved_json(page, tab, result, asked, content):
    request = SaveJsonRequest(result, asdict(asked))
    file = json.loads(json_saver(page.served, tab, content)(request, "en"))
    assert file["name"] == f"text-diffusers-{tab}-3.json"
    return json.loads(base64.b64decode(file["data"]))


@pytest.mark.parametrize("changes", [{"labels": [0, 1]}, {"labels": [], "words": "cat, sat"}])
def test_a_saved_grid_names_each_text_and_its_settings_write_it_again(changes, tokenizer):
    page = make_page("labelled", tokenizer)
    values = {"prompt": "", "negative": "", "words": "", "length": 0, "steps": 6}
    asked = control.ControlRequest(**values | {"temperature": 1.0, "seed": 3} | changes)
    grid = control.controlled_texts(page, asked)
    content = saved_json(
        page, "control", grid, asked, lambda grid: control.saved_grid(page.served, grid)
    )
    again = control.controlled_texts(page, control.ControlRequest(**content["settings"]))
    assert [place["text"] for place in content["texts"]] == grid.texts == again.texts

    if changes["labels"]:
        names = page.served.pipe.label_names
        places = [(place["guidance_scale"], place["label"]) for place in content["texts"]]
        assert places == [(scale, name) for scale in control.SCALES for name in names[:2]]
    else:
        free, held = content["texts"]
        assert (free["held"], held["held"]) == (False, True)
        assert "cat" in held["text"] and "sat" in held["text"]


def test_a_saved_comparison_has_the_cost_of_each_text(tokenizer):
    page = make_page("labelled", tokenizer)
    values = {"samplers": ["ancestral", "confidence"], "steps": [4, 8], "prompt": "the cat"}
    values |= {"label": -1, "length": 12, "temperature": 1.0, "seed": 3}
    asked = compare.CompareRequest(**values)
    *_, runs = compare.compared(page, asked)
    content = saved_json(page, "compare", runs, asked, compare.saved_runs)
    assert [(text["sampler"], text["steps"]) for text in content["texts"]] == [
        (sampler, steps) for sampler in values["samplers"] for steps in values["steps"]
    ]
    *_, again = compare.compared(page, compare.CompareRequest(**content["settings"]))
    assert [text["text"] for text in content["texts"]] == [run.text for run in again]
    assert all(text["cost"]["calls"] >= 1 and text["cost"]["seconds"] for text in content["texts"])


def test_a_tab_that_shows_nothing_complete_cannot_be_saved(tokenizer):
    page = make_page("labelled", tokenizer)
    for result, settings in ((None, {"seed": 3}), ({}, None)):
        with pytest.raises(Refusal) as refused:
            json_saver(page.served, "compare", dict)(SaveJsonRequest(result, settings), "en")
        assert refused.value.key == "error.save"
