"""The table, the picture and the findings of benchmarks/two_level.py.

A record is a finished cell with its figures; a row of the table is a kind of cell over its seeds.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from long_texts.config import ONE_LEVEL, TOKENS, TWO_LEVEL

Record = dict[str, Any]

COLUMNS = {  # name in a record: title, format
    "flops": ("GFLOPs a text", ".2f"),
    "consistency": ("consistency", ".3f"),
    "excess": ("above chance", ".3f"),
    "class_distance": ("classes, distance", ".3f"),
    "fluency": ("fluency", ".3f"),
    "generative_perplexity": ("generative perplexity", ".1f"),
    "distinct_1": ("distinct-1", ".3f"),
    "distinct_2": ("distinct-2", ".3f"),
    "tokens_per_second": ("tokens a second", ",.0f"),
    "peak_memory": ("peak MiB", ",.0f"),
}
SCALES = {"flops": 1e-9}
BETTER = {
    "consistency": 1,
    "excess": 1,
    "class_distance": -1,
    "fluency": 1,
    "generative_perplexity": -1,
    "distinct_2": 1,
}
FLOPS, FORWARDS, PLANS_TOLD, REAL = "equal FLOPs", "equal forwards", "plans", "real texts"
SMALL_BUDGET, FLOPS_RATIO = 8, 4


@dataclass
class Row:
    """Cells of one kind: of a `system`, or the real texts, at a `length`; compared by `mode` at a `budget`."""

    mode: str
    length: int
    budget: int
    name: str
    steps: str = ""
    records: list[Record] = field(default_factory=list)

    def values(self, figure: str) -> list[float]:
        scale = SCALES.get(figure, 1)
        return [scale * record[figure] for record in self.records if record.get(figure) is not None]

    def mean(self, figure: str) -> float | None:
        values = self.values(figure)
        return statistics.fmean(values) if values else None

    def error(self, figure: str) -> float:
        """Standard error of the mean over seeds; 0 of one."""
        values = self.values(figure)
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0

    def shown(self, figure: str, style: str) -> str:
        mean = self.mean(figure)
        if mean is None:
            return ""
        spread = f" ± {self.error(figure):{style}}" if len(self.values(figure)) > 1 and self.error(figure) else ""
        return f"{mean:{style}}{spread}"


def markdown(rows: Sequence[Row]) -> str:
    """A line a row; mean ± standard error over seeds."""
    shown = {name: column for name, column in COLUMNS.items() if any(row.mean(name) is not None for row in rows)}
    lines = [["tokens", "compared at", "budget", "texts of", "steps", *(title for title, _ in shown.values())]]
    lines.append(["---:", "---", "---:", "---", "---:", *["---:"] * len(shown)])
    for row in rows:
        cells = [row.shown(name, style) for name, (_, style) in shown.items()]
        steps = row.steps if row.records else "not written" if row.steps else "does not fit"
        lines.append([f"{row.length:,}", row.mode, str(row.budget or ""), row.name, steps, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compared(rows: Sequence[Row], mode: str) -> list[tuple[int, int, dict[str, Row]]]:
    """`(length, budget, {system: row})` of all comparisons of this kind whose two-level texts are there."""
    found: dict[tuple[int, int], dict[str, Row]] = {}
    for row in rows:
        if row.mode == mode and row.records:
            found.setdefault((row.length, row.budget), {})[row.name] = row
    return [(length, budget, systems) for (length, budget), systems in found.items() if TWO_LEVEL in systems]


def findings(rows: Sequence[Row]) -> list[str]:
    """What the table says of the claims, and where two levels are worse than a baseline."""
    lines = [line for figure in ("consistency", "excess") for line in consistency_findings(rows, figure)]
    lines += flops_findings(rows)
    for figure, sign in BETTER.items():
        worse = []
        for length, budget, systems in compared(rows, FLOPS):
            own = systems[TWO_LEVEL].mean(figure)
            for name in (ONE_LEVEL, TOKENS):
                other = systems[name].mean(figure) if name in systems else None
                if own is not None and other is not None and sign * (own - other) < 0:
                    worse.append(f"{length:,} tokens, {budget} forwards: {own:.3f} against {other:.3f} of {name}")
        if worse:
            lines.append(f"worse in {COLUMNS[figure][0]} at equal FLOPs: {'; '.join(worse)}.")
    return lines


def consistency_findings(rows: Sequence[Row], figure: str) -> list[str]:
    """Whether two levels are more consistent, in that figure, at equal FLOPs, where a budget is small."""
    held, failed, sure = [], [], 0
    for length, budget, systems in compared(rows, FLOPS):
        if budget > SMALL_BUDGET:
            continue
        own = systems[TWO_LEVEL]
        for name in (ONE_LEVEL, TOKENS):
            other = systems.get(name)
            if other is None or other.mean(figure) is None or own.mean(figure) is None:
                continue
            gain: Any = own.mean(figure) - other.mean(figure)
            error = math.hypot(own.error(figure), other.error(figure))
            text = f"{length:,} tokens, {budget} forwards, {name}: {gain:+.3f} ± {error:.3f}"
            (held if gain > 0 else failed).append(text)
            sure += 0 < 2 * error < gain
    if not held and not failed:
        return []
    what = COLUMNS[figure][0]
    claim = (
        f"{what}: two levels are more consistent than both baselines at equal FLOPs of up to {SMALL_BUDGET} forwards"
    )
    count = f"{len(held)} of {len(held) + len(failed)} comparisons, {sure} by more than two standard errors"
    return [
        f"{claim}: {'met' if not failed else 'missed'}, {count}.",
        *(f"gain of {what} at {text}." for text in held + failed),
    ]


def flops_findings(rows: Sequence[Row]) -> list[str]:
    """FLOPs of the token model over those of two levels, with as many steps, of the longest texts."""
    pairs = [
        (length, budget, systems[TOKENS].mean("flops"), systems[TWO_LEVEL].mean("flops"))
        for length, budget, systems in compared(rows, FORWARDS)
        if TOKENS in systems
    ]
    if not pairs:
        return []
    longest = max(length for length, *_ in pairs)
    ratios: list[tuple[int, float]] = [(b, tokens / own) for n, b, tokens, own in pairs if n == longest and own]
    said = ", ".join(f"{ratio:.1f} at {budget}" for budget, ratio in ratios)
    met = min(ratio for _, ratio in ratios) >= FLOPS_RATIO
    claim = (
        f"at {longest:,} tokens and as many forwards, at least {FLOPS_RATIO} times fewer FLOPs than the token model"
    )
    return [f"{claim}: {'met' if met else 'missed'}: {said}."]


def plot(rows: Sequence[Row], path: str | Path) -> Path:
    """Draw consistency, and that above chance, over FLOPs of a text, a column a length; bars are standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lengths, drawn = list(dict.fromkeys(row.length for row in rows)), ("consistency", "excess")
    shape = {"figsize": (4 * len(lengths), 7), "sharey": "row", "squeeze": False}
    figure, panels = plt.subplots(len(drawn), len(lengths), **shape)
    for name, line in zip(drawn, panels, strict=True):
        for length, axes in zip(lengths, line, strict=True):
            draw_panel(axes, [row for row in rows if row.length == length and row.mean(name) is not None], name)
            axes.set_title(f"{length:,} tokens")
        line[0].set_ylabel(f"{COLUMNS[name][0]}, by an independent judge")
    panels[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return Path(path)


def draw_panel(axes: Any, rows: Sequence[Row], name: str):
    """One figure of the systems and of real texts, which have no FLOPs and are lines."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    for system in (TWO_LEVEL, ONE_LEVEL, TOKENS):
        own = [row for row in rows if row.name == system and row.mode in (FLOPS, FORWARDS)]
        points: list[Any] = sorted({(row.mean("flops"), row.mean(name), row.error(name)) for row in own})
        if points:
            x, y, errors = zip(*points, strict=True)
            axes.errorbar(x, y, yerr=errors, marker="o", markersize=4, capsize=2, label=system)
    for row in rows:
        if row.mode == REAL:
            style = "--" if row.name == REAL else ":"
            axes.axhline(row.mean(name), color="black", linestyle=style, linewidth=1, label=row.name)
    axes.set(xscale="log", xlabel="GFLOPs a text")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
