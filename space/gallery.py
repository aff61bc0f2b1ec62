"""The gallery: a row of ready examples, each of which opens a tab with its settings."""

from typing import Any

import gradio as gr

from text_diffusers.space.parts.examples import examples_for
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.texts import say


def build_gallery(page: Page, row: gr.Row):
    """Put buttons into a row that stands above the tabs; to be called when the tabs are there.

    A tab that a model does not have, or cannot do what it is for, has no example.
    """
    with row:
        page.markdown("examples", "hint")
        for tab, settings in ready_settings(page).items():
            if tab not in page.linked:
                continue
            button = page.add(
                gr.Button,
                {"value": lambda language, tab=tab: say(f"examples.{tab}", language)},
                elem_id=f"example-{tab}",
                size="sm",
            )
            page.openers.append((button, tab, settings))


def ready_settings(page: Page) -> dict[str, dict[str, Any]]:
    """What the examples change of the settings that a tab begins with, by tab."""
    examples = examples_for(page.served)
    ready: dict[str, dict[str, Any]] = {
        "chat": {"message": examples.sources[1]},
        "write": {"prompt": examples.beginnings[-1], "seed": 7},
        "fill": {"text": examples.gaps[1]},
        "corrupt": {"text": examples.whole[1], "time": 0.6},
        "laboratory": {"figure": "rings", "sampler": "probability_flow"},
    }
    # Not every model of codes or latents takes a beginning.
    if "prompt" not in page.linked["write"].names:
        del ready["write"]
    return ready
