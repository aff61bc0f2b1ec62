"""Absorbing diffusion that reveals tokens far from each other together.

Shapes: B batch, L sequence length.
"""

from torch import Tensor

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.schedulers.noise_schedules import Time
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler


class EvenRevealScheduler(D3PMAbsorbingScheduler):
    """Absorbing diffusion whose steps reveal masks at even distances, so that few steps are enough.

    Tokens that are revealed together are drawn independently of each other. Neighbours depend on each other most, and
    of random positions many are neighbours. Here the masks of a row are counted from the left, and a step that reveals
    the share p of them takes every (1 / p)-th, from a random one on: systematic sampling. Each mask is still revealed
    with probability p, but with p <= 1 / 2 never together with the mask next to it. If the model is exact, as many
    steps as there are tokens write from its distribution. That distance lowers the error of parallel steps is also the
    observation behind dilated schedules (https://arxiv.org/abs/2506.19037).

    Arguments are those of `D3PMAbsorbingScheduler`.

    Example:
        >>> import torch
        >>> from text_diffusers import EvenRevealScheduler
        >>> scheduler = EvenRevealScheduler(mask_token_id=9)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((1, 12))
        >>> scheduler.select(1.0, sample, torch.Generator().manual_seed(0)).long().tolist()
        [[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]]
    """

    # Tokens of a step are revealed together or apart, and not each on its own.
    draws_reverse = False

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the masked positions that the step from `timestep` reveals, by one number a row."""
        reveal, _ = self._rates(timestep, sample)
        masked = sample == self.config.mask_token_id
        numbers = masked.cumsum(dim=1)  # (B, L), that of each mask, from 1 on
        start = rand((len(sample), 1), generator, sample.device)

        # A mask is revealed where another whole one is due: reveal * number + start passes an integer.
        due = (reveal * numbers + start).floor()
        due_before = (reveal * (numbers - 1) + start).floor()
        return masked & (due > due_before)
