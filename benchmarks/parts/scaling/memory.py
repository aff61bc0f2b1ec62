"""Activations that a training step keeps for its backward pass: bytes a token, a block and a number of its width.

Counted are the tensors that autograd saves, each storage once, under bf16 autocast as on a GPU. What grows with tokens
and with blocks is the slope; weights, and their copies, do not grow with tokens.
"""

from dataclasses import replace
from typing import Any

import torch

from parts.common.results import Record
from parts.sampling.measuring import Size, random_model
from parts.scaling.config import ScalingConfig

DEPTHS = (2, 4)
BATCHES = (2, 4)


def kept_bytes(size: Size, checkpointing: bool = False) -> int:
    """Bytes that a forward pass in training keeps, beside the parameters."""
    model = random_model(size).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    tokens = torch.zeros(size.batch, size.length, dtype=torch.long)
    storages = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # A storage that is kept alive has an address of its own.
        storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        logits = model(tokens).logits

    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    del logits
    return sum(num_bytes for num_bytes, _ in storages.values())


def bytes_of_a_block(size: Size, checkpointing: bool = False) -> float:
    """Bytes a token and a block, in units of the width."""

    def growth(layers: int) -> float:
        few, many = (
            kept_bytes(replace(size, layers=layers, batch=batch), checkpointing)
            for batch in BATCHES
        )
        return (many - few) / ((BATCHES[1] - BATCHES[0]) * size.length)

    shallow, deep = map(growth, DEPTHS)
    return (deep - shallow) / (DEPTHS[1] - DEPTHS[0]) / size.width


def measure_memory(options: ScalingConfig) -> list[Record]:
    """The slope at each width, without and with gradient checkpointing."""
    records: list[Any] = []
    for width in options.widths:
        size = replace(options.size, width=width)
        records.append(
            {
                "value": width,
                "width": width,
                "bytes": bytes_of_a_block(size),
                "checkpointed_bytes": bytes_of_a_block(size, checkpointing=True),
            }
        )
    return records
