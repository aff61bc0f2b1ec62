"""The texts of requests, in the terminal or into a file."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from text_diffusers.cli.text_requests import Settings, TextRequest


def write_texts(
    model: str,
    requests: list[TextRequest],
    settings: Settings,
    output: Path | None = None,
    *,
    batch_size: int = 16,
    overwrite: bool = False,
    stream: bool = False,
    dtype: str | None = None,
):
    """Load a model and write the texts of all requests.

    Args:
        model: folder, Hub repository or name.
        output: .jsonl file that takes the texts; by default the terminal does.
        batch_size: requests in one call of the model, for a file.
        overwrite: begin the file anew.
        stream: show the texts after every step.
        dtype: of the weights, by its name; by default the model's own.

    Raises:
        ValueError: if a setting or a request does not fit the model.
    """
    # A stream is the same text again and again, of which a file should hold the last.
    if stream and output is not None:
        raise ValueError("`--stream` must be left out with `--output`.")
    from text_diffusers.cli.writer import Writer, load_pipeline

    # A bar would stand between the texts of a stream, and a file has one of its own.
    shows_progress = output is None and not stream and sys.stderr.isatty()
    pipe = load_pipeline(model, show_progress=shows_progress, dtype=dtype)

    # It takes the pipeline to know which samplers undo its noise.
    if settings.scheduler == "list":
        list_samplers(pipe, settings, requests[0].inputs)
        return

    writer = Writer(pipe, settings)
    if output is not None:
        write_file(writer, requests, output, batch_size, overwrite)
    elif stream:
        show_stream(writer.stream(requests))
    else:
        for texts in writer(requests):
            typer.echo("\n".join(texts))


def list_samplers(pipe: Any, settings: Settings, inputs: Mapping[str, Any]):
    """Print the samplers of a pipeline, and its own settings that hold beside those that are given.

    Args:
        inputs: what is written from.
    """
    from text_diffusers.pipelines.calls.steps import defaults_in_force
    from text_diffusers.samplers import current_sampler, samplers_for

    current = current_sampler(pipe)
    for name, sampler in samplers_for(pipe).items():
        note = " (the default)" if name == current else ""
        typer.echo(f"{name:20}{sampler.summary}{note}")

    # Published models have settings of their own, which none of the names stands for.
    if current is None and pipe.draws_from_scheduler:
        typer.echo(f"By default the model's own {type(pipe.scheduler).__name__}.")
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    defaults = defaults_in_force(pipe, given | dict(inputs))
    if defaults:
        shown = ", ".join(f"{name}={value}" for name, value in defaults.items())
        typer.echo(f"Settings of the model where none are given: {shown}.")


def write_file(
    writer: Any, requests: list[TextRequest], output: Path, batch_size: int, overwrite: bool
):
    """Write into a file, together with other processes if there are any; the exit code is 1 if it holds errors."""
    from text_diffusers.cli.batch_generation import generate_file
    from text_diffusers.cli.writer import process_state

    state = process_state()
    if state.num_processes > 1:
        report(state, f"{state.num_processes} processes write {output}")
    num_refused = generate_file(writer, requests, output, batch_size, overwrite)

    # Scripts see from the exit code that some requests were refused.
    if num_refused:
        report(state, f"{num_refused} of {len(requests)} lines of {output} hold an error")
        raise typer.Exit(1)


def report(state: Any, message: str):
    """Say it once, in the first process."""
    if state.is_main_process:
        typer.echo(f"text-diffusers: {message}", err=True)


def show_stream(frames: Iterable[list[str]]):
    """In a terminal, texts that change in place; else a line for each text after every step."""
    # In a file or a pipe nothing can change in place.
    if not sys.stdout.isatty():
        for texts in frames:
            typer.echo("\n".join(texts))
        return

    # Only a terminal needs rich.
    from rich.live import Live
    from rich.text import Text

    with Live(refresh_per_second=12) as live:
        for texts in frames:
            live.update(Text("\n".join(texts)))
