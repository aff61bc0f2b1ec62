"""The Space: chat, write, fill in, control, compare and corrupt text with a model in the browser.

Run as a script it opens the model that the environment or a file names, or the shipped one: `model_to_open`.
"""

import html
import os
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from text_diffusers.hub.export import SHIPPED_MODEL
from text_diffusers.hub.published.loader import as_dtype
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.space.api import build_api
from text_diffusers.space.gallery import build_gallery
from text_diffusers.space.limits import Limits
from text_diffusers.space.opening import build_opening
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.look import CSS, HEAD, theme
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import LANGUAGE_NAMES, LANGUAGES, decimal, say
from text_diffusers.space.tabs.chat import build_chat_tab
from text_diffusers.space.tabs.compare import build_compare_tab
from text_diffusers.space.tabs.control import build_control_tab
from text_diffusers.space.tabs.corrupt import build_corrupt_tab
from text_diffusers.space.tabs.fill import build_fill_tab
from text_diffusers.space.tabs.laboratory import build_laboratory_tab
from text_diffusers.space.tabs.latents import build_between_tab, build_latent_tab
from text_diffusers.space.tabs.plan import build_plan_tab
from text_diffusers.space.tabs.write import build_write_tab

# In the order in which they stand on the page; a model without a chat template has no "chat".
TABS = {
    "chat": build_chat_tab,
    "write": build_write_tab,
    "fill": build_fill_tab,
    "control": build_control_tab,
    "compare": build_compare_tab,
    "corrupt": build_corrupt_tab,
    "laboratory": build_laboratory_tab,
}
# Of a model over latents, which become words once, at the end
LATENT_TABS = {
    "write": build_latent_tab,
    "between": build_between_tab,
    "laboratory": build_laboratory_tab,
}


def build(pipe: Any, title: str = "text-diffusers", limits: Limits | None = None) -> gr.Blocks:
    """The page for a pipeline.

    Args:
        pipe: one that writes texts over tokens, word embeddings, codes or latents.
        title: of the page, usually the name of the model.
        limits: on what a visitor may ask for.

    Raises:
        ValueError: if the pipeline writes paraphrases, or no texts at all.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.space.app import build
        >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")
        >>> build(pipe, title="Chat and novels").title
        'Chat and novels'
    """
    # Components are made where they stand; words and events are kept by the page.
    page = Page(Served(pipe, title, limits or Limits()))
    # Without analytics, nothing about the page leaves the machine.
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        with gr.Row(elem_id="top"):
            build_heading(page)
        # What is wrong with an address stands before everything else.
        notice = gr.HTML("", visible=False, elem_id="notice")
        build_opening(page)
        gallery = gr.Row(elem_id="gallery", elem_classes="buttons")
        with gr.Tabs(overflow_behavior="wrap") as page.tabs:
            for name in tabs_of(page.served):
                with page.add(gr.Tab, {"label": f"tab.{name}"}, id=name, elem_id=f"tab-{name}"):
                    build_tab(page, name)
        build_gallery(page, gallery)
        build_api(page)
        page.markdown("page.foot", "hint")

        # All components with words are there now.
        page.connect_language()
        page.connect_addresses(blocks, notice)
    # Whatever runs the model goes through the queue; no address leads past it.
    blocks.queue(max_size=page.served.limits.waiting, default_concurrency_limit=1, api_open=False)
    return blocks


def build_heading(page: Page):
    """The title and the language switch."""
    words = {"value": lambda language: heading(page.served, language)}
    page.add(gr.HTML, words, elem_id="title", scale=1, min_width=0)
    # The language itself is a component, so that every event gets it as its last value.
    page.language = page.add(
        gr.Radio,
        {"label": "language"},
        choices=[(LANGUAGE_NAMES[language], language) for language in LANGUAGES],
        value=LANGUAGES[0],
        show_label=False,
        container=False,
        elem_id="language",
        scale=0,
        min_width=180,
    )


def tabs_of(served: Served) -> list[str]:
    """The names of the tabs for a model."""
    if served.kind == "latents":
        return [*LATENT_TABS]
    return [name for name in TABS if name != "chat" or served.chats]


def build_tab(page: Page, name: str):
    """A tab, or an explanation if the model cannot do what it is for."""
    kind = page.served.kind
    if kind == "latents":
        LATENT_TABS[name](page)
        return
    # A tab stays in sight even if the model lacks what it needs, and says so.
    if kind == "codes" and name == "write":  # it has levels to show
        build_plan_tab(page)
    elif kind == "codes" and name not in ("corrupt", "laboratory"):
        page.markdown("needs.tokens", "lead", elem_id=f"{name}-lacking")
    else:
        TABS[name](page)


def heading(served: Served, language: str) -> str:
    """HTML of the title with the kind of model and its size."""
    # Tokenizers and schedulers have none.
    num_parameters = 0
    for part in served.pipe.components.values():
        if hasattr(part, "parameters"):
            num_parameters += sum(parameter.numel() for parameter in part.parameters())

    # Titles may come from the name of a folder, so everything is escaped.
    kind = say(f"page.kind.{served.kind}", language)
    size = say("page.parameters", language, count=decimal(num_parameters / 1e6, 1, language))
    title = html.escape(served.title)
    lead = html.escape(say("page.lead", language))
    return f"<h1>{title}</h1><p>{lead}</p><p>{html.escape(f'{kind} · {size}')}</p>"


def launch(
    model: str = SHIPPED_MODEL,
    host: str | None = None,
    port: int | None = None,
    title: str | None = None,
    dtype: str | None = None,
    **more: Any,
) -> Any:
    """Load a model and serve its page until it is interrupted.

    Args:
        model: a folder, a Hub repository or the name of the shipped model; also of a language model as its authors
            published it.
        host: to listen at; by default this machine only, or what GRADIO_SERVER_NAME says.
        port: by default the first free one from 7860 on.
        title: of the page, by default the model's name.
        dtype: of the weights, by its name; by default the model's own.
        more: further arguments of `gr.Blocks.launch`.

    Raises:
        ValueError, OSError: if there is no such model, or it cannot be served.
    """
    # Loaded once: all visitors share one pipeline, of which runs take shallow copies.
    weight_type = as_dtype(dtype)
    arguments = {} if weight_type is None else {"dtype": weight_type}
    pipe: Any = TextPipeline.from_pretrained(model, **arguments)
    if torch.accelerator.is_available():
        pipe = pipe.to(torch.accelerator.current_accelerator())
    title = title or os.path.basename(os.path.normpath(model))
    return serve(build(pipe, title), host, port, **more)


def serve(blocks: gr.Blocks, host: str | None = None, port: int | None = None, **more: Any) -> Any:
    """`blocks.launch` with settings for a public page: nothing of this machine is shown, and requests are bounded."""
    return blocks.launch(
        server_name=host,
        server_port=port,
        # Bounds of what visitors can use of the machine
        max_threads=16,
        max_file_size="64kb",  # no tab takes files, but Gradio has an address for uploads
        state_session_capacity=Limits().sessions,
        # Nothing of the machine is shown or sent elsewhere.
        strict_cors=True,
        show_error=False,
        ssr_mode=False,  # which needs Node
        share=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        # Looks
        theme=theme(),
        css=CSS,
        head=HEAD,
        **more,
    )


def model_to_open() -> str:
    """The model that the environment names, or `model.txt`, which `hub.push_space` writes, or the shipped one."""
    named = os.environ.get("TEXT_DIFFUSERS_MODEL")
    # A variable of the Space can overrule the file without a new upload.
    file = Path(__file__).with_name("model.txt")
    if not named and file.is_file():
        named = file.read_text(encoding="utf-8").strip()
    return named or SHIPPED_MODEL


if __name__ == "__main__":
    launch(model_to_open())
