"""The command line: `text-diffusers generate | chat | infill | corrupt | train | evaluate | lm-eval | convert | ...`.

Commands import torch and models when they are called: help needs neither.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from text_diffusers.cli.chat.command import chat
from text_diffusers.cli.convert import convert
from text_diffusers.cli.corrupt import corrupt
from text_diffusers.cli.demo import demo
from text_diffusers.cli.env import env, installed_version
from text_diffusers.cli.evaluation.command import evaluate
from text_diffusers.cli.generate import generate
from text_diffusers.cli.harness.command import PASSED_ON, lm_eval
from text_diffusers.cli.infill import infill
from text_diffusers.cli.publish import publish
from text_diffusers.cli.train import PASSED_ON as PASSED_TO_RECIPES
from text_diffusers.cli.train import train

# Packages that are not always installed, and the extra of this package that brings each
EXTRAS = {"datasets": "eval", "gradio": "demo", "lm_eval": "eval", "matplotlib": "demo"}
HELP = """Diffusion models for text: write, chat, fill in, corrupt, train, evaluate, convert, publish, show.

MODEL is a folder, a repository of the Hub, or the name of a model that comes with the package. Diffusion language
models that others published are opened as they are."""


class Commands(TyperGroup):
    """Says in one line what is wrong with an input; other errors are ours, and keep their traceback."""

    # Errors of parsing the options come up here, those of the command itself in `invoke`.
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


@contextmanager
def one_line_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Whoever reads the output has enough.
        raise
    except (ValueError, OSError, ImportError, TyperException) as error:
        # Of several processes only the first speaks.
        if os.environ.get("RANK", "0") == "0":
            typer.echo(f"text-diffusers: {one_line(error)}", err=True)

        # 2 is the exit code of wrong usage, as of other programs.
        raise typer.Exit(2) from error


def one_line(error: Exception) -> str:
    """The message of an error; of a missing package, the command that installs it."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRAS:
            return f"this needs {package}: pip install 'text-diffusers[{EXTRAS[package]}]'"

    # A mistyped option comes with names that are spelt like it, where even the dashes count.
    options = getattr(error, "possibilities", None) or []
    name = getattr(error, "option_name", "")
    meant = get_close_matches(name.strip("-"), [option.strip("-") for option in options], n=1)
    if meant:
        return f"`{name}` is no option here; did you mean `--{meant[0]}`?"

    message = error.format_message() if isinstance(error, TyperException) else str(error)

    # An error without a message is told by its name.
    return " ".join(message.split()) or type(error).__name__


def show_versions(wanted: bool):
    """Print the versions of the package and of what it runs on, and end the program."""
    if not wanted:
        return

    # Read from what is installed: importing torch would take seconds.
    others = ("torch", "diffusers", "transformers")
    versions = ", ".join(f"{package} {installed_version(package)}" for package in others)
    typer.echo(f"text-diffusers {installed_version('text-diffusers')}\n{versions}")
    raise typer.Exit


def with_dashes(name: str) -> str:
    """The name of an option as it is spelt here; the recipes spell theirs with `_`."""
    return name.replace("_", "-")


# Errors of ours keep Python's own traceback, which a report can quote.
app = typer.Typer(
    cls=Commands,
    name="text-diffusers",
    help=HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"token_normalize_func": with_dashes},
)


@app.callback(help=HELP)
def text_diffusers(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="print the versions of this package and of what it runs on",
            callback=show_versions,
            is_eager=True,
        ),
    ] = False,
):
    """What all commands share."""


for command in (generate, chat, infill, corrupt, evaluate, convert, publish, demo, env):
    app.command()(command)
app.command("lm-eval", context_settings=PASSED_ON)(lm_eval)
app.command("train", context_settings=PASSED_TO_RECIPES)(train)


def main():
    """The console script."""
    # The name is given, since `python -m` would show that of a file.
    app(args=sys.argv[1:] or ["--help"], prog_name="text-diffusers")
