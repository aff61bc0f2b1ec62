"""What lm-eval asks a pipeline to write: arguments of its call, contexts as prompts, and where a text is cut."""

import copy
import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs

from text_diffusers.common.validation import require
from text_diffusers.evaluation.harness.rows import is_rendered
from text_diffusers.pipelines.calls.generation_defaults import CALL_SETTINGS
from text_diffusers.pipelines.calls.steps import defaults_in_force
from text_diffusers.samplers import current_sampler, most_steps, samplers_for

# The context of a turn that a chat template wrote already
RENDERED = "rendered"
RENDERED_TEMPLATE = f"{{{{ messages[0]['{RENDERED}'] }}}}"


@dataclass
class WritingRequest:
    """A text to write behind a context.

    Attributes:
        context: what stands before it.
        max_new_tokens: its longest.
        until: strings before the first of which it is cut.
        is_drawn: whether tokens are drawn, rather than the likeliest written.
        arguments: of the pipeline's call.
        seed: of its generator.
    """

    context: str
    max_new_tokens: int
    until: list[str] = field(default_factory=list)
    is_drawn: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def group(self) -> str:
        """Equal for requests that one call can serve."""
        return json.dumps([self.max_new_tokens, self.arguments], sort_keys=True)


def writing_request(
    pipe: Any, context: str, gen_kwargs: dict[str, Any], max_gen_toks: int
) -> WritingRequest:
    """A request of lm-eval's `generate_until`.

    Args:
        gen_kwargs: `until`, `max_gen_toks`, `do_sample`, `temperature`, and arguments of the pipeline's call such as
            `num_inference_steps`, `top_p` and `block_length`. Without `do_sample` the temperature is 0.
        max_gen_toks: where `gen_kwargs` says nothing of it.

    Raises:
        ValueError: naming the argument, if the pipeline's call does not take it.
    """
    given: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, max_gen_toks))
    until = [text for text in given.pop("until") if text]
    max_new_tokens = given.pop("max_gen_toks")
    require(max_new_tokens >= 1, "max_gen_toks", "an integer of at least 1", max_new_tokens)
    is_drawn = given.pop("do_sample")

    accepted = inspect.signature(type(pipe).__call__).parameters
    if not is_drawn:
        given.pop("temperature", None)
        if "temperature" in accepted:
            given["temperature"] = 0.0
    for name, value in given.items():
        if name not in CALL_SETTINGS or name not in accepted:
            raise ValueError(
                f"`gen_kwargs` must hold what {type(pipe).__name__} takes, got {name}={value!r}."
            )
    return WritingRequest(context, max_new_tokens, until, is_drawn, given)


def seed_of(*parts: Any) -> int:
    """A number below 2**32 that depends on all parts, which JSON can spell."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class ContextWriter:
    """Writes what follows contexts.

    Args:
        pipe: a pipeline that continues prompts.
        class_label: of what is written.
        num_inference_steps: where a request says nothing of it; by default the pipeline's own, or for a sampler with
            a token a step as many as there are tokens.
    """

    def __init__(self, pipe: Any, class_label: Any = None, num_inference_steps: int | None = None):
        self.pipe = pipe
        self.class_label = class_label
        self.num_inference_steps = num_inference_steps

        # A conversation that was rendered already is shown as it is.
        self.chat_pipe = copy.copy(pipe)
        self.chat_pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
        self.chat_pipe.tokenizer.chat_template = RENDERED_TEMPLATE

    def __call__(self, requests: Sequence[WritingRequest]) -> list[str]:
        """What is written for requests of one `group`, each cut before the first string of its `until`."""
        texts: dict[int, str] = {}
        for as_chat in (False, True):
            places = [
                place
                for place, request in enumerate(requests)
                if is_rendered(self.pipe.tokenizer, request.context) == as_chat
            ]
            if places:
                written = self._write([requests[place] for place in places], as_chat)
                texts |= dict(zip(places, written, strict=True))
        return [cut_before(texts[place], request.until) for place, request in enumerate(requests)]

    def _write(self, requests: Sequence[WritingRequest], as_chat: bool) -> list[str]:
        contexts = [request.context for request in requests]
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        arguments = {
            **requests[0].arguments,
            "max_new_tokens": requests[0].max_new_tokens,
            "generator": generators,
        }
        if self.class_label is not None:
            arguments["class_labels"] = [self.class_label] * len(requests)
        if as_chat:
            turns = [[{"role": "user", "content": "", RENDERED: text}] for text in contexts]
            arguments["messages"] = turns
            return self.chat_pipe(**self._with_steps(arguments)).texts

        # A text is returned with its prompt, as it was given.
        texts = self.pipe(contexts, **self._with_steps(arguments)).texts
        return [text[len(context) :] for text, context in zip(texts, contexts, strict=True)]

    def _with_steps(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if "num_inference_steps" in arguments:
            return arguments
        if self.num_inference_steps is not None:
            return arguments | {"num_inference_steps": self.num_inference_steps}
        name = current_sampler(self.pipe)
        has_default = "num_inference_steps" in defaults_in_force(self.pipe, arguments)
        if has_default or name is None or not samplers_for(self.pipe)[name].token_a_step:
            return arguments
        num_steps = min(most_steps(self.pipe, arguments), arguments["max_new_tokens"])
        return arguments | {"num_inference_steps": num_steps}


def cut_before(text: str, until: Sequence[str]) -> str:
    """The text before the first of the strings that comes in it.

    Example:
        >>> from text_diffusers.evaluation.harness.writing import cut_before
        >>> cut_before("four. Q: And five?", [" And", "Q:"])
        'four. '
    """
    ends = [text.find(end) for end in until]
    return text[: min([end for end in ends if end >= 0], default=len(text))]
