"""Folders that stock diffusers loads without this package, and their way to the Hub, with a Space beside them."""

import hashlib
import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, metadata_load, metadata_save
from huggingface_hub.utils import validate_repo_id

import text_diffusers
from text_diffusers.common.json_files import read_object
from text_diffusers.hub.model_card import model_card
from text_diffusers.hub.standalone import PACKAGE, standalone_source
from text_diffusers.models.language_model import uncompiled
from text_diffusers.pipelines.loading import INDEX
from text_diffusers.training.config import NOTE_FILE
from text_diffusers.training.curves import CURVES_PICTURE, METRICS_FILE
from text_diffusers.training.tracking import CURVES_FILE

# Its weights come with the package, so its Space needs no repository beside it.
SHIPPED_MODEL = "four-voices"

# Classes of these load without code beside the weights.
STOCK_LIBRARIES = ("diffusers", "transformers")

# What training leaves for the card, and where the code lies in a folder for the Hub
RECORDS = (METRICS_FILE, NOTE_FILE, CURVES_FILE, CURVES_PICTURE)
CODE_FILES = (f"{PACKAGE}_*.py", f"*/{PACKAGE}_*.py")

# Sub-packages whose source stands outside of `src`, and the files that a Space has at its top
ROOMS = ("pipelines", "schedulers", "space")
SPACE_FILES = ("app.py", "requirements.txt", "README.md")


# Folders


def save_with_code(
    pipe: Any,
    folder: str | Path,
    card: str | None = None,
    records: str | Path | None = None,
) -> Path:
    """Save a pipeline with the source of its classes, so that diffusers alone can load it.

    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` then needs no `text_diffusers`, and the same
    seed gives the same tokens. Beside the weights (safetensors) lie one file for the pipeline's class and one for each
    component's; their names hold version and content, since diffusers keeps the files of all folders in one place.

    Args:
        pipe: a pipeline of this package.
        folder: made if need be.
        card: text of README.md.
        records: folder from which what training left there is copied: figures, options and curves.

    Returns:
        The folder.

    Raises:
        ValueError: if a class is neither of this package nor of diffusers or transformers, or has LoRA layers.

    Example:
        >>> import tempfile
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.hub import save_with_code
        >>> pipe = TextDiffusionPipeline.from_pretrained("chat-and-novels")
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = save_with_code(pipe, place)
        ...     print(len(list(folder.rglob("*.py"))))  # of the pipeline, its denoiser and its scheduler
        3
    """
    # Nothing is written before all classes are known.
    components = {name: uncompiled(part) for name, part in pipe.components.items()}
    classes = {name: type(part) for name, part in components.items() if part is not None}
    for name, owner in {"pipe": type(pipe), **classes}.items():
        if library_of(owner) not in (PACKAGE, *STOCK_LIBRARIES):
            raise ValueError(
                f"`{name}` must be of a class of {PACKAGE}, diffusers or transformers, got {owner}."
            )

    folder = Path(folder)
    pipe.save_pretrained(folder)
    forget_origin(folder)

    # In the index a file beside the weights takes the place of the module of this package.
    index = read_object(folder / INDEX)
    for name, owner in classes.items():
        if library_of(owner) == PACKAGE:
            index[name] = [write_source(owner, folder / name), owner.__name__]
    index["_class_name"] = [write_source(type(pipe), folder), type(pipe).__name__]

    # Stock diffusers takes a list of two strings in an index for a component.
    for names in ("label_names", "label_prompts"):
        if index.get(names):
            index[names] = {str(id): name for id, name in enumerate(index[names])}
    write_object(folder / INDEX, index)

    if records is not None:
        copy_records(Path(records), folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def library_of(owner: type) -> str:
    return owner.__module__.partition(".")[0]


def copy_records(source: Path, folder: Path):
    """Copy what training left in `source`, as far as it is there."""
    # A folder that is published where it was trained has its records already.
    if source.resolve() == folder.resolve():
        return
    for record in RECORDS:
        if (source / record).is_file():
            shutil.copyfile(source / record, folder / record)


def forget_origin(folder: Path):
    """Take out of a saved pipeline's configurations where it was loaded from: a path would tell of a machine."""
    for file in (folder / INDEX, *folder.glob("*/*config.json")):
        config = read_object(file)
        if config.pop("_name_or_path", None) is not None:
            write_object(file, config)


def write_object(file: Path, content: dict[str, Any]):
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_source(owner: type, folder: Path) -> str:
    """Write the one file that a class needs, and remove those of other versions; returns its name without ".py"."""
    source = standalone_source(owner.__module__)
    version = text_diffusers.__version__
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    module = owner.__module__.rpartition(".")[2]
    name = f"{PACKAGE}_{version.replace('.', '_')}_{digest}_{module}"

    # Files of earlier versions must not be uploaded along.
    for earlier in folder.glob(CODE_FILES[0]):
        earlier.unlink()
    header = (
        f"# {owner.__name__} of text-diffusers {version}, with what it needs, in one file.\n"
        "# SPDX-License-Identifier: Apache-2.0\n"
    )
    (folder / f"{name}.py").write_text(header + source, encoding="utf-8")
    return name


def write_space(folder: Path, model: str, title: str):
    """Write the files of the Space that opens `model`: the page, and the source of this package beside it."""
    # Of all models only the shipped one lies in the package; others come from the Hub.
    is_shipped = model == SHIPPED_MODEL
    ignore = shutil.ignore_patterns("__pycache__", *([] if is_shipped else ["shipped"]))
    for package in (PACKAGE, *(f"{PACKAGE}.{room}" for room in ROOMS)):
        # Links of an editable installation are followed: what arrives are files.
        target = folder / package.replace(".", "/")
        shutil.copytree(source_folder(package), target, ignore=ignore, dirs_exist_ok=True)

    # A Space starts `app.py` at its top, which reads the name of its model in `model.txt`.
    for file in SPACE_FILES:
        shutil.copyfile(folder / PACKAGE / "space" / file, folder / file)
    (folder / "model.txt").write_text(f"{model}\n", encoding="utf-8")

    # Title and model of the front matter are those of this Space.
    metadata = metadata_load(folder / "README.md") or {}
    models = {} if is_shipped else {"models": [model]}
    metadata_save(folder / "README.md", {**metadata, "title": title, **models})


def source_folder(package: str) -> Path:
    """Where the source of a package lies, without importing it."""
    spec: Any = find_spec(package)
    return Path(spec.submodule_search_locations[0])


# The Hub


def push_to_hub(
    pipe: Any,
    repo_id: str,
    card: str | None = None,
    records: str | Path | None = None,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Text diffusion pipeline with its code",
) -> str:
    """Upload what `save_with_code` writes to a repository of the Hub, which is made if need be.

    Args:
        pipe, records: see `save_with_code`.
        repo_id: "user/name".
        card: text of README.md; by default that of `model_card`, without a licence.
        token: by default that of `hf auth login`.
        private: whether a new repository is; by default the account's setting.
        revision: branch, made if need be.

    Returns:
        The address of the repository.

    Raises:
        ValueError: if the name is none, or the pipeline cannot be saved.
        HfHubHTTPError: if the Hub refuses.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.hub import push_to_hub
        >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")
        >>> push_to_hub(pipe, "me/my-model")  # doctest: +SKIP
        'https://huggingface.co/me/my-model'
    """
    validate_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_with_code(pipe, scratch, card, records)

        # The card reads the records from the folder, and draws the curves there to be uploaded too.
        if card is None:
            card = model_card(pipe, folder, name=repo_id, repo_id=repo_id)
            (folder / "README.md").write_text(card, encoding="utf-8")

        # The branch is made before the upload to it; code and records of earlier versions go.
        api = hub_api(token)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            delete_patterns=[*CODE_FILES, *RECORDS],
        )
    return str(url)


def push_space(
    repo_id: str,
    model: str = SHIPPED_MODEL,
    title: str | None = None,
    token: str | None = None,
    private: bool | None = None,
) -> str:
    """Upload the demo as a Gradio Space: what lies in `space`, and the source of this package beside it.

    Args:
        repo_id: "user/name" of the Space, which is made if need be.
        model: name of the Hub repository that it opens, or of the shipped model.
        title: shown on the Hub; by default "Text diffusion: " and the model's name.
        token, private: see `push_to_hub`.

    Returns:
        The address of the Space.

    Raises:
        ValueError: if one of the names is none.
        HfHubHTTPError: if the Hub refuses.

    Example:
        >>> from text_diffusers.hub import push_space
        >>> push_space("me/my-demo", "me/my-model")  # doctest: +SKIP
        'https://huggingface.co/spaces/me/my-demo'
    """
    # Both are checked before anything is made on the Hub.
    validate_repo_id(repo_id)
    validate_repo_id(model)
    with tempfile.TemporaryDirectory() as folder:
        write_space(Path(folder), model, title or f"Text diffusion: {model.rpartition('/')[2]}")

        api = hub_api(token)

        # Without `repo_type` the Hub would make a model's repository.
        space: Any = {"repo_id": repo_id, "repo_type": "space"}
        url = api.create_repo(**space, space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(**space, folder_path=folder, commit_message="The demo")
    return str(url)


def hub_api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name=PACKAGE, library_version=text_diffusers.__version__)
