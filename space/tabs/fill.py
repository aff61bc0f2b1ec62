"""Fill in: text with gaps, whose tokens are written while the rest stays."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from text_diffusers.pipelines.text_gaps import encode_with_masks
from text_diffusers.space.limits import Refusal, text
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.examples import examples_for
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.look import two_columns
from text_diffusers.space.parts.running import Run
from text_diffusers.space.parts.screen import Screen, run_buttons, text_box
from text_diffusers.space.parts.served import Served

# Three underscores or more, or a number of tokens in brackets
GAP = re.compile(r"_{3,}|\[(\d{1,4})\]")


@dataclass
class FillRequest(settings.RunRequest):
    """Values of the tab, as the browser sends them."""

    text: str


def build_fill_tab(page: Page):
    """Lay out the tab and connect it."""
    examples = examples_for(page.served).gaps
    page.markdown("fill.lead", "lead")
    inputs, results = two_columns()

    with inputs:
        box = text_box(page, "fill.text", "fill-text", examples, lines=4, value=examples[0])
        # Only what decides the text stands outside the drawer.
        fields = {"text": box, "label": settings.label_radio(page)}
        with page.more_settings("fill"):
            fields |= settings.run_settings(page, count=3, given={"text": examples[0]})
        buttons = run_buttons(page, "fill")
    with results:
        # The whole row is the text: no gap is an end.
        screen = Screen(page, "fill", ends=False)

    screen.connect(buttons, lambda asked: fill_gaps(page, asked), FillRequest, fields)


def fill_gaps(page: Page, asked: FillRequest) -> Iterator[Run]:
    """The run of a request, as it grows.

    Raises:
        Refusal: if a value is beyond its limits, or the text has no gap.
    """
    served = page.served
    arguments: dict[str, Any] = {"text": with_masks(served, asked.text)}
    arguments |= settings.label_arguments(served, asked.label)
    return settings.start_run(served, asked, arguments)


def with_masks(served: Served, value: Any) -> str:
    """The text with the tokenizer's masks for its gaps: `___` is one, `[3]` are three, a mask is itself."""
    # Gaps become masks before the tokens are counted, since each mask is one token.
    tokenizer = served.pipe.tokenizer
    mask = tokenizer.mask_token
    written = text("fill.text", value, served.limits.characters)
    if not written:
        raise Refusal("error.empty", field="fill.text")

    def masks(gap: re.Match) -> str:
        # One more than fits is refused like any number of them, and is no long string.
        return mask * min(int(gap[1] or 1), served.room + 1)

    # "[MASK]" is a gap whatever the tokenizer calls its mask.
    masked = GAP.sub(masks, written.replace("[MASK]", mask))
    ids = encode_with_masks(tokenizer, masked).ids
    if tokenizer.mask_token_id not in ids:
        raise Refusal("error.gap")
    if len(ids) > served.room:
        raise Refusal("error.tokens", field="fill.text", limit=served.room, got=len(ids))
    return masked
