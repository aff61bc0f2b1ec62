"""Compare: one model and one seed by several samplers and numbers of steps."""

import html
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from text_diffusers.space.limits import Refusal, some_of
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.pieces import settled_steps
from text_diffusers.space.parts.running import Cost, generator, steps_of, write
from text_diffusers.space.parts.screen import KEPT_SECONDS, accepted_prompt, prompt_box, run_buttons
from text_diffusers.space.parts.texts import say

STEPS = (2, 4, 8, 16, 32, 64, 128)
SHOWN_AT_FIRST = 3
EXAMPLES = ["I think", "She was"]
LINES = ("#365c8d", "#1fa187", "#d98e04", "#a23b72", "#5b5b66", "#6a994e", "#8d6b94", "#2a9d8f", "#bc4749")


@dataclass
class Measured:
    """One text: by which sampler, in how many steps, at what cost, and the share of tokens settled after each step."""

    sampler: str
    steps: int
    text: str
    cost: Cost
    settled: list[float]


def build_compare_tab(page: Page):
    """Lay out the tab and connect it."""
    page.add(gr.Markdown, {"value": "compare.lead"}, elem_classes="lead")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            inputs = choices(page)
            button, stop = run_buttons(page, "compare", "compare.run")
        with gr.Column(scale=3, min_width=260):
            cards = gr.HTML("", elem_id="compare-texts")
            with gr.Row():
                plots = [gr.Plot(show_label=False, min_width=240, visible=False) for _ in range(2)]
            found = gr.State(None, time_to_live=KEPT_SECONDS)

    def show(runs: list[Measured] | None, language: str) -> list:
        if not runs:
            return ["", *[gr.update(visible=False)] * 2]
        figures = (plot_cost(runs, language), plot_settling(runs, language))
        return [as_cards(runs, language), *(gr.update(value=figure, visible=True) for figure in figures)]

    def run(*values: Any) -> Iterator[list]:
        runs: list[Measured] = []
        for runs in compared(page, *values[:-1]):
            yield [as_cards(runs, values[-1]), *[gr.update()] * 2, None]
        yield [*show(runs, values[-1]), runs]

    running = page.on_model(button.click, run, inputs, [cards, *plots, found], show_progress_on=cards)
    stop.click(None, cancels=[running], queue=False, api_visibility="private")
    page.rendered.append((show, found, [cards, *plots]))


def choices(page: Page) -> list:
    """The inputs of the tab, in the order of `compared`."""
    served = page.served
    words: dict[str, Any] = {"label": "compare.samplers"}
    words["choices"] = lambda language: settings.sampler_choices(served, language)
    at_first = list(served.samplers)[:SHOWN_AT_FIRST]
    samplers = page.add(gr.CheckboxGroup, words, value=at_first, elem_id="compare-samplers")
    offered = [steps for steps in STEPS if steps <= served.most_steps]
    at_first = [steps for steps in (8, 32) if steps in offered] or offered[:1]
    steps = page.add(gr.CheckboxGroup, {"label": "compare.steps"}, choices=offered, value=at_first)
    prompt, label = prompt_box(page, "compare", EXAMPLES), settings.label_radio(page)
    with page.add(gr.Accordion, {"label": "more"}, open=False, elem_id="compare-more"):
        others = [settings.length_slider(page), settings.temperature_slider(page), settings.seed_number(page)]
    return [samplers, steps, prompt, label, *others]


def compared(
    page: Page,
    samplers: list[str],
    steps: list[int],
    prompt: str,
    label: int,
    length: float,
    temperature: float,
    seed: float,
) -> Iterator[list[Measured]]:
    """The runs that the values of the tab ask for, as they come in.

    Raises:
        Refusal: if a value is beyond its limits, or time ran out.
    """
    served = page.served
    names = some_of("compare.samplers", samplers, list(served.samplers))
    numbers = some_of("compare.steps", steps, [number for number in STEPS if number <= served.most_steps])
    begin, label_given = accepted_prompt(page, prompt), settings.given_label(served, label)
    length = settings.integer("length", length, 0, served.longest)
    _, _, temperature = settings.sampling(served, numbers[0], names[0], temperature)
    asked = served.request("prompt", begin, length) | label_given
    seed = settings.accepted_seed(seed)
    wanted: dict[tuple[str, int], Any] = {}
    for name in names:
        pipe = served.with_sampler(name, temperature)
        wanted |= {(name, steps_of(served, pipe, name, number)): pipe for number in numbers}
    if len(wanted) > served.limits.runs:
        raise Refusal("error.runs", limit=served.limits.runs, got=len(wanted))
    deadline, found = time.monotonic() + served.limits.seconds, []
    for (name, number), pipe in wanted.items():
        left = deadline - time.monotonic()
        run = write(served, pipe, number, left, **asked, generator=generator(seed))
        if run.output is None:
            raise Refusal("error.time")
        found = [*found, Measured(name, number, run.output.texts[0], run.cost, settled_shares(run.of_row(0)))]
        yield found


def settled_shares(frames: list[list[int]]) -> list[float]:
    """The share of the tokens written that are settled after each step, from 0 steps on."""
    steps = [step for step in settled_steps(frames) if step]
    return [sum(step <= done for step in steps) / max(1, len(steps)) for done in range(len(frames))]


def as_cards(runs: list[Measured], language: str) -> str:
    """HTML of the texts with their cost."""
    cards = ""
    for run in runs:
        name = html.escape(settings.sampler_name(run.sampler)(language).partition(":")[0])
        cost = {"seconds": f"{run.cost.seconds:.2f}", "steps": run.steps, "calls": run.cost.calls}
        head = f"<b>{name}</b> <span>{html.escape(say('status.done', language, **cost))}</span>"
        cards += f'<div class="card"><header>{head}</header><p>{html.escape(run.text)}</p></div>'
    return f'<div class="cards">{cards}</div>'


def plot_cost(runs: list[Measured], language: str) -> Figure:
    """Seconds of each run as a bar, with the calls of the model."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(run.sampler for run in runs))
    for place, run in enumerate(runs):
        axes.barh(place, run.cost.seconds, color=LINES[names.index(run.sampler) % len(LINES)], height=0.62)
        calls = say("compare.plot.calls", language, calls=run.cost.calls)
        axes.annotate(calls, (run.cost.seconds, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(runs)), [f"{run.sampler.replace('_', ' ')}, {run.steps}" for run in runs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(run.cost.seconds for run in runs))
    axes.set_xlabel(say("compare.plot.seconds", language), fontsize=9)
    return plain(figure)


def plot_settling(runs: list[Measured], language: str) -> Figure:
    """When tokens settle: their share against the share of the steps."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(run.sampler for run in runs))
    styles = {steps: style for steps, style in zip(sorted({r.steps for r in runs}), ["-", "--", ":", "-."] * 9)}  # noqa: B905
    for run in runs:
        done = [step / max(1, len(run.settled) - 1) for step in range(len(run.settled))]
        name = f"{run.sampler.replace('_', ' ')}, {run.steps}"
        color = LINES[names.index(run.sampler) % len(LINES)]
        axes.plot(done, run.settled, styles[run.steps], color=color, linewidth=1.8, label=name)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(say("compare.plot.share", language), fontsize=9)
    axes.set_ylabel(say("compare.plot.settled", language), fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    return plain(figure)


def plain(figure: Figure) -> Figure:
    """The figure without frames and with small figures on its axes."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure
