"""`text-diffusers generate`: texts from nothing, from a prompt, or from another text."""

from typing import Annotated

from text_diffusers.cli import options
from text_diffusers.cli.text_requests import Settings, check_files, requests_of
from text_diffusers.cli.write_texts import write_texts

# Options of this command alone; those that it shares with `infill` are in `options`.
Prompts = Annotated[
    list[str] | None,
    options.writing_option(help="beginning of a text; may be given several times"),
]
Sources = Annotated[
    list[str] | None,
    options.writing_option(
        help="a text to write from, for models of pairs; may be given several times"
    ),
]
NegativePrompt = Annotated[
    str | None, options.writing_option(help="what to lead the texts away from")
]


def generate(
    model: options.Model = options.DEFAULT_MODEL,
    # What is written
    prompt: Prompts = None,
    source: Sources = None,
    label: options.Label = None,
    guidance_scale: options.GuidanceScale = None,
    guide_by: options.GuideBy = None,
    negative_prompt: NegativePrompt = None,
    max_new_tokens: options.MaxNewTokens = None,
    min_new_tokens: options.MinNewTokens = None,
    suppress_tokens: options.SuppressTokens = None,
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    choices: options.Choices = None,
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
    """Write texts: from nothing, from a prompt, or from another text.

    `text-diffusers generate runs/quickstart --prompt "Do you like" --num 3 --scheduler confidence --steps 32`

    Many at once, resumed where it stopped, and by several processes:

    `text-diffusers generate runs/quickstart --input prompts.txt --output texts.jsonl`

    `accelerate launch --multi_gpu --num_processes 2 -m text_diffusers.cli generate runs/quickstart --input prompts.txt
    --output texts.jsonl`

    What is written behind the prompt can be made to match a regular expression, to be JSON of a schema, or one of some
    choices:

    `text-diffusers generate --prompt "do you?" --regex " (yes|no), [a-z ]+[.!]"`

    A line of a .jsonl input is `{"prompt": "...", "label": 1}`, or has `"source"` instead, or the `"messages"` of a
    conversation. Without `--input`, `--output` takes the texts of this command.

    Models that others published are opened as they are:

    `text-diffusers generate GSAI-ML/LLaDA-8B-Base --prompt "The capital of" --max-new-tokens 64 --block-length 32`
    """
    # One call of the pipeline takes the texts of one argument.
    if prompt and source:
        raise ValueError("`--prompt` and `--source` exclude each other.")
    check_files(input, output)
    name = "source" if source else "prompt"
    requests = requests_of(name, source or prompt or [], label, input)
    settings = Settings(
        scheduler=scheduler,
        num_inference_steps=steps,
        num_return_sequences=num,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance_scale=guidance_scale,
        guide_by=guide_by,
        negative_prompt=negative_prompt,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        suppress_tokens=suppress_tokens or None,
        regex=regex,
        json_schema=None if json_schema is None else json_schema.read_text(encoding="utf-8"),
        choices=None if choices is None else choices.split(","),
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
