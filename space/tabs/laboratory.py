"""Laboratory: points in the plane under noise, and the ways on which samplers lead noise back to a figure."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from torch import Tensor

from text_diffusers.space.limits import integer, number, one_of
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import KEPT_SECONDS, LIGHT, Fields, Page
from text_diffusers.space.parts.links import LinkedTab
from text_diffusers.space.parts.look import two_columns
from text_diffusers.space.parts.mixtures import (
    FIGURES,
    NUM_TRAIN_TIMESTEPS,
    PLANE_SAMPLERS,
    alphas,
    mixture_of,
    noisy_points,
    path_of,
)
from text_diffusers.space.parts.texts import LANGUAGES, say

MOST_STEPS = 64  # which take a fifth of a second
SHOWN_WAYS = 24
RANDOM = ("ddpm", "langevin")  # samplers that draw noise at each step
SHOWN_RANDOM_WAYS = 4  # which cover the whole picture
EDGE = 2.7  # of the picture, in the units of the points
# Beside the runs of the model, one at a time; of a slider that is dragged, only the last place counts.
SAMPLING: dict[str, Any] = {
    "concurrency_id": "laboratory",
    "concurrency_limit": 1,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}


@dataclass
class LaboratoryRequest:
    """Values of the tab, as the browser sends them."""

    figure: str
    time: float
    sampler: str
    steps: float
    way: float
    seed: float


@dataclass
class Drawn:
    """What is shown: a request, and (n + 1, N, 2) the path of its sampler."""

    asked: LaboratoryRequest
    path: Tensor


@dataclass
class SlideRequest(LaboratoryRequest):
    """The same with what is shown, of which only a part is drawn anew."""

    last: Drawn | None


FIRST = LaboratoryRequest("moons", time=0.3, sampler="ddim", steps=24, way=1.0, seed=0)


def build_laboratory_tab(page: Page):
    """Lay out the tab and connect it; it does not ask the model."""
    # The tab opens with a result, which shows what it is for.
    first = drawn(FIRST)

    page.markdown("laboratory.lead", "lead")
    inputs, results = two_columns()
    with inputs:
        fields = laboratory_fields(page)
        link = page.link_button("laboratory")
    with results, gr.Row(equal_height=False):
        with gr.Column(min_width=240):
            fields["time"] = share_slider(page, "time", FIRST.time)
            noise = gr.HTML(draw_noise(FIRST, LANGUAGES[0]), elem_id="laboratory-noise")
        with gr.Column(min_width=240):
            fields["way"] = share_slider(page, "way", FIRST.way)
            ways = gr.HTML(draw_ways(first, LANGUAGES[0]), elem_id="laboratory-ways")
    last = gr.State(first, time_to_live=KEPT_SECONDS)

    def draw(shown: Drawn | None, language: str) -> list[str]:
        shown = shown or first
        return [draw_noise(shown.asked, language), draw_ways(shown, language)]

    def run(asked: LaboratoryRequest, language: str) -> list:
        shown = drawn(accepted_request(asked))
        return [*draw(shown, language), shown]

    # The path stays while a slider above a picture is dragged.
    def slide(asked: SlideRequest, language: str) -> list:
        shown = Drawn(accepted_request(asked), (asked.last or first).path)
        return [*draw(shown, language), shown]

    # No button: every change is answered at once.
    outputs = [noise, ways, last]
    page.linked["laboratory"] = LinkedTab(LaboratoryRequest, fields, accepted_request, run, outputs)
    link_of = ("laboratory", link)
    for name in ("figure", "sampler", "steps", "seed"):
        event = fields[name].input
        page.on(event, run, LaboratoryRequest, fields, outputs, link_of, **SAMPLING)
    sliding = fields | {"last": last}
    for name in ("time", "way"):
        event = fields[name].input
        page.on(event, slide, SlideRequest, sliding, outputs, link_of, **LIGHT)
    page.rendered.append((draw, last, [noise, ways]))


def laboratory_fields(page: Page) -> Fields:
    """Components for a `LaboratoryRequest`, all but the two sliders above the pictures."""

    def figures(language: str) -> list[tuple[str, str]]:
        return [(say(f"figure.{name}", language), name) for name in FIGURES]

    def samplers(language: str) -> list[tuple[str, str]]:
        return [(settings.sampler_name(name, language), name) for name in PLANE_SAMPLERS]

    words = {"label": "laboratory.figure", "choices": figures}
    fields: Fields = {"figure": page.add(gr.Radio, words, value=FIRST.figure)}
    words = {"label": "sampler", "choices": samplers}
    fields["sampler"] = page.add(gr.Radio, words, value=FIRST.sampler, elem_id="laboratory-sampler")
    fields["steps"] = page.slider(
        "laboratory.steps", low=1, high=MOST_STEPS, value=int(FIRST.steps)
    )
    fields["seed"] = settings.seed_number(page)
    return fields


def share_slider(page: Page, name: str, value: float) -> Any:
    return page.slider(
        f"laboratory.{name}",
        low=0.0,
        high=1.0,
        step=0.01,
        value=value,
        elem_id=f"laboratory-{name}",
    )


def accepted_request(asked: LaboratoryRequest) -> LaboratoryRequest:
    """The request, if its values are within their limits.

    Raises:
        Refusal: if one is not.
    """
    return LaboratoryRequest(
        figure=one_of("laboratory.figure", asked.figure, list(FIGURES)),
        time=number("laboratory.time", asked.time, 0.0, 1.0),
        sampler=one_of("sampler", asked.sampler, list(PLANE_SAMPLERS)),
        steps=integer("laboratory.steps", asked.steps, 1, MOST_STEPS),
        way=number("laboratory.way", asked.way, 0.0, 1.0),
        seed=settings.accepted_seed(asked.seed),
    )


def drawn(asked: LaboratoryRequest) -> Drawn:
    """A request whose values are accepted, with its path."""
    return Drawn(asked, path_of(asked.figure, asked.sampler, int(asked.steps), int(asked.seed)))


# Pictures


def draw_noise(asked: LaboratoryRequest, language: str) -> str:
    """HTML of the figure and of its points at a time."""
    clean, noisy = noisy_points(asked.figure, asked.time, int(asked.seed))
    variance = 0.0
    if asked.time > 0:
        variance = 1 - float(alphas()[round(asked.time * (NUM_TRAIN_TIMESTEPS - 1))])
    caption = say("laboratory.noise", language, share=f"{100 * variance:.0f}")
    layers = {"figure": dots(clean), "points": dots(noisy)}
    return as_picture("noise", layers, caption)


def draw_ways(shown: Drawn, language: str) -> str:
    """HTML of the figure and of points on the way to it."""
    asked, path = shown.asked, shown.path
    calls = len(path) - 1
    call = round(asked.way * calls)
    clean, _ = noisy_points(asked.figure, 0.0, int(asked.seed))
    near = 100 * mixture_of(asked.figure).share_near(path[call])
    caption = say("laboratory.ways", language, call=call, calls=calls, near=f"{near:.0f}")
    num_ways = SHOWN_RANDOM_WAYS if asked.sampler in RANDOM else SHOWN_WAYS
    layers = {
        "figure": dots(clean),
        "ways": "".join(line(way) for way in path[: call + 1, :num_ways].unbind(dim=1)),
        "points": dots(path[call]),
    }
    return as_picture("ways", layers, caption)


def dots(points: Tensor) -> str:
    """Points (N, 2) as lines of no length, whose round ends are drawn."""
    return "".join(f"M{place(point)}h0" for point in points.tolist())


def line(points: Tensor) -> str:
    """A line through points (n, 2)."""
    return "M" + "L".join(place(point) for point in points.tolist())


def place(point: Sequence[float]) -> str:
    """A point of the plane as SVG has it, whose second axis points down."""
    x, y = point
    return f"{x:.2f} {-y:.2f}"


def as_picture(name: str, layers: dict[str, str], caption: str) -> str:
    """HTML of lines above each other with the words that say what is seen.

    Args:
        layers: the data of SVG paths by the name of their look.
    """
    paths = "".join(f'<path class="{look}" d="{data}"/>' for look, data in layers.items())
    box = f"{-EDGE} {-EDGE} {2 * EDGE} {2 * EDGE}"
    picture = (
        f'<svg viewBox="{box}" role="img" aria-labelledby="laboratory-{name}-words">{paths}</svg>'
    )
    words = f'<figcaption id="laboratory-{name}-words">{html.escape(caption)}</figcaption>'
    return f'<figure class="plane">{picture}{words}</figure>'
