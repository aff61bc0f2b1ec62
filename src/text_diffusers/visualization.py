"""Pictures of diffusion over tokens.

Shapes: L sequence length, K number of steps.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

TOKENS_SHOWN = 40
HIDDEN = "#e6e6ec"


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
