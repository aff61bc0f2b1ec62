"""Absorbing and uniform noise at once.

D3PM (https://arxiv.org/abs/2107.03006) and GIDD (https://arxiv.org/abs/2503.04482).

Shapes: B batch, L sequence length, S states of a token, N positions.
"""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.validation import is_int, is_number, require
from text_diffusers.schedulers.scheduling_d3pm_transition import D3PMSemigroupScheduler


class D3PMHybridScheduler(D3PMSemigroupScheduler):
    """A lost token turns into `[MASK]` or, less often, into a random token.

    q(x_t | x_0) = alpha x_0 + (1 - alpha) noise, with the mass `mask_fraction` of the noise on the mask and the rest
    spread evenly over all tokens. The masks show the model where to write, the random tokens teach it to mend.

    Args:
        mask_token_id: the id of `[MASK]`, not below `vocab_size`; never predicted.
        vocab_size: the ids 0 to `vocab_size` - 1 are what text consists of; further logits are ignored.
        mask_fraction: above 0, which would be the uniform kernel, and below 1, the absorbing one.
        num_train_timesteps: T.
        reverse_rule, schedule, min_timestep, temperature, top_k, top_p: as in `D3PMUniformScheduler`.

    Raises:
        ValueError: if an argument is out of its range.
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
    ):
        self._set_up()
        limit = f"an id of at least `vocab_size`={vocab_size}"
        require(is_int(mask_token_id, vocab_size), "mask_token_id", limit, mask_token_id)
        inside = is_number(mask_fraction, 0, 1) and 0 < mask_fraction < 1
        require(inside, "mask_fraction", "a number between 0 and 1, exclusive", mask_fraction)

    @property
    def num_states(self) -> int:
        return self.config.mask_token_id + 1

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: str | torch.device | None = None
    ) -> Tensor:
        """(B, L) tokens at time 1: masks and random tokens."""
        return self._noise_tokens(shape, generator, torch.device(device or "cpu"))

    def _corrupt(self, tokens: Tensor, timesteps: float | Tensor, generator: Generators) -> Tensor:
        keep = self._keep(tokens, timesteps, generator)
        return torch.where(keep, tokens, self._noise_tokens(tuple(tokens.shape), generator, tokens.device))

    def _noise_tokens(self, shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
        masked = self.config.mask_fraction
        uniform = rand(shape, generator, device)
        words = ((uniform - masked).clamp(min=0) / (1 - masked) * self.config.vocab_size).long()
        return torch.where(uniform < masked, self.config.mask_token_id, words.clamp(max=self.config.vocab_size - 1))

    def _noise(self, like: Tensor) -> Tensor:
        """(S,) the distribution of a lost token."""
        words, fraction = self.config.vocab_size, self.config.mask_fraction
        noise = torch.zeros(self.num_states, dtype=like.dtype, device=like.device)
        noise[:words] = (1 - fraction) / words
        noise[self.config.mask_token_id] = fraction
        return noise

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        alpha = self._survival(start, end, probs)
        return alpha * probs + (1 - alpha) * probs.sum(dim=-1, keepdim=True) * self._noise(probs)

    def _diffuse_back(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        alpha = self._survival(start, end, values)
        return alpha * values + (1 - alpha) * (values @ self._noise(values)).unsqueeze(-1)
