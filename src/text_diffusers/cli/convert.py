"""`text-diffusers convert`: a model that others published, as a folder of a pipeline."""

from pathlib import Path
from typing import Annotated

import typer

from text_diffusers.cli import options

# What is converted, and where to
Source = Annotated[
    str, typer.Argument(metavar="MODEL", help="folder or Hub repository, as its authors left it")
]
Folder = Annotated[Path, typer.Argument(help="to be written; new or empty")]

# How it is read
Family = Annotated[
    str | None, typer.Option(help="what it is, where nothing in it says so, such as diffullama")
]
BlockLength = Annotated[
    int | None, typer.Option(min=1, help="tokens of a block, for models that write in blocks")
]
Revision = Annotated[str | None, typer.Option(help="commit, tag or branch of the repository")]


def convert(
    model: Source,
    folder: Folder,
    dtype: options.DType = None,
    family: Family = None,
    block_length: BlockLength = None,
    revision: Revision = None,
):
    """Write a diffusion language model that others published as a folder of a pipeline.

    `text-diffusers convert GSAI-ML/LLaDA-8B-Instruct llada --dtype bfloat16`

    No code of its authors is run. transformers and diffusers read the folder by themselves, and it can be trained
    further and published.
    """
    # What can be seen to be wrong is said before anything is downloaded.
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`folder` must be new or empty, got {str(folder)!r}.")

    from transformers.utils import logging

    from text_diffusers.hub.published.checkpoint import stored_tensors
    from text_diffusers.hub.published.convert import convert as write_pipeline
    from text_diffusers.hub.published.families import blueprint_of
    from text_diffusers.hub.published.loader import as_dtype
    from text_diffusers.hub.published.repository import (
        commit_of,
        published_config,
        published_folder,
    )

    weight_type = as_dtype(dtype)
    hub_arguments = {} if revision is None else {"revision": revision}

    # 1. Recognise it by its configuration and the names of its tensors, which takes no time
    source = published_folder(model, with_tokenizer=True, family=family, **hub_arguments)
    # The commit that was looked at, whatever is pushed meanwhile.
    commit = commit_of(source)
    if commit is not None:
        hub_arguments["revision"] = commit
    if (source / "model_index.json").exists():
        raise ValueError(f"`model` must be no saved pipeline, which {model} is already.")
    blueprint = blueprint_of(published_config(source), stored_tensors(source), model, family)
    typer.echo(f"family      {blueprint.family}")
    typer.echo(f"licence     {blueprint.licence or 'unknown; ask where it was published'}")

    # 2. Read and write the weights; the bar of transformers is for a terminal.
    logging.disable_progress_bar()
    pipe = write_pipeline(
        model,
        folder,
        weight_type,
        family=family,
        block_length=block_length,
        **hub_arguments,
    )

    # 3. What is there now
    parameters = list(pipe.denoiser.parameters())
    num_parameters = sum(parameter.numel() for parameter in parameters)
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    typer.echo(f"parameters  {num_parameters:,}")
    typer.echo(f"dtype       {', '.join(dtypes)}")
    typer.echo(f"written to  {folder}")
    typer.echo(f'load it by  {type(pipe).__name__}.from_pretrained("{folder}")')
