"""The bound of a batch: from a scheduler and a denoiser to nats at each position.

Shapes: B batch, L sequence length, V vocabulary size, N positions, n positions of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.row_blocks import places_behind
from text_diffusers.common.training_randomness import token_uniform
from text_diffusers.data.rows import unknown_tokens
from text_diffusers.losses.discrete import (
    absorbing_bound,
    absorbing_weight,
    absorbing_weight_discrete,
    reconstruction_loss,
    uniform_bound,
    uniform_bound_discrete,
)
from text_diffusers.losses.hierarchical import hierarchical_bound

CONDITIONS = ("context_ids", "prompt_ids", "prompt_mask", "segment_ids")


def predicted_positions(scheduler: Any, noisy: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, L) bool: the positions whose prediction the bound of this kernel uses."""
    real = attention_mask.bool()
    # Under the absorbing kernels all that is neither mask nor cluster is known.
    if scheduler.corruption == "absorbing":
        return real & (noisy == scheduler.config.mask_token_id)
    if scheduler.corruption == "hierarchical":
        return real & scheduler.is_open(noisy)
    return real


def token_bound(
    scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor
) -> Tensor:
    """The bound's integrand at N positions for the kernel, rule and clock of a D3PM scheduler.

    Args:
        scheduler: a token scheduler of any kernel.
        logits: (N, V) predictions at `predicted_positions`.
        targets, noisy: (N,) clean and corrupted tokens.
        times: (N,) of their rows, from `scheduler.training_timesteps`.

    Returns:
        (N,) nats.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMAbsorbingScheduler
        >>> from text_diffusers.evaluation.bounds import token_bound
        >>> scheduler = D3PMAbsorbingScheduler(mask_token_id=4, schedule="linear")
        >>> clean = torch.tensor([0, 3])
        >>> masked = torch.full((2,), 4)
        >>> times = torch.tensor([0.5, 0.5])
        >>> token_bound(scheduler, torch.zeros(2, 5), clean, masked, times)  # log(4) / 0.5
        tensor([2.7726, 2.7726])
    """
    integrand = TOKEN_BOUNDS.get(scheduler.corruption, transition_token_bound)
    return integrand(scheduler, logits, targets, noisy, times)


def absorbing_token_bound(
    scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor
) -> Tensor:
    """`token_bound` of masked tokens: cross-entropy, weighted by the clock; `noisy` is the mask everywhere."""
    config = scheduler.config
    num_steps = config.num_train_timesteps
    alpha = scheduler.alpha(times)  # (N,) float64

    if num_steps is not None:
        alpha_s = scheduler.alpha((times - 1 / num_steps).clamp(min=0))
        weight = absorbing_weight_discrete(alpha, alpha_s, num_steps)
    else:
        # The first interval, next to the data, is one step in continuous time too (see `training_timesteps`).
        weight = absorbing_weight(alpha, scheduler.alpha_derivative(times))
        weight = weight.masked_fill(times <= config.min_timestep, 1 / config.min_timestep)
    return absorbing_bound(logits, targets, weight, config.mask_token_id)


def uniform_token_bound(
    scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor
) -> Tensor:
    """`token_bound` of the uniform kernel, on a grid or in continuous time."""
    config = scheduler.config
    num_steps = config.num_train_timesteps
    rule = config.reverse_rule
    alpha = scheduler.alpha(times)  # (N,) float64

    # Its noise never is a token that the model has beyond them, such as the mask or padding.
    logits = logits[:, : config.vocab_size]
    if num_steps is not None:
        alpha_s = scheduler.alpha((times - 1 / num_steps).clamp(min=0))
        return uniform_bound_discrete(logits, targets, noisy, alpha, alpha_s, num_steps, rule)

    bound = uniform_bound(logits, targets, noisy, alpha, scheduler.alpha_derivative(times), rule)
    first = times <= config.min_timestep  # one step, as above
    if first.any():
        last_step = uniform_bound_discrete(
            logits[first],
            targets[first],
            noisy[first],
            alpha_t=alpha[first],
            alpha_s=torch.ones_like(alpha[first]),
            num_timesteps=1,
            reverse_rule=rule,
        )
        bound = bound.masked_scatter(first, last_step / config.min_timestep)
    return bound


def transition_token_bound(
    scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor
) -> Tensor:
    """T KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of any kernel that is given by its transitions."""
    num_steps = scheduler.config.num_train_timesteps
    start = (times - 1 / num_steps).clamp(min=0)  # (N,) s
    probs = scheduler.clean_probs(logits)  # (N, S), S being the states of the kernel

    # Both posteriors, given the true x_0 and given the prediction.
    likelihoods = scheduler.likelihoods(noisy, start, times, probs.dtype)
    true = scheduler.posterior(scheduler.one_hot(targets, probs.dtype), *likelihoods, start)
    model = scheduler.posterior(probs, *likelihoods, start)

    # Where nothing is possible both may be 0, and the logarithm has no gradient.
    possible = torch.where(true > 0, model, 1.0)
    return num_steps * (torch.xlogy(true, true) - true * possible.log()).sum(dim=-1)


def hierarchical_token_bound(
    scheduler: Any, logits: Tensor, targets: Tensor, noisy: Tensor, times: Tensor
) -> Tensor:
    """`token_bound` of masks and clusters: cross-entropies of cluster and token, weighted by the clock."""
    weights = scheduler.bound_weights(times, noisy)
    return hierarchical_bound(logits, targets, scheduler.config.clusters, *weights)


TOKEN_BOUNDS = {
    "absorbing": absorbing_token_bound,
    "uniform": uniform_token_bound,
    "hierarchical": hierarchical_token_bound,
}


class D3PMLoss:
    """Loss of discrete diffusion on a noisy batch: which predictions it needs, and their weighted bound.

    Args:
        scheduler: a token scheduler of any kernel.
        batch: `input_ids` (B, L), `attention_mask` (B, L); with `given` (B, L) bool, these tokens stay clean and cost
            nothing.
        noisy: (B, L) tokens at `times`.
        times: (B,) from `scheduler.training_timesteps`, or with blocks (B, L).
        weights: of the same shape, of the integrands; 1 by default.
        auxiliary_weight: lambda of D3PM's cross-entropy on x_0 (https://arxiv.org/abs/2107.03006).

    Attributes:
        noisy: (B, L) input of the denoiser.
        positions: (B, L) bool, the N positions at which its head has to run.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMUniformScheduler
        >>> from text_diffusers.evaluation.bounds import D3PMLoss
        >>> scheduler = D3PMUniformScheduler(vocab_size=5)
        >>> tokens = torch.tensor([[0, 1, 2], [3, 4, 0]])
        >>> times = torch.tensor([0.3, 0.8])
        >>> noisy = scheduler.add_noise(tokens, times, torch.Generator().manual_seed(0))
        >>> batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        >>> loss = D3PMLoss(scheduler, batch, noisy, times)
        >>> logits = torch.zeros(6, 5, requires_grad=True)  # denoiser(loss.noisy, times, positions=loss.positions)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        scheduler: Any,
        batch: dict[str, Tensor],
        noisy: Tensor,
        times: Tensor,
        weights: Tensor | None = None,
        auxiliary_weight: float = 0.0,
    ):
        tokens = batch["input_ids"]
        self.scheduler = scheduler
        self.auxiliary_weight = auxiliary_weight

        # What the denoiser is given, and where it has to predict.
        self.positions = predicted_positions(scheduler, noisy, unknown_tokens(batch))
        self.noisy = torch.where(batch["given"], tokens, noisy) if "given" in batch else noisy

        # What its predictions are compared with, there.
        self.targets = tokens[self.positions]  # (N,)
        self.corrupted = self.noisy[self.positions]
        self.times = at_positions(times, self.positions)
        self.weights = at_positions(
            torch.ones_like(times) if weights is None else weights, self.positions
        )

    def bound(self, logits: Tensor, chunk: slice = slice(None)) -> Tensor:
        """(n,) integrands in nats of the logits (n, V) at all positions or a chunk of them."""
        targets = self.targets[chunk]
        return token_bound(
            self.scheduler, logits, targets, self.corrupted[chunk], self.times[chunk]
        )

    def __call__(self, logits: Tensor, chunk: slice = slice(None)) -> Tensor:
        """Sum of the weighted integrands and the auxiliary loss, float64; arguments as in `bound`."""
        loss = self.bound(logits, chunk)
        if self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * reconstruction_loss(logits, self.targets[chunk])
        return (loss.double() * self.weights[chunk]).sum()


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
    uniform = drawn_uniform(denoiser, batch, uniform, generators)

    # One noisy copy of each row.
    times = scheduler.training_timesteps(uniform)  # (B,) or (B, L)
    noisy = scheduler.add_noise(tokens, times, generators)  # (B, L)
    return noisy_token_bound(denoiser, scheduler, batch, noisy, times).sum(dim=1)


def drawn_uniform(
    denoiser: Any,
    batch: dict[str, Tensor],
    uniform: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """The numbers (B,) of the rows of a batch, or for a denoiser with blocks of their tokens; see `token_uniform`."""
    length = batch["input_ids"].shape[1]
    starts = block_starts(denoiser, batch)
    return token_uniform(uniform, length, block_length(denoiser), generators, starts)


def noisy_token_bound(
    denoiser: Any, scheduler: Any, batch: dict[str, Tensor], noisy: Tensor, times: Tensor
) -> Tensor:
    """(B, L) integrands of the tokens of a batch in nats, for noise that was drawn before; arguments as in `D3PMLoss`.

    The batch may also hold a `label` (B,), and the columns in `CONDITIONS`.
    """
    loss = D3PMLoss(scheduler, batch, noisy, times)
    # All other positions cost nothing.
    bound = loss.bound(predict(denoiser, batch, loss.noisy, times, loss.positions))
    totals = torch.zeros(noisy.shape, dtype=bound.dtype, device=bound.device)
    return totals.masked_scatter(loss.positions, bound)


def predict(
    denoiser: Any, batch: dict[str, Tensor], noisy: Tensor, times: Tensor, positions: Tensor
) -> Tensor:
    """(N, V) logits at `positions` (B, L); a model with blocks is shown the clean tokens of earlier blocks.

    The columns in `CONDITIONS` are told to the model if the batch has them.
    """
    # Codes of another level, a prompt, and clean tokens, for models that take them.
    context = {name: batch[name] for name in CONDITIONS if name in batch}
    if block_length(denoiser) is not None:
        context["clean_ids"] = batch["input_ids"]
    starts = block_starts(denoiser, batch)
    if starts is not None:
        context["block_starts"] = starts
    attention_mask = batch["attention_mask"]
    return denoiser(
        noisy, times, attention_mask, batch.get("label"), positions=positions, **context
    ).logits


def at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """(N,) of values (B,), one a row, or (B, L), those at `positions` (B, L)."""
    return values.reshape(len(positions), -1).expand(positions.shape)[positions]


def block_length(denoiser: Any) -> int | None:
    """Tokens in a block of a denoiser that writes in blocks."""
    return getattr(getattr(denoiser, "config", None), "block_length", None)


def block_starts(denoiser: Any, batch: dict[str, Tensor]) -> Tensor | None:
    """(B,) columns at each of which a block begins; `None` for a denoiser whose blocks begin with the row.

    Over a causal past the first block begins with the first token that counts, as a pipeline writes behind a prompt.
    """
    config: Any = getattr(denoiser, "config", None)
    if not getattr(config, "causal_past", False):
        return None
    # Of several texts that share a row each begins with a block of its own.
    if "segment_ids" in batch:
        return places_behind(begins_of_answers(batch), config.block_length)
    return first_unknown(batch) % config.block_length


def begins_of_answers(batch: dict[str, Tensor]) -> Tensor:
    """(B, L) bool: tokens that count behind one that does not, and the first of each text that shares a row.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.bounds import begins_of_answers
        >>> batch = {"attention_mask": torch.ones(1, 5), "given": torch.tensor([[True, True, False, False, True]])}
        >>> begins_of_answers(batch).int().tolist()
        [[1, 0, 1, 0, 0]]
    """
    unknown = unknown_tokens(batch)
    begins = unknown & ~unknown.roll(1, dims=1)
    if "segment_ids" in batch:
        begins |= batch["segment_ids"] != batch["segment_ids"].roll(1, dims=1)
    begins[:, 0] = True
    return begins


def first_unknown(batch: dict[str, Tensor]) -> Tensor:
    """(B,) the column of the first token of each row that is neither padding nor given; 0 of a row without any."""
    return unknown_tokens(batch).int().argmax(dim=1)


def row_sums(values: Tensor, positions: Tensor) -> Tensor:
    """(B,) sums over each row of `values` (N,), which stand at `positions` (B, L)."""
    totals = torch.zeros(len(positions), device=values.device, dtype=values.dtype)
    return totals.index_add(0, positions.nonzero()[:, 0], values)
