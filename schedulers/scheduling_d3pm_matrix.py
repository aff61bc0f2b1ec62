"""Discrete diffusion with the matrices of D3PM: discretised Gaussian, band diagonal, or any other.

D3PM (https://arxiv.org/abs/2107.03006). Rows of a matrix are the state before, columns the state after.

Shapes: B batch, L sequence length, V vocabulary size, N positions, T training timesteps.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline looks for it here
from diffusers.utils import logging
from torch import Tensor

from text_diffusers.common.validation import (
    CLOCK_LIMIT,
    are_numbers,
    is_int,
    is_number,
    is_number_of_steps,
    is_table,
    require,
)
from text_diffusers.schedulers.scheduling_d3pm_transition import D3PMTransitionScheduler
from text_diffusers.schedulers.tensor_config import TensorConfigMixin

KERNELS = ("gaussian", "band", "matrix")
LARGEST_VOCABULARY = 4_096
VOCABULARIES = f"an integer from 2 to {LARGEST_VOCABULARY}"
FLOAT64_VOCABULARY = 1_024
STORED_NUMBERS = 2**25
QUICK_MULTIPLICATIONS = 2**37
MIXED, MIXING_PROBES = 1e-3, 9

logger = logging.get_logger(__name__)


class D3PMMatrixScheduler(TensorConfigMixin, D3PMTransitionScheduler):
    """D3PM with one stochastic matrix a step, for up to 4,096 tokens; no (T, V, V) tensor is ever made.

    "band" and "matrix" jump by one matrix, with probability beta at each step: what is needed is a sum over the number
    of jumps. The matrices of "gaussian" differ, and T products of (V, V) are taken when the scheduler is made; of
    these about every sqrt(T)-th is kept, and what lies between is multiplied when it is needed.

    The noise at time 1 is uniform: that is where doubly stochastic matrices lead. How far the chain is from it after T
    steps is the bound's `prior_bound`; a chain that has not mixed is reported when the scheduler is made.

    Args:
        vocab_size: V; further logits are ignored.
        kernel: "gaussian": ids near to each other turn into each other, as for ordered values. Off the diagonal
            exp(-4 (i - j)^2 / ((V - 1)^2 beta)) / Z. "band": beta / V within `bandwidth` of the diagonal. "matrix":
            (1 - beta) I + beta `transitions`.
        bandwidth: of the band.
        transitions: (V, V) doubly stochastic matrix of "matrix".
        betas: (T,) of the T steps; by default `beta_start` to `beta_end`, evenly.
        num_train_timesteps: T.
        reverse_rule, min_timestep, temperature, top_k, top_p: as in `D3PMUniformScheduler`. `alpha` is the product of
            1 - beta, which is the probability that a token was never redrawn for "matrix" only.

    Raises:
        ValueError: if an argument is out of its range, or the matrix is not doubly stochastic.
    """

    corruption = "matrix"
    _least_dtype = torch.float64  # far from the diagonal, probabilities are below what float32 can hold
    _tensor_arguments = ("transitions",)

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        kernel: str = "gaussian",
        bandwidth: int | None = None,
        transitions: Tensor | None = None,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        betas: list[float] | None = None,
        num_train_timesteps: int = 1000,
        reverse_rule: str = "marginal",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        require(is_int(vocab_size, 2) and vocab_size <= LARGEST_VOCABULARY, "vocab_size", VOCABULARIES, vocab_size)
        require(kernel in KERNELS, "kernel", f"one of {KERNELS}", kernel)
        for name, value, owner in (("bandwidth", bandwidth, "band"), ("transitions", transitions, "matrix")):
            require((value is not None) == (kernel == owner), name, f'given with kernel "{owner}" only', value)
        require(bandwidth is None or is_int(bandwidth, 1), "bandwidth", "an integer of at least 1", bandwidth)
        require(is_number_of_steps(num_train_timesteps), "num_train_timesteps", CLOCK_LIMIT, num_train_timesteps)
        for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
            require(is_number(value, 0, 1), name, "a number in [0, 1]", value)
        require(betas is None or are_numbers(betas), "betas", "None or a list of numbers", betas)
        if betas is None:
            betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64).tolist()
        steps = len(betas)
        require(
            steps == num_train_timesteps, "betas", f"as many as `num_train_timesteps`={num_train_timesteps}", steps
        )
        require(all(is_number(beta, 0, 1) and beta > 0 for beta in betas), "betas", "numbers in (0, 1]", betas)
        self._betas = torch.tensor(betas, dtype=torch.float64)
        self._jump = None if bandwidth is None else band_matrix(vocab_size, bandwidth)
        if transitions is not None:
            check_matrix(transitions, vocab_size)
            self._jump = transitions.double()
        self._set_up()
        if self._jump is None:
            self._keep_products()
        self._report_if_not_mixed()

    def alpha(self, timesteps: float | Tensor) -> Tensor:
        """Product of 1 - beta over the steps until `timesteps`, float64, same shape."""
        products = torch.cat([torch.ones(1, dtype=torch.float64), (1 - self._betas).cumprod(0)])
        return products[self._step_index(torch.as_tensor(timesteps, dtype=torch.float64))]

    def matrix(self, step: int) -> Tensor:
        """(V, V) Q_step, float64, for a step from 1 to T."""
        beta, size = float(self._betas[step - 1]), self.config.vocab_size
        if self._jump is None:
            return gaussian_matrix(size, beta)
        return torch.lerp(torch.eye(size, dtype=torch.float64), self._jump, beta)

    def cumulative(self, step: int) -> Tensor:
        """(V, V) Q_1 Q_2 ... Q_step, float64, for a step from 0 to T."""
        eye = torch.eye(self.config.vocab_size, dtype=torch.float64)
        return self._diffuse(eye, torch.zeros(len(eye)), torch.full((len(eye),), step / len(self._betas)))

    def prior_bound(self, tokens: Tensor) -> Tensor:
        """(B, L) nats of KL(q(x_1 | x_0 = tokens) || uniform), the bound's prior term."""
        different, which = tokens.unique(return_inverse=True)
        end = self.transition(different, 1.0)
        return torch.xlogy(end, end * self.config.vocab_size).sum(dim=-1)[which]

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        if self._jump is not None:
            return self._jump_series(probs, start, end, self._jump)
        x = probs.clone()
        for rows, first, last in self._same_way(start, end):
            if first == 0 and last >= self._spacing:
                x[rows] = x[rows] @ self._stored[last // self._spacing].to(x)
                first = last - last % self._spacing
            for step in range(first + 1, last + 1):
                x[rows] = x[rows] @ self.matrix(step).to(x)
        return x

    def _diffuse_back(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        if self._jump is not None:
            return self._jump_series(values, start, end, self._jump.T)
        x = values.clone()  # each matrix is symmetric, but they do not commute
        for rows, first, last in self._same_way(start, end):
            stored = first == 0 and last >= self._spacing
            for step in range(last, last - last % self._spacing if stored else first, -1):
                x[rows] = x[rows] @ self.matrix(step).to(x)
            if stored:
                x[rows] = x[rows] @ self._stored[last // self._spacing].T.to(x)
        return x

    def _jump_series(self, x: Tensor, start: Tensor, end: Tensor, jump: Tensor) -> Tensor:
        """Sum over j of P(j jumps between the times) x jump^j, (N, V)."""
        weights = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        for rows, first, last in self._same_way(start, end):
            counts = jump_counts(self._betas[first:last], negligible=torch.finfo(x.dtype).eps / 10).to(x.device)
            weights = torch.nn.functional.pad(weights, (0, max(0, len(counts) - weights.shape[1])))
            weights[rows, : len(counts)] = counts
        jump, total = jump.to(x), weights[:, :1].to(x) * x
        for count in range(1, weights.shape[1]):
            x = x @ jump
            total += weights[:, count : count + 1].to(x) * x
        return total

    def _same_way(self, start: Tensor, end: Tensor) -> list[tuple[Tensor, int, int]]:
        """`(rows, first step, last step)` of the rows with the same times."""
        ways = torch.stack([self._step_index(start), self._step_index(end)], dim=1)
        different, which = ways.unique(dim=0, return_inverse=True)
        return [((which == i).nonzero().squeeze(1), *way) for i, way in enumerate(different.tolist())]

    def _step_index(self, times: Tensor) -> Tensor:
        return (times * len(self._betas)).round().long()

    def _keep_products(self):
        """Keep each `_spacing`-th product, in float32 if the vocabulary is large."""
        steps, size = len(self._betas), self.config.vocab_size
        dtype = torch.float64 if size <= FLOAT64_VOCABULARY else torch.float32
        count = max(math.isqrt(steps), min(steps, STORED_NUMBERS // size**2))
        self._spacing = -(-steps // count)
        product = torch.eye(size, dtype=dtype)
        self._stored = [product]
        quick = steps * size**3 < QUICK_MULTIPLICATIONS
        for step in logging.tqdm(range(1, steps + 1), desc="products of T matrices", disable=quick):
            product = product @ self.matrix(step).to(dtype)
            if step % self._spacing == 0:
                self._stored.append(product)

    def _report_if_not_mixed(self):
        size = self.config.vocab_size
        nats = float(self.prior_bound(torch.linspace(0, size - 1, min(size, MIXING_PROBES)).long()).max())
        if nats > MIXED:
            logger.warning(
                f"After {len(self._betas)} steps the chain is {nats:.3g} nats from uniform noise, for which the bound "
                "pays (`prior_bound`). Larger `betas` mix better."
            )


def gaussian_matrix(vocab_size: int, beta: float) -> Tensor:
    """(V, V) of D3PM's discretised Gaussian, float64, doubly stochastic."""
    offsets = torch.arange(vocab_size, dtype=torch.float64)
    shape = torch.exp(-4 * offsets**2 / ((vocab_size - 1) ** 2 * beta))
    ids = torch.arange(vocab_size)
    return with_diagonal((shape / (2 * shape.sum() - 1))[(ids.unsqueeze(1) - ids).abs()])


def band_matrix(vocab_size: int, bandwidth: int) -> Tensor:
    """(V, V) of D3PM's band for beta = 1, float64, doubly stochastic: 1 / V within `bandwidth` of the diagonal."""
    ids = torch.arange(vocab_size)
    inside = (ids.unsqueeze(1) - ids).abs() <= bandwidth
    return with_diagonal(inside.double() / vocab_size)


def with_diagonal(matrix: Tensor) -> Tensor:
    """The matrix with the diagonal that makes its rows sum to 1."""
    matrix.fill_diagonal_(0.0)
    return matrix + torch.diag(1 - matrix.sum(dim=-1))


def jump_counts(betas: Tensor, negligible: float) -> Tensor:
    """(J,) probabilities of 0 to J - 1 jumps, each step jumping with `betas`; less than `negligible` is lost."""
    counts = torch.ones(1, dtype=torch.float64)
    for beta in betas.tolist():
        counts = torch.nn.functional.pad(counts, (0, 1))
        counts = (1 - beta) * counts + beta * counts.roll(1)
        if counts[-1] < negligible / (2 * len(betas)):
            counts = counts[:-1]
    return counts


def check_matrix(transitions: Tensor, vocab_size: int):
    require(is_table(transitions, 2), "transitions", "a tensor of finite numbers with two axes", transitions)
    if transitions.shape != (vocab_size, vocab_size):
        raise ValueError(f"`transitions` must be ({vocab_size}, {vocab_size}), got {tuple(transitions.shape)}.")
    sums = torch.cat([transitions.double().sum(dim=0), transitions.double().sum(dim=1)])
    worst = float(sums[(sums - 1).abs().argmax()])
    if (transitions < 0).any() or abs(worst - 1) > 1e-6:
        raise ValueError(
            "`transitions` must be doubly stochastic, not negative and with rows and columns that sum to 1, got a "
            f"smallest entry of {float(transitions.min()):.3g} and a sum of {worst:.6g}."
        )
