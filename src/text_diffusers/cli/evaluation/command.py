"""`text-diffusers evaluate`: bounds of texts under a model, and figures of the texts that it writes."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from text_diffusers.cli import options

written_option = partial(typer.Option, rich_help_panel="What the model writes")
row_option = partial(typer.Option, rich_help_panel="Rows of joined texts")

# The texts
DataSet = Annotated[
    str,
    typer.Option(
        "--dataset",
        "--texts",
        help="file or folder of .txt, .csv, .tsv, .json, .jsonl or .parquet, or a Hub data set",
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
MaxTexts = Annotated[
    int, typer.Option(min=1, help="at most so many texts, or rows, spread over the data set")
]

# How closely the bound is estimated
NumTimes = Annotated[
    int,
    typer.Option(
        min=1, help="random times a text, of latents draws of these; more make the error smaller"
    ),
]
NoisyBatch = Annotated[int, typer.Option(min=1, help="texts in one call of the model")]

# The model
Lora = Annotated[
    str | None,
    typer.Option(help="adapter of the denoiser that is loaded first: a folder or a Hub repository"),
]

# What the model writes
Generate = Annotated[int | None, written_option(min=2, help="write so many texts and judge them")]
Written = Annotated[
    Path | None, written_option(help="judge the texts of this file instead of writing")
]
SaveTexts = Annotated[Path | None, written_option(help=".jsonl file that takes the texts")]
Steps = Annotated[
    int | None,
    written_option("--num-inference-steps", "--steps", min=1, help="steps of the sampler"),
]
JudgeName = Annotated[
    str | None,
    written_option(
        help="causal language model, by folder or Hub repository, or words:FILE, n-grams of words that learn from it"
    ),
]
Reference = Annotated[
    str | None, written_option(help="real texts to compare with; default: those of --dataset")
]
Encoder = Annotated[
    str | None,
    written_option(
        help="sentence encoder of the distances, by folder or Hub repository, or none; "
        "default with --reference: sentence-transformers/all-MiniLM-L6-v2"
    ),
]

# Rows of joined texts
Wrap = Annotated[
    int | None,
    row_option(min=2, help="tokens of a row: texts are joined, and cut into full rows"),
]
WrapEnds = Annotated[
    bool, row_option("--wrap-ends/--no-wrap-ends", help="put an end behind each joined text")
]
WrapFrame = Annotated[
    bool, row_option("--wrap-frame", help="begin and end each row as MDLM does; both count")
]
ZeroShot = Annotated[
    str | None,
    row_option(
        help="published sets, with commas: wikitext, lambada, ptb, lm1b, ag_news, pubmed, arxiv"
    ),
]
ZeroShotFolder = Annotated[
    Path | None, row_option(help="read them from files NAME.jsonl and so on of this folder")
]


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
    lora: Lora = None,
    # What the model writes
    generate: Generate = None,
    written: Written = None,
    save_texts: SaveTexts = None,
    num_inference_steps: Steps = None,
    judge: JudgeName = None,
    reference: Reference = None,
    encoder: Encoder = None,
    # Rows of joined texts
    wrap: Wrap = None,
    wrap_ends: WrapEnds = True,
    wrap_frame: WrapFrame = False,
    zero_shot: ZeroShot = None,
    zero_shot_folder: ZeroShotFolder = None,
):
    """Say what texts cost under a model, an upper bound of -log p in nats per token, and what its own texts are like.

    `text-diffusers evaluate runs/quickstart --dataset held_out.txt --num-times 32`

    Beside the bound stands the entropy of the token frequencies of the same texts, which is the best that a model
    without context could do: a model that is worth something is below it. Counted are the tokens that the model
    writes, ends included, and nothing that is given.

    With `--source-column`, `--prompt-column` or `--label-column` the bound is that of each text given its source, its
    beginning or its label. Of conversations, columns `messages`, `conversations`, or `prompt` and `completion`, it is
    that of each answer given what was said before:

    `text-diffusers evaluate runs/chat --dataset chats.jsonl`

    With `--generate` the model writes texts, from the same beginnings if there are any; they are judged beside as many
    real ones, and with `--reference` their distances from real texts are measured beside those of real ones:

    `text-diffusers evaluate runs/quickstart --generate 200 --judge gpt2-large --reference held_out.txt`

    `--zero-shot` takes sets that the field compares by, as rows of `--wrap` tokens:

    `text-diffusers evaluate runs/quickstart --zero-shot wikitext,ptb --wrap 128`

    Several processes share the work, and leave the same figures:

    `accelerate launch --multi_gpu --num_processes 2 -m text_diffusers.cli evaluate runs/quickstart --dataset
    held_out.txt`
    """
    # Not a required option: the message here says what a data set can be.
    if not dataset and generate is None and written is None and zero_shot is None:
        raise ValueError(
            "`--dataset` must be given: a file, a folder or a Hub data set; or one of `--generate`, `--written` and "
            "`--zero-shot`."
        )
    from text_diffusers.cli.evaluation.run import EvaluationOptions, evaluate_model
    from text_diffusers.cli.evaluation.tables import report_of

    record = evaluate_model(
        EvaluationOptions(
            model=model,
            dataset=dataset,
            text_column=text_column,
            label_column=label_column,
            split=split,
            max_texts=max_texts,
            num_times=num_times,
            batch_size=batch_size,
            seed=seed,
            source_column=source_column,
            prompt_column=prompt_column,
            dtype=dtype,
            lora=lora,
            generate=generate,
            written=written,
            save_texts=save_texts,
            num_inference_steps=num_inference_steps,
            judge=judge,
            reference=reference,
            encoder=encoder,
            wrap=wrap,
            wrap_ends=wrap_ends,
            wrap_frame=wrap_frame,
            zero_shot=zero_shot.split(",") if zero_shot else [],
            zero_shot_folder=zero_shot_folder,
        )
    )
    # Of several processes only the first speaks.
    if record is not None:
        typer.echo(json.dumps(record.as_json(), indent=2) if as_json else report_of(record))
