"""Options that several commands share, with their help."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

# Opened when no model is named; it comes with the package.
DEFAULT_MODEL = "four-voices"

# Panels of the help of `generate` and `infill`
writing_option = partial(typer.Option, rich_help_panel="What is written")
sampling_option = partial(typer.Option, rich_help_panel="How it is sampled")
file_option = partial(typer.Option, rich_help_panel="Many texts")

# For several commands, outside of the panels
Model = Annotated[str, typer.Argument(metavar="MODEL", help="folder, Hub repository or name")]
DType = Annotated[
    str | None,
    typer.Option("--dtype", help="of the weights, such as bfloat16; default: the model's own"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Stream = Annotated[bool, typer.Option("--stream", help="show the texts after every step")]
NoiseSeed = Annotated[int, typer.Option(min=0, help="of the noise")]

# What is written
Label = Annotated[str | None, writing_option(help="class label, a number or its name")]
GuidanceScale = Annotated[
    float | None, writing_option(help="strength of label or prompt; 1 is the model itself")
]
GuideBy = Annotated[
    str | None,
    writing_option(help="condition that guidance strengthens: label, prompt, both, masked_prompt"),
]
Count = Annotated[int, writing_option(min=1, help="texts for each prompt")]
MaxNewTokens = Annotated[int | None, writing_option(min=1, help="longest text, in tokens")]
MinNewTokens = Annotated[
    int | None, writing_option(min=0, help="tokens that are written before a text may end")
]
SuppressTokens = Annotated[
    list[str] | None,
    writing_option(help="name of a token that is never written; may be given several times"),
]
Regex = Annotated[
    str | None, writing_option(help="regular expression that what is written must match as a whole")
]
JsonSchema = Annotated[
    Path | None, writing_option(help="file with a JSON schema; what is written is JSON of it")
]
Choices = Annotated[
    str | None, writing_option(help="what is written is one of these, with commas between them")
]

# How it is sampled; `None` leaves it to the pipeline
Scheduler = Annotated[
    str | None, sampling_option(help="ancestral, confidence, ddim ...; `list` shows all")
]
Steps = Annotated[
    int | None,
    sampling_option("--steps", "--num-inference-steps", min=1, help="steps of the scheduler"),
]
Order = Annotated[
    str | None,
    sampling_option(
        help="which tokens come first: confidence, entropy, margin, random, left_to_right"
    ),
]
Window = Annotated[
    int | None,
    sampling_option(
        min=1, help="only the first so many open tokens may be written; it moves on with the text"
    ),
]
BlockLength = Annotated[
    int | None,
    sampling_option(
        min=1, help="tokens of a block, each finished, in `--steps` of its own, before the next"
    ),
]
ApproximateCache = Annotated[
    str | None,
    sampling_option(help="faster, with `--block-length`: prefix or dual; not quite the same text"),
]
Temperature = Annotated[
    float | None, sampling_option(min=0, help="below 1 bolder choices become rarer; 0 is greedy")
]
TopK = Annotated[int | None, sampling_option(min=1, help="choose among the k likeliest")]
TopP = Annotated[float | None, sampling_option(min=0, max=1, help="choose among this mass")]
Seed = Annotated[int, sampling_option(min=0, help="the same seed, the same texts")]

# Many texts
Input = Annotated[
    Path | None, file_option(help=".txt, one request a line, or .jsonl, one object a line")
]
Output = Annotated[
    Path | None, file_option(help=".jsonl; continued if it was begun with the same settings")
]
BatchSize = Annotated[int, file_option(min=1, help="requests in one call of the model")]
Overwrite = Annotated[bool, file_option("--overwrite", help="begin OUTPUT anew")]


def model_and_rest(words: list[str], num_texts: int) -> tuple[str, list[str]]:
    """`[MODEL] TEXT ...`: the model, which may be left out, and the texts.

    Raises:
        ValueError: if there are more words or fewer, or a folder in the place of the text.
    """
    expected = "[MODEL]" + " TEXT" * num_texts
    if len(words) not in (num_texts, num_texts + 1):
        raise ValueError(f"expected {expected}, got {len(words)} words; put a text in quotes.")

    # One word more than texts: the first is the model.
    if len(words) > num_texts:
        return words[0], words[1:]

    # A model alone, whose text was forgotten, would be taken for the text.
    if words and Path(words[0]).is_dir():
        raise ValueError(f"expected {expected}, got the folder {words[0]} only.")
    return DEFAULT_MODEL, words
