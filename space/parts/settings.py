"""The settings that tabs share: their components, and what is accepted of their values."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from text_diffusers.space.limits import LARGEST_SEED, integer, number, one_of
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.running import Run, generator, steps_of, watch
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import TEXTS, say

ANY_LABEL = -1
DEFAULT_STEPS = 32
DEFAULT_TEMPERATURE = 0.7
HOTTEST = 2.0


def label_choices(served: Served, language: str, with_any: bool = True) -> list[tuple[str, int]]:
    """Names of the labels, and of none, with their numbers."""
    named = [(label_name(served, label, language), label) for label in range(len(served.labels))]
    return [(say("label.any", language), ANY_LABEL)] * with_any + named


def label_name(served: Served, label: int, language: str) -> str:
    return served.labels[label] or say("label.unnamed", language, label=label)


def label_radio(page: Page) -> gr.Radio:
    """The choice of a label; out of sight without labels."""
    served = page.served
    words: dict[str, Any] = {"label": "label", "choices": lambda language: label_choices(served, language)}
    return page.add(gr.Radio, words, value=ANY_LABEL, visible=bool(served.labels))


def given_label(served: Served, value: Any) -> dict[str, int]:
    """Arguments of a pipeline for a label."""
    label = one_of("label", value, [ANY_LABEL, *range(len(served.labels))])
    return {} if label == ANY_LABEL else {"class_labels": label}


def sampler_name(name: str) -> Callable[[str], str]:
    """The words for a sampler; one that has none is called by its name."""
    return lambda language: say(f"sampler.{name}", language) if f"sampler.{name}" in TEXTS else name


def sampler_choices(served: Served, language: str) -> list[tuple[str, str]]:
    return [(sampler_name(name)(language), name) for name in served.samplers]


def steps_slider(page: Page) -> gr.Slider:
    most = page.served.most_steps
    words: dict[str, Any] = {"label": "steps", "info": "steps.info"}
    return page.add(gr.Slider, words, minimum=1, maximum=most, step=1, value=min(DEFAULT_STEPS, most))


def sampler_dropdown(page: Page) -> gr.Dropdown:
    served = page.served
    words: dict[str, Any] = {"label": "sampler", "info": "sampler.info"}
    words["choices"] = lambda language: sampler_choices(served, language)
    return page.add(gr.Dropdown, words, value=served.sampler, filterable=False)


def temperature_slider(page: Page) -> gr.Slider:
    words: dict[str, Any] = {"label": "temperature", "info": "temperature.info"}
    settings = {"minimum": 0.0, "maximum": HOTTEST, "step": 0.05, "value": DEFAULT_TEMPERATURE}
    return page.add(gr.Slider, words, visible=page.served.shaped, **settings)


def length_slider(page: Page) -> gr.Slider:
    served = page.served
    lowest = int(served.masked_lm)
    words: dict[str, Any] = {"label": "length"} | ({} if served.masked_lm else {"info": "length.info"})
    value = min(16, served.longest) if served.masked_lm else 0
    return page.add(gr.Slider, words, minimum=lowest, maximum=served.longest, step=1, value=value)


def count_slider(page: Page, value: int) -> gr.Slider:
    return page.add(gr.Slider, {"label": "count"}, minimum=1, maximum=page.served.limits.texts, step=1, value=value)


def seed_number(page: Page) -> gr.Number:
    return page.add(gr.Number, {"label": "seed"}, value=0, precision=0, minimum=0, maximum=LARGEST_SEED)


def run_settings(page: Page, count: int) -> list:
    """What a run is told beside its text, in the order of `started`; `count` texts at first."""
    sampled = [steps_slider(page), sampler_dropdown(page), temperature_slider(page)]
    return [*sampled, count_slider(page, count), seed_number(page)]


def started(
    served: Served, asked: dict[str, Any], steps: Any, sampler: Any, temperature: Any, count: Any, seed: Any
) -> Iterator[Run]:
    """The run that the values of `run_settings` ask for, as it grows, with further arguments of the pipeline.

    Raises:
        Refusal: if a value is beyond its limits.
    """
    steps, sampler, temperature = sampling(served, steps, sampler, temperature)
    count = integer("count", count, 1, served.limits.texts)
    asked = asked | {"num_return_sequences": count, "generator": generator(accepted_seed(seed))}
    pipe = served.with_sampler(sampler, temperature)
    return watch(served, pipe, steps_of(served, pipe, sampler, steps), **asked)


def sampling(served: Served, steps: Any, sampler: Any, temperature: Any) -> tuple[int, str, float]:
    """What is accepted of the values of steps, sampler and temperature."""
    steps = integer("steps", steps, 1, served.most_steps)
    sampler = one_of("sampler", sampler, list(served.samplers))
    return steps, sampler, number("temperature", temperature, 0.0, HOTTEST)


def accepted_seed(value: Any) -> int:
    return integer("seed", value, 0, LARGEST_SEED)
