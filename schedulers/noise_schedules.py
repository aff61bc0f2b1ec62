"""Noise of tokens: how fast text turns into it, and the base of the schedulers that undo it.

alpha(t) is the probability that a token is still itself. Time runs from 0, clean text, to 1, pure noise. Schedules map
float64 tensors to float64 tensors of the same shape.

Shapes: B batch, L sequence length, V vocabulary size, S states of a token, N tokens or selected positions, T training
timesteps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand, rand_like
from text_diffusers.common.sampling import (
    MOST_IDS,
    check_rows,
    draw_at,
    token_scores,
    token_weights,
)
from text_diffusers.common.scheduler_config import check_same_noise, untouched_defaults
from text_diffusers.common.stock_loading import StockLoading
from text_diffusers.common.subclasses import loaded_subclasses
from text_diffusers.common.time_grids import even_grid, given_grid
from text_diffusers.common.validation import (
    LONGEST_CLOCK,
    are_numbers,
    as_ids,
    is_number,
    require,
    require_fraction,
    require_int,
    require_key,
    require_number,
)

# The sigmoid is taken from minus this number to plus it.
SIGMOID_RANGE = 3.0

# Total noise at times 0 and 1; exp(-total) survives.
GEOMETRIC_RANGE = (1e-4, 20.0)

# Halvings of [0, 1] after which float64 cannot tell the ends apart.
BISECTIONS = 60

REVERSE_RULES = ("marginal", "plug_in")

# A scheduler begins with a grid of so many steps, or of T if these are fewer.
DEFAULT_STEPS = 128

Time = float | Tensor
Device = str | torch.device | None

TimeFunction = Callable[[Tensor], Tensor]


def linear_alpha(t: Tensor) -> Tensor:
    return 1 - t


def linear_alpha_derivative(t: Tensor) -> Tensor:
    return -torch.ones_like(t)


def sigmoid_ends(like: Tensor) -> Tensor:
    """(2,) the sigmoid at both ends of its range."""
    return torch.sigmoid(
        torch.tensor([-SIGMOID_RANGE, SIGMOID_RANGE], dtype=like.dtype, device=like.device)
    )


def sigmoid_alpha(t: Tensor) -> Tensor:
    low, high = sigmoid_ends(t)
    return (torch.sigmoid(SIGMOID_RANGE * (1 - 2 * t)) - low) / (high - low)


def sigmoid_alpha_derivative(t: Tensor) -> Tensor:
    low, high = sigmoid_ends(t)
    value = torch.sigmoid(SIGMOID_RANGE * (1 - 2 * t))
    return -2 * SIGMOID_RANGE * value * (1 - value) / (high - low)


def geometric_alpha(t: Tensor) -> Tensor:
    low, high = GEOMETRIC_RANGE
    total = low ** (1 - t) * high**t
    return (torch.exp(-total) - math.exp(-high)) / (math.exp(-low) - math.exp(-high))


def geometric_alpha_derivative(t: Tensor) -> Tensor:
    low, high = GEOMETRIC_RANGE
    total = low ** (1 - t) * high**t
    slope = -math.log(high / low) * total * torch.exp(-total)
    return slope / (math.exp(-low) - math.exp(-high))


# Every schedule falls from exactly 1 to exactly 0, so the prior is exact and no bound needs a prior term. Sigmoid and
# geometric noise are rescaled to do so. "reciprocal" is D3PM's beta_t = 1 / (T - t + 1), whose product is 1 - t / T.
NOISE_SCHEDULES: dict[str, tuple[TimeFunction, TimeFunction]] = {
    "linear": (linear_alpha, linear_alpha_derivative),
    "reciprocal": (linear_alpha, linear_alpha_derivative),
    "cosine": (
        lambda t: torch.sin(math.pi / 2 * (1 - t)) ** 2,
        lambda t: -math.pi / 2 * torch.sin(math.pi * t),
    ),
    "sigmoid": (sigmoid_alpha, sigmoid_alpha_derivative),
    "sqrt": (lambda t: 1 - torch.sqrt(t), lambda t: -0.5 / torch.sqrt(t)),
    "geometric": (geometric_alpha, geometric_alpha_derivative),
}


def noise_schedule(schedule: str | Sequence[float]) -> tuple[TimeFunction, TimeFunction]:
    """`(alpha, alpha_derivative)` of a named schedule, or of one that joins values at even times by straight lines.

    Raises:
        ValueError: if there is no such name, or the values do not fall from 1 to 0.

    Example:
        >>> import torch
        >>> from text_diffusers.schedulers.noise_schedules import noise_schedule
        >>> alpha, alpha_derivative = noise_schedule([1.0, 0.8, 0.0])
        >>> alpha(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        tensor([0.9000, 0.8000, 0.4000], dtype=torch.float64)
    """
    if isinstance(schedule, str) and schedule in NOISE_SCHEDULES:
        return NOISE_SCHEDULES[schedule]

    limit = f"one of {sorted(NOISE_SCHEDULES)} or a list of numbers"
    is_table = not isinstance(schedule, str) and are_numbers(schedule)
    require(is_table, "schedule", limit, schedule, NOISE_SCHEDULES)
    values = torch.tensor(list(schedule), dtype=torch.float64)
    if len(values) < 2 or values[0] != 1 or values[-1] != 0 or not (values.diff() < 0).all():
        raise ValueError(f"`schedule` must fall from 1 to 0 at every value, got {values.tolist()}.")

    num_pieces = len(values) - 1

    def alpha(t: Tensor) -> Tensor:
        piece = (t * num_pieces).floor().long().clamp(0, num_pieces - 1)
        table = values.to(t.device)
        return table[piece] + (t * num_pieces - piece) * (table[piece + 1] - table[piece])

    def alpha_derivative(t: Tensor) -> Tensor:
        # At a corner, the slope of the interval before.
        piece = (t * num_pieces).ceil().long().clamp(1, num_pieces) - 1
        return values.diff().to(t.device)[piece] * num_pieces

    return alpha, alpha_derivative


def time_of_noise_level(alpha: TimeFunction, level: Tensor) -> Tensor:
    """The times at which 1 - alpha is `level`, float64 of the same shape, by bisection."""
    low = torch.zeros_like(level)
    high = torch.ones_like(level)

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_early = 1 - alpha(middle) < level
        low = torch.where(too_early, middle, low)
        high = torch.where(too_early, high, middle)
    return high


def mutual_information(
    scheduler: Any,
    frequencies: Tensor,
    timesteps: Sequence[float],
    max_tokens: int = 256,
) -> list[float]:
    """I(x_t; x_0) in nats at each of `timesteps`, for tokens of the given frequencies (V,).

    Args:
        scheduler: a token scheduler with `transition`.
        frequencies: (V,) counts or probabilities of the tokens.
        max_tokens: the conditional entropy is averaged over the tokens if there are no more than this, else over a
            systematic sample of that size.
    """
    probs = frequencies.double() / frequencies.sum()
    count = min(max_tokens, len(probs))
    if count == len(probs):
        tokens = torch.arange(count)
        weights = probs
    else:
        # Tokens at even quantiles stand for the same share of the text each.
        quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        tokens = torch.searchsorted(probs.cumsum(0), quantiles).clamp(max=len(probs) - 1)
        weights = torch.full((count,), 1 / count, dtype=torch.float64)

    # H(x_t) - H(x_t | x_0).
    information = []
    for timestep in timesteps:
        rows = scheduler.transition(tokens, timestep)  # (N, S)
        mixture = weights @ rows
        entropy = -torch.xlogy(mixture, mixture).sum()
        conditional_entropies = -torch.xlogy(rows, rows).sum(dim=-1)
        information.append(float(entropy - weights @ conditional_entropies))
    return information


def mutual_information_schedule(
    scheduler: Any, frequencies: Tensor, num_values: int = 65
) -> list[float]:
    """Values of alpha at `num_values` even times under which I(x_t; x_0) falls linearly, D3PM's choice.

    Pass them as `schedule` to a scheduler like the given one. For absorbing noise they are those of "linear".
    """
    # The curve is taken at more times than are wanted, finer next to the data, where it falls fastest.
    times = torch.linspace(0, 1, 4 * num_values, dtype=torch.float64) ** 2
    nats = mutual_information(scheduler, frequencies, times.tolist())
    information = torch.tensor(nats, dtype=torch.float64)
    share = (information / information[0]).cummin(dim=0).values
    share[-1] = 0

    # Each wanted share lies between two times of the curve, which a straight line joins.
    wanted = torch.linspace(1, 0, num_values, dtype=torch.float64)[1:-1]
    after = torch.searchsorted(-share, -wanted).clamp(1, len(times) - 1)
    before = after - 1
    part = (wanted - share[after]) / (share[before] - share[after])
    wanted_times = times[after] - part * (times[after] - times[before])
    return [1.0, *scheduler.alpha(wanted_times).tolist(), 0.0]


# The base


@dataclass
class D3PMSchedulerOutput(BaseOutput):
    """Output of `step`. `prev_sample`: (B, L) tokens at the next, less noisy time."""

    prev_sample: Tensor


class D3PMScheduler(StockLoading, SchedulerMixin, ConfigMixin):
    """Base of the token schedulers: the clock, the noise schedule and the shaping of predictions.

    A kernel adds `transition`, `select`, `reverse_probs` and `_next`; it overrides `_noise_tokens`, or `prior` and
    `_corrupt`, if its noise is not uniform over `vocab_size` ids.
    """

    order = 1
    init_noise_sigma = 1.0
    corruption = ""
    revises_tokens = False
    draws_reverse = True  # whether `step` draws every token from `reverse_probs`, on its own
    takes_drawn = False  # whether `step` can be given tokens that were drawn together
    config: Any

    def _set_up(self):
        """Check the configuration and begin with a grid; ends each `__init__`."""
        config = self.config
        # A chain of matrices has betas instead of a schedule.
        self._alpha, self._alpha_derivative = noise_schedule(config.get("schedule", "linear"))

        steps = config.num_train_timesteps
        top_p = config.top_p
        is_mass = top_p is None or is_number(top_p, 0, 1) and top_p > 0
        require_int("num_train_timesteps", steps, 1, LONGEST_CLOCK, optional=True)
        require_fraction("min_timestep", config.min_timestep)
        require_number("temperature", config.temperature, 0)
        require_int("top_k", config.top_k, 1, optional=True)
        require(is_mass, "top_p", "None or a number in (0, 1]", top_p)

        # What `from_config` of other classes has to know: whose noise this is, and what was chosen.
        own: dict[str, Any] = {"_class_name": type(self).__name__}
        if "_use_default_values" in config:
            own["_use_default_values"] = untouched_defaults(self)
        self.register_to_config(**own)
        self.set_timesteps(min(steps or DEFAULT_STEPS, DEFAULT_STEPS))

    @property
    def num_tokens(self) -> int:
        """The ids below are what x_0 may be; further logits are ignored."""
        return self.config.vocab_size

    def alpha(self, timesteps: Time) -> Tensor:
        """Probability that a token is still itself at `timesteps`, float64, same shape."""
        return self._alpha(torch.as_tensor(timesteps, dtype=torch.float64))

    def alpha_derivative(self, timesteps: Time) -> Tensor:
        """d alpha / dt at `timesteps`, float64, same shape; negative."""
        return self._alpha_derivative(torch.as_tensor(timesteps, dtype=torch.float64))

    # The clock

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ):
        """Set the descending grid `timesteps`, by number or one by one; the last step ends at 0.

        Args:
            num_inference_steps: of an even grid, (num_inference_steps,) floats from 1 on.
            timesteps: instead, floats in (0, 1], descending; with `num_train_timesteps`=T, multiples of 1 / T.

        Raises:
            ValueError: if not one of both is given, there are fewer than 1 or more than `num_train_timesteps` steps,
                or `timesteps` are no such floats.
        """
        steps = self.config.num_train_timesteps
        # Both ends of every step.
        if timesteps is None:
            grid = even_grid(num_inference_steps, steps)
        else:
            grid = given_grid(num_inference_steps, timesteps, steps)
        self._set_grid(grid, device)

    def _set_grid(self, grid: Tensor, device: Device):
        """Take steps between the times `grid` (n + 1,), float64, from its first to 0."""
        self.num_inference_steps = len(grid) - 1
        self._grid = grid
        self.timesteps = grid[:-1].to(device, torch.float32)

    def _grid_index(self, timestep: Time) -> int:
        """The number of the step that starts at `timestep`."""
        # Timesteps are float32, the grid is float64.
        distance, index = (self._grid[:-1] - float(timestep)).abs().min(dim=0)
        if not distance < 0.1 * -self._grid.diff().max():
            raise ValueError(
                f"`timestep` must be one of the {len(self.timesteps)} `timesteps`, got {timestep}."
            )
        return int(index)

    def _alphas(self, timestep: Time) -> tuple[float, float]:
        """`alpha` at both ends, (alpha_t, alpha_s), of the step that starts at `timestep`."""
        index = self._grid_index(timestep)
        alpha_t, alpha_s = self.alpha(self._grid[index : index + 2]).tolist()
        return alpha_t, alpha_s

    def training_timesteps(self, uniform: Tensor) -> Tensor:
        """(B,) uniform numbers in [0, 1) to the times whose average loss is the bound, float64.

        With `num_train_timesteps` the grid i / T. In continuous time, numbers below `min_timestep` become
        `min_timestep`: the interval below it is one discrete step, which keeps the weights finite and the bound exact.
        """
        steps = self.config.num_train_timesteps
        if steps is None:
            return uniform.double().clamp(min=self.config.min_timestep)
        return (torch.floor(uniform.double() * steps) + 1) / steps

    def model_timesteps(self, timestep: Time, sample: Tensor) -> Tensor:
        """(B,) times, float32, that the model is told at the step from `timestep`: the same for every row."""
        return torch.full((len(sample),), float(timestep), device=sample.device)

    def scale_model_input(self, sample: Tensor, timestep: Time | None = None) -> Tensor:
        """Tokens need no scaling; returns `sample`."""
        return sample

    # Noise

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: Device = None
    ) -> Tensor:
        """(B, L) tokens at time 1, pure noise."""
        return self._noise_tokens(rand(shape, generator, torch.device(device or "cpu")))

    def prior_bound(self, tokens: Tensor) -> Tensor:
        """(B, L) nats of KL(q(x_1 | x_0 = tokens) || prior), the prior term of the bound: 0, as alpha(1) is 0."""
        return torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)

    def add_noise(self, tokens: Tensor, timesteps: Time, generator: Generators = None) -> Tensor:
        """(B, L) from q(x_t | x_0), each token lost with probability 1 - alpha; timesteps (), (B,) or (B, L).

        Raises:
            ValueError: if a time lies outside [0, 1].
        """
        times = torch.as_tensor(timesteps)
        if not ((times >= 0) & (times <= 1)).all():
            raise ValueError(
                f"`timesteps` must lie in [0, 1], got {times.min():g} to {times.max():g}."
            )
        ids = as_ids("tokens", tokens)
        return self._corrupt(ids, timesteps, generator).to(tokens.dtype)

    def _corrupt(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        keep = self._keep(tokens, timesteps, generator)  # (B, L)
        return torch.where(keep, tokens, self._noise_tokens(rand_like(tokens, generator)))

    def _keep(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        """(B, L) bool: the tokens that survive until `timesteps`."""
        alpha = self.alpha(timesteps)
        if alpha.ndim == 1:
            alpha = alpha.unsqueeze(1)  # one time a row
        return rand_like(tokens, generator) < alpha.to(tokens.device)

    def _noise_tokens(self, uniform: Tensor) -> Tensor:
        """(B, L) tokens of pure noise from as many uniform numbers."""
        return (uniform * self.config.vocab_size).long()

    # The way back

    def step(
        self,
        model_output: Tensor,
        timestep: Time,
        sample: Tensor,
        *,
        positions: Any = None,
        drawn: Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> D3PMSchedulerOutput | tuple[Tensor]:
        """From x_t to x_s, the next of `timesteps`.

        Args:
            model_output: (N, V) logits of clean tokens, one row a selected position; (B, L, V) without `positions`.
            timestep: one of `timesteps`.
            sample: (B, L) tokens, int64 or int32, not changed.
            positions: (B, L) bool from `select`, or fewer; without it the step selects by itself.
            drawn: (N,) tokens at these positions that a control has drawn together, of absorbing noise; by default
                the step draws each by itself.
            generator: one generator, or one a row.

        Raises:
            ValueError: if the shapes do not fit, the ids are outside the vocabulary, or the logits are not finite.
        """
        if positions is None:
            # Predictions of all positions: choose among them.
            fits = model_output.shape[:-1] == sample.shape
            limit = f"{tuple(sample.shape)} + (V,) like `sample`"
            require(fits, "model_output", limit, tuple(model_output.shape))
            positions = self.select(timestep, sample, generator)
            model_output = model_output[positions]
        check_rows("model_output", model_output, positions)

        logits = self._own_ids(model_output)
        ids = as_ids("sample", sample)
        options = {}
        if drawn is not None:
            limit = "None with a scheduler that draws each token by itself"
            require(self.takes_drawn, "drawn", limit, type(self).__name__)
            fits = drawn.shape == logits.shape[:1]
            require(fits, "drawn", f"({len(logits)},), one a position", tuple(drawn.shape))
            options["drawn"] = drawn
        stepped = self._next(logits, timestep, ids, positions, generator, **options)
        prev_sample = stepped.to(sample.dtype)
        return D3PMSchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the positions for which the step from `timestep` needs a prediction."""
        raise NotImplementedError

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        """(B, L) tokens at the next time; logits (N, V) at the N `positions` (B, L), all checked."""
        raise NotImplementedError

    def draw(
        self, log_weights: Tensor, sample: Tensor, positions: Tensor, generator: Generators = None
    ) -> Tensor:
        """(B, L) x_s, drawn at `positions` in proportion to exp(log_weights), (N, V); elsewhere `sample` (B, L).

        The end of a step whose reverse distribution, `reverse_probs`, was changed by guidance.

        Raises:
            ValueError: if the shapes do not fit, or a row has NaN, an infinite weight or none above 0.
        """
        check_rows("log_weights", log_weights, positions)
        largest = log_weights.amax(dim=-1)
        drawable = largest.isfinite()
        if not drawable.all():
            raise ValueError(
                "`log_weights` must have a finite largest value for each token, which guidance or a control did not "
                f"leave, got {float(largest[~drawable][0])}."
            )
        ids = as_ids("sample", sample)
        drawn = draw_at(positions, ids, token_weights, (log_weights,), generator)
        return drawn.to(sample.dtype)

    def _own_ids(self, model_output: Tensor) -> Tensor:
        """Logits (..., `num_tokens`) of the ids that x_0 may be."""
        width = model_output.shape[-1]
        limit = f"at least `num_tokens`={self.num_tokens} wide"
        require(width >= self.num_tokens, "model_output", limit, width)
        return model_output[..., : self.num_tokens]

    def _shaping(self) -> dict[str, Any]:
        """How the configuration shapes predictions of x_0, as arguments of `token_weights`."""
        config = self.config
        return {
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            # Other kernels with a mask have cut its logit off.
            "mask_token_id": config.mask_token_id if self.corruption == "absorbing" else None,
        }

    def _weights(self, logits: Tensor) -> Tensor:
        """(N, V) unnormalised probabilities of x_0, shaped by the configuration."""
        return token_weights(logits, **self._shaping())

    @property
    def shapes_predictions(self) -> bool:
        """Whether temperature, top_k or top_p changes what the model predicts."""
        config = self.config
        cuts = config.top_k is not None or (config.top_p or 1) < 1
        return cuts or config.temperature != 1

    def clean_scores(self, model_output: Tensor, timestep: Time, sample: Tensor) -> Tensor:
        """Log-probabilities of x_0, up to a constant, as the step from `timestep` reads them, and not shaped yet.

        `reverse_probs(scheduler.shape(scores), ..., from_scores=True)` is what `reverse_probs` makes of the logits, so
        that guidance can come in between.

        Args:
            model_output: (B, L, V or more) logits of clean tokens.
            sample: (B, L) x_t.

        Returns:
            (B, L, V), -inf for a token that cannot be.
        """
        logits = self._clean_logits(model_output, timestep, as_ids("sample", sample))
        scores = token_scores(logits.flatten(0, 1), mask_token_id=self._shaping()["mask_token_id"])
        return scores.view(logits.shape)

    def shape(self, scores: Tensor) -> Tensor:
        """Scores (..., V) shaped by the temperature, top_k and top_p of the configuration; what they drop is -inf."""
        return token_scores(scores.flatten(0, -2), **self._shaping()).view(scores.shape)

    def _clean_logits(self, model_output: Tensor, timestep: Time, sample: Tensor) -> Tensor:
        """Logits (B, L, `num_tokens`) of the x_0 that the step from `timestep` draws."""
        return self._own_ids(model_output)

    def _clean_probs(
        self, model_output: Tensor, timestep: Time, sample: Tensor, from_scores: bool
    ) -> Tensor:
        """Probabilities of x_0, (B, L, V), from logits that are still to be shaped, or from scores that are."""
        if from_scores:
            return normalised(model_output)
        return self._probs(self._clean_logits(model_output, timestep, sample))

    def _probs(self, logits: Tensor) -> Tensor:
        """Shaped probabilities of x_0, (B, L, V) like the logits."""
        return normalised(self.shape(logits))

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any):
        """As in diffusers, from a configuration of the same noise.

        Raises:
            ValueError: if it is of another noise and lacks what this one is made of, unless `kwargs` have it.
        """
        if isinstance(config, dict):
            check_same_noise(cls, config, kwargs)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """Every loaded scheduler with the same corruption process."""
        loaded = loaded_subclasses(SchedulerMixin)
        return [child for child in loaded if getattr(child, "corruption", None) == cls.corruption]


def normalised(scores: Tensor) -> Tensor:
    """Probabilities (..., V) of their logarithms (..., V), which are known up to a constant."""
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def check_vocabulary_and_rule(config: Any):
    require_int("vocab_size", config.vocab_size, 2, MOST_IDS)
    require_key("reverse_rule", config.reverse_rule, REVERSE_RULES)


def state_ids(num_states: int, tokens: Tensor) -> Tensor:
    """Ids (N,) as int64.

    Raises:
        ValueError: if one of them is none of the states that a token of this noise can be in.
    """
    ids = as_ids("tokens", tokens)
    inside = bool(((ids >= 0) & (ids < num_states)).all())
    require(inside, "tokens", f"ids from 0 to {num_states - 1}, the states of this noise", ids)
    return ids
