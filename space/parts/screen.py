"""The screen of Write and Fill in, where texts appear step by step and can be replayed; boxes and buttons of tabs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from text_diffusers.space.limits import integer, text
from text_diffusers.space.parts.examples import examples_for
from text_diffusers.space.parts.interface import KEPT_SECONDS, LIGHT, MODEL, Fields, Page
from text_diffusers.space.parts.links import LinkedTab
from text_diffusers.space.parts.pieces import color_map
from text_diffusers.space.parts.running import Run, texts_of
from text_diffusers.space.parts.saving import SaveButtons
from text_diffusers.space.parts.texts import decimal, say


@dataclass
class ReplayRequest:
    """A run and the frame of it to be shown."""

    run: Run | None
    frame: float


class Screen:
    """The texts of a run with the colours of their steps, its cost and its replay.

    Args:
        page: the page; the components stand where the screen is made.
        name: begins the ids of its elements.
        ends: whether a text ends where the model wrote an end.
    """

    def __init__(self, page: Page, name: str, ends: bool = True):
        self.page = page
        self.ends = ends
        # Neighbouring pieces of one colour are joined, which keeps the page light.
        self.texts = colored_text(page, "text", f"{name}-texts", combine_adjacent=True)
        page.markdown("legend", "hint")
        self.status = gr.Markdown("", elem_id=f"{name}-status", elem_classes="hint")
        self.name = name
        self.run = gr.State(None, time_to_live=KEPT_SECONDS)  # the last one that ended
        with gr.Row(elem_classes="buttons links"):
            self.link = page.link_button(name)
            self.saves = SaveButtons(page, name, self.run, ends)
        self.replay = page.slider(
            "replay", low=0, high=1, value=1, visible=False, elem_id=f"{name}-replay"
        )

        # A drag does not run the model: it only redraws a frame that is kept.
        fields = {"run": self.run, "frame": self.replay}
        drag = self.replay.input
        page.on(drag, self._replayed, ReplayRequest, fields, [self.texts], **LIGHT)
        page.rendered.append((self._status, self.run, [self.status]))

    def connect(
        self,
        buttons: tuple[gr.Button, gr.Button],
        start: Callable[[Any], Iterator[Run]],
        request: type,
        fields: Fields,
    ):
        """Let the first button start a run, and the second one stop it.

        Args:
            start: the run of a request; values are checked before the run is read.
            request: a dataclass, made of the values of `fields`.
        """

        # A generator, whose every value replaces all outputs of the event
        def stream(asked: Any, language: str) -> Iterator[tuple]:
            # While the run grows there is nothing to replay or to save yet.
            run = None
            for run in start(asked):
                status = say("status.running", language, step=len(run.frames))
                hidden = gr.update(visible=False)
                yield self._shown(run), status, hidden, None, *self.saves.shown(False)

            # Only a run that has ended can be replayed, so it is kept now, with what was asked for.
            if run is not None:
                run.asked = asdict(asked)
                last = len(run.frames) - 1
                replay = gr.update(minimum=0, maximum=max(1, last), value=last, visible=last > 0)
                saves = self.saves.shown(run.output is not None)
                yield self._shown(run), self._status(run, language), replay, run, *saves

        # Stopping cancels the event, which closes the generator and so ends the run's thread.
        button, stop = buttons
        outputs = [self.texts, self.status, self.replay, self.run, *self.saves.buttons]
        self.page.linked[self.name] = LinkedTab(request, fields, start)
        running = self.page.on(
            button.click,
            stream,
            request,
            fields,
            outputs,
            link=(self.name, self.link),
            show_progress="minimal",
            **MODEL,
        )
        self.page.stop(stop, running)

    def _shown(self, run: Run, frame: int | None = None) -> dict:
        value = texts_of(self.page.served, run, frame, self.ends)
        return gr.update(value=value, color_map=color_map(run.most_steps))

    def _replayed(self, asked: ReplayRequest, language: str) -> dict:
        if asked.run is None:
            return gr.update()
        # The browser may send any frame, so it is checked against this run.
        last = len(asked.run.frames) - 1
        return self._shown(asked.run, integer("replay", asked.frame, 0, last))

    def _status(self, run: Run | None, language: str) -> str:
        if run is None:
            return ""
        # A run out of time shows what there is, and has no cost that would compare.
        if run.stopped:
            return say("status.stopped", language, step=len(run.frames))
        return say(
            "status.done",
            language,
            seconds=decimal(run.cost.seconds, 1, language),
            steps=len(run.frames) - 1,
            calls=run.cost.calls,
        )


# Boxes and buttons


def colored_text(page: Page, key: str, elem_id: str, **settings: Any) -> gr.HighlightedText:
    """A text in coloured pieces, with a legend of the colours."""
    # The legend is made of the names of the colours, which are ranges of steps.
    looks = {"show_legend": True, "interactive": False, "elem_classes": "reading"}
    return page.add(gr.HighlightedText, {"label": key}, elem_id=elem_id, **looks, **settings)


def text_box(page: Page, key: str, elem_id: str, examples: Sequence[str], **settings: Any) -> Any:
    """A box for a text, with examples that fill it when they are clicked."""
    box = empty_box(page, key, elem_id, **settings)
    example_chips(page, box, examples)
    return box


def empty_box(page: Page, key: str, elem_id: str, **settings: Any) -> Any:
    """A box for a text."""
    words = {"label": key}
    if key == "prompt":
        words["placeholder"] = "prompt.placeholder"
    # The browser keeps to `max_length`; what is sent otherwise is refused by `limits.text`.
    limit = page.served.limits.characters
    return page.add(gr.Textbox, words, max_length=limit, elem_id=elem_id, **settings)


def example_chips(page: Page, box: Any, examples: Sequence[str]) -> Any:
    """Examples that fill a box when they are clicked.

    Returns:
        The event of a click.
    """
    # Samples of a data set of one column: the box that they fill
    chips = page.add(
        gr.Dataset,
        {"label": "examples"},
        components=[box],
        samples=[[example] for example in examples],
        elem_classes="chips",
    )
    return chips.click(lambda sample: sample[0], chips, box, **LIGHT)


def prompt_box(page: Page, tab: str, examples: Sequence[str] = ()) -> Any:
    """The box for the beginning of a text.

    Args:
        examples: by default the first two beginnings.
    """
    examples = examples or examples_for(page.served).beginnings[:2]
    return text_box(page, "prompt", f"{tab}-prompt", examples, lines=2)


def accepted_prompt(page: Page, value: Any) -> str:
    return text("prompt", value, page.served.limits.characters)


def run_buttons(page: Page, tab: str) -> tuple[gr.Button, gr.Button]:
    """The buttons that start and stop a run."""
    with gr.Row(elem_classes="buttons"):
        button = page.button(f"{tab}.run", f"{tab}-run", variant="primary")
        stop = page.button("stop", f"{tab}-stop")
    return button, stop
