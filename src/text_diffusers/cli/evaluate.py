"""`text-diffusers evaluate`: a bound of -log p of texts under a model."""

import json
import sys
from typing import Annotated

import typer

from text_diffusers.cli import options

# The texts
DataSet = Annotated[
    str,
    typer.Option(
        help="file or folder of .txt, .csv, .tsv, .json, .jsonl or .parquet, or a Hub data set"
    ),
]
TextColumn = Annotated[str, typer.Option(help="column of the texts")]
LabelColumn = Annotated[
    str | None, typer.Option(help="column of class labels: numbers from 0, or names")
]
SourceColumn = Annotated[
    str | None, typer.Option(help="column of the texts from which the others are written")
]
PromptColumn = Annotated[
    str | None, typer.Option(help="column of what stands before the texts, their beginnings")
]
Split = Annotated[str, typer.Option(help="split of a folder or a Hub data set")]
MaxTexts = Annotated[int, typer.Option(min=1, help="at most so many, spread over the data set")]

# How closely the bound is estimated
NumTimes = Annotated[
    int, typer.Option(min=1, help="random times a text; more make the error smaller")
]
NoisyBatch = Annotated[int, typer.Option(min=1, help="noisy texts in one call of the model")]


def evaluate(
    model: options.Model = options.DEFAULT_MODEL,
    dataset: DataSet = "",
    text_column: TextColumn = "text",
    label_column: LabelColumn = None,
    split: Split = "train",
    max_texts: MaxTexts = 1_000,
    num_times: NumTimes = 8,
    batch_size: NoisyBatch = 64,
    seed: options.NoiseSeed = 0,
    as_json: options.AsJson = False,
    source_column: SourceColumn = None,
    prompt_column: PromptColumn = None,
    dtype: options.DType = None,
):
    """Say what texts cost under a model: an upper bound of -log p, in nats per token.

    `text-diffusers evaluate runs/quickstart --dataset held_out.txt --num-times 32`

    Beside the bound stands the entropy of the token frequencies of the same texts, which is the best that a model
    without context could do: a model that is worth something is below it. Counted are the tokens that the model
    writes, ends included, and nothing that is given.

    With `--source-column`, `--prompt-column` or `--label-column` the bound is that of each text given its source, its
    beginning or its label. Of conversations, columns `messages`, `conversations`, or `prompt` and `completion`, it is
    that of each answer given what was said before:

    `text-diffusers evaluate runs/chat --dataset chats.jsonl`
    """
    # Not a required option: the message here says what a data set can be.
    if not dataset:
        raise ValueError("`--dataset` must be given: a file, a folder or a Hub data set.")
    from text_diffusers.cli.text_bounds import evaluate_texts, load_texts, report
    from text_diffusers.cli.writer import load_pipeline

    # The texts first: a mistake in them shows before a model is loaded. Only labels need the names that it has.
    pipe = None if label_column is None else load_pipeline(model, dtype=dtype)
    names = () if pipe is None else pipe.label_names
    judged = load_texts(
        dataset, text_column, label_column, split, max_texts, names, source_column, prompt_column
    )
    evaluation = evaluate_texts(
        pipe or load_pipeline(model, dtype=dtype),
        judged.texts,
        num_times=num_times,
        batch_size=batch_size,
        seed=seed,
        progress=sys.stderr.isatty(),
        **judged.conditions,
    )
    typer.echo(json.dumps(evaluation.record(), indent=2) if as_json else report(evaluation))
