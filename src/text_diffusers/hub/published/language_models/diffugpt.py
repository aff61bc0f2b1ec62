"""DiffuGPT: GPT-2 without the causal mask, whose predictions are shifted by one.

Paper: https://arxiv.org/abs/2410.17891. Its configuration is GPT-2's own; the names of its weights tell it apart.
"""

from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.language_models.decoders import (
    architecture_values,
    first_of,
    language_model_blueprint,
    licence_of,
    native_config,
    require_divisor,
)
from text_diffusers.models.reading import Reading
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler

FAMILY = "DiffuGPT"
PREFIX = "denoise_model"
LICENCES = {"diffusionfamily/diffugpt-": "apache-2.0"}

# An ordinary token, which the code of its authors takes for the mask.
MASK_TOKEN_ID = 10541

VALUES: dict[str, tuple[Any, ...]] = {
    **architecture_values(("GPT2LMHeadModel", "DiscreteDiffusionModel")),
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new",),
    "reorder_and_upcast_attn": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "tie_word_embeddings": (True,),
}
IGNORED = (
    "attn_pdrop",
    "embd_pdrop",
    "initializer_range",
    "n_ctx",
    "resid_pdrop",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
)

LAYER_PARTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a DiffuGPT checkpoint; `None` for another one."""
    if not any(tensor.startswith(f"{PREFIX}.") for tensor in stored):
        return None

    reader = ConfigReader(FAMILY, config, VALUES, IGNORED)
    vocab_size = reader.integer("vocab_size")
    num_layers = reader.integer("n_layer")
    end_token_ids = reader.token_ids("eos_token_id", vocab_size)
    entries: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_positions": reader.integer("n_positions"),
        "n_embd": reader.integer("n_embd"),
        "n_layer": num_layers,
        "n_head": reader.integer("n_head"),
        "layer_norm_epsilon": reader.number("layer_norm_epsilon"),
        "bos_token_id": reader.token_id("bos_token_id", vocab_size),
        "eos_token_id": first_of(end_token_ids),
        "pad_token_id": reader.token_id("pad_token_id", vocab_size),
    }
    # Null is four times the width.
    if reader.has("n_inner"):
        entries["n_inner"] = reader.integer("n_inner")
    else:
        reader.one_of("n_inner", (None,), default=None)
    require_divisor("n_head", entries, "n_embd")
    reader.finish()

    reading = Reading(
        alignment="shifted",
        mask_token_id=MASK_TOKEN_ID if vocab_size > MASK_TOKEN_ID else None,
        end_token_ids=end_token_ids,
    )
    return language_model_blueprint(
        FAMILY,
        GPT2LMHeadModel,
        native_config(GPT2Config, FAMILY, **entries),
        gpt2_weights(num_layers),
        reading,
        D3PMAbsorbingScheduler,
        licence_of(name, LICENCES),
    )


def gpt2_weights(num_layers: int) -> dict[str, Weight]:
    """The head is the embedding, which is stored under a name of its own."""
    weights = {
        "transformer.wte.weight": Weight(("embed_tokens.weight",)),
        "transformer.wpe.weight": Weight((f"{PREFIX}.wpe.weight",)),
    }
    parts = ["ln_f"]
    for layer in range(num_layers):
        parts += [f"h.{layer}.{part}" for part in LAYER_PARTS]
    for part in parts:
        for kind in ("weight", "bias"):
            weights[f"transformer.{part}.{kind}"] = Weight((f"{PREFIX}.{part}.{kind}",))
    return weights
