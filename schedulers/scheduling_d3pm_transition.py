"""Discrete diffusion with any transition kernel: what D3PM derives from q(x_t | x_s) alone.

D3PM (https://arxiv.org/abs/2107.03006). A kernel says how to take probabilities over states from one time to another;
corruption, posterior, sampling and bound follow.

Shapes: B batch, L sequence length, S states of a token, N positions, T training timesteps.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_diffusers.common.randomness import Generators, rand_like
from text_diffusers.common.sampling import draw_at, sample_tokens
from text_diffusers.common.validation import as_ids, is_int, require
from text_diffusers.schedulers.noise_schedules import (
    D3PMScheduler,
    Time,
    check_vocabulary_and_rule,
    state_ids,
)


class LinearMap(torch.autograd.Function):
    """A linear map and its transpose, so that the backward pass keeps nothing of how the map is computed."""

    @staticmethod
    def forward(
        ctx, x: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]
    ) -> Tensor:
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
        limit = "an integer of at least 1, this kernel moves in steps"
        require(is_int(steps, 1), "num_train_timesteps", limit, steps)
        super()._set_up()

    @property
    def num_states(self) -> int:
        """S: the ids 0 to S - 1 are what x_t may be."""
        return self.config.vocab_size

    # The kernel

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """`probs` (N, S) at times `start` (N,) taken to the later times `end` (N,): probs @ Q(start -> end)."""
        raise NotImplementedError

    def _diffuse_back(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """values @ Q(start -> end) transposed; the same for a symmetric kernel."""
        return self._diffuse(values, start, end)

    # What follows from it

    def diffuse(self, probs: Tensor, start: Time, end: Time) -> Tensor:
        """(N, S) probabilities at time `end` from those at `start`, both () or (N,); differentiable in `probs`."""
        starts = times_like(probs, start)
        ends = times_like(probs, end)
        return LinearMap.apply(
            probs,
            lambda x: self._diffuse(x, starts, ends),
            lambda grad: self._diffuse_back(grad, starts, ends),
        )

    def likelihood(self, tokens: Tensor, start: Time, end: Time, dtype=torch.float64) -> Tensor:
        """q(x_end = tokens | x_start), (N, S) over x_start, for tokens (N,) and times () or (N,)."""
        ids = state_ids(self.num_states, tokens)
        starts = times_like(ids, start)
        ends = times_like(ids, end)
        return self._diffuse_back(self.one_hot(ids, dtype), starts, ends)

    def likelihoods(
        self, tokens: Tensor, start: Time, end: Time, dtype=torch.float64
    ) -> tuple[Tensor, Tensor | None]:
        """q(x_t = tokens | x_s) and q(x_t = tokens | x_0), (N, S), for `posterior`; plug-in needs only the former."""
        total = None
        if self.config.reverse_rule == "marginal":
            total = self.likelihood(tokens, 0.0, end, dtype)
        return self.likelihood(tokens, start, end, dtype), total

    def transition(self, tokens: Tensor, timestep: Time, dtype=torch.float64) -> Tensor:
        """q(x_t | x_0 = tokens), (N, S) over x_t, for tokens (N,) and times () or (N,)."""
        return self.diffuse(self.one_hot(state_ids(self.num_states, tokens), dtype), 0.0, timestep)

    def posterior(
        self,
        probs: Tensor,
        step: Tensor,
        total: Tensor | None,
        start: Time,
        reverse_rule: str | None = None,
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
            # From the other x_0 one does not get to x_t.
            reached = total > torch.finfo(total.dtype).tiny
            probs = torch.where(reached, probs / torch.where(reached, total, 1.0), 0.0)

        joint = step * self.diffuse(probs, 0.0, start)  # q(x_t | x_s) times q(x_s | x_0), (N, S)
        # Where rounding leaves nothing, the likelihood alone decides.
        joint = torch.where(joint.sum(dim=-1, keepdim=True) > 0, joint, step)
        return joint / joint.sum(dim=-1, keepdim=True)

    def clean_probs(self, logits: Tensor) -> Tensor:
        """(N, S) unshaped probabilities of x_0 from logits (N, at least `num_tokens`), in the type to work in."""
        logits = self._own_ids(logits)
        precise = torch.promote_types(logits.dtype, self._least_dtype)
        return self._pad(logits.to(precise).softmax(dim=-1))

    # Noise

    def add_noise(self, tokens: Tensor, timesteps: Time, generator: Generators = None) -> Tensor:
        """(B, L) from q(x_t | x_0); timesteps (), (B,) or (B, L). Ids that are no states, as padding, stay."""
        # Any id will do at the places that are put back.
        outside = tokens >= self.num_states
        noisy = super().add_noise(tokens.masked_fill(outside, 0), timesteps, generator)
        return torch.where(outside, tokens, noisy)

    def _corrupt(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        uniform = rand_like(tokens, generator)
        rows = self.transition(tokens.flatten(), per_token(timesteps, tokens))  # (B * L, S)
        return sample_tokens(rows, uniform.flatten()).view(tokens.shape)

    # The way back

    def select(self, timestep: Time, sample: Tensor, generator: Generators = None) -> Tensor:
        """(B, L) bool: all positions, each of which the prediction may move."""
        return torch.ones_like(sample, dtype=torch.bool)

    def _next(
        self,
        logits: Tensor,
        timestep: Time,
        sample: Tensor,
        positions: Tensor,
        generator: Generators,
    ) -> Tensor:
        # Of some of the rows at a time.
        def weights_of(block: Tensor, current: Tensor) -> Tensor:
            return self._reverse(self._weights(block), timestep, current)

        rows = (logits, sample[positions])
        return draw_at(positions, sample, weights_of, rows, generator, in_blocks=self._in_blocks)

    def reverse_probs(
        self, model_output: Tensor, timestep: Time, sample: Tensor, from_scores: bool = False
    ) -> Tensor:
        """p(x_s | x_t) as (B, L, S), the distribution `step` draws from; as in `D3PMAbsorbingScheduler`."""
        ids = as_ids("sample", sample)
        probs = self._clean_probs(model_output, timestep, ids, from_scores).flatten(0, 1)
        return self._reverse(probs, timestep, ids.flatten()).unflatten(0, ids.shape)

    def _reverse(self, weights: Tensor, timestep: Time, current: Tensor) -> Tensor:
        """p(x_s | x_t), (N, S), from unnormalised probabilities of x_0 (N, `num_tokens`) and x_t (N,)."""
        index = self._grid_index(timestep)
        end, start = self._grid[index : index + 2].tolist()
        precise = torch.promote_types(weights.dtype, self._least_dtype)
        # What x_t says of x_s and of x_0, (N, S) each.
        step, total = self.likelihoods(current, start, end, precise)
        return self.posterior(self._pad(weights.to(precise)), step, total, start)

    def one_hot(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, S) of tokens (N,)."""
        zeros = torch.zeros(len(tokens), self.num_states, dtype=dtype, device=tokens.device)
        return zeros.scatter_(1, tokens.unsqueeze(1), 1.0)

    def _pad(self, probs: Tensor) -> Tensor:
        """(N, S) from probabilities of the tokens that x_0 may be."""
        return torch.nn.functional.pad(probs, (0, self.num_states - probs.shape[-1]))


class D3PMSemigroupScheduler(D3PMTransitionScheduler):
    """A kernel whose transition from s to t depends on alpha(t) / alpha(s) only, and ends in uniform noise at 0."""

    def _survival(self, start: Tensor, end: Tensor, like: Tensor) -> Tensor:
        """(N, 1) alpha(end) / alpha(start) on the device and in the type of `like`; 1 where nothing happens."""
        ratio = torch.where(start == end, 1.0, self.alpha(end) / self.alpha(start))
        return ratio.unsqueeze(-1).to(like)


def times_like(rows: Tensor, times: Time) -> Tensor:
    """(N,) float64 from times () or (N,), on the device of `rows` (N, ...)."""
    return torch.as_tensor(times, dtype=torch.float64, device=rows.device).expand(len(rows))


def per_token(timesteps: Time, tokens: Tensor) -> Tensor:
    """(B * L,) float64 times of tokens (B, L) from (), (B,) or (B, L)."""
    times = torch.as_tensor(timesteps, dtype=torch.float64, device=tokens.device)
    if times.ndim == 1:
        times = times.unsqueeze(1)
    return times.expand(tokens.shape).flatten()
