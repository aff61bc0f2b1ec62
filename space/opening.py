"""The first screen: one text of the served model that settles from noise before the visitor's eyes.

The text is written once, when the page is built, so that no visitor waits for it or takes the turn of another. A style
sheet then replays its steps, and nothing moves for a visitor who asked for less motion.
"""

import html
import logging
import time
from dataclasses import asdict, dataclass

import gradio as gr

from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import LIGHT, Page
from text_diffusers.space.parts.pieces import color_map, range_name, settled_pieces, step_ranges
from text_diffusers.space.parts.running import Run
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import decimal, say
from text_diffusers.space.tabs.write import WriteRequest, write_texts

logger = logging.getLogger(__name__)

# Models whose words appear all at once, after the last step
WRITE_AT_ONCE = ("codes", "latents")
LENGTH = 32  # tokens, which fit on a phone
MOST_SECONDS = 15.0  # that the start of the page may take for it
# Less than the five seconds from which on what moves by itself needs a button that stops it
PLAYING_SECONDS = 4.0
PLAY_AGAIN = """() => {
  const text = document.querySelector("#opening-text .settling");
  text.classList.remove("playing");
  void text.offsetWidth;
  text.classList.add("playing");
}"""


@dataclass
class Opening:
    """The text of the first screen, and the settings that it was written with."""

    asked: WriteRequest
    run: Run


def build_opening(page: Page):
    """Lay out the first screen, above the tabs; without a text, if there is none, with words alone."""
    served = page.served
    opening = write_opening(page)
    with gr.Column(elem_id="opening"):
        if opening is None:
            kind = served.kind if served.kind in WRITE_AT_ONCE else "tokens"
            page.markdown(f"opening.{kind}", "lead")
            return

        page.markdown("opening.written", "lead")
        gr.HTML(as_settling(served, opening.run), elem_id="opening-text")
        with gr.Row(elem_classes="buttons"):
            again = page.button("opening.again", "opening-again", size="sm")
            open_settings = page.button("opening.open", "opening-open", size="sm")
        page.markdown(lambda language: summary(opening.run, language), "hint")
    again.click(None, js=PLAY_AGAIN, **LIGHT)
    page.openers.append((open_settings, "write", asdict(opening.asked)))


def write_opening(page: Page) -> Opening | None:
    """A text of the model with the settings that the tab Write begins with, and seed 0.

    Returns:
        `None` of a model whose words appear all at once, or that was not done within `MOST_SECONDS`.
    """
    served = page.served
    if served.kind in WRITE_AT_ONCE:
        return None
    asked = WriteRequest(
        prompt="",
        label=settings.ANY_LABEL,
        length=min(LENGTH, served.longest),
        steps=settings.first_steps(served),
        sampler=served.sampler,
        window=min(served.own_window or 0, served.longest),
        temperature=settings.first_temperature(served),
        count=1,
        seed=0,
    )

    # A run that is no longer read stops at its next step.
    deadline = time.monotonic() + MOST_SECONDS
    written = Run(0)
    try:
        for run in write_texts(page, asked):
            written = run
            if time.monotonic() > deadline:
                break
    except (Refusal, ValueError):
        # The page opens without a text, too.
        logger.warning("The first screen has no text.", exc_info=True)
    return None if written.output is None else Opening(asked, written)


def as_settling(served: Served, run: Run) -> str:
    """HTML of the text, whose pieces show themselves one by one, each in the colour and at the moment of its step."""
    last = max(1, len(run.frames) - 1)
    colors = color_map(run.most_steps)
    names = {step: range_name(steps) for steps in step_ranges(run.most_steps) for step in steps}

    body = ""
    tokenizer = served.pipe.tokenizer
    for piece, step in settled_pieces(tokenizer, run.of_row(0), True, run.given, served.more_ends):
        written = html.escape(piece)
        if step:
            delay = PLAYING_SECONDS * step / last
            look = f"--color:{colors[names[step]]};animation-delay:{delay:.2f}s"
            written = f'<span style="{look}">{written}</span>'
        body += written
    # A screen reader gets the text as it is in the end.
    return f'<p class="settling playing">{body}</p>'


def summary(run: Run, language: str) -> str:
    """What it took to write the text."""
    seconds = decimal(run.cost.seconds, 1, language)
    return say("opening.status", language, seconds=seconds, steps=len(run.frames) - 1)
