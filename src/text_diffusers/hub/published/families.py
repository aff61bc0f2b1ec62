"""The families of published checkpoints, and which of them a configuration is of."""

from collections.abc import Mapping
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from text_diffusers.common.validation import require, require_key
from text_diffusers.hub.published import (
    bd3lm,
    diffuseq,
    duo,
    gidd,
    llada2,
    mdlm,
    sedd,
    udlm,
)
from text_diffusers.hub.published.blueprint import Blueprint, Read, StoredTensor
from text_diffusers.hub.published.checkpoint import check_counts
from text_diffusers.hub.published.language_models import (
    a2d,
    diffugpt,
    diffullama,
    dream,
    llada,
    masked_lm,
    modernbert,
    sdar,
)
from text_diffusers.hub.published.language_models.masked_lm import is_masked, names_class

# In the order in which they are asked; a caller may name one.
FAMILIES: dict[str, Read] = {
    "llada": llada.read,
    "llada2": llada2.read,
    "dream": dream.read,
    "sdar": sdar.read,
    "a2d": a2d.read,
    "modernbert": modernbert.read,
    "diffugpt": diffugpt.read,
    "diffullama": diffullama.read,
    "mdlm": mdlm.read,
    "bd3lm": bd3lm.read,
    "sedd": sedd.read,
    "duo": duo.read,
    "udlm": udlm.read,
    "gidd": gidd.read,
    "diffuseq": diffuseq.read,
    "masked_lm": masked_lm.read,
}

# Families that a checkpoint only is of if its name or the caller says so.
BY_NAME: dict[str, Read] = {"diffullama": diffullama.read_llama}


def refuse_unadapted(config: Mapping[str, Any], name: str, family: str | None = None):
    """Refuse a plain causal language model by its configuration alone, before its weights are downloaded.

    Raises:
        ValueError: that says how it is adapted.
    """
    model_type = config.get("model_type")
    is_causal = isinstance(model_type, str) and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    # Some of these are known by their name, and DiffuGPT by its weights.
    may_be_known = model_type == "gpt2" or is_masked(config) or diffullama.is_named(config, name)
    if is_causal and not may_be_known and family is None:
        raise ValueError(unknown_family(config, name))


def blueprint_of(
    config: dict[str, Any],
    stored: dict[str, StoredTensor],
    name: str,
    family: str | None = None,
) -> Blueprint:
    """How a checkpoint is read.

    Args:
        config: its parsed configuration.
        stored: its tensors by name.
        name: its repository or folder.
        family: one of `FAMILIES`; by default the one that knows the configuration.

    Raises:
        ValueError: if no family knows it, or something in the configuration is not understood.
    """
    require_key("family", family, FAMILIES, optional=True)
    model_type = config.get("model_type")
    is_name = model_type is None or isinstance(model_type, str)
    require(is_name, "model_type", "a string in the configuration", model_type)
    check_counts(config, stored)

    if family is not None:
        read = BY_NAME.get(family, FAMILIES[family])
        blueprint = read(config, stored, name)
        if blueprint is None:
            raise ValueError(
                f"`family` must be that of `{name}`, got {family!r}, but {seen(config)}."
            )
        return blueprint

    for read in FAMILIES.values():
        blueprint = read(config, stored, name)
        if blueprint is not None:
            return blueprint
    raise ValueError(unknown_family(config, name))


def seen(config: Mapping[str, Any]) -> str:
    """What a configuration says of itself, in words."""
    keys = sorted(map(str, config))
    shown = f"{', '.join(keys[:8])} and {len(keys) - 8} more" if len(keys) > 8 else ", ".join(keys)
    return (
        f"its configuration has `model_type`={config.get('model_type')!r}, "
        f"`architectures`={config.get('architectures')!r}, and the keys {shown}"
    )


def unknown_family(config: Mapping[str, Any], name: str) -> str:
    """Why a checkpoint is refused, and what can be done with it instead."""
    message = f"`{name}` must be of a family that is known here, {', '.join(FAMILIES)}, but {seen(config)}."
    model_type = config.get("model_type")
    if "diffusion" in config:
        return (
            f"{message} It is a model of transformers that says how it is read: load it by transformers, and call it "
            "by `text_diffusers.models.LanguageModelDenoiser`; a pipeline around it by `TextDiffusionPipeline`."
        )
    learns = f"`accelerate launch training_scripts/train_d3pm.py --model_name_or_path {name}`"
    if not isinstance(model_type, str):
        return message
    if is_masked(config) and model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return (
            f"{message} It is a masked language model: load it by `AutoModelForMaskedLM`, which is a `denoiser` of "
            "`TextDiffusionPipeline` as it is."
        )
    # BERT's kin have classes that predict the next token, too.
    is_causal = names_class(config, "ForCausalLM", "LMHeadModel")
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_causal:
        return (
            f"{message} Its class is not one of a masked language model, `...ForMaskedLM`. If it is an encoder, this "
            f"trains one: {learns}."
        )
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_masked(config):
        return (
            f"{message} It is a causal language model and says nothing of diffusion. This adapts it: "
            f"{learns}."
        )
    return message
