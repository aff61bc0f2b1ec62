"""`text-diffusers publish`: a pipeline on the Hub, and a Space beside it."""

from pathlib import Path
from typing import Annotated

import typer

# As in `pipelines.loading`, which help does not wait for
INDEX = "model_index.json"
CHECKPOINT_CONFIGS = ("config.json", "training_args.json")

# What is published, and where
Folder = Annotated[Path, typer.Argument(help="of a trained pipeline")]
RepoId = Annotated[str, typer.Argument(help="user/name")]

# What the card says of it
License = Annotated[
    str, typer.Option(help="of the weights, as the Hub names it: apache-2.0, mit ...")
]
DataSets = Annotated[list[str] | None, typer.Option(help="what it was trained on; may be repeated")]

# How it is uploaded
Private = Annotated[bool, typer.Option("--private", help="if the repository is new")]
Space = Annotated[str | None, typer.Option(help="user/name of a Space that shows it")]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="holds the token; default: HF_TOKEN, or that of `hf auth login`"),
]
DryRun = Annotated[
    Path | None, typer.Option(help="write what would be uploaded into this folder instead")
]


def publish(
    folder: Folder,
    repo_id: RepoId,
    license: License,
    dataset_name: DataSets = None,
    private: Private = False,
    space: Space = None,
    token_file: TokenFile = None,
    dry_run: DryRun = None,
):
    """Put a pipeline on the Hub, with its code and a model card, and a Space beside it.

    `text-diffusers publish runs/quickstart me/mine --license apache-2.0 --dataset-name chitchat --space me/demo`

    `text-diffusers publish runs/quickstart me/mine --license apache-2.0 --dry-run look_at_me`
    """
    # What can be seen to be wrong is said before the model is loaded.
    token = None if token_file is None else token_file.read_text(encoding="utf-8-sig").strip()

    # The folder of a dry run holds just what would be uploaded, and nothing from before.
    if dry_run is not None and dry_run.exists() and any(dry_run.iterdir()):
        raise ValueError(
            f"`--dry-run` must name a folder that is empty or not there yet, got {str(dry_run)!r}."
        )
    if not (folder / INDEX).is_file():
        advice = ""
        if any((folder / name).is_file() for name in CHECKPOINT_CONFIGS):
            advice = (
                f" A model as others published it becomes one by `convert {folder} NEW_FOLDER`."
            )
        raise FileNotFoundError(f"{folder} holds no pipeline: there is no {INDEX} in it.{advice}")

    # The card is written by the pipeline itself, so it is loaded whatever comes of it.
    from text_diffusers.cli.writer import load_pipeline
    from text_diffusers.hub.export import push_space, push_to_hub, save_with_code
    from text_diffusers.hub.model_card import model_card

    pipe = load_pipeline(str(folder))
    card = model_card(
        pipe,
        folder,
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        license=license,
        datasets=dataset_name or (),
    )
    if dry_run is not None:
        typer.echo(save_with_code(pipe, dry_run, card, records=folder))
        return

    # Without the option, the account's setting holds.
    is_private = private or None
    typer.echo(push_to_hub(pipe, repo_id, card, records=folder, token=token, private=is_private))

    # The Space comes last, since it opens the model by its name on the Hub.
    if space is not None:
        typer.echo(push_space(space, repo_id, token=token, private=is_private))
