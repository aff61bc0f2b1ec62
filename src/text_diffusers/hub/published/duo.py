"""Duo, uniform diffusion (https://arxiv.org/abs/2506.10892): s-sahoo/duo and duo-distilled."""

from functools import partial
from typing import Any

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.ddit import (
    INERT,
    DiffusionTransformer,
    read_sizes,
    uniform_scheduler,
)


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a checkpoint of Duo, or `None` for one of another family.

    Raises:
        ValueError: if its configuration says what is not understood.
    """
    if config.get("model_type") != "duo":
        return None
    # A causal network would be another one, without the time.
    values = {"causal": (False,)}
    reader = ConfigReader("Duo", config, values=values, ignored=(*INERT, "var_min"))
    sizes = read_sizes(reader)
    reader.finish()

    network = DiffusionTransformer(sizes, prefix="backbone.", time_input="sigma")
    return network.blueprint(
        "Duo",
        stored,
        partial(uniform_scheduler, vocab_size=sizes["vocab_size"]),
        has_mask=False,
    )
