"""Power laws by least squares on logarithms, and how sure they are.

Shapes: P points, R resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Losses that are never gone below, as shares of the least loss seen, among which a fit chooses.
FLOOR_SHARES = np.linspace(0, 0.999, 1_000)


class PowerLaw(NamedTuple):
    """y = floor + scale * x ** -exponent.

    Example:
        >>> PowerLaw(scale=8.0, exponent=0.5, floor=1.0).at(16.0)
        3.0
    """

    scale: float
    exponent: float
    floor: float = 0.0

    def at(self, x: float) -> float:
        return self.floor + self.scale * x**-self.exponent


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """The power law without a floor: a straight line through logarithms.

    Args:
        x: P numbers above 0, two of them different.
        y: P numbers above 0.

    Raises:
        ValueError: if there are fewer than two different x.

    Example:
        >>> law = fit_power_law([1, 10, 100], [8, 4, 2])
        >>> round(law.exponent, 3), round(law.at(1_000), 3)
        (0.301, 1.0)
    """
    if len(set(x)) < 2:
        raise ValueError(f"`x` must hold two different numbers, got {list(x)}.")
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(float(np.exp(intercept)), float(-slope))


def fit_power_law_with_floor(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """The power law with the floor, among `FLOOR_SHARES`, at which predicted and given y differ least in logarithms.

    With three points it goes through all of them, and says nothing of how well it fits.

    Raises:
        ValueError: if there are fewer than three different x.
    """
    if len(set(x)) < 3:
        raise ValueError(f"`x` must hold three different numbers, got {list(x)}.")
    best = None
    for share in FLOOR_SHARES:
        floor = share * min(y)
        law = fit_power_law(x, np.asarray(y) - floor)
        # Errors in y itself, relative: those of what is above a high floor would be exaggerated.
        predicted = floor + np.array([law.at(value) for value in x])
        error = float(np.square(np.log(predicted) - np.log(y)).sum())
        if best is None or error < best[0] - 1e-15:
            best = (error, law._replace(floor=float(floor)))
    assert best is not None
    return best[1]


def resampled_losses(
    row_nats: np.ndarray,
    row_tokens: np.ndarray,
    num_resamples: int,
    seed: int = 0,
) -> np.ndarray:
    """Losses of models on resampled held-out rows, the same rows for all models.

    Args:
        row_nats: (M, rows) nats of each row under each of M models.
        row_tokens: (rows,) tokens of each row.

    Returns:
        (R, M) nats per token.
    """
    generator = np.random.default_rng(seed)
    num_rows = len(row_tokens)
    losses = []
    for _ in range(num_resamples):
        chosen = generator.integers(num_rows, size=num_rows)
        losses.append(row_nats[:, chosen].sum(axis=1) / row_tokens[chosen].sum())
    return np.array(losses)


def best_of_budgets(
    budgets: Sequence[float],
    losses: Sequence[float],
) -> dict[float, int]:
    """The place of the least loss of each budget, rising.

    Example:
        >>> best_of_budgets([1, 1, 4], [3.0, 2.5, 2.0])
        {1: 1, 4: 2}
    """
    best = {}
    for place, budget in enumerate(budgets):
        if budget not in best or losses[place] < losses[best[budget]]:
            best[budget] = place
    return dict(sorted(best.items()))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which nine tenths of bootstrapped values lie."""
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)
