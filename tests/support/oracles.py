"""Independent answers for the tests: dense matrices, enumeration over all sequences, golden numbers.

Shapes: V vocabulary size, L sequence length, K data tokens of an enumerable source. The rows of a matrix are the state
before, its columns the state after.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent.parent / "golden"
SCHEDULE_NAMES = {"loglinear": "linear", "cosine": "cosine"}


def golden_cases(file: str, kind: str) -> list[dict]:
    """The cases of one kind, each with the tolerance that applies to it."""
    content = json.loads((GOLDEN / f"{file}.json").read_text())
    cases = [case for case in content["cases"] if case["kind"] == kind]
    for case in cases:
        case["tolerance"] = content["tolerance"] | case.get("tolerance", {})
        schedule = case["inputs"].get("schedule", "loglinear")
        case["inputs"]["schedule"] = SCHEDULE_NAMES[schedule]
    return cases


def assert_golden(got: torch.Tensor, want: list, case: dict):
    limits = case["tolerance"][str(got.dtype).removeprefix("torch.")]
    torch.testing.assert_close(
        got.double(), float64(want), atol=limits["atol"], rtol=limits["rtol"]
    )


def float64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def alpha_by_definition(schedule: str, t: float) -> float:
    """alpha(t), written again from the papers' definitions, rescaled to run from 1 to 0."""

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def geometric(time):
        return math.exp(-math.exp(math.log(1e-4) + time * (math.log(20.0) - math.log(1e-4))))

    raw = {
        "linear": lambda x: 1 - x,
        "reciprocal": lambda x: 1 - x,
        "cosine": lambda x: math.cos(math.pi * x / 2) ** 2,
        "sigmoid": lambda x: sigmoid(3 - 6 * x),
        "sqrt": lambda x: 1 - math.sqrt(x),
        "geometric": geometric,
    }[schedule]
    return (raw(t) - raw(1)) / (raw(0) - raw(1))


def transition_matrix(
    kernel: str, alpha: float, vocab_size: int, mask_token_id: int | None = None
) -> np.ndarray:
    """(V, V) probability of going from a row's token to a column's while a token survives with probability alpha."""
    noise = np.full((vocab_size, vocab_size), 1 / vocab_size)
    if kernel == "absorbing":
        noise = np.zeros((vocab_size, vocab_size))
        noise[:, mask_token_id] = 1
    return alpha * np.eye(vocab_size) + (1 - alpha) * noise


def bayes_posterior(
    between: np.ndarray, until: np.ndarray, current: int, clean: np.ndarray
) -> np.ndarray:
    """q(x_s | x_t = current, x_0 ~ clean): `until` leads from x_0 to x_s, `between` from x_s to x_t."""
    joint = (clean @ until) * between[:, current]
    return joint / joint.sum()


def chi_square_passes(counts: np.ndarray, probs: np.ndarray, level: float = 1e-4) -> bool:
    """Pearson's test; impossible outcomes must not occur, rare ones are pooled."""
    from scipy.stats import chisquare

    counts, probs = np.asarray(counts, dtype=float).ravel(), np.asarray(probs, dtype=float).ravel()
    if counts[probs < 1e-12].any():
        return False
    expected = probs * counts.sum()
    common = expected >= 5
    observed, wanted = list(counts[common]), list(expected[common])
    if expected[~common].sum() > 1e-6:
        observed.append(counts[~common].sum())
        wanted.append(expected[~common].sum())
    wanted = np.array(wanted) * sum(observed) / sum(wanted)
    return len(observed) < 2 or chisquare(observed, wanted).pvalue > level


class MarkovSource:
    """x_1 ~ initial, x_{l+1} ~ transition[x_l], L tokens out of K, small enough to enumerate; the mask has id K."""

    def __init__(self, initial, transition, length: int):
        self.initial, self.transition, self.length = np.array(initial), np.array(transition), length
        self.num_tokens = len(self.initial)
        self.sequences = np.array(list(itertools.product(range(self.num_tokens), repeat=length)))
        self.probs = self.initial[self.sequences[:, 0]]
        for before, after in itertools.pairwise(range(length)):
            self.probs = (
                self.probs * self.transition[self.sequences[:, before], self.sequences[:, after]]
            )

    @classmethod
    def golden(cls) -> "MarkovSource":
        inputs = golden_cases("sampling", "markov_source")[0]["inputs"]
        return cls(inputs["initial"], inputs["transition"], inputs["L"])

    @property
    def entropy(self) -> float:
        """In nats per sequence."""
        return float(-(self.probs * np.log(self.probs)).sum())

    def masked_denoiser(self) -> torch.Tensor:
        """(K + 1, ..., K + 1, L, K + 1) log-probabilities of x_0 given a pattern in which K is the mask."""
        size = self.num_tokens + 1
        table = np.zeros((size,) * self.length + (self.length, size))
        for pattern in itertools.product(range(size), repeat=self.length):
            fits = (
                np.all((np.array(pattern) == self.num_tokens) | (self.sequences == pattern), axis=1)
                * self.probs
            )
            for position in range(self.length):
                for token in range(self.num_tokens):
                    table[pattern][position, token] = (
                        fits[self.sequences[:, position] == token].sum() / fits.sum()
                    )
        with np.errstate(divide="ignore"):
            return torch.tensor(np.log(table))

    def uniform_denoiser(self, alpha: float) -> torch.Tensor:
        """(K, ..., K, L, K) log-probabilities of x_0 given x_t under the uniform kernel."""
        matrix = transition_matrix("uniform", alpha, self.num_tokens)
        table = np.zeros((self.num_tokens,) * self.length + (self.length, self.num_tokens))
        for noisy in itertools.product(range(self.num_tokens), repeat=self.length):
            weight = self.probs * np.prod(matrix[self.sequences, np.array(noisy)], axis=1)
            for position in range(self.length):
                np.add.at(
                    table[noisy][position], self.sequences[:, position], weight / weight.sum()
                )
        return torch.tensor(np.log(table))


class TableDenoiser(torch.nn.Module):
    """A denoiser whose predictions are looked up: `table` (V, ..., V, L, V) by input tokens, or a function of t."""

    def __init__(self, table, vocab_size: int):
        super().__init__()
        self.table = table
        self.calls, self.rows = 0, 0
        self.config = type("Config", (), {"vocab_size": vocab_size, "max_length": 64})
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    @property
    def device(self):
        return self.anchor.device

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        self.calls, self.rows = self.calls + 1, self.rows + len(input_ids)
        table = (
            self.table(float(torch.as_tensor(timestep).flatten()[0]))
            if callable(self.table)
            else self.table
        )
        logits = table[tuple(input_ids.unbind(dim=1))]  # (B, L, V)
        output = type("Output", (), {})()
        output.logits = logits if positions is None else logits[positions]
        return output


class TimedDenoiser(TableDenoiser):
    """A denoiser with one table for each step of a grid: `tables[i]` at time i / len(tables)."""

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        self.calls, self.rows = self.calls + 1, self.rows + len(input_ids)
        steps = (
            (torch.as_tensor(timestep) * len(self.table))
            .round()
            .long()
            .expand(len(input_ids))
            .tolist()
        )
        logits = torch.stack(
            [self.table[i][tuple(row)] for i, row in zip(steps, input_ids, strict=True)]
        )
        output = type("Output", (), {})()
        output.logits = logits if positions is None else logits[positions]
        return output
