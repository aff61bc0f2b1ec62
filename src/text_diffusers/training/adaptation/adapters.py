"""Low-rank adapters of a denoiser in training, also over quantised weights, and what is saved of them.

LoRA (https://arxiv.org/abs/2106.09685): a linear layer learns B A of a low rank beside its weight, which is frozen, as
are all embeddings, the vector of an added mask among them: it stays the mean of the others, and the first layer learns
what to make of it. B begins as zero, and so the model as it was. The weights below may be stored in 8 or 4 bits
(QLoRA, https://arxiv.org/abs/2305.14314).
"""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from text_diffusers.pipelines.lora import remove_adapter
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline
from text_diffusers.training.adaptation.language_models import plain_model

# The linear layers of a block of this package's denoisers
OWN_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.0", "ff.2", "modulation")
ADAPTER = "default"

LANGUAGE_MODEL = "language_model."  # before the names of its weights in a denoiser

# How frozen weights are stored in fewer bits, and the packages that do it
QUANTIZATIONS = {"bf16": None, "int8": "torchao", "nf4": "bitsandbytes"}


def add_adapters(
    denoiser: Any, rank: int, alpha: float | None = None, targets: Sequence[str] | None = None
):
    """Freeze a denoiser, and give its linear layers adapters that are trained, in place.

    Args:
        denoiser: of this package, or of a language model.
        rank: of the updates.
        alpha: updates weigh alpha / rank; by default 1.
        targets: ends of the names of the layers; by default all linear layers but the head.

    Raises:
        ValueError: if there is no such layer, or one that is no linear layer of a block.

    Example:
        >>> from text_diffusers import TextTransformerModel
        >>> from text_diffusers.training.adaptation.adapters import add_adapters
        >>> denoiser = TextTransformerModel(20, hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> add_adapters(denoiser, rank=2, targets=["to_q"])
        >>> [name for name, weight in denoiser.named_parameters() if weight.requires_grad]
        ['blocks.0.attn.to_q.lora_A.default.weight', 'blocks.0.attn.to_q.lora_B.default.weight']
    """
    model = plain_model(denoiser)
    usual = OWN_TARGETS if model is denoiser else names_of_layers(model)
    check_targets(model, targets)
    weight: Any = alpha or rank  # a fraction is as good
    settings = LoraConfig(r=rank, lora_alpha=weight, target_modules=list(targets or usual))
    # peft warns of what is meant: that weights of 8 bits are not merged, and that GPT-2's stand the other way round.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.add_adapter(settings)

    # What learns, learns in float32, whatever the weights below are stored in.
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()

    # In mixed precision, what peft casts to the float32 of its weights autocast casts back: a fifth of a step.
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportAttributeAccessIssue]


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """The linear layers of a model by name, without the head of a language model."""
    find_head = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }


def names_of_layers(model: Any) -> list[str]:
    """The fewest ends of names that are those of its `linear_layers` and of no other module."""
    layers = linear_layers(model)
    ends = {name.rpartition(".")[2] for name in layers}
    others = {
        name.rpartition(".")[2] for name, _ in model.named_modules() if name not in layers and name
    }
    # An end that others have too is told by the whole name.
    whole = {name for name in layers if name.rpartition(".")[2] in others}
    return sorted((ends - others) | whole)


def check_targets(model: Any, targets: Sequence[str] | None):
    """Refuse ends of names that no linear layer has, or that other modules have.

    Raises:
        ValueError: naming the first, and the layers that there are.
    """
    layers = linear_layers(model)
    for target in targets or ():
        named = [name for name, _ in model.named_modules() if f".{name}".endswith(f".{target}")]
        if not named or not set(named) <= layers.keys():
            raise ValueError(
                f"`lora_targets` must be ends of the names of linear layers, such as {names_of_layers(model)}, got "
                f"{target!r}."
            )


# Weights of few bits


def quantize(denoiser: Any, quantization: str, device: torch.device, mixed_precision: str = "no"):
    """Store the weights of a language model in fewer bits, in place.

    Args:
        quantization: "bf16", all weights in half the bits, so that what layers hand on is as narrow; "int8", of the
            linear layers without the head, each row of a weight on a scale of its own; or "nf4", of these, 4 bits, on
            a GPU only.
        device: on which the model is trained; with "nf4" the model is moved there.
        mixed_precision: in which it is trained; "bf16" for weights of that type.

    Raises:
        ValueError: if the model or device does not allow it.
        ModuleNotFoundError: if the package that does it is missing.
    """
    if quantization == "nf4" and device.type != "cuda":
        raise ValueError(
            f'`quantization` must be "bf16" or "int8" without a CUDA device, got {quantization!r}.'
        )
    if quantization == "bf16":
        # Adapters stay in float32, and meet these weights under autocast only.
        if mixed_precision != "bf16":
            raise ValueError(
                f'`mixed_precision` must be "bf16" with `quantization`="bf16", got {mixed_precision!r}.'
            )
        denoiser.language_model.to(torch.bfloat16)
        return
    package = QUANTIZATIONS[quantization]
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f"`quantization`={quantization!r} needs the package {package}: `pip install {package}`."
        )
    model = denoiser.language_model
    layers = {
        name: layer for name, layer in linear_layers(model).items() if isinstance(layer, nn.Linear)
    }
    if not layers:
        raise ValueError(
            f"`quantization` needs linear layers of torch, of which a {type(model).__name__} has none, got "
            f"{quantization!r}."
        )

    store = store_in_8_bits if quantization == "int8" else store_in_4_bits
    store(model, layers)
    if quantization == "nf4":
        # Weights become 4 bits wide on their way to the device.
        model.to(device)


def store_in_8_bits(model: Any, layers: dict[str, nn.Linear]):
    # Imported here, as torchao may not be installed.
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8WeightOnlyConfig,
        quantize_,
    )

    wanted = set(layers.values())
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, name: module in wanted)


def store_in_4_bits(model: Any, layers: dict[str, nn.Linear]):
    # Imported here, as bitsandbytes may not be installed.
    from bitsandbytes.nn import (  # pyright: ignore[reportMissingImports]
        Linear4bit,
        Params4bit,
    )

    for name, layer in layers.items():
        has_bias = layer.bias is not None
        narrow = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=has_bias,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
        narrow.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        if has_bias:
            narrow.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, narrow)
    # Read by peft
    model.is_loaded_in_4bit = True


# What is saved


def save_adapters(denoiser: Any, averages: dict[str, Tensor], folder: str | Path):
    """Write a folder with adapters only; the weights under them stay where they came from.

    Args:
        averages: the averaged adapters, by their names in the denoiser.
    """
    model = plain_model(denoiser)
    named = {name.removeprefix(LANGUAGE_MODEL): value for name, value in averages.items()}
    adapters = get_peft_model_state_dict(model, state_dict=named)
    settings = model.peft_config[ADAPTER].to_dict()
    # JSON knows no sets, and a folder is nobody else's.
    settings["target_modules"] = sorted(settings["target_modules"])
    settings["base_model_name_or_path"] = None
    TextDiffusionPipeline.save_lora_weights(folder, adapters, settings)


@torch.no_grad()
def merge_adapters(
    denoiser: Any,
    averages: dict[str, Tensor],
    build: Callable[[], tuple[Any, Any]] | None = None,
) -> Any:
    """A denoiser of plain weights, which hold what the adapters have learned.

    Args:
        denoiser: with the adapters; its own weights are changed if no other is built.
        averages: the averaged adapters, by their names in it.
        build: makes the denoiser as it was before it got adapters, and a scheduler, where its weights are quantised.

    Returns:
        The denoiser, or the one that was built.
    """
    if build is not None:
        settings = plain_model(denoiser).peft_config[ADAPTER]
        denoiser, _ = build()
        plain_model(denoiser).add_adapter(settings)
    parameters = dict(denoiser.named_parameters())
    for name, value in averages.items():
        parameters[name].copy_(value)

    model = plain_model(denoiser)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    remove_adapter(model, ADAPTER)
    return denoiser
