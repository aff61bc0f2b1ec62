"""The Space without a browser: what it accepts, what it writes, how it counts and colours, and what it says."""

import ast
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
import yaml
from support.masked_lms import make_masked_lm
from support.space_pages import CHATS, KINDS, WRITERS, make_page, make_pipe

from text_diffusers.guidance.controls import LengthControl, WordsControl
from text_diffusers.space import limits
from text_diffusers.space.app import build
from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import handler, preferred_language, readable_errors
from text_diffusers.space.parts.pieces import (
    HIDDEN,
    color_map,
    pieces,
    range_name,
    settled_steps,
    spans,
    step_ranges,
)
from text_diffusers.space.parts.running import WORKER, watch, write
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import LANGUAGES, TEXTS, say
from text_diffusers.space.tabs import compare as compare_tab
from text_diffusers.space.tabs import control as control_tab
from text_diffusers.space.tabs import corrupt as corrupt_tab
from text_diffusers.space.tabs import fill as fill_tab
from text_diffusers.space.tabs import plan as plan_tab
from text_diffusers.space.tabs import write as write_tab

ROOT = Path(__file__).parent.parent.parent
ANY = settings.ANY_LABEL
WRITTEN = {"label": ANY, "length": 12, "steps": 6, "temperature": 0.9, "count": 2, "seed": 3}
WRITTEN |= {"window": 0}


def with_slow(values, fast):
    """Values of a parameter, of which the thorough run takes all and the fast one those in `fast`."""
    return [
        value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


def given_prompt(kind):
    """A prompt of words that the tokenizer knows."""
    return "w7 w8" if kind in CHATS else "the cat"


def last_of(iterator):
    return list(iterator)[-1]


def written(page, prompt="the cat", **changes):
    values = {"prompt": prompt, "sampler": page.served.sampler} | WRITTEN | changes
    return last_of(write_tab.write_texts(page, write_tab.WriteRequest(**values)))


@pytest.mark.parametrize("kind", with_slow(WRITERS, fast=("labelled", "blocks", "embeddings")))
def test_write_gives_the_texts_of_the_pipeline_with_the_same_seed(kind, tokenizer):
    page = make_page(kind, tokenizer)
    pipe, run = page.served.pipe, written(page)
    if kind != "embeddings":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, temperature=0.9)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "the cat",
        max_new_tokens=12,
        num_inference_steps=6,
        num_return_sequences=2,
        generator=torch.Generator().manual_seed(3),
        return_history=True,
    )
    assert run.output.texts == expected.texts
    assert run.frames == [frame.tolist() for frame in expected.history]


@pytest.mark.parametrize("kind", with_slow(WRITERS, fast=("labelled", "masked_lm")))
def test_the_pieces_shown_at_the_end_are_the_text(kind, tokenizer):
    page = make_page(kind, tokenizer)
    run = written(page, given_prompt(kind), length=24)
    for row, text in enumerate(run.output.texts):
        ends = page.served.more_ends
        shown = spans(page.served.pipe.tokenizer, run.of_row(row), 6, more_ends=ends)
        assert "".join(piece for piece, _ in shown).strip() == text.strip()
        assert all(name != HIDDEN for _, name in shown)


@pytest.mark.parametrize("kind", ["labelled", "uniform"])
def test_a_token_has_the_colour_of_its_last_change(kind, tokenizer):
    """Against the history: after that step the token is the final one in every frame, and just before it is not."""
    page = make_page(kind, tokenizer)
    run = written(page, steps=12)
    frames = run.of_row(0)
    steps = settled_steps(frames)
    for place, step in enumerate(steps):
        column = [frame[place] for frame in frames]
        assert set(column[step:]) == {column[-1]}
        assert step == 0 or column[step - 1] != column[-1]
    names = [name for piece, name in spans(page.served.pipe.tokenizer, frames, 12) if piece]
    inside = {range_name(steps): steps for steps in step_ranges(12)}
    coloured = [name for name in names if name is not None]
    assert coloured and None in names  # the prompt was given
    assert all(any(step in inside[name] for step in steps) for name in coloured)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 8, 9, 100])
def test_the_ranges_of_steps_cover_each_step_once_and_have_colours(num_steps):
    covered = [step for steps in step_ranges(num_steps) for step in steps]
    assert covered == list(range(1, num_steps + 1))
    names = {range_name(steps) for steps in step_ranges(num_steps)}
    assert names | {HIDDEN} == set(color_map(num_steps))
    assert len(set(color_map(num_steps).values())) == len(color_map(num_steps))


@pytest.mark.parametrize(
    "text", ["the cat sat", "naïve café — 漢字 🙂 end", "  two  blanks", "ends in é"]
)
def test_pieces_put_together_are_the_text(text, tokenizer):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert "".join(found) == text and len(found) == len(ids)
    assert not any("\ufffd" in piece for piece in found)


def test_pieces_of_word_pieces_are_the_text_and_masks_are_hidden():
    _, tokenizer = make_masked_lm("bert")
    ids = tokenizer("the cat sat [MASK] the mat")["input_ids"]
    found = pieces(tokenizer, ids)
    assert found[0] == found[-1] == ""
    assert "".join(found).split() == ["the", "cat", "sat", *HIDDEN.split(), "the", "mat"]


HOSTILE_NUMBERS = [None, "8", float("nan"), float("inf"), -1, 10**9, True, [], {}, 2.5]


@pytest.mark.parametrize("value", HOSTILE_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["length", "steps", "count", "seed"])
def test_numbers_outside_their_limits_are_refused_before_the_model_runs(name, value, tokenizer):
    page = make_page("labelled", tokenizer)
    if name == "seed" and value == 10**9:
        value = 2**40
    with pytest.raises(Refusal) as refused:
        written(page, **{name: value})
    assert refused.value.values["field"] == name


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"prompt": "x" * 601}, "error.long"),
        ({"prompt": ["x"]}, "error.text"),
        ({"prompt": "\ud800"}, "error.text"),
        ({"prompt": "a [MASK]"}, "error.mask"),
        ({"prompt": "the cat sat on the mat " * 12}, "error.tokens"),
        ({"label": 2}, "error.choice"),
        ({"label": "1"}, "error.choice"),
        ({"sampler": "__class__"}, "error.choice"),
        ({"sampler": ["ancestral"]}, "error.choice"),
        ({"temperature": 2.01}, "error.range"),
    ],
)
def test_other_inputs_outside_their_limits_are_refused(changes, key, tokenizer):
    with pytest.raises(Refusal) as refused:
        written(make_page("labelled", tokenizer), **changes)
    assert refused.value.key == key
    for language in LANGUAGES:
        with pytest.raises(gr.Error) as shown, readable_errors(language):
            raise refused.value
        assert shown.value.message and "Traceback" not in shown.value.message
        assert bool(re.search("[а-яё]", shown.value.message)) == (language == "ru")


@pytest.mark.parametrize("language", LANGUAGES)
def test_errors_are_escaped_and_tell_nothing_of_the_machine(language):
    with pytest.raises(gr.Error) as shown, readable_errors(language):
        raise ValueError("`prompt` must be short, got '<img src=x onerror=alert(1)>'.")
    assert "<" not in shown.value.message and "&lt;img" in shown.value.message
    with pytest.raises(gr.Error) as shown, readable_errors(language):
        raise KeyError("/home/somebody/secret")
    assert shown.value.message == say("error.unexpected", language)
    assert not shown.value.print_exception


def test_a_long_prompt_leaves_what_room_there_is(tokenizer):
    """A length that does not fit behind its prompt is shortened."""
    page = make_page("tokens", tokenizer)
    prompt = "the cat sat on the mat and looked at the dog"
    run = written(page, prompt=prompt, length=page.served.longest)
    assert len(run.frames[-1][0]) <= page.served.pipe.denoiser.config.max_length
    assert run.output.texts[0].startswith(prompt)


def test_a_masked_lm_wants_a_length(tokenizer):
    with pytest.raises(Refusal) as refused:
        written(make_page("masked_lm", tokenizer), length=0)
    assert refused.value.key == "error.length"


@pytest.mark.parametrize("kind", ["tokens", "embeddings"])
def test_a_run_out_of_time_stops_after_a_step_and_keeps_what_it_has(kind, tokenizer):
    run = written(make_page(kind, tokenizer, seconds=0.0), steps=32)
    assert run.stopped and run.output is None
    assert len(run.frames) == 1


def test_a_run_that_nobody_watches_stops(tokenizer):
    served = make_page("tokens", tokenizer).served
    before = threading.active_count()
    asked = {"generator": torch.Generator(), "num_return_sequences": 4}
    runs = watch(served.with_sampler("remdm"), 4000, seconds=45.0, **asked)
    run = next(run for run in runs if run.frames)
    runs.close()
    assert run.stopped and 0 < len(run.frames) < 4000
    assert threading.active_count() == before


def test_a_run_that_nobody_asks_about_is_given_up(tokenizer, monkeypatch):
    """A page that was closed leaves a generator that is never closed."""
    monkeypatch.setattr("text_diffusers.space.parts.running.PATIENCE", 0.05)
    served = make_page("tokens", tokenizer).served
    asked = {"generator": torch.Generator(), "num_return_sequences": 4}
    runs = watch(served.with_sampler("remdm"), 4000, seconds=45.0, **asked)
    run = next(runs)
    for worker in threading.enumerate():
        if worker.name == WORKER:
            worker.join(20)
    assert run.stopped and len(run.frames) < 4000
    runs.close()


def test_errors_of_the_thread_reach_the_one_that_asks(tokenizer):
    served = make_page("tokens", tokenizer).served
    with pytest.raises(ValueError, match="`prompt` and `text` exclude"):
        asked = {"prompt": "a", "text": "b [MASK]"}
        last_of(watch(served.with_sampler("ancestral"), 4, seconds=45.0, **asked))


@pytest.mark.parametrize(
    "sampler", with_slow(("ancestral", "first_hitting", "confidence"), fast=("ancestral",))
)
@pytest.mark.parametrize("kind", ["tokens", "masked_lm"])
def test_calls_are_the_steps_that_settled_something(kind, sampler, tokenizer):
    """Of one text under absorbing noise: positions are selected first, so a step without any calls no model."""
    served = make_page(kind, tokenizer).served
    asked = {"max_new_tokens": 10, "generator": torch.Generator().manual_seed(1)}
    run = write(served.with_sampler(sampler), 30, seconds=45.0, **asked)
    changed = {step for step in settled_steps(run.of_row(0)) if step}
    assert run.cost.calls == run.cost.rows == len(changed) > 0


def test_the_served_pipeline_is_left_as_it_is(tokenizer):
    page = make_page("labelled", tokenizer)
    scheduler = page.served.pipe.scheduler
    config = dict(scheduler.config)
    written(page, sampler="remdm", temperature=0.1)
    assert page.served.pipe.scheduler is scheduler and dict(scheduler.config) == config


# Fill in


@pytest.mark.parametrize(
    ("text", "count"),
    [("a ___ b", 1), ("a ______ b", 1), ("[3]", 3), ("a [MASK] ___ [2].", 4), ("[007]x", 7)],
)
@pytest.mark.parametrize("kind", ["tokens", "masked_lm"])
def test_gaps_become_as_many_masks(kind, text, count, tokenizer):
    served = make_page(kind, tokenizer).served
    ids = served.pipe.tokenizer(fill_tab.with_masks(served, text), add_special_tokens=False)[
        "input_ids"
    ]
    assert ids.count(served.pipe.tokenizer.mask_token_id) == count


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "error.empty"),
        (None, "error.empty"),
        ("no gap __ [x]", "error.gap"),
        ("[0]", "error.gap"),
        ("[9999]", "error.tokens"),
        ("___ " * 150, "error.tokens"),
        ("_" * 601, "error.long"),
    ],
)
def test_texts_without_a_gap_or_with_too_many_are_refused(text, key, tokenizer):
    with pytest.raises(Refusal) as refused:
        fill_tab.with_masks(make_page("tokens", tokenizer).served, text)
    assert refused.value.key == key


@pytest.mark.parametrize("kind", with_slow(WRITERS, fast=("labelled", "blocks")))
def test_filling_in_keeps_the_rest_and_equals_the_pipeline(kind, tokenizer):
    page = make_page(kind, tokenizer)
    pipe = page.served.pipe
    request = fill_tab.FillRequest(
        text="the ___ sat [2] mat",
        label=ANY,
        steps=5,
        sampler=page.served.sampler,
        window=0,
        temperature=1.0,
        count=3,
        seed=5,
    )
    run = last_of(fill_tab.fill_gaps(page, request))
    mask, generator = pipe.tokenizer.mask_token, torch.Generator().manual_seed(5)
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 5, "num_return_sequences": 3, "generator": generator}
    if kind in CHATS:
        asked["temperature"] = 1.0
    assert run.output.texts == pipe(text=f"the {mask} sat {mask}{mask} mat", **asked).texts
    shown = spans(pipe.tokenizer, run.of_row(0), 5, ends=False, given=run.given)
    known = [piece.strip() for piece, name in shown if name is None]
    assert " ".join(known).split()[0] == "the" and "sat" in " ".join(known)


@pytest.mark.parametrize("kind", ["labelled", "masked_lm"])
def test_given_text_is_shown_as_it_was_given(kind, tokenizer):
    page = make_page(kind, tokenizer)
    text = "The [EOS] Ω___\n[2] Mat  [1]!"
    settings = {"label": ANY, "steps": 3, "sampler": page.served.sampler, "window": 0, "seed": 5}
    request = fill_tab.FillRequest(text=text, temperature=1.0, count=2, **settings)
    run = last_of(fill_tab.fill_gaps(page, request))
    for row, written in enumerate(run.output.texts):
        shown = spans(page.served.pipe.tokenizer, run.of_row(row), 3, ends=False, given=run.given)
        assert "".join(piece for piece, _ in shown) == written
        given = "".join(piece for piece, name in shown if name is None)
        assert given == "The [EOS] Ω\n Mat  !"


# Control


def control(page, **changes):
    values = {"labels": [], "prompt": "", "negative": "", "words": "", "length": 0}
    values |= {"steps": 6, "temperature": 1.0, "seed": 2} | changes
    return control_tab.controlled_texts(page, control_tab.ControlRequest(**values))


def test_scale_1_is_the_model_itself_and_scale_0_forgets_the_label(tokenizer):
    page = make_page("labelled", tokenizer)
    grid = control(page, labels=[0, 1])
    pipe = page.served.pipe
    pipe.set_progress_bar_config(disable=True)
    for label in (0, 1):
        generator = [torch.Generator().manual_seed(2)]
        (alone,) = pipe(class_labels=[label], num_inference_steps=6, generator=generator).texts
        assert grid.texts[2 * grid.scales.index(1.0) + label] == alone
    assert grid.texts[0] == grid.texts[1]
    assert len(grid.texts) == 2 * len(control_tab.SCALES)


@pytest.mark.parametrize("kind", ["tokens", "masked_lm"])
def test_models_without_labels_are_led_by_a_beginning(kind, tokenizer):
    page = make_page(kind, tokenizer)
    grid = control(page, prompt="the cat", negative="the dog")
    assert grid.scales == control_tab.SCALES
    assert kind == "masked_lm" or len(set(grid.texts)) > 1  # that one hardly looks at its context
    assert all(text.startswith("the cat") for text in grid.texts)


@pytest.mark.parametrize("kind", CHATS)
def test_language_models_are_guided_against_masks_in_the_place_of_the_beginning(kind, tokenizer):
    page = make_page(kind, tokenizer)
    grid = control(page, prompt="w7 w8", temperature=0.0)
    guided = page.served.pipe(
        ["w7 w8"] * len(grid.scales),
        guidance_scale=list(grid.scales),
        guide_by="masked_prompt",
        num_inference_steps=6,
    )
    assert grid.scales == control_tab.SCALES and grid.texts == guided.texts
    assert len(set(grid.texts)) > 1


@pytest.mark.parametrize("kind", ["tokens", "labelled", "masked_lm", "embeddings"])
def test_texts_hold_the_words_and_the_length(kind, tokenizer):
    page = make_page(kind, tokenizer)
    tokenizer = page.served.pipe.tokenizer
    grid = control(page, words="cat, dog", length=9)
    assert grid.scales == () and len(grid.texts) == 2  # without and with
    held = grid.texts[1]
    if kind != "embeddings":  # over embeddings words are a wish
        assert re.search(r"\bcat\b", held) and re.search(r"\bdog\b", held)
    guided = page.served.with_sampler(page.served.sampler, 1.0)
    controls = [WordsControl(tokenizer, ["cat", "dog"])]
    controls += [
        LengthControl(9, eos_token_id=None if kind == "masked_lm" else tokenizer.eos_token_id)
    ]
    generator = [torch.Generator().manual_seed(2)]
    output = guided(
        controls=controls, num_inference_steps=6, generator=generator, output_type="tokens"
    )
    assert tokenizer.batch_decode(output.tokens, skip_special_tokens=True) == [held]
    assert output.tokens.shape[1] == 11  # with what is around them


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "error.wish"),
        ({"words": "a,b,c,d,e"}, "error.words"),
        ({"words": "x" * 31}, "error.words"),
        ({"words": "x" * 200}, "error.long"),
        ({"labels": [0, 5]}, "error.choice"),
        ({"labels": "01"}, "error.none"),
        ({"length": 1, "prompt": "the cat sat"}, "error.short"),
        ({"negative": 3}, "error.text"),
    ],
)
def test_wishes_outside_the_limits_are_refused(changes, key, tokenizer):
    with pytest.raises(Refusal) as refused:
        control(make_page("labelled", tokenizer), **changes)
    assert refused.value.key == key


def test_the_table_of_texts_is_escaped(tokenizer):
    served = make_page("labelled", tokenizer).served
    served.pipe.register_to_config(label_names=["<b>bad</b>", "good & <script>"])
    grid = control_tab.Grid([0, 1], (1.0,), ["<img onerror=x> cat", "a&b"], ["cat", "<img"])
    table = control_tab.as_table(served, grid, "en")
    assert set(re.findall(r"</?(\w+)", table)) == {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "mark",
    }
    assert "&lt;script&gt;" in table and "<mark>cat</mark>" in table


# Compare


def compared(page, **changes):
    values = {
        "samplers": ["ancestral", "confidence"],
        "steps": [2, 4],
        "prompt": "the",
        "label": ANY,
        "length": 10,
    }
    values |= {"temperature": 1.0, "seed": 4} | changes
    return compare_tab.compared(page, compare_tab.CompareRequest(**values))


def test_a_comparison_writes_what_each_sampler_writes_alone(tokenizer):
    page = make_page("tokens", tokenizer)
    found = last_of(compared(page))
    assert [(run.sampler, run.steps) for run in found] == [
        (s, n) for s in ("ancestral", "confidence") for n in (2, 4)
    ]
    for run in found:
        alone = written(
            page,
            prompt="the",
            sampler=run.sampler,
            steps=run.steps,
            length=10,
            temperature=1.0,
            count=1,
            seed=4,
        )
        assert [run.text] == alone.output.texts
        assert run.settled[0] == 0 and run.settled[-1] == 1 and run.settled == sorted(run.settled)
    for language in LANGUAGES:
        assert compare_tab.as_cards(found, language).count("card") == 5
        assert all(
            plot(found, language).axes
            for plot in (compare_tab.plot_cost, compare_tab.plot_settling)
        )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"samplers": []}, "error.none"),
        ({"samplers": ["ancestral", "evil"]}, "error.choice"),
        ({"steps": [3]}, "error.choice"),
        (
            {"steps": [2, 4, 8, 16], "samplers": ["ancestral", "confidence", "entropy"]},
            "error.runs",
        ),
    ],
)
def test_comparisons_outside_the_limits_are_refused(changes, key, tokenizer):
    with pytest.raises(Refusal) as refused:
        last_of(compared(make_page("tokens", tokenizer), **changes))
    assert refused.value.key == key


def test_a_comparison_out_of_time_says_so(tokenizer):
    with pytest.raises(Refusal) as refused:
        last_of(compared(make_page("tokens", tokenizer, seconds=0.0)))
    assert refused.value.key == "error.time"


# Corrupt


@pytest.mark.parametrize("kernel", ["absorbing", "uniform", "hybrid"])
@pytest.mark.parametrize("kind", with_slow(("tokens", "masked_lm", "two_levels"), fast=("tokens",)))
def test_what_is_corrupted_stays_so_at_later_times(kind, kernel, tokenizer):
    kernels = corrupt_tab.Kernels(make_page(kind, tokenizer).served)
    ids = kernels.tokenizer(
        "the cat sat on the mat and looked at the dog", add_special_tokens=False
    )["input_ids"]
    before = {}
    for time in torch.linspace(0, 1, 21).tolist():
        noisy, _ = kernels.corrupt(kernel, ids, time, seed=7)
        changed = {
            place: new
            for place, (new, old) in enumerate(zip(noisy, ids, strict=True))
            if new != old
        }
        assert before.items() <= changed.items()
        before = changed
    assert len(before) > len(ids) / 2


@pytest.mark.parametrize("kernel", corrupt_tab.KERNELS_SHOWN)
def test_the_probability_shown_is_how_often_a_token_is_itself(kernel, tokenizer):
    kernels = corrupt_tab.Kernels(make_page("tokens", tokenizer).served)
    ids = kernels.tokenizer("the cat sat on the mat", add_special_tokens=False)["input_ids"] * 200
    noisy, kept = kernels.corrupt(kernel, ids, 0.4, seed=0)
    share = sum(new == old for new, old in zip(noisy, ids, strict=True)) / len(ids)
    assert abs(share - kept) < 5 * (0.25 / len(ids)) ** 0.5
    assert kernels.corrupt(kernel, ids, 0.0, seed=0) == (ids, 1.0)


@pytest.mark.parametrize("kind", with_slow(KINDS, fast=("labelled", "masked_lm", "two_levels")))
def test_every_model_shows_its_corruption(kind, tokenizer):
    kernels = corrupt_tab.Kernels(make_page(kind, tokenizer).served)
    for name in kernels.names:
        request = corrupt_tab.CorruptRequest(name, time=0.7, text="the cat sat on the mat", seed=1)
        result = corrupt_tab.corrupted(kernels, 600, request)
        assert len(result.spans) == result.total >= result.changed > 0
        assert sum(mark is not None for _, mark in result.spans) == result.changed
    for name, time in (("gaussian", 0.7), ("absorbing", 1.01)):
        request = corrupt_tab.CorruptRequest(name, time=time, text="the", seed=1)
        with pytest.raises(Refusal):
            corrupt_tab.corrupted(kernels, 600, request)


# Two levels


def planned(page, **changes):
    values = {
        "prompt": "",
        "length": 12,
        "coarse_steps": 4,
        "fine_steps": 3,
        "temperature": 0.0,
        "seed": 6,
    }
    return last_of(plan_tab.planned(page, plan_tab.PlanRequest(**values | changes)))


@pytest.mark.parametrize("kind", ["two_levels", "one_level"])
def test_two_levels_write_what_the_pipeline_writes(kind, tokenizer):
    page = make_page(kind, tokenizer)
    draft, pipe = planned(page), page.served.pipe
    generator = torch.Generator().manual_seed(6)
    output = pipe(max_new_tokens=12, num_inference_steps=(4, 3), generator=generator)
    assert draft.text == output.texts[0] and draft.detail == output.fine_codes[0].tolist()
    assert draft.plan == ([] if output.plan is None else output.plan[0].tolist())


def test_the_same_plan_is_kept_and_other_detail_is_found(tokenizer):
    page = make_page("two_levels", tokenizer)
    first = planned(page)
    others = [planned(page, kept=first, tries=tries) for tries in range(5)]
    assert all(draft.plan == first.plan for draft in others)
    assert len({tuple(draft.detail) for draft in others}) > 1


def test_cells_are_coloured_by_their_codes_and_open_ones_are_not():
    cells = plan_tab.draw_cells([0, 1, 0, 5, 9], num_codes=5)
    colors = re.findall(r"background:([^\"]+)", cells)
    assert colors[0] == colors[2] != colors[1] and colors[3] == colors[4] == "var(--cell-open)"


def test_two_levels_out_of_time_say_so(tokenizer):
    with pytest.raises(Refusal) as refused:
        planned(make_page("two_levels", tokenizer, seconds=-1.0))
    assert refused.value.key == "error.time"


# The page


@pytest.mark.parametrize("kind", with_slow(KINDS, fast=("labelled", "blocks", "two_levels")))
def test_every_kind_of_pipeline_gets_a_page(kind, tokenizer):
    blocks = build(make_pipe(kind, tokenizer), "a model")
    tabs = [part for part in blocks.blocks.values() if isinstance(part, gr.Tab)]
    chat = ["Chat"] if kind in CHATS else []
    names = [*chat, "Write", "Fill in", "Control", "Compare", "Corrupt", "Laboratory"]
    assert [tab.label for tab in tabs] == names
    lacking = {
        part.elem_id for part in blocks.blocks.values() if str(part.elem_id).endswith("lacking")
    }
    expected = {"fill", "control", "compare"} if "level" in kind else set()
    assert lacking == {f"{name}-lacking" for name in expected}


def test_a_model_in_blocks_is_guided_by_its_labels_and_held_to_a_length_alone(tokenizer):
    page = make_page("labelled_blocks", tokenizer)
    grid = control(page, labels=[0, 1], prompt="the cat", length=0)
    assert grid.scales == control_tab.SCALES and len(set(grid.texts)) > 1
    assert all(text.startswith("the cat") for text in grid.texts)
    with pytest.raises(Refusal) as refused:
        control(page, prompt="the cat")
    assert refused.value.key == "error.wish"
    held = control(page, prompt="the cat", length=9).texts[1]
    pipe = page.served.with_sampler(page.served.sampler, 1.0)
    length = LengthControl(9, eos_token_id=pipe.tokenizer.eos_token_id)
    generators = [torch.Generator().manual_seed(2)]
    settings = {"controls": length, "num_inference_steps": 6, "generator": generators}
    assert pipe(["the cat"], **settings).texts == [held]

    blocks = build(page.served.pipe, "a model")
    parts = {
        part.elem_id: part for part in blocks.blocks.values() if getattr(part, "elem_id", None)
    }
    assert not parts["control-words"].visible and not parts["control-negative"].visible
    assert parts["control-labels"].visible and "control-blocks" in parts


def test_values_of_the_page_reach_a_function_by_their_names():
    request = compare_tab.CompareRequest
    names = ["steps", "samplers", "label", "prompt", "length", "seed", "temperature"]

    def answer(asked, language):
        return asked, language

    def stream(asked, language):
        yield asked, language

    fields = dict.fromkeys(names)
    asked, language = handler(answer, request, fields)(*range(7), "ru")
    assert language == "ru" and [getattr(asked, name) for name in names] == list(range(7))
    assert list(handler(stream, request, fields)(*range(7), "ru")) == [(asked, "ru")]


def test_pipelines_that_write_no_texts_of_their_own_are_refused():
    with pytest.raises(ValueError, match="`pipe` must write without a source.*got SimpleNamespace"):
        Served(SimpleNamespace(), "a model")


def test_two_functions_are_open_to_programs_and_take_turns_with_the_buttons(tokenizer):
    """All others are private: no API page lists them and no client library may call them."""
    blocks = build(make_pipe("labelled", tokenizer), "a model")
    functions = [*blocks.fns.values()]
    public = [function for function in functions if function.api_visibility != "private"]
    assert len(functions) > 10 and [function.api_name for function in public] == ["write", "fill"]
    heavy = [function for function in functions if function.concurrency_id == "model"]
    assert len(heavy) == 4 + 2 and set(map(id, public)) <= set(map(id, heavy))
    assert all(function.concurrency_limit == 1 and function.queue for function in heavy)


def test_a_model_whose_words_appear_all_at_once_has_no_functions(tokenizer):
    blocks = build(make_pipe("two_levels", tokenizer), "a model")
    assert all(function.api_visibility == "private" for function in blocks.fns.values())


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("en-GB,en;q=0.9,ru;q=0.1", "en"),
        ("de", "en"),
        ("", "en"),
    ],
)
def test_the_page_begins_in_the_visitors_language(header, language):
    assert preferred_language(SimpleNamespace(headers={"accept-language": header})) == language


# Words


@pytest.mark.parametrize("key", TEXTS)
def test_each_text_is_there_in_both_languages(key):
    english, russian = TEXTS[key]
    assert re.search("[A-Za-z0-9{]", english) and not re.search("[А-Яа-яЁё]", english)
    assert re.search("[а-яё]", russian.lower())
    fields = [set(re.findall(r"{(\w+)}", text)) for text in (english, russian)]
    assert fields[0] == fields[1]


def test_every_key_that_is_used_exists_and_every_text_is_used():
    paths = [path for path in sorted((ROOT / "space").rglob("*.py")) if path.name != "texts.py"]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    literals = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.add(node.value)

    # Keys are also put together: of a beginning and a name, or of the name of a tab and an end.
    joined = "\n".join(sources)
    beginnings = tuple(re.findall(r'f"([a-z.]+\.){', joined))
    ends = tuple(re.findall(r'f"{tab}(\.[a-z]+)"', joined))
    unused = [
        key
        for key in TEXTS
        if key not in literals and not key.startswith(beginnings) and not key.endswith(ends)
    ]
    assert not unused
    rooms = "error|chat|write|fill|control|compare|corrupt|plan|latents|between|status|needs|page"
    rooms += "|opening|save|address|laboratory|examples|api"
    dotted = {text for text in literals if re.fullmatch(rf"({rooms})\.\w+(\.\w+)*", text)}
    assert dotted - {"page.language"} <= set(TEXTS)


# What goes to the Hub


def test_requirements_are_those_of_the_package(monkeypatch):
    found = {}
    monkeypatch.setattr("setuptools.setup", lambda **settings: found.update(settings))
    monkeypatch.chdir(ROOT)
    exec(
        compile((ROOT / "setup.py").read_text(), str(ROOT / "setup.py"), "exec"),
        {"__file__": str(ROOT / "setup.py")},
    )
    wanted = sorted({*found["install_requires"], *found["extras_require"]["demo"]})
    assert sorted((ROOT / "space/requirements.txt").read_text().split()) == wanted


def test_the_front_matter_is_what_the_hub_reads():
    front = yaml.safe_load((ROOT / "space/README.md").read_text(encoding="utf-8").split("---\n")[1])
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert front["sdk"] == "gradio" and front["sdk_version"] == pinned["gradio"]
    assert (
        isinstance(front["python_version"], str) and (ROOT / "space" / front["app_file"]).is_file()
    )
    assert front["license"] == "apache-2.0" and len(front["short_description"]) <= 60
    assert {front["colorFrom"], front["colorTo"]} <= {
        *("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    }


def test_limits_are_those_of_a_small_machine():
    assert limits.Limits().seconds <= 60 and limits.Limits().waiting <= 32
