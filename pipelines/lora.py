"""Low-rank adapters of a pipeline's denoiser: diffusers' loader under another component's name, and its checks.

Adapters of language models are injected by peft, since the models of transformers have no loader of diffusers. Files
that peft wrote by itself, as most adapters of language models are published, load for every denoiser.
"""

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from text_diffusers.models.language_model import uncompiled

LORA_FILE = "pytorch_lora_weights.safetensors"

# As peft writes an adapter, with its configuration in a file beside it, and what its keys begin with
PEFT_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."

# The axis of each kind of weight that is also an axis of the layer.
LORA_AXES = {"A.weight": 1, "B.weight": 0, "B.bias": 0, "magnitude_vector": 0}

# Settings of peft under which an adapter is more than low-rank updates of layers; each is `None` or false without.
BEYOND_UPDATES = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
# Ways to begin training that leave the layers' own weights as they are.
PLAIN_BEGINNINGS = (True, False, "eva", "gaussian", "orthogonal")

# The layers of LLaDA's own code by their names in transformers, under which its models are loaded.
LLADA_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)$")
LLADA_HEAD = "model.transformer.ff_out"
LLADA_LAYERS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}


# Checks


def check_adaptable(pipeline: Any):
    """Raise a `ValueError` unless adapters of the pipeline's denoiser can be loaded or changed now."""
    denoiser = getattr(pipeline, "denoiser", None)
    if denoiser is None:
        raise ValueError(
            f"`denoiser` must be a component of the pipeline; {type(pipeline).__name__} has none."
        )

    refuse_compiled(denoiser)

    # Fused weights already hold the adapter, and another would be added on top.
    if any(getattr(module, "merged", False) for module in denoiser.modules()):
        raise ValueError(
            "A LoRA is fused: first call `unfuse_lora()`, or `unload_lora_weights()` to keep it."
        )
    if not isinstance(denoiser, (PeftAdapterMixin, PreTrainedModel)):
        raise ValueError(
            f"`denoiser` must be a model of transformers or have the `PeftAdapterMixin` of diffusers, got "
            f"{type(denoiser).__name__}."
        )


def refuse_compiled(denoiser: Any):
    """Raise a `ValueError` for what `torch.compile` made of a model, in which diffusers finds no adapters."""
    if uncompiled(denoiser) is not denoiser:
        raise ValueError(
            "`denoiser` is compiled, and its adapters can be neither loaded nor changed: do so before "
            "`torch.compile(pipe.denoiser)`, or compile in place by `pipe.denoiser.compile()`."
        )


def check_names(names: Iterable[str]):
    """Raise a `ValueError` unless all names are those of low-rank updates."""
    # peft writes the head's own weight beside an update of it, unless told `save_embedding_layers=False`.
    other = next((name for name in names if "lora" not in name), None)
    if other is not None:
        raise ValueError(f"LoRA weights must be nothing but low-rank updates, got {other!r}.")


def check_lora_weights(state_dict: dict[str, Tensor], denoiser: Any):
    """Raise a `ValueError` unless (rank, in) and (out, rank) matrices fit the linear layers that their keys name."""
    # Names as in a file, which puts the name of the component first.
    shapes = {}
    for name, module in denoiser.named_modules():
        shape = linear_shape(module)
        if shape is not None:
            shapes[f"denoiser.{name}"] = shape

    for key, weight in state_dict.items():
        layer, _, part = key.partition(".lora_")

        # An unknown kind of weight gets an axis that it does not have, and so fits nowhere.
        axis = LORA_AXES.get(part, weight.ndim)
        fits = layer in shapes and axis < weight.ndim and weight.shape[axis] == shapes[layer][axis]
        if not fits:
            raise ValueError(
                f"LoRA weights must fit the denoiser's layers, got {key} {tuple(weight.shape)}."
            )


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear layer, with adapters or without; `None` for other layers."""
    # GPT-2 keeps its matrices the other way round.
    layer: Any = getattr(module, "base_layer", module)
    if isinstance(layer, Conv1D):
        return layer.nf, layer.nx
    if hasattr(layer, "in_features"):
        return layer.out_features, layer.in_features
    return None


def check_untied(denoiser: Any):
    """Raise a `ValueError` if an adapter of the head would be fused into the embedding, whose weight is the same."""
    if not isinstance(denoiser, PreTrainedModel):
        return
    head = denoiser.get_output_embeddings()
    tied = getattr(head, "weight", None) is denoiser.get_input_embeddings().weight
    if tied and hasattr(head, "base_layer"):
        raise ValueError(
            "`denoiser` has an adapter of its head, whose weight is that of its embedding too: it cannot be fused."
        )


def has_lora(model: Any) -> bool:
    """Whether a model has layers with adapters, under which weights have other names."""
    return any(hasattr(module, "base_layer") for module in model.modules())


# Files of peft


def is_from_peft(state_dict: dict[str, Tensor]) -> bool:
    """Whether the weights of an adapter have the names that peft gives them."""
    return bool(state_dict) and all(key.startswith(PEFT_PREFIX) for key in state_dict)


def peft_settings(source: Any, **hub_arguments: Any) -> dict[str, Any]:
    """The settings of an adapter that peft wrote, from the configuration beside its weights.

    Args:
        source: a folder, or the name of a Hub repository.
        hub_arguments: `subfolder`, `revision`, `cache_dir`, `token` and so on.

    Raises:
        ValueError: if there is no configuration, or it describes more than low-rank updates.
    """
    # By name: a file for the Hub must load where peft is not installed.
    reader = import_module("peft").PeftConfig
    given = {name: value for name, value in hub_arguments.items() if value is not None}
    try:
        settings = reader.from_pretrained(str(source), **given).to_dict()
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The configuration of the adapter in {str(source)!r} is none: {error}"
        ) from error
    check_settings(settings)
    return settings


def check_settings(settings: dict[str, Any], prefix: str = ""):
    """Raise a `ValueError` if an adapter is something else than low-rank updates of layers.

    Args:
        prefix: that the names of settings begin with.
    """
    settings = {name.removeprefix(prefix): value for name, value in settings.items()}
    kind = settings.get("peft_type", "LORA")
    kind = getattr(kind, "value", kind)
    if kind != "LORA":
        raise ValueError(f"`peft_type` of an adapter must be 'LORA', got {kind!r}.")
    for name in BEYOND_UPDATES:
        if settings.get(name):
            raise ValueError(
                f"`{name}` of an adapter must be left out, since only low-rank updates of linear layers are loaded, "
                f"got {settings[name]!r}."
            )

    beginning = settings.get("init_lora_weights", True)
    if beginning not in PLAIN_BEGINNINGS:
        raise ValueError(
            f"`init_lora_weights` of an adapter must be one of {PLAIN_BEGINNINGS}, which leave the model's own "
            f"weights as they are, got {beginning!r}."
        )
    bias = settings.get("bias", "none")
    if bias != "none":
        raise ValueError(f"`bias` of an adapter must be 'none', got {bias!r}.")


def from_peft(
    state_dict: dict[str, Tensor], settings: dict[str, Any] | None, denoiser: Any
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """An adapter that peft wrote as `save_lora_weights` writes it: the weights, and the settings of `LoraConfig`.

    Each layer is named in the settings as in the weights, whatever pattern chose it in training. Without settings
    there are none to be returned.
    """
    weights = {}
    ranks = {}
    alphas = {}
    for key, weight in state_dict.items():
        published, dot, part = key.removeprefix(PEFT_PREFIX).partition(".lora_")
        layer = native_layer(published, denoiser)
        weights[f"denoiser.{layer}{dot}{part}"] = weight
        if part == "A.weight":
            ranks[layer] = weight.shape[0]
            alphas[layer] = alpha_of(published, settings or {})
    if settings is None:
        return weights, None

    # The form of `save_lora_weights`, whose names begin with the component's.
    changes = {
        "alpha_pattern": {f"^{re.escape(layer)}$": alpha for layer, alpha in alphas.items()},
        "exclude_modules": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "rank_pattern": {f"^{re.escape(layer)}$": rank for layer, rank in ranks.items()},
        "target_modules": sorted(ranks),
    }
    metadata = {f"denoiser.{name}": value for name, value in (settings | changes).items()}
    return weights, metadata


def alpha_of(layer: str, settings: dict[str, Any]) -> Any:
    """The alpha of a layer: that of the first of peft's patterns which its name ends in, or that of all others."""
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return alpha
    return settings.get("lora_alpha")


def native_layer(published: str, denoiser: Any) -> str:
    """The name in `denoiser` of a layer as the code calls it with which an adapter was trained."""
    block = LLADA_BLOCK.match(published)
    if block is not None and block[2] in LLADA_LAYERS:
        return f"model.layers.{block[1]}.{LLADA_LAYERS[block[2]]}"
    if published == LLADA_HEAD:
        return "lm_head"

    # DiffuGPT's code calls the body of its model so.
    if published.startswith("denoise_model."):
        return published.replace("denoise_model", getattr(denoiser, "base_model_prefix", ""), 1)
    return published


# Language models


def load_into_language_model(
    model: Any,
    state_dict: dict[str, Tensor],
    adapter_name: str | None = None,
    metadata: dict[str, Any] | None = None,
):
    """Give a model of transformers an adapter, and make it the one that acts.

    Args:
        state_dict: weights, whose names begin with "denoiser.".
        adapter_name: by default "default_0" and so on.
        metadata: settings of `LoraConfig`, with names of the same beginning; without any alpha is the rank.

    Raises:
        ValueError: if the name is taken, or there are no weights.
    """
    # By name: a file for the Hub must load where peft is not installed.
    peft = import_module("peft")
    taken = getattr(model, "peft_config", {})
    name = adapter_name or next(
        name
        for name in (f"default_{index}" for index in range(len(taken) + 1))
        if name not in taken
    )
    if name in taken:
        raise ValueError(
            f"Adapter name {name} already in use in the model - please select a new adapter name."
        )

    weights = {key.removeprefix("denoiser."): weight for key, weight in state_dict.items()}
    if metadata is None:
        settings = settings_of_weights(weights)
    else:
        settings = {key.removeprefix("denoiser."): value for key, value in metadata.items()}
    try:
        config = peft.LoraConfig(**settings)
    except TypeError as error:
        raise ValueError(
            f"The settings of the adapter must be those of `LoraConfig`: {error}"
        ) from error

    # New layers must not leave the model half adapted.
    try:
        peft.inject_adapter_in_model(config, model, name, state_dict=weights)
        model._hf_peft_config_loaded = True
        peft.set_peft_model_state_dict(model, weights, name)
        model.set_adapter(name)
    except Exception:
        remove_adapter(model, name)
        raise

    # New parameters are float32, and the model may be on another device. Its own stay as they are: some buffers of a
    # model in half precision are float32.
    for module in model.modules():
        if not hasattr(module, "base_layer"):
            continue
        device = module.base_layer.weight.device
        for parameter_name, parameter in module.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = parameter.data.to(device=device, dtype=model.dtype)


def settings_of_weights(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Settings of `LoraConfig` for weights that come without: alpha is the rank."""
    ranks = {
        key.partition(".lora_")[0]: weight.shape[0]
        for key, weight in weights.items()
        if key.endswith(".lora_A.weight")
    }
    patterns = {f"^{re.escape(layer)}$": rank for layer, rank in ranks.items()}
    return {
        "r": max(ranks.values(), default=1),
        "lora_alpha": max(ranks.values(), default=1),
        "rank_pattern": patterns,
        "alpha_pattern": dict(patterns),
        "target_modules": sorted(ranks),
        "use_dora": any(".lora_magnitude_vector" in key for key in weights),
        "lora_bias": any(key.endswith(".lora_B.bias") for key in weights),
    }


def remove_adapter(model: Any, name: str):
    """Take an adapter out of a model of transformers, and its layers with the last one."""
    configs = getattr(model, "peft_config", {})
    configs.pop(name, None)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if not hasattr(child, "base_layer"):
                continue
            if name in getattr(child, "lora_A", {}):
                child.delete_adapter(name)
            if not configs:
                setattr(parent, child_name, child.base_layer)
    if not configs:
        model._hf_peft_config_loaded = False
        if hasattr(model, "peft_config"):
            del model.peft_config
