"""Absorbing diffusion that may mask a revealed token again: ReMDM (https://arxiv.org/abs/2503.00307).

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.sampling import token_weights
from text_diffusers.common.validation import is_number, require
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler

REMASKING_STRATEGIES = ("cap", "rescale", "confidence")
CLOCK_TOLERANCE = 1e-6


def largest_sigma(alpha_t: float, alpha_s: float) -> float:
    """The highest probability of masking a revealed token that leaves q(x_s | x_0) as it is."""
    return min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0


def remasking_reveal_prob(alpha_t: float, alpha_s: float, sigma: float) -> float:
    """Probability of revealing a mask that leaves q(x_s | x_0) as it is when revealed tokens are masked with sigma."""
    return (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)


class RemaskingScheduler(D3PMAbsorbingScheduler):
    """What samplers that mask revealed tokens again share; by itself it masks none and is `D3PMAbsorbingScheduler`.

    A subclass says in `_rates` how often. Which positions are revealed and which are masked again does not depend on
    the prediction, so `select` still comes first; a position that is masked again needs no prediction. Any revealed
    token may be masked again, so a caller that holds tokens fixed restores them.
    """

    revises_tokens = True
    draws_reverse = False

    def _rates(self, timestep: float | Tensor, sample: Tensor) -> tuple[float, float | Tensor]:
        """Probability of revealing a masked token, and of masking a revealed one: a number or (B, L)."""
        return remasking_reveal_prob(*self._alphas(timestep), sigma=0.0), 0.0

    def select(self, timestep: float | Tensor, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the masked positions that the step from `timestep` reveals."""
        reveal, _ = self._rates(timestep, sample)
        masked = sample == self.config.mask_token_id
        return masked & (rand(tuple(sample.shape), generator, sample.device) < reveal)

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        _, remask = self._rates(timestep, sample)
        prev_sample = super()._next(model_output, timestep, sample, positions, generator)
        if isinstance(remask, Tensor) or remask > 0:
            revealed = sample != self.config.mask_token_id
            remasked = revealed & (rand(tuple(sample.shape), generator, sample.device) < remask)
            prev_sample = prev_sample.masked_fill(remasked, self.config.mask_token_id)
        return prev_sample

    def reverse_probs(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from, for logits (B, L, V)."""
        reveal, remask = self._rates(timestep, sample)
        mask_token_id = self.config.mask_token_id
        probs = self._probs(model_output)
        masked = reveal * probs
        masked[..., mask_token_id] += 1 - reveal
        remask = torch.as_tensor(remask, dtype=probs.dtype, device=probs.device).expand(sample.shape).unsqueeze(-1)
        revealed = (1 - remask) * torch.nn.functional.one_hot(sample, probs.shape[-1])
        revealed[..., mask_token_id] += remask[..., 0]
        return torch.where((sample == mask_token_id).unsqueeze(-1), masked, revealed)


class ReMDMScheduler(RemaskingScheduler):
    """ReMDM: each step masks some revealed tokens again, and reveals so many more that q(x_s | x_0) is unchanged.

    A revealed token is masked with probability sigma, which is at most sigma_max = min(1, (1 - alpha_s) / alpha_t),
    and a mask is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). In the last step sigma_max
    is 0 and no mask is left. sigma = 0 is `D3PMAbsorbingScheduler`, draw for draw.

    `remasking` chooses sigma:

    - "cap": min(eta, sigma_max).
    - "rescale": eta * sigma_max.
    - "confidence": eta * sigma_max times a row's softmax of minus the confidences. A token's confidence is the
      probability that the denoiser gave it when it was last revealed, before temperature, top_k and top_p. Tokens
      that this scheduler did not write have none and are never masked. Masks are revealed at the rate of sigma = 0,
      so that, unlike with the other two, q(x_s | x_0) is not kept: fewer tokens are revealed than alpha_s says. The
      confidences are kept from step to step and forgotten by `set_timesteps`: one run at a time.

    Args:
        mask_token_id, num_train_timesteps, schedule, min_timestep, temperature, top_k, top_p: as in
            `D3PMAbsorbingScheduler`.
        remasking: "cap", "rescale" or "confidence".
        eta: between 0, no remasking, and 1.
        start: steps that start later than this time, closer to noise, do not remask.
        stop: steps that start at this time or earlier do not remask.

    Raises:
        ValueError: if an argument is out of its range.
    """

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
        remasking: str = "cap",
        eta: float = 0.008,
        start: float = 1.0,
        stop: float = 0.0,
    ):
        require(remasking in REMASKING_STRATEGIES, "remasking", f"one of {REMASKING_STRATEGIES}", remasking)
        require(is_number(eta, 0, 1), "eta", "a number in [0, 1]", eta)
        require(is_number(start, 0, 1), "start", "a number in [0, 1]", start)
        require(is_number(stop, 0, 1) and stop <= start, "stop", f"a number in [0, `start`={start}]", stop)
        self._set_up()

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        """As in `D3PMAbsorbingScheduler`; also forgets the confidences."""
        super().set_timesteps(num_inference_steps, device)
        self._confidence = None

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        prev_sample = super()._next(model_output, timestep, sample, positions, generator)
        if self.config.remasking == "confidence":
            weights = token_weights(model_output, mask_token_id=self.config.mask_token_id)
            drawn = weights.gather(1, prev_sample[positions].unsqueeze(-1)).squeeze(-1)  # (N,)
            confidence = self._confidences(sample).clone()
            confidence[positions] = (drawn / weights.sum(dim=-1)).double()
            self._confidence = confidence.masked_fill(prev_sample == self.config.mask_token_id, math.inf)
        return prev_sample

    def _rates(self, timestep: float | Tensor, sample: Tensor) -> tuple[float, float | Tensor]:
        alpha_t, alpha_s = self._alphas(timestep)
        config, limit = self.config, largest_sigma(alpha_t, alpha_s)
        if not config.stop <= float(timestep) - CLOCK_TOLERANCE < config.start:
            limit = 0.0
        sigma = min(config.eta, limit) if config.remasking == "cap" else config.eta * limit
        if config.remasking != "confidence":
            return remasking_reveal_prob(alpha_t, alpha_s, sigma), sigma
        share = torch.softmax(-self._confidences(sample), dim=1).nan_to_num(0.0)  # a row without any is all NaN
        return remasking_reveal_prob(alpha_t, alpha_s, sigma=0.0), sigma * share if sigma > 0 else 0.0

    def _confidences(self, sample: Tensor) -> Tensor:
        """(B, L) float64, infinite where there is no token or it was not written by this scheduler."""
        if self._confidence is None:
            return torch.full(sample.shape, math.inf, dtype=torch.float64, device=sample.device)
        if self._confidence.shape != sample.shape:
            want, got = tuple(self._confidence.shape), tuple(sample.shape)
            raise ValueError(f"`sample` must keep its shape {want} until the next `set_timesteps`, got {got}.")
        return self._confidence
