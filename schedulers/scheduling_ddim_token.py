"""DDIM for tokens under the uniform kernel: the non-Markovian family of https://arxiv.org/abs/2010.02502.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.sampling import sample_tokens
from text_diffusers.common.validation import is_number, require
from text_diffusers.schedulers.scheduling_d3pm import D3PMUniformScheduler


def draw_routes(
    clean_weights: Tensor, sample: Tensor, noise: Tensor, positions: Tensor, jump: float, resample: float, generator
) -> Tensor:
    """(B, L) tokens of a step that jumps to x_0 with one probability, resamples with another, and stays with the rest.

    Args:
        clean_weights: (N, V) unnormalised probabilities of x_0 at `positions`, which jump.
        sample, noise: (B, L) current and uniformly random tokens.
        positions: (B, L) bool, drawn with probability `jump`.
    """
    shape = tuple(sample.shape)
    route, uniform = rand(shape, generator, sample.device), rand(shape, generator, sample.device)
    prev_sample = torch.where(route * (1 - jump) < resample, noise, sample)
    prev_sample[positions] = sample_tokens(clean_weights, uniform[positions])
    return prev_sample


def routes_reverse(probs: Tensor, sample: Tensor, jump: float, resample: float) -> Tensor:
    """The distribution of `draw_routes`, (B, L, V), from x_0 ~ `probs` (B, L, V) and x_t (B, L)."""
    vocab_size = probs.shape[-1]
    stays = (1 - jump - resample) * torch.nn.functional.one_hot(sample, vocab_size)
    return jump * probs + resample / vocab_size + stays


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
        require(is_number(eta, 0, 1), "eta", "a number in [0, 1]", eta)
        self._set_up()

    def select(self, timestep: float | Tensor, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the positions that the step from `timestep` sets to x_0."""
        jump, _ = self._jump_and_resample(timestep)
        return rand(tuple(sample.shape), generator, sample.device) < jump

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        noise = self._random_tokens(tuple(sample.shape), generator, sample.device)
        weights = self._weights(self._clean_logits(model_output, timestep, sample[positions]))
        routes = self._jump_and_resample(timestep)
        prev_sample = draw_routes(weights, sample, noise, positions, *routes, generator=generator)
        return prev_sample

    def reverse_probs(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from, for logits (B, L, V or more)."""
        probs = self._probs(self._clean_logits(model_output, timestep, sample))
        return routes_reverse(probs, sample, *self._jump_and_resample(timestep))

    def _jump_and_resample(self, timestep: float | Tensor) -> tuple[float, float]:
        alpha_t, alpha_s = self._alphas(timestep)
        fresh = self.config.eta * (1 - alpha_s)  # (1 - alpha_s) - sigma (1 - alpha_t), free of cancellation
        sigma = (1 - self.config.eta) * (1 - alpha_s) / (1 - alpha_t)
        return alpha_s - sigma * alpha_t, fresh
