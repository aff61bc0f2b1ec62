"""PyTorch modules under evaluation: where they are, and without dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model without dropout, for as long as it lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
