"""What a training left in its folder, read back: figures, options and curves, and these drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from text_diffusers.common.validation import is_number
from text_diffusers.training.tracking import CURVES_FILE, read_curves

METRICS_FILE, CURVES_PICTURE = "metrics.json", "curves.png"
STAGES = ("coarse", "fine")
VALIDATED = {"bound": "validation bound\n(nats per token)", "cross_entropy": "validation\ncross-entropy (nats)"}
AVERAGED = 0.04  # share of the lines that are averaged for the smooth curve


def read_object(path: Path | None) -> dict[str, Any]:
    """The JSON object in a file, empty if there is no such file.

    Raises:
        ValueError: if something else is in it.
    """
    if path is None or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must hold JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("options", {}), dict):
        raise ValueError(f"{path} must hold a JSON object, got {str(content)[:80]}.")
    return content


def curves_of(folder: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Lines of the curves that a training left, by stage; the stage of a training without stages is ""."""
    if folder is None:
        return {}
    found = {stage: read_curves(folder / stage / CURVES_FILE) for stage in ("", *STAGES)}
    return {stage: curve for stage, curve in found.items() if curve}


def draw_curves(folder: Path) -> Path | None:
    """Draw what curves.jsonl in a folder of training, or in those of its stages, holds, as curves.png beside it.

    Returns:
        The picture; `None` if there are no curves.
    """
    curves = curves_of(folder)
    if not curves:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entropy = read_object(folder / METRICS_FILE).get("unigram_entropy")
    shape = {"squeeze": False, "sharex": "col", "height_ratios": [3, 3, 1.2]}
    figure, axes = plt.subplots(3, len(curves), figsize=(1 + 6.5 * len(curves), 7), **shape)
    for column, (stage, curve) in zip(axes.T, curves.items(), strict=True):
        draw_column(column, curve, None if stage or not is_number(entropy) else entropy)
        column[0].set_title(f"{stage} level" if stage else "training")
    figure.align_ylabels()
    figure.tight_layout()
    figure.savefig(folder / CURVES_PICTURE, dpi=110)
    plt.close(figure)
    return folder / CURVES_PICTURE


def draw_column(axes: Any, curve: list[dict[str, Any]], entropy: float | None):
    """Loss, validation and learning rate of one training, from top to bottom."""
    steps, losses = series(curve, "loss")
    window = max(1, round(AVERAGED * len(losses)))
    axes[0].plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=0.8, label="mean of 10 steps")
    if window > 1:
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        middle = steps[(window - 1) // 2 :][: len(smooth)]
        axes[0].plot(middle, smooth, color="tab:blue", label=f"mean of {10 * window} steps")
    axes[0].set_ylabel("training loss")
    axes[0].legend(fontsize=8)
    rows = [{"step": row["step"], **row["validation"]} for row in curve if isinstance(row.get("validation"), dict)]
    name = next((name for name in VALIDATED if any(name in row for row in rows)), None)
    if name is not None:
        axes[1].plot(*series(rows, name), color="tab:orange", marker="o", markersize=3)
        axes[1].set_ylabel(VALIDATED[name])
    if name == "bound" and entropy is not None:
        axes[1].axhline(entropy, color="0.5", linestyle="--", label="entropy of token frequencies")
        axes[1].legend(fontsize=8)
    axes[2].plot(*series(curve, "learning_rate"), color="tab:green")
    axes[2].set_ylabel("learning rate")
    axes[2].set_xlabel("optimizer step")
    for panel in axes:
        panel.grid(alpha=0.3)


def series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """`(steps, values)` of the rows that have such a number."""
    some = [row for row in rows if is_number(row.get(name))]
    return [row["step"] for row in some], [row[name] for row in some]
