"""Low-rank adapters of a pipeline's denoiser: diffusers' loader under another component's name."""

from collections.abc import Sequence
from typing import Any

from diffusers.loaders import CogVideoXLoraLoaderMixin, PeftAdapterMixin
from torch import Tensor

LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_AXES = {"A.weight": 1, "B.weight": 0, "B.bias": 0, "magnitude_vector": 0}  # the one that is also the layer's


class DenoiserLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """LoRA for a pipeline's `denoiser`: diffusers' loader for pipelines with one transformer, under another name.

    Pickled files, weights that do not fit, and any change while an adapter is fused are refused by a `ValueError`.
    """

    _lora_loadable_modules = ["denoiser"]
    transformer_name = "denoiser"
    denoiser: Any

    @classmethod
    def save_lora_weights(cls, save_directory, denoiser_lora_layers: dict, denoiser_lora_adapter_metadata: dict):
        """Write `get_peft_model_state_dict(denoiser)` and `denoiser.peft_config["default"].to_dict()` to a folder."""
        metadata: dict[str, Any] = {"transformer_lora_adapter_metadata": denoiser_lora_adapter_metadata}
        super().save_lora_weights(save_directory, denoiser_lora_layers, **metadata)

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict, adapter_name: str | None = None, **kwargs):
        """Load an adapter from a folder, a Hub repo or a dict, whose alpha is taken to be the rank, and activate it.

        `kwargs` are those of diffusers: `weight_name`, `subfolder`, `revision`, `hotswap` and so on.
        """
        self._check_adaptable()
        source, file = pretrained_model_name_or_path_or_dict, kwargs.setdefault("weight_name", LORA_FILE)
        if not file.endswith(".safetensors"):
            raise ValueError(f"`weight_name` must be a .safetensors file, never a pickled one, got {file!r}.")
        try:
            super().load_lora_weights(source, adapter_name, **kwargs | {"use_safetensors": True})
        except OSError as error:
            raise ValueError(f"`load_lora_weights` found no {file} in {str(source)!r}: {error}") from error
        self.denoiser.train(self.denoiser.training)  # new layers come with their dropout switched on

    @classmethod
    def load_lora_into_transformer(cls, state_dict: dict[str, Tensor], transformer, **kwargs):
        """Load (rank, in) and (out, rank) matrices into the linear layers (out, in) that their keys name."""
        shapes = {f"denoiser.{n}": m.weight.shape for n, m in transformer.named_modules() if hasattr(m, "in_features")}
        for key, weight in state_dict.items():
            name, _, part = key.partition(".lora_")
            axis = LORA_AXES.get(part, weight.ndim)
            if name not in shapes or axis >= weight.ndim or weight.shape[axis] != shapes[name][axis]:
                raise ValueError(f"LoRA weights must fit the denoiser's layers, got {key} {tuple(weight.shape)}.")
        transformer.load_lora_adapter(state_dict, prefix="denoiser", **kwargs)

    def set_adapters(self, *args, **kwargs):
        self._check_adaptable()
        super().set_adapters(*args, **kwargs)

    def fuse_lora(self, components: Sequence[str] = ("denoiser",), **kwargs):
        self._check_adaptable()
        super().fuse_lora(list(components), **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("denoiser",), **kwargs):
        super().unfuse_lora(list(components), **kwargs)

    def _check_adaptable(self):
        if any(getattr(module, "merged", False) for module in self.denoiser.modules()):
            raise ValueError("A LoRA is fused: first call `unfuse_lora()`, or `unload_lora_weights()` to keep it.")
        if not isinstance(self.denoiser, PeftAdapterMixin):
            raise ValueError(f"`denoiser` has no `PeftAdapterMixin` of diffusers: {type(self.denoiser).__name__}.")
