"""GIDD, masks and random tokens at once (https://arxiv.org/abs/2503.04482): dvruette/gidd-small-* and gidd-base-*."""

from functools import partial
from typing import Any

from text_diffusers.common.validation import is_number, require, require_int
from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.ddit import INERT, DiffusionTransformer, read_sizes
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler
from text_diffusers.schedulers.scheduling_d3pm_hybrid import D3PMHybridScheduler

EMBEDDING = "vocab_embed.embedding"
SIZES = {
    "hidden_size": "hidden_size",
    "condition_size": "timestep_cond_dim",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "max_length": "max_seq_len",
}

# The vocabulary was rounded up in training, so that the tensors tell its size. `t_eps` is how close to the ends of
# time the authors' sampler goes.
IGNORED = (*INERT, "attention_dropout", "t_eps", "vocab_size")


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a checkpoint of GIDD, or `None` for one of another family.

    Its mask is that of its tokenizer, and not in the configuration.

    Raises:
        ValueError: if its configuration says what is not understood, or it has no embedding.
    """
    if config.get("model_type") != "dit":
        return None
    reader = ConfigReader("GIDD", config, ignored=(*IGNORED, "p_uniform"))
    sizes = read_sizes(reader, SIZES)
    p_uniform: Any = config.get("p_uniform")
    is_share = is_number(p_uniform, 0, 1) and p_uniform != 1
    require(is_share, "p_uniform", "a number in [0, 1) in the configuration of GIDD", p_uniform)
    reader.finish()

    if EMBEDDING not in stored or not stored[EMBEDDING].shape:
        raise ValueError(f"The weights of GIDD must have the matrix {EMBEDDING!r}, but lack it.")
    sizes["vocab_size"] = stored[EMBEDDING].shape[0]

    network = DiffusionTransformer(sizes, time_input="fraction")
    return network.blueprint(
        "GIDD",
        stored,
        partial(hybrid_scheduler, p_uniform=p_uniform),
    )


def hybrid_scheduler(mask_token_id: Any, p_uniform: float) -> Any:
    """The scheduler of GIDD's noise, in which all ids before the mask are tokens.

    Raises:
        ValueError: if there is no mask.
    """
    require_int("mask_token_id", mask_token_id, 1)
    # Without random tokens it is absorbing noise, which asks the network at fewer positions.
    if p_uniform == 0:
        return D3PMAbsorbingScheduler(mask_token_id)
    return D3PMHybridScheduler(
        mask_token_id, mask_token_id, p_uniform=p_uniform, reverse_rule="plug_in"
    )
