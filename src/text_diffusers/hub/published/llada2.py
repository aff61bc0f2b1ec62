"""LLaDA2.0 (https://arxiv.org/abs/2512.15745) and LLaDA2.1: mixtures of experts that write block by block.

The network is that of `Glm4MoeForCausalLM` of transformers: sigmoid routing with groups of experts and a bias that
only chooses among them, shared experts, norms of queries and keys before a partial rotary embedding, dense first
layers.

Shapes: D hidden width, H heads and K key/value heads of width C, M width of an expert.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

from text_diffusers.common.validation import require
from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.language_models.decoders import (
    greedy_scheduler,
    require_divisor,
)
from text_diffusers.models.reading import Reading, write_reading

# Of the published code and tokenizer; configurations need not say them.
BLOCK_LENGTH = 32
MASK_TOKEN_ID = 156895
END_TOKEN_ID = 156892

# The confidence above which a token is settled at once.
THRESHOLD = 0.95

# Keys of the sizes of the network, by their names in `Glm4MoeConfig`.
SIZE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "moe_intermediate_size": "moe_intermediate_size",
    "n_routed_experts": "num_experts",
    "n_shared_experts": "num_shared_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "n_group": "n_group",
    "topk_group": "topk_group",
}

# What the published networks have, and all that the network of transformers can be.
VALUES = {
    "architectures": (["LLaDA2MoeModelLM"],),
    "hidden_act": ("silu",),
    "moe_router_enable_expert_bias": (True,),
    "norm_head": (False,),
    "norm_topk_prob": (True,),
    # Layers that predict further tokens.
    "num_nextn_predict_layers": (0,),
    "rope_scaling": (None,),
    "router_dtype": ("fp32",),
    "score_function": ("sigmoid",),
    "tie_word_embeddings": (False,),
    "use_bias": (False,),
    "use_qk_norm": (True,),
    "use_qkv_bias": (False,),
    "use_rmsnorm": (True,),
    "use_sliding_window": (False,),
    "using_split_qkv_in_self_attention": (False,),
}

# Dropout, initial weights and losses of training, and windows that are not used.
IGNORED = {
    "attention_dropout",
    "bos_token_id",
    "embedding_dropout",
    "initializer_range",
    "max_window_layers",
    "mtp_loss_scaling_factor",
    "output_dropout",
    "output_router_logits",
    "pad_token_id",
    "router_aux_loss_coef",
    "sliding_window",
}


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a checkpoint of LLaDA2, or `None` for one of another family.

    Raises:
        ValueError: if its configuration says what is not supported.
    """
    if config.get("model_type") != "llada2_moe":
        return None
    reader = ConfigReader("LLaDA2", config, VALUES, IGNORED)
    sizes = {size: reader.integer(key) for size, key in SIZE_KEYS.items()}
    num_dense_layers = reader.integer("first_k_dense_replace", low=0)

    arguments = sizes | {
        "first_k_dense_replace": num_dense_layers,
        "rms_norm_eps": reader.number("rms_norm_eps"),
        "routed_scaling_factor": reader.number("routed_scaling_factor"),
        "rope_parameters": rotary_parameters(reader, sizes["head_dim"]),
    }
    require_divisor("num_key_value_heads", sizes, "num_attention_heads")
    reading = block_reading(reader, sizes["vocab_size"])
    check_experts(reader, sizes)
    reader.finish()
    check_experts_stored(sizes, num_dense_layers, stored)

    return Blueprint(
        family="LLaDA2",
        build=partial(build_model, arguments, reading),
        weights=weights_of(sizes, num_dense_layers),
        scheduler=greedy_scheduler("even", threshold=THRESHOLD),
        mask_token_id=reading.mask_token_id,
        end_token_ids=reading.end_token_ids,
        mask_token="<|mask|>",
        licence="apache-2.0",
    )


def build_model(arguments: dict[str, Any], reading: Reading) -> nn.Module:
    """The model of transformers, with weights of any value."""
    config = Glm4MoeConfig(
        **arguments,
        hidden_act="silu",
        attention_bias=False,
        use_qk_norm=True,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        num_mtp_layers=0,
    )
    write_reading(config, reading)
    return Glm4MoeForCausalLM(config)


# The configuration


def block_reading(reader: ConfigReader, vocab_size: int) -> Reading:
    """How the predictions are read, with the ids of the published tokenizer as far as the vocabulary has them."""
    mask_token_id = reader.token_id("mask_token_id", vocab_size)
    if mask_token_id is None and MASK_TOKEN_ID < vocab_size:
        mask_token_id = MASK_TOKEN_ID
    end_token_ids = reader.token_ids("eos_token_id", vocab_size)
    if not end_token_ids and END_TOKEN_ID < vocab_size:
        end_token_ids = [END_TOKEN_ID]

    return Reading(
        attention="block",
        block_length=BLOCK_LENGTH,
        mask_token_id=mask_token_id,
        end_token_ids=end_token_ids,
    )


def rotary_parameters(reader: ConfigReader, head_dim: int) -> dict[str, Any]:
    """Of transformers: the first entries of a head are turned, and the rest is not."""
    share = reader.number("partial_rotary_factor")
    require(share <= 1, "partial_rotary_factor", "at most 1", share)

    # The same said twice.
    width = reader.integer("rotary_dim", default=int(head_dim * share))
    limit = f"`head_dim`={head_dim} times `partial_rotary_factor`={share}"
    require(width == head_dim * share, "rotary_dim", limit, width)
    require(width % 2 == 0, "rotary_dim", "even", width)
    return {
        "rope_type": "default",
        "rope_theta": reader.number("rope_theta"),
        "partial_rotary_factor": share,
    }


def check_experts(reader: ConfigReader, sizes: dict[str, int]):
    """Refuse numbers of experts among which the router cannot choose."""
    experts = sizes["n_routed_experts"]
    groups = sizes["n_group"]
    chosen_groups = sizes["topk_group"]
    chosen = sizes["num_experts_per_tok"]

    # A group is judged by its two best experts.
    limit = f"a multiple of `n_group`={groups}, and at least twice as many"
    require(experts % groups == 0 and experts >= 2 * groups, "num_experts", limit, experts)
    limit = f"at most `n_group`={groups}"
    require(chosen_groups <= groups, "topk_group", limit, chosen_groups)

    # The authors' code takes the weight of a single expert as it is; that of transformers divides it by itself.
    most = chosen_groups * (experts // groups)
    limit = f"from 2 to the {most} experts of `topk_group`={chosen_groups} groups"
    require(2 <= chosen <= most, "num_experts_per_tok", limit, chosen)

    # The authors' code gives the shared experts this width, whatever the key says.
    width = sizes["n_shared_experts"] * sizes["moe_intermediate_size"]
    named_width = reader.integer("moe_shared_expert_intermediate_size", default=width)
    limit = f"`num_shared_experts` times `moe_intermediate_size`, {width}"
    require(named_width == width, "moe_shared_expert_intermediate_size", limit, named_width)


def check_experts_stored(
    sizes: dict[str, int], num_dense_layers: int, stored: dict[str, StoredTensor]
):
    """Refuse more experts than a checkpoint has tensors, before a name is made for each of them."""
    num_sparse_layers = max(0, sizes["num_hidden_layers"] - num_dense_layers)
    experts = sizes["n_routed_experts"]
    limit = f"a number of which each has weights in {num_sparse_layers} layers, and there are {len(stored)} tensors"
    require(num_sparse_layers * experts <= len(stored), "num_experts", limit, experts)


# The weights


def weights_of(sizes: dict[str, int], num_dense_layers: int) -> dict[str, Weight]:
    """For each entry of the state dict of `Glm4MoeForCausalLM`."""
    weights = {
        "model.embed_tokens.weight": Weight(("model.word_embeddings.weight",)),
        "model.norm.weight": Weight(("model.norm.weight",)),
        "lm_head.weight": Weight(("lm_head.weight",)),
    }
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{norm}.weight"] = Weight((f"{prefix}{norm}.weight",))
        weights |= attention_weights(prefix, sizes)

        mlp = f"{prefix}mlp."
        if layer < num_dense_layers:
            weights |= mlp_weights(mlp)
        else:
            weights |= expert_weights(mlp, sizes["n_routed_experts"])
    return weights


def attention_weights(prefix: str, sizes: dict[str, int]) -> dict[str, Weight]:
    """Of a layer: queries, keys and values stand below each other in one matrix ((H + 2 K) C, D)."""
    source = f"{prefix}attention."
    target = f"{prefix}self_attn."
    weights = {
        f"{target}q_norm.weight": Weight((f"{source}query_layernorm.weight",)),
        f"{target}k_norm.weight": Weight((f"{source}key_layernorm.weight",)),
        f"{target}o_proj.weight": Weight((f"{source}dense.weight",)),
    }

    rows = head_rows(sizes)
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        cut = partial(cut_part, part=part, row_counts=rows)
        weights[f"{target}{name}.weight"] = Weight((f"{source}query_key_value.weight",), cut)
    return weights


def mlp_weights(prefix: str) -> dict[str, Weight]:
    """Of a feed-forward layer, or of the shared experts."""
    names = [f"{prefix}{layer}.weight" for layer in ("gate_proj", "up_proj", "down_proj")]
    return {name: Weight((name,)) for name in names}


def expert_weights(prefix: str, num_experts: int) -> dict[str, Weight]:
    """Of a mixture of experts, all of which are in two tensors."""
    gates_and_ups = []
    downs = []
    for expert in range(num_experts):
        source = f"{prefix}experts.{expert}."
        gates_and_ups += [f"{source}gate_proj.weight", f"{source}up_proj.weight"]
        downs.append(f"{source}down_proj.weight")

    bias = Weight((f"{prefix}gate.expert_bias",))
    return {
        f"{prefix}gate.weight": Weight((f"{prefix}gate.weight",)),
        f"{prefix}gate.e_score_correction_bias": bias,
        f"{prefix}experts.gate_up_proj": Weight(tuple(gates_and_ups), stacked_pairs),
        f"{prefix}experts.down_proj": Weight(tuple(downs), stacked),
        **mlp_weights(f"{prefix}shared_experts."),
    }


def head_rows(sizes: dict[str, int]) -> list[int]:
    """The rows that make queries, keys and values, H C, K C and K C."""
    numbers_of_heads = [
        sizes["num_attention_heads"],
        sizes["num_key_value_heads"],
        sizes["num_key_value_heads"],
    ]
    return [number * sizes["head_dim"] for number in numbers_of_heads]


def cut_part(tensor: Tensor, part: int, row_counts: list[int]) -> Tensor:
    """One part of the rows of a matrix."""
    return tensor.split(row_counts)[part]


def stacked(*downs: Tensor) -> Tensor:
    """(experts, D, M) of a matrix (D, M) of each."""
    return torch.stack(downs)


def stacked_pairs(*gates_and_ups: Tensor) -> Tensor:
    """(experts, 2 M, D) of two matrices (M, D) of each: the gate above the other."""
    # Stacked first, so that all must have one shape; then each pair is one matrix already.
    return torch.stack(gates_and_ups).view(len(gates_and_ups) // 2, -1, gates_and_ups[0].shape[-1])
