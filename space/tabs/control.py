"""Control: texts from one seed, led more and more by a label or a beginning, and held to words or a length."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from text_diffusers.guidance.controls import LengthControl, WordsControl
from text_diffusers.space.limits import Refusal, integer, some_of, text
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.running import same_seeds, steps_of, write
from text_diffusers.space.parts.screen import KEPT_SECONDS, accepted_prompt, prompt_box
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import say

SCALES = (0.0, 1.0, 2.0, 3.0, 5.0)
LABELS_SHOWN = 3
WORD_CHARACTERS = 30
MASKED_LM_LENGTH = 16
EXAMPLES = ["I think", "She was"]


@dataclass
class Grid:
    """Texts side by side.

    Attributes:
        labels: of the columns; empty is one column without a label.
        scales: of the rows; empty are two rows, without and with what the text is held to.
        texts: row by row.
        words: that the texts should hold.
    """

    labels: list[int]
    scales: tuple[float, ...]
    texts: list[str]
    words: list[str]


def build_control_tab(page: Page):
    """Lay out the tab and connect it."""
    served = page.served
    page.add(gr.Markdown, {"value": "control.lead"}, elem_classes="lead")
    if not served.labels:
        page.add(gr.Markdown, {"value": "control.unlabelled"}, elem_classes="hint")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            inputs = controls(page)
            with gr.Row(elem_classes="buttons"):
                button = page.add(gr.Button, {"value": "control.run"}, variant="primary", elem_id="control-run")
        with gr.Column(scale=3, min_width=260):
            table = gr.HTML("", elem_id="control-texts")
            grid = gr.State(None, time_to_live=KEPT_SECONDS)

    def show(found: Grid | None, language: str) -> str:
        return "" if found is None else as_table(served, found, language)

    def run(*values: Any) -> tuple:
        found = controlled_texts(page, *values[:-1])
        return found, show(found, values[-1])

    page.on_model(button.click, run, inputs, [grid, table], show_progress_on=table)
    page.rendered.append((show, grid, [table]))


def controls(page: Page) -> list:
    """The inputs of the tab, in the order of `controlled_texts`."""
    served, limits = page.served, page.served.limits
    words: dict[str, Any] = {"label": "label"}
    words["choices"] = lambda language: settings.label_choices(served, language, with_any=False)
    shown = list(range(min(len(served.labels), LABELS_SHOWN)))
    labels = page.add(gr.CheckboxGroup, words, value=shown, visible=bool(shown), elem_id="control-labels")
    prompt = prompt_box(page, "control", EXAMPLES)
    words = {"label": "control.negative", "placeholder": "control.negative.placeholder"}
    by_prompt = served.kind != "embeddings"
    negative = page.add(gr.Textbox, words, max_length=limits.characters, visible=by_prompt, elem_id="control-negative")
    words = {"label": "control.words", "info": lambda lang: say("control.words.info", lang, limit=limits.words)}
    held = page.add(gr.Textbox, words, max_length=limits.words * (WORD_CHARACTERS + 2), elem_id="control-words")
    with page.add(gr.Accordion, {"label": "more"}, open=False, elem_id="control-more"):
        words = {"label": "control.length", "info": "length.info"}
        length = page.add(gr.Slider, words, minimum=0, maximum=served.longest, step=1, value=0)
        others = [settings.steps_slider(page), settings.temperature_slider(page), settings.seed_number(page)]
    return [labels, prompt, negative, held, length, *others]


def controlled_texts(
    page: Page,
    labels: list[int],
    prompt: str,
    negative: str,
    words: str,
    length: float,
    steps: float,
    temperature: float,
    seed: float,
) -> Grid:
    """The texts that the values of the tab ask for, all from one seed.

    Raises:
        Refusal: if a value is beyond its limits, or there is nothing to hold to.
    """
    served = page.served
    labels = some_of("label", labels, range(len(served.labels))) if labels else []
    if len(labels) > LABELS_SHOWN:
        raise Refusal("error.runs", limit=LABELS_SHOWN, got=len(labels))
    begin = accepted_prompt(page, prompt)
    avoided = text("control.negative", negative, served.limits.characters)
    held = accepted_words(words, served.limits.words)
    length = integer("control.length", length, 0, served.longest)
    steps, _, temperature = settings.sampling(served, steps, served.sampler, temperature)
    by_prompt = served.kind != "embeddings" and bool(begin or avoided)
    scales = SCALES if labels or by_prompt else ()
    if not scales and not held and not length:
        raise Refusal("error.wish")
    pipe = served.controlled(served.with_sampler(served.sampler, temperature))
    controls = [WordsControl(pipe.tokenizer, held)] if held else []
    controls += [length_control(served, length, begin)] if length else []
    rows = len(scales) or 1
    count = rows * (len(labels) or 1)
    asked: dict[str, Any] = {"prompt": [begin] * count} if begin else {}
    if labels:
        asked["class_labels"] = labels * rows
    if scales:
        asked["guidance_scale"] = [scale for scale in scales for _ in range(len(labels) or 1)]
    if avoided:
        asked["negative_prompt"] = [avoided] * count
    seeds = settings.accepted_seed(seed)
    texts: list[str] = []
    for acting in [controls] if scales else [[], controls]:
        unheld = unheld_length(served, begin)
        more = {} if length and acting else unheld
        texts += finished(served, pipe, steps, asked | more | {"controls": acting}, seeds, count)
    return Grid(labels, scales, texts, held)


def unheld_length(served: Served, begin: str) -> dict[str, Any]:
    """What a masked LM has to be told where no length is held; refuses a beginning that is too long."""
    asked = served.request("prompt", begin, MASKED_LM_LENGTH if served.masked_lm else 0)
    return {name: value for name, value in asked.items() if name != "prompt"}


def finished(served: Served, pipe: Any, steps: int, asked: dict[str, Any], seed: int, count: int) -> list[str]:
    """The texts of a run that had time enough."""
    steps = steps_of(served, pipe, served.sampler, steps)
    run = write(served, pipe, steps, **asked, generator=same_seeds(seed, count))
    if run.output is None:
        raise Refusal("error.time")
    return run.output.texts


def accepted_words(value: Any, limit: int) -> list[str]:
    written = text("control.words", value, limit * (WORD_CHARACTERS + 2))
    words = list(dict.fromkeys(word.strip() for word in written.split(",") if word.strip()))
    if len(words) > limit or any(len(word) > WORD_CHARACTERS for word in words):
        raise Refusal("error.words", field="control.words", limit=limit, characters=WORD_CHARACTERS)
    return words


def length_control(served: Served, length: int, begin: str) -> LengthControl:
    """The control of a length, which a beginning must leave something of."""
    tokenizer = served.pipe.tokenizer
    known = len(tokenizer(begin, add_special_tokens=False)["input_ids"]) if begin else 0
    if length <= known:
        raise Refusal("error.short", got=known)
    return LengthControl(length, eos_token_id=None if served.masked_lm else tokenizer.eos_token_id)


def as_table(served: Served, grid: Grid, language: str) -> str:
    """HTML of the grid: a row a scale, a column a label."""
    heads = [settings.label_name(served, label, language) for label in grid.labels] or [say("control.text", language)]
    rows = [f"{scale:g}" for scale in grid.scales] or [say(f"control.{name}", language) for name in ("free", "held")]
    corner = say("control.scale", language) if grid.scales else ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [corner, *heads])
    body = ""
    for place, row in enumerate(rows):
        cells = grid.texts[place * len(heads) : (place + 1) * len(heads)]
        shown = "".join(f"<td>{marked(cell, grid.words)}</td>" for cell in cells)
        body += f"<tr><th>{html.escape(row)}</th>{shown}</tr>"
    return f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def marked(written: str, words: Sequence[str]) -> str:
    """Escaped text in which the words are marked."""
    if not words:
        return html.escape(written)
    parts = re.split(rf"\b({'|'.join(map(re.escape, words))})\b", written)
    return "".join(f"<mark>{html.escape(p)}</mark>" if i % 2 else html.escape(p) for i, p in enumerate(parts))
