"""What the schedulers for word embeddings share: noise schedules, seeded normal noise, and the departures from stock.

Diffusion-LM (https://arxiv.org/abs/2205.14217). Time is diffusers' integer clock: timestep T - 1 is the noisiest,
`alphas_cumprod[t]` the product of 1 - beta up to t.

Shapes: B batch, L sequence length, E embedding width, T training timesteps.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from text_diffusers.common.clean_estimate import PREDICTION_TYPES
from text_diffusers.common.randomness import Generators, randn
from text_diffusers.common.validation import (
    CLOCK_LIMIT,
    are_numbers,
    is_int,
    is_key,
    is_number,
    is_number_of_steps,
    require,
)

MAX_BETA = 0.999
RoundFunction = Callable[[Tensor], Tensor] | None


def sqrt_alpha_bar(u: Tensor) -> Tensor:
    return 1 - (u + 1e-4).sqrt()


def cosine_alpha_bar(u: Tensor) -> Tensor:
    return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def sigmoid_alpha_bar(u: Tensor) -> Tensor:
    """Of Jabri et al. (https://arxiv.org/abs/2212.11972) from -3 to 3; diffusers' "sigmoid" is a sigmoid of betas."""
    low, high = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=u.dtype))
    return (high - torch.sigmoid(6 * u - 3)) / (high - low)


def betas_of(alpha_bar: Callable[[Tensor], Tensor], num_train_timesteps: int) -> Tensor:
    levels = alpha_bar(torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps)
    return (1 - levels[1:] / levels[:-1]).clamp(max=MAX_BETA)


def linear_betas(num_train_timesteps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    return torch.linspace(start, end, num_train_timesteps, dtype=torch.float64)


EMBEDDING_SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "sqrt": lambda steps: betas_of(sqrt_alpha_bar, steps),
    "cosine": lambda steps: betas_of(cosine_alpha_bar, steps),
    "sigmoid": lambda steps: betas_of(sigmoid_alpha_bar, steps),
    # Made for T = 1000; few steps must not need betas above 1.
    "linear": lambda steps: (linear_betas(steps) * 1000 / steps).clamp(max=MAX_BETA),
}
# What diffusers means by its names where `beta_start` and `beta_end` are given.
STOCK_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": lambda steps, start, end: linear_betas(steps, start**0.5, end**0.5) ** 2,
}


def embedding_betas(name: str, num_train_timesteps: int) -> Tensor:
    """(T,) float64 betas of a named schedule, one of `EMBEDDING_SCHEDULES`.

    Raises:
        ValueError: if there is no such name.
    """
    require(is_key(name, EMBEDDING_SCHEDULES), "beta_schedule", f"one of {sorted(EMBEDDING_SCHEDULES)}", name)
    return EMBEDDING_SCHEDULES[name](num_train_timesteps)


def configured_betas(config: Any) -> Tensor:
    """(T,) float64 betas of a configuration of ours or of stock diffusers; errors as in `EmbeddingSchedulerMixin`."""
    name, steps, given = config.beta_schedule, config.num_train_timesteps, config.trained_betas
    if given is not None:
        require(are_numbers(given), "trained_betas", "a list of numbers", given)
        given = torch.as_tensor(given, dtype=torch.float64)
        require(len(given) == steps, "trained_betas", f"`num_train_timesteps`={steps} long", len(given))
        between = bool(((given > 0) & (given < 1)).all())
        require(between, "trained_betas", "between 0 and 1", [given.min().item(), given.max().item()])
    if name == "custom":
        if given is None:
            raise ValueError("`trained_betas` must be given if `beta_schedule` is 'custom', got None.")
        return given
    betas = named_betas(name, steps, config.beta_start, config.beta_end)
    if given is not None and not torch.allclose(given, betas, rtol=1e-4, atol=1e-7):
        raise ValueError(
            f"`trained_betas` must be those of `beta_schedule`={name!r}, got {given[0]:.3g} to {given[-1]:.3g}. Pass"
            " `trained_betas=None` to change the schedule, or `beta_schedule='custom'` to keep these betas."
        )
    return betas if given is None else given


def named_betas(name: str, num_train_timesteps: int, start: float | None, end: float | None) -> Tensor:
    require((start is None) == (end is None), "beta_end", f"given if and only if `beta_start`={start} is", end)
    for argument, value in (("beta_start", start), ("beta_end", end)):
        require(value is None or is_number(value, 0, 1), argument, "None or a number in [0, 1]", value)
    if name == "squaredcos_cap_v2":
        return embedding_betas("cosine", num_train_timesteps)
    if start is None or end is None:
        return embedding_betas(name, num_train_timesteps)
    if name in STOCK_SCHEDULES:
        return STOCK_SCHEDULES[name](num_train_timesteps, start, end)
    require(name != "sigmoid", "beta_start", "None for 'sigmoid', which is a sigmoid of alphas_cumprod", start)
    return embedding_betas(name, num_train_timesteps)


class EmbeddingSchedulerMixin(SchedulerMixin, ConfigMixin):
    """Stands before a stock scheduler and changes what is wrong for word embeddings.

    - Noise: the schedules of text. The betas in use are always in `config["trained_betas"]`, so stock schedulers made
      by `from_config` take the same noise; coefficients are float64.
    - Clean estimates are neither clipped nor thresholded, whatever a configuration says: embeddings are not pixels.
    - The grid ends at the clean estimate also where the number of steps does not divide T.
    - In the last `clamp_steps` steps the clean estimate becomes what `round_function` makes of it, say the nearest
      words.
    - Noise may come from one generator a row.

    The configuration holds these for all:
        num_train_timesteps: T.
        beta_schedule: "sqrt", "cosine", "sigmoid" or "linear" (in proportion to 1000 / T); "custom" to use
            `trained_betas`; or diffusers' "linear" and "scaled_linear" with `beta_start` and `beta_end`, and
            "squaredcos_cap_v2".
        trained_betas: None or (T,) betas, which must be those of `beta_schedule`.
        prediction_type: what the network predicts, "sample" (the clean embeddings), "epsilon" or "v_prediction".
        timestep_spacing: "trailing" (from T - 1), "leading" or "linspace", as in diffusers' DDIM.
        clamp_steps: see above.

    Raises:
        ValueError: if an argument is out of its range, or `trained_betas` and `beta_schedule` contradict each other.
    """

    config: Any

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """Stock's, and every loaded scheduler for word embeddings."""
        return [*super()._get_compatibles(), *EmbeddingSchedulerMixin.__subclasses__()]

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        # diffusers leaves out what another scheduler took by default, and so would give it our prediction type and
        # noise instead of its own.
        explicit = {name: value for name, value in config_dict.items() if name != "_use_default_values"}
        return super().extract_init_dict(explicit, **kwargs)

    def register_to_config(self, **kwargs: Any):
        # `from_config` also registers what is not in our signature, stock's clip_sample=True for one, and leaves out
        # in turn what was taken by default.
        rescaled = kwargs.get("rescale_betas_zero_snr", False)
        require(not rescaled, "rescale_betas_zero_snr", "False; pass the betas as `trained_betas`", rescaled)
        forced = {"clip_sample": False, "thresholding": False, "_use_default_values": []}
        super().register_to_config(**kwargs | forced)

    def _set_up(self, **stock: Any):
        """Ends each `__init__`; `stock` are the arguments of the stock scheduler beyond those common to all."""
        config = self.config
        steps, prediction = config.num_train_timesteps, config.prediction_type
        require(is_number_of_steps(steps), "num_train_timesteps", CLOCK_LIMIT, steps)
        require(prediction in PREDICTION_TYPES, "prediction_type", f"one of {PREDICTION_TYPES}", prediction)
        require(is_int(config.clamp_steps, 0), "clamp_steps", "an integer of at least 0", config.clamp_steps)
        betas = configured_betas(config)
        parent: Any = super()
        parent.__init__(
            num_train_timesteps=steps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.beta_schedule,
            trained_betas=betas.tolist(),
            prediction_type=prediction,
            timestep_spacing=config.timestep_spacing,
            **stock,
        )
        self.betas, self.alphas = betas, 1 - betas
        self.alphas_cumprod = self.alphas.cumprod(dim=0)
        self.set_timesteps(self._num_usable_timesteps())

    def _num_usable_timesteps(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ):
        """Set the descending grid `timesteps`, by number or one by one; the last step ends at the clean estimate.

        Raises:
            ValueError: if not one of both is given, there are fewer than 1 or more than T steps (or timesteps in use),
                or `timesteps` do not descend within 0, ..., T - 1.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Either `num_inference_steps` or `timesteps` must be given, and not both.")
        grid = self._spaced(num_inference_steps) if timesteps is None else [int(timestep) for timestep in timesteps]
        inside = bool(grid) and 0 <= grid[-1] and grid[0] < self.config.num_train_timesteps
        descends = all(later < earlier for earlier, later in zip(grid, grid[1:], strict=False))
        limit = f"descending within 0 and `num_train_timesteps` - 1={self.config.num_train_timesteps - 1}"
        require(inside and descends, "timesteps", limit, timesteps)
        self.num_inference_steps = len(grid)
        self.timesteps = torch.tensor(grid, device=device)
        self._index_of = {timestep: index for index, timestep in enumerate(grid)}
        self._alphas_on_grid = [*self.alphas_cumprod[grid].tolist(), 1.0]

    def _spaced(self, num_inference_steps: Any) -> list[int]:
        usable, spacing = self._num_usable_timesteps(), self.config.timestep_spacing
        if not (is_int(num_inference_steps, 1) and num_inference_steps <= usable):
            limit = "`num_train_timesteps`" if usable == self.config.num_train_timesteps else "the timesteps in use,"
            raise ValueError(f"`num_inference_steps` must be in 1 to {limit} {usable}, got {num_inference_steps!r}.")
        counter = torch.arange(num_inference_steps, dtype=torch.float64)
        if spacing == "trailing":
            grid = (usable - counter * (usable / num_inference_steps)).round() - 1
        elif spacing == "linspace":
            grid = (counter * ((usable - 1) / max(num_inference_steps - 1, 1))).round().flip(0)
        else:
            require(spacing == "leading", "timestep_spacing", "'trailing', 'leading' or 'linspace'", spacing)
            grid = counter.flip(0) * (usable // num_inference_steps)
        return grid.long().tolist()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(B, L, E) from q(x_t given x_0), `timesteps` (B,) or () in 0, ..., T - 1."""
        signal, sigma = self._signal_and_sigma(timesteps, original_samples)
        return (signal * original_samples + sigma * noise).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(B, L, E) what a network with `prediction_type="v_prediction"` learns, from clean samples (B, L, E)."""
        signal, sigma = self._signal_and_sigma(timesteps, sample)
        return (signal * noise - sigma * sample).to(sample.dtype)

    def _signal_and_sigma(self, timesteps: Tensor, like: Tensor) -> Tensor:
        table = torch.stack([self.alphas_cumprod, 1 - self.alphas_cumprod]).sqrt()
        table = table.to(like.device, torch.promote_types(like.dtype, torch.float32))
        return table[:, timesteps.to(like.device)].reshape(2, -1, *[1] * (like.dim() - 1))

    def _grid_index(self, timestep: int | Tensor) -> int:
        index = self._index_of.get(int(timestep))
        if index is None:
            raise ValueError(f"`timestep` must be one of the {len(self._index_of)} `timesteps`, got {timestep}.")
        return index

    def _clamps(self, index: int) -> bool:
        return index >= len(self._index_of) - self.config.clamp_steps

    def _read(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, round_function: RoundFunction
    ) -> tuple[int, Tensor, Tensor]:
        """What every step begins with: its index, x_0 as predicted, and x_t, (B, L, E) in float32 at least."""
        index = self._grid_index(timestep)
        predicted, noisy = at_least_float32(model_output, sample)
        return index, self._clean_estimate(predicted, index, noisy, round_function), noisy

    def _clean_estimate(self, model_output: Tensor, index: int, sample: Tensor, round_function: RoundFunction):
        """(B, L, E) the x_0 that the network predicts at `timesteps[index]`, rounded where the step clamps."""
        alpha_bar = self._alphas_on_grid[index]
        signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        if self.config.prediction_type == "sample":
            clean = model_output
        elif self.config.prediction_type == "epsilon":
            clean = (sample - sigma * model_output) / signal
        else:
            clean = signal * sample - sigma * model_output
        if self.config.clamp_steps and round_function is None:
            raise ValueError(f"`round_function` must be given for `clamp_steps`={self.config.clamp_steps}, got None.")
        return round_function(clean) if round_function is not None and self._clamps(index) else clean


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


def step_noise(sample: Tensor, generator: Generators, variance_noise: Tensor | None) -> Tensor:
    """(B, L, E) `variance_noise` or else new noise, like the sample (B, L, E)."""
    if variance_noise is None:
        batch, length, width = sample.shape
        return randn((batch, length, width), generator, sample.device, sample.dtype)
    require(generator is None, "generator", "None where `variance_noise` is given", generator)
    return variance_noise.to(sample.device, sample.dtype)


def step_output(prev_sample: Tensor, clean: Tensor, like: Tensor, return_dict: bool):
    output = DDIMSchedulerOutput(prev_sample=prev_sample.to(like.dtype), pred_original_sample=clean.to(like.dtype))
    return output if return_dict else output.to_tuple()
