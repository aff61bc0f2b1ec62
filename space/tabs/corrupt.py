"""Corrupt: the forward process. A text loses its words as time goes on, in the way of each kernel."""

import threading
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import torch

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.kernels import kernels_of, make_scheduler
from text_diffusers.space.limits import Refusal, number, one_of, text
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.examples import examples_for
from text_diffusers.space.parts.interface import KEPT_SECONDS, LIGHT, Page
from text_diffusers.space.parts.links import LinkedTab
from text_diffusers.space.parts.look import two_columns
from text_diffusers.space.parts.pieces import HIDDEN_COLOR, Spans, pieces, without_first_blank
from text_diffusers.space.parts.running import generator
from text_diffusers.space.parts.screen import (
    colored_text,
    empty_box,
    example_chips,
)
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import LANGUAGES, say

KERNELS_SHOWN = ("absorbing", "uniform", "hybrid", "neighbors", "bit_flip")
LARGEST_FOR_NEIGHBORS = 16_384  # tokens whose nearest ones are found in a moment
MASK_FRACTION = 0.5  # of the hybrid kernel, so that masks and other words are seen
ROWS_AT_ONCE = 32  # of the transition matrix, each as wide as the vocabulary

MASKED = "[MASK]"
CHANGED = "≠"
COLORS = {MASKED: HIDDEN_COLOR, CHANGED: "#d98e04"}


@dataclass
class CorruptRequest:
    """Values of the tab, as the browser sends them."""

    kernel: str
    time: float
    text: str
    seed: float


@dataclass
class Corrupted:
    """A corrupted text.

    Attributes:
        spans: its pieces, those that are changed with the name of their colour.
        changed: tokens that are changed.
        total: tokens of the text.
        alpha: the mean probability that a token is itself.
    """

    spans: Spans = field(default_factory=list)
    changed: int = 0
    total: int = 0
    alpha: float = 1.0


class Kernels:
    """Schedulers of all kernels over the tokens of one model, each made when it is first asked for."""

    def __init__(self, served: Served):
        self.tokenizer = served.pipe.tokenizer
        # Codes by the id are made at once; those by embedding take a while.
        self._config = kernels_of(served.pipe, mask_fraction=MASK_FRACTION, bit_codes="id")
        self.num_tokens = self._config.num_tokens
        self.mask_id = self._config.mask_token_id
        self._schedulers: dict[str, Any] = {}  # by name
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Kernels that can be made in a moment."""
        names: list[str] = list(KERNELS_SHOWN)
        if self.num_tokens > LARGEST_FOR_NEIGHBORS:
            names.remove("neighbors")
        return names

    def scheduler(self, name: str) -> Any:
        # Two visitors who ask first must not both make it.
        with self._lock:
            if name not in self._schedulers:
                self._schedulers[name] = make_scheduler(name, self._config)
            return self._schedulers[name]

    def corrupt(self, name: str, ids: list[int], time: float, seed: int) -> tuple[list[int], float]:
        """The tokens at a time, and the mean probability that one is itself.

        A seed draws the same numbers for every time: a token that the absorbing, uniform or hybrid kernel has replaced
        stays so at later times.
        """
        # The lock is held to make the scheduler, and again to use it.
        scheduler = self.scheduler(name)
        tokens = torch.tensor([ids])  # (1, L)
        probability = 0.0

        # A few rows at a time, and those of one visitor.
        with self._lock:
            noisy = scheduler.add_noise(tokens, time, generator(seed))
            for row_ids in tokens[0].split(ROWS_AT_ONCE):
                unchanged = scheduler.transition(row_ids, time).gather(1, row_ids.unsqueeze(1))
                probability += float(unchanged.double().sum())
        return noisy[0].tolist(), probability / len(ids)


def build_corrupt_tab(page: Page):
    """Lay out the tab and connect it."""
    kernels = Kernels(page.served)
    limit = page.served.limits.characters
    examples = examples_for(page.served).whole
    # The tab opens with a result, which shows what it is for.
    first_request = CorruptRequest(kernel=kernels.names[0], time=0.4, text=examples[0], seed=0)
    first_result = corrupted(kernels, limit, first_request)

    def choices(language: str) -> list[tuple[str, str]]:
        return [(say(f"kernel.{name}", language), name) for name in kernels.names]

    page.markdown("corrupt.lead", "lead")
    inputs, results = two_columns()
    with inputs:
        box = empty_box(page, "text", "corrupt-text", lines=3, value=first_request.text)
        picked = example_chips(page, box, examples)
        words = {"label": "corrupt.kernel", "choices": choices}
        kernel = page.add(gr.Radio, words, value=first_request.kernel, elem_id="corrupt-kernel")
        seed = settings.seed_number(page)
    with results:
        time = page.slider(
            "corrupt.time",
            low=0.0,
            high=1.0,
            step=0.01,
            value=first_request.time,
            elem_id="corrupt-time",
        )
        looks = {"value": first_result.spans, "color_map": COLORS, "combine_adjacent": False}
        shown = colored_text(page, "corrupt.result", "corrupt-texts", **looks)
        # Drawn anew in another language by `draw` alone, which knows what is shown by then
        status = gr.Markdown(summary(first_result, LANGUAGES[0]), elem_classes="hint")
        link = page.link_button("corrupt")
        last = gr.State(first_result, time_to_live=KEPT_SECONDS)

    def run(asked: CorruptRequest, language: str) -> tuple:
        result = corrupted(kernels, limit, asked)
        return result.spans, summary(result, language), result

    def draw(result: Corrupted | None, language: str) -> str:
        return summary(result or first_result, language)

    # No button: every change is answered at once.
    fields = {"kernel": kernel, "time": time, "text": box, "seed": seed}
    outputs = [shown, status, last]
    page.linked["corrupt"] = LinkedTab(
        CorruptRequest, fields, lambda asked: corrupted(kernels, limit, asked), run, outputs
    )
    # Of the components `input`, which is what a visitor does, and not `change`: an address changes several at once.
    for event in (kernel.input, time.input, box.input, picked.then, seed.input):
        page.on(event, run, CorruptRequest, fields, outputs, link=("corrupt", link), **LIGHT)
    page.rendered.append((draw, last, [status]))


def corrupted(kernels: Kernels, limit: int, asked: CorruptRequest) -> Corrupted:
    """The corrupted text of a request.

    Args:
        limit: characters of a text.

    Raises:
        Refusal: if a value is beyond its limits.
    """
    # 1. Check the values
    kernel = one_of("corrupt.kernel", asked.kernel, kernels.names)
    time = number("corrupt.time", asked.time, 0.0, 1.0)
    written = text("text", asked.text, limit)
    tokenizer = kernels.tokenizer
    (ids,) = encode_plain(tokenizer, [written])
    if not ids:
        return Corrupted()
    # Kernels do not know special tokens that come last in the vocabulary.
    if max(ids) >= kernels.num_tokens:
        raise Refusal("error.mask", field="text", mask=tokenizer.decode([max(ids)]))
    seed = settings.accepted_seed(asked.seed)

    # 2. Corrupt; the mask of the kernels may be no token of the tokenizer that reads the result.
    noisy, alpha = kernels.corrupt(kernel, ids, time, seed)
    is_masked = [token == kernels.mask_id for token in noisy]
    mask = tokenizer.mask_token_id or 0
    readable = [mask if masked else token for token, masked in zip(noisy, is_masked, strict=True)]

    # 3. Mark what is changed; a mask is shown by its name
    spans: Spans = []
    for place, piece in enumerate(pieces(tokenizer, readable)):
        if is_masked[place]:
            spans.append((f" {MASKED}", MASKED))
        else:
            mark = CHANGED if noisy[place] != ids[place] else None
            spans.append((piece or " ", mark))
    return Corrupted(
        spans=without_first_blank(spans),
        changed=sum(mark is not None for _, mark in spans),
        total=len(ids),
        alpha=alpha,
    )


def summary(result: Corrupted, language: str) -> str:
    """How many tokens are changed, and how probable that is."""
    return say(
        "corrupt.status",
        language,
        changed=result.changed,
        total=result.total,
        alpha=f"{100 * result.alpha:.0f}",
    )
