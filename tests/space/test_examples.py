"""The gallery and the examples of the boxes: ready to be run, and in the language that the model writes."""

import re

import gradio as gr
import pytest
from support.space_pages import make_page, make_pipe

from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.hub.export import SHIPPED_MODEL
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.space.app import build
from text_diffusers.space.parts.examples import ENGLISH, RUSSIAN, examples_for
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import TEXTS

# The words of the page itself, which are enough to make a vocabulary of
ENGLISH_TEXTS = [english for english, _ in TEXTS.values()]
RUSSIAN_TEXTS = [russian for _, russian in TEXTS.values()]


def test_a_model_with_a_russian_vocabulary_has_russian_examples():
    russian = make_page("tokens", train_tokenizer(RUSSIAN_TEXTS, vocab_size=700))
    assert examples_for(russian.served) is RUSSIAN
    blocks = build(russian.served.pipe)
    boxes = [part for part in blocks.blocks.values() if isinstance(part, gr.Dataset)]
    samples = [text for box in boxes for (text,) in box.samples]
    assert len(samples) >= 10 and all(re.search("[а-я]", text) for text in samples)


def test_other_models_have_english_ones(tokenizer):
    assert examples_for(make_page("tokens", tokenizer).served) is ENGLISH
    # Some Russian among English texts changes nothing.
    mixed = train_tokenizer(ENGLISH_TEXTS + RUSSIAN_TEXTS[::9], vocab_size=700)
    assert examples_for(make_page("tokens", mixed).served) is ENGLISH
    shipped = TextPipeline.from_pretrained(SHIPPED_MODEL)
    assert examples_for(Served(shipped, "shipped")) is ENGLISH


@pytest.mark.parametrize("kind", ["labelled", "embeddings", "chat", "two_levels"])
def test_a_click_on_each_example_opens_its_tab_with_settings_that_are_accepted(kind, tokenizer):
    """The functions behind the buttons, as gradio calls them."""
    blocks = build(make_pipe(kind, tokenizer), "a model")
    buttons = {
        part._id: part.elem_id.removeprefix("example-")
        for part in blocks.blocks.values()
        if str(part.elem_id).startswith("example-")
    }
    expected = {"corrupt", "laboratory"}
    # This model of two levels takes no beginning.
    expected |= set() if kind == "two_levels" else {"write", "fill"}
    expected |= {"chat"} if kind == "chat" else set()
    assert set(buttons.values()) == expected
    clicked = 0
    for function in blocks.fns.values():
        for component, event in function.targets:
            if component in buttons and event == "click":
                selected, *updates = function.fn("en")
                assert selected.selected == buttons[component]
                assert len(updates) + 1 == len(function.outputs)
                clicked += 1
    assert clicked == len(expected)


@pytest.mark.parametrize("examples", [ENGLISH, RUSSIAN], ids=["english", "russian"])
def test_texts_with_gaps_have_gaps_and_pairs_have_two_ends(examples):
    assert all(re.search(r"___|\[\d\]", text) for text in examples.gaps)
    assert len(examples.ends) == 2 and len(examples.beginnings) >= 4
