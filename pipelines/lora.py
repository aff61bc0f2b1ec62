"""Low-rank adapters of a pipeline's denoiser: diffusers' loader under another component's name, and its checks."""

from typing import Any

from diffusers.loaders import PeftAdapterMixin
from torch import Tensor

from text_diffusers.models.language_model import uncompiled

LORA_FILE = "pytorch_lora_weights.safetensors"

# The axis of each kind of weight that is also an axis of the layer.
LORA_AXES = {"A.weight": 1, "B.weight": 0, "B.bias": 0, "magnitude_vector": 0}


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
    if not isinstance(denoiser, PeftAdapterMixin):
        raise ValueError(
            f"`denoiser` has no `PeftAdapterMixin` of diffusers: {type(denoiser).__name__}."
        )


def refuse_compiled(denoiser: Any):
    """Raise a `ValueError` for what `torch.compile` made of a model, in which diffusers finds no adapters."""
    if uncompiled(denoiser) is not denoiser:
        raise ValueError(
            "`denoiser` is compiled, and its adapters can be neither loaded nor changed: do so before "
            "`torch.compile(pipe.denoiser)`, or compile in place by `pipe.denoiser.compile()`."
        )


def check_lora_weights(state_dict: dict[str, Tensor], denoiser: Any):
    """Raise a `ValueError` unless (rank, in) and (out, rank) matrices fit the linear layers that their keys name."""
    # Names as in a file, which puts the name of the component first.
    shapes = {
        f"denoiser.{name}": module.weight.shape
        for name, module in denoiser.named_modules()
        if hasattr(module, "in_features")
    }
    for key, weight in state_dict.items():
        layer, _, part = key.partition(".lora_")

        # An unknown kind of weight gets an axis that it does not have, and so fits nowhere.
        axis = LORA_AXES.get(part, weight.ndim)
        fits = layer in shapes and axis < weight.ndim and weight.shape[axis] == shapes[layer][axis]
        if not fits:
            raise ValueError(
                f"LoRA weights must fit the denoiser's layers, got {key} {tuple(weight.shape)}."
            )


def has_lora(model: Any) -> bool:
    """Whether a model has layers with adapters, under which weights have other names."""
    return any(hasattr(module, "base_layer") for module in model.modules())
