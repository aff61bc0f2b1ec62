"""The table, the picture and the findings of benchmarks/two_level.py.

A record is a finished cell with its figures; a row of the table is a kind of cell over its seeds.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parts.common.pictures import use_logarithmic_x
from parts.common.results import Record, write_report
from parts.common.tables import Column, TableRow, markdown_table, standard_error, values_of
from parts.two_level.config import ONE_LEVEL, SYSTEMS, TOKENS, TWO_LEVEL, TwoLevelConfig
from text_diffusers.evaluation.plots import pyplot, save

COLUMNS = {
    "flops": Column("GFLOPs a text", ".2f", scale=1e-9),
    "consistency": Column("consistency", ".3f"),
    "excess": Column("above chance", ".3f"),
    "class_distance": Column("classes, distance", ".3f"),
    "fluency": Column("fluency", ".3f"),
    "generative_perplexity": Column("generative perplexity", ".1f"),
    "distinct_1": Column("distinct-1", ".3f"),
    "distinct_2": Column("distinct-2", ".3f"),
    "tokens_per_second": Column("tokens a second", ",.0f"),
    "peak_memory": Column("peak MiB", ",.0f"),
}
# Figures in which two levels may be worse than a baseline.
MORE_IS_BETTER = {
    "consistency": True,
    "excess": True,
    "class_distance": False,
    "fluency": True,
    "generative_perplexity": False,
    "distinct_2": True,
}
# Rows of panels of the picture.
DRAWN = ("consistency", "excess")

# How systems are compared; plans and real texts stand beside them.
FLOPS = "equal FLOPs"
FORWARDS = "equal forwards"
PLANS_TOLD = "plans"
REAL = "real texts"

# Two levels are claimed to be more consistent at budgets of up to so many forwards.
SMALL_BUDGET = 8
# They are claimed to need so many times fewer FLOPs than tokens, at equal forwards.
FLOPS_RATIO = 4


@dataclass
class Row:
    """A row of the table: the cells of a system, or the real texts, over all seeds.

    Attributes:
        mode: how it is compared, such as `FLOPS`.
        length: of its texts, in tokens.
        budget: forwards of the token model; 0 of real texts.
        name: a system, a plan, or real texts.
        steps: numbers of steps; empty if none fit.
        records: figures of its cells, one a seed.
    """

    mode: str
    length: int
    budget: int
    name: str
    steps: str = ""
    records: list[Record] = field(default_factory=list)

    def values(self, figure: str) -> list[float]:
        """A figure of each seed, in the unit of the table."""
        scale = COLUMNS[figure].scale
        return [scale * value for value in values_of(self.records, figure)]

    def mean(self, figure: str) -> float | None:
        values = self.values(figure)
        return statistics.fmean(values) if values else None

    def error(self, figure: str) -> float:
        """Standard error of the mean over seeds; 0 of one."""
        return standard_error(self.values(figure))


def markdown(rows: Sequence[Row]) -> str:
    """A line a row; mean ± standard error over seeds."""
    lines = []
    for row in rows:
        # A row without texts says why.
        steps = row.steps
        if not row.records:
            steps = "not written" if row.steps else "does not fit"
        names = [f"{row.length:,}", row.mode, str(row.budget or ""), row.name, steps]
        lines.append(TableRow(names, row.records))

    titles = ["tokens", "compared at", "budget", "texts of", "steps"]
    return markdown_table(titles, lines, COLUMNS, spread=standard_error, left=(1, 3))


# --- findings


def compared(rows: Sequence[Row], mode: str) -> list[dict[str, Row]]:
    """`{system: row}` of all comparisons of this kind whose two-level texts are there."""
    systems = {}
    for row in rows:
        if row.mode == mode and row.records:
            systems.setdefault((row.length, row.budget), {})[row.name] = row
    return [by_name for by_name in systems.values() if TWO_LEVEL in by_name]


def beside_baselines(rows: Sequence[Row], figure: str) -> Iterator[tuple[Row, Row]]:
    """Yield the rows of two levels and of a baseline at equal FLOPs, wherever both have a figure."""
    for systems in compared(rows, FLOPS):
        two_level = systems[TWO_LEVEL]
        for name in (ONE_LEVEL, TOKENS):
            if name in systems and two_level.values(figure) and systems[name].values(figure):
                yield two_level, systems[name]


def place(row: Row) -> str:
    """The length and the budget of a row, in words."""
    return f"{row.length:,} tokens, {row.budget} forwards"


def findings(rows: Sequence[Row]) -> list[str]:
    """Whether the claims are met, and where two levels are worse than a baseline."""
    # 1. The claims
    lines = []
    for figure in DRAWN:
        lines += consistency_findings(rows, figure)
    lines += flops_findings(rows)

    # 2. Everything in which a baseline is better
    for figure, more_is_better in MORE_IS_BETTER.items():
        worse = []
        for two_level, other in beside_baselines(rows, figure):
            mean = two_level.mean(figure)
            other_mean = other.mean(figure)
            is_worse = mean < other_mean if more_is_better else mean > other_mean
            if is_worse:
                values = f"{mean:.3f} against {other_mean:.3f} of {other.name}"
                worse.append(f"{place(two_level)}: {values}")

        if worse:
            lines.append(f"worse in {COLUMNS[figure].title} at equal FLOPs: {'; '.join(worse)}.")
    return lines


def consistency_findings(rows: Sequence[Row], figure: str) -> list[str]:
    """Whether two levels are more consistent, in that figure, at equal FLOPs, where a budget is small."""
    gains = []
    losses = []
    num_sure = 0
    for two_level, other in beside_baselines(rows, figure):
        if two_level.budget > SMALL_BUDGET:
            continue

        # Systems are trained independently, so the variances of their means add up.
        gain = two_level.mean(figure) - other.mean(figure)
        error = math.hypot(two_level.error(figure), other.error(figure))
        line = f"{place(two_level)}, {other.name}: {gain:+.3f} ± {error:.3f}"

        # No difference counts as a loss.
        (gains if gain > 0 else losses).append(line)
        num_sure += 0 < 2 * error < gain

    if not gains and not losses:
        return []

    title = COLUMNS[figure].title
    verdict = "missed" if losses else "met"
    claim = (
        f"{title}: two levels are more consistent than both baselines at equal FLOPs of up to "
        f"{SMALL_BUDGET} forwards: {verdict}, {len(gains)} of {len(gains) + len(losses)} comparisons, "
        f"{num_sure} by more than two standard errors."
    )
    return [claim, *(f"gain of {title} at {line}." for line in gains + losses)]


def flops_findings(rows: Sequence[Row]) -> list[str]:
    """FLOPs of the token model over those of two levels, with as many steps, of the longest texts."""
    pairs = [systems for systems in compared(rows, FORWARDS) if TOKENS in systems]
    if not pairs:
        return []

    # Attention makes the longest texts the dearest.
    longest = max(systems[TOKENS].length for systems in pairs)
    ratios = {}
    for systems in pairs:
        flops = systems[TWO_LEVEL].mean("flops")
        if systems[TOKENS].length == longest and flops:
            ratios[systems[TOKENS].budget] = systems[TOKENS].mean("flops") / flops

    listed = ", ".join(f"{ratio:.1f} at {budget}" for budget, ratio in ratios.items())
    verdict = "met" if min(ratios.values()) >= FLOPS_RATIO else "missed"
    return [
        f"at {longest:,} tokens and as many forwards, at least {FLOPS_RATIO} times fewer FLOPs than "
        f"the token model: {verdict}: {listed}."
    ]


# --- the picture


def plot(rows: Sequence[Row], path: str | Path) -> Path:
    """Draw the picture of docs/two_level.md: consistency over FLOPs of a text, a column a length.

    The second row of panels is the consistency above chance. Bars are standard errors over seeds.
    """
    lengths = list(dict.fromkeys(row.length for row in rows))
    size = (4 * len(lengths), 7)
    figure, panels = pyplot().subplots(
        len(DRAWN), len(lengths), figsize=size, sharey="row", squeeze=False
    )

    for name, line in zip(DRAWN, panels, strict=True):
        for length, axes in zip(lengths, line, strict=True):
            shown = [row for row in rows if row.length == length and row.values(name)]
            draw_panel(axes, shown, name)
            axes.set_title(f"{length:,} tokens")
        line[0].set_ylabel(f"{COLUMNS[name].title}, by an independent judge")
    panels[0][-1].legend(fontsize=8)
    return save(figure, path, dpi=120)


def draw_panel(axes: Any, rows: Sequence[Row], figure: str):
    """One figure of the systems and of real texts, which have no FLOPs and are lines."""
    for system in SYSTEMS:
        # A cell may be compared both ways, and is one point.
        points = set()
        for row in rows:
            if row.name == system and row.mode in (FLOPS, FORWARDS):
                point = (row.mean("flops"), row.mean(figure), row.error(figure))
                points.add(point)

        if points:
            flops, means, errors = zip(*sorted(points), strict=True)
            style = {"marker": "o", "markersize": 4, "capsize": 2}
            axes.errorbar(flops, means, yerr=errors, label=system, **style)

    for row in rows:
        if row.mode == REAL:
            # Dashed: what texts can reach. Dotted: texts without a kind.
            dashes = "--" if row.name == REAL else ":"
            style = {"color": "black", "linestyle": dashes, "linewidth": 1}
            axes.axhline(row.mean(figure), label=row.name, **style)

    use_logarithmic_x(axes, digits=(1, 2, 5))
    axes.set_xlabel("GFLOPs a text")


def report(options: TwoLevelConfig, rows: list[Row], notes: list[str]):
    """Print and save the table with what it says, and draw the picture."""
    seeds = set()
    for row in rows:
        seeds.update(values_of(row.records, "seed"))

    text = f"Seeds {sorted(seeds)}, {options.train_minutes:g} minutes of training each.\n\n{markdown(rows)}\n\n"
    text += "\n".join(f"- {line}" for line in (*findings(rows), *notes))
    write_report(options.folder, "two_level", text, [asdict(row) for row in rows])

    print(f"Plot: {plot(rows, options.picture or options.folder / 'two_level.png')}")
