"""First-hitting sampling of absorbing diffusion (https://arxiv.org/abs/2409.02908), a batch at a time.

Shapes: B batch, L sequence length, N selected positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.validation import require
from text_diffusers.schedulers.noise_schedules import Device, Time, time_of_noise_level
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler


@dataclass
class RowClocks:
    """Where the rows are between the steps.

    Attributes:
        noise_level: (B,) 1 - alpha at the last event of each row, float64.
        offered: (B, L) bool, the last answer of `select`.
        declined: (B, L) bool, masks that were offered and not used: the caller keeps them.
    """

    noise_level: Tensor
    offered: Tensor
    declined: Tensor


class FirstHittingScheduler(D3PMAbsorbingScheduler):
    """Absorbing diffusion in continuous time without an error of discretisation: one token a row at each step.

    Of n masked tokens the next is revealed when 1 - alpha has fallen by the factor u^(1/n), u uniform in [0, 1), and
    each of them is equally likely to be the one. So a step goes from event to event, each row on its own clock:
    `model_timesteps` tells the model the time of its row's event, and `timesteps` only counts the steps. The texts
    are distributed as those of `D3PMAbsorbingScheduler` in the limit of infinitely many steps, also if the model
    depends on time.

    A row takes as many steps as it has masked tokens and costs nothing afterwards. With `num_train_timesteps`, the
    model is told the end of the training step in which the event falls, as it knows no other times. `reverse_probs`
    remains that of `D3PMAbsorbingScheduler`.

    The clocks of the rows are state: `set_timesteps` and the first of `timesteps` start them anew, and one scheduler
    serves one batch at a time. Arguments are those of `D3PMAbsorbingScheduler`.

    Example:
        >>> import torch
        >>> from text_diffusers import FirstHittingScheduler
        >>> scheduler = FirstHittingScheduler(mask_token_id=9)
        >>> scheduler.set_timesteps(6)  # one for each token of a row
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape, bool((sample == 9).any())
        (torch.Size([2, 6]), False)
    """

    draws_reverse = False

    _clocks: RowClocks | None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ):
        """As in `D3PMAbsorbingScheduler`; needs as many steps as the longest row has tokens to write."""
        super().set_timesteps(num_inference_steps, device, timesteps)
        self._clocks = None

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: in each row that has masks, the one that is revealed next.

        Raises:
            ValueError: if a row has more masks than there are steps left, or the batch has changed its shape.
        """
        alpha_t, _ = self._alphas(timestep)
        steps_left = len(self.timesteps) - self._grid_index(timestep)

        clocks = self._clocks
        # The first step starts the clocks at its own time.
        if clocks is None or steps_left == len(self.timesteps):
            level = torch.full(
                (len(sample),), 1 - alpha_t, dtype=torch.float64, device=sample.device
            )
            nowhere = torch.zeros_like(sample, dtype=torch.bool)
            clocks = RowClocks(noise_level=level, offered=nowhere, declined=nowhere)
        shape = tuple(clocks.declined.shape)
        require(
            sample.shape == shape, "sample", f"{shape} as in the steps before", tuple(sample.shape)
        )

        # The masks that may still be revealed.
        masked = (sample == self.config.mask_token_id) & ~clocks.declined
        count = masked.sum(dim=1)  # (B,)
        missing = int(count.max()) - steps_left
        if missing > 0:
            steps = len(self.timesteps)
            raise ValueError(
                f"`num_inference_steps` must be at least {steps + missing}, one for each token that the longest row"
                f" has to write, got {steps}."
            )

        # When the next mask of each row is revealed, and which of them, counted from the left.
        time_draw, place_draw = rand((len(sample), 2), generator, sample.device).unbind(dim=1)
        factor = torch.where(count > 0, time_draw ** (1 / count.clamp(min=1)), 1.0)
        place = (place_draw * count).long() + 1
        offered = masked & (masked.cumsum(dim=1) == place.unsqueeze(1))
        self._clocks = replace(clocks, noise_level=clocks.noise_level * factor, offered=offered)
        return offered.clone()

    def model_timesteps(self, timestep: Time, sample: Tensor) -> Tensor:
        """(B,) times, float32, of the events that the last `select` drew; before any, `timestep`."""
        if self._clocks is None:
            return super().model_timesteps(timestep, sample)

        # The time at which the schedule reaches the row's noise level.
        times = time_of_noise_level(self.alpha, self._clocks.noise_level)
        steps = self.config.num_train_timesteps
        if steps is not None:
            times = (times * steps).ceil().clamp(min=1) / steps
        return times.float()

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
        drawn: Tensor | None = None,
    ) -> Tensor:
        # What was offered and is not among the positions, the caller keeps.
        clocks = self._clocks
        if clocks is not None and clocks.offered.shape == positions.shape:
            self._clocks = replace(clocks, declined=clocks.declined | (clocks.offered & ~positions))
        return super()._next(logits, timestep, sample, positions, generator, drawn)
