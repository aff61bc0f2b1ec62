"""The Space with a model over latents: what it writes, what lies between two texts, and what it refuses."""

import re

import gradio as gr
import pytest
import torch
from support.latent_pipes import make_latent_denoiser, make_latent_pipe, make_latent_prior

from text_diffusers.samplers import samplers_for, with_sampler
from text_diffusers.space.app import build
from text_diffusers.space.limits import Limits, Refusal
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.served import OWN, Served
from text_diffusers.space.parts.texts import TEXTS
from text_diffusers.space.tabs import latents as latents_tab

LABELS = ["calm", "loud"]


def make_pipe(tokenizer, kind):
    """Of texts alone, of labels and sources, or by a Gaussian prior given a source, which the decoder reads too."""
    if kind == "plain":
        return make_latent_pipe(tokenizer, make_latent_denoiser(prompt_size=None))
    if kind == "labels":
        return make_latent_pipe(tokenizer, make_latent_denoiser(num_classes=2), label_names=LABELS)
    return make_latent_pipe(tokenizer, make_latent_prior(), reads_source=True)


def make_page(tokenizer, kind, **limits):
    return Page(Served(make_pipe(tokenizer, kind), "a model", Limits(**limits)))


def drafted(page, **changes):
    values = {"source": "", "label": settings.ANY_LABEL, "scale": 1.0, "steps": 4}
    values |= {"sampler": page.served.sampler, "temperature": 0.0}
    values |= {"length": 8, "count": 2, "seed": 3} | changes
    return list(latents_tab.drafts(page, latents_tab.LatentRequest(**values)))[-1]


def way(page, **changes):
    values = {"first": "the cat sat", "second": "she was late", "source": ""}
    values |= {"count": 4, "length": 8} | changes
    return latents_tab.way_between(page, latents_tab.BetweenRequest(**values))


@pytest.mark.parametrize(
    ("kind", "asked", "arguments"),
    [
        ("plain", {"sampler": "heun"}, {}),
        ("plain", {"temperature": 0.8}, {"temperature": 0.8}),
        (
            "labels",
            {"label": 1, "source": " the dog ", "scale": 2.5},
            {"class_labels": "loud", "source": "the dog", "guidance_scale": 2.5},
        ),
        ("prior", {"source": "the dog"}, {"source": "the dog"}),
    ],
)
def test_what_is_written_is_what_the_pipeline_writes(tokenizer, kind, asked, arguments):
    page = make_page(tokenizer, kind)
    draft = drafted(page, **asked)
    pipe = with_sampler(page.served.pipe, asked.get("sampler"))
    # At temperature 0 the likeliest token stands everywhere.
    expected = pipe(
        **{"decode_strategy": None if "temperature" in arguments else "greedy"} | arguments,
        num_inference_steps=4,
        max_new_tokens=8,
        num_return_sequences=2,
        generator=torch.Generator().manual_seed(3),
    )
    assert draft.texts == expected.texts and len(set(draft.texts)) == 2
    # Heun's has two for each but the last; a prior has none.
    assert draft.step == pipe.num_timesteps


def test_between_two_texts_stands_what_the_pipeline_interpolates(tokenizer):
    page = make_page(tokenizer, "prior")
    pipe = page.served.pipe
    ends = ("the cat sat", "she was late")
    expected = pipe.interpolate(*ends, count=4, source="the dog", max_new_tokens=8)
    assert way(page, source="the dog").texts == expected
    rebuilt = pipe.reconstruct(list(ends), source="the dog", max_new_tokens=8)
    assert [expected[0], expected[-1]] == rebuilt
    # A source is heard by the decoder.
    assert way(page).texts != expected


def test_the_way_is_shown_with_its_shares_and_escaped():
    table = latents_tab.as_table(["<b>a</b>", "", "c"], "ru")
    assert re.findall(r"<th>(.*?)</th>", table) == ["0,00", "0,50", "1,00"]
    assert re.findall(r"<td>(.*?)</td>", table) == ["&lt;b&gt;a&lt;/b&gt;", "—", "c"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source": "x" * 601}, "error.long"),
        ({"source": ["x"]}, "error.text"),
        ({"label": 2}, "error.choice"),
        ({"scale": 5.5}, "error.range"),
        ({"steps": 101}, "error.range"),  # of the 100 that it was trained with
        ({"steps": 2.5}, "error.integer"),
        ({"sampler": "ddim"}, "error.choice"),
        ({"temperature": float("nan")}, "error.range"),
        ({"length": 0}, "error.range"),
        ({"count": 5}, "error.range"),
        ({"seed": -1}, "error.range"),
    ],
)
def test_values_outside_their_limits_are_refused(changes, key, tokenizer):
    with pytest.raises(Refusal) as refused:
        drafted(make_page(tokenizer, "labels"), **changes)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"first": " "}, "error.empty"),
        ({"second": "x" * 601}, "error.long"),
        ({"count": 1}, "error.range"),
        ({"count": 10}, "error.range"),
        ({"length": 10**9}, "error.range"),
    ],
)
def test_ways_outside_their_limits_are_refused(changes, key, tokenizer):
    with pytest.raises(Refusal) as refused:
        way(make_page(tokenizer, "plain"), **changes)
    assert refused.value.key == key


def test_latents_out_of_time_say_so(tokenizer):
    with pytest.raises(Refusal) as refused:
        drafted(make_page(tokenizer, "plain", seconds=-1.0))
    assert refused.value.key == "error.time"


@pytest.mark.parametrize("kind", ["plain", "labels", "prior"])
def test_the_page_shows_what_a_model_over_latents_can_be_told(kind, tokenizer):
    blocks = build(make_pipe(tokenizer, kind), "a model")
    parts = list(blocks.blocks.values())
    assert [part.label for part in parts if isinstance(part, gr.Tab)] == [
        "Write",
        "Between",
        "Laboratory",
    ]
    assert all(function.api_visibility == "private" for function in blocks.fns.values())

    shown = {part.label: part for part in parts if getattr(part, "label", None)}
    words = {name: TEXTS[key][0] for name, key in (("scale", "latents.scale"), ("steps", "steps"))}
    assert shown[words["scale"]].visible == (kind == "labels")
    assert (words["steps"] in shown) == (kind != "prior")
    assert shown["Kind of text"].visible == (kind == "labels")
    ids = {part.elem_id for part in parts if getattr(part, "elem_id", None)}
    # The denoiser is told a source while it writes; between two texts only a decoder can be.
    assert ("write-source" in ids) == (kind != "plain")
    assert ("between-source" in ids) == (kind == "prior")


def test_buttons_fill_what_they_are_to_fill(tokenizer):
    """With the values with which the page begins."""
    blocks = build(make_pipe(tokenizer, "labels"), "a model", Limits(length=8))
    buttons = {
        part._id: part.elem_id for part in blocks.blocks.values() if hasattr(part, "elem_id")
    }
    found = {}
    for function in blocks.fns.values():
        for target, _ in function.targets:
            found[buttons.get(target)] = function
    for name in ("write-run", "between-run"):
        function = found[name]
        values = [getattr(part, "value", None) for part in function.inputs]
        answer = function.fn(*values)
        last = answer if isinstance(answer, list) else list(answer)[-1]
        assert len(last) == len(function.outputs) and last[0] and last[-1] is not None


def test_every_sampler_of_latents_has_words(tokenizer):
    samplers = make_page(tokenizer, "plain").served.samplers
    assert samplers and all(f"sampler.{name}" in TEXTS for name in samplers)
    prior = make_page(tokenizer, "prior").served
    assert not samplers_for(prior.pipe) and prior.sampler == OWN and not prior.takes_steps
