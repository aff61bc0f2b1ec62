"""The pictures of docs/scaling.md: loss against compute, and the cost of writing."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

from parts.common.pictures import use_logarithmic_x
from parts.common.results import Record
from parts.scaling.laws import Frontier, means_over_seeds
from text_diffusers.evaluation.plots import colors_of, pyplot, save

PANELS = {
    "length": "tokens in a row",
    "steps": "steps in which it is written",
    "batch": "rows at once",
    "width": "width of the model",
}


def plot_losses(
    kernels: dict[str, tuple[list[Record], Frontier]],
    unigram_entropy: float,
    path: Path,
) -> Path:
    """Draw the loss of each size against compute, and the power law through the least ones.

    Args:
        kernels: records and frontier of each.
        unigram_entropy: in nats per token, which the frequencies of tokens alone reach.
        path: of the picture.
    """
    figure, axes = pyplot().subplots(
        1, len(kernels), figsize=(7 * len(kernels), 4.6), squeeze=False
    )
    for panel, (kernel, (records, frontier)) in zip(axes[0], kernels.items(), strict=True):
        draw_losses(panel, records, frontier)
        panel.axhline(unigram_entropy, color="0.5", linestyle=":", label="token frequencies alone")
        panel.set(
            title=f"{kernel}: every point is a run of its own",
            xlabel="FLOPs of training",
            ylabel="nats per token on held-out text (bound)",
            xscale="log",
            yscale="log",
        )
        use_plain_y(panel)
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=8)
    return save(figure, path)


def draw_losses(panel: Any, records: list[Record], frontier: Frontier):
    """A line a size, and the law."""
    means = means_over_seeds(records)
    sizes = sorted({(mean["parameters"], mean["size"]) for mean in means})
    colors = colors_of([size for _, size in sizes])
    for parameters, size in sizes:
        of_size = [mean for mean in means if mean["size"] == size]
        panel.plot(
            [mean["flops"] for mean in of_size],
            [mean["nats_per_token"] for mean in of_size],
            marker="o",
            color=colors[size],
            label=f"{size}: {parameters / 1e6:.2f}M parameters",
        )

    if frontier.law is not None:
        flops = [mean["flops"] for mean in frontier.best]
        exponent = frontier.law.exponent
        panel.plot(
            flops,
            [frontier.law.at(value) for value in flops],
            color="black",
            linestyle="--",
            label=f"least loss ~ C^-{exponent:.3f}",
        )


def plot_costs(writing: dict[str, list[Record]], path: Path) -> Path:
    """Draw tokens per second, and the time of a step in bare forward passes, against what changes."""
    shown = {sweep: title for sweep, title in PANELS.items() if sweep in writing}
    figure, axes = pyplot().subplots(1, len(shown), figsize=(4.0 * len(shown), 3.9), squeeze=False)
    for panel, (sweep, title) in zip(axes[0], shown.items(), strict=True):
        records = writing[sweep]
        values = [record["value"] for record in records]
        panel.plot(
            values,
            [record["tokens_per_second"] for record in records],
            marker="o",
            color="tab:blue",
        )
        panel.set(xlabel=title, yscale="log")
        use_logarithmic_x(panel, [1])
        panel.set_xticks(values, values)
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(ScalarFormatter())
        panel.tick_params(which="both", labelsize=8)
        panel.set_ylabel("tokens a CPU second", color="tab:blue")

        other = panel.twinx()
        other.plot(
            values,
            [record["forwards"] for record in records],
            marker="s",
            color="tab:orange",
            linestyle="--",
        )
        other.set_ylim(0, None)
        other.set_ylabel("a step, in bare forward passes", color="tab:orange")
    return save(figure, path)


def use_plain_y(panel: Any):
    """Ticks of a logarithmic axis as plain numbers: losses span less than a decade."""
    panel.yaxis.set_major_formatter(NullFormatter())
    panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
