"""The command line: `text-diffusers generate | infill | corrupt | evaluate | publish | demo | env`.

Commands import what they need when they are called: `--help` needs neither torch nor a model.
"""

import io
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

DEFAULT_MODEL = "chat-and-novels"
EXTRAS = {"datasets": "eval", "gradio": "demo", "matplotlib": "demo"}
COLORS = {
    "masked": {"fg": "bright_black"},
    "spare": {"fg": "red"},
    "changed": {"fg": "red", "bold": True},
    "kept": {},
}


class Commands(TyperGroup):
    """Says in one line what is wrong with an input; other errors are ours, and keep their traceback."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


@contextmanager
def one_line_errors():
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, TyperException) as error:
        if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
            typer.echo(f"text-diffusers: {one_line(error)}", err=True)
        raise typer.Exit(2) from error


def one_line(error: Exception) -> str:
    """The message of an error; of a missing package, what installs it."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in EXTRAS:
        return f"this needs {package}: pip install 'text-diffusers[{EXTRAS[package]}]'"
    message = error.format_message() if isinstance(error, TyperException) else str(error)
    return " ".join(message.split()) or type(error).__name__


app = typer.Typer(
    cls=Commands,
    name="text-diffusers",
    help="Diffusion models for text: write, fill in, corrupt, evaluate, publish, show.\n\n"
    "MODEL is a folder, a repository of the Hub, or the name of a model that comes with the package.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

WRITING, SAMPLING, FILES = "What is written", "How it is sampled", "Many texts"
Model = Annotated[str, typer.Argument(metavar="MODEL", help="folder, Hub repository or name")]
Prompts = Annotated[
    list[str] | None,
    typer.Option(help="beginning of a text; may be given several times", rich_help_panel=WRITING),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        help="a text to write from, for models of pairs; may be given several times",
        rich_help_panel=WRITING,
    ),
]
Label = Annotated[
    str | None, typer.Option(help="class label, a number or its name", rich_help_panel=WRITING)
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="strength of label or prompt; 1 is the model itself", rich_help_panel=WRITING
    ),
]
Negative = Annotated[
    str | None, typer.Option(help="what to lead the texts away from", rich_help_panel=WRITING)
]
Length = Annotated[
    int | None, typer.Option(min=1, help="longest text, in tokens", rich_help_panel=WRITING)
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
    int | None, typer.Option(min=1, help="choose among the k likeliest", rich_help_panel=SAMPLING)
]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="choose among this mass", rich_help_panel=SAMPLING),
]
Seed = Annotated[
    int, typer.Option(min=0, help="the same seed, the same texts", rich_help_panel=SAMPLING)
]
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
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def generate(
    model: Model = DEFAULT_MODEL,
    prompt: Prompts = None,
    source: Sources = None,
    label: Label = None,
    guidance_scale: Scale = None,
    negative_prompt: Negative = None,
    max_new_tokens: Length = None,
    num: Count = 1,
    scheduler: Scheduler = None,
    steps: Steps = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    stream: Annotated[
        bool, typer.Option("--stream", help="show the texts after every step")
    ] = False,
    input: Input = None,
    output: Output = None,
    batch_size: BatchSize = 16,
    overwrite: Overwrite = False,
):
    """Write texts: from nothing, from a prompt, or from another text.

    `text-diffusers generate runs/quickstart --prompt "Do you like" --num 3 --scheduler confidence --steps 32`

    Many at once, resumed where it stopped, and by several processes:

    `text-diffusers generate runs/quickstart --input prompts.txt --output texts.jsonl`

    `accelerate launch --multi_gpu --num_processes 2 -m text_diffusers.cli.app generate runs/quickstart --input prompts.txt
    --output texts.jsonl`

    A line of a .jsonl input is `{"prompt": "...", "label": 1}`, or has `"source"` instead. Without `--input`,
    `--output` takes the texts of this command.
    """
    if prompt and source:
        raise ValueError("`--prompt` and `--source` exclude each other.")
    name, given = ("source", source) if source else ("prompt", prompt or [])
    common = (num, temperature, top_k, top_p, guidance_scale, negative_prompt, max_new_tokens, seed)
    requests = asked_for(name, given, label, input)
    write(
        model, requests, (scheduler, steps, *common), stream, (input, output, batch_size, overwrite)
    )


@app.command()
def infill(
    model_and_text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] TEXT", help="the text has [MASK] for every token to fill in"
        ),
    ] = None,
    label: Label = None,
    guidance_scale: Scale = None,
    num: Count = 1,
    scheduler: Scheduler = None,
    steps: Steps = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    stream: Annotated[
        bool, typer.Option("--stream", help="show the texts after every step")
    ] = False,
    input: Input = None,
    output: Output = None,
    batch_size: BatchSize = 16,
    overwrite: Overwrite = False,
):
    """Fill in the gaps of a text: each [MASK] is one token.

    `text-diffusers infill runs/quickstart "i went to the [MASK] with my [MASK]" --num 5 --temperature 0.7`

    With `--input` the texts are the lines of a .txt file, or objects `{"text": "..."}` of a .jsonl file.
    """
    model, texts = model_and_rest(model_and_text or [], 0 if input else 1, "TEXT")
    requests = asked_for("text", texts, label, input)
    common = (num, temperature, top_k, top_p, guidance_scale, None, None, seed)
    write(
        model, requests, (scheduler, steps, *common), stream, (input, output, batch_size, overwrite)
    )


@app.command()
def corrupt(
    model_and_text: Annotated[
        list[str], typer.Argument(metavar="[MODEL] TEXT", help="what is to be corrupted")
    ],
    kernel: Annotated[
        str | None,
        typer.Option(help="absorbing, uniform, hybrid, neighbors ...; default: the model's own"),
    ] = None,
    times: Annotated[
        str, typer.Option(help="between 0, clean, and 1, pure noise")
    ] = "0.2,0.4,0.6,0.8,1",
    seed: Annotated[int, typer.Option(min=0, help="of the noise")] = 0,
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
    model, texts = model_and_rest(model_and_text, 1, "TEXT")
    from text_diffusers.cli.corrupt import corrupted_texts
    from text_diffusers.cli.text_requests import load_pipeline

    noisy = corrupted_texts(load_pipeline(model), texts[0], numbers, kernel, seed)
    for time, pieces in zip(numbers, noisy, strict=True):
        colored = "".join(typer.style(text, **COLORS[state]) for text, state in pieces)
        typer.echo(f"{time:4.2f}  {colored}", color=False if "NO_COLOR" in os.environ else None)


@app.command()
def evaluate(
    model: Model = DEFAULT_MODEL,
    dataset: Annotated[
        str,
        typer.Option(
            help='.txt, .jsonl, .csv or .parquet file, folder, Hub data set, or a name: "chitchat"'
        ),
    ] = "",
    text_column: Annotated[str, typer.Option(help="column of the texts")] = "text",
    label_column: Annotated[
        str | None, typer.Option(help="column of class labels, integers from 0")
    ] = None,
    split: Annotated[str, typer.Option(help="split of a Hub data set")] = "train",
    max_texts: Annotated[
        int, typer.Option(min=1, help="at most so many, spread over the data set")
    ] = 1_000,
    num_times: Annotated[
        int, typer.Option(min=1, help="random times a text; more make the error smaller")
    ] = 8,
    batch_size: Annotated[
        int, typer.Option(min=1, help="noisy texts in one call of the model")
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, help="of the noise")] = 0,
    as_json: AsJson = False,
):
    """Say what texts cost under a model: an upper bound of -log p, in nats per token.

    `text-diffusers evaluate runs/quickstart --dataset held_out.txt --num-times 32`

    Beside the bound stands the entropy of the token frequencies of the same texts, which is the best that a model
    without context could do: a model that is worth something is below it.
    """
    if not dataset:
        raise ValueError(
            "`--dataset` must be given: a file, a folder, a Hub data set or the name of a corpus."
        )
    from dataclasses import asdict

    from text_diffusers.cli.evaluate import evaluate_texts, load_texts, report
    from text_diffusers.cli.text_requests import load_pipeline

    texts, labels = load_texts(dataset, text_column, label_column, split, max_texts)
    pipe = load_pipeline(model)
    found = evaluate_texts(
        pipe, texts, labels, num_times, batch_size, seed, progress=sys.stderr.isatty()
    )
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else report(found))


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="of a trained pipeline")],
    repo_id: Annotated[str, typer.Argument(help="user/name")],
    license: Annotated[
        str, typer.Option(help="of the weights, as the Hub names it: apache-2.0, mit ...")
    ],
    dataset_name: Annotated[
        list[str] | None, typer.Option(help="what it was trained on; may be repeated")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="if the repository is new")] = False,
    space: Annotated[str | None, typer.Option(help="user/name of a Space that shows it")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="holds the token; default: HF_TOKEN, or that of `hf auth login`"),
    ] = None,
    dry_run: Annotated[
        Path | None, typer.Option(help="write what would be uploaded into this folder instead")
    ] = None,
):
    """Put a pipeline on the Hub, with its code and a model card, and a Space beside it.

    `text-diffusers publish runs/quickstart me/mine --license apache-2.0 --dataset-name chitchat --space me/demo`

    `text-diffusers publish runs/quickstart me/mine --license apache-2.0 --dry-run look_at_me`
    """
    token = None if token_file is None else token_file.read_text(encoding="utf-8").strip()
    if dry_run is not None and dry_run.exists() and any(dry_run.iterdir()):
        raise ValueError(
            f"`--dry-run` must name a folder that is empty or not there yet, got {str(dry_run)!r}."
        )
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} holds no pipeline: there is no model_index.json in it.")
    from text_diffusers.cli.text_requests import load_pipeline
    from text_diffusers.hub.export import push_space, push_to_hub, save_with_code
    from text_diffusers.hub.model_card import model_card

    pipe = load_pipeline(str(folder))
    name = repo_id.rpartition("/")[2]
    about: dict[str, Any] = {
        "repo_id": repo_id,
        "license": license,
        "datasets": tuple(dataset_name or ()),
    }
    card = model_card(pipe, folder, name=name, **about)
    if dry_run is not None:
        typer.echo(save_with_code(pipe, dry_run, card, records=folder))
        return
    typer.echo(
        push_to_hub(pipe, repo_id, card, records=folder, token=token, private=private or None)
    )
    if space is not None:
        typer.echo(push_space(space, repo_id, token=token, private=private or None))


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    host: Annotated[
        str | None, typer.Option(help="0.0.0.0 lets other machines in; default: this one only")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="default: the first free one from 7860 on")
    ] = None,
):
    """Open the Space on this machine.

    `text-diffusers demo runs/quickstart --port 8000`
    """
    from text_diffusers.space.app import launch

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log shows the address at once, too
    launch(model, host=host, port=port)


@app.command()
def env(as_json: AsJson = False):
    """Print what a report of a bug needs: versions, devices, threads.

    `text-diffusers env --json`
    """
    from text_diffusers.cli.env import environment

    found = environment()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, value in found.items():
        shown = (
            ", ".join(value)
            if isinstance(value, list)
            else "not installed"
            if value is None
            else value
        )
        typer.echo(f"{name:{width}}  {shown}")


def model_and_rest(words: list[str], count: int, name: str) -> tuple[str, list[str]]:
    """The model, which may be left out, and the `count` words after it."""
    if len(words) not in (count, count + 1):
        raise ValueError(
            f"expected [MODEL]{f' {name}' * count}, got {len(words)} words; put a text in quotes."
        )
    if count and len(words) == count and Path(words[0]).is_dir():
        raise ValueError(f"expected [MODEL]{f' {name}' * count}, got the folder {words[0]} only.")
    return (words[0], words[1:]) if len(words) > count else (DEFAULT_MODEL, words)


def asked_for(name: str, texts: list[str], label: str | None, file: Path | None) -> list:
    """The requests of options, or of a file."""
    from text_diffusers.cli.batch_generation import read_requests
    from text_diffusers.cli.text_requests import TextRequest

    number = int(label) if label is not None and label.isdecimal() else label
    if file is None:
        return [TextRequest(place, {name: text}, number) for place, text in enumerate(texts)] or [
            TextRequest(0, label=number)
        ]
    if texts:
        raise ValueError(f"`--input` excludes `--{name}`: the texts come from {file}.")
    return read_requests(file, name, number)


def write(model: str, requests: list, how: tuple, stream: bool, files: tuple):
    """Write the requests to the terminal or into a file."""
    from text_diffusers.cli.batch_generation import generate_file
    from text_diffusers.cli.text_requests import Settings, Writer, load_pipeline, process_state

    source, output, batch_size, overwrite = files
    if source is not None and output is None:
        raise ValueError(
            "`--output` must be given with `--input`: the .jsonl file that takes the texts."
        )
    if stream and output is not None:
        raise ValueError("`--stream` must be left out with `--output`.")
    names = (
        "scheduler",
        "num_inference_steps",
        "num_return_sequences",
        "temperature",
        "top_k",
        "top_p",
    )
    names += ("guidance_scale", "negative_prompt", "max_new_tokens", "seed")
    pipe = load_pipeline(model, show_progress=output is None and not stream and sys.stderr.isatty())
    settings = dict(zip(names, how, strict=True))
    if settings["scheduler"] == "list":
        return list_samplers(pipe)
    writer = Writer(pipe, Settings(**settings))
    if output is not None:
        state = process_state()
        if state.num_processes > 1 and state.is_main_process:
            typer.echo(f"text-diffusers: {state.num_processes} processes write {output}", err=True)
        refused = generate_file(writer, requests, output, batch_size, overwrite)
        if refused:
            if state.is_main_process:
                typer.echo(
                    f"text-diffusers: {refused} of {len(requests)} lines of {output} hold an error",
                    err=True,
                )
            raise typer.Exit(1)
    elif stream:
        show_stream(writer.stream(requests))
    else:
        for text in (text for texts in writer(requests) for text in texts):
            typer.echo(text)


def list_samplers(pipe: Any):
    """Print the samplers of a pipeline."""
    from text_diffusers.samplers import current_sampler, samplers_for

    own = current_sampler(pipe)
    for name, sampler in samplers_for(pipe).items():
        typer.echo(f"{name:20}{sampler.summary}{' (the default)' if name == own else ''}")


def show_stream(frames: Any):
    """In a terminal, texts that change in place; else a line for each text after every step."""
    if not sys.stdout.isatty():
        for texts in frames:
            typer.echo("\n".join(texts))
        return
    from rich.live import Live
    from rich.text import Text

    with Live(refresh_per_second=12) as live:
        for texts in frames:
            live.update(Text("\n".join(texts)))


def main():
    """The console script."""
    app(args=sys.argv[1:] or ["--help"], prog_name="text-diffusers")


if __name__ == "__main__":
    main()
