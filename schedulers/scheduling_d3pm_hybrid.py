"""Absorbing and uniform noise at once.

D3PM (https://arxiv.org/abs/2107.03006) and GIDD (https://arxiv.org/abs/2503.04482).

Shapes: B batch, L sequence length, S states of a token, N positions.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.validation import require_fraction, require_int
from text_diffusers.schedulers.noise_schedules import D3PMScheduler
from text_diffusers.schedulers.scheduling_d3pm_transition import D3PMSemigroupScheduler


class D3PMHybridScheduler(D3PMSemigroupScheduler):
    """A lost token turns into `[MASK]` or, less often, into a random token.

    q(x_t | x_0) = alpha x_0 + (1 - alpha) noise, with the mass `mask_fraction` of the noise on the mask and the rest
    spread evenly over all tokens. The masks show the model where to write, the random tokens teach it to mend.

    Args:
        mask_token_id: the id of `[MASK]`; never predicted.
        vocab_size: the ids 0 to `vocab_size` - 1 are what text and noise consist of; further logits are ignored. The
            mask may be one of them.
        mask_fraction: above 0, which would be the uniform kernel, and below 1, the absorbing one.
        num_train_timesteps: T.
        reverse_rule, schedule, min_timestep, temperature, top_k, top_p: as in `D3PMUniformScheduler`.

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
    ):
        self._set_up()
        require_int("mask_token_id", mask_token_id, 0)
        require_fraction("mask_fraction", mask_fraction)

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

    # One token at a time the kernel keeps or loses what was there, which needs no (N, S) table.
    _corrupt = D3PMScheduler._corrupt

    def _noise_tokens(self, uniform: Tensor) -> Tensor:
        """(B, L) masks and random tokens; the number that decides between them also chooses the token."""
        masked = self.config.mask_fraction
        vocab_size = self.config.vocab_size

        # What lies above the share of the masks is uniform once more; rounding may take it to 1.
        words = ((uniform - masked).clamp(min=0) / (1 - masked) * vocab_size).long()
        words = words.clamp(max=vocab_size - 1)
        return torch.where(uniform < masked, self.config.mask_token_id, words)

    def _noise(self, like: Tensor) -> Tensor:
        """(S,) the distribution of a lost token."""
        num_words = self.config.vocab_size
        noise = torch.zeros(self.num_states, dtype=like.dtype, device=like.device)
        noise[:num_words] = (1 - self.config.mask_fraction) / num_words
        noise[self.config.mask_token_id] += self.config.mask_fraction
        return noise

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        alpha = self._survival(start, end, probs)  # (N, 1)
        lost = (1 - alpha) * probs.sum(dim=-1, keepdim=True)
        return alpha * probs + lost * self._noise(probs)

    def _diffuse_back(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        alpha = self._survival(start, end, values)  # (N, 1)
        # The transpose: what is lost is worth the mean of the values under the noise.
        from_noise = (values @ self._noise(values)).unsqueeze(-1)
        return alpha * values + (1 - alpha) * from_noise
