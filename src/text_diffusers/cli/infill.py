"""`text-diffusers infill`: the gaps of a text."""

from typing import Annotated

import typer

from text_diffusers.cli import options
from text_diffusers.cli.text_requests import Settings, check_files, requests_of
from text_diffusers.cli.write_texts import write_texts

ModelAndText = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL] TEXT", help="the text has [MASK] for every token to fill in"),
]


def infill(
    model_and_text: ModelAndText = None,
    # What is written
    label: options.Label = None,
    guidance_scale: options.GuidanceScale = None,
    guide_by: options.GuideBy = None,
    suppress_tokens: options.SuppressTokens = None,
    num: options.Count = 1,
    # How it is sampled
    scheduler: options.Scheduler = None,
    steps: options.Steps = None,
    order: options.Order = None,
    window: options.Window = None,
    block_length: options.BlockLength = None,
    approximate_cache: options.ApproximateCache = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = 0,
    # Where the texts go
    stream: options.Stream = False,
    input: options.Input = None,
    output: options.Output = None,
    batch_size: options.BatchSize = 16,
    overwrite: options.Overwrite = False,
    # How the model is loaded
    dtype: options.DType = None,
):
    """Fill in the gaps of a text: each [MASK] is one token.

    `text-diffusers infill runs/quickstart "i went to the [MASK] with my [MASK]" --num 5 --temperature 0.7`

    With `--input` the texts are the lines of a .txt file, or objects `{"text": "..."}` of a .jsonl file.
    """
    check_files(input, output)

    # With a file there is at most one word, the model.
    num_texts = 0 if input else 1
    model, texts = options.model_and_rest(model_and_text or [], num_texts)
    requests = requests_of("text", texts, label, input)
    settings = Settings(
        scheduler=scheduler,
        num_inference_steps=steps,
        num_return_sequences=num,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance_scale=guidance_scale,
        guide_by=guide_by,
        suppress_tokens=suppress_tokens or None,
        order=order,
        window=window,
        block_length=block_length,
        approximate_cache=approximate_cache,
        seed=seed,
    )
    write_texts(
        model,
        requests,
        settings,
        output,
        batch_size=batch_size,
        overwrite=overwrite,
        stream=stream,
        dtype=dtype,
    )
