"""Base of the schedulers for latents that know more than one kind of noise: the straight path of flow, or betas.

On the straight path x_t = (1 - t) x_0 + t noise, and the clock is continuous: timestep T t, as in diffusers' flow
matching schedulers. Betas are those of the schedulers for word embeddings, on the integer clock 0, ..., T - 1.

Shapes: B batch, K latents of a text, E latent width, T training timesteps.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from text_diffusers.common.clean_estimate import (
    PREDICTION_PARTS,
    NoiseLevel,
    by_row,
    convert_prediction,
)
from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.stock_loading import StockLoading
from text_diffusers.common.validation import LONGEST_CLOCK, require, require_int, require_key

# The settings that a stock flow scheduler registers beside those that are ours
STOCK_SETTINGS = {
    name
    for stock in (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
    for name in inspect.signature(stock.__init__).parameters
} - {"self", "num_train_timesteps", "shift"}


def straight_level(timesteps: Any, num_train_timesteps: int) -> NoiseLevel:
    """Signal 1 - t and sigma t of the straight path at timesteps T t, () or (B,), as float64 tensors."""
    times = torch.as_tensor(timesteps).double() / num_train_timesteps
    return NoiseLevel(1 - times, times)


def add_noise_of(level: NoiseLevel, clean: Tensor, noise: Tensor) -> Tensor:
    """(B, K, E) x_t of clean latents and noise, (B, K, E) each."""
    # Half precision would round the small share of signal or noise away.
    precise = at_least_float32(clean)
    noisy = by_row(level.signal, precise) * precise + by_row(level.sigma, precise) * noise
    return noisy.to(clean.dtype)


class LatentSchedulerMixin(StockLoading, SchedulerMixin, ConfigMixin):
    """Mixin of the schedulers for latents.

    - `noise_level` and `add_noise` are what training asks.
    - Any prediction may be stepped by, see `prediction_type`.
    - Configurations go from one scheduler to another of the same noise, and to those for word embeddings if it is that
      of betas.
    """

    config: Any
    # Samples start as standard normal noise, and models are shown them as they are.
    init_noise_sigma = 1.0
    # A scheduler of the straight path only has no betas to be told of.
    straight_only = False

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any):
        betas = config_dict.get("beta_schedule")
        if cls.straight_only and betas is not None:
            raise ValueError(
                f"`config` must be that of the straight path of flow for {cls.__name__}, got one with "
                f"`beta_schedule`={betas!r}: models learn one path."
            )
        # diffusers leaves out what another scheduler took by default, and so would give it our prediction type and
        # noise instead of its own.
        explicit = dict(config_dict)
        explicit.pop("_use_default_values", None)
        # What is stock's alone is its own by default, and registered again; an even grid is that of all others.
        for name in STOCK_SETTINGS & explicit.keys():
            del explicit[name]
        takes_shift = "shift" in inspect.signature(cls.__init__).parameters
        if explicit.get("shift") == 1.0 and not takes_shift:
            del explicit["shift"]
        return super().extract_init_dict(explicit, **kwargs)

    def register_to_config(self, **kwargs: Any):
        # `from_config` leaves out in turn what was taken by default.
        super().register_to_config(**kwargs | {"_use_default_values": []})

    def _check_clock(self):
        """Raise a `ValueError` for a clock or a prediction that cannot be stepped by."""
        require_int("num_train_timesteps", self.config.num_train_timesteps, 1, LONGEST_CLOCK)
        require_key("prediction_type", self.config.prediction_type, PREDICTION_PARTS)

    def _check_straight(self):
        """Raise a `ValueError` for a prediction that says nothing at the first time of the straight path."""
        limit = "'sample', 'v_prediction' or 'flow' on the straight path, which begins without any signal"
        is_told = self.config.prediction_type != "epsilon"
        require(is_told, "prediction_type", limit, self.config.prediction_type)

    def noise_level(self, timesteps: Any) -> NoiseLevel:
        """Signal and sigma at timesteps () or (B,), as float64 tensors of the same shape."""
        return straight_level(timesteps, self.config.num_train_timesteps)

    def _plain_level(self, timestep: float) -> NoiseLevel:
        """`noise_level` of one timestep in plain numbers, the same for all rows."""
        level = self.noise_level(timestep)
        return NoiseLevel(float(level.signal), float(level.sigma))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(B, K, E) from q(x_t given x_0) by standard normal noise (B, K, E), at timesteps (B,) or ()."""
        return add_noise_of(self.noise_level(timesteps), original_samples, noise)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as it is."""
        return sample

    def _convert(
        self, model_output: Tensor, sample: Tensor, level: NoiseLevel, target_type: str
    ) -> Tensor:
        """(B, K, E) another prediction than that of the network at a sample (B, K, E)."""
        return convert_prediction(
            at_least_float32(model_output),
            at_least_float32(sample),
            level,
            self.config.prediction_type,
            target_type,
        )
