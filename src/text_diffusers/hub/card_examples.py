"""What a model card asks a pipeline for, as Python that a reader can run and as the texts that come of it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from text_diffusers.models.language_model import is_masked_lm
from text_diffusers.pipelines.paraguide.pipeline_paraguide import ParaGuidePipeline
from text_diffusers.pipelines.two_level_vq.pipeline_two_level_vq import TwoLevelVQDiffusionPipeline

PROMPT, GAPS, SOURCE = "The", "The {mask} was {mask}.", "It was late."
NUM_TEXTS, MOST_LABELS, NEW_TOKENS = 4, 8, 16
GUIDANCE_SCALE = 2.0
SEED = 0
STEPS = "num_inference_steps"


@dataclass
class Example:
    """A call of a pipeline, with a generator seeded by `SEED`.

    Attributes:
        title: what it does.
        arguments: of the call.
        captions: one a text, what tells it from the others.
    """

    title: str
    arguments: dict[str, Any]
    captions: list[str]

    def source(self) -> str:
        """The call as Python."""
        seeded = f"generator=torch.Generator().manual_seed({SEED})"
        return f"pipe({', '.join([*(f'{name}={literal(value)}' for name, value in self.arguments.items()), seeded])})"

    def texts(self, pipe: Any) -> list[str]:
        """What the pipeline writes."""
        with quiet(pipe):
            return pipe(**self.arguments, generator=torch.Generator().manual_seed(SEED)).texts


def examples_of(pipe: Any, options: dict[str, Any]) -> list[Example]:
    """Calls that fit a pipeline, by what its parts and the options of its training, so far as known, are made for."""
    if isinstance(pipe, TwoLevelVQDiffusionPipeline):
        return two_level_examples(pipe)
    accepted = inspect.signature(type(pipe).__call__).parameters
    steps, most = (
        accepted[STEPS].default,
        pipe.scheduler.config.get("num_train_timesteps") or accepted[STEPS].default,
    )
    always: dict[str, Any] = {STEPS: most} if most < steps else {}
    steered = isinstance(pipe, ParaGuidePipeline)
    if "guidance_scale" in accepted and options.get("condition_dropout") and not steered:
        always |= {"guidance_scale": GUIDANCE_SCALE}
    if steered or ("source" in accepted and options.get("source_column")):
        return [Example("Write from a text", {"source": SOURCE} | always, [f"From {SOURCE!r}"])]
    labels = labels_of(pipe)[:MOST_LABELS]
    if not labels:
        always.pop("guidance_scale", None)
    ending = is_masked_lm(pipe.denoiser) and pipe.config.get("lengths") is None
    told = {"class_labels": labels[0]} if labels else {}
    longest = {"max_new_tokens": NEW_TOKENS} if ending else {}
    gaps = GAPS.format(mask=pipe.tokenizer.mask_token)
    return [
        writing(labels, always | longest),
        Example("Continue a text", {"prompt": PROMPT} | told | longest | always, ["Continued"]),
        Example("Fill in a text", {"text": gaps} | told | always, ["Filled in"]),
    ]


def writing(labels: list, arguments: dict[str, Any]) -> Example:
    """Texts from nothing, of each label if there are labels."""
    if not labels:
        return Example("Write", {"num_return_sequences": NUM_TEXTS} | arguments, [""] * NUM_TEXTS)
    each = max(1, NUM_TEXTS // len(labels))
    captions = [f"Label {label}" for label in labels for _ in range(each)]
    repeated = {"num_return_sequences": each} if each > 1 else {}
    return Example("Write, by label", {"class_labels": labels} | repeated | arguments, captions)


def two_level_examples(pipe: Any) -> list[Example]:
    prompted = pipe.prompt_encoder is not None
    if prompted and not pipe.config.prompt_begins_text:
        return [Example("Write from a text", {"prompt": SOURCE}, [f"From {SOURCE!r}"])]
    examples = [Example("Write", {"num_return_sequences": 2}, [""] * 2)]
    return examples + [Example("Continue a text", {"prompt": PROMPT}, ["Continued"])] * prompted


def labels_of(pipe: Any) -> list[int | str]:
    """The labels that a pipeline takes, by name if they have one."""
    return list(
        pipe.config.get("label_names")
        or range(getattr(pipe.denoiser.config, "num_classes", None) or 0)
    )


def literal(value: Any) -> str:
    """Python for a value, on one line, its strings in double quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    written = repr(value)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in written else written


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """The pipeline without its progress bar."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**(before or {}) | {"disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**(before or {}))
