"""The Space: write, fill in, control, compare and corrupt text with a model in the browser.

Run as a script it opens the model that the environment or a file names, or the one that is shipped: `model_to_open`.
"""

import html
import os
from pathlib import Path
from typing import Any

import gradio as gr

from text_diffusers.hub.export import SHIPPED_MODEL
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline
from text_diffusers.space.limits import Limits
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.look import CSS, HEAD, theme
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import LANGUAGE_NAMES, LANGUAGES, say
from text_diffusers.space.tabs.compare import build_compare_tab
from text_diffusers.space.tabs.control import build_control_tab
from text_diffusers.space.tabs.corrupt import build_corrupt_tab
from text_diffusers.space.tabs.fill import build_fill_tab
from text_diffusers.space.tabs.plan import build_plan_tab
from text_diffusers.space.tabs.write import build_write_tab

TABS = {
    "write": build_write_tab,
    "fill": build_fill_tab,
    "control": build_control_tab,
    "compare": build_compare_tab,
    "corrupt": build_corrupt_tab,
}
WRITE_TOKENS = ("tokens", "blocks", "embeddings")


def build(pipe: Any, title: str = "text-diffusers", limits: Limits | None = None) -> gr.Blocks:
    """The page for a pipeline.

    Args:
        pipe: one that writes texts over tokens, word embeddings or codes.
        title: of the page, usually the name of the model.
        limits: what a visitor may ask for.

    Raises:
        ValueError: if the pipeline writes paraphrases, or no texts at all.
    """
    page = Page(Served(pipe, title, limits or Limits()))
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        with gr.Row(elem_id="top"):
            page.add(
                gr.HTML,
                {"value": lambda language: heading(page.served, language)},
                elem_id="title",
                scale=1,
                min_width=0,
            )
            named = [(LANGUAGE_NAMES[language], language) for language in LANGUAGES]
            radio = {
                "choices": named,
                "value": LANGUAGES[0],
                "container": False,
                "elem_id": "language",
                "scale": 0,
                "min_width": 180,
            }
            page.language = page.add(gr.Radio, {"label": "language"}, show_label=False, **radio)
        with gr.Tabs(overflow_behavior="wrap"):
            for name, build_tab in TABS.items():
                with page.add(gr.Tab, {"label": f"tab.{name}"}, id=name, elem_id=f"tab-{name}"):
                    build_or_explain(page, name, build_tab)
        page.add(gr.Markdown, {"value": "page.foot"}, elem_classes="hint")
        page.connect_language()
        blocks.load(preferred_language, None, page.language, queue=False, api_visibility="private")
    blocks.queue(max_size=page.served.limits.waiting, default_concurrency_limit=1, api_open=False)
    return blocks


def build_or_explain(page: Page, name: str, build_tab: Any):
    """The tab, or what a model of this kind lacks for it."""
    kind = page.served.kind
    if name == "write" and kind == "codes":
        return build_plan_tab(page)
    lacking = None
    if name in ("fill", "control", "compare") and kind not in WRITE_TOKENS:
        lacking = "needs.tokens"
    elif name == "control" and kind == "blocks":
        lacking = "needs.whole"
    if lacking is None:
        return build_tab(page)
    explained = {"value": lambda language: say(lacking, language, kind=say(f"written.{kind}", language))}
    page.add(gr.Markdown, explained, elem_classes="lead", elem_id=f"{name}-lacking")


def heading(served: Served, language: str) -> str:
    """HTML of the title with what kind of model it is, and how large."""
    models = [part for part in served.pipe.components.values() if hasattr(part, "parameters")]
    count = sum(parameter.numel() for model in models for parameter in model.parameters()) / 1e6
    parameters = say("page.parameters", language, count=f"{count:.1f}")
    kind = say(f"page.kind.{served.kind}", language)
    about = html.escape(f"{kind} · {parameters}")
    return f"<h1>{html.escape(served.title)}</h1><p>{html.escape(say('page.lead', language))}</p><p>{about}</p>"


def preferred_language(request: gr.Request) -> str:
    """The first of our languages that the visitor's browser asks for."""
    wanted = request.headers.get("accept-language", "").lower()
    places = {wanted.find(language): language for language in LANGUAGES if language in wanted}
    return places[min(places)] if places else LANGUAGES[0]


def launch(
    model: str = SHIPPED_MODEL, host: str | None = None, port: int | None = None, title: str | None = None, **more: Any
) -> Any:
    """Load a model and serve its page until it is interrupted.

    Args:
        model: a folder, a Hub repository or the name of the shipped model.
        host: to listen at; by default this machine only, or what GRADIO_SERVER_NAME says.
        port: by default the first free one from 7860 on.
        title: of the page, by default the model's name.
        more: further arguments of `gr.Blocks.launch`.

    Raises:
        ValueError, OSError: if there is no such model, or it cannot be served.
    """
    pipe = TextDiffusionPipeline.from_pretrained(model)
    return serve(build(pipe, title or os.path.basename(os.path.normpath(model))), host, port, **more)


def serve(blocks: gr.Blocks, host: str | None = None, port: int | None = None, **more: Any) -> Any:
    """`blocks.launch` with what a public page needs: nothing of this machine is shown, and requests are bounded."""
    return blocks.launch(
        server_name=host,
        server_port=port,
        max_threads=16,
        max_file_size="64kb",
        state_session_capacity=Limits().sessions,
        strict_cors=True,
        show_error=False,
        ssr_mode=False,
        share=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        theme=theme(),
        css=CSS,
        head=HEAD,
        **more,
    )


def model_to_open() -> str:
    """What the environment names, or the file beside this one that `hub.push_space` writes, or the shipped model."""
    file = Path(__file__).with_name("model.txt")
    written = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return os.environ.get("TEXT_DIFFUSERS_MODEL") or written or SHIPPED_MODEL


if __name__ == "__main__":
    launch(model_to_open())
