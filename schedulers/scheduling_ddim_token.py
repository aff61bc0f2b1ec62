"""DDIM for tokens under the uniform kernel: the non-Markovian family of https://arxiv.org/abs/2010.02502.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import math
from typing import NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.sampling import sample_tokens
from text_diffusers.common.validation import as_ids, require_number
from text_diffusers.schedulers.noise_schedules import Time
from text_diffusers.schedulers.scheduling_d3pm import D3PMUniformScheduler


class Routes(NamedTuple):
    """Probabilities of taking x_0, of taking noise, and of staying, which add up to 1; none can round below 0."""

    jump: float
    resample: float
    stay: float


def draw_routes(
    clean_weights: Tensor,
    sample: Tensor,
    positions: Tensor,
    routes: Routes,
    generator: Generators,
) -> Tensor:
    """(B, L) tokens of a step that jumps to x_0, takes noise or stays.

    Args:
        clean_weights: (N, V) unnormalised probabilities of x_0 at `positions`, which jump.
        sample: (B, L) current tokens, not changed.
        positions: (B, L) bool, drawn with probability `routes.jump`.
    """
    # Three numbers for every position, whatever its route, so that draws do not depend on it.
    noise = (rand_like(sample, generator) * clean_weights.shape[-1]).long()  # (B, L)
    route = rand_like(sample, generator)
    uniform = rand_like(sample, generator)

    # Positions that do not jump resample or stay. Those that jump are written over.
    prev_sample = torch.where(route * (1 - routes.jump) < routes.resample, noise, sample)
    prev_sample[positions] = sample_tokens(clean_weights, uniform[positions])
    return prev_sample


def routes_reverse(probs: Tensor, sample: Tensor, routes: Routes) -> Tensor:
    """The distribution of `draw_routes`, (B, L, V), from x_0 ~ `probs` (B, L, V) and x_t (B, L)."""
    vocab_size = probs.shape[-1]
    stays = routes.stay * torch.nn.functional.one_hot(sample, vocab_size)
    return routes.jump * probs + routes.resample / vocab_size + stays


def clean_logits(
    scheduler: D3PMUniformScheduler,
    model_output: Tensor,
    timestep: Time,
    current: Tensor,
    leave_one_out: bool,
) -> Tensor:
    """Logits (..., V) of p(x_0 | x_t), or of p(x_0 | x_t) / q(x_t | x_0) if `leave_one_out`.

    The latter is given all tokens but the `current` one (...), x_t at the position. It is what a model predicts
    under the plug-in rule.
    """
    logits = scheduler._own_ids(model_output)
    is_leave_one_out = scheduler.config.reverse_rule == "plug_in"
    if leave_one_out == is_leave_one_out:
        return logits

    # The log of q(x_t | x_0 = x_t) / q(x_t | another x_0).
    alpha_t, _ = scheduler._alphas(timestep)
    gain = math.log1p(scheduler.config.vocab_size * alpha_t / (1 - alpha_t))
    logits = at_least_float32(logits)
    # The two differ in the logit of the current token only.
    gains = torch.full_like(logits[..., :1], -gain if leave_one_out else gain)
    return logits.scatter_add(-1, current.unsqueeze(-1), gains)


class TokenDDIMScheduler(D3PMUniformScheduler):
    """DDIM under the uniform kernel: draw x_0 from the prediction, and then x_s from

    q(x_s | x_t, x_0) = sigma [x_s = x_t] + (alpha_s - sigma alpha_t) [x_s = x_0] + rest / V.

    For every sigma up to sigma_max = (1 - alpha_s) / (1 - alpha_t) this keeps q(x_s | x_0), so the same denoiser
    serves. sigma is (1 - eta) sigma_max: with `eta=0` the rest is 0 and no fresh noise enters, each token either stays
    or becomes x_0; with `eta=1` sigma is 0 and x_s is noised anew from x_0, whatever x_t was. No eta gives
    the sampler of `D3PMUniformScheduler`, whose posterior treats a token that equals x_0 differently.

    A position stays or takes noise with a fixed probability, whatever the model says, so `select` draws exactly the
    positions whose x_0 is used.

    Args:
        vocab_size, num_train_timesteps, schedule, min_timestep, temperature, top_k, top_p: as in
            `D3PMUniformScheduler`.
        reverse_rule: under "plug_in" the prediction is read as leave-one-out and turned into p(x_0 | x_t).
        eta: between 0 and 1, the share of the possible fresh noise.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import TokenDDIMScheduler
        >>> scheduler = TokenDDIMScheduler(vocab_size=10, eta=0.5)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape
        torch.Size([2, 6])
    """

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
        eta: float = 0.0,
    ):
        require_number("eta", eta, 0, 1)
        self._set_up()

    def _routes(self, timestep: Time) -> Routes:
        alpha_t, alpha_s = self._alphas(timestep)
        eta = self.config.eta
        sigma = (1 - eta) * (1 - alpha_s) / (1 - alpha_t)
        # (1 - alpha_s) - sigma (1 - alpha_t), free of cancellation.
        fresh = eta * (1 - alpha_s)
        return Routes(jump=alpha_s - sigma * alpha_t, resample=fresh, stay=sigma)

    def _selected_share(self, timestep: Time) -> float:
        """Probability that the step from `timestep` sets a position to x_0."""
        return self._routes(timestep).jump

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        current = sample[positions]  # (N,)
        logits = clean_logits(self, logits, timestep, current, leave_one_out=False)
        weights = self._weights(logits)  # (N, V)
        return draw_routes(weights, sample, positions, self._routes(timestep), generator)

    def _clean_logits(self, model_output: Tensor, timestep: Time, sample: Tensor) -> Tensor:
        return clean_logits(self, model_output, timestep, sample, leave_one_out=False)

    def reverse_probs(
        self, model_output: Tensor, timestep: Time, sample: Tensor, from_scores: bool = False
    ) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from; as in `D3PMAbsorbingScheduler`."""
        ids = as_ids("sample", sample)
        probs = self._clean_probs(model_output, timestep, ids, from_scores)
        return routes_reverse(probs, ids, self._routes(timestep))
