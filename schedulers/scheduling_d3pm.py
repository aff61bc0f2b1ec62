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

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.sampling import MOST_IDS, in_row_blocks, sample_tokens, token_weights
from text_diffusers.common.validation import CLOCK_LIMIT, is_int, is_number, is_number_of_steps, require
from text_diffusers.schedulers.noise_schedules import noise_schedule

REQUIRED_IDS = ("mask_token_id", "vocab_size")
REVERSE_RULES = ("marginal", "plug_in")


def uniform_routes(p_current: Any, alpha_t: Any, alpha_s: Any, vocab_size: int) -> tuple[Any, Any]:
    """Probabilities `(jump, resample)` of a step of the uniform kernel; with the rest, the token stays.

    To jump is to take the predicted x_0, to resample is to draw from the whole vocabulary. `p_current` is the
    predicted probability that the current token is x_0: 0 and 1 give the exact posterior of a token that differs from
    x_0 and of one that equals it. The arguments broadcast.
    """
    normaliser = vocab_size * alpha_t * p_current + 1 - alpha_t
    lost = 1 - alpha_t / alpha_s
    return lost * alpha_s / normaliser, lost * (1 - alpha_s) / normaliser


def uniform_reverse(probs: Tensor, sample: Tensor, alpha_t: Any, alpha_s: Any, reverse_rule: str) -> Tensor:
    """p(x_s | x_t), uniform kernel, (B, L, V), from predicted x_0 (B, L, V), x_t (B, L) and alphas () or (B, 1, 1)."""
    vocab_size = probs.shape[-1]
    current = sample.unsqueeze(-1)
    p_current = probs.gather(-1, current)  # (B, L, 1)
    if reverse_rule == "plug_in":
        jump, resample = uniform_routes(p_current, alpha_t, alpha_s, vocab_size)
        moved = jump * probs
    else:
        jump, resample = uniform_routes(0.0, alpha_t, alpha_s, vocab_size)
        resample = (1 - p_current) * resample + p_current * uniform_routes(1.0, alpha_t, alpha_s, vocab_size)[1]
        moved = jump * probs.scatter(-1, current, 0.0)
    moved = moved + resample / vocab_size
    return moved.scatter_add(-1, current, 1 - moved.sum(dim=-1, keepdim=True))


def absorbing_reverse(probs: Tensor, sample: Tensor, alpha_t: Any, alpha_s: Any, mask_token_id: int) -> Tensor:
    """p(x_s | x_t) of the absorbing kernel; arguments as in `uniform_reverse`, `probs` without mass on the mask."""
    reveal = (alpha_s - alpha_t) / (1 - alpha_t)
    masked = reveal * probs
    masked[..., mask_token_id : mask_token_id + 1] += 1 - reveal
    stays = torch.nn.functional.one_hot(sample, probs.shape[-1]).to(probs.dtype)
    return torch.where((sample == mask_token_id).unsqueeze(-1), masked, stays)


@dataclass
class D3PMSchedulerOutput(BaseOutput):
    """Output of `step`. `prev_sample`: (B, L) tokens at the next, less noisy time."""

    prev_sample: Tensor


class D3PMScheduler(SchedulerMixin, ConfigMixin):
    """What the kernels share: the clock, the noise schedule and the shaping of predictions."""

    order = 1
    init_noise_sigma = 1.0
    corruption = ""
    revises_tokens = False
    draws_reverse = True  # whether `step` draws every token from `reverse_probs`, on its own
    config: Any

    def _set_up(self):
        config = self.config
        # A chain of matrices has betas instead of a schedule.
        self._alpha, self._alpha_derivative = noise_schedule(config.get("schedule", "linear"))
        steps = config.num_train_timesteps
        require(steps is None or is_number_of_steps(steps), "num_train_timesteps", f"None or {CLOCK_LIMIT}", steps)
        first = config.min_timestep
        require(is_number(first, 0, 1) and 0 < first < 1, "min_timestep", "a number between 0 and 1, exclusive", first)
        require(is_number(config.temperature, 0), "temperature", "a number of at least 0", config.temperature)
        require(config.top_k is None or is_int(config.top_k, 1), "top_k", "None or an integer >= 1", config.top_k)
        top_p = config.top_p
        require(top_p is None or is_number(top_p, 0, 1) and top_p > 0, "top_p", "None or a number in (0, 1]", top_p)
        # diffusers takes an id that was passed by position for a default, which `from_config` would then drop.
        if "_use_default_values" in config:
            defaults = [name for name in config["_use_default_values"] if name not in REQUIRED_IDS]
            self.register_to_config(_use_default_values=defaults)
        self.set_timesteps(min(steps or 128, 128))

    def alpha(self, timesteps: float | Tensor) -> Tensor:
        """Probability that a token is still itself at `timesteps`, float64, same shape."""
        return self._alpha(torch.as_tensor(timesteps, dtype=torch.float64))

    def alpha_derivative(self, timesteps: float | Tensor) -> Tensor:
        """d alpha / dt at `timesteps`, float64, same shape; negative."""
        return self._alpha_derivative(torch.as_tensor(timesteps, dtype=torch.float64))

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        """Set the descending grid `timesteps`, (num_inference_steps,) floats in (0, 1]; the last step ends at 0.

        Raises:
            ValueError: if there are fewer than 1 or more than `num_train_timesteps` steps.
        """
        limit = self.config.num_train_timesteps
        if not is_int(num_inference_steps, 1) or (limit is not None and num_inference_steps > limit):
            bound = "at least 1" if limit is None else f"between 1 and `num_train_timesteps`={limit}"
            raise ValueError(f"`num_inference_steps` must be {bound}, got {num_inference_steps!r}.")
        self.num_inference_steps = num_inference_steps
        grid = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        if limit is not None:
            grid = (grid * limit).round() / limit
        self._grid = grid
        self.timesteps = grid[:-1].to(device, torch.float32)

    def _alphas(self, timestep: float | Tensor) -> tuple[float, float]:
        """`alpha` at both ends, (alpha_t, alpha_s), of the step that starts at `timestep`."""
        index = self._grid_index(timestep)
        alpha_t, alpha_s = self.alpha(self._grid[index : index + 2]).tolist()
        return alpha_t, alpha_s

    def _grid_index(self, timestep: float | Tensor) -> int:
        """Which step starts at `timestep`."""
        distance, index = (self._grid[:-1] - float(timestep)).abs().min(dim=0)
        if not distance < 0.1 / len(self._grid):
            raise ValueError(f"`timestep` must be one of the {len(self.timesteps)} `timesteps`, got {timestep}.")
        return int(index)

    def training_timesteps(self, uniform: Tensor) -> Tensor:
        """(B,) uniform numbers in [0, 1) to the times whose average loss is the bound, float64.

        With `num_train_timesteps` the grid i / T. In continuous time, numbers below `min_timestep` become
        `min_timestep`: the interval below it is one discrete step, which keeps the weights finite and the bound exact.
        """
        steps = self.config.num_train_timesteps
        if steps is None:
            return uniform.double().clamp(min=self.config.min_timestep)
        return (torch.floor(uniform.double() * steps) + 1) / steps

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Tokens need no scaling; returns `sample`."""
        return sample

    def prior_bound(self, tokens: Tensor) -> Tensor:
        """(B, L) nats of KL(q(x_1 | x_0 = tokens) || prior), the prior term of the bound: 0, as alpha(1) is 0."""
        return torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)

    def model_timesteps(self, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """(B,) times, float32, that the model is told at the step from `timestep`: the same for every row."""
        return torch.full((len(sample),), float(timestep), device=sample.device)

    def _keep(self, tokens: Tensor, timesteps: float | Tensor, generator: Generators) -> Tensor:
        """(B, L) bool: the tokens that survive until `timesteps`."""
        self._check_times(timesteps)
        alpha = self.alpha(timesteps)
        if alpha.ndim == 1:
            alpha = alpha.view(-1, 1)
        return rand(tuple(tokens.shape), generator, tokens.device) < alpha.to(tokens.device)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        positions: Tensor | None = None,
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
        model_output, positions = self._selected(model_output, timestep, sample, positions, generator)
        prev_sample = self._next(model_output, timestep, sample, positions, generator)
        return D3PMSchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        """(B, L) tokens at the next time; logits (N, V) at the N `positions` (B, L), all checked."""
        raise NotImplementedError

    def draw(self, log_weights: Tensor, sample: Tensor, positions: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) x_s, drawn at `positions` in proportion to exp(log_weights), (N, V); elsewhere `sample` (B, L).

        What a step ends with whose reverse distribution, `reverse_probs`, was changed by guidance.

        Raises:
            ValueError: if the shapes do not fit, or a row has NaN, an infinite weight or none above 0.
        """
        if log_weights.ndim != 2 or len(log_weights) != int(positions.sum()):
            raise ValueError(
                "`log_weights` must hold one row a selected position: "
                f"({int(positions.sum())}, V), got {tuple(log_weights.shape)}."
            )
        uniform = rand(tuple(sample.shape), generator, sample.device)
        prev_sample = sample.clone()
        blocks = in_row_blocks(log_weights, uniform[positions])
        prev_sample[positions] = torch.cat([sample_tokens(token_weights(block), drawn) for block, drawn in blocks])
        return prev_sample

    def _check_times(self, timesteps: float | Tensor):
        times = torch.as_tensor(timesteps)
        if not ((times >= 0) & (times <= 1)).all():
            raise ValueError(f"`timesteps` must lie in [0, 1], got {times.min():g} to {times.max():g}.")

    def _weights(self, model_output: Tensor) -> Tensor:
        config = self.config
        return token_weights(model_output, config.temperature, config.top_k, config.top_p, config.get("mask_token_id"))

    def _probs(self, model_output: Tensor) -> Tensor:
        """Shaped probabilities of x_0, (B, L, V) like the logits."""
        weights = self._weights(model_output.flatten(0, 1))
        return (weights / weights.sum(dim=-1, keepdim=True)).view(model_output.shape)

    def _selected(
        self, model_output: Tensor, timestep, sample: Tensor, positions: Any, generator
    ) -> tuple[Tensor, Tensor]:
        """The predictions (N, V) in use and their positions (B, L), checked."""
        if positions is None:
            if model_output.shape[:-1] != sample.shape:
                want, got = tuple(sample.shape), tuple(model_output.shape)
                raise ValueError(f"`model_output` must be {want} + (V,) like `sample`, got {got}.")
            positions = self.select(timestep, sample, generator)
            model_output = model_output[positions]
        if model_output.ndim != 2 or len(model_output) != int(positions.sum()):
            raise ValueError(
                "`model_output` must hold one row a selected position: "
                f"({int(positions.sum())}, V), got {tuple(model_output.shape)}."
            )
        return model_output, positions

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """Every loaded scheduler with the same corruption process."""
        return [c for c in subclasses(SchedulerMixin) if getattr(c, "corruption", None) == cls.corruption]


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
        mask_token_id = self.config.mask_token_id
        require(is_int(mask_token_id, 0), "mask_token_id", "an integer of at least 0", mask_token_id)
        super()._set_up()

    def _selected(
        self, model_output: Tensor, timestep, sample: Tensor, positions: Any, generator
    ) -> tuple[Tensor, Tensor]:
        mask_token_id, vocab_size = self.config.mask_token_id, model_output.shape[-1]
        require(mask_token_id < vocab_size, "mask_token_id", f"below the {vocab_size} logits", mask_token_id)
        return super()._selected(model_output, timestep, sample, positions, generator)

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: str | torch.device | None = None
    ) -> Tensor:
        """(B, L) tokens at time 1: all masked."""
        return torch.full(shape, self.config.mask_token_id, device=device)

    def add_noise(self, tokens: Tensor, timesteps: float | Tensor, generator: Generators = None) -> Tensor:
        """(B, L) from q(x_t | x_0): each token is masked with probability 1 - alpha; timesteps (), (B,) or (B, L)."""
        return torch.where(self._keep(tokens, timesteps, generator), tokens, self.config.mask_token_id)

    def transition(self, tokens: Tensor, timestep: float | Tensor) -> Tensor:
        """q(x_t | x_0 = tokens), (N, mask_token_id + 1) over x_t, float64, for tokens (N,) and times () or (N,)."""
        alpha = self.alpha(timestep).expand(len(tokens))
        rows = torch.zeros(len(tokens), self.config.mask_token_id + 1, dtype=torch.float64)
        rows[:, -1] = 1 - alpha
        return rows.scatter_(1, tokens.unsqueeze(1), alpha.unsqueeze(1))

    def select(self, timestep: float | Tensor, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the masked positions that the step from `timestep` reveals."""
        alpha_t, alpha_s = self._alphas(timestep)
        reveal_prob = (alpha_s - alpha_t) / (1 - alpha_t)
        masked = sample == self.config.mask_token_id
        return masked & (rand(tuple(sample.shape), generator, sample.device) < reveal_prob)

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        uniform = rand(tuple(sample.shape), generator, sample.device)
        prev_sample = sample.clone()
        blocks = in_row_blocks(model_output, uniform[positions])
        prev_sample[positions] = torch.cat([sample_tokens(self._weights(logits), drawn) for logits, drawn in blocks])
        return prev_sample

    def reverse_probs(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from, for logits (B, L, V)."""
        return absorbing_reverse(
            self._probs(model_output), sample, *self._alphas(timestep), mask_token_id=self.config.mask_token_id
        )


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

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: str | torch.device | None = None
    ) -> Tensor:
        """(B, L) tokens at time 1: uniformly random."""
        return self._random_tokens(shape, generator, torch.device(device or "cpu"))

    def add_noise(self, tokens: Tensor, timesteps: float | Tensor, generator: Generators = None) -> Tensor:
        """(B, L) from q(x_t | x_0): each token is redrawn with probability 1 - alpha; timesteps (), (B,) or (B, L)."""
        keep = self._keep(tokens, timesteps, generator)
        return torch.where(keep, tokens, self._random_tokens(tuple(tokens.shape), generator, tokens.device))

    def transition(self, tokens: Tensor, timestep: float | Tensor) -> Tensor:
        """q(x_t | x_0 = tokens), (N, V) over x_t, float64, for tokens (N,) and times () or (N,)."""
        alpha = self.alpha(timestep).expand(len(tokens)).unsqueeze(1)
        rows = ((1 - alpha) / self.config.vocab_size).repeat(1, self.config.vocab_size)
        return rows.scatter_add_(1, tokens.unsqueeze(1), alpha)

    def select(self, timestep: float | Tensor, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: the positions for which the step from `timestep` needs a prediction."""
        jump, resample, resample_anyway = self._scalar_routes(timestep)
        return rand(tuple(sample.shape), generator, sample.device) < jump + resample - resample_anyway

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        jump, resample, resample_anyway = self._scalar_routes(timestep)
        needed = jump + resample - resample_anyway
        shape = tuple(sample.shape)
        route, uniform = rand(shape, generator, sample.device), rand(shape, generator, sample.device)
        noise = self._random_tokens(shape, generator, sample.device)
        resampled = route * (1 - needed) < resample_anyway
        prev_sample = torch.where(resampled & ~positions, noise, sample)

        logits, current = self._own_ids(model_output), sample[positions]
        drawn = [self._clean_and_p_current(*block) for block in in_row_blocks(logits, uniform[positions], current)]
        clean, p_current = (torch.cat(parts) for parts in zip(*drawn, strict=True))  # (N,)
        if self.config.reverse_rule == "marginal":
            jump = torch.where(clean == current, needed, jump)
            resample = needed
        else:
            jump, resample = uniform_routes(p_current, *self._alphas(timestep), self.config.vocab_size)
            resample = jump + resample - resample_anyway
        chosen = route[positions] * needed
        moved = torch.where(chosen < resample, noise[positions], current)
        prev_sample[positions] = torch.where(chosen < jump, clean, moved)
        return prev_sample

    def reverse_probs(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """p(x_s | x_t) as (B, L, V), the distribution `step` draws from, for logits (B, L, V or more)."""
        probs = self._probs(self._own_ids(model_output))
        return uniform_reverse(probs, sample, *self._alphas(timestep), reverse_rule=self.config.reverse_rule)

    def _clean_and_p_current(self, logits: Tensor, uniform: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) tokens drawn from logits (N, V), and the probabilities (N,) of the `current` tokens (N,), float64."""
        weights = self._weights(logits)
        p_current = weights.gather(1, current.unsqueeze(-1)).squeeze(-1) / weights.sum(dim=-1)
        return sample_tokens(weights, uniform), p_current.double()

    def _scalar_routes(self, timestep: float | Tensor) -> tuple[float, float, float]:
        """Jump and resample of a token that is not x_0, and the resampling that happens whatever x_0 is."""
        alpha_t, alpha_s = self._alphas(timestep)
        jump, resample = uniform_routes(0.0, alpha_t, alpha_s, self.config.vocab_size)
        return jump, resample, uniform_routes(1.0, alpha_t, alpha_s, self.config.vocab_size)[1]

    def _clean_logits(self, model_output: Tensor, timestep: float | Tensor, current: Tensor) -> Tensor:
        """Logits (..., V) of p(x_0 | x_t), `current` (...) being x_t at their positions."""
        return self._seen(model_output, timestep, current, 1 if self.config.reverse_rule == "plug_in" else 0)

    def _leave_one_out_logits(self, model_output: Tensor, timestep: float | Tensor, current: Tensor) -> Tensor:
        """Logits (..., V) of p(x_0 | x_t) / q(x_t | x_0): given all tokens but the `current` one (...)."""
        return self._seen(model_output, timestep, current, 0 if self.config.reverse_rule == "plug_in" else -1)

    def _seen(self, model_output: Tensor, timestep: float | Tensor, current: Tensor, times: int) -> Tensor:
        """Own logits (..., V) times q(x_t | x_0) to the power `times`."""
        alpha, logits = self._alphas(timestep)[0], self._own_ids(model_output)
        if not times:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        gain = times * math.log1p(self.config.vocab_size * alpha / (1 - alpha))  # log of q(x | x) / q(x | another)
        return logits.scatter_add(-1, current.unsqueeze(-1), torch.full_like(logits[..., :1], gain))

    def _random_tokens(self, shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
        return (rand(shape, generator, device) * self.config.vocab_size).long()

    def _own_ids(self, model_output: Tensor) -> Tensor:
        logits, vocab_size = model_output.shape[-1], self.config.vocab_size
        require(logits >= vocab_size, "model_output", f"at least `vocab_size`={vocab_size} wide", logits)
        return model_output[..., :vocab_size]


def check_vocabulary_and_rule(config: Any):
    in_range = is_int(config.vocab_size, 2) and config.vocab_size <= MOST_IDS
    require(in_range, "vocab_size", f"an integer of at least 2 and at most {MOST_IDS}", config.vocab_size)
    require(config.reverse_rule in REVERSE_RULES, "reverse_rule", f"one of {REVERSE_RULES}", config.reverse_rule)


def subclasses(cls: type) -> list[type]:
    return [c for child in cls.__subclasses__() for c in (child, *subclasses(child))]
