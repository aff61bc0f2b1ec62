"""LLaDA, LLaDA-1.5 and iLLaDA: Llama without the causal mask, under other names.

Paper: https://arxiv.org/abs/2502.09992. The code of its authors takes a time for nothing and does not move its
predictions; pads are cut as keys, and their positions count.
"""

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from text_diffusers.common.validation import require
from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.language_models.decoders import (
    architecture_values,
    first_of,
    greedy_scheduler,
    language_model_blueprint,
    licence_of,
    native_config,
    require_divisor,
)
from text_diffusers.models.reading import Reading

FAMILY = "LLaDA"
MODEL_TYPE = "llada"
LICENCES = {"GSAI-ML/LLaDA-8B-": "mit", "GSAI-ML/iLLaDA-": "apache-2.0"}

# The options of its code that make a Llama; the first of each is also what its code takes for a missing one.
VALUES: dict[str, tuple[Any, ...]] = {
    **architecture_values(("LLaDAModelLM",)),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "clip_qkv": (None,),
    "input_emb_norm": (False,),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (None, False),
    "rope_full_precision": (True,),
    "scale_logits": (False,),
}
# Its code takes something else for those of them that are missing.
NEEDED_VALUES: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "block_type": ("llama",),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "layer_norm_type": ("rms",),
    "rope": (True,),
}
# Of training, of dropout, and of options that `VALUES` turns off; `mlp_ratio` is not asked beside `mlp_hidden_size`.
IGNORED = (
    "alibi_bias_max",
    "attention_dropout",
    "attention_layer_norm_with_affine",
    "embedding_dropout",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "init_std",
    "mlp_ratio",
    "precision",
    "residual_dropout",
)

# From the weights of a layer in transformers to their names in its code.
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "q_proj.weight",
    "self_attn.k_proj.weight": "k_proj.weight",
    "self_attn.v_proj.weight": "v_proj.weight",
    "self_attn.o_proj.weight": "attn_out.weight",
    "post_attention_layernorm.weight": "ff_norm.weight",
    "mlp.gate_proj.weight": "ff_proj.weight",
    "mlp.up_proj.weight": "up_proj.weight",
    "mlp.down_proj.weight": "ff_out.weight",
}
PREFIX = "model.transformer"


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a LLaDA checkpoint; `None` for another one."""
    if config.get("model_type") != MODEL_TYPE:
        return None

    reader = ConfigReader(FAMILY, config, VALUES, IGNORED)
    for key, accepted in NEEDED_VALUES.items():
        reader.one_of(key, accepted)
    vocab_size = reader.integer("vocab_size")
    num_layers = reader.integer("n_layers")
    tied = reader.flag("weight_tying")

    # The embedding could have more rows than the vocabulary, which none of the published ones has.
    rows = reader.integer("embedding_size", default=vocab_size)
    require(rows == vocab_size, "embedding_size", f"the `vocab_size`={vocab_size}", rows)

    end_token_ids = reader.token_ids("eos_token_id", vocab_size)
    # Padding is the end of texts, whose embedding transformers would not train if it knew.
    reader.token_id("pad_token_id", vocab_size)
    entries = {
        "vocab_size": vocab_size,
        "hidden_size": reader.integer("d_model"),
        "intermediate_size": reader.integer("mlp_hidden_size"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": reader.integer("n_heads"),
        "num_key_value_heads": reader.integer("n_kv_heads"),
        "max_position_embeddings": reader.integer("max_sequence_length"),
        "rms_norm_eps": reader.number("rms_norm_eps"),
        "rope_parameters": {"rope_type": "default", "rope_theta": reader.number("rope_theta")},
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": first_of(end_token_ids),
    }
    require_divisor("num_attention_heads", entries, "hidden_size")
    require_divisor("num_key_value_heads", entries, "num_attention_heads")
    mask_token_id = reader.token_id("mask_token_id", vocab_size)
    reader.finish()

    return language_model_blueprint(
        FAMILY,
        LlamaForCausalLM,
        native_config(LlamaConfig, FAMILY, **entries),
        llada_weights(num_layers, tied),
        Reading(mask_token_id=mask_token_id, end_token_ids=end_token_ids),
        greedy_scheduler("even"),
        licence_of(name, LICENCES),
        mask_token="<|mdm_mask|>",
    )


def llada_weights(num_layers: int, tied: bool) -> dict[str, Weight]:
    weights = {
        "model.embed_tokens.weight": Weight((f"{PREFIX}.wte.weight",)),
        "model.norm.weight": Weight((f"{PREFIX}.ln_f.weight",)),
    }
    if not tied:
        weights["lm_head.weight"] = Weight((f"{PREFIX}.ff_out.weight",))
    for layer in range(num_layers):
        for native, published in LAYER_NAMES.items():
            weights[f"model.layers.{layer}.{native}"] = Weight(
                (f"{PREFIX}.blocks.{layer}.{published}",)
            )
    return weights
