"""Where a text appears step by step and can be replayed: what Write and Fill in share."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from text_diffusers.space.limits import integer, text
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.pieces import Spans, color_map, spans, stacked
from text_diffusers.space.parts.running import Run
from text_diffusers.space.parts.texts import say

KEPT_SECONDS = 3600


class Screen:
    """The texts of a run with the colours of their steps, its cost and its replay.

    Args:
        page: the page; the components stand where the screen is made.
        name: begins the ids of its elements.
        ends: whether a text ends where the model wrote an end.
    """

    def __init__(self, page: Page, name: str, ends: bool = True):
        self.page, self.name, self.ends = page, name, ends
        words: Any = {"label": "result"}
        looks = {"show_legend": True, "combine_adjacent": True, "elem_classes": "reading", "interactive": False}
        self.texts = page.add(gr.HighlightedText, words, value=[], elem_id=f"{name}-texts", **looks)
        page.add(gr.Markdown, {"value": "legend"}, elem_classes="hint")
        self.status = gr.Markdown("", elem_id=f"{name}-status", elem_classes="hint")
        steps = {"minimum": 0, "maximum": 1, "step": 1, "value": 1, "visible": False}
        self.replay = page.add(gr.Slider, {"label": "replay"}, elem_id=f"{name}-replay", **steps)
        self.run = gr.State(None, time_to_live=KEPT_SECONDS)
        page.at_once(self.replay.input, self._replayed, [self.run, self.replay], [self.texts])
        page.rendered.append((self._status, self.run, [self.status]))

    def connect(self, button: gr.Button, stop: gr.Button, inputs: list, start: Callable[..., Iterator[Run]]):
        """Let `button` start a run, from the values of `inputs` and the language, and `stop` end it."""

        def stream(*values: Any) -> Iterator[tuple]:
            run = None
            for run in start(*values):
                status = say("status.running", values[-1], step=len(run.frames))
                yield self._shown(run), status, gr.update(visible=False), None
            if run is not None:
                last = len(run.frames) - 1
                replay = gr.update(minimum=0, maximum=max(1, last), value=last, visible=last > 0)
                yield self._shown(run), self._status(run, values[-1]), replay, run

        outputs = [self.texts, self.status, self.replay, self.run]
        running = self.page.on_model(button.click, stream, inputs, outputs, show_progress="minimal")
        stop.click(None, cancels=[running], queue=False, api_visibility="private")

    def _shown(self, run: Run, frame: int | None = None) -> dict:
        tokenizer, steps = self.page.served.pipe.tokenizer, total_steps(run)
        value = shown(tokenizer, run, steps, frame, self.ends)
        return gr.update(value=value, color_map=color_map(steps))

    def _replayed(self, run: Run | None, frame: float, language: str) -> dict:
        if run is None:
            return gr.update()
        return self._shown(run, integer("replay", frame, 0, len(run.frames) - 1))

    def _status(self, run: Run | None, language: str) -> str:
        if run is None:
            return ""
        if run.stopped:
            return say("status.stopped", language, step=len(run.frames))
        cost = run.cost
        return say("status.done", language, seconds=f"{cost.seconds:.1f}", steps=len(run.frames) - 1, calls=cost.calls)


def total_steps(run: Run) -> int:
    """Steps that the colours are spread over: samplers may take more than they were asked for."""
    return max(1, run.num_steps, len(run.frames) - 1)


def shown(tokenizer: Any, run: Run, steps: int, frame: int | None, ends: bool) -> Spans:
    """All texts of a run at one of its frames."""
    if not run.frames:
        return []
    return stacked([spans(tokenizer, run.of_row(row, frame), steps, ends) for row in range(len(run.frames[0]))])


def prompt_box(page: Page, name: str, examples: list[str]) -> gr.Textbox:
    """Where a text begins, with examples to click."""
    words: Any = {"label": "prompt", "placeholder": "prompt.placeholder"}
    box = page.add(gr.Textbox, words, lines=2, max_length=page.served.limits.characters, elem_id=f"{name}-prompt")
    example_chips(page, box, examples)
    return box


def run_buttons(page: Page, name: str, word: str) -> tuple[gr.Button, gr.Button]:
    """The buttons that begin and stop a run; `word` is what the first one says."""
    with gr.Row(elem_classes="buttons"):
        button = page.add(gr.Button, {"value": word}, variant="primary", elem_id=f"{name}-run")
        return button, page.add(gr.Button, {"value": "stop"}, elem_id=f"{name}-stop")


def example_chips(page: Page, box: gr.Textbox, examples: list[str]):
    """Examples that fill a box when they are clicked."""
    samples = [[example] for example in examples]
    chips = page.add(gr.Dataset, {"label": "examples"}, components=[box], samples=samples, elem_classes="chips")
    chips.click(lambda sample: sample[0], chips, box, queue=False, show_progress="hidden", api_visibility="private")


def accepted_prompt(page: Page, value: Any) -> str:
    return text("prompt", value, page.served.limits.characters)
