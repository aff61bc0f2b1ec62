"""Published checkpoints as pipelines: the tokenizer that goes with the model, and the scheduler of its noise."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from text_diffusers.common.token_ids import start_ids
from text_diffusers.common.validation import is_int, is_list, require
from text_diffusers.hub.published.blueprint import Blueprint
from text_diffusers.hub.published.loader import Published, load_published
from text_diffusers.hub.published.repository import (
    GENERATION_CONFIG,
    TOKENIZER_FILES,
    optional_object,
    published_folder,
)
from text_diffusers.models.language_model import is_masked_lm
from text_diffusers.models.reading import read_config, write_reading
from text_diffusers.pipelines.component_checks import longest_row
from text_diffusers.pipelines.diffusion_lm.pipeline_diffusion_lm import DiffusionLMPipeline
from text_diffusers.pipelines.loading import HUB_ARGUMENTS, check_links
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline

PIPELINES = {
    "TextDiffusionPipeline": TextDiffusionPipeline,
    "DiffusionLMPipeline": DiffusionLMPipeline,
}

# How chats end a turn; a vocabulary that has one of these has it for that.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>")

# Arguments of a `from_pretrained` of diffusers that are as they are here anyway.
SETTLED = ("low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


def load_published_pipeline(
    pretrained_model_name_or_path: str | Path,
    *,
    tokenizer: Any = None,
    scheduler: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    device_map: Any = None,
    family: str | None = None,
    block_length: int | None = None,
    **kwargs: Any,
) -> Any:
    """Load a diffusion language model that others published, as a pipeline, without their code.

    Args:
        pretrained_model_name_or_path: a folder, or a repository on the Hub.
        tokenizer: in the place of that in the folder; a copy of it gets the mask of the model.
        scheduler: in the place of that of the family's noise.
        dtype, torch_dtype, device_map, family, block_length: as in `load_denoiser`.
        kwargs: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download` of the Hub; further
            `low_cpu_mem_usage`, `trust_remote_code` and `use_safetensors`, which change nothing: weights take the
            memory of one copy, are read from safetensors, and no code is run.

    Raises:
        OSError: if a file is missing or cannot be had.
        ValueError: if the checkpoint is not understood, see `load_denoiser`; if its tokenizer does not fit; or for an
            argument that is unknown.
    """
    require(dtype is None or torch_dtype is None, "torch_dtype", "None with `dtype`", torch_dtype)
    published, folder_tokenizer = load_parts(
        pretrained_model_name_or_path,
        tokenizer,
        dtype=torch_dtype if dtype is None else dtype,
        device_map=device_map,
        family=family,
        block_length=block_length,
        **kwargs,
    )
    return assemble(published, folder_tokenizer, scheduler)


def load_parts(name: str | Path, tokenizer: Any = None, **kwargs: Any) -> tuple[Published, Any]:
    """A checkpoint and the tokenizer that goes with it."""
    settings = ("dtype", "device_map", "family", "block_length")
    unknown = sorted(kwargs.keys() - {*HUB_ARGUMENTS, *SETTLED, *settings})
    if "quantization_config" in unknown:
        raise ValueError(
            "`quantization_config` must be left out for a published checkpoint: convert it first, `text-diffusers "
            "convert`, and load the folder with it."
        )
    if unknown:
        raise ValueError(
            f"Arguments for a published checkpoint must be among {sorted({*HUB_ARGUMENTS, *SETTLED, *settings})}, "
            f"`tokenizer`, `scheduler` and `torch_dtype`, got {unknown}."
        )
    if kwargs.get("use_safetensors") is False:
        raise ValueError("`use_safetensors` must be True: reading pickles may run code, got False.")

    hub_arguments = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    folder = published_folder(
        name, with_tokenizer=tokenizer is None, family=kwargs.get("family"), **hub_arguments
    )
    published = load_published(
        name, folder, **{key: kwargs[key] for key in settings if key in kwargs}
    )
    # A tokenizer of the caller stays as it is.
    own = read_tokenizer(published) if tokenizer is None else deepcopy(tokenizer)
    return published, fitted_tokenizer(own, published)


def assemble(published: Published, tokenizer: Any, scheduler: Any = None) -> Any:
    """The pipeline of a checkpoint, whose model then says by which tokens a text ends."""
    model = published.model
    if scheduler is None:
        scheduler = published.blueprint.scheduler(tokenizer.mask_token_id)
    if isinstance(model, PreTrainedModel) and read_config(model.config) is not None:
        complete_reading(published, tokenizer)

    pipeline = PIPELINES[published.blueprint.pipeline](tokenizer, model, scheduler)
    pipeline.register_to_config(_name_or_path=published.name)
    return pipeline


# The tokenizer


def read_tokenizer(published: Published) -> Any:
    """The tokenizer of a folder by a class of transformers.

    Raises:
        ValueError: if there is none, or it cannot be read without code of its own.
    """
    folder = published.folder
    for name in TOKENIZER_FILES:
        check_links(folder, folder / name)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(
            f"`{published.name}` holds no tokenizer: pass that of {published.blueprint.family} as `tokenizer=`."
        )

    # What names code of its own is read by the class that this code was made from.
    config = optional_object(folder / "tokenizer_config.json")
    class_name = config.get("tokenizer_class")
    has_own_code = "auto_map" in config or not hasattr(transformers, str(class_name))
    named = published.blueprint.tokenizer
    reader: Any = AutoTokenizer
    arguments: dict[str, Any] = {"local_files_only": True}
    if class_name is not None and has_own_code and named is not None:
        reader = getattr(transformers, named)
    else:
        # Where the tokenizer does not say what it is, it is that of the network's kind.
        is_native = isinstance(published.model, PreTrainedModel) and class_name is None
        arguments["config"] = published.model.config if is_native else PreTrainedConfig()
        arguments["trust_remote_code"] = False
    try:
        return reader.from_pretrained(folder, **arguments)
    except Exception as error:
        raise ValueError(
            f"`{folder}` must hold a tokenizer that transformers reads without code of others; pass another one as "
            f"`tokenizer=`: {error}"
        ) from error


def fitted_tokenizer(tokenizer: Any, published: Published) -> Any:
    """A tokenizer with the mask of its model, without a start token that the model never saw, and with a limit."""
    model = published.model
    set_mask(tokenizer, published)

    # Tokenizers of causal models may name a start token which they put before no text.
    is_causal = isinstance(model, PreTrainedModel) and not is_masked_lm(model)
    if is_causal and tokenizer("")["input_ids"][:1] != start_ids(tokenizer):
        tokenizer.bos_token = None
        tokenizer.cls_token = None

    limit = longest_row(model)
    own_limit = tokenizer.model_max_length
    # transformers writes a huge number for no limit.
    tokenizer.model_max_length = min(own_limit, limit) if is_int(own_limit, 1) else limit
    return tokenizer


def set_mask(tokenizer: Any, published: Published):
    """Give a tokenizer the mask token of the model.

    Raises:
        ValueError: if it cannot have a token of that id.
    """
    blueprint = published.blueprint
    mask_token_id = blueprint.mask_token_id
    vocabulary = tokenizer.get_vocab()
    num_tokens = max(vocabulary.values(), default=-1) + 1
    if mask_token_id is None:
        mask_token_id = named_mask(tokenizer, vocabulary, blueprint)
    if mask_token_id is None and not blueprint.has_mask:
        # Nothing is ever masked, but texts with gaps need a sign for these.
        mask_token_id = num_tokens
    if mask_token_id is None:
        raise ValueError(
            f"The tokenizer of `{published.name}` must have a mask token, and neither it nor the configuration of "
            f"{blueprint.family} names one: pass one that has as `tokenizer=`."
        )

    # A token by its id, or a new one right behind all others.
    token = tokenizer.convert_ids_to_tokens(mask_token_id) if mask_token_id < num_tokens else None
    if token is None and mask_token_id == num_tokens:
        token = blueprint.mask_token
    if token is not None and tokenizer.mask_token_id != mask_token_id:
        tokenizer.add_special_tokens({"mask_token": token})

    if tokenizer.mask_token_id != mask_token_id:
        raise ValueError(
            f"The tokenizer of `{published.name}` must have the mask at {mask_token_id}, as {blueprint.family} has "
            f"it, but its {num_tokens} tokens have it at {tokenizer.mask_token_id}."
        )
    limit = published.model.config.vocab_size
    if mask_token_id >= limit:
        raise ValueError(
            f"The tokenizer of `{published.name}` must have its mask among the {limit} tokens of the model, got "
            f"{mask_token_id}."
        )


def named_mask(tokenizer: Any, vocabulary: dict[str, int], blueprint: Blueprint) -> int | None:
    """The mask of a tokenizer; some have the family's mask and do not say that it is one."""
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    return vocabulary.get(blueprint.mask_token)


# The reading


def complete_reading(published: Published, tokenizer: Any):
    """Write the mask, and all tokens that end a text, into the configuration of a language model."""
    config = published.model.config
    reading = read_config(config)
    assert reading is not None
    end_token_ids = [*reading.end_token_ids, *generation_ends(published.folder)]
    if tokenizer.eos_token_id is not None:
        end_token_ids.append(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    end_token_ids += [vocabulary[token] for token in TURN_ENDS if token in vocabulary]

    # Each once, and none that the model has no logit for.
    end_token_ids = [end for end in dict.fromkeys(end_token_ids) if end < config.vocab_size]
    mask_token_id = tokenizer.mask_token_id
    write_reading(
        config, replace(reading, mask_token_id=mask_token_id, end_token_ids=end_token_ids)
    )


def generation_ends(folder: Path) -> list[int]:
    """The ends of texts that `generation_config.json` names."""
    ends = optional_object(folder / GENERATION_CONFIG).get("eos_token_id")
    ids = ends if is_list(ends) else [] if ends is None else [ends]
    are_ids = all(is_int(token, 0) for token in ids)
    require(are_ids, "eos_token_id", f"ids in {GENERATION_CONFIG}", ends)
    return list(ids)
