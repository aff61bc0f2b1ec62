"""BD3-LM, block diffusion (https://arxiv.org/abs/2503.09573): kuleshov-group/bd3lm-owt-block_size*."""

from typing import Any

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.ddit import (
    INERT,
    DiffusionTransformer,
    absorbing_scheduler,
    read_sizes,
)

# A token sees clean tokens of the blocks before it, and the network does not see the time.
VALUES = {"causal": (False,), "cross_attn": (True,), "time_conditioning": (False,)}

# How attention is computed, and which times the authors trained and evaluated at.
TIMES = ("sampling_eps_min", "sampling_eps_max")
IGNORED = (*INERT, *TIMES, "attn_backend", "var_min")


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a checkpoint of BD3-LM, or `None` for one of another family.

    Raises:
        ValueError: if its configuration says what is not understood.
    """
    if config.get("model_type") != "bd3lm":
        return None
    reader = ConfigReader("BD3-LM", config, values=VALUES, ignored=IGNORED)
    sizes = read_sizes(reader)
    block_length = reader.integer("block_size")
    is_modulated = reader.flag("adaln")
    reader.finish()

    # The mask is the last id, one behind those of the tokenizer.
    mask_token_id = sizes["vocab_size"] - 1
    network = DiffusionTransformer(
        sizes | {"block_length": block_length, "mask_token_id": mask_token_id},
        prefix="backbone.",
        time_input=None,
        is_modulated=is_modulated,
    )
    return network.blueprint(
        "BD3-LM",
        stored,
        absorbing_scheduler,
        ignored=network.rotary_tables() | set(TIMES),
        mask_token_id=mask_token_id,
    )
