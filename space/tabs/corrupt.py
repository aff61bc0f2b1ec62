"""Corrupt: the forward process. A text loses its words as time goes on, in the way of each kernel."""

import threading
from typing import Any

import gradio as gr
import torch

from text_diffusers.kernels import kernels_of, make_scheduler
from text_diffusers.space.limits import Refusal, number, one_of, text
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.pieces import HIDDEN_COLOR, Spans, pieces, stripped
from text_diffusers.space.parts.running import generator
from text_diffusers.space.parts.screen import KEPT_SECONDS, example_chips
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import say

KERNELS_SHOWN = ("absorbing", "uniform", "hybrid", "neighbors", "bit_flip")
LARGEST_FOR_NEIGHBORS = 16_384
MASKED, CHANGED = "[MASK]", "≠"
COLORS = {MASKED: HIDDEN_COLOR, CHANGED: "#d98e04"}
EXAMPLES = [
    "She walked slowly down to the sea and looked at the boats.",
    "I think we should all go to the cinema tonight.",
]
ROWS_AT_ONCE = 32
MASK_FRACTION = 0.5  # of the kernel that does both, so that both are seen


class Kernels:
    """The schedulers of all kernels over the tokens of one model, each made when it is asked for first."""

    def __init__(self, served: Served):
        self.tokenizer = served.pipe.tokenizer
        self._config = kernels_of(served.pipe, mask_fraction=MASK_FRACTION, bit_codes="id")
        self.num_tokens, self.mask_id = self._config.num_tokens, self._config.mask_token_id
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Those that can be made in a moment."""
        large = self.num_tokens > LARGEST_FOR_NEIGHBORS
        return [name for name in KERNELS_SHOWN if not (large and name == "neighbors")]

    def scheduler(self, name: str) -> Any:
        with self._lock:
            if name not in self._made:
                self._made[name] = make_scheduler(name, self._config)
            return self._made[name]

    def corrupt(self, name: str, ids: list[int], time: float, seed: int) -> tuple[list[int], float]:
        """The tokens at a time, and the mean probability that one is itself.

        A seed draws the same numbers for every time: a token that the absorbing, uniform or hybrid kernel has replaced
        stays so at later times.
        """
        scheduler, tokens = self.scheduler(name), torch.tensor([ids])
        with self._lock:  # rows as wide as the vocabulary, a few at a time
            noisy = scheduler.add_noise(tokens, time, generator(seed))[0].tolist()
            rows = tokens[0].split(ROWS_AT_ONCE)
            kept = [scheduler.transition(some, time).gather(1, some.unsqueeze(1)).double().sum() for some in rows]
        return noisy, float(sum(kept)) / len(ids)


def build_corrupt_tab(page: Page):
    """Lay out the tab and connect it."""
    served, kernels = page.served, Kernels(page.served)
    page.add(gr.Markdown, {"value": "corrupt.lead"}, elem_classes="lead")
    words: dict[str, Any] = {"label": "corrupt.kernel"}
    words["choices"] = lambda language: [(say(f"kernel.{name}", language), name) for name in kernels.names]
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            limit = served.limits.characters
            given = {"lines": 3, "max_length": limit, "value": EXAMPLES[0], "elem_id": "corrupt-text"}
            box = page.add(gr.Textbox, {"label": "corrupt.text"}, **given)
            example_chips(page, box, EXAMPLES)
            kernel = page.add(gr.Radio, words, value=kernels.names[0], elem_id="corrupt-kernel")
            seed = settings.seed_number(page)
        with gr.Column(scale=3, min_width=260):
            clock = {"minimum": 0.0, "maximum": 1.0, "step": 0.01, "value": 0.4}
            time = page.add(gr.Slider, {"label": "corrupt.time"}, elem_id="corrupt-time", **clock)
            first = corrupted(kernels, limit, kernels.names[0], 0.4, EXAMPLES[0], 0)
            looks = {"show_legend": True, "color_map": COLORS, "elem_classes": "reading", "combine_adjacent": False}
            shown = page.add(
                gr.HighlightedText, {"label": "corrupt.result"}, value=first[0], elem_id="corrupt-texts", **looks
            )
            status = page.add(gr.Markdown, {"value": lambda lang: counted(first, lang)}, elem_classes="hint")
            last = gr.State(first, time_to_live=KEPT_SECONDS)

    def run(*values: Any) -> tuple:
        found = corrupted(kernels, limit, *values[:-1])
        return found[0], counted(found, values[-1]), found

    inputs = [kernel, time, box, seed]
    for changed in (kernel.change, time.input, box.change, seed.change):
        page.at_once(changed, run, inputs, [shown, status, last])
    page.rendered.append((lambda found, language: counted(found or first, language), last, [status]))


def corrupted(
    kernels: Kernels, limit: int, kernel: str, time: float, given: str, seed: float
) -> tuple[Spans, int, int, float]:
    """What the values of the tab ask for: the pieces, how many changed, of how many, and p(a token is itself).

    Raises:
        Refusal: if a value is beyond its limits.
    """
    name = one_of("corrupt.kernel", kernel, kernels.names)
    time = number("corrupt.time", time, 0.0, 1.0)
    tokenizer = kernels.tokenizer
    ids = tokenizer(text("corrupt.text", given, limit), add_special_tokens=False)["input_ids"]
    if not ids:
        return [], 0, 0, 1.0
    if max(ids) >= kernels.num_tokens:
        raise Refusal("error.mask", field="corrupt.text", mask=tokenizer.decode([max(ids)]))
    noisy, alpha = kernels.corrupt(name, ids, time, settings.accepted_seed(seed))
    marks = [MASKED if new == kernels.mask_id else CHANGED if new != old else None for new, old in zip(noisy, ids)]  # noqa: B905
    real = [tokenizer.mask_token_id if new == kernels.mask_id else new for new in noisy]
    names = pieces(tokenizer, [0 if token is None else token for token in real])
    shown = [
        (f" {MASKED}" if mark == MASKED else piece or " ", mark) for piece, mark in zip(names, marks, strict=True)
    ]
    return stripped(shown), sum(mark is not None for mark in marks), len(ids), alpha


def counted(found: tuple[Spans, int, int, float], language: str) -> str:
    _, changed, total, alpha = found
    return say("corrupt.status", language, changed=changed, total=total, alpha=f"{100 * alpha:.0f}")
