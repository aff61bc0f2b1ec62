"""The picture of benchmarks/samplers_embedding.py."""

from pathlib import Path

from common.results import Record

from text_diffusers.evaluation.plots import colors_of, pyplot, save


def plot_samplers(records: list[Record], exact: list[Record], path: str | Path) -> Path:
    """Draw samplers over their number of steps: texts of a trained model, and mistakes where the denoiser makes none.

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
        (exact, "token_error", "exact denoiser: token error"),
        (exact, "total_variation", "exact denoiser: distance from the word frequencies"),
    ]
    # A record without steps is a yardstick.
    samplers = dict.fromkeys(record["sampler"] for record in [*records, *exact] if record["steps"])
    colors = colors_of(list(samplers))

    figure, axes = pyplot().subplots(2, 2, figsize=(11, 8))
    for panel, (panel_records, figure_name, title) in zip(axes.flat, panels, strict=True):
        points = {}
        for record in panel_records:
            if figure_name in record:
                point = (record["steps"], record[figure_name])
                points.setdefault(record["sampler"], []).append(point)

        for sampler, values in points.items():
            steps, heights = zip(*sorted(values), strict=True)
            if steps[0] == 0:
                panel.axhline(heights[0], color="black", linestyle=":", label=sampler)
            else:
                panel.plot(steps, heights, "o-", label=sampler, markersize=4, color=colors[sampler])
        panel.set(xscale="log", xlabel="steps, each one call of the denoiser", title=title)
        panel.set_yscale("log" if figure_name == "generative_perplexity" else "linear")
        panel.grid(alpha=0.3, which="both")
        if points:
            panel.legend(fontsize=8)
    return save(figure, path, dpi=120)
