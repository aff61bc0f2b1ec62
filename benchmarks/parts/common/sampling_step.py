"""A step of sampling as `TextDiffusionPipeline` takes it, for a model and a scheduler alone.

Shapes: B batch, L length, V vocabulary size, N selected positions.
"""

from typing import Any

import torch
from torch import Tensor


def selected_logits(
    model: Any,
    tokens: Tensor,
    times: Tensor,
    positions: Tensor,
) -> Tensor:
    """(N, V) logits at the true `positions` (B, L); rows without any are not shown to the model."""
    rows = positions.any(dim=1)  # (B,)
    if not rows.any():
        # A step in which nothing changes costs no call of the model.
        return torch.zeros(0, model.config.vocab_size)

    return model(tokens[rows], times[rows], positions=positions[rows]).logits


def select_first_step(
    model: Any,
    scheduler: Any,
    tokens: Tensor,
    timestep: float,
    generator: Any,
) -> Tensor:
    """(B, L) next tokens; the positions are selected first, and the model predicts only these."""
    # The noise does not depend on the prediction, so what will change is known before the model is called.
    positions = scheduler.select(timestep, tokens, generator)
    times = scheduler.model_timesteps(timestep, tokens)  # (B,)

    logits = selected_logits(model, tokens, times, positions)  # (N, V)
    return scheduler.step(
        logits, timestep, tokens, positions=positions, generator=generator
    ).prev_sample
