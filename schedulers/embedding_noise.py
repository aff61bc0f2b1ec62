"""Base of the schedulers for word embeddings: noise schedules, seeded normal noise, and the departures from stock.

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

from text_diffusers.common.clean_estimate import PREDICTION_TYPES, NoiseLevel, clean_estimate
from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.randomness import Generators, randn
from text_diffusers.common.stock_loading import StockLoading
from text_diffusers.common.validation import (
    LONGEST_CLOCK,
    are_numbers,
    as_plain,
    is_int,
    is_list,
    is_number,
    require,
    require_int,
    require_key,
    require_number,
)

# A beta of 1 would leave no signal, by which estimates are divided.
MAX_BETA = 0.999

# Clean estimates (B, L, E) to embeddings of words (B, L, E).
RoundFunction = Callable[[Tensor], Tensor] | None


def sqrt_alpha_bar(u: Tensor) -> Tensor:
    # Of Diffusion-LM: noise comes fast at first, since a little of it hides no word.
    return 1 - (u + 1e-4).sqrt()


def cosine_alpha_bar(u: Tensor) -> Tensor:
    # Of Nichol and Dhariwal (https://arxiv.org/abs/2102.09672).
    return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def sigmoid_alpha_bar(u: Tensor) -> Tensor:
    """Of Jabri et al. (https://arxiv.org/abs/2212.11972) from -3 to 3; diffusers' "sigmoid" is a sigmoid of betas."""
    low, high = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=u.dtype))
    return (high - torch.sigmoid(6 * u - 3)) / (high - low)


def betas_of(alpha_bar: Callable[[Tensor], Tensor], num_train_timesteps: int) -> Tensor:
    """(T,) betas whose product of 1 - beta falls as `alpha_bar` does from 0 to 1."""
    times = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    levels = alpha_bar(times)  # (T + 1,)
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
STOCK_SCHEDULES = {
    "linear": linear_betas,
    "scaled_linear": lambda steps, start, end: linear_betas(steps, start**0.5, end**0.5) ** 2,
}


def embedding_betas(name: str, num_train_timesteps: int) -> Tensor:
    """(T,) float64 betas of a named schedule, one of `EMBEDDING_SCHEDULES`.

    Raises:
        ValueError: if there is no such name.

    Example:
        >>> from text_diffusers.schedulers.embedding_noise import embedding_betas
        >>> embedding_betas("sqrt", 2000).shape
        torch.Size([2000])
    """
    require_key("beta_schedule", name, EMBEDDING_SCHEDULES)
    return EMBEDDING_SCHEDULES[name](num_train_timesteps)


def configured_betas(config: Any) -> Tensor:
    """(T,) float64 betas of a configuration of ours or of stock diffusers; errors as in `EmbeddingSchedulerMixin`."""
    name = config.beta_schedule
    steps = config.num_train_timesteps
    trained = config.trained_betas
    if trained is not None:
        require(are_numbers(trained), "trained_betas", "a list of numbers", trained)
        trained = torch.as_tensor(trained, dtype=torch.float64)
        limit = f"`num_train_timesteps`={steps} long"
        require(len(trained) == steps, "trained_betas", limit, len(trained))
        ends = [trained.min().item(), trained.max().item()]
        require(0 < ends[0] and ends[1] < 1, "trained_betas", "between 0 and 1", ends)

    if name == "custom":
        if trained is None:
            raise ValueError(
                "`trained_betas` must be given if `beta_schedule` is 'custom', got None."
            )
        return trained

    # Saved configurations hold both the name and the betas, of which one may have been changed.
    betas = named_betas(name, steps, config.beta_start, config.beta_end)
    if trained is None:
        return betas
    if not torch.allclose(trained, betas, rtol=1e-4, atol=1e-7):
        raise ValueError(
            f"`trained_betas` must be those of `beta_schedule`={name!r}, got {trained[0]:.3g} to {trained[-1]:.3g}."
            " Pass `trained_betas=None` to change the schedule, or `beta_schedule='custom'` to keep these betas."
        )
    return trained


def named_betas(
    name: str,
    num_train_timesteps: int,
    start: float | None,
    end: float | None,
) -> Tensor:
    """(T,) float64 betas of a schedule by our name or by that of diffusers, which may come with both ends."""
    # Both ends, or none
    limit = f"given if and only if `beta_start`={start} is"
    require((start is None) == (end is None), "beta_end", limit, end)
    require_number("beta_start", start, 0, 1, optional=True)
    require_number("beta_end", end, 0, 1, optional=True)

    if start is not None and end is not None:
        limit = "None for 'sigmoid', which is a sigmoid of alphas_cumprod"
        require(name != "sigmoid", "beta_start", limit, start)
        if name in STOCK_SCHEDULES:
            return STOCK_SCHEDULES[name](num_train_timesteps, start, end)

    # diffusers has the same cosine by another name.
    return embedding_betas("cosine" if name == "squaredcos_cap_v2" else name, num_train_timesteps)


class EmbeddingSchedulerMixin(StockLoading, SchedulerMixin, ConfigMixin):
    """Mixin before a stock scheduler that changes what is wrong for word embeddings.

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
        # A scheduler of tokens has ids in the place of betas; all settings would be taken by default.
        of_tokens = {"mask_token_id", "vocab_size"} & config_dict.keys()
        if of_tokens and "beta_schedule" not in config_dict:
            raise ValueError(
                f"`config` must be that of a scheduler of embeddings for {cls.__name__}, got one of tokens with "
                f"`{min(of_tokens)}`."
            )
        # Likewise the straight path of flow, whose schedulers have no betas.
        if "shift" in config_dict and "beta_schedule" not in config_dict:
            raise ValueError(
                f"`config` must be that of a scheduler with betas for {cls.__name__}, got one of the straight path of "
                "flow with `shift`."
            )
        # diffusers leaves out what another scheduler took by default, and so would give it our prediction type and
        # noise instead of its own.
        explicit = dict(config_dict)
        explicit.pop("_use_default_values", None)
        return super().extract_init_dict(explicit, **kwargs)

    def register_to_config(self, **kwargs: Any):
        # `from_config` also registers what is not in our signature, stock's clip_sample=True for one, and leaves out
        # in turn what was taken by default.
        rescaled = kwargs.get("rescale_betas_zero_snr", False)
        limit = "False; pass the betas as `trained_betas`"
        require(not rescaled, "rescale_betas_zero_snr", limit, rescaled)
        forced = {"clip_sample": False, "thresholding": False, "_use_default_values": []}
        super().register_to_config(**kwargs | forced)

    def _set_up(self, **stock: Any):
        """Ends each `__init__`; `stock` are the arguments of the stock scheduler beyond those common to all."""
        config = self.config
        require_int("num_train_timesteps", config.num_train_timesteps, 1, LONGEST_CLOCK)
        require_key("prediction_type", config.prediction_type, PREDICTION_TYPES)
        require_int("clamp_steps", config.clamp_steps, 0)

        betas = configured_betas(config)
        # Betas that are given count more in stock than the schedule's name.
        parent: Any = super()
        parent.__init__(
            num_train_timesteps=config.num_train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.beta_schedule,
            trained_betas=betas.tolist(),
            prediction_type=config.prediction_type,
            timestep_spacing=config.timestep_spacing,
            **stock,
        )

        # Stock made these in float32.
        self.betas = betas
        self.alphas = 1 - betas
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
            raise ValueError(
                "Either `num_inference_steps` or `timesteps` must be given, and not both."
            )
        if timesteps is None:
            grid = self._spaced(as_plain(num_inference_steps))
        else:
            grid = as_plain(timesteps)
            are_steps = is_list(grid) and all(
                is_number(timestep) and timestep == int(timestep) for timestep in grid
            )
            require(are_steps, "timesteps", "a list of integers", timesteps)
            grid = [int(timestep) for timestep in grid]

        # A grid that is given one by one may be any, as long as it leads to less noise.
        last = self.config.num_train_timesteps - 1
        inside = bool(grid) and 0 <= grid[-1] and grid[0] <= last
        descends = all(later < earlier for earlier, later in zip(grid, grid[1:], strict=False))
        limit = f"descending within 0 and `num_train_timesteps` - 1={last}"
        require(inside and descends, "timesteps", limit, timesteps)

        self.num_inference_steps = len(grid)
        self.timesteps = torch.tensor(grid, device=device)
        self._index_of = {float(timestep): index for index, timestep in enumerate(grid)}
        # One more than there are steps: the last one ends at the clean estimate.
        self._alphas_on_grid = [*self.alphas_cumprod[grid].tolist(), 1.0]

    def _spaced(self, num_inference_steps: Any) -> list[int]:
        """Descending timesteps, by `timestep_spacing`."""
        spacing = self.config.timestep_spacing
        usable = self._num_usable_timesteps()
        if not is_int(num_inference_steps, 1) or num_inference_steps > usable:
            all_in_use = usable == self.config.num_train_timesteps
            limit = "`num_train_timesteps`" if all_in_use else "the timesteps in use,"
            raise ValueError(
                f"`num_inference_steps` must be in 1 to {limit} {usable}, got {num_inference_steps!r}."
            )

        counter = torch.arange(num_inference_steps, dtype=torch.float64)

        # "trailing" starts at the noisiest time, "leading" ends at timestep 0, "linspace" both.
        if spacing == "trailing":
            grid = (usable - counter * (usable / num_inference_steps)).round() - 1
        elif spacing == "linspace":
            grid = (counter * ((usable - 1) / max(num_inference_steps - 1, 1))).round().flip(0)
        else:
            limit = "'trailing', 'leading' or 'linspace'"
            require(spacing == "leading", "timestep_spacing", limit, spacing)
            grid = counter.flip(0) * (usable // num_inference_steps)
        return grid.long().tolist()

    def noise_level(self, timesteps: Any) -> NoiseLevel:
        """Signal and sigma at timesteps () or (B,), as float64 tensors of the same shape."""
        alpha = self.alphas_cumprod[torch.as_tensor(timesteps).long().cpu()]
        return NoiseLevel(alpha.sqrt(), (1 - alpha).sqrt())

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(B, L, E) from q(x_t given x_0), `timesteps` (B,) or () in 0, ..., T - 1."""
        # Half precision would round the small share of signal or noise away.
        clean = at_least_float32(original_samples)
        table = torch.stack([self.alphas_cumprod, 1 - self.alphas_cumprod]).sqrt().to(clean)
        chosen = table[:, torch.as_tensor(timesteps, device=clean.device)]  # (2, B) or (2,)
        signal, sigma = chosen.reshape(2, -1, *[1] * (clean.dim() - 1))  # (B or 1, 1, 1)
        return (signal * clean + sigma * noise).to(original_samples.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        round_function: RoundFunction = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, ...]:
        """From `timestep` to the next of `timesteps`, or from the last to the clean estimate.

        Args:
            model_output: (B, L, E) prediction of the network.
            sample: (B, L, E) at `timestep`.
            generator: one generator or one a row.
            variance_noise: (B, L, E) standard normal noise to use instead of drawing it.
            round_function: maps a clean estimate (B, L, E) to the rounded one, for the last `clamp_steps` steps.

        Returns:
            `prev_sample` and `pred_original_sample`, the clean estimate, both (B, L, E).

        Raises:
            ValueError: if `timestep` is not in `timesteps`, `round_function` is missing, or `generator` and
                `variance_noise` come together.
        """
        index, clean, noisy = self._read(model_output, timestep, sample, round_function)
        prev_sample = self._next(index, clean, noisy, generator, variance_noise)
        return step_output(prev_sample, clean, sample, return_dict)

    def _next(
        self,
        index: int,
        clean: Tensor,
        noisy: Tensor,
        generator: Generators,
        variance_noise: Tensor | None,
    ) -> Tensor:
        """(B, L, E) x_s of the step number `index`, from the clean estimate and x_t, both (B, L, E)."""
        raise NotImplementedError

    def _read(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        round_function: RoundFunction,
    ) -> tuple[int, Tensor, Tensor]:
        """The number of a step, its clean estimate, rounded where it clamps, and x_t; float32 at least."""
        index = self._index_of.get(float(timestep))
        if index is None:
            raise ValueError(
                f"`timestep` must be one of the {len(self._index_of)} `timesteps`, got {timestep}."
            )
        clamp_steps = self.config.clamp_steps
        rounds = round_function is not None or clamp_steps == 0
        require(rounds, "round_function", f"given for `clamp_steps`={clamp_steps}", round_function)

        noisy = at_least_float32(sample)
        predicted = at_least_float32(model_output)
        alpha_bar = self._alphas_on_grid[index]
        clean = clean_estimate(self.config.prediction_type, predicted, noisy, alpha_bar)

        # Diffusion-LM's clamping trick: near the end the estimate becomes words.
        if round_function is not None and self._clamps(index):
            clean = round_function(clean)
        return index, clean, noisy

    def _clamps(self, index: int) -> bool:
        """Whether the step rounds its clean estimate."""
        return index >= len(self._index_of) - self.config.clamp_steps


def step_noise(sample: Tensor, generator: Generators, variance_noise: Tensor | None) -> Tensor:
    """(B, L, E) `variance_noise` or else new noise, like the sample (B, L, E)."""
    if variance_noise is None:
        batch, length, width = sample.shape
        return randn((batch, length, width), generator, sample.device, sample.dtype)
    require(generator is None, "generator", "None where `variance_noise` is given", generator)
    return variance_noise.to(sample.device, sample.dtype)


def step_output(prev_sample: Tensor, clean: Tensor, like: Tensor, return_dict: bool):
    """The results of `step` in the type of the sample."""
    output = DDIMSchedulerOutput(
        prev_sample=prev_sample.to(like.dtype),
        pred_original_sample=clean.to(like.dtype),
    )
    return output if return_dict else output.to_tuple()
