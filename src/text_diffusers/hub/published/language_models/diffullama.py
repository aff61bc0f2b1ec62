"""DiffuLLaMA: Llama without the causal mask, whose predictions are shifted by one.

Paper: https://arxiv.org/abs/2410.17891. Nothing in the checkpoint tells it from a Llama that was never adapted, so it
is known by its name, or by the caller's word.
"""

from collections.abc import Mapping
from typing import Any

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor
from text_diffusers.hub.published.language_models.decoders import (
    decoder_reader,
    language_model_blueprint,
    licence_of,
    names_of,
    read_decoder,
)
from text_diffusers.models.reading import Reading
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler

FAMILY = "DiffuLLaMA"
NAME = "diffullama"
LICENCES = {"diffusionfamily/diffullama": "apache-2.0"}

# An ordinary token, which the code of its authors takes for the mask.
MASK_TOKEN_ID = 811


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a Llama checkpoint that has this family's name; `None` for another one."""
    if config.get("model_type") != "llama" or not is_named(config, name):
        return None
    return read_llama(config, stored, name)


def is_named(config: Mapping[str, Any], name: str) -> bool:
    """Whether the repository or folder, or the one that the configuration remembers, has the family's name."""
    return any(NAME in named for named in names_of(config, name))


def read_llama(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint:
    """The blueprint of a Llama checkpoint of which the caller says that it is a DiffuLLaMA."""
    reader = decoder_reader(FAMILY, config, ("LlamaForCausalLM",))
    checkpoint = read_decoder(reader, "llama")
    reader.finish()

    has_mask = checkpoint.config.vocab_size > MASK_TOKEN_ID
    reading = Reading(
        alignment="shifted",
        mask_token_id=MASK_TOKEN_ID if has_mask else None,
        end_token_ids=checkpoint.end_token_ids,
    )
    return language_model_blueprint(
        FAMILY,
        checkpoint.model,
        checkpoint.config,
        checkpoint.weights,
        reading,
        D3PMAbsorbingScheduler,
        licence_of(name, LICENCES),
    )
