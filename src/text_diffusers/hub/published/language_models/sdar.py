"""SDAR: Qwen3 that sees blocks, its own and those before it.

Paper: https://arxiv.org/abs/2510.06303.
"""

from typing import Any

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor
from text_diffusers.hub.published.language_models.decoders import (
    decoder_reader,
    greedy_scheduler,
    language_model_blueprint,
    licence_of,
    read_decoder,
)
from text_diffusers.models.reading import Reading

FAMILY = "SDAR"
MODEL_TYPE = "sdar"
LICENCES = {"JetLM/SDAR-4B-": "apache-2.0"}

# Of their training.
IGNORED = (
    "debug",
    "ep_size",
    "fuse_cross_entropy",
    "micro_forward",
    "skip_checkpoint",
    "use_deepep",
)


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of an SDAR checkpoint; `None` for another one."""
    if config.get("model_type") != MODEL_TYPE:
        return None

    reader = decoder_reader(FAMILY, config, ("SDARForCausalLM",), IGNORED)
    checkpoint = read_decoder(reader, "qwen3")
    mask_token_id = reader.token_id("mask_token_id", checkpoint.config.vocab_size)
    block_length = reader.integer("block_size")
    reader.finish()

    reading = Reading(
        attention="block",
        block_length=block_length,
        mask_token_id=mask_token_id,
        end_token_ids=checkpoint.end_token_ids,
    )
    return language_model_blueprint(
        FAMILY,
        checkpoint.model,
        checkpoint.config,
        checkpoint.weights,
        reading,
        greedy_scheduler("even"),
        licence_of(name, LICENCES),
        mask_token="<MASK>",
        tokenizer="Qwen2Tokenizer",
    )
