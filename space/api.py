"""The page for programs: `/write` and `/fill` for `gradio_client`, under the limits that visitors have.

A call waits in the same queue as the buttons, takes its turn with them, and its values pass the same checks.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts.interface import MODEL, Page, readable_errors
from text_diffusers.space.parts.running import Run
from text_diffusers.space.parts.texts import LANGUAGES
from text_diffusers.space.tabs.fill import FillRequest, fill_gaps
from text_diffusers.space.tabs.write import WriteRequest, write_texts

EXAMPLE = """```python
from gradio_client import Client

page = Client("http://127.0.0.1:7860")
result = page.predict(prompt="She was", seed=3, api_name="/write")
print(result["texts"])
```"""


def build_api(page: Page):
    """A note on the page about its functions, and the functions; a model without the tabs Write and Fill in has none.

    To be called when the tabs are there, whose first values are those of the functions.
    """
    if not {"write", "fill"} <= set(page.linked):
        return
    with page.add(gr.Accordion, {"label": "api.title"}, open=False, elem_id="api"):
        page.markdown("api.lead", "hint")
        gr.Markdown(EXAMPLE)

    functions = (writing_function(page), filling_function(page))
    for function in functions:
        gr.api(
            function,
            api_name=function.__name__,
            concurrency_id=MODEL["concurrency_id"],
            concurrency_limit=MODEL["concurrency_limit"],
        )


def writing_function(page: Page) -> Callable:
    """`/write`, whose defaults are what the tab Write begins with."""
    first = page.linked["write"].first_values

    # Its hints and defaults are what the API page of Gradio and `Client.view_api` show.
    def write(
        prompt: str = "",
        label: int = first["label"],
        length: int = first["length"],
        steps: int = first["steps"],
        sampler: str = first["sampler"],
        temperature: float = first["temperature"],
        count: int = 1,
        seed: int = 0,
        language: str = LANGUAGES[0],
    ) -> dict:
        with readable_errors(language):
            asked = WriteRequest(
                prompt=prompt,
                label=label,
                length=length,
                steps=steps,
                sampler=sampler,
                window=first["window"],
                temperature=temperature,
                count=count,
                seed=seed,
            )
            address = page.linked["write"].address("write", vars(asked))
            return result_of(write_texts(page, asked), address)

    return write


def filling_function(page: Page) -> Callable:
    """`/fill`, whose defaults are what the tab Fill in begins with."""
    first = page.linked["fill"].first_values

    def fill(
        text: str,
        label: int = first["label"],
        steps: int = first["steps"],
        sampler: str = first["sampler"],
        temperature: float = first["temperature"],
        count: int = 1,
        seed: int = 0,
        language: str = LANGUAGES[0],
    ) -> dict:
        with readable_errors(language):
            asked = FillRequest(
                text=text,
                label=label,
                steps=steps,
                sampler=sampler,
                window=first["window"],
                temperature=temperature,
                count=count,
                seed=seed,
            )
            address = page.linked["fill"].address("fill", vars(asked))
            return result_of(fill_gaps(page, asked), address)

    return fill


def result_of(runs: Iterator[Run], address: str) -> dict[str, Any]:
    """The texts of a run, what they cost, and the address that opens the page with their settings.

    Raises:
        Refusal: if time ran out.
    """
    # A program is sent nothing until all is done.
    last = Run(0)
    for run in runs:
        last = run
    if last.output is None:
        raise Refusal("error.time")
    return {
        "texts": last.output.texts,
        "steps": len(last.frames) - 1,
        "calls": last.cost.calls,
        "seconds": round(last.cost.seconds, 3),
        "address": address,
    }
