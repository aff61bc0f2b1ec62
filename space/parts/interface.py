"""The page that the tabs are built on: components whose words change with the language, and handlers of events."""

import html
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import gradio as gr

from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts.links import LinkedTab, settings_in
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import LANGUAGES, say

logger = logging.getLogger(__name__)

KEPT_SECONDS = 3600  # for which results stay in memory
# A screen reader asks the document for the language that it is to speak.
TELL_LANGUAGE = "(language) => { document.documentElement.lang = language; }"

# A key of `TEXTS`, or a function of the language.
Words = str | Callable[[str], Any]
# Components by the names of the fields of a request.
Fields = dict[str, Any]

# Settings of events that run the model: one at a time over all tabs.
MODEL: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
}
# Settings of events that take a few milliseconds and need no place in the queue; of a slider that is dragged, only the
# last place counts.
LIGHT: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}


class Page:
    """A page being built: its pipeline, its language switch and all components that have words.

    Attributes:
        language: the component that holds the language.
        rendered: functions `(state, language) -> updates` that draw results anew, with their state and outputs.
        tabs: the component that holds the tabs.
        linked: tabs whose settings an address can hold, by their names.
        openers: buttons that open a linked tab, its name, and the settings that differ from its first ones.
    """

    def __init__(self, served: Served):
        self.served = served
        self.language: Any = None  # until the heading is built
        self.rendered: list[tuple[Callable, gr.State, list]] = []
        self.tabs: Any = None  # until they are built
        self.linked: dict[str, LinkedTab] = {}
        self.openers: list[tuple[gr.Button, str, dict[str, Any]]] = []
        self._worded: list[tuple[Any, Mapping[str, Words]]] = []

    # Components

    def add(self, component: type, words: Mapping[str, Words], **settings: Any) -> Any:
        """A component with its `words`, by the names of its properties, and settings that no language changes."""
        element = component(**in_language(words, LANGUAGES[0]), **settings)
        # Remembered, so that the language switch finds every word again.
        self._worded.append((element, words))
        return element

    def markdown(self, words: Words, style: str, **settings: Any) -> Any:
        """A paragraph: a "lead" or a "hint"."""
        return self.add(gr.Markdown, {"value": words}, elem_classes=style, **settings)

    def button(self, key: str, elem_id: str, **settings: Any) -> Any:
        return self.add(gr.Button, {"value": key}, elem_id=elem_id, **settings)

    def link_button(self, tab: str) -> gr.Button:
        """A link to the settings of the last run of a tab; out of sight until there is one."""
        look = {"size": "sm", "visible": False, "elem_classes": "link"}
        return self.button("link", f"{tab}-link", link_target="_blank", **look)

    def more_settings(self, tab: str) -> gr.Accordion:
        """A closed drawer, to be filled by `with`."""
        return self.add(gr.Accordion, {"label": "more"}, open=False, elem_id=f"{tab}-more")

    def slider(
        self,
        key: str,
        *,
        low: float,
        high: float,
        value: float,
        step: float = 1,
        info: str | None = None,
        **settings: Any,
    ) -> Any:
        # Numbers need no translation; label and hint do.
        words = {"label": key}
        if info is not None:
            words["info"] = info
        return self.add(
            gr.Slider, words, minimum=low, maximum=high, step=step, value=value, **settings
        )

    # Events

    def connect_language(self):
        """Let the language switch change every word; to be called when all is built."""
        components = [component for component, _ in self._worded]

        # One event for all words; results that hold words are drawn anew by events of their own.
        def reword(language: str) -> list:
            return [gr.update(**in_language(words, language)) for _, words in self._worded]

        self.language.change(reword, self.language, components, **LIGHT)
        self.language.change(None, self.language, None, js=TELL_LANGUAGE, **LIGHT)
        # Results are kept as data, not as HTML, so that they can be said in another language.
        for draw, state, outputs in self.rendered:
            self.language.change(draw, [state, self.language], outputs, **LIGHT)

    def on(
        self,
        event: Callable,
        function: Callable,
        request: type,
        fields: Fields,
        outputs: list,
        link: tuple[str, gr.Button] | None = None,
        save: tuple[gr.Button, gr.State] | None = None,
        **settings: Any,
    ) -> Any:
        """Let an event call `function(request, language)`.

        Args:
            request: a dataclass, made of the values of `fields`.
            link: a linked tab and its button, which is given the address of the settings of the call.
            save: with `link`, a button that saves what is written, and the state that keeps these settings for it.
            settings: `MODEL` for a function that runs the model, `LIGHT` for one that takes a few milliseconds.
        """
        # Gradio passes values by position: fields in their order, the language last.
        inputs = [*fields.values(), self.language]
        if link is None:
            return event(handler(function, request, fields), inputs, outputs, **settings)

        # Some more outputs: the link and the button are there from the first result on.
        tab, button = link
        more = [button, *(save or [])]

        def with_address(values: dict[str, Any]) -> list[Any]:
            linked = self.linked[tab]
            updates: list[Any] = [gr.update(link=linked.address(tab, values), visible=True)]
            if save is not None:
                updates += [gr.update(visible=True), linked.settings(values)]
            return updates

        linked = handler(function, request, fields, with_address)
        return event(linked, inputs, [*outputs, *more], **settings)

    # Addresses

    def connect_addresses(self, blocks: gr.Blocks, notice: gr.HTML):
        """Let the address of the page and `openers` fill the tabs, and begin in the visitor's language.

        To be called when all is built.

        Args:
            notice: where it is said what is wrong with an address.
        """
        asked = gr.State("")  # the query of the address, for the language switch
        outputs = self.opened_components()

        def notice_of(query: str, language: str) -> dict:
            try:
                settings_in(query, self.linked)
            except Exception as error:
                message = html.escape(message_of(error, language))
                lead = html.escape(say("address.refused", language))
                return gr.update(value=f'<p role="alert">{lead} {message}</p>', visible=True)
            return gr.update(visible=False)

        # One event, so that the words of a tab that is filled come after its values.
        def open_page(request: gr.Request) -> list:
            language = preferred_language(request)
            query = str(request.query_params)
            refused = notice_of(query, language)
            # Either all settings are filled in or none.
            updates = self.filled("" if refused["visible"] else query, language)
            return [language, query, refused, *updates]

        def open_settings(query: str, language: str) -> list:
            return self.filled(query, language)

        blocks.load(open_page, None, [self.language, asked, notice, *outputs], **LIGHT)
        self.language.change(notice_of, [asked, self.language], notice, **LIGHT)
        for button, tab, values in self.openers:
            linked = self.linked[tab]
            query = linked.address(tab, linked.first_values | values).removeprefix("?")
            button.click(partial(open_settings, query), self.language, outputs, **LIGHT)

    def opened_components(self) -> list[Any]:
        """What an address may change: the open tab, then of each tab its fields and the outputs of its answer."""
        components = [self.tabs]
        for linked in self.linked.values():
            components += [linked.fields[name] for name in linked.names]
            components += linked.outputs
        return components

    def filled(self, query: str, language: str) -> list:
        """Updates of `opened_components` for an address; one that names no tab changes nothing.

        Raises:
            Refusal: if there is no such tab or setting, or a value is beyond its limits.
        """
        opened = settings_in(query, self.linked)
        if opened is None:
            return [gr.skip() for _ in self.opened_components()]

        # What belongs to other tabs stays as it is.
        tab, values = opened
        updates: list[Any] = [gr.Tabs(selected=tab)]
        for name, linked in self.linked.items():
            if name != tab:
                updates += [gr.skip() for _ in [*linked.names, *linked.outputs]]
                continue
            updates += [gr.update(value=values[field]) for field in linked.names]
            if linked.answer is not None:
                updates += linked.answer(linked.request(**values), language)
        return updates

    def stop(self, button: gr.Button, running: Any):
        """Let a button cancel an event, or several, that may be under way."""
        # Not in the queue, where it would wait for the very run that it is to stop.
        events = running if isinstance(running, list) else [running]
        button.click(None, cancels=events, queue=False, api_visibility="private")


def preferred_language(request: gr.Request) -> str:
    """The first of the page's languages that the visitor's browser asks for."""
    # A visitor may change the language afterwards; this is only the first guess.
    accepted = request.headers.get("accept-language", "").lower()
    # Codes such as "ru-RU,ru;q=0.9" stand in the order of preference.
    named = [language for language in LANGUAGES if language in accepted]
    return min(named, key=accepted.find, default=LANGUAGES[0])


def in_language(words: Mapping[str, Words], language: str) -> dict[str, Any]:
    """Properties of a component in a language."""
    properties = {}
    for name, word in words.items():
        properties[name] = say(word, language) if isinstance(word, str) else word(language)
    return properties


def handler(
    function: Callable,
    request: type,
    fields: Fields,
    more_outputs: Callable[[dict[str, Any]], list] | None = None,
) -> Callable:
    """Gradio's positional values, of which the language is the last, as a call of `function(request, language)`.

    Args:
        more_outputs: of the values by their names, behind the outputs of `function`.
    """
    names = list(fields)

    def completed(outputs: Any, values: dict[str, Any]) -> Any:
        return outputs if more_outputs is None else [*outputs, *more_outputs(values)]

    # Gradio streams what a generator function yields, so the handler must be one, too.
    def call(*given):
        *answers, language = given
        values = dict(zip(names, answers, strict=True))
        with readable_errors(language):
            return completed(function(request(**values), language), values)

    def stream(*given):
        *answers, language = given
        values = dict(zip(names, answers, strict=True))
        with readable_errors(language):
            for outputs in function(request(**values), language):
                yield completed(outputs, values)

    return stream if inspect.isgeneratorfunction(function) else call


@contextmanager
def readable_errors(language: str) -> Iterator[None]:
    """Errors as messages that a visitor can read, in a language."""
    try:
        yield
    except Exception as error:
        # Gradio renders the message as HTML, and it may quote what was typed in.
        message = html.escape(message_of(error, language))
        raise gr.Error(message, print_exception=False) from error


def message_of(error: Any, language: str) -> str:
    # 1. Refusals of our own checks, in the words of the page
    if isinstance(error, Refusal):
        values = dict(error.values)
        # A field is named as on the page.
        if "field" in values:
            values["field"] = say(values["field"], language)
        return say(error.key, language, **values)
    # 2. The library's errors name the argument and its limit, which tells a visitor enough.
    if isinstance(error, ValueError):
        return say("error.model", language, detail=error)

    # What went wrong inside is for the log, not for visitors.
    logger.error("A request failed.", exc_info=error)
    return say("error.unexpected", language)
