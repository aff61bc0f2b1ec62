"""The bound of a batch: from a scheduler and a denoiser to nats at each position.

Shapes: B batch, L sequence length, V vocabulary size, N positions.
"""

from typing import Any

import torch
from torch import Tensor

from text_diffusers import losses


def predicted_positions(scheduler: Any, noisy: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, L) bool: the positions whose prediction the bound of this kernel uses."""
    real = attention_mask.bool()
    return real & (noisy == scheduler.config.mask_token_id) if scheduler.corruption == "absorbing" else real


def token_bound(scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
    """The bound's integrand at N positions for the kernel, rule and clock of a D3PM scheduler.

    Args:
        scheduler: `D3PMAbsorbingScheduler` or `D3PMUniformScheduler`.
        logits: (N, V) predictions at `predicted_positions`.
        targets, noisy: (N,) clean and corrupted tokens.
        times: (N,) of their rows, from `scheduler.training_timesteps`.

    Returns:
        (N,) nats.
    """
    config, steps = scheduler.config, scheduler.config.num_train_timesteps
    alpha = scheduler.alpha(times)
    # The first interval, next to the data, is one discrete step in continuous time too (see `training_timesteps`).
    first = times <= config.min_timestep if steps is None else torch.zeros_like(times, dtype=torch.bool)
    alpha_s = torch.ones_like(alpha) if steps is None else scheduler.alpha((times - 1 / steps).clamp(min=0))
    slope = scheduler.alpha_derivative(times)
    if scheduler.corruption == "absorbing":
        weight = losses.absorbing_weight(alpha, slope).masked_fill(first, 1 / config.min_timestep)
        if steps is not None:
            weight = losses.absorbing_weight_discrete(alpha, alpha_s, steps)
        return losses.absorbing_bound(logits, targets, weight, config.mask_token_id)
    logits, rule = logits[:, : config.vocab_size], config.reverse_rule
    if steps is not None:
        return losses.uniform_bound_discrete(logits, targets, noisy, alpha, alpha_s, steps, rule)
    bound = losses.uniform_bound(logits, targets, noisy, alpha, slope, rule)
    if first.any():
        rows = logits[first], targets[first], noisy[first], alpha[first], alpha_s[first]
        last_step = losses.uniform_bound_discrete(*rows, num_timesteps=1, reverse_rule=rule)
        bound = bound.masked_scatter(first, last_step / config.min_timestep)
    return bound


def batch_bound(
    denoiser: Any,
    scheduler: Any,
    batch: dict[str, Tensor],
    uniform: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """(B,) bounds of the rows of a batch in nats, from one random time each.

    Args:
        batch: `input_ids` (B, L), `attention_mask` (B, L) and, if the model takes labels, `label` (B,).
        uniform: (B,) in [0, 1), one time a row.
        generators: one a row.
    """
    tokens, attention_mask = batch["input_ids"], batch["attention_mask"]
    times = scheduler.training_timesteps(uniform)  # (B,)
    noisy = scheduler.add_noise(tokens, times, generators)
    positions = predicted_positions(scheduler, noisy, attention_mask)
    logits = denoiser(noisy, times, attention_mask, batch.get("label"), positions=positions).logits  # (N, V)
    row = positions.nonzero()[:, 0]  # (N,)
    bound = token_bound(scheduler, logits, tokens[positions], noisy[positions], times[row])
    return torch.zeros(len(tokens), device=bound.device, dtype=bound.dtype).index_add(0, row, bound)
