"""Discrete diffusion over tokens: the absorbing and the uniform kernel, in T steps or in continuous time.

D3PM (https://arxiv.org/abs/2107.03006), MDLM (https://arxiv.org/abs/2406.07524) and UDLM
(https://arxiv.org/abs/2412.10193). Time is a float: 1 is pure noise, 0 is clean text.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions, T training timesteps.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand, rand_like
from text_diffusers.common.sampling import (
    MOST_IDS,
    check_rows,
    draw_at,
    in_row_blocks,
    sample_tokens,
    token_weights,
)
from text_diffusers.common.stock_loading import StockLoading
from text_diffusers.common.subclasses import loaded_subclasses
from text_diffusers.common.validation import (
    LONGEST_CLOCK,
    is_int,
    is_number,
    require,
    require_fraction,
    require_int,
    require_key,
    require_number,
)
from text_diffusers.schedulers.noise_schedules import noise_schedule

REQUIRED_IDS = ("mask_token_id", "vocab_size")
REVERSE_RULES = ("marginal", "plug_in")

# A scheduler begins with a grid of so many steps, or of T if these are fewer.
DEFAULT_STEPS = 128

Time = float | Tensor
Device = str | torch.device | None


def reveal_prob(alpha_t: Any, alpha_s: Any, remask: Any = 0.0) -> Any:
    """Probability of revealing a mask that keeps q(x_s | x_0), given that of masking a revealed token again."""
    return (alpha_s - (1 - remask) * alpha_t) / (1 - alpha_t)


def absorbing_reverse(
    probs: Tensor, sample: Tensor, reveal: Any, remask: Any, mask_token_id: int
) -> Tensor:
    """p(x_s | x_t) of a step under the absorbing kernel, (B, L, V).

    Args:
        probs: (B, L, V) predicted x_0, without mass on the mask.
        sample: (B, L) x_t.
        reveal: probability that a mask is revealed, () or (B, 1, 1).
        remask: probability that a revealed token is masked again, () or (B, L).
    """
    # From a mask: x_0, or the mask again.
    masked = reveal * probs  # (B, L, V)
    masked[..., mask_token_id : mask_token_id + 1] += 1 - reveal

    # From a token: itself, or the mask.
    remask = torch.as_tensor(remask, dtype=probs.dtype, device=probs.device).expand(sample.shape)
    revealed = (1 - remask.unsqueeze(-1)) * torch.nn.functional.one_hot(sample, probs.shape[-1])
    revealed[..., mask_token_id] += remask
    return torch.where((sample == mask_token_id).unsqueeze(-1), masked, revealed)


def uniform_routes(p_current: Any, alpha_t: Any, alpha_s: Any, vocab_size: int) -> tuple[Any, Any]:
    """Probabilities `(jump, resample)` of a step of the uniform kernel; with the rest, the token stays.

    To jump is to take the predicted x_0, to resample is to draw from the whole vocabulary. `p_current` is the
    predicted probability that the current token is x_0: 0 and 1 give the exact posterior of a token that differs from
    x_0 and of one that equals it. The arguments broadcast.
    """
    # Of q(x_t | x_0), times V; `lost` is the chance to be redrawn between s and t.
    normaliser = vocab_size * alpha_t * p_current + 1 - alpha_t
    lost = 1 - alpha_t / alpha_s
    return lost * alpha_s / normaliser, lost * (1 - alpha_s) / normaliser


def uniform_reverse(
    probs: Tensor, sample: Tensor, alpha_t: Any, alpha_s: Any, reverse_rule: str
) -> Tensor:
    """p(x_s | x_t), uniform kernel, (B, L, V), from predicted x_0 (B, L, V), x_t (B, L) and alphas () or (B, 1, 1)."""
    vocab_size = probs.shape[-1]
    current = sample.unsqueeze(-1)  # (B, L, 1)
    p_current = probs.gather(-1, current)  # (B, L, 1)

    if reverse_rule == "plug_in":
        jump, resample = uniform_routes(p_current, alpha_t, alpha_s, vocab_size)
        moved = jump * probs
    else:
        # A mixture of the posteriors of all x_0: the current token is one of them, the others differ from it.
        jump, resample = uniform_routes(0.0, alpha_t, alpha_s, vocab_size)
        _, resample_equal = uniform_routes(1.0, alpha_t, alpha_s, vocab_size)
        resample = (1 - p_current) * resample + p_current * resample_equal
        moved = jump * probs.scatter(-1, current, 0.0)

    # With what is left, the token stays.
    moved = moved + resample / vocab_size
    return moved.scatter_add(-1, current, 1 - moved.sum(dim=-1, keepdim=True))


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

        # diffusers takes an id that was passed by position for a default, which `from_config` would then drop.
        if "_use_default_values" in config:
            defaults = [name for name in config["_use_default_values"] if name not in REQUIRED_IDS]
            self.register_to_config(_use_default_values=defaults)
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

    def set_timesteps(self, num_inference_steps: int, device: Device = None):
        """Set the descending grid `timesteps`, (num_inference_steps,) floats in (0, 1]; the last step ends at 0.

        Raises:
            ValueError: if there are fewer than 1 or more than `num_train_timesteps` steps.
        """
        steps = self.config.num_train_timesteps
        limit = "at least 1" if steps is None else f"between 1 and `num_train_timesteps`={steps}"
        in_range = is_int(num_inference_steps, 1) and num_inference_steps <= (steps or math.inf)
        require(in_range, "num_inference_steps", limit, num_inference_steps)

        # Both ends of every step. A model of T steps knows no other times than i / T.
        grid = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)  # (n + 1,)
        if steps is not None:
            grid = (grid * steps).round() / steps
        self.num_inference_steps = num_inference_steps
        self._grid = grid
        self.timesteps = grid[:-1].to(device, torch.float32)

    def _grid_index(self, timestep: Time) -> int:
        """The number of the step that starts at `timestep`."""
        # Timesteps are float32, the grid is float64.
        distance, index = (self._grid[:-1] - float(timestep)).abs().min(dim=0)
        if not distance < 0.1 / len(self._grid):
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
        return self._corrupt(tokens, timesteps, generator)

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
        generator: Generators = None,
        return_dict: bool = True,
    ) -> D3PMSchedulerOutput | tuple[Tensor]:
        """From x_t to x_s, the next of `timesteps`.

        Args:
            model_output: (N, V) logits of clean tokens, one row a selected position; (B, L, V) without `positions`.
            timestep: one of `timesteps`.
            sample: (B, L) tokens, not changed.
            positions: (B, L) bool from `select`, or fewer; without it the step selects by itself.
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
        prev_sample = self._next(logits, timestep, sample, positions, generator)
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
        return draw_at(positions, sample, token_weights, (log_weights,), generator)

    def _own_ids(self, model_output: Tensor) -> Tensor:
        """Logits (..., `num_tokens`) of the ids that x_0 may be."""
        width = model_output.shape[-1]
        limit = f"at least `num_tokens`={self.num_tokens} wide"
        require(width >= self.num_tokens, "model_output", limit, width)
        return model_output[..., : self.num_tokens]

    def _weights(self, logits: Tensor) -> Tensor:
        """(N, V) unnormalised probabilities of x_0, shaped by the configuration."""
        config = self.config
        # Other kernels with a mask have cut its logit off.
        mask_token_id = config.mask_token_id if self.corruption == "absorbing" else None
        return token_weights(logits, config.temperature, config.top_k, config.top_p, mask_token_id)

    def _probs(self, logits: Tensor) -> Tensor:
        """Shaped probabilities of x_0, (B, L, V) like the logits."""
        weights = self._weights(logits.flatten(0, 1))  # (B * L, V)
        return (weights / weights.sum(dim=-1, keepdim=True)).view(logits.shape)

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """Every loaded scheduler with the same corruption process."""
        loaded = loaded_subclasses(SchedulerMixin)
        return [child for child in loaded if getattr(child, "corruption", None) == cls.corruption]


class D3PMAbsorbingScheduler(D3PMScheduler):
    """Absorbing diffusion: each token turns into `[MASK]` at a random time and is revealed once on the way back.

    Which positions a step reveals does not depend on the model, so `select` draws them first and the model is asked
    for nothing else. Under this kernel the plug-in and the marginal reverse rule of `D3PMUniformScheduler` coincide.

    Args:
        mask_token_id: the id of `[MASK]`; never predicted.
        num_train_timesteps: T of a T-step D3PM; `None` is the continuous-time limit.
        schedule: a key of `NOISE_SCHEDULES`, or the values of alpha at evenly spaced times, from 1 down to 0.
        min_timestep: the interval (0, min_timestep] is one discrete step of the continuous-time bound.
        temperature: divides the logits; 0 is greedy.
        top_k: samples among the k most probable tokens.
        top_p: samples among the most probable tokens that together reach this mass.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMAbsorbingScheduler
        >>> scheduler = D3PMAbsorbingScheduler(mask_token_id=9)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape, bool((sample == 9).any())
        (torch.Size([2, 6]), False)
    """

    corruption = "absorbing"

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
    ):
        self._set_up()

    def _set_up(self):
        require_int("mask_token_id", self.config.mask_token_id, 0)
        super()._set_up()

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: Device = None
    ) -> Tensor:
        """(B, L) tokens at time 1: all masked."""
        return torch.full(shape, self.config.mask_token_id, device=device)

    def _corrupt(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        keep = self._keep(tokens, timesteps, generator)  # (B, L)
        return torch.where(keep, tokens, self.config.mask_token_id)

    def transition(self, tokens: Tensor, timestep: Time) -> Tensor:
        """q(x_t | x_0 = tokens), (N, mask_token_id + 1) over x_t, float64, for tokens (N,) and times () or (N,)."""
        alpha = self.alpha(timestep).expand(len(tokens))
        rows = torch.zeros(len(tokens), self.config.mask_token_id + 1, dtype=torch.float64)
        rows[:, -1] = 1 - alpha  # the mask is the last id
        return rows.scatter_(1, tokens.unsqueeze(1), alpha.unsqueeze(1))

    def _rates(self, timestep: Time, sample: Tensor) -> tuple[float, float | Tensor]:
        """Probability of revealing a masked token, and of masking a revealed one: a number or (B, L)."""
        return reveal_prob(*self._alphas(timestep)), 0.0

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the masked positions that the step from `timestep` reveals."""
        reveal, _ = self._rates(timestep, sample)
        masked = sample == self.config.mask_token_id
        return masked & (rand_like(sample, generator) < reveal)

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        return draw_at(positions, sample, self._weights, (logits,), generator)

    def reverse_probs(self, model_output: Tensor, timestep: Time, sample: Tensor) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from, for logits (B, L, V)."""
        reveal, remask = self._rates(timestep, sample)
        probs = self._probs(model_output)  # (B, L, V)
        return absorbing_reverse(probs, sample, reveal, remask, self.config.mask_token_id)

    def _own_ids(self, model_output: Tensor) -> Tensor:
        mask_token_id = self.config.mask_token_id
        width = model_output.shape[-1]
        require(mask_token_id < width, "mask_token_id", f"below the {width} logits", mask_token_id)
        return model_output


class D3PMUniformScheduler(D3PMScheduler):
    """Uniform diffusion: each token is replaced by a random one at a random time, and can be corrected until the end.

    `reverse_rule="marginal"` (the default) sums x_0 out: sum over k of q(x_s | x_t, x_0 = k) p(x_0 = k | x_t).
    `"plug_in"` puts the predicted distribution in the place of x_0, as D3PM and UDLM do. They coincide when the
    prediction of the latter is leave-one-out, proportional to p(x_0 | x_t) / q(x_t | x_0), and that is what a model
    learns that is trained with it: it need not learn to copy, which helps. With the exact p(x_0 | x_t) only the
    marginal rule reaches the data: on a source of 2.499 nats its bound is 2.507 at 64 steps, that of plug-in 3.796.
    So the rule says how to read a model's predictions; sample with the rule of its training.

    A step needs the prediction where it could matter only: a token stays or is resampled with some probability
    whatever the model says, so `select` draws those cases first, exactly, and (B, L, V) is never built. Positions that
    are not selected stay or are resampled, so a caller that holds tokens fixed restores them.

    Args:
        vocab_size: V, the number of token ids noise is drawn from, 0 to V - 1; further logits are ignored.
        reverse_rule: "marginal" or "plug_in".
        num_train_timesteps, schedule, min_timestep, temperature, top_k, top_p: as in `D3PMAbsorbingScheduler`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMUniformScheduler
        >>> scheduler = D3PMUniformScheduler(vocab_size=10, reverse_rule="plug_in")
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape
        torch.Size([2, 6])
    """

    corruption = "uniform"
    revises_tokens = True

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
    ):
        self._set_up()

    def _set_up(self):
        check_vocabulary_and_rule(self.config)
        super()._set_up()

    def transition(self, tokens: Tensor, timestep: Time) -> Tensor:
        """q(x_t | x_0 = tokens), (N, V) over x_t, float64, for tokens (N,) and times () or (N,)."""
        alpha = self.alpha(timestep).expand(len(tokens)).unsqueeze(1)
        rows = ((1 - alpha) / self.config.vocab_size).repeat(1, self.config.vocab_size)
        return rows.scatter_add_(1, tokens.unsqueeze(1), alpha)

    def _scalar_routes(self, timestep: Time) -> tuple[float, float, float]:
        """Jump of a token that is not x_0, resampling whatever x_0 is, and the share that needs a prediction."""
        alpha_t, alpha_s = self._alphas(timestep)
        jump, resample = uniform_routes(0.0, alpha_t, alpha_s, self.config.vocab_size)
        _, resample_anyway = uniform_routes(1.0, alpha_t, alpha_s, self.config.vocab_size)
        return jump, resample_anyway, jump + resample - resample_anyway

    def _selected_share(self, timestep: Time) -> float:
        """Probability that the step from `timestep` needs the prediction of a position."""
        return self._scalar_routes(timestep)[2]

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the positions for which the step from `timestep` needs a prediction."""
        return rand_like(sample, generator) < self._selected_share(timestep)

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        jump, resample_anyway, selected_share = self._scalar_routes(timestep)
        # One number a position for the route, one for x_0, one for the noise.
        route = rand_like(sample, generator)
        uniform = rand_like(sample, generator)
        noise = self._noise_tokens(rand_like(sample, generator))

        # Elsewhere the token stays or is resampled, whatever the prediction.
        resampled = route * (1 - selected_share) < resample_anyway  # (B, L)
        prev_sample = torch.where(resampled & ~positions, noise, sample)

        current = sample[positions]  # (N,)
        clean, p_current = self._clean_and_p_current(logits, uniform[positions], current)
        if self.config.reverse_rule == "marginal":
            # The routes of the x_0 that was drawn. One that equals the current token stays where the others jump.
            jump = torch.where(clean == current, selected_share, jump)
            resample = selected_share
        else:
            alpha_t, alpha_s = self._alphas(timestep)
            jump, resample = uniform_routes(p_current, alpha_t, alpha_s, self.config.vocab_size)
            resample = jump + resample - resample_anyway

        # One number a position decides: jump below the first limit, resample below the second, else stay.
        chosen = route[positions] * selected_share  # (N,)
        moved = torch.where(chosen < resample, noise[positions], current)
        prev_sample[positions] = torch.where(chosen < jump, clean, moved)
        return prev_sample

    def _clean_and_p_current(
        self, logits: Tensor, uniform: Tensor, current: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N,) tokens drawn from logits (N, V), and the probabilities (N,) of the `current` tokens (N,), float64."""
        clean = []
        p_current = []
        for block, drawn, tokens in in_row_blocks(logits, uniform, current):
            weights = self._weights(block)  # (n, V)
            clean.append(sample_tokens(weights, drawn))
            weight = weights.gather(1, tokens.unsqueeze(-1)).squeeze(-1)
            p_current.append(weight / weights.sum(dim=-1))
        return torch.cat(clean), torch.cat(p_current).double()

    def reverse_probs(self, model_output: Tensor, timestep: Time, sample: Tensor) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from, for logits (B, L, V or more)."""
        probs = self._probs(self._own_ids(model_output))  # (B, L, V)
        alpha_t, alpha_s = self._alphas(timestep)
        return uniform_reverse(probs, sample, alpha_t, alpha_s, self.config.reverse_rule)


def check_vocabulary_and_rule(config: Any):
    require_int("vocab_size", config.vocab_size, 2, MOST_IDS)
    require_key("reverse_rule", config.reverse_rule, REVERSE_RULES)
