"""What every tab shares: components whose words change with the language, and handlers that answer in it."""

import html
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import gradio as gr

from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import LANGUAGES, say

logger = logging.getLogger(__name__)
Words = str | Callable[[str], Any]


class Page:
    """The page being built: its pipeline, its language switch and all components that have words.

    Attributes:
        language: the component that holds the language.
        rendered: functions `(state, language) -> updates` that draw results anew, with their state and outputs.
    """

    def __init__(self, served: Served):
        self.served = served
        self.language: Any = None
        self.rendered: list[tuple[Callable, gr.State, list]] = []
        self._worded: list[tuple[Any, Mapping[str, Words]]] = []

    def add(self, component: type, words: Mapping[str, Words], **settings: Any) -> Any:
        """A component whose properties in `words` are keys of `TEXTS`, or functions of the language."""
        made = component(**{name: in_words(word, LANGUAGES[0]) for name, word in words.items()}, **settings)
        self._worded.append((made, words))
        return made

    def connect_language(self):
        """Let the language switch change every word; to be called when all is built."""
        components = [component for component, _ in self._worded]

        def reword(language: str) -> list:
            named = [{name: in_words(word, language) for name, word in words.items()} for _, words in self._worded]
            return [gr.update(**properties) for properties in named]

        light = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.language.change(reword, self.language, components, **light)
        for draw, state, outputs in self.rendered:
            self.language.change(draw, [state, self.language], outputs, **light)

    def on_model(self, listener: Callable, function: Callable, inputs: list, outputs: list, **settings: Any) -> Any:
        """Connect a function that runs the model: one at a time over all tabs. The language is its last input."""
        settings = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"} | settings
        return listener(guarded(function), [*inputs, self.language], outputs, **settings)

    def at_once(self, listener: Callable, function: Callable, inputs: list, outputs: list) -> Any:
        """Connect a function that takes a few milliseconds and needs no place in the queue."""
        settings: dict[str, Any] = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last"}
        return listener(guarded(function), [*inputs, self.language], outputs, api_visibility="private", **settings)


def in_words(word: Words, language: str) -> Any:
    return say(word, language) if isinstance(word, str) else word(language)


def guarded(function: Callable) -> Callable:
    """The same function, or generator, with errors that a visitor can read, in the language that is its last input."""

    def explain(error: Exception, language: str) -> gr.Error:
        if isinstance(error, Refusal):
            values = {name: say(value, language) if name == "field" else value for name, value in error.values.items()}
            message = say(error.key, language, **values)
        elif isinstance(error, ValueError):
            message = say("error.model", language, detail=error)
        else:
            logger.error("A request failed.", exc_info=error)
            message = say("error.unexpected", language)
        # Gradio renders the message as HTML, and it may quote what was typed in.
        return gr.Error(html.escape(message), print_exception=False)

    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def stream(*inputs):
            try:
                yield from function(*inputs)
            except Exception as error:
                raise explain(error, inputs[-1]) from error

        return stream

    @wraps(function)
    def call(*inputs):
        try:
            return function(*inputs)
        except Exception as error:
            raise explain(error, inputs[-1]) from error

    return call
