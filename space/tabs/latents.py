"""Write from latents, and on the way from one text to another."""

import html
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import gradio as gr

from text_diffusers.space.limits import Refusal, integer, number, one_of, text
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.examples import examples_for
from text_diffusers.space.parts.interface import KEPT_SECONDS, MODEL, Fields, Page
from text_diffusers.space.parts.links import LinkedTab
from text_diffusers.space.parts.look import two_columns
from text_diffusers.space.parts.running import generator, growing
from text_diffusers.space.parts.saving import JsonButton
from text_diffusers.space.parts.screen import run_buttons, text_box
from text_diffusers.space.parts.texts import decimal, say

HIGHEST_SCALE = 5.0
DEFAULT_LENGTH = 48
DEFAULT_WAY = 5  # texts


@dataclass
class Draft:
    """Texts whose latents are being written.

    Attributes:
        step: that the latents have come to.
        texts: `None` until all is done.
        seconds: that it took.
    """

    step: int = 0
    texts: list[str] | None = None
    seconds: float = 0.0


@dataclass
class LatentRequest:
    """Values of the tab that writes, as the browser sends them."""

    source: str
    label: int
    scale: float
    steps: float
    sampler: str
    temperature: float
    length: float
    count: float
    seed: float


@dataclass
class BetweenRequest:
    """Values of the tab between two texts, as the browser sends them."""

    first: str
    second: str
    source: str
    count: float
    length: float


@dataclass
class Way:
    """Texts on the way from one to another, the ends among them."""

    texts: list[str] = field(default_factory=list)
    seconds: float = 0.0


# Write


def build_latent_tab(page: Page):
    """Lay out the tab that writes, and connect it."""
    page.markdown("latents.lead", "lead")
    inputs, results = two_columns()
    with inputs:
        fields = latent_fields(page)
        button, stop = run_buttons(page, "write")
    with results:
        shown = page.add(
            gr.Textbox, {"label": "text"}, lines=8, interactive=False, elem_id="write-texts"
        )
        status = gr.Markdown("", elem_id="write-status", elem_classes="hint")
        last = gr.State(None, time_to_live=KEPT_SECONDS)
        with gr.Row(elem_classes="buttons links"):
            link = page.link_button("write")
            file = JsonButton(page, "write", last, asdict)

    def summary(draft: Draft | None, language: str) -> str:
        if draft is None:
            return ""
        if draft.texts is None:
            return say("status.running", language, step=draft.step)
        seconds = decimal(draft.seconds, 2, language)
        # A prior draws latents without any step.
        if not draft.step:
            return say("status.seconds", language, seconds=seconds)
        return say("status.steps", language, seconds=seconds, steps=draft.step)

    def run(asked: LatentRequest, language: str) -> Iterator[list]:
        # A draft is kept once it is done.
        for draft in drafts(page, asked):
            written = as_paragraphs(draft.texts or [])
            kept = None if draft.texts is None else draft
            yield [written, summary(draft, language), kept]

    outputs = [shown, status, last]
    look: dict[str, Any] = {"show_progress": "minimal"} | MODEL
    page.linked["write"] = LinkedTab(LatentRequest, fields, lambda asked: drafts(page, asked))
    running = page.on(
        button.click,
        run,
        LatentRequest,
        fields,
        outputs,
        link=("write", link),
        save=file.save,
        **look,
    )
    page.stop(stop, running)
    page.rendered.append((summary, last, [status]))


def latent_fields(page: Page) -> Fields:
    """Components for a `LatentRequest`; a state stands for what the model has no use for."""
    served = page.served
    fields: Fields = {"source": source_box(page, "write", served.takes_source)}
    fields["label"] = settings.label_radio(page)
    with page.more_settings("write"):
        fields["scale"] = page.slider(
            "latents.scale",
            low=0.0,
            high=HIGHEST_SCALE,
            step=0.5,
            value=1.0,
            info="latents.scale.info",
            visible=takes_guidance(page),
        )
        fields["steps"] = gr.State(1)
        fields["sampler"] = gr.State(served.sampler)
        if served.takes_steps:
            fields["steps"] = settings.steps_slider(page)
            fields["sampler"] = sampler_dropdown(page)
        fields["temperature"] = page.slider(
            "temperature",
            low=0.0,
            high=settings.HOTTEST,
            step=0.05,
            value=min(served.defaults.get("temperature", 0.0), settings.HOTTEST),
            info="plan.temperature.info",
        )
        fields["length"] = length_slider(page)
        fields["count"] = page.slider("count", low=1, high=served.limits.texts, value=2)
        fields["seed"] = settings.seed_number(page)
    return fields


def takes_guidance(page: Page) -> bool:
    """Whether there are steps that a label or a source can guide."""
    served = page.served
    return served.takes_steps and (served.takes_source or bool(served.pipe.label_names))


def sampler_dropdown(page: Page) -> gr.Dropdown:
    """The choice of a sampler; latents have no order in which they settle."""
    served = page.served
    words = {
        "label": "sampler",
        "choices": lambda language: settings.sampler_choices(served, language),
    }
    return page.add(gr.Dropdown, words, value=served.sampler, filterable=False)


def length_slider(page: Page) -> gr.Slider:
    """The longest text in tokens, at first as long as the model learned them."""
    longest = page.served.longest
    own = page.served.defaults.get("max_new_tokens", DEFAULT_LENGTH)
    return page.slider("latents.length", low=1, high=longest, value=min(own, longest))


def source_box(page: Page, tab: str, is_read: bool) -> Any:
    """The box for a text to write from."""
    if not is_read:
        return gr.State("")
    return text_box(
        page, "latents.source", f"{tab}-source", examples_for(page.served).sources, lines=2
    )


def accepted_source(page: Page, value: Any) -> dict[str, str]:
    """Arguments of a call for a source; an empty one is none."""
    source = text("latents.source", value, page.served.limits.characters)
    return {"source": source} if source else {}


def drafts(page: Page, asked: LatentRequest) -> Iterator[Draft]:
    """The draft of a request, as it grows.

    Raises:
        Refusal: if a value is beyond its limits, or time ran out.
    """
    # 1. Check the values
    served = page.served
    arguments: dict[str, Any] = settings.label_arguments(served, asked.label)
    arguments |= accepted_source(page, asked.source)
    scale = number("latents.scale", asked.scale, 0.0, HIGHEST_SCALE)
    steps = settings.accepted_steps(served, asked.steps)
    sampler = one_of("sampler", asked.sampler, [*served.samplers] or [served.sampler])
    temperature = settings.accepted_temperature(asked.temperature)
    length = integer("latents.length", asked.length, 1, served.longest)
    count = integer("count", asked.count, 1, served.limits.texts)
    seed = settings.accepted_seed(asked.seed)

    # 2. Write in a thread; the served pipeline stays as it is, for the other visitors
    pipe = served.with_sampler(sampler)
    draft = Draft()
    start = time.monotonic()

    def work(expired: Callable[[], bool]):
        def after_step(_, step: int, timestep: float, tensors: dict) -> dict:
            draft.step = step + 1
            if expired():
                raise Refusal("error.time")
            return {}

        output = pipe(
            **arguments,
            guidance_scale=scale,
            num_inference_steps=steps,
            temperature=temperature,
            max_new_tokens=length,
            num_return_sequences=count,
            generator=generator(seed),
            callback_on_step_end=after_step,
        )
        draft.seconds = time.monotonic() - start
        draft.texts = output.texts

    return growing(draft, work, served.limits.seconds)


def as_paragraphs(texts: list[str]) -> str:
    """Texts one below the other; an empty one is a dash."""
    return "\n\n".join(written or "—" for written in texts)


# Between two texts


def build_between_tab(page: Page):
    """Lay out the tab between two texts, and connect it."""
    served = page.served
    page.markdown("between.lead", "lead")
    inputs, results = two_columns()
    with inputs:
        fields: Fields = {}
        ends = examples_for(served).ends
        for name, examples in zip(("first", "second"), ends, strict=True):
            fields[name] = text_box(
                page, f"between.{name}", f"between-{name}", examples, value=examples[0], lines=2
            )
        # The latents are there, and only a decoder that reads sources can be told one.
        reads_source = served.pipe.autoencoder.config.reads_source
        fields["source"] = source_box(page, "between", reads_source)
        with page.more_settings("between"):
            fields["count"] = page.slider(
                "between.count", low=2, high=served.limits.runs, value=DEFAULT_WAY
            )
            fields["length"] = length_slider(page)
        with gr.Row(elem_classes="buttons"):
            button = page.button("between.run", "between-run", variant="primary")
    with results:
        table = gr.HTML("", elem_id="between-texts")
        status = gr.Markdown("", elem_id="between-status", elem_classes="hint")
        last = gr.State(None, time_to_live=KEPT_SECONDS)
        with gr.Row(elem_classes="buttons links"):
            link = page.link_button("between")
            file = JsonButton(page, "between", last, asdict)

    def draw(way: Way | None, language: str) -> list[str]:
        if way is None:
            return ["", ""]
        seconds = decimal(way.seconds, 2, language)
        return [as_table(way.texts, language), say("status.seconds", language, seconds=seconds)]

    def run(asked: BetweenRequest, language: str) -> list:
        way = way_between(page, asked)
        return [*draw(way, language), way]

    look: dict[str, Any] = {"show_progress": "minimal"} | MODEL
    page.linked["between"] = LinkedTab(
        BetweenRequest, fields, lambda asked: accepted_ends(page, asked)
    )
    outputs = [table, status, last]
    page.on(
        button.click,
        run,
        BetweenRequest,
        fields,
        outputs,
        link=("between", link),
        save=file.save,
        **look,
    )
    page.rendered.append((draw, last, [table, status]))


def accepted_ends(page: Page, asked: BetweenRequest) -> dict[str, Any]:
    """Arguments of `interpolate` for a request.

    Raises:
        Refusal: if a value is beyond its limits, or a text is empty.
    """
    served = page.served
    arguments: dict[str, Any] = {}
    for name in ("first", "second"):
        end = text(f"between.{name}", getattr(asked, name), served.limits.characters)
        if not end:
            raise Refusal("error.empty", field=f"between.{name}")
        arguments[name] = end
    arguments["count"] = integer("between.count", asked.count, 2, served.limits.runs)
    arguments["max_new_tokens"] = integer("latents.length", asked.length, 1, served.longest)
    return arguments | accepted_source(page, asked.source)


def way_between(page: Page, asked: BetweenRequest) -> Way:
    """The texts of a request.

    Raises:
        Refusal: if a value is beyond its limits, or a text is empty.
    """
    arguments = accepted_ends(page, asked)
    start = time.monotonic()
    texts = page.served.pipe.interpolate(**arguments)
    return Way(texts, time.monotonic() - start)


def as_table(texts: list[str], language: str) -> str:
    """HTML with a row for each text and the share of the way to it."""
    rows = ""
    for place, written in enumerate(texts):
        share = decimal(place / (len(texts) - 1), 2, language)
        rows += f"<tr><th>{share}</th><td>{html.escape(written) or '—'}</td></tr>"
    return f'<table class="grid"><tbody>{rows}</tbody></table>'
