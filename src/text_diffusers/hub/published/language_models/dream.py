"""Dream, Dream-Coder and DiffuCoder: Qwen2 without the causal mask, whose predictions are shifted by one.

Papers: https://arxiv.org/abs/2508.15487 and, of DiffuCoder, https://arxiv.org/abs/2506.20639.
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

FAMILY = "Dream"
MODEL_TYPE = "Dream"
LICENCES = {"Dream-org/Dream-": "apache-2.0"}


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a Dream checkpoint; `None` for another one."""
    if config.get("model_type") != MODEL_TYPE:
        return None

    reader = decoder_reader(FAMILY, config, ("DreamModel",))
    checkpoint = read_decoder(reader, "qwen2")
    mask_token_id = reader.token_id("mask_token_id", checkpoint.config.vocab_size)
    reader.finish()

    reading = Reading(
        alignment="shifted",
        mask_token_id=mask_token_id,
        end_token_ids=checkpoint.end_token_ids,
    )
    return language_model_blueprint(
        FAMILY,
        checkpoint.model,
        checkpoint.config,
        checkpoint.weights,
        reading,
        greedy_scheduler("truncated", order="entropy", grid_end=1e-3),
        licence_of(name, LICENCES),
        mask_token="<|mask|>",
        tokenizer="Qwen2Tokenizer",
    )
