"""The folder of a published checkpoint: here, or as a snapshot of a repository on the Hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from text_diffusers.common.json_files import read_object
from text_diffusers.hub.published.checkpoint import SINGLE_FILE, WEIGHTS_INDEX, shard_names
from text_diffusers.hub.published.diffuseq import BERT_CONFIG, TRAINING_ARGS, embedding_config
from text_diffusers.hub.published.families import refuse_unadapted
from text_diffusers.pipelines.loading import HUB_ARGUMENTS, INDEX, check_links

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# Configurations under other names, of checkpoints that never were a model of transformers.
OTHER_CONFIGS = (TRAINING_ARGS, BERT_CONFIG)

# What tokenizers of transformers consist of.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def published_folder(
    name: str | Path,
    with_tokenizer: bool = False,
    family: str | None = None,
    **hub_arguments: Any,
) -> Path:
    """The folder `name`, or else a snapshot of that repository, of which no code and no pickle is downloaded.

    Args:
        with_tokenizer: also download the files of its tokenizer.
        family: as in `load_denoiser`.
        hub_arguments: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download` of the Hub.

    Raises:
        OSError: if there is neither, or its files cannot be had.
        ValueError: if it can be no repository's name, an argument is unknown, or its configuration is that of a causal
            language model.
    """
    unknown = sorted(hub_arguments.keys() - {*HUB_ARGUMENTS})
    if unknown:
        raise ValueError(f"Arguments must be those of the Hub, {HUB_ARGUMENTS}, got {unknown}.")
    if Path(name).is_dir():
        return Path(name)

    first_files = [CONFIG, GENERATION_CONFIG, *OTHER_CONFIGS, WEIGHTS_INDEX, INDEX]
    if with_tokenizer:
        first_files += TOKENIZER_FILES
    try:
        # The index comes first: it says which files hold the weights.
        folder = Path(snapshot_download(str(name), allow_patterns=first_files, **hub_arguments))
        if (folder / INDEX).exists():
            raise ValueError(
                f"`{name}` is a saved pipeline: load it by `TextDiffusionPipeline.from_pretrained`."
            )
        refuse_unadapted(optional_object(folder / CONFIG), str(name), family)
        shards = [SINGLE_FILE]
        if (folder / WEIGHTS_INDEX).exists():
            shards += shard_names(folder / WEIGHTS_INDEX)
        # The commit of the index, whatever is pushed meanwhile.
        hub_arguments["revision"] = folder.name
        return Path(snapshot_download(str(name), allow_patterns=shards, **hub_arguments))
    except HFValidationError as error:
        raise ValueError(
            f"`{name}` is no folder here, and cannot be the name of a repository: {error}"
        ) from error
    except OSError as error:
        raise OSError(
            f"`{name}` is no folder here and cannot be had from the Hub: {error}"
        ) from error


def published_config(folder: Path) -> dict[str, Any]:
    """The configuration of a checkpoint: `config.json`, or else what its authors wrote instead.

    Raises:
        OSError: if there is neither.
        ValueError: if a file is no object of JSON, or a link out of the folder.
    """
    for name in (CONFIG, *OTHER_CONFIGS):
        check_links(folder, folder / name)
    if not (folder / CONFIG).exists() and (folder / TRAINING_ARGS).exists():
        return embedding_config(folder)
    return read_object(folder / CONFIG)


def commit_of(folder: Path) -> str | None:
    """The commit of a snapshot in the Hub's cache; `None` of another folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def optional_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a folder; an empty one where there is no such file."""
    check_links(file.parent, file)
    return read_object(file) if file.is_file() else {}
