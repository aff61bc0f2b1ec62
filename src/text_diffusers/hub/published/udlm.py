"""UDLM, uniform diffusion with guidance (https://arxiv.org/abs/2412.10193): kuleshov-group/udlm-lm1b and udlm-qm9."""

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

# The network is always shown the time.
VALUES = {"time_conditioning": (True,)}


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a checkpoint of UDLM, or `None` for one of another family.

    Raises:
        ValueError: if its configuration says what is not understood.
    """
    if config.get("model_type") != "udlm":
        return None
    ignored = (*INERT, "cfg_num_classes")
    reader = ConfigReader("UDLM", config, values=VALUES, ignored=ignored)
    sizes = read_sizes(reader)
    # Behind the classes there is one more row, for texts without a label. The number is there without classes too.
    if reader.flag("cfg"):
        sizes["num_classes"] = reader.integer("cfg_num_classes")
        sizes["silu_before_sum"] = True
    reader.finish()

    network = DiffusionTransformer(sizes, prefix="backbone.", time_input="sigma")
    return network.blueprint(
        "UDLM",
        stored,
        partial(uniform_scheduler, vocab_size=sizes["vocab_size"]),
        has_mask=False,
    )
