"""Settings that several tabs share: their components, and checks of their values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from text_diffusers.space.limits import LARGEST_SEED, integer, number, one_of
from text_diffusers.space.parts.interface import Fields, Page
from text_diffusers.space.parts.running import Run, generator, steps_to_take, watch
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import TEXTS, say

ANY_LABEL = -1  # which no label has, while `None` would be no choice for Gradio
DEFAULT_STEPS = 32
DEFAULT_TEMPERATURE = 0.7
HOTTEST = 2.0
NOTHING: Mapping[str, Any] = {}  # given to a call


@dataclass
class RunRequest:
    """Values of `label_radio` and `run_settings`, as the browser sends them."""

    label: int
    steps: float
    sampler: str
    window: float
    temperature: float
    count: float
    seed: float


# Labels


def label_name(served: Served, label: int, language: str) -> str:
    return served.pipe.label_names[label] or say("label.unnamed", language, label=label)


def label_choices(served: Served, language: str) -> list[tuple[str, int]]:
    """Names of the labels with their numbers."""
    # Labels are sent as numbers, so that a change of the language leaves the choice.
    labels = range(len(served.pipe.label_names))
    return [(label_name(served, label, language), label) for label in labels]


def label_radio(page: Page) -> gr.Radio:
    """The choice of a label, or of any; out of sight without labels."""
    served = page.served

    def choices(language: str) -> list[tuple[str, int]]:
        return [(say("label.any", language), ANY_LABEL), *label_choices(served, language)]

    words = {"label": "label", "choices": choices}
    return page.add(gr.Radio, words, value=ANY_LABEL, visible=bool(served.pipe.label_names))


def label_arguments(served: Served, value: Any) -> dict[str, int]:
    """Arguments of a call for a label."""
    label = one_of("label", value, [ANY_LABEL, *range(len(served.pipe.label_names))])
    return {} if label == ANY_LABEL else {"class_labels": label}


# Samplers


def sampler_name(name: str, language: str) -> str:
    """The words for a sampler; one that has none is called by its name."""
    return say(f"sampler.{name}", language) if f"sampler.{name}" in TEXTS else name


def sampler_choices(served: Served, language: str) -> list[tuple[str, str]]:
    return [(sampler_name(name, language), name) for name in served.samplers]


def sampler_dropdown(page: Page) -> gr.Dropdown:
    served = page.served
    words = {
        "label": "sampler",
        "info": "sampler.info",
        "choices": lambda language: sampler_choices(served, language),
    }
    return page.add(gr.Dropdown, words, value=served.sampler, filterable=False)


def window_slider(page: Page) -> gr.Slider:
    """The window of a sampler, 0 being all tokens; out of sight where no sampler has one."""
    served = page.served
    return page.slider(
        "window",
        low=0,
        high=served.longest,
        value=min(served.own_window or 0, served.longest),
        info="window.info",
        visible=served.takes_window,
    )


# Numbers


def first_steps(
    served: Served, value: int = DEFAULT_STEPS, given: Mapping[str, Any] = NOTHING
) -> int:
    """The steps of the model's own, if it has a number of them, or `value`.

    Args:
        given: the arguments of the calls by their names.
    """
    own = served.defaults_for(given).get("num_inference_steps", value)
    return min(own, served.most_steps)


def first_temperature(served: Served, value: float = DEFAULT_TEMPERATURE) -> float:
    """The temperature that a model was published with, or `value`."""
    own = served.own_temperature
    return value if own is None else min(own, HOTTEST)


def steps_slider(
    page: Page, key: str = "steps", value: int = DEFAULT_STEPS, given: Mapping[str, Any] = NOTHING
) -> gr.Slider:
    """The steps, which begin with those of the model if it has a number of its own.

    Args:
        given: the arguments of the calls by their names.
    """
    # Only the main slider explains itself; those of plan and detail stand side by side.
    first = first_steps(page.served, value, given)
    info = "steps.info" if key == "steps" else None
    return page.slider(key, low=1, high=page.served.most_steps, value=first, info=info)


def temperature_slider(
    page: Page, value: float = DEFAULT_TEMPERATURE, info: str = "temperature.info"
) -> gr.Slider:
    """The temperature; out of sight for models whose samplers have none.

    A model that was published with one begins with it.
    """
    return page.slider(
        "temperature",
        low=0.0,
        high=HOTTEST,
        step=0.05,
        value=first_temperature(page.served, value),
        info=info,
        visible=page.served.has_temperature,
    )


def length_slider(page: Page) -> gr.Slider:
    """The length of a text; 0 leaves it to the model, if the model knows where a text ends."""
    served = page.served
    if served.pipe.predicts_end:  # 0 is offered
        return page.slider("length", low=0, high=served.longest, value=0, info="length.info")
    # The model cannot end a text itself, so there is always a length.
    return page.slider("length", low=1, high=served.longest, value=min(16, served.longest))


def seed_number(page: Page) -> gr.Number:
    # The same seed and settings give the same text, for anyone.
    limits = {"minimum": 0, "maximum": LARGEST_SEED, "precision": 0}
    return page.add(gr.Number, {"label": "seed"}, value=0, **limits)


def accepted_length(served: Served, value: Any) -> int:
    return integer("length", value, 0, served.longest)


def accepted_steps(served: Served, value: Any) -> int:
    return integer("steps", value, 1, served.most_steps)


def accepted_temperature(value: Any) -> float:
    return number("temperature", value, 0.0, HOTTEST)


def accepted_seed(value: Any) -> int:
    return integer("seed", value, 0, LARGEST_SEED)


# A whole run


def run_settings(page: Page, count: int, given: Mapping[str, Any] = NOTHING) -> Fields:
    """Components for a `RunRequest`, all but the label.

    Args:
        count: of texts, at first.
        given: the arguments of the calls by their names.
    """
    return {
        "steps": steps_slider(page, given=given),
        "sampler": sampler_dropdown(page),
        "window": window_slider(page),
        "temperature": temperature_slider(page),
        "count": page.slider("count", low=1, high=page.served.limits.texts, value=count),
        "seed": seed_number(page),
    }


def start_run(served: Served, request: RunRequest, arguments: dict[str, Any]) -> Iterator[Run]:
    """The run of a request, as it grows.

    Args:
        arguments: of the call, for the text and its label.

    Raises:
        Refusal: if a value is beyond its limits.
    """
    # Everything is checked before the model runs, since the browser may send anything.
    steps = accepted_steps(served, request.steps)
    sampler = one_of("sampler", request.sampler, list(served.samplers))
    window = integer("window", request.window, 0, served.longest)
    temperature = accepted_temperature(request.temperature)
    count = integer("count", request.count, 1, served.limits.texts)
    seed = accepted_seed(request.seed)

    # The served pipeline stays as it is, for the other visitors.
    pipe = served.with_sampler(sampler, temperature, window)
    return watch(
        pipe,
        steps_to_take(served, pipe, sampler, steps, arguments),
        served.limits.seconds,
        num_return_sequences=count,
        generator=generator(seed),
        **arguments,
    )
