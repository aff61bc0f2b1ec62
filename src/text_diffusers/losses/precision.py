"""Precision of the losses: half precision is raised to float32, float64 stays."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
