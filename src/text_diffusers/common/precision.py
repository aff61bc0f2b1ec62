"""The precision that sums and exponentials are taken in."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The values as they are in float32 and float64, in float32 if they are in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
