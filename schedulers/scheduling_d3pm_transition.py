"""Discrete diffusion with any transition kernel: what D3PM derives from q(x_t | x_s) alone.

D3PM (https://arxiv.org/abs/2107.03006). A kernel says how to take probabilities over states from one time to another;
corruption, posterior, sampling and bound follow.

Shapes: B batch, L sequence length, S states of a token, N positions, T training timesteps.
"""

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.sampling import in_row_blocks, sample_tokens, token_weights
from text_diffusers.common.validation import is_int, require
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler, check_vocabulary_and_rule


class LinearMap(torch.autograd.Function):
    """A linear map and its transpose, so that the backward pass keeps nothing of how the map is computed."""

    @staticmethod
    def forward(ctx, x: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.transpose = transpose
        return apply(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        return ctx.transpose(grad_output.contiguous()), None, None


class D3PMTransitionScheduler(D3PMScheduler):
    """D3PM for a kernel that subclasses give by `_diffuse`, and by `_diffuse_back` if it is not symmetric.

    Kernels are models of T steps: `num_train_timesteps` must be given. The noise at time 1 is uniform over
    `vocab_size` ids unless a subclass says otherwise. `reverse_rule` is that of `D3PMUniformScheduler`.
    """

    revises_tokens = True
    _least_dtype = torch.float32
    _in_blocks = True  # whether a step takes as many rows at once as fit into the cache of a CPU

    def _set_up(self):
        check_vocabulary_and_rule(self.config)
        steps = self.config.num_train_timesteps
        require(is_int(steps, 1), "num_train_timesteps", "an integer of at least 1, this kernel moves in steps", steps)
        super()._set_up()

    @property
    def num_states(self) -> int:
        """S: the ids 0 to S - 1 are what x_t may be."""
        return self.config.vocab_size

    @property
    def num_tokens(self) -> int:
        """The ids below are what x_0 may be; further logits are ignored."""
        return self.config.vocab_size

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """`probs` (N, S) at times `start` (N,) taken to the later times `end` (N,): probs @ Q(start -> end)."""
        raise NotImplementedError

    def _diffuse_back(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """values @ Q(start -> end) transposed; the same for a symmetric kernel."""
        return self._diffuse(values, start, end)

    def diffuse(self, probs: Tensor, start: float | Tensor, end: float | Tensor) -> Tensor:
        """(N, S) probabilities at time `end` from those at `start`, both () or (N,); differentiable in `probs`."""
        start, end = self._times(start, len(probs), probs.device), self._times(end, len(probs), probs.device)
        return LinearMap.apply(
            probs, lambda x: self._diffuse(x, start, end), lambda grad: self._diffuse_back(grad, start, end)
        )

    def likelihood(self, tokens: Tensor, start: float | Tensor, end: float | Tensor, dtype=torch.float64) -> Tensor:
        """q(x_end = tokens | x_start), (N, S) over x_start, for tokens (N,) and times () or (N,)."""
        start, end = self._times(start, len(tokens), tokens.device), self._times(end, len(tokens), tokens.device)
        return self._diffuse_back(self.one_hot(tokens, dtype), start, end)

    def likelihoods(
        self, tokens: Tensor, start: float | Tensor, end: float | Tensor, dtype=torch.float64
    ) -> tuple[Tensor, Tensor | None]:
        """q(x_t = tokens | x_s) and q(x_t = tokens | x_0), (N, S), for `posterior`; plug-in needs only the former."""
        total = self.likelihood(tokens, 0.0, end, dtype) if self.config.reverse_rule == "marginal" else None
        return self.likelihood(tokens, start, end, dtype), total

    def transition(self, tokens: Tensor, timestep: float | Tensor, dtype=torch.float64) -> Tensor:
        """q(x_t | x_0 = tokens), (N, S) over x_t, for tokens (N,) and times () or (N,)."""
        return self.diffuse(self.one_hot(tokens, dtype), 0.0, timestep)

    def posterior(
        self, probs: Tensor, step: Tensor, total: Tensor | None, start: float | Tensor, reverse_rule: str | None = None
    ) -> Tensor:
        """p(x_s | x_t), (N, S).

        Args:
            probs: (N, S) of x_0, predicted or one-hot.
            step, total: (N, S) from `likelihoods`: q(x_t | x_s) and, for the marginal rule, q(x_t | x_0).
            start: s, () or (N,).
            reverse_rule: that of the configuration by default. A prediction that leaves no way to x_t is ignored.
        """
        if (reverse_rule or self.config.reverse_rule) == "marginal":
            assert total is not None
            reached = total > torch.finfo(total.dtype).tiny  # from other x_0 one does not get to x_t
            probs = torch.where(reached, probs / torch.where(reached, total, 1.0), 0.0)
        joint = step * self.diffuse(probs, 0.0, start)
        joint = torch.where(joint.sum(dim=-1, keepdim=True) > 0, joint, step)
        return joint / joint.sum(dim=-1, keepdim=True)

    def clean_probs(self, logits: Tensor) -> Tensor:
        """(N, S) unshaped probabilities of x_0 from logits (N, at least `num_tokens`), in the type to work in."""
        logits = self._own_ids(logits)
        return self._pad(logits.to(torch.promote_types(logits.dtype, self._least_dtype)).softmax(dim=-1))

    def prior(
        self, shape: tuple[int, ...], generator: Generators = None, device: str | torch.device | None = None
    ) -> Tensor:
        """(B, L) tokens at time 1."""
        return (rand(shape, generator, torch.device(device or "cpu")) * self.config.vocab_size).long()

    def add_noise(self, tokens: Tensor, timesteps: float | Tensor, generator: Generators = None) -> Tensor:
        """(B, L) from q(x_t | x_0); timesteps (), (B,) or (B, L). Ids that are no states, as padding, stay."""
        self._check_times(timesteps)
        outside = tokens >= self.num_states
        noisy = self._corrupt(tokens.masked_fill(outside, 0), timesteps, generator)
        return torch.where(outside, tokens, noisy)

    def _corrupt(self, tokens: Tensor, timesteps: float | Tensor, generator: Generators) -> Tensor:
        uniform = rand(tuple(tokens.shape), generator, tokens.device)
        times = self._per_token(timesteps, tokens)
        return sample_tokens(self.transition(tokens.flatten(), times), uniform.flatten()).view(tokens.shape)

    def select(self, timestep: float | Tensor, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: all positions, each of which the prediction may move."""
        return torch.ones_like(sample, dtype=torch.bool)

    def _next(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, positions: Tensor, generator: Generators
    ) -> Tensor:
        uniform = rand(tuple(sample.shape), generator, sample.device)[positions]
        rows = model_output, sample[positions], uniform
        prev_sample = sample.clone()
        prev_sample[positions] = torch.cat(
            [
                sample_tokens(self._reverse(self._weights(self._own_ids(logits)), timestep, current), drawn)
                for logits, current, drawn in (in_row_blocks(*rows) if self._in_blocks else [rows])
            ]
        )
        return prev_sample

    def reverse_probs(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """p(x_s | x_t) as (B, L, S), the distribution `step` draws from, for logits (B, L, V)."""
        probs = self._probs(self._own_ids(model_output)).flatten(0, 1)
        return self._reverse(probs, timestep, sample.flatten()).unflatten(0, sample.shape)

    def _reverse(self, weights: Tensor, timestep: float | Tensor, current: Tensor) -> Tensor:
        """p(x_s | x_t), (N, S), from unnormalised probabilities of x_0 (N, `num_tokens`) and x_t (N,)."""
        end, start = self._interval(timestep)
        probs = self._pad(weights.to(torch.promote_types(weights.dtype, self._least_dtype)))
        return self.posterior(probs, *self.likelihoods(current, start, end, probs.dtype), start)

    def _interval(self, timestep: float | Tensor) -> tuple[float, float]:
        """Both ends, (t, s), of the step that starts at `timestep`."""
        index = self._grid_index(timestep)
        return float(self._grid[index]), float(self._grid[index + 1])

    def _times(self, times: float | Tensor, count: int, device: torch.device) -> Tensor:
        return torch.as_tensor(times, dtype=torch.float64, device=device).expand(count)

    def _per_token(self, timesteps: float | Tensor, tokens: Tensor) -> Tensor:
        """(B * L,) times of tokens (B, L) from (), (B,) or (B, L)."""
        times = torch.as_tensor(timesteps, dtype=torch.float64, device=tokens.device)
        return (times.unsqueeze(-1) if times.ndim == 1 else times).expand(tokens.shape).flatten()

    def one_hot(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, S) of tokens (N,)."""
        zeros = torch.zeros(len(tokens), self.num_states, dtype=dtype, device=tokens.device)
        return zeros.scatter_(1, tokens.unsqueeze(1), 1.0)

    def _pad(self, probs: Tensor) -> Tensor:
        """(N, S) from probabilities of the tokens that x_0 may be."""
        return torch.nn.functional.pad(probs, (0, self.num_states - probs.shape[-1]))

    def _weights(self, model_output: Tensor) -> Tensor:
        config = self.config
        return token_weights(model_output, config.temperature, config.top_k, config.top_p)

    def _own_ids(self, model_output: Tensor) -> Tensor:
        logits = model_output.shape[-1]
        require(logits >= self.num_tokens, "model_output", f"at least {self.num_tokens} wide", logits)
        return model_output[..., : self.num_tokens]


class D3PMSemigroupScheduler(D3PMTransitionScheduler):
    """A kernel whose transition from s to t depends on alpha(t) / alpha(s) only, and ends in uniform noise at 0."""

    def _survival(self, start: Tensor, end: Tensor, like: Tensor) -> Tensor:
        """(N, 1) alpha(end) / alpha(start) on the device and in the type of `like`; 1 where nothing happens."""
        ratio = torch.where(start == end, 1.0, self.alpha(end) / self.alpha(start))
        return ratio.unsqueeze(-1).to(like)
