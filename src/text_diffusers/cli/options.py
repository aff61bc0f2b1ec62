"""Options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "chat-and-novels"

# Panels of the help of `generate` and `infill`
WRITING = "What is written"
SAMPLING = "How it is sampled"
FILES = "Many texts"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="folder, Hub repository or name")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Stream = Annotated[bool, typer.Option("--stream", help="show the texts after every step")]

Label = Annotated[
    str | None,
    typer.Option(help="class label, a number or its name", rich_help_panel=WRITING),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        help="strength of label or prompt; 1 is the model itself", rich_help_panel=WRITING
    ),
]
Count = Annotated[int, typer.Option(min=1, help="texts for each prompt", rich_help_panel=WRITING)]

Scheduler = Annotated[
    str | None,
    typer.Option(
        help="ancestral, confidence, ddim ...; `list` shows all", rich_help_panel=SAMPLING
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="steps of the scheduler", rich_help_panel=SAMPLING)
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0, help="below 1 bolder choices become rarer; 0 is greedy", rich_help_panel=SAMPLING
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(min=1, help="choose among the k likeliest", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="choose among this mass", rich_help_panel=SAMPLING),
]
Seed = Annotated[
    int, typer.Option(min=0, help="the same seed, the same texts", rich_help_panel=SAMPLING)
]
NoiseSeed = Annotated[int, typer.Option(min=0, help="of the noise")]

Input = Annotated[
    Path | None,
    typer.Option(
        help=".txt, one request a line, or .jsonl, one object a line", rich_help_panel=FILES
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help=".jsonl; continued if it was begun with the same settings", rich_help_panel=FILES
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="requests in one call of the model", rich_help_panel=FILES)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="begin OUTPUT anew", rich_help_panel=FILES)
]


def model_and_text(words: list[str]) -> tuple[str, str]:
    """`[MODEL] TEXT`: the model, which may be left out, and the text."""
    if len(words) not in (1, 2):
        raise ValueError(f"expected [MODEL] TEXT, got {len(words)} words; put the text in quotes.")
    if len(words) == 1 and Path(words[0]).is_dir():
        raise ValueError(f"expected [MODEL] TEXT, got the folder {words[0]} only.")
    return (DEFAULT_MODEL, words[0]) if len(words) == 1 else (words[0], words[1])
