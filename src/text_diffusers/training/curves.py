"""The records that a training left in its folder, read back: figures, options and curves, and these drawn."""

from pathlib import Path
from typing import Any

import numpy as np

from text_diffusers.common.json_files import read_object
from text_diffusers.common.validation import is_number
from text_diffusers.training.tracking import CURVES_FILE, read_curves

METRICS_FILE = "metrics.json"
CURVES_PICTURE = "curves.png"
STAGES = ("coarse", "fine")
VALIDATED = {
    "bound": "validation bound\n(nats per token)",
    "cross_entropy": "validation\ncross-entropy (nats)",
}
AVERAGED = 0.04  # share of the lines that are averaged for the smooth curve

Curve = list[dict[str, Any]]


def read_record(folder: Path | None, name: str) -> dict[str, Any]:
    """The JSON object in a file that training left; an empty one if there is no folder or no such file.

    Raises:
        ValueError: if something else is in it.
    """
    if folder is None or not (folder / name).is_file():
        return {}

    record = read_object(folder / name)
    if not isinstance(record.get("options", {}), dict):
        raise ValueError(
            f"`{folder / name}` must hold a JSON object of `options`, got {record['options']!r}."
        )
    return record


def curves_of(folder: Path | None) -> dict[str, Curve]:
    """Lines of the curves that a training left, by stage; the stage of a training without stages is ""."""
    if folder is None:
        return {}
    curves = {stage: read_curves(folder / stage / CURVES_FILE) for stage in ("", *STAGES)}
    return {stage: curve for stage, curve in curves.items() if curve}


def draw_curves(folder: Path) -> Path | None:
    """Draw what curves.jsonl in a folder of training, or in those of its stages, holds, as curves.png beside it.

    Returns:
        The picture; `None` if there are no curves.
    """
    curves = curves_of(folder)
    if not curves:
        return None

    # Imported here, as most uses of this package draw nothing; "Agg" needs no screen.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The entropy of tokens is no yardstick for a stage, whose bound is of codes.
    entropy = read_record(folder, METRICS_FILE).get("unigram_entropy")
    figure, axes = plt.subplots(
        3,
        len(curves),
        squeeze=False,
        sharex="col",
        height_ratios=[3, 3, 1.2],
        figsize=(1 + 6.5 * len(curves), 7),
    )
    for column, (stage, curve) in zip(axes.T, curves.items(), strict=True):
        draw_column(column, curve, None if stage or not is_number(entropy) else entropy)
        column[0].set_title(f"{stage} level" if stage else "training")

    figure.align_ylabels()
    figure.tight_layout()
    figure.savefig(folder / CURVES_PICTURE, dpi=110)
    plt.close(figure)
    return folder / CURVES_PICTURE


def draw_column(axes: Any, curve: Curve, entropy: float | None):
    """Loss, validation and learning rate of one training, from top to bottom."""
    top, middle, bottom = axes

    # 1. Loss, as it is and smooth
    steps, losses = series(curve, "loss")
    window = max(1, round(AVERAGED * len(losses)))
    top.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=0.8, label="mean of 10 steps")
    if window > 1:
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        centres = steps[(window - 1) // 2 :][: len(smooth)]
        top.plot(centres, smooth, color="tab:blue", label=f"mean of {10 * window} steps")
    top.set_ylabel("training loss")
    top.legend(fontsize=8)

    # 2. The first of the known figures that validations have
    rows = []
    for row in curve:
        if isinstance(row.get("validation"), dict):
            rows.append({"step": row["step"], **row["validation"]})
    name = next((name for name in VALIDATED if any(name in row for row in rows)), None)
    if name is not None:
        middle.plot(*series(rows, name), color="tab:orange", marker="o", markersize=3)
        middle.set_ylabel(VALIDATED[name])
    if name == "bound" and entropy is not None:
        middle.axhline(entropy, color="0.5", linestyle="--", label="entropy of token frequencies")
        middle.legend(fontsize=8)

    # 3. Learning rate
    bottom.plot(*series(curve, "learning_rate"), color="tab:green")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("optimizer step")
    for panel in axes:
        panel.grid(alpha=0.3)


def series(rows: Curve, name: str) -> tuple[list[int], list[float]]:
    """`(steps, values)` of the rows that have such a number.

    Example:
        >>> from text_diffusers.training.curves import series
        >>> series([{"step": 10, "loss": 2.5}, {"step": 20, "loss": None}], "loss")
        ([10], [2.5])
    """
    measured = [row for row in rows if is_number(row.get(name))]
    return [row["step"] for row in measured], [row[name] for row in measured]
