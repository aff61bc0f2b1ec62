"""Guidance in diffusion over word embeddings: what the gradient of log p(c | x_t) changes, and Diffusion-LM's updates.

Everything is on the scale on which the denoiser is trained, x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise.

Shapes: B rows, G of them with a guidance scale other than 1, L sequence length, E embedding width, V vocabulary size.
"""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from text_diffusers.pipelines.guidance import TextState, is_due
from text_diffusers.pipelines.text_batch import EmbeddingCanvas

OPTIMIZERS = ("adagrad", "sign")
ADAGRAD_EPS = 1e-10


def tilt_prediction(prediction: Tensor, gradient: Tensor, prediction_type: str, alpha_bar: float) -> Tensor:
    """What the denoiser would predict, (B, L, E), if c were known: `gradient` (B, L, E) is that of log p(c | x_t).

    By Bayes' rule E[x_0 | x_t, c] = E[x_0 | x_t] + (1 - alpha_bar) / sqrt(alpha_bar) grad log p(c | x_t), the same as
    -sqrt(1 - alpha_bar) grad log p(c | x_t) on the noise (https://arxiv.org/abs/2105.05233). A gradient that is
    multiplied by s belongs to p(c | x_t)^s.
    """
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    weights = {"sample": noise**2 / signal, "epsilon": -noise, "v_prediction": -noise / signal}
    return prediction + weights[prediction_type] * gradient.to(prediction)


def soft_words(logits: Tensor, tokens: Tensor, undecided: Tensor, temperature: float, never: list[int]) -> Tensor:
    """(B, L, V) probabilities of words: softmax(logits / temperature) where `undecided` (B, L), else certain `tokens`.

    `logits` are (B, L, V); the ids `never` have no mass where the softmax is taken.
    """
    special = torch.tensor(never, device=logits.device, dtype=torch.long)
    soft = (logits / temperature).index_fill(-1, special, -torch.inf).softmax(dim=-1)
    return torch.where(undecided.unsqueeze(-1), soft, F.one_hot(tokens, logits.shape[-1]).to(soft))


def drawn_noise(scheduler: Any, eta: float) -> float:
    """Share of the standard deviation of DDPM's fresh noise that a scheduler's step draws."""
    if "eta" in inspect.signature(scheduler.step).parameters:
        return eta
    ancestral = isinstance(scheduler, (DDPMScheduler, EulerAncestralDiscreteScheduler))
    return 1.0 if ancestral or "sde" in str(scheduler.config.get("algorithm_type")) else 0.0


def step_mean(clean: Tensor, noisy: Tensor, alpha_t: float, alpha_s: float, eta: float) -> Tensor:
    """(B, L, E) mean of x_s given x_t, `noisy`, and a clean estimate, all (B, L, E), with a share `eta` of noise."""
    variance = (eta * step_std(alpha_t, alpha_s)) ** 2
    direction = math.sqrt(max(0.0, 1 - alpha_s - variance) / (1 - alpha_t))
    return math.sqrt(alpha_s) * clean + direction * (noisy - math.sqrt(alpha_t) * clean)


def step_std(alpha_t: float, alpha_s: float) -> float:
    """Standard deviation of x_s given x_t and x_0, with all of DDPM's noise."""
    return math.sqrt((1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s))


class InnerUpdates:
    """Updates of x_s that lower `-log p(c | x_s) + fluency * |x_s - mean|^2 / std`, as Diffusion-LM's control.

    https://arxiv.org/abs/2205.14217, section 5.1; like its code this divides by the standard deviation. What the
    optimizer has learned is kept from step to step of a text. The code makes it anew before each update, which makes
    of Adagrad steps of `step_size` by the sign of the gradient, whatever its size: that is `optimizer="sign"`.

    Args:
        optimizer: "adagrad" or "sign".
        step_size: of an update; of Adagrad, of its first.
        fluency: weight of staying near the mean.
    """

    def __init__(self, optimizer: str, step_size: float, fluency: float):
        self.optimizer, self.step_size, self.fluency = optimizer, step_size, fluency
        self.squares: Tensor | None = None  # (B, L, E) of all gradients so far

    def update(self, latents: Tensor, gradient: Tensor, mean: Tensor, std: float, editable: Tensor) -> Tensor:
        """(B, L, E) latents after one update; `gradient` is that of log p(c | x_s), `editable` (B, L) may change."""
        pull = 2 * self.fluency * (latents - mean) / std
        return self.descend(latents, (pull - gradient) * editable.unsqueeze(-1))

    def descend(self, values: Tensor, gradient: Tensor) -> Tensor:
        if self.optimizer == "sign":
            return values - self.step_size * gradient.sign()
        squares = gradient.square()
        self.squares = squares if self.squares is None else self.squares + squares
        return values - self.step_size * gradient / (self.squares.sqrt() + ADAGRAD_EPS)


@dataclass
class GuidedEmbeddingCanvas(EmbeddingCanvas):
    """A canvas with what guides it.

    `scales` (B,) are of classifier-free guidance. `unconditional` are the `guided` rows (G,), which have another
    scale than 1, with the same tokens to write, in the same order, and without the condition.

    With self-conditioning each of both is shown what it said itself, as in training: `own_estimate` (B, L, E) is the
    clean estimate of the condition alone, `unconditional.estimate` (G, L, E) that without; `estimate` is the guided
    one, which the scheduler steps towards. `noisy` (B, L, E) is what the denoiser was shown.
    """

    scales: Tensor = field(default_factory=lambda: torch.ones(0))
    interval: tuple[float, float] = (0.0, 1.0)
    guided: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    unconditional: EmbeddingCanvas | None = None
    controls: list = field(default_factory=list)
    inner_steps: int = 0
    inner: InnerUpdates | None = None
    num_steps: int = 1
    steps_done: int = 0
    own_estimate: Tensor | None = None
    noisy: Tensor | None = None

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.steps_done / self.num_steps


def embedding_state(
    canvas: Any, starts: list[int], timestep: float, num_steps: int, mask_token_id: int | None
) -> TextState:
    """What controls see of a canvas over embeddings that counts its `steps_done`; all that may be written is open."""
    return TextState(
        tokens=canvas.tokens,
        open=canvas.editable,
        settled=canvas.attention_mask.bool() & ~canvas.editable,
        attention_mask=canvas.attention_mask,
        starts=starts,
        timestep=timestep,
        progress=canvas.steps_done / num_steps,
        last=canvas.steps_done == num_steps - 1,
        mask_token_id=mask_token_id,
    )


def reads_latents(control: Any) -> bool:
    """Whether a control reads noisy embeddings, so that no clean estimate is needed."""
    return callable(getattr(control, "latent_log_prob", None))


def is_acting(control: Any, progress: float) -> bool:
    """Whether a control acts after this share of the steps."""
    return is_due(control, progress) and getattr(control, "scale", 1.0) != 0


def check_control_settings(controls: list, inner_steps: int, fluency: float, step_size: float, optimizer: str):
    """Raise a ValueError unless controls can be read on embeddings and the settings make sense."""
    for control in controls:
        if not reads_latents(control) and not callable(getattr(control, "log_prob", None)):
            raise ValueError(f"`controls` must have a `log_prob` or `latent_log_prob`, got {control!r}.")
    if not isinstance(inner_steps, int) or isinstance(inner_steps, bool) or inner_steps < 0:
        raise ValueError(f"`inner_steps` must be an integer of at least 0, got {inner_steps!r}.")
    if inner_steps and not controls:
        raise ValueError(f"`inner_steps` needs `controls`, got {inner_steps} without any.")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"`optimizer` must be one of {OPTIMIZERS}, got {optimizer!r}.")
    if not 0 <= fluency < math.inf:
        raise ValueError(f"`fluency` must be at least 0, got {fluency!r}.")
    if not 0 < step_size < math.inf:
        raise ValueError(f"`step_size` must be above 0, got {step_size!r}.")


def texts_behind(canvas: EmbeddingCanvas, beginnings: list[list[int]]) -> list[list[int | None]]:
    """The texts of a canvas with `starts` as rows, `None` where they are to be written, each behind a beginning."""
    assert canvas.starts is not None
    ends = canvas.attention_mask.sum(dim=1).tolist()
    rows = zip(beginnings, canvas.tokens.tolist(), canvas.editable.tolist(), canvas.starts, ends, strict=True)
    return [
        beginning + [None if e else t for t, e in zip(tokens[start:end], editable[start:end], strict=True)]
        for beginning, tokens, editable, start, end in rows
    ]


def joined_canvas(one: EmbeddingCanvas, other: EmbeddingCanvas) -> EmbeddingCanvas:
    """The rows of both, padded to one length; a missing estimate of one of them is zero, as none is for the model."""
    length = max(one.tokens.shape[1], other.tokens.shape[1])

    def padded(values: Tensor) -> Tensor:
        return F.pad(values, (0, 0) * (values.ndim - 2) + (0, length - values.shape[1]))

    def joined(name: str) -> Tensor:
        return torch.cat([padded(getattr(canvas, name)) for canvas in (one, other)])

    labels = None
    if one.class_labels is not None and other.class_labels is not None:
        labels = torch.cat([one.class_labels, other.class_labels])
    rows = EmbeddingCanvas(
        *(joined("tokens"), joined("editable"), joined("attention_mask"), labels, one.ends_at_eos),
        *(joined("latents"), joined("clean")),
    )
    if one.estimate is not None or other.estimate is not None:
        estimates = [torch.zeros_like(c.latents) if c.estimate is None else c.estimate for c in (one, other)]
        rows.estimate = torch.cat([padded(values) for values in estimates])
    return rows
