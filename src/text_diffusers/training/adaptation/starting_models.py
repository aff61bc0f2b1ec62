"""Models to train further: what is behind a name, a folder, a shipped model or a Hub repository, and of which kind."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
)

from text_diffusers.common.json_files import read_object
from text_diffusers.models.language_model import is_language_model, reading_of
from text_diffusers.models.reading import read_config
from text_diffusers.pipelines.loading import INDEX, shipped_folder
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline

MODEL_CONFIG = "config.json"  # of a transformers model


def saved_pipeline(model_name_or_path: str) -> dict[str, Any] | None:
    """The `model_index.json` of a folder, a shipped model or a Hub name, if that is a pipeline; `None` if a model.

    Raises:
        ValueError: if there is neither.
    """
    if file_of(model_name_or_path, INDEX) is not None:
        index: Any = TextDiffusionPipeline.load_config(
            local_folder(model_name_or_path) or model_name_or_path
        )
        return index

    # Without an index it is a model by itself, which has a configuration.
    if file_of(model_name_or_path, MODEL_CONFIG) is None:
        raise not_found("model_name_or_path", model_name_or_path, f"{INDEX} or {MODEL_CONFIG}")
    return None


def saved_label_names(model_name_or_path: str) -> list[str]:
    """The names of the class labels of a saved pipeline; none for a model by itself, or without names."""
    names = (saved_pipeline(model_name_or_path) or {}).get("label_names") or []
    # Stock diffusers has them by their numbers.
    return list(names.values()) if isinstance(names, dict) else list(names)


def saved_label_prompts(model_name_or_path: str) -> list[str] | None:
    """The texts that stand for the labels of a saved pipeline with a language model; `None` without labels."""
    prompts = (saved_pipeline(model_name_or_path) or {}).get("label_prompts")
    return prompts or saved_label_names(model_name_or_path) or None


def local_folder(name: str) -> Path | None:
    """The folder `name`, or that of the shipped model of this name; `None` for what may be on the Hub."""
    return Path(name) if Path(name).is_dir() else shipped_folder(name)


def file_of(name: str, file: str) -> Path | None:
    """A file of a folder, a shipped model or a Hub repository, or `None` if there is none or it cannot be had."""
    folder = local_folder(name)
    if folder is not None:
        return folder / file if (folder / file).is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except (
        OSError,
        EntryNotFoundError,
        HFValidationError,
    ):  # the last: no repository can have the name
        return None


def not_found(option: str, name: str, wanted: str, reason: str | None = None) -> ValueError:
    """The error of a name that stands for nothing, which says where it was looked for, and for what."""
    if local_folder(name) is not None:
        because = f": {reason}" if reason else "."
        return ValueError(f"`{option}`={name!r} is a folder, but holds no {wanted}{because}")
    return ValueError(
        f"`{option}`={name!r} is no folder here, no model that comes with this package, such as four-voices, and "
        f"no repository of the Hub with a {wanted} that can be reached from here."
    )


def kind_of_model(model_name_or_path: str | None) -> str | None:
    """What training starts from.

    Returns:
        "pipeline", a saved one with a denoiser of this package; "language_pipeline", one with a language model of
        transformers; "masked_lm", by itself, which may lack the head; "causal_lm"; or `None` without a name. What
        others published as a diffusion model is one of the pipelines.

    Raises:
        ValueError: if there is no model of this name, or one of another kind.
    """
    if model_name_or_path is None:
        return None
    # A folder without an index is a model by itself; the index says who made a pipeline's denoiser.
    index = saved_pipeline(model_name_or_path)
    if index is not None:
        made_by = index["denoiser"][0]
        return "language_pipeline" if made_by == "transformers" else "pipeline"

    try:
        architecture = AutoConfig.from_pretrained(
            local_folder(model_name_or_path) or model_name_or_path
        )
    except ValueError:  # a part of a pipeline, or a model of its authors' own code
        architecture = None
    if architecture is not None and read_config(architecture) is None:
        # Some are in both lists, by a head that was made for translation.
        if type(architecture) in MODEL_FOR_MASKED_LM_MAPPING:
            return "masked_lm"
        if type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return "causal_lm"
    return published_kind(model_name_or_path, getattr(architecture, "model_type", None))


@cache
def published_kind(model_name_or_path: str, model_type: str | None) -> str:
    """The kind of a diffusion model that others published.

    Raises:
        ValueError: if it is none.
    """
    try:
        is_language, _ = published_layout(model_name_or_path)
    except (OSError, ValueError) as error:
        kind = model_type or "no model of transformers"
        raise ValueError(
            f"`model_name_or_path`={model_name_or_path!r} must be a saved pipeline, a masked LM, an encoder, a causal "
            f"LM, or a diffusion language model that others published, got {kind}: {error}"
        ) from error
    return "language_pipeline" if is_language else "pipeline"


@cache
def published_layout(model_name_or_path: str) -> tuple[bool, dict[str, Any]]:
    """Whether what others published is a language model, and what `saved_reading` says of it.

    Raises:
        OSError, ValueError: if it is no diffusion model.
    """
    denoiser = TextDiffusionPipeline.from_pretrained(
        local_folder(model_name_or_path) or model_name_or_path
    ).denoiser
    if is_language_model(denoiser):
        return True, asdict(reading_of(denoiser))
    return False, {"block_length": getattr(denoiser.config, "block_length", None)}


def holds_language_model(model_name_or_path: str | None) -> bool:
    """Whether training starts from a language model of transformers, by itself or in a saved pipeline.

    Raises:
        ValueError: as `kind_of_model`.
    """
    return kind_of_model(model_name_or_path) not in (None, "pipeline")


def saved_reading(model_name_or_path: str) -> dict[str, Any]:
    """What a pipeline says of how its denoiser is read: entries of a `Reading`, or `block_length` alone."""
    # What others published says it in its own words.
    if saved_pipeline(model_name_or_path) is None:
        return published_layout(model_name_or_path)[1]

    config = file_of(model_name_or_path, f"denoiser/{MODEL_CONFIG}")
    entries = {} if config is None else read_object(config)
    reading = entries.get("diffusion")
    return reading if isinstance(reading, dict) else {"block_length": entries.get("block_length")}


def knows_no_ends(model_name_or_path: str | None) -> bool:
    """Whether training starts from a masked LM that was never asked where a text ends.

    Raises:
        ValueError: as `kind_of_model`.
    """
    kind = kind_of_model(model_name_or_path)
    if kind == "masked_lm":
        return True
    if kind != "language_pipeline" or model_name_or_path is None:
        return False
    if saved_pipeline(model_name_or_path) is None:
        return False
    # What says how it is read, says also how its texts end.
    config = file_of(model_name_or_path, f"denoiser/{MODEL_CONFIG}")
    return config is None or "diffusion" not in read_object(config)


def load_tokenizer(name: str, option: str = "tokenizer") -> Any:
    """The tokenizer of a folder, a shipped model or a Hub name, by itself or of a saved pipeline.

    Args:
        option: with which it was asked for.

    Raises:
        ValueError: if there is none.
    """
    # What others published may have a tokenizer that does not know the mask of its model.
    is_pipeline = file_of(name, INDEX) is not None
    if not is_pipeline and needs_published_loader(name):
        return TextDiffusionPipeline.from_pretrained(local_folder(name) or name).tokenizer

    # A pipeline has it in a folder of its own.
    place = {"subfolder": "tokenizer"} if is_pipeline else {}
    try:
        return AutoTokenizer.from_pretrained(local_folder(name) or name, **place)
    except Exception as error:  # whatever a library meets in damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise not_found(option, name, "tokenizer", reason) from error


def needs_published_loader(name: str) -> bool:
    """Whether a model by itself is one that transformers does not know, or says how it is read."""
    path = file_of(name, MODEL_CONFIG)
    if path is None:
        return False
    config = read_object(path)
    return "diffusion" in config or config.get("model_type") not in CONFIG_MAPPING
