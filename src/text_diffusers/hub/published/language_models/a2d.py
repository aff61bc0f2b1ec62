"""dllm's models that were autoregressive (Tiny-A2D): Llama, Qwen2 or Qwen3 without the causal mask.

Code: https://github.com/ZHZisZZ/dllm.
"""

from typing import Any

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor
from text_diffusers.hub.published.language_models.decoders import (
    decoder_reader,
    greedy_scheduler,
    language_model_blueprint,
    names_of,
    read_decoder,
)
from text_diffusers.models.reading import Reading

FAMILY = "Tiny-A2D"

# `model_type` and the class in its code.
KINDS = {
    "a2d-llama": ("llama", "A2DLlamaLMHeadModel"),
    "a2d-qwen2": ("qwen2", "A2DQwen2LMHeadModel"),
    "a2d-qwen3": ("qwen3", "A2DQwen3LMHeadModel"),
}

# The configuration does not tell models of blocks from the others, but the names of the published ones do.
BLOCK_NAME = "bd3lm"
BLOCK_LENGTH = 32


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of an A2D checkpoint; `None` for another one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in KINDS:
        return None

    kind, architecture = KINDS[model_type]
    reader = decoder_reader(FAMILY, config, (architecture,))
    checkpoint = read_decoder(reader, kind)
    # The published ones leave it to the tokenizer.
    mask_token_id = reader.token_id("mask_token_id", checkpoint.config.vocab_size)
    reader.finish()

    has_blocks = any(BLOCK_NAME in named for named in names_of(config, name))
    reading = Reading(
        attention="block" if has_blocks else "bidirectional",
        block_length=BLOCK_LENGTH if has_blocks else None,
        blocks_from="prompt",
        mask_token_id=mask_token_id,
        end_token_ids=checkpoint.end_token_ids,
    )
    return language_model_blueprint(
        FAMILY,
        checkpoint.model,
        checkpoint.config,
        checkpoint.weights,
        reading,
        greedy_scheduler("rounded"),
        licence=None,
        mask_token="<|mask|>",
    )
