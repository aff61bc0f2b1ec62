"""Control: texts from one seed, guided more and more by a label or a beginning, and held to words or a length."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.guidance.controls import LengthControl, WordsControl
from text_diffusers.space.limits import Refusal, integer, some_of, text
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import KEPT_SECONDS, MODEL, Fields, Page
from text_diffusers.space.parts.links import LinkedTab
from text_diffusers.space.parts.look import two_columns
from text_diffusers.space.parts.running import generator, steps_to_take, write
from text_diffusers.space.parts.saving import JsonButton
from text_diffusers.space.parts.screen import accepted_prompt, prompt_box
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import say

# Nothing, as trained, and three strengths beyond
SCALES = (0.0, 1.0, 2.0, 3.0, 5.0)
LABELS_SHOWN = 3  # columns that a table has room for
WORD_CHARACTERS = 30
MASKED_LM_LENGTH = 16  # of a text that is held to no length


@dataclass
class ControlRequest:
    """Values of the tab, as the browser sends them."""

    labels: list[int]
    prompt: str
    negative: str
    words: str
    length: float
    steps: float
    temperature: float
    seed: float


@dataclass
class Grid:
    """Texts side by side.

    Attributes:
        labels: of the columns; empty is one column without a label.
        scales: of the rows; empty are two rows, without and with what the text is held to.
        texts: row by row.
        words: that the texts should contain.
    """

    labels: list[int]
    scales: tuple[float, ...]
    texts: list[str]
    words: list[str]


@dataclass
class ControlledCalls:
    """What is to be run.

    Attributes:
        grid: without its texts.
        pipe: a copy of the served one.
        calls: arguments of each.
        num_texts: of each call.
        steps: as asked for.
        seed: of each text.
    """

    grid: Grid
    pipe: Any
    calls: list[dict[str, Any]]
    num_texts: int
    steps: int
    seed: int


def build_control_tab(page: Page):
    """Lay out the tab and connect it."""
    served = page.served
    page.markdown("control.lead", "lead")
    # What the model cannot be asked for is said, since its fields are out of sight.
    if served.kind == "blocks":
        key = "control.one_block"
        if not served.takes_words:
            key = "control.masked" if served.guides_by_masks else "control.blocks"
        page.markdown(key, "hint", elem_id="control-blocks")
    elif not served.pipe.label_names:
        key = "control.unlabelled" if served.guides_by_prompt else "control.unguided"
        page.markdown(key, "hint")

    inputs, results = two_columns()
    with inputs:
        fields = control_fields(page)
        with gr.Row(elem_classes="buttons"):
            button = page.button("control.run", "control-run", variant="primary")
    with results:
        table = gr.HTML("", elem_id="control-texts")
        last = gr.State(None, time_to_live=KEPT_SECONDS)
        with gr.Row(elem_classes="buttons links"):
            link = page.link_button("control")
            file = JsonButton(page, "control", last, lambda grid: saved_grid(served, grid))

    def show(grid: Grid | None, language: str) -> str:
        return "" if grid is None else as_table(served, grid, language)

    def run(asked: ControlRequest, language: str) -> tuple:
        grid = controlled_texts(page, asked)
        return grid, show(grid, language)

    page.linked["control"] = LinkedTab(
        ControlRequest, fields, lambda asked: accepted_calls(page, asked)
    )
    page.on(
        button.click,
        run,
        ControlRequest,
        fields,
        [last, table],
        link=("control", link),
        save=file.save,
        show_progress_on=table,
        **MODEL,
    )
    page.rendered.append((show, last, [table]))


def control_fields(page: Page) -> Fields:
    """Components for a `ControlRequest`; those that the model cannot follow are out of sight."""
    served = page.served
    limits = served.limits

    def labels(language: str) -> list[tuple[str, int]]:
        return settings.label_choices(served, language)

    def words_info(language: str) -> str:
        return say("control.words.info", language, limit=limits.words)

    # A table with a column for each label must fit the screen.
    shown_labels = list(range(min(len(served.pipe.label_names), LABELS_SHOWN)))
    fields = {
        "labels": page.add(
            gr.CheckboxGroup,
            {"label": "label", "choices": labels},
            value=shown_labels,
            visible=bool(shown_labels),
            elem_id="control-labels",
        ),
        "prompt": prompt_box(page, "control"),
        "negative": page.add(
            gr.Textbox,
            {"label": "control.negative", "placeholder": "control.negative.placeholder"},
            max_length=limits.characters,
            visible=served.takes_negative_prompt,
            elem_id="control-negative",
        ),
        "words": page.add(
            gr.Textbox,
            {"label": "control.words", "info": words_info},
            max_length=words_length(limits.words),
            visible=served.takes_words,
            elem_id="control-words",
        ),
    }
    with page.more_settings("control"):
        fields["length"] = page.slider(
            "control.length",
            low=0,
            high=served.longest,
            value=0,
            info="length.info",
        )
        fields["steps"] = settings.steps_slider(page)
        fields["temperature"] = settings.temperature_slider(page)
        fields["seed"] = settings.seed_number(page)
    return fields


def accepted_calls(page: Page, asked: ControlRequest) -> ControlledCalls:
    """The calls of a request.

    Raises:
        Refusal: if a value is beyond its limits, or there is nothing to guide by.
    """
    # 1. Check the values
    served = page.served
    labels = accepted_labels(served, asked.labels)
    prompt = accepted_prompt(page, asked.prompt)
    negative = text("control.negative", asked.negative, served.limits.characters)
    words = accepted_words(asked.words, served.limits.words)
    length = integer("control.length", asked.length, 0, served.longest)
    steps = settings.accepted_steps(served, asked.steps)
    temperature = settings.accepted_temperature(asked.temperature)
    seed = settings.accepted_seed(asked.seed)

    # 2. Guidance fills a row for each scale; controls alone fill two, without and with them
    by_prompt = served.guides_by_prompt and bool(prompt or negative)
    scales = SCALES if labels or by_prompt else ()
    if not scales and not words and not length:
        raise Refusal("error.wish")
    num_columns = len(labels) or 1
    num_texts = num_columns * (len(scales) or 1)

    # Texts of the same scale stand next to each other, one for each label.
    arguments: dict[str, Any] = {}
    if prompt:
        arguments["prompt"] = [prompt] * num_texts
    if negative:
        arguments["negative_prompt"] = [negative] * num_texts
    if labels:
        arguments["class_labels"] = labels * (len(scales) or 1)
    if by_prompt and not labels and not negative and served.guides_by_masks:
        arguments["guide_by"] = "masked_prompt"
    if scales:
        arguments["guidance_scale"] = [scale for scale in scales for _ in range(num_columns)]

    # Controls act on every text of a call, so texts without them need a call of their own.
    controls: list[Any] = []
    if words:
        controls.append(WordsControl(served.pipe.tokenizer, words))
    if length:
        controls.append(length_control(served, length, prompt))

    # 3. With an exact length the text ends there, and needs no other limit.
    free_length = free_length_arguments(served, prompt)
    calls = []
    for active_controls in [controls] if scales else [[], controls]:
        call = arguments | {"controls": active_controls}
        if not (length and active_controls):
            call |= free_length
        calls.append(call)
    grid = Grid(labels=labels, scales=scales, texts=[], words=words)
    pipe = served.with_sampler(served.sampler, temperature)
    return ControlledCalls(grid, pipe, calls, num_texts, steps, seed)


def controlled_texts(page: Page, asked: ControlRequest) -> Grid:
    """The texts of a request, all from one seed.

    Raises:
        Refusal: if a value is beyond its limits, there is nothing to guide by, or time ran out.
    """
    accepted = accepted_calls(page, asked)
    served = page.served
    texts: list[str] = []
    for call in accepted.calls:
        # Each text from the same noise
        draws = [generator(accepted.seed) for _ in range(accepted.num_texts)]
        run = write(
            accepted.pipe,
            steps_to_take(served, accepted.pipe, served.sampler, accepted.steps, call),
            served.limits.seconds,
            **call,
            generator=draws,
        )
        if run.output is None:
            raise Refusal("error.time")
        texts += run.output.texts
    return replace(accepted.grid, texts=texts)


def free_length_arguments(served: Served, prompt: str) -> dict[str, int]:
    """The length of a text that is held to none, for a masked LM; refuses a beginning that is too long."""
    length = 0 if served.pipe.predicts_end else MASKED_LM_LENGTH
    arguments = served.prompt_arguments(prompt, length)
    # The call has the prompts already, one for each text.
    arguments.pop("prompt", None)
    return arguments


def accepted_labels(served: Served, values: Any) -> list[int]:
    if not values:
        return []
    labels = some_of("label", values, range(len(served.pipe.label_names)))
    if len(labels) > LABELS_SHOWN:
        raise Refusal("error.runs", limit=LABELS_SHOWN, got=len(labels))
    return labels


def accepted_words(value: Any, limit: int) -> list[str]:
    """Words between commas, each once."""
    written = text("control.words", value, words_length(limit))
    words = [word.strip() for word in written.split(",")]
    # Each once, in the order of the visitor
    words = list(dict.fromkeys(filter(None, words)))
    if len(words) > limit or any(len(word) > WORD_CHARACTERS for word in words):
        raise Refusal("error.words", field="control.words", limit=limit, characters=WORD_CHARACTERS)
    return words


def words_length(limit: int) -> int:
    """Characters of so many words with commas and blanks."""
    return limit * (WORD_CHARACTERS + 2)


def length_control(served: Served, length: int, prompt: str) -> LengthControl:
    """The control of a length, which must be longer than the beginning."""
    tokenizer = served.pipe.tokenizer
    # The length of the control counts the beginning.
    num_known = len(encode_plain(tokenizer, [prompt], "prompt")[0])
    if length <= num_known:
        raise Refusal("error.short", got=num_known)
    end = tokenizer.eos_token_id if served.pipe.predicts_end else None
    return LengthControl(length, eos_token_id=end)


def as_table(served: Served, grid: Grid, language: str) -> str:
    """HTML of the grid: a row for each scale, a column for each label."""
    columns = [settings.label_name(served, label, language) for label in grid.labels]
    if not columns:
        columns = [say("text", language)]

    if grid.scales:
        corner = say("control.scale", language)
        rows = [f"{scale:g}" for scale in grid.scales]
    else:
        corner = ""
        rows = [say("control.free", language), say("control.held", language)]

    # Names of labels come from the model, texts from visitors: everything is escaped.
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [corner, *columns])
    body = ""
    texts = iter(grid.texts)
    for row in rows:
        body += f"<tr><th>{html.escape(row)}</th>"
        for _ in columns:
            body += f"<td>{marked(next(texts), grid.words)}</td>"
        body += "</tr>"
    return f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def saved_grid(served: Served, grid: Grid) -> dict[str, Any]:
    """The texts of a grid, each with its scale and label, or whether it was held to anything, for a file."""
    names = [served.pipe.label_names[label] for label in grid.labels] or [None]
    rows: list[dict[str, Any]] = [{"guidance_scale": scale} for scale in grid.scales]
    rows = rows or [{"held": False}, {"held": True}]
    places = [row | {"label": name} for row in rows for name in names]
    return {
        "texts": [
            place | {"text": written} for place, written in zip(places, grid.texts, strict=True)
        ]
    }


def marked(written: str, words: Sequence[str]) -> str:
    """Escaped text in which the words are marked."""
    if not words:
        return html.escape(written)

    # Splitting at a group keeps what it matched, at the odd places.
    parts = re.split(rf"\b({'|'.join(map(re.escape, words))})\b", written)
    for place, part in enumerate(parts):
        escaped = html.escape(part)
        parts[place] = f"<mark>{escaped}</mark>" if place % 2 else escaped
    return "".join(parts)
