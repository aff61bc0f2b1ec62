"""`text-diffusers demo`: the Space on this machine."""

import io
import sys
from typing import Annotated

import typer

from text_diffusers.cli import options

Host = Annotated[
    str | None, typer.Option(help="0.0.0.0 lets other machines in; default: this one only")
]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65_535, help="default: the first free one from 7860 on"),
]


def demo(
    model: options.Model = options.DEFAULT_MODEL,
    host: Host = None,
    port: Port = None,
    dtype: options.DType = None,
):
    """Open the Space on this machine; a model with a chat template is first of all talked to.

    `text-diffusers demo runs/quickstart --port 8000`
    """
    # gradio is an extra, which only this command needs.
    from text_diffusers.space.app import launch

    # A log shows the address at once, too.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    launch(model, host=host, port=port, dtype=dtype)
