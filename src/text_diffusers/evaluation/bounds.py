"""The bound of a batch: from a scheduler and a denoiser to nats at each position.

Shapes: B batch, L sequence length, V vocabulary size, N positions.
"""

from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.training_randomness import token_uniform
from text_diffusers.data.rows import unknown_tokens
from text_diffusers.losses import discrete as losses

CONDITIONS = ("context_ids", "prompt_ids", "prompt_mask")


def predicted_positions(scheduler: Any, noisy: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, L) bool: the positions whose prediction the bound of this kernel uses."""
    real = attention_mask.bool()
    return real & (noisy == scheduler.config.mask_token_id) if scheduler.corruption == "absorbing" else real


def token_bound(scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
    """The bound's integrand at N positions for the kernel, rule and clock of a D3PM scheduler.

    Args:
        scheduler: a token scheduler of any kernel.
        logits: (N, V) predictions at `predicted_positions`.
        targets, noisy: (N,) clean and corrupted tokens.
        times: (N,) of their rows, from `scheduler.training_timesteps`.

    Returns:
        (N,) nats.
    """
    return TOKEN_BOUNDS.get(scheduler.corruption, transition_token_bound)(scheduler, logits, targets, noisy, times)


def absorbing_token_bound(scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
    config, steps, alpha = scheduler.config, scheduler.config.num_train_timesteps, scheduler.alpha(times)
    if steps is not None:
        weight = losses.absorbing_weight_discrete(alpha, scheduler.alpha((times - 1 / steps).clamp(min=0)), steps)
    else:  # the first interval, next to the data, is one step in continuous time too (see `training_timesteps`)
        first = times <= config.min_timestep
        weight = losses.absorbing_weight(alpha, scheduler.alpha_derivative(times))
        weight = weight.masked_fill(first, 1 / config.min_timestep)
    return losses.absorbing_bound(logits, targets, weight, config.mask_token_id)


def uniform_token_bound(scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
    config, steps, alpha = scheduler.config, scheduler.config.num_train_timesteps, scheduler.alpha(times)
    logits, rule = logits[:, : config.vocab_size], config.reverse_rule
    if steps is not None:
        alpha_s = scheduler.alpha((times - 1 / steps).clamp(min=0))
        return losses.uniform_bound_discrete(logits, targets, noisy, alpha, alpha_s, steps, rule)
    bound = losses.uniform_bound(logits, targets, noisy, alpha, scheduler.alpha_derivative(times), rule)
    first = times <= config.min_timestep  # one step, as above
    if first.any():
        rows = logits[first], targets[first], noisy[first], alpha[first], torch.ones_like(alpha[first])
        last_step = losses.uniform_bound_discrete(*rows, num_timesteps=1, reverse_rule=rule)
        bound = bound.masked_scatter(first, last_step / config.min_timestep)
    return bound


def transition_token_bound(scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
    """T KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of any kernel that is given by its transitions."""
    steps = scheduler.config.num_train_timesteps
    start = (times - 1 / steps).clamp(min=0)
    probs = scheduler.clean_probs(logits)  # (N, S)
    likelihoods = scheduler.likelihoods(noisy, start, times, probs.dtype)
    true = scheduler.posterior(scheduler.one_hot(targets, probs.dtype), *likelihoods, start)
    model = scheduler.posterior(probs, *likelihoods, start)
    possible = torch.where(true > 0, model, 1.0)  # elsewhere both may be 0, and the logarithm has no gradient
    return steps * (torch.xlogy(true, true) - true * possible.log()).sum(dim=-1)


TOKEN_BOUNDS = {"absorbing": absorbing_token_bound, "uniform": uniform_token_bound}


def batch_bound(
    denoiser: Any,
    scheduler: Any,
    batch: dict[str, Tensor],
    uniform: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """(B,) bounds of the rows of a batch in nats, from one random time each, or with blocks one a block.

    Args:
        batch: `input_ids` (B, L), `attention_mask` (B, L) and, if the model takes labels, `label` (B,).
        uniform: (B,) in [0, 1), one time a row.
        generators: one a row.
    """
    tokens = batch["input_ids"]
    uniform = token_uniform(uniform, tokens.shape[1], block_length(denoiser), generators)
    times = scheduler.training_timesteps(uniform)  # (B,) or (B, L)
    noisy = scheduler.add_noise(tokens, times, generators)
    return noisy_token_bound(denoiser, scheduler, batch, noisy, times).sum(dim=1)


def noisy_token_bound(denoiser: Any, scheduler: Any, batch: dict[str, Tensor], noisy: Tensor, times: Tensor) -> Tensor:
    """(B, L) integrands of the tokens of a batch in nats, for noise that was drawn before.

    Args:
        batch: as in `batch_bound`; with `given` (B, L) bool, these tokens stay clean and cost nothing.
        noisy: (B, L) tokens at `times`.
        times: (B,) from `scheduler.training_timesteps`, or with blocks (B, L).
    """
    tokens = batch["input_ids"]
    unknown = unknown_tokens(batch)
    positions = predicted_positions(scheduler, noisy, unknown)
    if "given" in batch:
        noisy = torch.where(batch["given"], tokens, noisy)
    logits = predict(denoiser, batch, noisy, times, positions)  # (N, V)
    bound = token_bound(scheduler, logits, tokens[positions], noisy[positions], at_positions(times, positions))
    return torch.zeros(tokens.shape, dtype=bound.dtype, device=bound.device).masked_scatter(positions, bound)


def predict(denoiser: Any, batch: dict[str, Tensor], noisy: Tensor, times: Tensor, positions: Tensor) -> Tensor:
    """(N, V) logits at `positions` (B, L); a model with blocks is shown the clean tokens of earlier blocks.

    The columns in `CONDITIONS` are told to the model if the batch has them.
    """
    context = {name: batch[name] for name in CONDITIONS if name in batch}
    if block_length(denoiser) is not None:
        context["clean_ids"] = batch["input_ids"]
    inputs = noisy, times, batch["attention_mask"], batch.get("label")
    return denoiser(*inputs, positions=positions, **context).logits


def at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """(N,) of values (B,), one a row, or (B, L), those at `positions` (B, L)."""
    return values.reshape(len(positions), -1).expand(positions.shape)[positions]


def block_length(denoiser: Any) -> int | None:
    """Tokens in a block of a denoiser that writes in blocks."""
    return getattr(getattr(denoiser, "config", None), "block_length", None)


def row_sums(values: Tensor, positions: Tensor) -> Tensor:
    """(B,) sums over each row of `values` (N,), which stand at `positions` (B, L)."""
    totals = torch.zeros(len(positions), device=values.device, dtype=values.dtype)
    return totals.index_add(0, positions.nonzero()[:, 0], values)
