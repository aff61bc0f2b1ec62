"""Absorbing diffusion that may mask a revealed token again: ReMDM (https://arxiv.org/abs/2503.00307).

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.sampling import token_weights
from text_diffusers.common.validation import is_number, require, require_key, require_number
from text_diffusers.schedulers.noise_schedules import Device, Time
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler, reveal_prob

REMASKING_STRATEGIES = ("cap", "rescale", "confidence")

# Timesteps are float32.
CLOCK_TOLERANCE = 1e-6


def largest_sigma(alpha_t: float, alpha_s: float) -> float:
    """The highest probability of masking a revealed token that leaves q(x_s | x_0) as it is."""
    return min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0


class RemaskingScheduler(D3PMAbsorbingScheduler):
    """Base of the samplers that mask revealed tokens again; by itself it masks none and is `D3PMAbsorbingScheduler`.

    A subclass says in `_rates` how often. Which positions are revealed and which are masked again does not depend on
    the prediction, so `select` still comes first; a position that is masked again needs no prediction. Any revealed
    token may be masked again, so a caller that holds tokens fixed restores them.
    """

    revises_tokens = True
    draws_reverse = False

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
        drawn: Tensor | None = None,
    ) -> Tensor:
        # The tokens that are revealed now were masks before, so they are not masked in the same step.
        _, remask = self._rates(timestep, sample)
        prev_sample = super()._next(logits, timestep, sample, positions, generator, drawn)
        if not isinstance(remask, Tensor) and remask == 0:
            return prev_sample

        revealed = sample != self.config.mask_token_id
        remasked = revealed & (rand_like(sample, generator) < remask)
        return prev_sample.masked_fill(remasked, self.config.mask_token_id)


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

    Example:
        >>> import torch
        >>> from text_diffusers import ReMDMScheduler
        >>> scheduler = ReMDMScheduler(mask_token_id=9, remasking="rescale", eta=0.5)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape, bool((sample == 9).any())
        (torch.Size([2, 6]), False)
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
        require_key("remasking", remasking, REMASKING_STRATEGIES)
        require_number("eta", eta, 0, 1)
        require_number("start", start, 0, 1)
        require(is_number(stop, 0, start), "stop", f"a number in [0, `start`={start}]", stop)
        self._set_up()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ):
        """As in `D3PMAbsorbingScheduler`; also forgets the confidences."""
        super().set_timesteps(num_inference_steps, device, timesteps)
        self._confidence = None

    def _rates(self, timestep: Time, sample: Tensor) -> tuple[float, float | Tensor]:
        """Probability of revealing a masked token, and of masking a revealed one: a number or (B, L)."""
        config = self.config
        alpha_t, alpha_s = self._alphas(timestep)
        if not config.stop <= float(timestep) - CLOCK_TOLERANCE < config.start:
            # Outside of the window no token is masked again.
            return reveal_prob(alpha_t, alpha_s), 0.0

        # Probability of masking a revealed token.
        sigma_max = largest_sigma(alpha_t, alpha_s)
        sigma = min(config.eta, sigma_max) if config.remasking == "cap" else config.eta * sigma_max
        if config.remasking != "confidence":
            return reveal_prob(alpha_t, alpha_s, sigma), sigma
        if sigma == 0:
            return reveal_prob(alpha_t, alpha_s), 0.0

        # A row without any confidence is all NaN, and masks nothing.
        share = torch.softmax(-self._confidences(sample), dim=1).nan_to_num(0.0)  # (B, L)
        return reveal_prob(alpha_t, alpha_s), sigma * share

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
        drawn: Tensor | None = None,
    ) -> Tensor:
        prev_sample = super()._next(logits, timestep, sample, positions, generator, drawn)
        if self.config.remasking != "confidence":
            return prev_sample

        # Remember how probable the model itself found the tokens that it has just revealed.
        weights = token_weights(logits, mask_token_id=self.config.mask_token_id)
        tokens = prev_sample[positions].unsqueeze(-1)  # (N, 1)
        drawn = weights.gather(1, tokens).squeeze(-1)
        confidence = self._confidences(sample).clone()
        confidence[positions] = (drawn / weights.sum(dim=-1)).double()

        # A mask has no confidence, whatever stood there before.
        masked = prev_sample == self.config.mask_token_id
        self._confidence = confidence.masked_fill(masked, math.inf)
        return prev_sample

    def _confidences(self, sample: Tensor) -> Tensor:
        """(B, L) float64, infinite where there is no token or it was not written by this scheduler."""
        if self._confidence is None:
            return torch.full(sample.shape, math.inf, dtype=torch.float64, device=sample.device)
        if self._confidence.shape != sample.shape:
            wanted = tuple(self._confidence.shape)
            got = tuple(sample.shape)
            raise ValueError(
                f"`sample` must keep its shape {wanted} until the next `set_timesteps`, got {got}."
            )
        return self._confidence
