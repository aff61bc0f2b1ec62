"""Write by two levels: the plan as coloured cells, then its detail, then the words; a plan can be kept."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import torch

from text_diffusers.space.limits import LARGEST_SEED, Refusal, integer, number
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.running import generator, growing
from text_diffusers.space.parts.screen import KEPT_SECONDS, accepted_prompt, prompt_box
from text_diffusers.space.parts.served import Served

EXAMPLES = ["I think", "She was"]
GOLDEN = 137.508  # degrees: codes that follow each other get colours far apart
DEFAULT_LENGTH = 128


@dataclass
class Draft:
    """What has been written so far: the codes of each level, then the text.

    Attributes:
        plan, detail: codes; those that are still to be written are at least as large as the number of codes.
        text: `None` until all is done.
        seconds: that it took.
    """

    plan: list[int] = field(default_factory=list)
    detail: list[int] = field(default_factory=list)
    text: str | None = None
    seconds: float = 0.0


def build_plan_tab(page: Page):
    """Lay out the tab and connect it."""
    served, most = page.served, page.served.most_steps
    page.add(gr.Markdown, {"value": "plan.lead"}, elem_classes="lead")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            box = prompt_box(page, "write", EXAMPLES) if served.pipe.prompt_encoder is not None else gr.State("")
            inputs: list[Any] = [box]
            with page.add(gr.Accordion, {"label": "more"}, open=False, elem_id="write-more"):
                longest = served.longest
                length = {"minimum": 1, "maximum": longest, "step": 1, "value": min(longest, DEFAULT_LENGTH)}
                inputs.append(page.add(gr.Slider, {"label": "length"}, **length))
                for key in ("plan.coarse", "plan.fine"):
                    value = min(most, settings.DEFAULT_STEPS if key == "plan.coarse" else 8)
                    inputs.append(page.add(gr.Slider, {"label": key}, minimum=1, maximum=most, step=1, value=value))
                words: Any = {"label": "temperature", "info": "plan.temperature.info"}
                heat = {"minimum": 0.0, "maximum": settings.HOTTEST, "step": 0.05, "value": 0.0}
                inputs += [page.add(gr.Slider, words, **heat), settings.seed_number(page)]
            with gr.Row(elem_classes="buttons"):
                button = page.add(gr.Button, {"value": "plan.run"}, variant="primary", elem_id="write-run")
            with gr.Row(elem_classes="buttons", visible=served.pipe.coarse_denoiser is not None):
                again = page.add(gr.Button, {"value": "plan.again"}, elem_id="plan-again")
        with gr.Column(scale=3, min_width=260):
            two = served.pipe.coarse_denoiser is not None
            keys = [("plan.cells", "plan"), ("plan.detail", "detail")] if two else [("plan.detail", "detail")]
            cells = [
                page.add(gr.HTML, {"label": k}, show_label=True, container=True, elem_id=f"{name}-cells")
                for k, name in keys
            ]
            text = page.add(gr.Textbox, {"label": "result"}, lines=6, interactive=False, elem_id="write-texts")
            status = gr.Markdown("", elem_id="write-status", elem_classes="hint")
            last, tries = gr.State(None, time_to_live=KEPT_SECONDS), gr.State(0, time_to_live=KEPT_SECONDS)

    def show(draft: Draft, language: str) -> list:
        drawn = [draw_cells(getattr(draft, name), size_of(served, name)) for _, name in keys]
        done = "" if draft.text is None else f"{draft.seconds:.2f} s"
        return [*drawn, draft.text or "", done]

    def run(*values: Any) -> Iterator[list]:
        draft = Draft()
        for draft in planned(page, *values[:-1]):
            yield [*show(draft, values[-1]), None, 0]
        yield [*show(draft, values[-1]), draft, 0]

    def rerun(*values: Any) -> Iterator[list]:
        *asked, kept, tried, language = values
        if kept is None or not kept.plan:
            raise Refusal("error.plan")
        asked[-1] = (settings.accepted_seed(asked[-1]) + tried + 1) % LARGEST_SEED
        for draft in planned(page, *asked, plan=kept.plan):
            yield [*show(draft, language), kept, tried + 1]

    outputs = [*cells, text, status, last, tries]
    page.on_model(button.click, run, inputs, outputs, show_progress="minimal")
    page.on_model(again.click, rerun, [*inputs, last, tries], outputs, show_progress="minimal")


def size_of(served: Served, name: str) -> int:
    """How many codes a level has."""
    config = served.pipe.autoencoder.config
    return config.num_coarse_codes if name == "plan" else config.num_fine_codes


def planned(
    page: Page,
    prompt: str,
    length: float,
    coarse_steps: float,
    fine_steps: float,
    temperature: float,
    seed: float,
    plan: list[int] | None = None,
) -> Iterator[Draft]:
    """The draft that the values of the tab ask for, as it grows; `plan` is kept if it is given.

    Raises:
        Refusal: if a value is beyond its limits, or time ran out.
    """
    served = page.served
    begin = accepted_prompt(page, prompt)
    length = integer("length", length, 1, served.longest)
    asked: dict[str, Any] = {
        "num_inference_steps": (
            integer("plan.coarse", coarse_steps, 1, served.most_steps),
            integer("plan.fine", fine_steps, 1, served.most_steps),
        ),
        "temperature": number("temperature", temperature, 0.0, settings.HOTTEST),
        "generator": generator(settings.accepted_seed(seed)),
    }
    asked |= {"max_new_tokens": length} if plan is None else {"plan": torch.tensor([plan])}
    asked |= {"prompt": begin} if begin else {}
    pipe = served.with_sampler(served.sampler)
    draft, started = Draft(plan=plan or []), time.monotonic()

    def work(expired: Callable[[], bool]):
        def after_step(running: Any, step: int, timestep: float, tensors: dict) -> dict:
            setattr(draft, "plan" if running.level == "coarse" else "detail", tensors["codes"][0].tolist())
            if expired():
                raise Refusal("error.time")
            return {}

        output = pipe(**asked, callback_on_step_end=after_step)
        draft.detail, draft.text = output.fine_codes[0].tolist(), output.texts[0]
        draft.seconds = time.monotonic() - started

    return growing(draft, work, served.limits.seconds)


def draw_cells(codes: list[int], num_codes: int) -> str:
    """HTML with a coloured cell a code; those to be written are grey."""
    cells = ""
    for code in codes:
        known = 0 <= code < num_codes
        color = f"hsl({code * GOLDEN % 360:.0f} 55% {60 + code % 3 * 9}%)" if known else "var(--cell-open)"
        cells += f'<i style="background:{color}" title="{int(code) if known else "…"}"></i>'
    return f'<div class="cells">{cells}</div>'
