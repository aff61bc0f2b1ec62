"""What the trained models of benchmarks/scaling.py say together: the least loss at each compute, and its power law."""

import statistics
from typing import Any, NamedTuple

import numpy as np

from parts.common.results import Record
from parts.scaling.config import ScalingConfig
from parts.scaling.fits import (
    PowerLaw,
    best_of_budgets,
    fit_power_law,
    fit_power_law_with_floor,
    interval,
    resampled_losses,
)

Interval = tuple[float, float]


class Frontier(NamedTuple):
    """The best size at each budget, and power laws through its losses.

    Attributes:
        best: the record of the best size at each budget, the mean over seeds, from the least budget to the largest.
        law: of the loss against FLOPs, without a floor; None with fewer than two budgets.
        exponent: between which nine tenths of its bootstrapped exponents lie.
        with_floor: the same law with a floor; None with fewer than four budgets, which it would go through.
        growth: the law of the best number of parameters, all of them, against FLOPs.
        growth_exponent: as `exponent`, of `growth`.
    """

    best: list[Record]
    law: PowerLaw | None
    exponent: Interval
    with_floor: PowerLaw | None
    growth: PowerLaw | None
    growth_exponent: Interval


def means_over_seeds(records: list[Record]) -> list[Record]:
    """One record for each size and budget, with the mean of figures over seeds, and of the nats of each row."""
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault((record["size"], record["budget"]), []).append(record)

    means = []
    for seeds in groups.values():
        mean: dict[str, Any] = dict(seeds[0])
        for name, value in seeds[0].items():
            if isinstance(value, float) and name != "budget":
                mean[name] = statistics.fmean(record[name] for record in seeds)
        mean["row_nats"] = np.mean([record["row_nats"] for record in seeds], axis=0)
        mean["num_seeds"] = len(seeds)
        means.append(mean)
    return sorted(means, key=lambda mean: (mean["budget"], mean["parameters"]))


def frontier_of(records: list[Record], options: ScalingConfig) -> Frontier:
    """The frontier of one kernel. Errors are those of other held-out rows; of other seeds only where several are.

    Args:
        records: of its finished runs.
    """
    means = means_over_seeds(records)
    budgets = [mean["budget"] for mean in means]
    best = best_of_budgets(budgets, [mean["nats_per_token"] for mean in means])
    best_means = [means[place] for place in best.values()]
    if len(best) < 2:
        nothing = (float("nan"), float("nan"))
        return Frontier(best_means, None, nothing, None, None, nothing)

    # 1. The laws
    law, growth = laws_through(best_means)
    with_floor = None
    if len(best) > 3:
        flops = [mean["flops"] for mean in best_means]
        with_floor = fit_power_law_with_floor(
            flops, [mean["nats_per_token"] for mean in best_means]
        )

    # 2. The same of resampled rows, and seeds; the best size may be another one
    exponents = []
    growth_exponents = []
    generator = np.random.default_rng(0)
    row_tokens = np.array(means[0]["row_tokens"])
    per_run = resampled_losses(
        np.array([record["row_nats"] for record in records]), row_tokens, options.num_resamples
    )
    for losses in per_run:
        resampled = resampled_means(records, losses, means, generator)
        values = [mean["nats_per_token"] for mean in resampled]
        chosen = best_of_budgets(budgets, values)
        new_law, new_growth = laws_through([resampled[place] for place in chosen.values()])
        exponents.append(new_law.exponent)
        growth_exponents.append(-new_growth.exponent)
    return Frontier(
        best_means, law, interval(exponents), with_floor, growth, interval(growth_exponents)
    )


def laws_through(best: list[Record]) -> tuple[PowerLaw, PowerLaw]:
    """Power laws of the loss, and of the parameters, against the FLOPs of the best runs."""
    flops = [mean["flops"] for mean in best]
    law = fit_power_law(flops, [mean["nats_per_token"] for mean in best])
    growth = fit_power_law(flops, [mean["parameters"] for mean in best])
    return law, growth


def resampled_means(
    records: list[Record],
    losses: np.ndarray,
    means: list[Record],
    generator: np.random.Generator,
) -> list[Record]:
    """The means, each of as many seeds, drawn with replacement, with the losses of resampled rows.

    Args:
        losses: of `records`, on the resampled rows.
    """
    resampled = []
    for mean in means:
        places = [
            place
            for place, record in enumerate(records)
            if (record["size"], record["budget"]) == (mean["size"], mean["budget"])
        ]
        chosen = generator.choice(places, size=len(places))
        resampled.append(mean | {"nats_per_token": float(losses[chosen].mean())})
    return resampled
