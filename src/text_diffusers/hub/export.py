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
from text_diffusers.hub.model_card import model_card
from text_diffusers.hub.standalone import PACKAGE, standalone_source
from text_diffusers.pipelines.loading import INDEX
from text_diffusers.training.config import NOTE_FILE
from text_diffusers.training.curves import CURVES_PICTURE, METRICS_FILE
from text_diffusers.training.tracking import CURVES_FILE

SHIPPED_MODEL = "chat-and-novels"
ROOMS = ("pipelines", "schedulers", "space")
RECORDS = (METRICS_FILE, NOTE_FILE, CURVES_FILE, CURVES_PICTURE)
CODE_FILES = [f"{PACKAGE}_*.py", f"*/{PACKAGE}_*.py"]
STOCK_LIBRARIES = ("diffusers", "transformers")


def save_with_code(
    pipe: Any, folder: str | Path, card: str | None = None, records: str | Path | None = None
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
    """
    classes = {name: type(part) for name, part in pipe.components.items() if part is not None}
    for name, owner in {"pipe": type(pipe), **classes}.items():
        if owner.__module__.partition(".")[0] not in (PACKAGE, *STOCK_LIBRARIES):
            raise ValueError(
                f"`{name}` must be of a class of {PACKAGE}, diffusers or transformers, got {owner}."
            )
    folder = Path(folder)
    pipe.save_pretrained(folder)
    forget_origin(folder)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for name, owner in classes.items():
        if owner.__module__.startswith(f"{PACKAGE}."):
            index[name] = [write_source(owner, folder / name), owner.__name__]
    index["_class_name"] = [write_source(type(pipe), folder), type(pipe).__name__]
    if index.get(
        "label_names"
    ):  # stock diffusers takes a list of strings in a Hub's index for a component
        index["label_names"] = {str(label): name for label, name in enumerate(index["label_names"])}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if records is not None:
        copy_records(Path(records), folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def copy_records(source: Path, folder: Path):
    """Copy what training left in `source`, as far as it is there."""
    for record in RECORDS:
        if (source / record).is_file() and source.resolve() != folder.resolve():
            shutil.copyfile(source / record, folder / record)


def forget_origin(folder: Path):
    """Take out of a saved pipeline's configurations where it was loaded from: a path would tell of a machine."""
    for file in (folder / INDEX, *folder.glob("*/*config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_source(owner: type, folder: Path) -> str:
    """Write the one file that a class needs, and remove those of other versions; returns its name without ".py"."""
    source = standalone_source(owner.__module__)
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    version = text_diffusers.__version__.replace(".", "_")
    name = f"{PACKAGE}_{version}_{digest}_{owner.__module__.rpartition('.')[2]}"
    for other in folder.glob(CODE_FILES[0]):
        other.unlink()
    header = f"# {owner.__name__} of text-diffusers {text_diffusers.__version__}, with what it needs, in one file.\n"
    (folder / f"{name}.py").write_text(
        f"{header}# SPDX-License-Identifier: Apache-2.0\n{source}", encoding="utf-8"
    )
    return name


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
    """
    validate_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        save_with_code(pipe, folder, card, records)
        if card is None:
            card = model_card(pipe, Path(folder), name=repo_id, repo_id=repo_id)
            Path(folder, "README.md").write_text(card, encoding="utf-8")
        api, url = repository(repo_id, "model", token, private, revision)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            delete_patterns=[*CODE_FILES, *RECORDS],
        )
    return url


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
    """
    validate_repo_id(repo_id)
    validate_repo_id(model)
    with tempfile.TemporaryDirectory() as folder:
        write_space(Path(folder), model, title or f"Text diffusion: {model.rpartition('/')[2]}")
        api, url = repository(repo_id, "space", token, private)
        api.upload_folder(
            repo_id=repo_id, repo_type="space", folder_path=folder, commit_message="The demo"
        )
    return url


def write_space(folder: Path, model: str, title: str):
    """The files of the Space that opens `model`."""
    package = Path(text_diffusers.__file__).parent
    ignored = shutil.ignore_patterns(
        "__pycache__", *([] if model == SHIPPED_MODEL else ["shipped"])
    )
    shutil.copytree(package, folder / PACKAGE, ignore=ignored)
    for room in ROOMS:  # in an editable installation they lie elsewhere
        spec = find_spec(f"{PACKAGE}.{room}")
        places = (spec and spec.submodule_search_locations) or []
        shutil.copytree(
            next(iter(places)), folder / PACKAGE / room, ignore=ignored, dirs_exist_ok=True
        )
    for file in ("app.py", "requirements.txt", "README.md"):
        shutil.copyfile(folder / PACKAGE / "space" / file, folder / file)
    (folder / "model.txt").write_text(f"{model}\n", encoding="utf-8")
    models = {} if model == SHIPPED_MODEL else {"models": [model]}
    readme = folder / "README.md"
    metadata_save(readme, {**(metadata_load(readme) or {}), "title": title, **models})


def repository(
    repo_id: str, kind: str, token: str | None, private: bool | None, revision: str | None = None
) -> tuple[HfApi, str]:
    """`(api, address)` of a repository of the Hub, made if need be."""
    api = HfApi(token=token, library_name=PACKAGE, library_version=text_diffusers.__version__)
    sdk = "gradio" if kind == "space" else None
    url = api.create_repo(repo_id, repo_type=kind, space_sdk=sdk, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api, str(url)
