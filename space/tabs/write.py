"""Write: texts appear step by step, and can be replayed."""

from collections.abc import Iterator
from dataclasses import dataclass

from text_diffusers.space.parts import settings
from text_diffusers.space.parts.examples import examples_for
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.look import two_columns
from text_diffusers.space.parts.running import Run
from text_diffusers.space.parts.screen import Screen, accepted_prompt, prompt_box, run_buttons


@dataclass
class WriteRequest(settings.RunRequest):
    """Values of the tab, as the browser sends them."""

    prompt: str
    length: float


def build_write_tab(page: Page):
    """Lay out the tab and connect it."""
    page.markdown("write.lead", "lead")
    inputs, results = two_columns()

    with inputs:
        # Only what decides the text stands outside the drawer.
        fields = {"prompt": prompt_box(page, "write", examples_for(page.served).beginnings)}
        fields["label"] = settings.label_radio(page)
        with page.more_settings("write"):
            fields["length"] = settings.length_slider(page)
            fields |= settings.run_settings(page, count=2)
        buttons = run_buttons(page, "write")
    with results:
        screen = Screen(page, "write")

    screen.connect(buttons, lambda asked: write_texts(page, asked), WriteRequest, fields)


def write_texts(page: Page, asked: WriteRequest) -> Iterator[Run]:
    """The run of a request, as it grows.

    Raises:
        Refusal: if a value is beyond its limits.
    """
    # The prompt decides how much room is left for the length.
    served = page.served
    prompt = accepted_prompt(page, asked.prompt)
    label = settings.label_arguments(served, asked.label)
    length = settings.accepted_length(served, asked.length)
    arguments = served.prompt_arguments(prompt, length) | label
    return settings.start_run(served, asked, arguments)
