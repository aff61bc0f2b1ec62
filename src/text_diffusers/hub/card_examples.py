"""The calls that a model card shows: Python that a reader can run, and the texts that it writes."""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch

from text_diffusers.models.language_model import is_language_model

# What the calls ask for
PROMPT = "The"
GAPS = "The {mask} was {mask}."
SOURCE = "It was late."
QUESTION = "Why is the sky blue?"
NUM_TEXTS = 4
# One text each, for as many labels as this at most
MOST_LABELS = 8
# Passed where the pipeline cannot end a text by itself, and to language models, which are large
NEW_TOKENS = 16
LANGUAGE_MODEL_TOKENS = 64
GUIDANCE_SCALE = 2.0
SEED = 0


@dataclass
class Example:
    """A call of a pipeline with a generator seeded by `SEED`.

    Attributes:
        title: of the call.
        arguments: by name.
        captions: one for each text that it writes, which tells it from the others.

    Example:
        >>> from text_diffusers.hub.card_examples import Example
        >>> Example("Continue a text", {"prompt": "The"}, ["Continued"]).source()
        'pipe(prompt="The", generator=torch.Generator().manual_seed(0))'
    """

    title: str
    arguments: dict[str, Any]
    captions: list[str]

    def source(self) -> str:
        """The call as Python."""
        arguments = [f"{name}={literal(value)}" for name, value in self.arguments.items()]

        # Every call has a generator of its own, so a reader can run one without those before it.
        arguments.append(f"generator=torch.Generator().manual_seed({SEED})")
        return f"pipe({', '.join(arguments)})"

    def texts(self, pipe: Any) -> list[str]:
        """The texts that the pipeline writes."""
        # A shallow copy shares the models, and the caller's pipeline keeps its progress bar.
        quiet_pipe = copy.copy(pipe)
        quiet_pipe.set_progress_bar_config(disable=True)
        return quiet_pipe(**self.arguments, generator=torch.Generator().manual_seed(SEED)).texts


def examples_of(pipe: Any, options: dict[str, Any]) -> list[Example]:
    """Calls that fit what the parts of a pipeline, and its training, are made for.

    Args:
        pipe: a pipeline of this package.
        options: of its training, as far as they are known.
    """
    # A two-level pipeline takes other inputs than the others: no labels, gaps or lengths.
    if pipe.kind == "codes":
        return examples_over_codes(pipe)

    common = few_steps(pipe)
    if pipe.kind == "latents":
        return examples_over_latents(pipe, options, common)

    # Classifier-free guidance needs a model that has also learned to do without its condition.
    is_guided = pipe.draws_from_scheduler and "guidance_scale" in pipe.accepted_inputs
    if is_guided and options.get("condition_dropout"):
        common["guidance_scale"] = GUIDANCE_SCALE

    # A paraphraser takes nothing but a source.
    is_paraphraser = "prompt" not in pipe.accepted_inputs
    if is_paraphraser or ("source" in pipe.accepted_inputs and options.get("source_column")):
        return [Example("Write from a text", {"source": SOURCE, **common}, [f"From {SOURCE!r}"])]

    # Without labels there is no condition that guidance could strengthen in all of these calls.
    labels = labels_of(pipe)[:MOST_LABELS]
    label = {"class_labels": labels[0]} if labels else {}
    if not labels:
        common.pop("guidance_scale", None)

    # A text with gaps has its length already; the other calls may have to name one.
    draws_lengths = pipe.config.get("lengths") is not None
    needs_length = not pipe.predicts_end and not draws_lengths
    length = {"max_new_tokens": NEW_TOKENS} if needs_length else {}
    if pipe.predicts_end and not draws_lengths and is_language_model(pipe.denoiser):
        defaults = pipe.generation_defaults
        # What is asked must fit into the row, too.
        num_tokens = min(LANGUAGE_MODEL_TOKENS, max(pipe.max_length // 2, 1))
        if "max_new_tokens" not in defaults:
            length = {"max_new_tokens": num_tokens}
        # More steps than tokens in a block would change nothing.
        if "num_inference_steps" not in defaults:
            common.setdefault("num_inference_steps", pipe.block_length or num_tokens)

    # A model that was trained to chat is asked something; it writes little from nothing.
    if "messages" in pipe.accepted_inputs and getattr(pipe.tokenizer, "chat_template", None):
        first = chat_example({**length, **common})
    else:
        num_texts = 1 if draws_nothing(pipe) else NUM_TEXTS
        first = writing_example(labels, {**common, **length}, num_texts)
    text = GAPS.format(mask=pipe.tokenizer.mask_token)
    return [
        first,
        Example("Continue a text", {"prompt": PROMPT, **label, **length, **common}, ["Continued"]),
        Example("Fill in a text", {"text": text, **label, **common}, ["Filled in"]),
    ]


def few_steps(pipe: Any) -> dict[str, Any]:
    """The number of steps, where the scheduler has fewer than the pipeline takes by default."""
    name = "num_inference_steps"
    # A prior that draws latents at once takes none.
    if not pipe.scheduler_names:
        return {}
    default = inspect.signature(type(pipe).__call__).parameters[name].default
    default = pipe.generation_defaults.get(name, default)

    # A scheduler in continuous time takes any number of steps.
    most = pipe.scheduler.config.get("num_train_timesteps") or default
    return {name: most} if most < default else {}


def draws_nothing(pipe: Any) -> bool:
    """Whether all texts from the same prompt are the same."""
    config = pipe.scheduler.config
    is_random = config.get("order") == "random" or config.get("order_temperature")
    return config.get("temperature") == 0 and not is_random


def chat_example(arguments: dict[str, Any]) -> Example:
    messages = [{"role": "user", "content": QUESTION}]
    return Example("Chat", {"messages": messages, **arguments}, [f"To {QUESTION!r}"])


def writing_example(
    labels: list[int | str], arguments: dict[str, Any], num_texts: int = NUM_TEXTS
) -> Example:
    """Texts from nothing, of each label if there are labels."""
    if not labels:
        several = {"num_return_sequences": num_texts} if num_texts > 1 else {}
        return Example("Write", {**several, **arguments}, [""] * num_texts)

    # About as many in all, and every label at least once
    texts_of_label = max(1, num_texts // len(labels))

    # The pipeline returns the texts of one label next to each other.
    captions = []
    for label in labels:
        captions += [f"Label {label}"] * texts_of_label

    label_arguments: dict[str, Any] = {"class_labels": labels}
    if texts_of_label > 1:
        label_arguments["num_return_sequences"] = texts_of_label
    return Example("Write, by label", {**label_arguments, **arguments}, captions)


def examples_over_codes(pipe: Any) -> list[Example]:
    has_prompts = pipe.prompt_encoder is not None

    # Without `prompt_begins_text` the prompt is a source: nothing is written without one.
    if has_prompts and not pipe.config.prompt_begins_text:
        return [Example("Write from a text", {"prompt": SOURCE}, [f"From {SOURCE!r}"])]

    examples = [Example("Write", {"num_return_sequences": 2}, ["", ""])]
    if has_prompts:
        examples.append(Example("Continue a text", {"prompt": PROMPT}, ["Continued"]))
    return examples


def examples_over_latents(
    pipe: Any, options: dict[str, Any], common: dict[str, Any]
) -> list[Example]:
    # Nothing is filled in: the decoder writes from the left.
    if "max_new_tokens" not in pipe.generation_defaults:
        common["max_new_tokens"] = min(LANGUAGE_MODEL_TOKENS, max(pipe.max_length // 2, 1))
    labels = labels_of(pipe)[:MOST_LABELS]
    takes_source = bool(options.get("source_column"))
    guided = {}
    if options.get("condition_dropout") and pipe.draws_from_scheduler:
        guided = {"guidance_scale": GUIDANCE_SCALE}

    if takes_source:
        arguments = {"source": SOURCE, **guided, "num_return_sequences": 2, **common}
        return [Example("Write from a text", arguments, [f"From {SOURCE!r}"] * 2)]
    if not labels:
        guided = {}
    label = {"class_labels": labels[0]} if labels else {}
    return [
        writing_example(labels, {**guided, **common}),
        Example("Continue a text", {"prompt": PROMPT, **label, **guided, **common}, ["Continued"]),
    ]


def labels_of(pipe: Any) -> list[int | str]:
    """The class labels that a pipeline takes, by name where they have one."""
    return [number if name is None else name for number, name in enumerate(pipe.label_names)]


def literal(value: Any) -> str:
    """Python for a value, on one line, its strings in double quotes.

    Example:
        >>> from text_diffusers.hub.card_examples import literal
        >>> literal(["good", 1])
        '["good", 1]'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        entries = [f"{literal(key)}: {literal(entry)}" for key, entry in value.items()]
        return f"{{{', '.join(entries)}}}"

    # `repr` prefers single quotes, and formatted Python has double ones.
    written = repr(value)
    is_plain = written[0] == "'" and '"' not in written
    return f'"{written[1:-1]}"' if is_plain else written
