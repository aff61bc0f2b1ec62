"""The picture of benchmarks/samplers_embedding.py."""

from pathlib import Path
from typing import Any

from parts.common.results import Record
from text_diffusers.evaluation.plots import colors_of, pyplot, save


def plot_samplers(records: list[Record], exact: list[Record], path: str | Path) -> Path:
    """Draw the picture of docs/diffusion_lm.md: samplers over their number of steps, in four panels.

    Texts of a trained model are above, mistakes of the samplers under an exact denoiser below.

    Args:
        records: each with `sampler`, `steps`, `token_error` and, if judged, `generative_perplexity`; that of the
            sampler "data" is a yardstick.
        exact: the same with `total_variation`, of which "exact" is the yardstick, for a denoiser without mistakes.
        path: of the picture; the ending chooses the format.

    Returns:
        `path`.
    """
    panels = [
        (records, "generative_perplexity", "trained model: generative perplexity"),
        (records, "token_error", "trained model: token error against the most steps"),
        # Here a mistake is the sampler's alone.
        (exact, "token_error", "exact denoiser: token error"),
        (exact, "total_variation", "exact denoiser: distance from the word frequencies"),
    ]

    # A sampler has the same colour in all panels; a record without steps is a yardstick.
    names = []
    for record in [*records, *exact]:
        if record["steps"] and record["sampler"] not in names:
            names.append(record["sampler"])
    colors = colors_of(names)

    figure, axes = pyplot().subplots(2, 2, figsize=(11, 8))
    for panel, (panel_records, figure_name, title) in zip(axes.flat, panels, strict=True):
        draw_panel(panel, panel_records, figure_name, colors)
        panel.set_title(title)
    return save(figure, path, dpi=120)


def draw_panel(
    panel: Any,
    records: list[Record],
    figure_name: str,
    colors: dict[str, Any],
):
    """One figure of all samplers that have it, a line each; a yardstick is a level line."""
    points = {}
    for record in records:
        if figure_name in record:
            point = (record["steps"], record[figure_name])
            points.setdefault(record["sampler"], []).append(point)

    for sampler, values in points.items():
        steps, heights = zip(*sorted(values), strict=True)
        if steps[0] == 0:
            panel.axhline(heights[0], color="black", linestyle=":", label=sampler)
        else:
            panel.plot(steps, heights, "o-", label=sampler, markersize=4, color=colors[sampler])

    # Perplexities of a few steps are many times those of many; errors and distances end at 0.
    panel.set_xscale("log")
    panel.set_yscale("log" if figure_name == "generative_perplexity" else "linear")
    panel.set_xlabel("steps, each one call of the denoiser")
    panel.grid(alpha=0.3, which="both")

    # Without a judge the first panel is empty.
    if points:
        panel.legend(fontsize=8)
