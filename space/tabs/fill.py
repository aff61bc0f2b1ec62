"""Fill in: text with gaps, whose tokens are written while the rest stays."""

import re
from collections.abc import Iterator
from typing import Any

import gradio as gr

from text_diffusers.space.limits import Refusal, text
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.running import Run
from text_diffusers.space.parts.screen import Screen, example_chips, run_buttons
from text_diffusers.space.parts.served import ENDS_AROUND, Served

GAP = re.compile(r"_{3,}|\[(\d{1,4})\]")
EXAMPLES = ["The ___ was [2] and I ___ it.", "She [3] the door.", "I think [4]."]


def build_fill_tab(page: Page):
    """Lay out the tab and connect it."""
    page.add(gr.Markdown, {"value": "fill.lead"}, elem_classes="lead")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            limit = page.served.limits.characters
            box = page.add(
                gr.Textbox, {"label": "fill.text"}, lines=4, max_length=limit, elem_id="fill-text", value=EXAMPLES[0]
            )
            example_chips(page, box, EXAMPLES)
            inputs = [box, settings.label_radio(page)]
            with page.add(gr.Accordion, {"label": "more"}, open=False, elem_id="fill-more"):
                inputs += settings.run_settings(page, count=3)
            button, stop = run_buttons(page, "fill", "fill.run")
        with gr.Column(scale=3, min_width=260):
            screen = Screen(page, "fill", ends=False)

    def start(*values: Any) -> Iterator[Run]:
        return fill_gaps(page, *values[:-1])

    screen.connect(button, stop, inputs, start)


def fill_gaps(
    page: Page, given: str, label: int, steps: float, sampler: str, temperature: float, count: float, seed: float
) -> Iterator[Run]:
    """The run that the values of the tab ask for, as it grows.

    Raises:
        Refusal: if a value is beyond its limits, or the text has no gap.
    """
    served = page.served
    asked: dict[str, Any] = {"text": with_masks(served, given)} | settings.given_label(served, label)
    return settings.started(served, asked, steps, sampler, temperature, count, seed)


def with_masks(served: Served, given: Any) -> str:
    """The text with the tokenizer's masks for its gaps: `___` is one, `[3]` are three, a mask is itself."""
    tokenizer, longest = served.pipe.tokenizer, served.pipe._max_length - ENDS_AROUND
    written = text("fill.text", given, served.limits.characters)
    if not written:
        raise Refusal("error.empty", field="fill.text")
    mask = tokenizer.mask_token
    masked = GAP.sub(lambda gap: mask * min(int(gap[1] or 1), longest + 1), written.replace("[MASK]", mask))
    ids = tokenizer(masked, add_special_tokens=False)["input_ids"]
    if tokenizer.mask_token_id not in ids:
        raise Refusal("error.gap")
    if len(ids) > longest:
        raise Refusal("error.tokens", field="fill.text", limit=longest, got=len(ids))
    return masked
