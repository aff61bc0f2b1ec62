"""Measures of a model on held-out points, and the table of all models.

| column | says |
|---|---|
| -log p | nats per point, and how they are known; the lower, the better |
| bound | nats per point that -log p does not exceed |
| MMD^2 | squared maximum mean discrepancy to the held-out points, in thousandths; about 0 for the data themselves |
| precision | share of samples among the held-out points |
| coverage | share of held-out points with a sample near |

Shapes: N samples, M held-out points.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from text_diffusers.evaluation.distances import manifold_figures, maximum_mean_discrepancy

# Of the kernel: so near that the width of a crescent counts
BANDWIDTH = 0.3
NUM_RESAMPLES = 20
THOUSANDTHS = 1000

HEADINGS = (
    "model",
    "steps",
    "CPU s",
    "−log p",
    "by",
    "bound",
    "MMD² · 10³",
    "precision",
    "coverage",
)


@dataclass
class Row:
    """A line of the table: a model, or a sampler of one.

    Attributes:
        title: of the line.
        steps: of training; `None` where nothing is trained.
        cpu_seconds: of training.
        nats: mean of -log p at the held-out points, if it is known.
        density_kind: how it is known.
        bound: mean upper bound of -log p, if there is one.
        mmd: squared discrepancy of samples, in thousandths.
        mmd_error: its standard error.
        precision, coverage: shares.
    """

    title: str
    mmd: float
    mmd_error: float
    precision: float
    coverage: float
    steps: int | None = None
    cpu_seconds: float | None = None
    nats: float | None = None
    density_kind: str | None = None
    bound: float | None = None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def sample_figures(samples: Tensor, held_out: Tensor) -> dict[str, float]:
    """Figures of a `Row` of samples (N, 2) beside held-out points (M, 2)."""
    discrepancy = maximum_mean_discrepancy(
        samples,
        held_out,
        bandwidth=BANDWIDTH,
        num_permutations=1,  # the p-value is not shown
        num_resamples=NUM_RESAMPLES,
    )
    shares = manifold_figures(samples, held_out, num_resamples=0)
    return {
        "mmd": THOUSANDTHS * discrepancy.figure.value,
        "mmd_error": THOUSANDTHS * discrepancy.figure.standard_error,
        "precision": shares.precision.value,
        "coverage": shares.coverage.value,
    }


def markdown_table(rows: list[Row]) -> str:
    """The table of all rows, in Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for row in rows:
        cells = [
            row.title,
            shown(row.steps, "{:,}"),
            shown(row.cpu_seconds, "{:.0f}"),
            shown(row.nats, "{:.3f}"),
            row.density_kind or "",
            shown(row.bound, "{:.3f}"),
            f"{row.mmd:.1f} ± {row.mmd_error:.1f}",
            f"{row.precision:.2f}",
            f"{row.coverage:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(value: float | None, form: str) -> str:
    """A number in its form, and nothing where there is none."""
    return "" if value is None else form.format(value)
