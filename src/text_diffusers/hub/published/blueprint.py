"""A published checkpoint, understood by its family: the model to build, and what each of its weights is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


def as_stored(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


@dataclass
class Weight:
    """The stored tensors that a parameter or buffer is made of.

    Attributes:
        names: of the stored tensors.
        make: called with these tensors, in their order; also with tensors on the meta device, to learn the shape.
    """

    names: tuple[str, ...]
    make: Callable[..., Tensor] = as_stored


@dataclass
class StoredTensor:
    """A tensor of a checkpoint, as the header of its file tells it.

    Attributes:
        shape: its sizes.
        dtype: as in safetensors, such as "BF16".
        file: that holds it.
        offset: of its first byte in this file.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str
    offset: int = 0


@dataclass
class Blueprint:
    """A published checkpoint, understood.

    Attributes:
        family: its name for people, such as "LLaDA".
        build: makes the model with weights of any value; called on the meta device.
        weights: for each entry of the model's state dict, but for tied copies of another entry.
        ignored: stored tensors that are not read since they can be computed, such as rotary frequencies.
        scheduler: makes the scheduler of the family's noise from the id of the mask (`None` without a mask).
        mask_token_id: as far as the checkpoint's configuration, or its published code, says.
        end_token_ids: tokens that end a text, as far as the configuration says.
        has_mask: whether the noise of the family has a mask.
        mask_token: how the mask is written where the tokenizer has no name for it.
        licence: of the published weights, as an identifier such as "mit"; `None` where it was not stated.
        pipeline: name of the pipeline's class.
        tokenizer: the class of transformers that reads its tokenizer, where the published one needs code of its own.
    """

    family: str
    build: Callable[[], nn.Module]
    weights: dict[str, Weight]
    scheduler: Callable[[Any], Any]
    ignored: frozenset[str] = frozenset()
    mask_token_id: int | None = None
    end_token_ids: list[int] = field(default_factory=list)
    has_mask: bool = True
    mask_token: str = "[MASK]"
    licence: str | None = None
    pipeline: str = "TextDiffusionPipeline"
    tokenizer: str | None = None


# A family's file has `read(config, stored, name)`: the blueprint of a checkpoint, or `None` for one of another family.
# `config` is the parsed `config.json`, `stored` has the tensors by name, and `name` is the repository or folder.
Read = Callable[[dict[str, Any], dict[str, StoredTensor], str], Blueprint | None]
