"""`text-diffusers chat`: a conversation in the terminal."""

from typing import Annotated

import typer

from text_diffusers.cli import options
from text_diffusers.cli.text_requests import Settings

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="folder, Hub repository or name; with a chat template"),
]
System = Annotated[
    str | None, options.writing_option(help="instruction that stands before the conversation")
]


def chat(
    model: Model,
    # What is written
    system: System = None,
    max_new_tokens: options.MaxNewTokens = None,
    min_new_tokens: options.MinNewTokens = None,
    suppress_tokens: options.SuppressTokens = None,
    guidance_scale: options.GuidanceScale = None,
    guide_by: options.GuideBy = None,
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
    # How the model is loaded
    dtype: options.DType = None,
):
    """Talk to a model, and watch its replies settle.

    `text-diffusers chat GSAI-ML/LLaDA-8B-Instruct --max-new-tokens 128 --block-length 32 --dtype bfloat16`

    `/clear` begins anew, `/system TEXT` sets the instruction, `/exit` ends; Ctrl-C stops a reply. Without a terminal,
    each line of the input is a turn:

    `echo "What is diffusion?" | text-diffusers chat GSAI-ML/LLaDA-8B-Instruct`
    """
    settings = Settings(
        scheduler=scheduler,
        num_inference_steps=steps,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance_scale=guidance_scale,
        guide_by=guide_by,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        suppress_tokens=suppress_tokens or None,
        order=order,
        window=window,
        block_length=block_length,
        approximate_cache=approximate_cache,
        seed=seed,
    )
    from text_diffusers.cli.chat.conversation import Conversation
    from text_diffusers.cli.chat.terminal import talk
    from text_diffusers.cli.write_texts import list_samplers
    from text_diffusers.cli.writer import load_pipeline

    pipe = load_pipeline(model, dtype=dtype)
    if scheduler == "list":
        list_samplers(pipe, settings, inputs={})
        return
    talk(Conversation(pipe, settings, system))
