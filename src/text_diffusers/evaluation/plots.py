"""Pictures: how a text was written, which words survive the noise, and a search for hyper-parameters.

Shapes: B batch, L sequence length, K number of steps.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from text_diffusers.evaluation.embedding import RoundingAccuracy

# As many lines as a picture has room for
TOKENS_SHOWN = 40
HIDDEN = "#e6e6ec"

# Of trials, and how they are drawn.
OUTCOMES = {
    "complete": {"color": "tab:blue"},
    "pruned": {"facecolors": "none", "edgecolors": "0.45"},
    "diverged": {"color": "tab:red", "marker": "^"},
    "out of memory": {"color": "tab:orange", "marker": "s"},
}


def pyplot() -> Any:
    """matplotlib's `pyplot`, which draws to files and needs no display; imported when a picture is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(
    figure: Any, path: str | Path, rect: Sequence[float] | None = None, dpi: int = 130
) -> Path:
    """Write a figure to `path`, whose ending chooses the format, and close it; `rect` is the part for the panels."""
    figure.tight_layout(rect=rect)
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)
    return Path(path)


def colors_of(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each name, in their order; there are ten."""
    palette = pyplot().get_cmap("tab10")
    return {name: palette(place % 10) for place, name in enumerate(names)}


def token_name(tokenizer: Any, token: int) -> str:
    """A token in a picture: its text, or its escaped form if that cannot be seen."""
    text = tokenizer.decode([token])
    name = text.strip()
    if not name.isprintable() or not name:
        name = ascii(text)
    return name.replace("$", r"\$")  # matplotlib would set mathematics


def plot_denoising(
    history: Sequence[Tensor], tokenizer: Any, path: str | Path, row: int = 0
) -> Path:
    """Draw how one text settles: a line a token, a column a step, coloured by the step at which it was revealed.

    Args:
        history: K + 1 tensors (B, L), from `pipe(..., return_history=True).history`.
        tokenizer: names the tokens.
        path: of the picture; the ending chooses the format.
        row: of the batch.

    Returns:
        `path`.

    Raises:
        ValueError: if the history has fewer than two frames.
    """
    if len(history) < 2:
        raise ValueError(f"`history` must hold at least 2 frames, got {len(history)}.")

    # 1. The tokens of the text, from the first behind padding, start and label to the end
    frames = np.stack([frame[row].cpu().numpy() for frame in history])  # (K + 1, L)
    is_written = (frames != frames[-1]).any(axis=0)
    given = frames[-1, : is_written.argmax()]
    specials = np.flatnonzero(np.isin(given, tokenizer.all_special_ids))
    frames = frames[:, specials[-1] + 1 if len(specials) else 0 :]
    ends = np.flatnonzero(frames[-1] == tokenizer.eos_token_id)
    length = ends[0] + 1 if len(ends) else frames.shape[1]
    frames = frames[:, : min(TOKENS_SHOWN, length)]
    names = [token_name(tokenizer, int(token)) for token in frames[-1]]

    # 2. The last step at which a token differs from what it becomes
    steps = np.arange(len(frames))[:, None]
    unsettled_until = np.where(frames == frames[-1], -1, steps).max(axis=0)  # (L,)
    picture = np.where(steps > unsettled_until, unsettled_until, np.nan).T  # (L, K + 1)
    # Other rows of the batch may have been written for longer.
    picture = picture[:, : unsettled_until.max() + 2]

    # 3. Draw
    figure, axes = pyplot().subplots(figsize=(9, 1.2 + 0.24 * len(names)))
    axes.set_facecolor(HIDDEN)
    image = axes.imshow(
        picture,
        aspect="auto",
        cmap="viridis",
        interpolation="nearest",
        vmin=0,
        vmax=picture.shape[1] - 1,
    )
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlabel("denoising step (grey: not settled yet)")
    axes.set_title("How the text was written: each token by the step that settled it", fontsize=11)
    figure.colorbar(image, ax=axes, label="settled at step", fraction=0.04, pad=0.02)
    return save(figure, path)


def plot_trials(trials: list[dict[str, Any]], space: dict[str, Any], path: str | Path) -> Path:
    """Draw the bounds of trials in their order, and against each option that was searched.

    Args:
        trials: each with its number `trial`, an `outcome` among `OUTCOMES`, its `bound` in nats per token, `None` if
            it reached none, and the values of its options.
        space: of each option a list of choices, or the least and most of a logarithmic range.
        path: of the picture; the ending chooses the format.

    Returns:
        `path`.
    """
    from matplotlib.ticker import MaxNLocator

    # Trials without a bound, or a much worse one, are drawn on a line above all others.
    complete = {
        trial["trial"]: trial["bound"] for trial in trials if trial["outcome"] == "complete"
    }
    reached = [trial["bound"] for trial in trials if trial["bound"] is not None]
    bounds = list(complete.values()) or reached or [0.0]
    edge = max(bounds) + (0.1 * (max(bounds) - min(bounds)) or 0.1)

    # Three panels in a line; the first shows the trials in their order.
    num_lines = -(-(len(space) + 1) // 3)
    figure, axes = pyplot().subplots(
        num_lines, 3, figsize=(13, 1.2 + 3.2 * num_lines), sharey=True, squeeze=False
    )
    first = axes[0, 0]
    best = np.minimum.accumulate(bounds)[: len(complete)]
    first.step(list(complete), best, where="post", label="best so far")
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel, name in zip(axes.flat, ["trial", *space], strict=False):
        for outcome, style in OUTCOMES.items():
            shown = [trial for trial in trials if trial["outcome"] == outcome and name in trial]
            places = [place(trial, name, space) for trial in shown]
            has_bound = outcome in ("complete", "pruned")
            heights = [min(trial["bound"] or edge, edge) if has_bound else edge for trial in shown]
            panel.scatter(places, heights, label=outcome, zorder=3, **style)

        # An axis of choices, or a logarithmic one.
        panel.axhline(edge, color="0.6", linestyle=":", label="beyond: worse, or no bound")
        panel.set_title(name)
        panel.grid(alpha=0.3)
        choices = space.get(name)
        if isinstance(choices, list):
            panel.set_xticks(range(len(choices)), choices)
            panel.set_xlim(-0.5, len(choices) - 0.5)
        elif choices:
            panel.set(xscale="log", xlim=(choices[0] / 1.2, choices[1] * 1.2))
    # The last line may have panels to spare.
    for panel in axes.flat[len(space) + 1 :]:
        panel.axis("off")

    figure.supylabel("validation bound (nats per token)")
    figure.suptitle(
        f"{len(complete)} complete of {len(trials)} trials, best bound {min(bounds):.3f} nats per token"
    )
    figure.legend(*first.get_legend_handles_labels(), loc="lower center", ncols=len(OUTCOMES) + 2)
    return save(figure, path, rect=(0.01, 0.3 / figure.get_figheight(), 1, 1))


def place(trial: dict[str, Any], name: str, space: dict[str, Any]) -> float:
    """The place of a trial on the axis of an option; beside the others, if the option has few choices."""
    choices = space.get(name)
    if not isinstance(choices, list):
        return trial[name]
    # Multiples of the golden ratio spread trials of one choice evenly.
    return choices.index(trial[name]) + 0.4 * (0.618 * trial["trial"] % 1 - 0.5)


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
    if not accuracies:
        raise ValueError("`accuracies` must hold at least one timestep, got none.")

    # A line joins its points in their order.
    ordered = sorted(accuracies, key=lambda accuracy: accuracy.noise_level)
    levels = [accuracy.noise_level for accuracy in ordered]
    figure, axes = pyplot().subplots(figsize=(6.4, 4))
    axes.plot(
        levels,
        [accuracy.input_accuracy for accuracy in ordered],
        "o--",
        color="0.45",
        label="nearest word",
    )
    axes.plot(
        levels, [accuracy.model_accuracy for accuracy in ordered], "o-", label="model, rounded"
    )
    axes.set(xlabel="noise level (standard deviation of the noise)", xlim=(0, 1))
    axes.set(ylabel="share of words found", ylim=(-0.02, 1.02))
    axes.set_title("Words that survive the noise", fontsize=11)

    axes.grid(alpha=0.3)
    axes.legend()
    return save(figure, path)
