"""A pipeline of any kind that writes the texts of requests, each from a seed of its own."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

import text_diffusers
from text_diffusers.cli.text_requests import Settings, TextRequest
from text_diffusers.common.plain_text import check_unicode
from text_diffusers.hub.published.loader import as_dtype
from text_diffusers.pipelines.calls.steps import defaults_in_force
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.samplers import (
    ORDERING,
    SHAPING,
    current_sampler,
    most_steps,
    samplers_for,
    with_sampler,
)
from text_diffusers.training.checkpoints import weights_digest

GAP = "[MASK]"  # in a text to be filled in, whatever the tokenizer calls its mask


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

        # What is not given is left out, so that the pipeline's own defaults hold.
        arguments = {name: value for name, value in asdict(settings).items() if value is not None}

        # Each text has a seed of its own.
        del arguments["seed"]
        scheduler = arguments.pop("scheduler", None)

        # What shapes predictions is an argument of the call, or else a setting of the scheduler.
        accepted = parameters_of(pipe)
        sampler_settings = {}
        names = [*ORDERING] if "temperature" in accepted else [*ORDERING, *SHAPING]
        for name in names:
            if name in arguments and name not in accepted:
                sampler_settings[name] = arguments.pop(name)
        self.pipe = with_sampler(pipe, scheduler, **sampler_settings)
        arguments |= structure_argument(pipe, arguments)
        check_accepted(self.pipe, arguments)
        self.arguments = arguments

    def __call__(self, requests: Sequence[TextRequest]) -> list[list[str]]:
        """The texts of each request.

        Raises:
            ValueError: if a request does not fit the pipeline, or another.
        """
        texts = self.pipe(**self.inputs(requests), **self.arguments).texts

        # The pipeline returns one list, in which the texts of a request are neighbours.
        count = self.settings.num_return_sequences
        return [texts[first : first + count] for first in range(0, len(texts), count)]

    def stream(self, requests: Sequence[TextRequest]) -> Iterator[list[str]]:
        """Yield all texts, those of `__call__` one after the other, after every step.

        Raises:
            ValueError: if a request does not fit the pipeline.
        """
        return self.pipe.stream(**self.inputs(requests), **self.arguments)

    def inputs(self, requests: Sequence[TextRequest]) -> dict[str, Any]:
        """The arguments of the pipeline's call for these requests."""
        inputs: dict[str, Any] = {}
        # All requests give a text by the same name, or none.
        names = {name for request in requests for name in request.inputs}
        for name in names:
            inputs[name] = [request.inputs.get(name, "") for request in requests]
            check_unicode(name, plain_texts(inputs[name]))

        mask_token = self.pipe.tokenizer.mask_token
        if "text" in inputs and mask_token:
            inputs["text"] = [text.replace(GAP, mask_token) for text in inputs["text"]]

        # `None` among labels means that a text has none. Where classes are named by numbers, a number is a name.
        labels = [request.label for request in requests]
        names = self.pipe.label_names
        labels = [str(label) if str(label) in names else label for label in labels]
        if any(label is not None for label in labels):
            inputs["class_labels"] = labels

        # Only its inputs tell a pipeline how many texts to write.
        if not inputs and len(requests) > 1:
            inputs["prompt"] = [""] * len(requests)
        check_accepted(self.pipe, inputs)
        inputs |= self.steps_of(inputs)

        # One generator a text, so its noise does not depend on which texts are in its batch.
        generators = []
        for request in requests:
            for number in range(self.settings.num_return_sequences):
                seed = text_seed(self.settings.seed, request.place, number)
                generators.append(torch.Generator().manual_seed(seed))
        return {**inputs, "generator": generators}

    def steps_of(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        """The steps of a sampler that needs as many as there are tokens to write, where nothing else says how many."""
        given = {**self.arguments, **inputs}
        if "num_inference_steps" in given:
            return {}
        # A default is of the pipeline's own sampler.
        defaults = defaults_in_force(self.pipe, given)
        if "num_inference_steps" in defaults and self.settings.scheduler is None:
            return {}

        name = current_sampler(self.pipe)
        if name is None or not samplers_for(self.pipe)[name].token_a_step:
            return {}
        return {"num_inference_steps": most_steps(self.pipe, given)}

    def record(self) -> dict[str, Any]:
        """All that the texts depend on beside the requests, as JSON: settings, scheduler, weights and versions."""
        schedulers = {}
        for name in self.pipe.scheduler_names:
            scheduler = getattr(self.pipe, name)
            # Keys with an underscore say where a configuration came from.
            config = {
                key: value for key, value in scheduler.config.items() if not key.startswith("_")
            }
            schedulers[name] = {"class": type(scheduler).__name__, "config": config}

        # Weights by what is in them: a folder keeps its name when it is trained further.
        weights = {}
        for name, part in sorted(self.pipe.components.items()):
            if isinstance(part, torch.nn.Module):
                weights[name] = weights_digest(part)
        # Settings of the pipeline, if it has such
        names = ("label_prompts", "takes_source", "generation_defaults")
        config = {name: self.pipe.config[name] for name in names if self.pipe.config.get(name)}
        return config | {
            "pipeline": type(self.pipe).__name__,
            "weights": weights,
            "versions": {
                "text_diffusers": text_diffusers.__version__,
                "torch": str(torch.__version__),
            },
            "settings": asdict(self.settings),
            "schedulers": schedulers,
        }


# Settings that make a control of structure
STRUCTURES = ("regex", "json_schema", "choices")


def structure_argument(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The `controls` of a call for the settings of structure, which are taken out of its arguments; none without any.

    Raises:
        ValueError: if there are several, or one makes no control.
    """
    given = {name: arguments.pop(name) for name in STRUCTURES if name in arguments}
    if not given:
        return {}
    if len(given) > 1:
        shown = " and ".join(f"`--{name.replace('_', '-')}`" for name in given)
        raise ValueError(f"{shown} exclude each other.")

    # Imported where it is needed, as is all that compiles patterns.
    from text_diffusers.guidance import ChoiceControl, JsonControl, RegexControl

    ((name, value),) = given.items()
    make = {"regex": RegexControl, "json_schema": JsonControl, "choices": ChoiceControl}[name]
    return {"controls": make(pipe.tokenizer, value)}


def text_seed(seed: int, place: int, number: int) -> int:
    """The seed of text `number` of the request at `place`.

    Example:
        >>> from text_diffusers.cli.writer import text_seed
        >>> text_seed(0, place=0, number=1) == text_seed(0, place=1, number=0)
        False
    """
    # A hash of all three: sums of them would give the same seed twice.
    return int(np.random.SeedSequence([seed, place, number]).generate_state(1)[0])


def plain_texts(values: Sequence[Any]) -> list[str]:
    """The texts of requests; of conversations, those of all turns."""
    texts = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        else:
            texts += [message["content"] for message in value]
    return texts


def parameters_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def check_accepted(pipe: Any, arguments: Mapping[str, Any]):
    """Refuse an argument that the pipeline's call does not take."""
    accepted = parameters_of(pipe)
    for name, value in arguments.items():
        if name not in accepted:
            raise ValueError(
                f"`{name}` must be left out: {type(pipe).__name__} does not take it, got {value!r}."
            )


def process_state() -> PartialState:
    """This process among those that a launcher started, on an accelerator if there is one."""
    return PartialState(cpu=not torch.accelerator.is_available())


def load_pipeline(model: str, show_progress: bool = False, dtype: str | None = None) -> Any:
    """A pipeline from a folder, the Hub, or the models that come with this package, on this process's device.

    Args:
        model: a saved pipeline, or a diffusion language model as its authors published it.
        show_progress: show a bar for the steps of a call.
        dtype: of the weights, by its name; by default the model's own.

    Raises:
        OSError: if there is none, or it cannot be had.
        ValueError: if it cannot be loaded.
    """
    # The bars of diffusers and transformers, for the parts that they load, are never shown.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    weight_type = as_dtype(dtype)
    arguments = {} if weight_type is None else {"dtype": weight_type}
    pipe: Any = TextPipeline.from_pretrained(model, **arguments)
    pipe.set_progress_bar_config(disable=not show_progress)
    return pipe.to(process_state().device)
