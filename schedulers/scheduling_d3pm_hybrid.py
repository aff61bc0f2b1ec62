"""Absorbing and uniform noise at once.

D3PM (https://arxiv.org/abs/2107.03006) and GIDD (https://arxiv.org/abs/2503.04482).

Shapes: B batch, L sequence length, S states of a token, N positions.
"""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.validation import require, require_fraction, require_int
from text_diffusers.schedulers.noise_schedules import D3PMScheduler, Device, Time, TimeFunction
from text_diffusers.schedulers.scheduling_d3pm_transition import (
    D3PMSemigroupScheduler,
    per_token,
)


def gidd_ratio(p_uniform: float) -> float:
    """B of GIDD's noise: at time t there are B sqrt(t (1 - t)) random tokens to 1 - t of the text and t masks."""
    return 2 * p_uniform / (1 - p_uniform)


def gidd_schedule(p_uniform: float) -> tuple[TimeFunction, TimeFunction]:
    """`(alpha, alpha_derivative)` of GIDD's noise: (1 - t) / (1 + B sqrt(t (1 - t))) with B of `gidd_ratio`."""
    ratio = gidd_ratio(p_uniform)

    def alpha(t: Tensor) -> Tensor:
        return (1 - t) / (1 + ratio * torch.sqrt(t * (1 - t)))

    def alpha_derivative(t: Tensor) -> Tensor:
        slope = 1 + ratio / 2 * torch.sqrt((1 - t) / t)
        return -slope / (1 + ratio * torch.sqrt(t * (1 - t))) ** 2

    return alpha, alpha_derivative


def gidd_mask_share(start: Tensor, end: Tensor, p_uniform: float) -> Tensor:
    """Of the tokens that are lost between two times, the share that turns into masks, of the shape of the times.

    Less what was there at s and has survived until e, there are masks in proportion to e - s, and random tokens to
    B ((1 - s) sqrt(e (1 - e)) - (1 - e) sqrt(s (1 - s))). Both have the factor e - s, which is left out here.
    """
    masks = torch.sqrt((1 - start) * end) + torch.sqrt((1 - end) * start)
    others = gidd_ratio(p_uniform) * torch.sqrt((1 - start) * (1 - end))
    # In the end all turn into masks.
    return torch.where(end < 1, masks / (masks + others), 1.0)


class D3PMHybridScheduler(D3PMSemigroupScheduler):
    """A lost token turns into `[MASK]` or, less often, into a random token.

    q(x_t | x_0) = alpha x_0 + (1 - alpha) noise, with the mass `mask_fraction` of the noise on the mask and the rest
    spread evenly over all tokens. The masks show the model where to write, the random tokens teach it to mend.

    With `p_uniform` the noise is that of GIDD: what is lost first turns into random tokens, what is lost last into
    masks, and pure noise is all masks.

    Args:
        mask_token_id: the id of `[MASK]`; never predicted.
        vocab_size: the ids 0 to `vocab_size` - 1 are what text and noise consist of; further logits are ignored. The
            mask may be one of them.
        mask_fraction: above 0, which would be the uniform kernel, and below 1, the absorbing one.
        num_train_timesteps: T.
        reverse_rule, schedule, min_timestep, temperature, top_k, top_p: as in `D3PMUniformScheduler`.
        p_uniform: probability that a token is a random one at time 1/2, where it is largest. It decides on both the
            share of the masks and the schedule: `mask_fraction` is not used, and `schedule` must be "linear".

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMHybridScheduler
        >>> scheduler = D3PMHybridScheduler(mask_token_id=9, vocab_size=9)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape, bool((sample == 9).any())
        (torch.Size([2, 6]), False)
    """

    corruption = "hybrid"

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        vocab_size: int,
        mask_fraction: float = 0.9,
        num_train_timesteps: int = 1000,
        schedule: str | list[float] = "linear",
        reverse_rule: str = "marginal",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        p_uniform: float | None = None,
    ):
        self._set_up()
        require_int("mask_token_id", mask_token_id, 0)
        require_fraction("mask_fraction", mask_fraction)
        if p_uniform is not None:
            require_fraction("p_uniform", p_uniform)
            require(schedule == "linear", "schedule", '"linear" with `p_uniform`', schedule)
            self._alpha, self._alpha_derivative = gidd_schedule(p_uniform)

    @property
    def num_states(self) -> int:
        """The mask is the last state, unless it stands among the tokens."""
        return max(self.config.vocab_size, self.config.mask_token_id + 1)

    def _own_ids(self, model_output: Tensor) -> Tensor:
        logits = super()._own_ids(model_output)
        mask_token_id = self.config.mask_token_id
        # A mask behind all tokens has been cut off.
        if mask_token_id >= self.config.vocab_size:
            return logits
        mask = torch.tensor(mask_token_id, device=logits.device)
        return logits.index_fill(-1, mask, -torch.inf)

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: Device = None
    ) -> Tensor:
        """(B, L) tokens at time 1, pure noise; with `p_uniform` all masked."""
        if self.config.p_uniform is not None:
            return torch.full(shape, self.config.mask_token_id, device=device)
        return super().prior(shape, generator, device)

    def _corrupt(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        # One token at a time the kernel keeps or loses what was there, which needs no (N, S) table.
        if self.config.p_uniform is None:
            return D3PMScheduler._corrupt(self, tokens, timesteps, generator)

        times = per_token(timesteps, tokens).view(tokens.shape)
        masked = gidd_mask_share(torch.zeros_like(times), times, self.config.p_uniform)
        keep = self._keep(tokens, timesteps, generator)  # (B, L)
        return torch.where(keep, tokens, self._noise_tokens(rand_like(tokens, generator), masked))

    def _noise_tokens(self, uniform: Tensor, masked: Any = None) -> Tensor:
        """(B, L) masks and random tokens; the number that decides between them also chooses the token.

        Args:
            uniform: (B, L) uniform numbers.
            masked: share of the masks, (B, L); that of the configuration by default.
        """
        masked = self.config.mask_fraction if masked is None else masked
        vocab_size = self.config.vocab_size

        # What lies above the share of the masks is uniform once more; rounding may take it to 1. If all are masks,
        # nothing lies above.
        words = (uniform - masked).clamp(min=0) / (1 - masked) * vocab_size
        words = words.nan_to_num(0.0).long().clamp(max=vocab_size - 1)
        return torch.where(uniform < masked, self.config.mask_token_id, words)

    def _noise(self, like: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The distribution (S,) of a token that is lost between two times; (N, S) if it depends on the times."""
        rows = ()
        masked: Any = self.config.mask_fraction
        if self.config.p_uniform is not None:
            rows = like.shape[:-1]
            masked = gidd_mask_share(start, end, self.config.p_uniform).to(like).unsqueeze(-1)

        num_words = self.config.vocab_size
        mask_token_id = self.config.mask_token_id
        noise = torch.zeros(*rows, self.num_states, dtype=like.dtype, device=like.device)
        noise[..., :num_words] = (1 - masked) / num_words
        noise[..., mask_token_id : mask_token_id + 1] += masked
        return noise

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        alpha = self._survival(start, end, probs)  # (N, 1)
        lost = (1 - alpha) * probs.sum(dim=-1, keepdim=True)
        return alpha * probs + lost * self._noise(probs, start, end)

    def _diffuse_back(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        alpha = self._survival(start, end, values)  # (N, 1)
        noise = self._noise(values, start, end)

        # The transpose: what is lost is worth the mean of the values under the noise.
        if noise.ndim == 1:
            from_noise = (values @ noise).unsqueeze(-1)
        else:
            from_noise = (values * noise).sum(dim=-1, keepdim=True)
        return alpha * values + (1 - alpha) * from_noise
