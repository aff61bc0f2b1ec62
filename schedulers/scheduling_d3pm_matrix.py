"""Discrete diffusion with the matrices of D3PM: discretised Gaussian, band diagonal, or any other.

D3PM (https://arxiv.org/abs/2107.03006). Rows of a matrix are the state before, columns the state after.

Shapes: B batch, L sequence length, V vocabulary size, N positions, T training timesteps.
"""

import math
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import logging
from torch import Tensor

from text_diffusers.common.progress import progress_bar
from text_diffusers.common.tensor_config import TensorConfigMixin
from text_diffusers.common.validation import (
    LONGEST_CLOCK,
    are_numbers,
    is_number,
    is_table,
    require,
    require_int,
    require_key,
    require_number,
)
from text_diffusers.schedulers.noise_schedules import Time
from text_diffusers.schedulers.scheduling_d3pm_transition import D3PMTransitionScheduler

MATRIX_KERNELS = ("gaussian", "band", "matrix")
LARGEST_VOCABULARY = 4_096

# Products of matrices are kept in float64 up to this size, and of all sizes as many as hold so many numbers.
FLOAT64_VOCABULARY = 1_024
STORED_NUMBERS = 2**25

# Fewer multiplications show no progress bar.
QUICK_MULTIPLICATIONS = 2**37

# A chain is reported that ends more nats than this from uniform noise, measured from so many tokens.
MIXED = 1e-3
MIXING_PROBES = 9

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

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMMatrixScheduler
        >>> scheduler = D3PMMatrixScheduler(vocab_size=10, num_train_timesteps=100, beta_end=0.5)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape
        torch.Size([2, 6])
    """

    corruption = "matrix"
    _least_dtype = torch.float64  # far from the diagonal, float32 would be 0
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
        require_int("vocab_size", vocab_size, 2, LARGEST_VOCABULARY)
        require_key("kernel", kernel, MATRIX_KERNELS)
        check_given("bandwidth", bandwidth, kernel, owner="band")
        check_given("transitions", transitions, kernel, owner="matrix")
        if bandwidth is not None:
            require_int("bandwidth", bandwidth, 1)

        # Betas of the T steps, by default evenly spaced
        require_int("num_train_timesteps", num_train_timesteps, 1, LONGEST_CLOCK)
        require_number("beta_start", beta_start, 0, 1)
        require_number("beta_end", beta_end, 0, 1)
        require(betas is None or are_numbers(betas), "betas", "None or a list of numbers", betas)
        if betas is None:
            even = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
            betas = even.tolist()
        limit = f"as many as `num_train_timesteps`={num_train_timesteps}"
        require(len(betas) == num_train_timesteps, "betas", limit, len(betas))
        in_range = all(is_number(beta, 0, 1) and beta > 0 for beta in betas)
        require(in_range, "betas", "numbers in (0, 1]", betas)
        self._betas = torch.tensor(betas, dtype=torch.float64)

        # The one matrix of "band" and "matrix"; those of "gaussian" are made when they are needed.
        self._jump = None
        if bandwidth is not None:
            self._jump = band_matrix(vocab_size, bandwidth)
        if transitions is not None:
            check_matrix(transitions, vocab_size)
            self._jump = transitions.double()
        self._set_up()

        if self._jump is None:
            self._keep_products()
        self._report_if_not_mixed()

    def alpha(self, timesteps: Time) -> Tensor:
        """Product of 1 - beta over the steps until `timesteps`, float64, same shape."""
        start = torch.ones(1, dtype=torch.float64)
        products = torch.cat([start, (1 - self._betas).cumprod(0)])  # (T + 1,)
        return products[self._step_index(torch.as_tensor(timesteps, dtype=torch.float64))]

    def matrix(self, step: int) -> Tensor:
        """(V, V) Q_step, float64, for a step from 1 to T."""
        beta = float(self._betas[step - 1])
        size = self.config.vocab_size
        if self._jump is None:
            return gaussian_matrix(size, beta)
        return torch.lerp(torch.eye(size, dtype=torch.float64), self._jump, beta)

    def prior_bound(self, tokens: Tensor) -> Tensor:
        """(B, L) nats of KL(q(x_1 | x_0 = tokens) || uniform), the bound's prior term."""
        # Equal tokens have equal rows, which are computed once.
        different, inverse = tokens.unique(return_inverse=True)
        end = self.transition(different, 1.0)  # one row a different token, (..., V)
        return torch.xlogy(end, end * self.config.vocab_size).sum(dim=-1)[inverse]

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        if self._jump is not None:
            return self._jump_series(probs, start, end, self._jump)

        x = probs.clone()
        for rows, first, last in self._intervals(start, end):
            # The stored product goes most of the way, single steps the rest.
            nearest = self._nearest_stored(first, last)
            if nearest > first:
                x[rows] = x[rows] @ self._stored[nearest // self._spacing].to(x)
            for step in range(nearest + 1, last + 1):
                x[rows] = x[rows] @ self.matrix(step).to(x)
        return x

    def _diffuse_back(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        if self._jump is not None:
            return self._jump_series(values, start, end, self._jump.T)

        # Each matrix is symmetric, but they do not commute: the last step comes first.
        x = values.clone()
        for rows, first, last in self._intervals(start, end):
            nearest = self._nearest_stored(first, last)
            for step in range(last, nearest, -1):
                x[rows] = x[rows] @ self.matrix(step).to(x)
            if nearest > first:
                x[rows] = x[rows] @ self._stored[nearest // self._spacing].T.to(x)
        return x

    def _nearest_stored(self, first: int, last: int) -> int:
        """The step until which a stored product goes; products begin at time 0."""
        return last - last % self._spacing if first == 0 else first

    def _jump_series(self, x: Tensor, start: Tensor, end: Tensor, jump: Tensor) -> Tensor:
        """Sum over j of P(j jumps between the times) x jump^j, (N, V)."""
        weights = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        for rows, first, last in self._intervals(start, end):
            # How many of the steps in between jump; rows need not have equally many terms.
            negligible = torch.finfo(x.dtype).eps / 10
            counts = jump_counts(self._betas[first:last], negligible).to(x.device)
            weights = torch.nn.functional.pad(weights, (0, max(0, len(counts) - weights.shape[1])))
            weights[rows, : len(counts)] = counts

        jump = jump.to(x)
        weights = weights.to(x)  # (N, J)
        total = weights[:, :1] * x  # (N, V)
        for count in range(1, weights.shape[1]):
            x = x @ jump
            total += weights[:, count : count + 1] * x
        return total

    def _intervals(self, start: Tensor, end: Tensor) -> list[tuple[Tensor, int, int]]:
        """`(rows, first step, last step)` of the rows with the same times."""
        steps = torch.stack([self._step_index(start), self._step_index(end)], dim=1)
        different, inverse = steps.unique(dim=0, return_inverse=True)

        # A product of matrices is taken once for all rows that need it.
        intervals = []
        for index, (first, last) in enumerate(different.tolist()):
            rows = (inverse == index).nonzero().squeeze(1)
            intervals.append((rows, first, last))
        return intervals

    def _step_index(self, times: Tensor) -> Tensor:
        return (times * len(self._betas)).round().long()

    def _keep_products(self):
        """Keep each `_spacing`-th product, in float32 if the vocabulary is large."""
        steps = len(self._betas)
        size = self.config.vocab_size
        dtype = torch.float64 if size <= FLOAT64_VOCABULARY else torch.float32
        count = max(math.isqrt(steps), min(steps, STORED_NUMBERS // size**2))
        self._spacing = -(-steps // count)

        # Times are looked up from the stored product before them, so there are about sqrt(T) at least.
        product = torch.eye(size, dtype=dtype)
        self._stored = [product]
        quick = steps * size**3 < QUICK_MULTIPLICATIONS
        for step in progress_bar(range(1, steps + 1), desc="products of T matrices", disable=quick):
            product = product @ self.matrix(step).to(dtype)
            if step % self._spacing == 0:
                self._stored.append(product)

    def _report_if_not_mixed(self):
        size = self.config.vocab_size
        probes = torch.linspace(0, size - 1, min(size, MIXING_PROBES)).long()
        nats = float(self.prior_bound(probes).max())
        if nats > MIXED:
            logger.warning(
                f"After {len(self._betas)} steps the chain is {nats:.3g} nats from uniform noise, for which the bound "
                "pays (`prior_bound`). Larger `betas` mix better."
            )


def check_given(name: str, value: Any, kernel: str, owner: str):
    """Raise a `ValueError` unless the argument is given with the kernel that owns it, and with no other."""
    goes_together = (value is not None) == (kernel == owner)
    require(goes_together, name, f'given with kernel "{owner}" only', value)


def gaussian_matrix(vocab_size: int, beta: float) -> Tensor:
    """(V, V) of D3PM's discretised Gaussian, float64, doubly stochastic."""
    offsets = torch.arange(vocab_size, dtype=torch.float64)
    shape = torch.exp(-4 * offsets**2 / ((vocab_size - 1) ** 2 * beta))
    probs = shape / (2 * shape.sum() - 1)  # of each distance; all but 0 occur on both sides
    return with_diagonal(probs[distances(vocab_size)])


def band_matrix(vocab_size: int, bandwidth: int) -> Tensor:
    """(V, V) of D3PM's band for beta = 1, float64, doubly stochastic: 1 / V within `bandwidth` of the diagonal."""
    inside = distances(vocab_size) <= bandwidth
    return with_diagonal(inside.double() / vocab_size)


def distances(vocab_size: int) -> Tensor:
    """(V, V) distances between ids."""
    ids = torch.arange(vocab_size)
    return (ids.unsqueeze(1) - ids).abs()


def with_diagonal(matrix: Tensor) -> Tensor:
    """The matrix with the diagonal that makes its rows sum to 1."""
    matrix.fill_diagonal_(0.0)
    return matrix + torch.diag(1 - matrix.sum(dim=-1))


def jump_counts(betas: Tensor, negligible: float) -> Tensor:
    """(J,) probabilities of 0 to J - 1 jumps, each step jumping with `betas`; less than `negligible` is lost."""
    counts = torch.ones(1, dtype=torch.float64)
    for beta in betas.tolist():
        # One more step: none of it, or one jump more.
        counts = torch.nn.functional.pad(counts, (0, 1))
        counts = (1 - beta) * counts + beta * counts.roll(1)
        # The loss of all steps together stays below what is negligible.
        if counts[-1] < negligible / (2 * len(betas)):
            counts = counts[:-1]
    return counts


def check_matrix(transitions: Tensor, vocab_size: int):
    """Raise a `ValueError` unless `transitions` is a doubly stochastic matrix (V, V)."""
    limit = "a tensor of finite numbers with two axes"
    require(is_table(transitions, 2), "transitions", limit, transitions)
    shape = (vocab_size, vocab_size)
    require(transitions.shape == shape, "transitions", f"{shape}", tuple(transitions.shape))

    # Of all rows and columns, the one that is farthest from 1.
    sums = torch.cat([transitions.double().sum(dim=0), transitions.double().sum(dim=1)])
    worst = float(sums[(sums - 1).abs().argmax()])
    if (transitions < 0).any() or abs(worst - 1) > 1e-6:
        raise ValueError(
            "`transitions` must be doubly stochastic, not negative and with rows and columns that sum to 1, got a "
            f"smallest entry of {float(transitions.min()):.3g} and a sum of {worst:.6g}."
        )
