"""Axes that several pictures of benchmarks have."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter


def use_logarithmic_x(axes: Any, digits: Sequence[float]):
    """Make the horizontal axis logarithmic, with ticks at these digits of each power of ten, and a grid."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=digits))

    # Plain numbers: half a decade of perplexities has one power of ten, or none.
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())

    axes.grid(alpha=0.3, which="both")
