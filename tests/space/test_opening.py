"""The first screen: a text of the model itself, whose pieces appear at the steps that settled them."""

import html
import re

import pytest
import torch
from support.space_pages import make_page

from text_diffusers.space.opening import LENGTH, PLAYING_SECONDS, as_settling, write_opening
from text_diffusers.space.parts.pieces import settled_steps
from text_diffusers.space.tabs.write import WriteRequest, write_texts


def words_of(settling):
    return html.unescape(re.sub("<[^>]+>", "", settling))


@pytest.mark.parametrize("kind", ["labelled", "blocks", "embeddings", "chat"])
def test_the_text_is_what_the_pipeline_writes_with_the_settings_that_the_button_gives(
    kind, tokenizer
):
    page = make_page(kind, tokenizer)
    opening = write_opening(page)
    asked, pipe = opening.asked, page.served.with_sampler(opening.asked.sampler, 0.7)
    alone = pipe(
        max_new_tokens=min(LENGTH, page.served.longest),
        num_inference_steps=asked.steps,
        generator=torch.Generator().manual_seed(0),
        **({"temperature": asked.temperature} if kind == "chat" else {}),
    )
    assert asked.prompt == "" and asked.seed == 0
    assert opening.run.output.texts == alone.texts
    shown = words_of(as_settling(page.served, opening.run))
    assert " ".join(shown.split()) == " ".join(alone.texts[0].split())


def test_a_piece_shows_itself_at_the_share_of_the_time_at_which_it_settled(tokenizer):
    page = make_page("labelled", tokenizer)
    opening = write_opening(page)
    frames = opening.run.of_row(0)
    delays = re.findall(r"animation-delay:([\d.]+)s", as_settling(page.served, opening.run))
    expected = {
        f"{PLAYING_SECONDS * step / (len(frames) - 1):.2f}"
        for step in settled_steps(frames)
        if step
    }
    assert len(delays) > 4 and set(delays) <= expected
    assert max(map(float, delays)) <= PLAYING_SECONDS < 5


def test_markup_in_a_text_stays_words(tokenizer):
    page = make_page("tokens", tokenizer)
    settings = {"label": -1, "length": 4, "steps": 4, "sampler": page.served.sampler, "window": 0}
    asked = WriteRequest(prompt="<b>a", **settings, temperature=1.0, count=1, seed=0)
    *_, run = write_texts(page, asked)
    settling = as_settling(page.served, run)
    assert "&lt;b&gt;a" in settling and "<b>" not in settling


@pytest.mark.parametrize("kind", ["two_levels", "one_level"])
def test_words_that_appear_all_at_once_are_not_shown_as_if_they_settled(kind, tokenizer):
    assert write_opening(make_page(kind, tokenizer)) is None


def test_a_model_too_slow_for_the_start_of_a_page_has_no_text_there(tokenizer):
    assert write_opening(make_page("tokens", tokenizer, seconds=0.0)) is None
