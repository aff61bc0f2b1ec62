"""A run as a file: its settling as GIF, its texts as PNG, and all that made them as JSON, which all writing tabs have.

Files are made in memory and sent to the browser as text, so that nothing of a visitor comes onto the disk.
"""

import base64
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts.drawing import as_gif, as_png
from text_diffusers.space.parts.interface import KEPT_SECONDS, LIGHT, Fields, Page
from text_diffusers.space.parts.links import plain
from text_diffusers.space.parts.pieces import HIDDEN, color_map, settled_pieces
from text_diffusers.space.parts.running import Run, texts_of
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import say

KINDS = {"gif": "image/gif", "png": "image/png", "json": "application/json"}
MOST_FRAMES = 40  # of a GIF, which is drawn in a second or two
PACKAGES = ("text-diffusers", "diffusers", "transformers", "torch")
# One at a time, beside the run of the model that another visitor may have under way
SAVING: dict[str, Any] = {
    "concurrency_id": "save",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "hidden",
}
DOWNLOAD = """(file) => {
  if (!file) return;
  const {name, type, data} = JSON.parse(file);
  const link = document.createElement("a");
  link.href = `data:${type};base64,${data}`;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}"""


@dataclass
class SaveRequest:
    """The last run of a tab that ended, if there is one."""

    run: Run | None


class SaveButtons:
    """Buttons that save the last run of a tab, out of sight until there is one.

    Args:
        page: the page; the buttons stand where this is made.
        tab: begins the ids of the buttons and the names of the files.
        run: the state that keeps the run.
        ends: whether a text ends where the model wrote an end.
    """

    def __init__(self, page: Page, tab: str, run: gr.State, ends: bool):
        self.buttons = []
        for kind in KINDS:
            save = saver(page.served, tab, kind, ends)
            self.buttons.append(save_button(page, tab, kind, save, SaveRequest, {"run": run}))

    def shown(self, is_shown: bool) -> list[dict]:
        """Updates of the buttons."""
        return [gr.update(visible=is_shown) for _ in self.buttons]


@dataclass
class SaveJsonRequest:
    """What a tab shows, `None` until it is complete, and the settings that it was made with."""

    result: Any
    settings: dict[str, Any] | None


class JsonButton:
    """A button that saves what a tab shows, with the settings of its last run; out of sight until there is one.

    Args:
        page: the page; the button stands where this is made.
        tab: a linked tab; begins the id of the button and the name of the file.
        last: the state that keeps what is shown.
        content: what is saved of it, by names.

    Attributes:
        save: for `Page.on`.
    """

    def __init__(
        self, page: Page, tab: str, last: gr.State, content: Callable[[Any], dict[str, Any]]
    ):
        settings = gr.State(None, time_to_live=KEPT_SECONDS)
        fields = {"result": last, "settings": settings}
        save = json_saver(page.served, tab, content)
        button = save_button(page, tab, "json", save, SaveJsonRequest, fields)
        self.save = (button, settings)


def save_button(
    page: Page, tab: str, kind: str, save: Callable, request: type, fields: Fields
) -> gr.Button:
    """A button, out of sight, that calls `save(request, language)` and sends its file to the browser."""
    button = page.button(f"save.{kind}", f"{tab}-{kind}", size="sm", visible=False)
    file = gr.Textbox(visible=False)
    saved = page.on(button.click, save, request, fields, [file], **SAVING)
    saved.success(None, file, None, js=DOWNLOAD, **LIGHT)
    return button


def json_saver(
    served: Served, tab: str, content: Callable[[Any], dict[str, Any]]
) -> Callable[[SaveJsonRequest, str], str]:
    """The function behind a `JsonButton`."""

    def save(asked: SaveJsonRequest, language: str) -> str:
        if asked.result is None or asked.settings is None:
            raise Refusal("error.save")
        written = as_json(served, tab, asked.settings, content(asked.result))
        return file_for_browser(tab, "json", asked.settings, written)

    return save


def saver(served: Served, tab: str, kind: str, ends: bool) -> Callable[[SaveRequest, str], str]:
    """The function behind a button: a run and a language to a file as the browser takes it."""
    make = {"gif": settling_gif, "png": texts_png, "json": run_json}[kind]

    def save(asked: SaveRequest, language: str) -> str:
        if asked.run is None or asked.run.output is None:
            raise Refusal("error.save")
        content = make(served, tab, asked.run, ends, language)
        return file_for_browser(tab, kind, asked.run.asked, content)

    return save


def file_for_browser(tab: str, kind: str, settings: Mapping[str, Any], content: bytes) -> str:
    """A file as `DOWNLOAD` takes it."""
    name = f"text-diffusers-{tab}-{plain(settings.get('seed', 0))}.{kind}"
    data = base64.b64encode(content).decode()
    return json.dumps({"name": name, "type": KINDS[kind], "data": data})


def notes(served: Served, run: Run, frame: int, language: str) -> tuple[str, str]:
    """The lines above and below a picture: the model, the seed, and how far it is."""
    seed = f"{say('seed', language)}: {plain(run.asked.get('seed', 0))}"
    step = say("save.step", language, step=frame, steps=len(run.frames) - 1)
    return f"{served.title} · text-diffusers", f"{step} · {seed}"


def settling_gif(served: Served, tab: str, run: Run, ends: bool, language: str) -> bytes:
    """All states of the texts, or `MOST_FRAMES` of them, evenly chosen with the first and the last."""
    last = len(run.frames) - 1
    count = min(MOST_FRAMES, last + 1)
    chosen = [round(place * last / max(1, count - 1)) for place in range(count)]
    frames = [texts_of(served, run, frame, ends) for frame in chosen]
    frame_notes = [notes(served, run, frame, language) for frame in chosen]
    return as_gif(frames, color_map(run.most_steps), frame_notes)


def texts_png(served: Served, tab: str, run: Run, ends: bool, language: str) -> bytes:
    """The texts as they are in the end, in the colours of their steps."""
    last = len(run.frames) - 1
    colors = color_map(run.most_steps)
    del colors[HIDDEN]  # nothing is any more
    shown = texts_of(served, run, None, ends)
    return as_png(shown, colors, notes(served, run, last, language))


def run_json(served: Served, tab: str, run: Run, ends: bool, language: str) -> bytes:
    """Settings, seed, versions and texts, with the step that settled each piece; 0 for what was given."""
    tokenizer = served.pipe.tokenizer
    settling = []
    for row in range(len(run.frames[0])):
        frames = run.of_row(row)
        settling.append(settled_pieces(tokenizer, frames, ends, run.given, served.more_ends))

    content: dict[str, Any] = {
        "texts": run.output.texts,
        "settling": settling,
        "steps": len(run.frames) - 1,
        "calls": run.cost.calls,
        "seconds": round(run.cost.seconds, 3),
    }
    return as_json(served, tab, run.asked, content)


def as_json(
    served: Served, tab: str, settings: Mapping[str, Any], content: Mapping[str, Any]
) -> bytes:
    """What a tab shows, with the model, the settings and the versions that it was made with."""
    made_with = {
        "model": served.title,
        "kind": served.kind,
        "tab": tab,
        "settings": {name: plain(value) for name, value in settings.items()},
        "versions": versions(),
    }
    return json.dumps(made_with | dict(content), ensure_ascii=False, indent=1).encode()


def versions() -> dict[str, str]:
    """The versions that a run depends on, by package."""
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **found}
