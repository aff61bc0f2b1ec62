"""Compare: one model and one seed with several samplers and numbers of steps."""

import html
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from text_diffusers.space.limits import Refusal, some_of
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import KEPT_SECONDS, MODEL, Fields, Page
from text_diffusers.space.parts.links import LinkedTab
from text_diffusers.space.parts.look import two_columns
from text_diffusers.space.parts.pieces import settled_steps
from text_diffusers.space.parts.running import Cost, generator, steps_to_take, write
from text_diffusers.space.parts.saving import JsonButton
from text_diffusers.space.parts.screen import accepted_prompt, prompt_box, run_buttons
from text_diffusers.space.parts.texts import decimal, say

# Powers of two, so that each is twice the cost of the one before
STEPS = (2, 4, 8, 16, 32, 64, 128)
LETTERS = 9.5  # points, in plots
SHOWN_AT_FIRST = 3  # samplers that are chosen when the page opens
STYLES = ("-", "--", ":", "-.")
# One for each sampler of the longest table
COLORS = (
    "#365c8d",
    "#1fa187",
    "#d98e04",
    "#a23b72",
    "#5b5b66",
    "#6a994e",
    "#8d6b94",
    "#2a9d8f",
    "#bc4749",
)


@dataclass
class CompareRequest:
    """Values of the tab, as the browser sends them."""

    samplers: list[str]
    steps: list[int]
    prompt: str
    label: int
    length: float
    temperature: float
    seed: float


@dataclass
class Comparison:
    """What is to be run.

    Attributes:
        pipes: by sampler and number of steps.
        arguments: of each call.
        seed: of each run.
    """

    pipes: dict[tuple[str, int], Any]
    arguments: dict[str, Any]
    seed: int


@dataclass
class Measured:
    """One text: by which sampler, in how many steps, at what cost, and the share of tokens settled after each step."""

    sampler: str
    steps: int
    text: str
    cost: Cost
    settled: list[float]

    @property
    def name(self) -> str:
        return f"{self.sampler.replace('_', ' ')}, {self.steps}"


def build_compare_tab(page: Page):
    """Lay out the tab and connect it."""
    page.markdown("compare.lead", "lead")
    inputs, results = two_columns()

    with inputs:
        fields = compare_fields(page)
        button, stop = run_buttons(page, "compare")
    with results:
        cards = gr.HTML("", elem_id="compare-texts")
        with gr.Row():
            plots = [gr.Plot(show_label=False, min_width=240, visible=False) for _ in range(2)]
        # Kept for the language switch, which draws the plots anew
        last = gr.State(None, time_to_live=KEPT_SECONDS)
        with gr.Row(elem_classes="buttons links"):
            link = page.link_button("compare")
            file = JsonButton(page, "compare", last, saved_runs)

    def show(runs: list[Measured] | None, language: str) -> list:
        if not runs:
            return ["", gr.update(visible=False), gr.update(visible=False)]
        return [
            as_cards(runs, language),
            gr.update(value=plot_cost(runs, language), visible=True),
            gr.update(value=plot_settling(runs, language), visible=True),
        ]

    def run(asked: CompareRequest, language: str) -> Iterator[list]:
        # Texts are shown as they come in, plots once all are there.
        runs: list[Measured] = []
        for runs in compared(page, asked):
            yield [as_cards(runs, language), gr.update(), gr.update(), None]
        yield [*show(runs, language), runs]

    outputs = [cards, *plots, last]
    page.linked["compare"] = LinkedTab(
        CompareRequest, fields, lambda asked: accepted_comparison(page, asked)
    )
    running = page.on(
        button.click,
        run,
        CompareRequest,
        fields,
        outputs,
        link=("compare", link),
        save=file.save,
        show_progress_on=cards,
        **MODEL,
    )
    page.stop(stop, running)
    page.rendered.append((show, last, [cards, *plots]))


def compare_fields(page: Page) -> Fields:
    """Components for a `CompareRequest`."""
    served = page.served
    words = {
        "label": "compare.samplers",
        "choices": lambda language: settings.sampler_choices(served, language),
    }
    # A first comparison that takes seconds, not the whole limit
    samplers = list(served.samplers)[:SHOWN_AT_FIRST]
    offered = offered_steps(page)
    steps = [steps for steps in (8, 32) if steps in offered] or offered[:1]

    fields = {
        "samplers": page.add(gr.CheckboxGroup, words, value=samplers, elem_id="compare-samplers"),
        "steps": page.add(
            gr.CheckboxGroup, {"label": "compare.steps"}, choices=offered, value=steps
        ),
        "prompt": prompt_box(page, "compare"),
        "label": settings.label_radio(page),
    }
    with page.more_settings("compare"):
        fields["length"] = settings.length_slider(page)
        fields["temperature"] = settings.temperature_slider(page)
        fields["seed"] = settings.seed_number(page)
    return fields


def offered_steps(page: Page) -> list[int]:
    return [steps for steps in STEPS if steps <= page.served.most_steps]


def accepted_comparison(page: Page, asked: CompareRequest) -> Comparison:
    """The comparison of a request.

    Raises:
        Refusal: if a value is beyond its limits.
    """
    # 1. Check the values
    served = page.served
    samplers = some_of("compare.samplers", asked.samplers, list(served.samplers))
    steps = some_of("compare.steps", asked.steps, offered_steps(page))
    prompt = accepted_prompt(page, asked.prompt)
    label = settings.label_arguments(served, asked.label)
    length = settings.accepted_length(served, asked.length)
    temperature = settings.accepted_temperature(asked.temperature)
    arguments = served.prompt_arguments(prompt, length) | label
    seed = settings.accepted_seed(asked.seed)

    # 2. A sampler that writes token by token runs once, whatever the number of steps
    pipes: dict[tuple[str, int], Any] = {}
    for name in samplers:
        pipe = served.with_sampler(name, temperature)
        for number in steps:
            pipes[name, steps_to_take(served, pipe, name, number, arguments)] = pipe
    if len(pipes) > served.limits.runs:
        raise Refusal("error.runs", limit=served.limits.runs, got=len(pipes))
    return Comparison(pipes, arguments, seed)


def compared(page: Page, asked: CompareRequest) -> Iterator[list[Measured]]:
    """The runs of a request, as they come in.

    Raises:
        Refusal: if a value is beyond its limits, or time ran out.
    """
    comparison = accepted_comparison(page, asked)

    # The time is that of all runs together.
    deadline = time.monotonic() + page.served.limits.seconds
    runs: list[Measured] = []
    for (name, number), pipe in comparison.pipes.items():
        seconds = deadline - time.monotonic()
        draws = generator(comparison.seed)
        run = write(pipe, number, seconds, **comparison.arguments, generator=draws)
        if run.output is None:
            raise Refusal("error.time")
        measured = Measured(
            sampler=name,
            steps=number,
            text=run.output.texts[0],
            cost=run.cost,
            settled=settled_shares(run.of_row(0)),
        )
        # A new list each time: Gradio may still be reading the one before.
        runs = [*runs, measured]
        yield runs


def settled_shares(frames: list[list[int]]) -> list[float]:
    """The share of the tokens written that are settled after each step, from 0 steps on."""
    # What was given never changes, and counts for nothing.
    steps = [step for step in settled_steps(frames) if step]
    # A token counts from its last change on, so the curve never falls.
    counts = [sum(step <= done for step in steps) for done in range(len(frames))]
    return [count / max(1, len(steps)) for count in counts]


def as_cards(runs: list[Measured], language: str) -> str:
    """HTML of the texts with their cost."""
    cards = ""
    for run in runs:
        # Its summary stands behind a colon.
        name = settings.sampler_name(run.sampler, language).partition(":")[0]
        cost = say(
            "status.done",
            language,
            seconds=decimal(run.cost.seconds, 2, language),
            steps=run.steps,
            calls=run.cost.calls,
        )
        header = f"<header><b>{html.escape(name)}</b> <span>{html.escape(cost)}</span></header>"
        cards += f'<div class="card">{header}<p>{html.escape(run.text)}</p></div>'
    return f'<div class="cards">{cards}</div>'


def saved_runs(runs: list[Measured]) -> dict[str, Any]:
    """The texts with what they cost, for a file."""
    return {"texts": [asdict(run) for run in runs]}


# Plots


def plot_cost(runs: list[Measured], language: str) -> Figure:
    """Seconds of each run as a bar, with the calls of the model."""
    figure, axes = plain_figure()
    colors = sampler_colors(runs)
    for place, run in enumerate(runs):
        axes.barh(place, run.cost.seconds, color=colors[run.sampler], height=0.62)
        axes.annotate(
            say("compare.plot.calls", language, calls=run.cost.calls),
            (run.cost.seconds, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=LETTERS,
        )

    axes.set_yticks(range(len(runs)), [run.name for run in runs], fontsize=LETTERS)
    axes.invert_yaxis()
    # Room for the calls behind the longest bar.
    axes.set_xlim(0, 1.8 * max(run.cost.seconds for run in runs))
    axes.set_xlabel(say("compare.plot.seconds", language), fontsize=LETTERS)
    return figure


def plot_settling(runs: list[Measured], language: str) -> Figure:
    """The share of the tokens that are settled against the share of the steps."""
    figure, axes = plain_figure()
    colors = sampler_colors(runs)
    # A colour for each sampler, a style for each number of steps
    numbers = sorted({run.steps for run in runs})
    for run in runs:
        num_steps = len(run.settled) - 1
        done = [step / max(1, num_steps) for step in range(len(run.settled))]
        style = STYLES[numbers.index(run.steps) % len(STYLES)]
        color = colors[run.sampler]
        axes.plot(done, run.settled, style, color=color, linewidth=1.8, label=run.name)

    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(say("compare.plot.share", language), fontsize=LETTERS)
    axes.set_ylabel(say("compare.plot.settled", language), fontsize=LETTERS)
    axes.legend(fontsize=LETTERS - 1, frameon=False)
    return figure


def sampler_colors(runs: list[Measured]) -> dict[str, str]:
    colors = {}
    for run in runs:
        colors.setdefault(run.sampler, COLORS[len(colors) % len(COLORS)])
    return colors


def plain_figure() -> tuple[Figure, Axes]:
    """A figure without a frame, as wide as a phone, so that its letters are not made smaller there."""
    figure = Figure(figsize=(3.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=LETTERS)
    return figure, axes
