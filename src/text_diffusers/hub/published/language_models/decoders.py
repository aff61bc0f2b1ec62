"""Llama, Qwen2 and Qwen3 of transformers, as the networks that several published families are."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from text_diffusers.common.validation import require
from text_diffusers.hub.published.blueprint import Blueprint, Weight
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.models.reading import Reading, write_reading
from text_diffusers.schedulers.scheduling_confidence import ConfidenceScheduler

# Weights of a layer.
PROJECTIONS = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
QKV_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")


@dataclass(frozen=True)
class Decoder:
    """A network of transformers.

    Attributes:
        config: the class of its configuration.
        model: the class with the head.
        layer_weights: names of the weights of a layer.
        has_head_dim: whether its configuration must have the width of a head; else it may.
    """

    config: Any
    model: Any
    layer_weights: tuple[str, ...]
    has_head_dim: bool = False


DECODERS = {
    "llama": Decoder(LlamaConfig, LlamaForCausalLM, PROJECTIONS),
    "qwen2": Decoder(Qwen2Config, Qwen2ForCausalLM, (*PROJECTIONS, *QKV_BIASES)),
    "qwen3": Decoder(Qwen3Config, Qwen3ForCausalLM, (*PROJECTIONS, *HEAD_NORMS), has_head_dim=True),
}

# Keys that these configurations may have, and what this network is without.
DECODER_VALUES: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
# Windows do not matter where they are not used, nor does what only training reads.
DECODER_IGNORED = ("attention_dropout", "initializer_range", "max_window_layers", "sliding_window")

# The parameters of each kind of rotary positions, beside the base.
ROPE_PARAMETERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


@dataclass
class DecoderCheckpoint:
    """A configuration in the words of transformers, understood.

    Attributes:
        config: of the network.
        model: the class of the network.
        weights: from the entries of its state dict to stored tensors of the same names.
        end_token_ids: as the configuration says.
    """

    config: Any
    model: Any
    weights: dict[str, Weight]
    end_token_ids: list[int]


def decoder_reader(
    family: str,
    config: Mapping[str, Any],
    architectures: tuple[str, ...],
    ignored: Collection[str] = (),
) -> ConfigReader:
    """A reader of a configuration that has the keys of Llama or Qwen."""
    values = {**DECODER_VALUES, **architecture_values(architectures)}
    return ConfigReader(family, config, values, (*DECODER_IGNORED, *ignored))


def architecture_values(architectures: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    """The entry for `ConfigReader` that one of these must be the `architectures`, or that there are none."""
    return {"architectures": (*([name] for name in architectures), None)}


def read_decoder(reader: ConfigReader, kind: str) -> DecoderCheckpoint:
    """The network of a configuration that has the keys of Llama or Qwen, all of which are read.

    Args:
        kind: the network, one of `DECODERS`.
    """
    decoder = DECODERS[kind]
    vocab_size = reader.integer("vocab_size")
    num_layers = reader.integer("num_hidden_layers")
    tied = reader.flag("tie_word_embeddings")
    entries: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": reader.integer("hidden_size"),
        "intermediate_size": reader.integer("intermediate_size"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": reader.integer("num_attention_heads"),
        "num_key_value_heads": reader.integer("num_key_value_heads"),
        "max_position_embeddings": reader.integer("max_position_embeddings"),
        "rms_norm_eps": reader.number("rms_norm_eps"),
        "rope_parameters": rope_parameters(reader),
        "tie_word_embeddings": tied,
        "bos_token_id": reader.token_id("bos_token_id", vocab_size),
        "pad_token_id": reader.token_id("pad_token_id", vocab_size),
    }
    end_token_ids = reader.token_ids("eos_token_id", vocab_size)
    # transformers writes one id as a number.
    entries["eos_token_id"] = end_token_ids if len(end_token_ids) > 1 else first_of(end_token_ids)

    # Without `head_dim` the heads share the width, which Qwen3 does not expect.
    if decoder.has_head_dim or reader.has("head_dim"):
        entries["head_dim"] = reader.integer("head_dim")
    else:
        reader.one_of("head_dim", (None,), default=None)
        require_divisor("num_attention_heads", entries, "hidden_size")
    require_divisor("num_key_value_heads", entries, "num_attention_heads")
    check_full_attention(reader, num_layers)

    return DecoderCheckpoint(
        config=native_config(decoder.config, reader.family, **entries),
        model=decoder.model,
        weights=decoder_weights(decoder.layer_weights, num_layers, tied),
        end_token_ids=end_token_ids,
    )


def first_of(ids: list[int]) -> int | None:
    return ids[0] if ids else None


def require_divisor(name: str, entries: dict[str, Any], whole: str):
    """Refuse a number of heads that does not divide what the heads share."""
    divides = entries[whole] % entries[name] == 0
    require(divides, name, f"a divisor of `{whole}`={entries[whole]}", entries[name])


def rope_parameters(reader: ConfigReader) -> dict[str, Any]:
    """Rotary positions as transformers 5 has them, from its entry or from the two of earlier versions.

    The base must be there: transformers takes 10000 for one that is missing.
    """
    if reader.has("rope_parameters"):
        given = reader.mapping("rope_parameters")
        rope = ConfigReader(f"{reader.family}, `rope_parameters`", given)
    else:
        has_scaling = reader.has("rope_scaling")
        scaling = reader.mapping("rope_scaling") if has_scaling else {}
        # Earlier versions also wrote "type".
        named = {"rope_type": scaling.get("type", "default"), **scaling}
        named["rope_theta"] = reader.number("rope_theta")
        rope = ConfigReader(f"{reader.family}, `rope_scaling`", named, ignored=("type",))

    # Null is the same as no entry.
    for key in ("rope_scaling", "rope_parameters"):
        if not reader.has(key):
            reader.one_of(key, (None,), default=None)

    rope_type = rope.one_of("rope_type", tuple(ROPE_PARAMETERS), default="default")
    parameters: dict[str, Any] = {"rope_type": rope_type, "rope_theta": rope.number("rope_theta")}
    for name in ROPE_PARAMETERS[rope_type]:
        parameters[name] = rope.number(name)
    rope.finish()
    return parameters


def check_full_attention(reader: ConfigReader, num_layers: int):
    """Refuse layers that see less than all tokens."""
    if reader.has("layer_types"):
        reader.one_of("layer_types", (["full_attention"] * num_layers,))
    else:
        reader.one_of("layer_types", (None,), default=None)


def native_config(config_class: Any, family: str, **entries: Any) -> Any:
    """A configuration of transformers, whose own errors are `ValueError`s."""
    try:
        return config_class(**entries)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ValueError(
            f"The configuration of {family} describes no {config_class.__name__}: {error}"
        ) from error


def decoder_weights(
    layer_weights: tuple[str, ...], num_layers: int, tied: bool
) -> dict[str, Weight]:
    """Each entry of the state dict from the stored tensor of its own name."""
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    if not tied:
        names.append("lm_head.weight")
    for layer in range(num_layers):
        names += [f"model.layers.{layer}.{name}" for name in layer_weights]
    return {name: Weight((name,)) for name in names}


def language_model_blueprint(
    family: str,
    model: Any,
    config: Any,
    weights: dict[str, Weight],
    reading: Reading,
    scheduler: Callable[[Any], Any],
    licence: str | None,
    **settings: Any,
) -> Blueprint:
    """The blueprint of a language model of transformers that is read as a denoiser.

    Args:
        model: its class.
        config: its configuration, into which the reading is written.
        settings: further attributes of the blueprint.
    """
    write_reading(config, reading)
    return Blueprint(
        family=family,
        build=partial(model, config),
        weights=weights,
        scheduler=scheduler,
        mask_token_id=reading.mask_token_id,
        end_token_ids=list(reading.end_token_ids),
        licence=licence,
        **settings,
    )


def greedy_scheduler(quota: str, **options: Any) -> Callable[[Any], Any]:
    """Makes the scheduler of samplers that commit the most probable tokens, the surest first, from the id of the mask.

    To them the mask is a token like others.

    Args:
        quota: of tokens that are committed at a step, as in `ConfidenceScheduler`.
        options: further ones of `ConfidenceScheduler`.
    """
    return partial(ConfidenceScheduler, temperature=0.0, allow_mask=True, quota=quota, **options)  # pyright: ignore[reportArgumentType]


def names_of(config: Mapping[str, Any], name: str) -> list[str]:
    """What a checkpoint is called, in lower case: its repository or folder, and what its configuration remembers.

    Of a path only the last part counts, and of a snapshot in the Hub's cache the repository,
    `models--OWNER--NAME/snapshots/COMMIT`.
    """
    names = []
    for path in (name, str(config.get("_name_or_path", ""))):
        parts = PurePath(path).parts
        if parts[-2:-1] == ("snapshots",) and len(parts) > 2:
            names.append(parts[-3].lower())
        elif parts:
            names.append(parts[-1].lower())
    return names


def licence_of(name: str, licences: Mapping[str, str]) -> str | None:
    """The licence of a repository on the Hub, from a table of the beginnings of their names.

    A folder has a name of its own, so its licence is not known.
    """
    for beginning, licence in licences.items():
        if name.startswith(beginning):
            return licence
    return None
