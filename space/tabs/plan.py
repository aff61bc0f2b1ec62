"""Write with two levels: the plan as coloured cells, then its detail, then the words; a plan can be kept."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import gradio as gr
import torch

from text_diffusers.space.limits import LARGEST_SEED, Refusal, integer
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import KEPT_SECONDS, MODEL, Fields, Page
from text_diffusers.space.parts.links import LinkedTab
from text_diffusers.space.parts.look import two_columns
from text_diffusers.space.parts.running import generator, growing
from text_diffusers.space.parts.saving import JsonButton
from text_diffusers.space.parts.screen import accepted_prompt, prompt_box
from text_diffusers.space.parts.texts import decimal, say

GOLDEN = 137.508  # degrees: codes that follow each other get colours far apart
DEFAULT_LENGTH = 128
FINE_STEPS = 8


@dataclass
class Draft:
    """A text that is being written: the codes of each level, then the words.

    Attributes:
        plan, detail: codes; those that are still to be written are at least as large as the number of codes.
        text: `None` until all is done.
        seconds: that it took.
    """

    plan: list[int] = field(default_factory=list)
    detail: list[int] = field(default_factory=list)
    text: str | None = None
    seconds: float = 0.0


@dataclass
class PlanRequest:
    """Values of the tab, as the browser sends them.

    Attributes:
        kept: the last draft, whose plan is to be kept; its detail is drawn anew.
        tries: how often it was kept already.
    """

    prompt: str
    length: float
    coarse_steps: float
    fine_steps: float
    temperature: float
    seed: float
    kept: Draft | None = None
    tries: int = 0


def build_plan_tab(page: Page):
    """Lay out the tab and connect it."""
    # A model of one level has no plan to show or to keep.
    config = page.served.pipe.autoencoder.config
    has_plan = page.served.pipe.coarse_denoiser is not None

    page.markdown("plan.lead", "lead")
    inputs, results = two_columns()
    with inputs:
        fields = plan_fields(page)
        with gr.Row(elem_classes="buttons"):
            button = page.button("plan.run", "write-run", variant="primary")
        with gr.Row(elem_classes="buttons", visible=has_plan):
            again = page.button("plan.again", "plan-again")
    with results:
        plan = cells_box(page, "plan.cells", "plan-cells", visible=has_plan)
        detail = cells_box(page, "plan.detail", "detail-cells")
        text = page.add(
            gr.Textbox, {"label": "text"}, lines=6, interactive=False, elem_id="write-texts"
        )
        status = gr.Markdown("", elem_id="write-status", elem_classes="hint")
        last = gr.State(None, time_to_live=KEPT_SECONDS)
        tries = gr.State(0, time_to_live=KEPT_SECONDS)
        with gr.Row(elem_classes="buttons links"):
            link = page.link_button("write")
            file = JsonButton(page, "write", last, asdict)

    def summary(draft: Draft | None, language: str) -> str:
        if draft is None or draft.text is None:
            return ""
        return say("status.seconds", language, seconds=decimal(draft.seconds, 2, language))

    def show(draft: Draft, language: str) -> list:
        return [
            draw_cells(draft.plan, config.num_coarse_codes or 0),
            draw_cells(draft.detail, config.num_fine_codes),
            draft.text or "",
            summary(draft, language),
        ]

    def run(asked: PlanRequest, language: str) -> Iterator[list]:
        # A draft is kept once it is done.
        draft = Draft()
        for draft in planned(page, asked):
            yield [*show(draft, language), None, 0]
        yield [*show(draft, language), draft, 0]

    def rerun(asked: PlanRequest, language: str) -> Iterator[list]:
        if asked.kept is None or not asked.kept.plan:
            raise Refusal("error.plan")
        # The plan stays that of the first draft, however often other words are found.
        for draft in planned(page, asked):
            yield [*show(draft, language), asked.kept, asked.tries + 1]

    # Drafts and tries are outputs, too, since Gradio keeps no other state of a visitor.
    outputs = [plan, detail, text, status, last, tries]
    shown: dict[str, Any] = {"show_progress": "minimal"} | MODEL
    page.linked["write"] = LinkedTab(PlanRequest, fields, lambda asked: planned(page, asked))
    page.on(
        button.click,
        run,
        PlanRequest,
        fields,
        outputs,
        link=("write", link),
        save=file.save,
        **shown,
    )
    # A plan that is kept is in no address, so this has no link.
    fields = fields | {"kept": last, "tries": tries}
    page.on(again.click, rerun, PlanRequest, fields, outputs, **shown)
    page.rendered.append((summary, last, [status]))


def plan_fields(page: Page) -> Fields:
    """Components for a `PlanRequest`; a model without a prompt encoder takes no prompt."""
    served = page.served
    takes_prompt = served.pipe.prompt_encoder is not None
    # An empty state stands for the box, so that the request has the same fields.
    fields = {"prompt": prompt_box(page, "write") if takes_prompt else gr.State("")}

    with page.more_settings("write"):
        length = min(served.longest, DEFAULT_LENGTH)
        fields["length"] = page.slider("length", low=1, high=served.longest, value=length)
        fields["coarse_steps"] = settings.steps_slider(page, "plan.coarse")
        fields["fine_steps"] = settings.steps_slider(page, "plan.fine", FINE_STEPS)
        fields["temperature"] = settings.temperature_slider(page, 0.0, "plan.temperature.info")
        fields["seed"] = settings.seed_number(page)
    return fields


def cells_box(page: Page, key: str, elem_id: str, visible: bool = True) -> gr.HTML:
    """A box for the cells of one level."""
    return page.add(
        gr.HTML, {"label": key}, show_label=True, container=True, visible=visible, elem_id=elem_id
    )


def planned(page: Page, asked: PlanRequest) -> Iterator[Draft]:
    """The draft of a request, as it grows.

    Raises:
        Refusal: if a value is beyond its limits, or time ran out.
    """
    # 1. Check the values
    served = page.served
    prompt = accepted_prompt(page, asked.prompt)
    length = integer("length", asked.length, 1, served.longest)
    coarse_steps = integer("plan.coarse", asked.coarse_steps, 1, served.most_steps)
    fine_steps = integer("plan.fine", asked.fine_steps, 1, served.most_steps)
    temperature = settings.accepted_temperature(asked.temperature)
    seed = settings.accepted_seed(asked.seed)

    # 2. A new plan, or the detail of one that is kept
    arguments: dict[str, Any] = {}
    if prompt:
        arguments["prompt"] = prompt
    if asked.kept is None:
        draft = Draft()
        arguments["max_new_tokens"] = length
    else:
        # The plan fixes the length; another seed at each try finds other words.
        draft = Draft(plan=asked.kept.plan)
        arguments["plan"] = torch.tensor([asked.kept.plan])
        seed = (seed + asked.tries + 1) % LARGEST_SEED

    # 3. Write in a thread, and show the draft as it grows
    pipe = served.with_sampler(served.sampler)
    start = time.monotonic()

    def work(expired: Callable[[], bool]):
        def after_step(running: Any, step: int, timestep: float, tensors: dict) -> dict:
            # The thread of the page draws what is there by then.
            codes = tensors["codes"][0].tolist()
            if running.level == "coarse":
                draft.plan = codes
            else:
                draft.detail = codes
            if expired():
                raise Refusal("error.time")
            return {}

        # The plan settles first, in its own number of steps, then the detail.
        output = pipe(
            **arguments,
            num_inference_steps=(coarse_steps, fine_steps),
            temperature=temperature,
            generator=generator(seed),
            callback_on_step_end=after_step,
        )
        draft.detail = output.fine_codes[0].tolist()
        draft.text = output.texts[0]
        draft.seconds = time.monotonic() - start

    return growing(draft, work, served.limits.seconds)


def draw_cells(codes: list[int], num_codes: int) -> str:
    """HTML with a coloured cell for each code; those to be written are grey."""
    cells = ""
    for code in codes:
        # Masks are larger than every code.
        color = "var(--cell-open)"
        title = "…"
        if 0 <= code < num_codes:
            # Hues a golden angle apart, in three degrees of lightness
            color = f"hsl({code * GOLDEN % 360:.0f} 55% {60 + code % 3 * 9}%)"
            title = f"{code}"
        cells += f'<i style="background:{color}" title="{title}"></i>'
    return f'<div class="cells">{cells}</div>'
