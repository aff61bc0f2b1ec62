"""The transformer that MDLM, BD3-LM, SEDD, Duo, UDLM and GIDD share, as a `TextTransformerModel`.

SEDD (https://arxiv.org/abs/2310.16834) made it from DiT (https://arxiv.org/abs/2212.09748); the others took it over.
Their norms have a weight and no bias, and are modulated by a condition as well. Ours have one or the other, which
says the same: without the time the condition is one constant vector, and shift, scale and gate go into norms and
output layers; with the time the norms' weights go into the scales.

Shapes: D width, C width of the condition, F frequencies of the time, V vocabulary size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.validation import require
from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.models.transformer_text import TextTransformerModel
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler, D3PMUniformScheduler

# Of the time 128 cosines and as many sines are taken, whatever the width of the network.
NUM_WAVES = 256
DDIT_NORM_EPS = 1e-5

# Where the sizes stand in the configurations of MDLM, BD3-LM, Duo and UDLM.
SIZE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_dim",
    "condition_size": "cond_dim",
    "num_layers": "n_blocks",
    "num_attention_heads": "n_heads",
    "max_length": "model_length",
}

# Keys that do not matter for what the network computes.
INERT = ("architectures", "dropout")

# Of a tensor (D, ...) under vectors (k, D) of shifts, scales and gates, or under none.
Change = Callable[..., Tensor]

# Rotary tables, which are those of every network of this family.
ROTARY_TABLES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


def absorbing_scheduler(mask_token_id: Any) -> D3PMAbsorbingScheduler:
    """The scheduler of MDLM, BD3-LM and SEDD."""
    return D3PMAbsorbingScheduler(mask_token_id)


def uniform_scheduler(mask_token_id: int | None, vocab_size: int) -> D3PMUniformScheduler:
    """The scheduler of Duo and UDLM, whose noise has no mask and whose networks are read by the plug-in rule."""
    return D3PMUniformScheduler(vocab_size, reverse_rule="plug_in")


def read_sizes(reader: ConfigReader, keys: dict[str, str] = SIZE_KEYS) -> dict[str, Any]:
    """The sizes of a network by our names, of a configuration that has them under `keys`."""
    return {name: reader.integer(key) for name, key in keys.items()}


@dataclass
class DiffusionTransformer:
    """A network of the family: what to build, and where its weights come from.

    Attributes:
        sizes: arguments of `TextTransformerModel`, among them those of `SIZE_KEYS`.
        prefix: of the names of all stored tensors.
        time_input: what it is shown of the time, as in `TextTransformerModel`; `None` for a network without time.
        is_modulated: whether there is a condition at all, be it a constant one.
    """

    sizes: dict[str, Any]
    prefix: str = ""
    time_input: str | None = None
    is_modulated: bool = True

    def build(self) -> TextTransformerModel:
        """The model, with weights of any value."""
        arguments = dict(self.sizes)
        if self.time_input is None:
            # There is nothing left of a constant condition.
            del arguments["condition_size"]
        else:
            arguments["time_conditioning"] = True
            arguments["time_input"] = self.time_input
            arguments["frequency_embedding_size"] = NUM_WAVES
        return TextTransformerModel(
            **arguments, qk_norm=False, head_bias=True, norm_eps=DDIT_NORM_EPS
        )

    def weights(self) -> dict[str, Weight]:
        """For each entry of the model's state dict."""
        weights = {
            "token_embedding.weight": self._weight("vocab_embed.embedding"),
            "head.weight": self._weight("output_layer.linear.weight"),
            "head.bias": self._weight("output_layer.linear.bias"),
        }
        if self.time_input is not None:
            for layer in ("0", "2"):
                for part in ("weight", "bias"):
                    source = self._weight(f"sigma_map.mlp.{layer}.{part}")
                    weights[f"time_embedding.{layer}.{part}"] = source
        if self.sizes.get("num_classes") is not None:
            weights["class_embedding.weight"] = self._weight("cond_map.embedding_table.weight")

        for layer in range(self.sizes["num_layers"]):
            weights |= self._block(f"blocks.{layer}.")
        if self.time_input is not None:
            weights |= self._head_with_time()
        else:
            weights |= self._norm("norm_out", "output_layer.", "norm_final", shift=0)
        return weights

    def rotary_tables(self) -> frozenset[str]:
        """The stored tensors that can be computed."""
        return frozenset(self.prefix + name for name in ROTARY_TABLES)

    def blueprint(
        self,
        family: str,
        stored: Mapping[str, StoredTensor],
        scheduler: Callable[[Any], Any],
        **settings: Any,
    ) -> Blueprint:
        """The blueprint of a checkpoint of this network.

        Args:
            family: its name for people.
            stored: its tensors by name.
            scheduler: makes the scheduler of the family's noise.
            settings: further attributes of the blueprint.

        Raises:
            ValueError: if a tensor has another shape than the configuration asks for.
        """
        self.check_shapes(stored)
        settings.setdefault("ignored", self.rotary_tables())
        return Blueprint(
            family=family,
            build=self.build,
            weights=self.weights(),
            scheduler=scheduler,
            **settings,
        )

    def check_shapes(self, stored: Mapping[str, StoredTensor]):
        """Refuse tensors of another shape, among those that the shapes of the model's weights do not tell.

        Raises:
            ValueError: that names the tensor.
        """
        width = self.sizes["hidden_size"]
        size = self.sizes["condition_size"]
        shapes: dict[str, tuple[int, ...]] = {
            "sigma_map.mlp.0.weight": (size, NUM_WAVES),
            "sigma_map.mlp.0.bias": (size,),
            "sigma_map.mlp.2.weight": (size, size),
            "sigma_map.mlp.2.bias": (size,),
            "output_layer.norm_final.weight": (width,),
            "output_layer.adaLN_modulation.weight": (2 * width, size),
            "output_layer.adaLN_modulation.bias": (2 * width,),
        }
        for layer in range(self.sizes["num_layers"]):
            shapes[f"blocks.{layer}.norm1.weight"] = (width,)
            shapes[f"blocks.{layer}.norm2.weight"] = (width,)
            shapes[f"blocks.{layer}.adaLN_modulation.weight"] = (6 * width, size)
            shapes[f"blocks.{layer}.adaLN_modulation.bias"] = (6 * width,)

        for name, shape in shapes.items():
            tensor = stored.get(self.prefix + name)
            if tensor is not None:
                require(tensor.shape == shape, self.prefix + name, f"{shape}", tensor.shape)

    def _weight(self, *names: str, make: Callable[..., Tensor] | None = None) -> Weight:
        full_names = tuple(self.prefix + name for name in names)
        return Weight(full_names) if make is None else Weight(full_names, make)

    def _block(self, block: str) -> dict[str, Weight]:
        """The weights of a block; its tensors are called alike on both sides up to the prefix "blocks.N."."""
        attention = f"{block}attn."
        weights = {
            f"{block}ff.0.weight": self._weight(f"{block}mlp.0.weight"),
            f"{block}ff.0.bias": self._weight(f"{block}mlp.0.bias"),
        }
        for part, name in enumerate(("to_q", "to_k", "to_v")):
            weights[f"{attention}{name}.weight"] = self._weight(
                f"{block}attn_qkv.weight", make=partial(cut, part=part, parts=3)
            )

        # What closes the two branches of the block, and is gated.
        last_layers = {
            f"{attention}to_out.0.weight": (f"{block}attn_out.weight", 2),
            f"{block}ff.2.weight": (f"{block}mlp.2.weight", 5),
            f"{block}ff.2.bias": (f"{block}mlp.2.bias", 5),
        }
        if self.time_input is not None:
            for name, (source, _) in last_layers.items():
                weights[name] = self._weight(source)
            return weights | self._modulation_with_time(block)

        for name, (source, gate) in last_layers.items():
            weights[name] = self._modulated(source, block, partial(gated, gate=gate))
        weights |= self._norm(f"{block}norm1", block, "norm1", shift=0)
        weights |= self._norm(f"{block}norm2", block, "norm2", shift=3)
        return weights

    def _modulation_with_time(self, block: str) -> dict[str, Weight]:
        """The modulation of a block whose norms' weights are taken into its scales."""
        modulation = f"{block}adaLN_modulation."
        norms = (f"{block}norm1.weight", f"{block}norm2.weight")
        return {
            f"{block}modulation.weight": self._weight(
                f"{modulation}weight", *norms, make=scale_weights
            ),
            f"{block}modulation.bias": self._weight(f"{modulation}bias", *norms, make=scale_biases),
        }

    def _head_with_time(self) -> dict[str, Weight]:
        modulation = "output_layer.adaLN_modulation."
        norm = "output_layer.norm_final.weight"
        return {
            "modulation_out.weight": self._weight(f"{modulation}weight", norm, make=scale_weights),
            "modulation_out.bias": self._weight(f"{modulation}bias", norm, make=scale_biases),
        }

    def _norm(self, name: str, layer: str, norm: str, shift: int) -> dict[str, Weight]:
        """Weight and bias of a norm under a constant condition, whose vectors have this number and the next."""
        source = f"{layer}{norm}.weight"
        weight = partial(norm_weight, scale=shift + 1)
        bias = partial(norm_bias, shift=shift)
        return {
            f"{name}.weight": self._modulated(source, layer, weight),
            f"{name}.bias": self._modulated(source, layer, bias),
        }

    def _modulated(self, source: str, layer: str, change: Change) -> Weight:
        """A tensor, and what the constant condition of a layer makes of it."""
        if not self.is_modulated:
            return self._weight(source, make=partial(change, vectors=None))

        modulation = [f"{layer}adaLN_modulation.{part}" for part in ("weight", "bias")]
        time = [f"sigma_map.mlp.{place}.{part}" for place in (0, 2) for part in ("weight", "bias")]
        make = partial(under_constant_condition, change=change)
        return self._weight(source, *modulation, *time, make=make)


# How weights are made; all sums and products are taken in float64.


def cut(tensor: Tensor, part: int, parts: int) -> Tensor:
    """One of equal parts of the rows."""
    return tensor.chunk(parts)[part]


def under_constant_condition(tensor: Tensor, *modulation: Tensor, change: Change) -> Tensor:
    """What a layer makes of a tensor (D, ...) if the network is shown no other sigma than 0.

    Args:
        modulation: weight (k D, C) and bias (k D,) of the layer's modulation; weight (C, F), bias (C,), weight (C, C)
            and bias (C,) of the layers behind the sinusoids of sigma.
        change: called with the tensor and the k vectors, (k, D) in float64.
    """
    weight, bias, weight1, bias1, weight2, bias2 = (part.double() for part in modulation)
    # The cosines of 0 are 1, which come first, and its sines are 0.
    of_cosines = weight1[:, : NUM_WAVES // 2]
    hidden = F.silu(of_cosines.sum(dim=1) + bias1)
    condition = F.silu(weight2 @ hidden + bias2)  # (C,)
    vectors = (weight @ condition + bias).view(-1, len(tensor))  # (k, D)
    return change(tensor, vectors).to(tensor.dtype)


def norm_weight(weight: Tensor, vectors: Tensor | None, scale: int) -> Tensor:
    """(D,) the weight of a norm times 1 + scale."""
    return weight if vectors is None else weight.double() * (1 + vectors[scale])


def norm_bias(weight: Tensor, vectors: Tensor | None, shift: int) -> Tensor:
    """(D,) the bias of a norm that had none, which is the shift."""
    return torch.zeros_like(weight) if vectors is None else vectors[shift]


def gated(tensor: Tensor, vectors: Tensor | None, gate: int) -> Tensor:
    """A weight (D, ...) or bias (D,) times the gate."""
    if vectors is None:
        return tensor
    gates = vectors[gate].view(-1, *[1] * (tensor.ndim - 1))
    return tensor.double() * gates


def scale_weights(modulation: Tensor, *norms: Tensor) -> Tensor:
    """(k D, C) weights of a modulation, those of the scales times the weights (D,) of their norms."""
    parts = list(modulation.double().chunk(num_parts(norms)))
    for number, norm in enumerate(norms):
        place = 3 * number + 1
        parts[place] = norm.double().unsqueeze(1) * parts[place]
    return torch.cat(parts).to(modulation.dtype)


def scale_biases(modulation: Tensor, *norms: Tensor) -> Tensor:
    """(k D,) biases of a modulation, so that 1 + scale is multiplied by the weights (D,) of their norms."""
    parts = list(modulation.double().chunk(num_parts(norms)))
    for number, norm in enumerate(norms):
        place = 3 * number + 1
        parts[place] = norm.double() * (1 + parts[place]) - 1
    return torch.cat(parts).to(modulation.dtype)


def num_parts(norms: tuple[Tensor, ...]) -> int:
    """Shift and scale of the head's norm; in a block shift, scale and gate of both norms."""
    return 2 if len(norms) == 1 else 6
