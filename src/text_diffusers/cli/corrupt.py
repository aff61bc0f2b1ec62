"""`text-diffusers corrupt`: the forward process in a terminal."""

import os
from typing import Annotated

import typer

from text_diffusers.cli import options

# How typer styles the tokens of each state of `noisy_text`
COLORS = {
    "kept": {},
    "changed": {"fg": "red", "bold": True},
    "masked": {"fg": "bright_black"},
    "spare": {"fg": "red"},
}

ModelAndText = Annotated[
    list[str], typer.Argument(metavar="[MODEL] TEXT", help="the text is what is to be corrupted")
]
Kernel = Annotated[
    str | None,
    typer.Option(help="absorbing, uniform, hybrid, neighbors ...; default: the model's own"),
]
Times = Annotated[str, typer.Option(help="between 0, clean, and 1, pure noise")]


def corrupt(
    model_and_text: ModelAndText,
    kernel: Kernel = None,
    times: Times = "0.2,0.4,0.6,0.8,1",
    seed: options.NoiseSeed = 0,
):
    """Show the forward process: what noise makes of a text.

    `text-diffusers corrupt runs/quickstart "the cat sat on the mat" --times 0.2,0.5,0.8 --kernel uniform`

    In a terminal, masks are grey and exchanged words red.
    """
    try:
        numbers = [float(time) for time in times.split(",")]
    except ValueError as error:
        raise ValueError(
            f"`--times` must be numbers with commas between them, got {times!r}."
        ) from error
    model, [text] = options.model_and_rest(model_and_text, num_texts=1)

    from text_diffusers.cli.noisy_text import corrupted_texts
    from text_diffusers.cli.writer import load_pipeline

    # In a terminal each state has a color; typer leaves colors out elsewhere, NO_COLOR everywhere.
    noisy_texts = corrupted_texts(load_pipeline(model), text, numbers, kernel, seed)
    for time, pieces in zip(numbers, noisy_texts, strict=True):
        colored = "".join(typer.style(words, **COLORS[state]) for words, state in pieces)
        typer.echo(f"{time:4.2f}  {colored}", color=False if "NO_COLOR" in os.environ else None)
