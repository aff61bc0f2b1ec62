"""Discrete diffusion over tokens: the absorbing and the uniform kernel, in T steps or in continuous time.

D3PM (https://arxiv.org/abs/2107.03006), MDLM (https://arxiv.org/abs/2406.07524) and UDLM
(https://arxiv.org/abs/2412.10193). Time is a float: 1 is pure noise, 0 is clean text.

Probabilities of a step are sums of products of numbers that are not negative, never 1 less others: what cannot be is
exactly 0 in every precision, also where guidance raises the ratio of two of them to a power.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions, T training timesteps.
"""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.sampling import draw_at, in_row_blocks, sample_tokens
from text_diffusers.common.validation import as_ids, require, require_int
from text_diffusers.schedulers.noise_schedules import (
    D3PMScheduler,
    Device,
    Time,
    check_vocabulary_and_rule,
    state_ids,
)


def reveal_prob(alpha_t: Any, alpha_s: Any, remask: Any = 0.0) -> Any:
    """Probability of revealing a mask that keeps q(x_s | x_0), given that of masking a revealed token again."""
    reveal = (alpha_s - (1 - remask) * alpha_t) / (1 - alpha_t)
    # As often as can be is 1 but for rounding.
    return reveal.clamp(0, 1) if isinstance(reveal, Tensor) else min(max(reveal, 0.0), 1.0)


def absorbing_reverse(
    probs: Tensor, sample: Tensor, reveal: Any, remask: Any, mask_token_id: int
) -> Tensor:
    """p(x_s | x_t) of a step under the absorbing kernel, (B, L, V).

    Args:
        probs: (B, L, V) predicted x_0, without mass on the mask.
        sample: (B, L) x_t.
        reveal: probability that a mask is revealed, () or (B, 1, 1).
        remask: probability that a revealed token is masked again, () or (B, L).
    """
    # From a mask: x_0, or the mask again.
    masked = reveal * probs  # (B, L, V)
    masked[..., mask_token_id : mask_token_id + 1] += 1 - reveal

    # From a token: itself, or the mask.
    remask = torch.as_tensor(remask, dtype=probs.dtype, device=probs.device).expand(sample.shape)
    revealed = (1 - remask.unsqueeze(-1)) * torch.nn.functional.one_hot(sample, probs.shape[-1])
    revealed[..., mask_token_id] += remask
    return torch.where((sample == mask_token_id).unsqueeze(-1), masked, revealed)


def uniform_routes(
    p_current: Any, alpha_t: Any, alpha_s: Any, vocab_size: int
) -> tuple[Any, Any, Any]:
    """Probabilities `(jump, resample, stay)` of a step of the uniform kernel, which add up to 1.

    To jump is to take the predicted x_0, to resample is to draw from the whole vocabulary. `p_current` is the
    predicted probability that the current token is x_0: 0 and 1 give the exact posterior of a token that differs from
    x_0 and of one that equals it. The arguments broadcast.
    """
    # Of q(x_t | x_0), times V; `lost` is the chance to be redrawn between s and t.
    normaliser = vocab_size * alpha_t * p_current + (1 - alpha_t)
    lost = 1 - alpha_t / alpha_s
    jump = lost * alpha_s / normaliser
    resample = lost * (1 - alpha_s) / normaliser

    # Of q(x_s | x_0), times V, when nothing is redrawn in between.
    kept = alpha_t / alpha_s * (vocab_size * alpha_s * p_current + (1 - alpha_s))
    return jump, resample, kept / normaliser


def uniform_reverse(
    probs: Tensor, sample: Tensor, alpha_t: Any, alpha_s: Any, reverse_rule: str
) -> Tensor:
    """p(x_s | x_t), uniform kernel, (B, L, V), from predicted x_0 (B, L, V), x_t (B, L) and alphas () or (B, 1, 1)."""
    vocab_size = probs.shape[-1]
    current = sample.unsqueeze(-1)  # (B, L, 1)
    p_current = probs.gather(-1, current)  # (B, L, 1)

    if reverse_rule == "plug_in":
        jump, resample, stay = uniform_routes(p_current, alpha_t, alpha_s, vocab_size)
        moved = jump * probs
    else:
        # A mixture of the posteriors of all x_0: the current token is one of them, the others differ from it.
        jump, resample, stay = uniform_routes(0.0, alpha_t, alpha_s, vocab_size)
        jump_equal, resample_equal, stay_equal = uniform_routes(1.0, alpha_t, alpha_s, vocab_size)
        others = probs.scatter(-1, current, 0.0)
        p_others = others.sum(dim=-1, keepdim=True)  # 1 - p_current
        resample = p_others * resample + p_current * resample_equal
        # To jump to the token that is there is to stay.
        stay = p_others * stay + p_current * (jump_equal + stay_equal)
        moved = jump * others

    moved = moved + resample / vocab_size
    return moved.scatter_add(-1, current, stay)


class D3PMAbsorbingScheduler(D3PMScheduler):
    """Absorbing diffusion: each token turns into `[MASK]` at a random time and is revealed once on the way back.

    Which positions a step reveals does not depend on the model, so `select` draws them first and the model is asked
    for nothing else. Under this kernel the plug-in and the marginal reverse rule of `D3PMUniformScheduler` coincide.

    Args:
        mask_token_id: the id of `[MASK]`; never predicted.
        num_train_timesteps: T of a T-step D3PM; `None` is the continuous-time limit.
        schedule: a key of `NOISE_SCHEDULES`, or the values of alpha at evenly spaced times, from 1 down to 0.
        min_timestep: the interval (0, min_timestep] is one discrete step of the continuous-time bound.
        temperature: divides the logits; 0 is greedy.
        top_k: samples among the k most probable tokens.
        top_p: samples among the most probable tokens that together reach this mass.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMAbsorbingScheduler
        >>> scheduler = D3PMAbsorbingScheduler(mask_token_id=9)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape, bool((sample == 9).any())
        (torch.Size([2, 6]), False)
    """

    corruption = "absorbing"
    takes_drawn = True

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        num_train_timesteps: int | None = None,
        schedule: str | list[float] = "linear",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        self._set_up()

    def _set_up(self):
        require_int("mask_token_id", self.config.mask_token_id, 0)
        super()._set_up()

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: Device = None
    ) -> Tensor:
        """(B, L) tokens at time 1: all masked."""
        return torch.full(shape, self.config.mask_token_id, device=device)

    def _corrupt(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        keep = self._keep(tokens, timesteps, generator)  # (B, L)
        return torch.where(keep, tokens, self.config.mask_token_id)

    def transition(self, tokens: Tensor, timestep: Time) -> Tensor:
        """q(x_t | x_0 = tokens), (N, S) over x_t, float64, for tokens (N,) and times () or (N,).

        The states are all ids up to the mask or to the largest of the tokens. The mask stays the mask.
        """
        mask_token_id = self.config.mask_token_id
        ids = as_ids("tokens", tokens)
        alpha = self.alpha(timestep).to(ids.device).expand(len(ids))
        num_states = max(mask_token_id, int(ids.max()) if len(ids) else 0) + 1

        rows = torch.zeros(len(ids), num_states, dtype=torch.float64, device=ids.device)
        rows[:, mask_token_id] = torch.where(ids == mask_token_id, 1.0, 1 - alpha)
        kept = torch.where(ids == mask_token_id, 1.0, alpha)
        return rows.scatter_(1, ids.unsqueeze(1), kept.unsqueeze(1))

    def _rates(self, timestep: Time, sample: Tensor) -> tuple[float, float | Tensor]:
        """Probability of revealing a masked token, and of masking a revealed one: a number or (B, L)."""
        return reveal_prob(*self._alphas(timestep)), 0.0

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the masked positions that the step from `timestep` reveals."""
        reveal, _ = self._rates(timestep, sample)
        masked = sample == self.config.mask_token_id
        return masked & (rand_like(sample, generator) < reveal)

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
        drawn: Tensor | None = None,
    ) -> Tensor:
        if drawn is not None:
            return sample.masked_scatter(positions, drawn.to(sample.dtype))
        return draw_at(positions, sample, self._weights, (logits,), generator)

    def reverse_probs(
        self, model_output: Tensor, timestep: Time, sample: Tensor, from_scores: bool = False
    ) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from.

        Args:
            model_output: (B, L, V or more) logits of clean tokens.
            from_scores: whether they are scores of `clean_scores` instead, which are taken as they are.
        """
        ids = as_ids("sample", sample)
        reveal, remask = self._rates(timestep, ids)
        probs = self._clean_probs(model_output, timestep, ids, from_scores)  # (B, L, V)
        return absorbing_reverse(probs, ids, reveal, remask, self.config.mask_token_id)

    def _own_ids(self, model_output: Tensor) -> Tensor:
        mask_token_id = self.config.mask_token_id
        width = model_output.shape[-1]
        require(mask_token_id < width, "mask_token_id", f"below the {width} logits", mask_token_id)
        return model_output


class D3PMUniformScheduler(D3PMScheduler):
    """Uniform diffusion: each token is replaced by a random one at a random time, and can be corrected until the end.

    `reverse_rule="marginal"` (the default) sums x_0 out: sum over k of q(x_s | x_t, x_0 = k) p(x_0 = k | x_t).
    `"plug_in"` puts the predicted distribution in the place of x_0, as D3PM and UDLM do. They coincide when the
    prediction of the latter is leave-one-out, proportional to p(x_0 | x_t) / q(x_t | x_0), and that is what a model
    learns that is trained with it: it need not learn to copy, which helps. With the exact p(x_0 | x_t) only the
    marginal rule reaches the data: on a source of 2.499 nats its bound is 2.507 at 64 steps, that of plug-in 3.796.
    So the rule says how to read a model's predictions; sample with the rule of its training.

    A step needs the prediction where it could matter only: a token stays or is resampled with some probability
    whatever the model says, so `select` draws those cases first, exactly, and (B, L, V) is never built. Positions that
    are not selected stay or are resampled, so a caller that holds tokens fixed restores them.

    Args:
        vocab_size: V, the number of token ids noise is drawn from, 0 to V - 1; further logits are ignored.
        reverse_rule: "marginal" or "plug_in".
        num_train_timesteps, schedule, min_timestep, temperature, top_k, top_p: as in `D3PMAbsorbingScheduler`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMUniformScheduler
        >>> scheduler = D3PMUniformScheduler(vocab_size=10, reverse_rule="plug_in")
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape
        torch.Size([2, 6])
    """

    corruption = "uniform"
    revises_tokens = True

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        num_train_timesteps: int | None = None,
        schedule: str | list[float] = "linear",
        reverse_rule: str = "marginal",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        self._set_up()

    def _set_up(self):
        check_vocabulary_and_rule(self.config)
        super()._set_up()

    def transition(self, tokens: Tensor, timestep: Time) -> Tensor:
        """q(x_t | x_0 = tokens), (N, V) over x_t, float64, for tokens (N,) and times () or (N,)."""
        ids = state_ids(self.config.vocab_size, tokens)
        alpha = self.alpha(timestep).to(ids.device).expand(len(ids)).unsqueeze(1)
        rows = ((1 - alpha) / self.config.vocab_size).repeat(1, self.config.vocab_size)
        return rows.scatter_add_(1, ids.unsqueeze(1), alpha)

    def _scalar_routes(self, timestep: Time) -> tuple[float, float, float]:
        """Jump of a token that is not x_0, resampling whatever x_0 is, and the share that needs a prediction."""
        alpha_t, alpha_s = self._alphas(timestep)
        jump, resample, _ = uniform_routes(0.0, alpha_t, alpha_s, self.config.vocab_size)
        _, resample_anyway, _ = uniform_routes(1.0, alpha_t, alpha_s, self.config.vocab_size)
        return jump, resample_anyway, jump + resample - resample_anyway

    def _selected_share(self, timestep: Time) -> float:
        """Probability that the step from `timestep` needs the prediction of a position."""
        return self._scalar_routes(timestep)[2]

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the positions for which the step from `timestep` needs a prediction."""
        return rand_like(sample, generator) < self._selected_share(timestep)

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        jump, resample_anyway, selected_share = self._scalar_routes(timestep)
        # One number a position for the route, one for x_0, one for the noise.
        route = rand_like(sample, generator)
        uniform = rand_like(sample, generator)
        noise = self._noise_tokens(rand_like(sample, generator))

        # Elsewhere the token stays or is resampled, whatever the prediction.
        resampled = route * (1 - selected_share) < resample_anyway  # (B, L)
        prev_sample = torch.where(resampled & ~positions, noise, sample)

        current = sample[positions]  # (N,)
        clean, p_current = self._clean_and_p_current(logits, uniform[positions], current)
        if self.config.reverse_rule == "marginal":
            # The routes of the x_0 that was drawn. One that equals the current token stays where the others jump.
            jump = torch.where(clean == current, selected_share, jump)
            resample = selected_share
        else:
            alpha_t, alpha_s = self._alphas(timestep)
            vocab_size = self.config.vocab_size
            jump, resample, _ = uniform_routes(p_current, alpha_t, alpha_s, vocab_size)
            resample = jump + resample - resample_anyway

        # One number a position decides: jump below the first limit, resample below the second, else stay.
        chosen = route[positions] * selected_share  # (N,)
        moved = torch.where(chosen < resample, noise[positions], current)
        prev_sample[positions] = torch.where(chosen < jump, clean, moved)
        return prev_sample

    def _clean_and_p_current(
        self, logits: Tensor, uniform: Tensor, current: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N,) tokens drawn from logits (N, V), and the probabilities (N,) of the `current` tokens (N,), float64."""
        clean = []
        p_current = []
        for block, drawn, tokens in in_row_blocks(logits, uniform, current):
            weights = self._weights(block)  # (n, V)
            clean.append(sample_tokens(weights, drawn))
            weight = weights.gather(1, tokens.unsqueeze(-1)).squeeze(-1)
            p_current.append(weight / weights.sum(dim=-1))
        return torch.cat(clean), torch.cat(p_current).double()

    def reverse_probs(
        self, model_output: Tensor, timestep: Time, sample: Tensor, from_scores: bool = False
    ) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from; as in `D3PMAbsorbingScheduler`."""
        ids = as_ids("sample", sample)
        probs = self._clean_probs(model_output, timestep, ids, from_scores)  # (B, L, V)
        alpha_t, alpha_s = self._alphas(timestep)
        return uniform_reverse(probs, ids, alpha_t, alpha_s, self.config.reverse_rule)
