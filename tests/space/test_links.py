"""Addresses of settings: what one fills in, and what is said of one that does not fit."""

import functools

import gradio as gr
import pytest
from support.latent_pipes import make_latent_denoiser, make_latent_pipe
from support.space_pages import make_page

from text_diffusers.space.app import build_heading, build_tab, tabs_of
from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts.interface import Page, message_of
from text_diffusers.space.parts.links import settings_in
from text_diffusers.space.parts.served import Served

# Settings of each tab that differ from those that the page begins with, among them a list and hostile words
CHANGED = {
    "write": {"prompt": "the <b>cat</b> & Ω=?", "steps": 9, "temperature": 0.35, "seed": 2**31 - 1},
    "fill": {"text": "the ___ sat\n[2] mat", "label": 1, "count": 4},
    "control": {"labels": [1], "words": "cat, dog", "length": 9},
    "compare": {"samplers": ["confidence", "ancestral"], "steps": [2, 16], "temperature": 0.0},
    "corrupt": {"kernel": "uniform", "time": 0.85, "text": "the cat", "seed": 3},
    "laboratory": {"figure": "rings", "sampler": "langevin", "steps": 60, "way": 0.5},
}


@functools.cache
def page_of(kind, tokenizer):
    """A page that tests share: what an address fills in changes nothing of it."""
    return with_tabs(make_page(kind, tokenizer))


def with_tabs(page):
    """A page with its tabs, as `build` lays them out."""
    with gr.Blocks():
        build_heading(page)
        with gr.Tabs() as page.tabs:
            for name in tabs_of(page.served):
                with gr.Tab(name):
                    build_tab(page, name)
    return page


@pytest.mark.parametrize("tab", CHANGED)
def test_an_address_gives_back_the_settings_that_it_was_made_of(tab, tokenizer):
    page = page_of("labelled", tokenizer)
    linked = page.linked[tab]
    values = linked.first_values | CHANGED[tab]
    address = linked.address(tab, values)
    assert address.startswith(f"?tab={tab}&") and not set(address) & set(" <>\"'\n")
    opened, read = settings_in(address[1:], page.linked)
    assert opened == tab and read == values


@pytest.mark.parametrize("denoiser", [{"num_classes": 2}, {"prompt_size": None}])
def test_the_tabs_of_a_model_over_latents_can_be_linked(denoiser, tokenizer):
    pipe = make_latent_pipe(tokenizer, make_latent_denoiser(**denoiser))
    page = with_tabs(Page(Served(pipe, "a model")))
    assert set(page.linked) == {"write", "between", "laboratory"}
    for tab, linked in page.linked.items():
        address = linked.address(tab, linked.first_values)
        assert settings_in(address[1:], page.linked) == (tab, linked.first_values)
    with pytest.raises(Refusal) as refused:
        page.filled("tab=between&first=", "en")
    assert refused.value.key == "error.empty"


@pytest.mark.parametrize("kind", ["labelled", "blocks", "embeddings", "chat", "two_levels"])
def test_every_tab_that_runs_can_be_linked(kind, tokenizer):
    page = page_of(kind, tokenizer)
    lacking = {"fill", "control", "compare"} if kind == "two_levels" else set()
    assert set(page.linked) == set(tabs_of(page.served)) - lacking
    for tab, linked in page.linked.items():
        asked = {"message": "w7"} if tab == "chat" else {}
        # Control must be asked for something.
        asked |= {"length": 9} if tab == "control" else {}
        address = linked.address(tab, linked.first_values | asked)
        assert settings_in(address[1:], page.linked) == (tab, linked.first_values | asked)


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("tab=write&steps=900", "error.range"),
        ("tab=write&steps=8.5", "error.integer"),
        ("tab=write&steps=nan", "error.range"),
        ("tab=write&steps=1e3", "error.range"),
        ("tab=write&steps=", "error.range"),
        ("tab=write&temperature=2.01", "error.range"),
        ("tab=write&seed=-1", "error.range"),
        ("tab=write&prompt=" + "x" * 601, "error.long"),
        ("tab=write&prompt=a+[MASK]", "error.mask"),
        ("tab=write&sampler=__class__", "error.choice"),
        ("tab=write&label=7", "error.choice"),
        ("tab=fill&text=no+gap", "error.gap"),
        ("tab=control&labels=", "error.wish"),
        ("tab=control&labels=0&labels=5", "error.choice"),
        ("tab=compare&samplers=", "error.none"),
        ("tab=compare&steps=3", "error.choice"),
        ("tab=corrupt&time=1.5", "error.range"),
        ("tab=write&steps=8&steps=9", "error.address.twice"),
        ("tab=write&stpes=8", "error.address.field"),
        ("tab=write&talk=x", "error.address.field"),
        ("tab=settings", "error.address.tab"),
        ("tab=write&" + "&".join(f"x{n}=1" for n in range(80)), "error.address.long"),
    ],
)
def test_an_address_with_a_value_that_does_not_fit_fills_in_nothing(query, key, tokenizer):
    page = page_of("labelled", tokenizer)
    with pytest.raises(Refusal) as refused:
        page.filled(query, "en")
    assert refused.value.key == key
    for language in ("en", "ru"):
        assert message_of(refused.value, language).endswith((".", "?"))


def test_a_setting_that_the_model_does_not_show_is_in_no_address(tokenizer):
    page = page_of("tokens", tokenizer)  # without labels
    linked = page.linked["write"]
    assert "label" not in linked.address("write", linked.first_values)
    with pytest.raises(Refusal):
        page.filled("tab=write&label=0", "en")


def test_an_address_fills_one_tab_and_leaves_the_others(tokenizer):
    page = page_of("labelled", tokenizer)
    selected, *updates = page.filled("tab=fill&text=___&steps=7&__theme=dark", "en")
    assert selected.selected == "fill"
    fields = page.opened_components()[1:]
    filled = {
        id(field): update["value"]
        for field, update in zip(fields, updates, strict=True)
        if "value" in update
    }
    own = page.linked["fill"].fields
    assert filled[id(own["text"])] == "___" and filled[id(own["steps"])] == 7
    assert set(filled) == {id(own[name]) for name in page.linked["fill"].names}


@pytest.mark.parametrize("query", ["", "__theme=dark", "view=api", "steps=3"])
def test_an_address_that_names_no_tab_changes_nothing(query, tokenizer):
    page = page_of("labelled", tokenizer)
    assert all("value" not in update for update in page.filled(query, "en"))


def test_a_tab_that_answers_at_once_has_the_answer_to_its_address(tokenizer):
    page = page_of("labelled", tokenizer)
    updates = page.filled("tab=corrupt&time=0&text=the+cat", "ru")
    shown = dict(zip(map(id, page.opened_components()), updates, strict=True))
    spans, summary, result = (shown[id(part)] for part in page.linked["corrupt"].outputs)
    assert "".join(piece for piece, _ in spans) == "the cat" and result.changed == 0
    assert "Изменено" in summary
