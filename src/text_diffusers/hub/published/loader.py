"""Published checkpoints as denoisers, without the code of their authors."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from text_diffusers.common.validation import require, require_int
from text_diffusers.hub.published.blueprint import Blueprint
from text_diffusers.hub.published.checkpoint import load_weights, stored_tensors
from text_diffusers.hub.published.families import blueprint_of
from text_diffusers.hub.published.repository import published_config, published_folder
from text_diffusers.models.language_model import LanguageModelDenoiser
from text_diffusers.models.reading import read_config, write_reading
from text_diffusers.pipelines.loading import INDEX


@dataclass
class Published:
    """A checkpoint that was loaded.

    Attributes:
        name: its repository or folder, as it was given.
        folder: where its files are.
        blueprint: how it was read.
        model: a language model of transformers, or a denoiser of this package.
    """

    name: str
    folder: Path
    blueprint: Blueprint
    model: Any


def load_denoiser(
    pretrained_model_name_or_path: str | Path,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    *,
    family: str | None = None,
    block_length: int | None = None,
    **hub_arguments: Any,
) -> Any:
    """Load a diffusion language model that others published, without their code.

    LLaDA, Dream, SDAR, Tiny-A2D, DiffuGPT and DiffuLLaMA, among others, become models of transformers, whose
    configuration says how they are read; see `text_diffusers.models.Reading`.

    Args:
        pretrained_model_name_or_path: a folder, or a repository on the Hub.
        dtype: of the weights; by default that in which most of them are stored.
        device_map: a device, `{name of a module: device}`, or "auto", "balanced" or "sequential" as in accelerate; by
            default the CPU.
        family: what the checkpoint is, where nothing in it says so, such as "diffullama" for a Llama.
        block_length: tokens of a block, for models that see their own block and those before it; by default as the
            checkpoint says.
        hub_arguments: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download` of the Hub.

    Returns:
        The denoiser: `denoiser(input_ids, timestep, attention_mask, positions=...).logits`, (B, L, V).

    Raises:
        OSError: if a file is missing or cannot be had.
        ValueError: if the checkpoint is of no known family, or one of its keys or tensors is not understood, missing,
            or not what its configuration asks for.

    Example:
        >>> import torch
        >>> from text_diffusers.hub import load_denoiser
        >>> denoiser = load_denoiser("GSAI-ML/LLaDA-8B-Instruct", device_map="auto")  # doctest: +SKIP
        >>> logits = denoiser(torch.tensor([[126336, 126336]])).logits  # doctest: +SKIP
    """
    folder = published_folder(pretrained_model_name_or_path, family=family, **hub_arguments)
    published = load_published(
        pretrained_model_name_or_path, folder, dtype, device_map, family, block_length
    )
    model = published.model
    return LanguageModelDenoiser(model) if isinstance(model, PreTrainedModel) else model


def load_published(
    name: str | Path,
    folder: Path,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    family: str | None = None,
    block_length: int | None = None,
) -> Published:
    """As `load_denoiser`, from a folder, with what is known of the checkpoint."""
    weight_type = as_dtype(dtype)
    if (folder / INDEX).exists():
        raise ValueError(
            f"`{name}` is a saved pipeline: load it by `TextDiffusionPipeline.from_pretrained`."
        )
    stored = stored_tensors(folder)
    blueprint = blueprint_of(published_config(folder), stored, str(name), family)
    model = load_weights(blueprint, stored, weight_type, device_map)
    if block_length is not None:
        set_block_length(model, block_length)
    return Published(str(name), folder, blueprint, model)


def as_dtype(dtype: Any) -> torch.dtype | None:
    """A floating-point type by itself or by its name; `None` and "auto" are that of the checkpoint."""
    if dtype is None or dtype == "auto":
        return None
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    is_type = isinstance(named, torch.dtype) and named.is_floating_point and named.itemsize > 1
    require(is_type, "dtype", "None, 'auto', or a floating-point type of torch", dtype)
    return named


def set_block_length(model: Any, block_length: int):
    """Set the length of the blocks of a language model that was trained to see its own block and those before it.

    Raises:
        ValueError: if it was not, or cannot say so.
    """
    require_int("block_length", block_length, 1)
    reading = read_config(model.config) if isinstance(model, PreTrainedModel) else None
    if reading is None:
        raise ValueError(
            f"`block_length` must be None for a {type(model).__name__}, whose configuration does not say what a token "
            f"sees, got {block_length}."
        )
    # Of some families there are models of both kinds, which only their names tell apart.
    if reading.attention != "block" and reading.blocks_from != "prompt":
        raise ValueError(
            f"`block_length` must be None for a model that sees all tokens; to write it in blocks from left to right, "
            f"give `block_length` to the call of the pipeline, got {block_length}."
        )
    write_reading(model.config, replace(reading, attention="block", block_length=block_length))
