"""Write: a text appears step by step, and can be replayed."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from text_diffusers.space.limits import integer
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.running import Run
from text_diffusers.space.parts.screen import Screen, accepted_prompt, prompt_box, run_buttons

EXAMPLES = ["I think", "Do you like", "She was", "The old house"]


def build_write_tab(page: Page):
    """Lay out the tab and connect it."""
    page.add(gr.Markdown, {"value": "write.lead"}, elem_classes="lead")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            inputs = [prompt_box(page, "write", EXAMPLES), settings.label_radio(page)]
            with page.add(gr.Accordion, {"label": "more"}, open=False, elem_id="write-more"):
                inputs += [settings.length_slider(page), *settings.run_settings(page, count=2)]
            button, stop = run_buttons(page, "write", "write.run")
        with gr.Column(scale=3, min_width=260):
            screen = Screen(page, "write")

    def start(*values: Any) -> Iterator[Run]:
        return write_texts(page, *values[:-1])

    screen.connect(button, stop, inputs, start)


def write_texts(
    page: Page,
    prompt: str,
    label: int,
    length: float,
    steps: float,
    sampler: str,
    temperature: float,
    count: float,
    seed: float,
) -> Iterator[Run]:
    """The run that the values of the tab ask for, as it grows.

    Raises:
        Refusal: if a value is beyond its limits.
    """
    served = page.served
    begin, label_given = accepted_prompt(page, prompt), settings.given_label(served, label)
    length = integer("length", length, 0, served.longest)
    asked = served.request("prompt", begin, length) | label_given
    return settings.started(served, asked, steps, sampler, temperature, count, seed)
