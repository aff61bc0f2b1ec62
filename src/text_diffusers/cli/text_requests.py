"""What is asked of a pipeline, whatever its class: texts to begin, fill in or write from, and how to write them."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.utils import logging as diffusers_logging

import text_diffusers
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion_cfg import (
    TextDiffusionCFGPipeline,
)
from text_diffusers.samplers import SHAPING, current_sampler, most_steps, samplers_for, with_sampler
from text_diffusers.training.checkpoints import weights_digest

BLANK = "[MASK]"  # what a gap may be written as, whatever the tokenizer calls its mask


@dataclass
class Settings:
    """How texts are written; `None` leaves it to the pipeline.

    Attributes:
        scheduler: one of `samplers_for` the pipeline.
        num_inference_steps: of both levels of a two-level pipeline.
        num_return_sequences: texts for each request.
        seed: each text's generator is a function of it, the place of the request and that of the text.
        temperature, top_k, top_p, guidance_scale, negative_prompt, max_new_tokens: as in the pipelines and schedulers.
    """

    scheduler: str | None = None
    num_inference_steps: int | None = None
    num_return_sequences: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    max_new_tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class TextRequest:
    """One text to begin (`prompt`), fill in (`text`) or write from (`source`), by name, and its class label.

    `place` is its number among the requests, from 0.
    """

    place: int
    given: Mapping[str, str] = field(default_factory=dict)
    label: int | str | None = None


class Writer:
    """A pipeline with settings, which writes the texts of requests.

    Args:
        pipe: any pipeline of texts; it stays as it is.
        settings: of the writing.

    Raises:
        ValueError: if a setting does not fit the pipeline.
    """

    def __init__(self, pipe: Any, settings: Settings):
        self.settings = settings
        parameters = inspect.signature(type(pipe).__call__).parameters
        wanted = {name: value for name, value in asdict(settings).items() if value is not None}
        shaping = {
            name: wanted.pop(name) for name in SHAPING if name in wanted and name not in parameters
        }
        if shaping and "temperature" in parameters:
            name, value = next(iter(shaping.items()))
            raise ValueError(
                f"`{name}` must be left out: {type(pipe).__name__} does not take it, got {value!r}."
            )
        sampler = wanted.pop("scheduler", None)
        self.pipe = with_sampler(pipe, sampler, **shaping)
        del wanted["seed"]
        if "num_inference_steps" not in wanted:
            name = current_sampler(self.pipe)
            if name is not None and samplers_for(self.pipe)[name].token_a_step:
                wanted["num_inference_steps"] = most_steps(self.pipe)
        self.arguments = call_arguments(self.pipe, wanted)

    def __call__(self, requests: Sequence[TextRequest]) -> list[list[str]]:
        """The texts of each request.

        Raises:
            ValueError: if a request does not fit the pipeline, or another.
        """
        texts = self.pipe(**self.inputs(requests), **self.arguments).texts
        count = self.settings.num_return_sequences
        return [texts[first : first + count] for first in range(0, len(texts), count)]

    def stream(self, requests: Sequence[TextRequest]):
        """Yields all texts, those of `__call__` one after the other, after every step.

        Raises:
            ValueError: if a request does not fit the pipeline.
        """
        return self.pipe.stream(**self.inputs(requests), **self.arguments)

    def inputs(self, requests: Sequence[TextRequest]) -> dict[str, Any]:
        """What the pipeline is called with for these requests."""
        names = sorted({name for request in requests for name in request.given})
        given: dict[str, Any] = {
            name: [request.given.get(name, "") for request in requests] for name in names
        }
        if "text" in given and self.pipe.tokenizer.mask_token:
            given["text"] = [
                text.replace(BLANK, self.pipe.tokenizer.mask_token) for text in given["text"]
            ]
        labels = [request.label for request in requests]
        if any(label is not None for label in labels):
            missing = [request.place for request in requests if request.label is None]
            if missing and not isinstance(self.pipe, TextDiffusionCFGPipeline):
                raise ValueError(
                    f"`label` must be given for all texts or none, got none for number {missing[0] + 1}."
                )
            given["class_labels"] = labels
        if not given and len(requests) > 1:
            given["prompt"] = [""] * len(requests)
        given = call_arguments(self.pipe, given)
        seed, count = self.settings.seed, self.settings.num_return_sequences
        seeds = [
            text_seed(seed, request.place, number)
            for request in requests
            for number in range(count)
        ]
        return given | {"generator": [torch.Generator().manual_seed(value) for value in seeds]}

    def record(self) -> dict[str, Any]:
        """All that the texts depend on beside the requests, as JSON: settings, scheduler, weights and versions."""
        schedulers = {
            name: {"class": type(part).__name__, "config": public(part.config)}
            for name, part in self.pipe.components.items()
            if "scheduler" in name and part is not None
        }
        versions = {"text_diffusers": text_diffusers.__version__, "torch": str(torch.__version__)}
        parts = {
            name: part
            for name, part in self.pipe.components.items()
            if isinstance(part, torch.nn.Module)
        }
        weights = {name: weights_digest(part) for name, part in sorted(parts.items())}
        named = {"pipeline": type(self.pipe).__name__, "weights": weights, "versions": versions}
        return named | {"settings": asdict(self.settings), "schedulers": schedulers}


def text_seed(seed: int, place: int, number: int) -> int:
    """The seed of text `number` of the request at `place`."""
    return int(np.random.SeedSequence([seed, place, number]).generate_state(1)[0])


def call_arguments(pipe: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are wanted, if the pipeline's call takes them.

    Raises:
        ValueError: naming one that it does not take.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    arguments = {}
    for name, value in wanted.items():
        if name not in parameters:
            raise ValueError(
                f"`{name}` must be left out: {type(pipe).__name__} does not take it, got {value!r}."
            )
        arguments[name] = value
    return arguments


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a configuration, without what diffusers notes of where they come from."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def process_state() -> PartialState:
    """This process among those that a launcher started, on an accelerator if there is one."""
    return PartialState(cpu=not torch.accelerator.is_available())


def load_pipeline(model: str, show_progress: bool = False) -> Any:
    """A pipeline from a folder, the Hub, or the models that come with this package, on this process's device.

    Raises:
        OSError: if there is none, or it cannot be had.
        ValueError: if it cannot be loaded.
    """
    diffusers_logging.disable_progress_bar()
    pipe: Any = TextDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=not show_progress)
    return pipe.to(process_state().device)
