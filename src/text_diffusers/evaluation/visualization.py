"""Pictures of diffusion over tokens, and of a search for hyper-parameters.

Shapes: L sequence length, K number of steps.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

TOKENS_SHOWN = 40
HIDDEN = "#e6e6ec"
OUTCOMES = {  # of trials, and how they are drawn
    "complete": {"color": "tab:blue"},
    "pruned": {"facecolors": "none", "edgecolors": "0.45"},
    "diverged": {"color": "tab:red", "marker": "^"},
    "out of memory": {"color": "tab:orange", "marker": "s"},
}


def token_name(tokenizer: Any, token: int) -> str:
    """What a token reads like in a picture: its text, or its escaped form if that cannot be seen."""
    text = tokenizer.decode([token])
    name = text.strip() if text.strip() and text.strip().isprintable() else ascii(text)
    return name.replace("$", r"\$")  # matplotlib would set mathematics


def plot_denoising(history: Sequence[Tensor], tokenizer: Any, path: str | Path, row: int = 0) -> Path:
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if len(history) < 2:
        raise ValueError(f"`history` must hold at least 2 frames, got {len(history)}.")
    frames = np.stack([frame[row].cpu().numpy() for frame in history])  # (K + 1, L)
    if frames[-1, 0] == tokenizer.bos_token_id:
        frames = frames[:, 1:]
    ends = np.flatnonzero(frames[-1] == tokenizer.eos_token_id)
    shown = min(TOKENS_SHOWN, ends[0] + 1 if len(ends) else frames.shape[1])
    frames = frames[:, :shown]
    settled = frames == frames[-1]
    unsettled_until = np.where(settled, -1, np.arange(len(frames))[:, None]).max(axis=0)  # (L,) last step that differs
    picture = np.where(np.arange(len(frames))[:, None] > unsettled_until, unsettled_until, np.nan).T  # (L, K + 1)

    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * shown))
    axes.set_facecolor(HIDDEN)
    image = axes.imshow(picture, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0, vmax=len(frames) - 1)
    axes.set_yticks(range(shown), [token_name(tokenizer, int(token)) for token in frames[-1]], fontsize=9)
    axes.set_xlabel("denoising step (grey: not settled yet)")
    axes.set_title("How the text was written: each token by the step that settled it", fontsize=11)
    figure.colorbar(image, ax=axes, label="settled at step", fraction=0.04, pad=0.02)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return Path(path)


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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    complete = {trial["trial"]: trial["bound"] for trial in trials if trial["outcome"] == "complete"}
    bounds = list(complete.values()) or [trial["bound"] for trial in trials if trial["bound"] is not None] or [0.0]
    edge = max(bounds) + (0.1 * (max(bounds) - min(bounds)) or 0.1)
    lines = -(-(len(space) + 1) // 3)
    figure, axes = plt.subplots(lines, 3, figsize=(13, 1.2 + 3.2 * lines), sharey=True, squeeze=False)
    axes[0, 0].step(list(complete), np.minimum.accumulate(bounds)[: len(complete)], where="post", label="best so far")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel, name in zip(axes.flat, ["trial", *space], strict=False):
        for outcome, style in OUTCOMES.items():
            shown = [trial for trial in trials if trial["outcome"] == outcome and name in trial]
            drawn = outcome in ("complete", "pruned")
            heights = [min(trial["bound"], edge) if drawn and trial["bound"] else edge for trial in shown]
            panel.scatter([place(trial, name, space) for trial in shown], heights, label=outcome, zorder=3, **style)
        panel.axhline(edge, color="0.6", linestyle=":", label="beyond: worse, or no bound")
        panel.set_title(name)
        panel.grid(alpha=0.3)
        choices = space.get(name)
        if isinstance(choices, list):
            panel.set_xticks(range(len(choices)), choices)
            panel.set_xlim(-0.5, len(choices) - 0.5)
        elif choices:
            panel.set(xscale="log", xlim=(choices[0] / 1.2, choices[1] * 1.2))
    for panel in axes.flat[len(space) + 1 :]:
        panel.axis("off")
    figure.supylabel("validation bound (nats per token)")
    figure.suptitle(f"{len(complete)} complete of {len(trials)} trials, best bound {min(bounds):.3f} nats per token")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(OUTCOMES) + 2)
    figure.tight_layout(rect=(0.01, 0.3 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return Path(path)


def place(trial: dict[str, Any], name: str, space: dict[str, Any]) -> float:
    """Where a trial stands on the axis of an option; beside the others, if the option has few choices."""
    if isinstance(choices := space.get(name), list):
        return choices.index(trial[name]) + 0.4 * (0.618 * trial["trial"] % 1 - 0.5)
    return trial[name]


def plot_quality(records: list[dict[str, Any]], path: str | Path) -> Path:
    """Draw a comparison of models: nats per token, one dot a seed, and generative perplexity against entropy.

    Args:
        records: one a model and seed, with `model`, `seed` and any of `nats_per_token`, `entropy` and
            `generative_perplexity`; the model "data" is a yardstick. The second panel needs a judged record.
        path: of the picture; the ending chooses the format.

    Returns:
        `path`.

    Raises:
        ValueError: if no record has nats per token.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    trained = [record for record in records if "nats_per_token" in record]
    judged = [record for record in records if "generative_perplexity" in record]
    if not trained:
        raise ValueError(f"`records` must hold one with `nats_per_token`, got none among {len(records)}.")
    nats: dict[str, list[float]] = {}
    for record in trained:
        nats.setdefault(record["model"], []).append(record["nats_per_token"])
    names = sorted(nats, key=lambda name: float(np.mean(nats[name])))
    colors = {name: plt.get_cmap("tab10")(place % 10) for place, name in enumerate(sorted(names))} | {"data": "black"}

    panels = 2 if judged else 1
    figure, axes = plt.subplots(1, panels, figsize=(6.2 * panels, 1.6 + 0.42 * max(6, len(names))), squeeze=False)
    bars = axes[0, 0]
    for place, name in enumerate(names):
        bars.barh(place, np.mean(nats[name]), color=colors[name], alpha=0.35)
        bars.scatter(nats[name], [place] * len(nats[name]), color=colors[name], edgecolors="black", s=28, zorder=3)
        bars.annotate(f"{np.mean(nats[name]):.3f}", (max(nats[name]), place), (7, 0), textcoords="offset points",
                      va="center", fontsize=9)  # fmt: skip
    bars.set_yticks(range(len(names)), names)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.15 * max(max(values) for values in nats.values()))
    bars.set_xlabel("nats per token on held-out text (bounds; exact for gpt2)")
    bars.set_title("Likelihood: less is better, a dot is a seed")
    if judged:
        scatter, labelled = axes[0, 1], set()
        for record in judged:
            name = record["model"]
            label = {} if name in labelled else {"label": name}
            labelled.add(name)
            shape = {"marker": "*", "s": 160} if name == "data" else {"marker": "o", "s": 40}
            height = record["generative_perplexity"]
            scatter.scatter(record["entropy"], height, color=colors.get(name, "0.5"), **shape, **label, zorder=3)
        scatter.set_yscale("log")
        scatter.grid(alpha=0.3, which="both")
        scatter.set_xlabel("entropy of the tokens within a text (nats)")
        scatter.set_ylabel("generative perplexity")
        scatter.set_title("Written texts: near the star is better")
        scatter.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return Path(path)
