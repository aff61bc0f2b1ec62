"""Pictures of diffusion over word embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from text_diffusers.evaluation.embedding import RoundingAccuracy


def plot_rounding(accuracies: Sequence[RoundingAccuracy], path: str | Path) -> Path:
    """Draw how many words survive the noise, over its level: without a model, and with it.

    Args:
        accuracies: from `rounding_accuracy`, in any order.
        path: of the picture; the ending chooses the format.

    Returns:
        `path`.

    Raises:
        ValueError: if there are none.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not accuracies:
        raise ValueError("`accuracies` must hold at least one timestep, got none.")
    ordered = sorted(accuracies, key=lambda accuracy: accuracy.noise_level)
    levels = [accuracy.noise_level for accuracy in ordered]
    figure, axes = plt.subplots(figsize=(6.4, 4))
    axes.plot(levels, [accuracy.input_accuracy for accuracy in ordered], "o--", color="0.45", label="nearest word")
    axes.plot(levels, [accuracy.model_accuracy for accuracy in ordered], "o-", label="model, rounded")
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.set_xlabel("noise level (standard deviation of the noise)")
    axes.set_ylabel("share of words found")
    axes.set_title("Words that survive the noise", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return Path(path)


def plot_samplers(records: list[dict[str, Any]], exact: list[dict[str, Any]], path: str | Path) -> Path:
    """Draw samplers over their number of steps: texts of a trained model, and mistakes where the denoiser makes none.

    Args:
        records: each with `sampler`, `steps`, `token_error` and, if judged, `generative_perplexity`; that of the
            sampler "data" is a yardstick.
        exact: the same with `total_variation`, of which "exact" is the yardstick, for a denoiser without mistakes.
        path: of the picture; the ending chooses the format.

    Returns:
        `path`.

    Raises:
        ValueError: if either is empty.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        (records, "generative_perplexity", "trained model: generative perplexity"),
        (records, "token_error", "trained model: token error against the most steps"),
        (exact, "token_error", "exact denoiser: token error"),
        (exact, "total_variation", "exact denoiser: distance from the word frequencies"),
    ]
    if not records or not exact:
        raise ValueError(f"`records` and `exact` must not be empty, got {len(records)} and {len(exact)}.")
    names = dict.fromkeys(r["sampler"] for r in (*records, *exact) if r["steps"])
    colors = {name: plt.get_cmap("tab10")(place % 10) for place, name in enumerate(names)}
    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    for panel, (shown, name, title) in zip(axes.flat, panels, strict=True):
        shown = [record for record in shown if name in record]
        samplers = dict.fromkeys(record["sampler"] for record in shown)
        for sampler in samplers:
            points = sorted((r["steps"], r[name]) for r in shown if r["sampler"] == sampler)
            if points[0][0] == 0:
                panel.axhline(points[0][1], color="black", linestyle=":", label=sampler)
            else:
                panel.plot(*zip(*points, strict=True), "o-", label=sampler, markersize=4, color=colors[sampler])
        panel.set(xscale="log", xlabel="steps, each one call of the denoiser", title=title)
        if name == "generative_perplexity":
            panel.set_yscale("log")
        panel.grid(alpha=0.3, which="both")
        if shown:
            panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return Path(path)
