"""dllm's BERT-Chat: ModernBERT as transformers has it, a masked language model that learned to write.

Code: https://github.com/ZHZisZZ/dllm. A masked language model needs no word on how it is to be read.
"""

from functools import partial
from typing import Any

from transformers import ModernBertConfig, ModernBertForMaskedLM

from text_diffusers.common.validation import require
from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.language_models.decoders import (
    architecture_values,
    first_of,
    greedy_scheduler,
    names_of,
    native_config,
    require_divisor,
)
from text_diffusers.models.reading import Reading, write_reading

FAMILY = "ModernBERT"
MODEL_TYPE = "modernbert"

VALUES: dict[str, tuple[Any, ...]] = {
    **architecture_values(("ModernBertForMaskedLM",)),
    "attention_bias": (False,),
    "classifier_activation": ("gelu",),
    "classifier_bias": (False,),
    "decoder_bias": (True,),
    "hidden_activation": ("gelu",),
    "mlp_bias": (False,),
    "norm_bias": (False,),
    "rope_scaling": (None,),
    "tie_word_embeddings": (True,),
}
# Of training, and of classifiers; the norms read `norm_eps`.
IGNORED = (
    "attention_dropout",
    "classifier_dropout",
    "classifier_pooling",
    "deterministic_flash_attn",
    "embedding_dropout",
    "gradient_checkpointing",
    "initializer_cutoff_factor",
    "initializer_range",
    "layer_norm_eps",
    "mlp_dropout",
    "position_embedding_type",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_pred_ignore_index",
    "sparse_prediction",
)
SPECIAL_IDS = ("bos_token_id", "cls_token_id", "pad_token_id", "sep_token_id")

# What a layer sees: all tokens, or a window around each.
FULL, WINDOW = "full_attention", "sliding_attention"

# In the names of models that were trained to write texts, ends included.
WRITERS = ("chat", "mdlm")

LAYER_WEIGHTS = (
    "attn_norm.weight",
    "attn.Wqkv.weight",
    "attn.Wo.weight",
    "mlp_norm.weight",
    "mlp.Wi.weight",
    "mlp.Wo.weight",
)


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a ModernBERT with the head of a masked language model; `None` for another checkpoint."""
    if config.get("model_type") != MODEL_TYPE:
        return None

    reader = ConfigReader(FAMILY, config, VALUES, IGNORED)
    vocab_size = reader.integer("vocab_size")
    num_layers = reader.integer("num_hidden_layers")
    end_token_ids = reader.token_ids("eos_token_id", vocab_size)
    entries: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": reader.integer("hidden_size"),
        "intermediate_size": reader.integer("intermediate_size"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": reader.integer("num_attention_heads"),
        "max_position_embeddings": reader.integer("max_position_embeddings"),
        "norm_eps": reader.number("norm_eps"),
        "local_attention": reader.integer("local_attention"),
        "layer_types": layer_types(reader, num_layers),
        "rope_parameters": rope_by_layer_type(reader),
        "eos_token_id": first_of(end_token_ids),
    }
    entries |= {key: reader.token_id(key, vocab_size) for key in SPECIAL_IDS}
    require_divisor("num_attention_heads", entries, "hidden_size")
    reader.finish()

    native = native_config(ModernBertConfig, FAMILY, **entries)
    # The configuration is that of any ModernBERT, but the names of those that write, and end, texts tell them.
    if any(part in named for part in WRITERS for named in names_of(config, name)):
        write_reading(native, Reading(end_token_ids=end_token_ids))
    return Blueprint(
        family=FAMILY,
        build=partial(ModernBertForMaskedLM, native),
        weights=modernbert_weights(num_layers),
        scheduler=greedy_scheduler("rounded"),
        end_token_ids=end_token_ids,
    )


def layer_types(reader: ConfigReader, num_layers: int) -> list[str]:
    """What each layer sees, as transformers 5 writes it, or from the distance between the layers that see all."""
    if reader.has("layer_types"):
        types = reader.strings("layer_types")
        are_known = len(types) == num_layers and {*types} <= {FULL, WINDOW}
        limit = f"{num_layers} entries that are {FULL!r} or {WINDOW!r}"
        require(are_known, "layer_types", limit, types)
        return types

    distance = reader.integer("global_attn_every_n_layers")
    return [WINDOW if layer % distance else FULL for layer in range(num_layers)]


def rope_by_layer_type(reader: ConfigReader) -> dict[str, dict[str, Any]]:
    """The rotary positions of both kinds of layers."""
    if not reader.has("rope_parameters"):
        bases = {
            FULL: reader.number("global_rope_theta"),
            WINDOW: reader.number("local_rope_theta"),
        }
    else:
        given = ConfigReader(f"{FAMILY}, `rope_parameters`", reader.mapping("rope_parameters"))
        bases = {}
        for kind in (FULL, WINDOW):
            rope = ConfigReader(
                f"{FAMILY}, `rope_parameters`, {kind!r}",
                given.mapping(kind),
                values={"rope_type": ("default",)},
            )
            bases[kind] = rope.number("rope_theta")
            rope.finish()
        given.finish()
    return {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}


def modernbert_weights(num_layers: int) -> dict[str, Weight]:
    """Each entry of the state dict from the stored tensor of its own name."""
    names = [
        "model.embeddings.tok_embeddings.weight",
        "model.embeddings.norm.weight",
        "model.final_norm.weight",
        "head.dense.weight",
        "head.norm.weight",
        "decoder.bias",
    ]
    for layer in range(num_layers):
        for weight in LAYER_WEIGHTS:
            # The embeddings, which the first layer reads, are normed already.
            if layer > 0 or weight != "attn_norm.weight":
                names.append(f"model.layers.{layer}.{weight}")
    return {name: Weight((name,)) for name in names}
