"""MDLM, masked diffusion (https://arxiv.org/abs/2406.07524): kuleshov-group/mdlm-owt and mdlm-noeos-owt."""

from typing import Any

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.ddit import (
    INERT,
    DiffusionTransformer,
    absorbing_scheduler,
    read_sizes,
)


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a checkpoint of MDLM, or `None` for one of another family.

    Raises:
        ValueError: if its configuration says what is not understood.
    """
    if config.get("model_type") != "mdlm":
        return None
    reader = ConfigReader("MDLM", config, ignored=INERT)
    sizes = read_sizes(reader)
    # The published networks are never shown the time: the number of masks tells it.
    sees_time = reader.flag("time_conditioning")
    reader.finish()

    # The mask is the last id, one behind those of the tokenizer.
    mask_token_id = sizes["vocab_size"] - 1
    network = DiffusionTransformer(
        sizes | {"mask_token_id": mask_token_id},
        prefix="backbone.",
        time_input="sigma" if sees_time else None,
    )
    return network.blueprint(
        "MDLM",
        stored,
        absorbing_scheduler,
        mask_token_id=mask_token_id,
        licence="apache-2.0",
    )
