"""How ParaGuide steers a step: the drift of logits, the draw from their nucleus, and what the text is.

ParaGuide (https://arxiv.org/abs/2308.15459). `drift` and its schedule, the temperature that only the drift knows, and
the nucleus are the authors'. Ours: the losses of several controls add up; a row's loss is its own, where the authors
take the mean of a batch; and a text ends at its first `[EOS]`, where theirs is padded.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.randomness import row_seeds
from text_diffusers.pipelines.guidance import TextState, as_controls

LOGITS_AT_A_TIME = 2**22


@dataclass
class Steering:
    """What leads the texts, and how.

    Attributes:
        controls: with `log_prob(probs (B, L, V), state) -> (B,)`, whose negative is the loss.
        strength: lambda, of the middle of the steps.
        drift_steps: gradient steps on the logits of each step of the scheduler.
        temperature: divides the logits of the soft text that controls read.
        top_p: tokens are drawn from the smallest set that reaches this mass.

    Raises:
        ValueError: if a setting is out of its range, or a control does not act on clean text.
    """

    controls: Any = None
    strength: float = 200.0
    drift_steps: int = 3
    temperature: float = 3.0
    top_p: float = 0.8

    def __post_init__(self):
        self.controls = as_controls(self.controls)
        for control in self.controls:
            reads_noise = getattr(control, "acts_on", "prediction") != "prediction"
            if reads_noise or not callable(getattr(control, "log_prob", None)):
                raise ValueError(
                    "`controls` must have a `log_prob` of clean text, such as CleanClassifierGuidance or "
                    f"StyleGuidance, got {type(control).__name__}."
                )
        whole = isinstance(self.drift_steps, int) and not isinstance(self.drift_steps, bool)
        limits = (
            ("strength", self.strength, 0 <= self.strength < math.inf, "a finite number of at least 0"),
            ("drift_steps", self.drift_steps, whole and self.drift_steps >= 1, "an integer of at least 1"),
            ("temperature", self.temperature, 0 < self.temperature < math.inf, "a finite number above 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
        )
        for name, value, fits, limit in limits:
            if not fits:
                raise ValueError(f"`{name}` must be {limit}, got {value!r}.")

    def acting(self, progress: float) -> list:
        """The controls that act after this share of the steps."""
        return [
            control
            for control in self.controls
            if getattr(control, "scale", 1.0) != 0
            and getattr(control, "start", 0.0) <= progress < getattr(control, "stop", 1.0)
        ]

    def log_prob(self, probs: Tensor, state: TextState) -> Tensor:
        """(B,) sum of what the controls that act say of soft text (B, L, V), each times its scale."""
        acting = self.acting(state.progress)
        return torch.stack([getattr(c, "scale", 1.0) * c.log_prob(probs, state) for c in acting]).sum(dim=0)

    def steer(self, logits: Tensor, state: TextState, endings: Tensor, eos_token_id: int) -> Tensor:
        """Logits (N, V) of the open tokens after their drift; the very same where nothing acts.

        `endings` (B, L) bool are the tokens of which the first that is `eos_token_id` ends its text.
        """
        size = sine_schedule(self.strength, state.progress)
        if size == 0 or not len(logits) or not self.acting(state.progress):
            return logits

        def objective(logits: Tensor) -> Tensor:
            seen = ended_state(logits, state, endings, eos_token_id)
            return self.log_prob(soft_text_of(logits / self.temperature, state), seen).sum()

        return drift(logits, objective, size, self.drift_steps)


def sine_schedule(strength: float, progress: float) -> float:
    """`strength * sin(pi * progress)`: 0 to the last bit at both ends."""
    return strength * math.sin(math.pi * min(progress, 1 - progress))


def drift(logits: Tensor, objective: Callable[[Tensor], Tensor], size: float, num_steps: int) -> Tensor:
    """Logits (N, V) after `num_steps` gradient steps of `size` up the objective, a scalar; never in place.

    Raises:
        ValueError: if the objective has no gradient, or one that is not finite.
    """
    for _ in range(num_steps):
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            value = objective(leaf)
            if not value.requires_grad:
                raise ValueError("`controls` must give log-probabilities that can be differentiated.")
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
        if not torch.isfinite(gradient).all():
            raise ValueError("`controls` gave NaN or infinite gradients: check their log-probabilities.")
        logits = logits + size * gradient
    return logits


def soft_text_of(logits: Tensor, state: TextState) -> Tensor:
    """(B, L, V) softmax of logits (N, V) at the open tokens and one-hot rows elsewhere, differentiable."""
    known = F.one_hot(state.tokens.masked_fill(state.open, 0), logits.shape[-1]).to(logits.dtype)
    return known.index_put((state.open,), logits.softmax(dim=-1))


def ended_state(logits: Tensor, state: TextState, endings: Tensor, eos_token_id: int) -> TextState:
    """The state whose texts end at their first likeliest `[EOS]`, as logits (N, V) of the open tokens have it."""
    likeliest = state.tokens.masked_scatter(state.open, logits.argmax(dim=-1))
    ends = endings & (likeliest == eos_token_id)
    inside = (ends.cumsum(dim=1) - ends.long() == 0) & state.attention_mask.bool()
    return replace(
        state, open=state.open & inside, settled=state.settled & inside, attention_mask=state.attention_mask * inside
    )


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Probabilities (N, V), float64, of the smallest set of tokens whose mass reaches `top_p`, the last one included.

    Raises:
        ValueError: if logits are NaN or infinite, or a row excludes every token.
    """
    probs = logits.double().softmax(dim=-1)
    if not torch.isfinite(probs).all():
        raise ValueError("`denoiser` predicted NaN or infinite logits: check its weights and dtype.")
    if top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        dropped = ordered.cumsum(dim=-1) - ordered >= top_p
        probs = probs.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


def draw_tokens(logits: Tensor, positions: Tensor, top_p: float, generators: list[torch.Generator]) -> Tensor:
    """(N,) tokens drawn from the nuclei of logits (N, V), which are those at `positions` (B, L); one generator a row.

    A row's tokens depend on its own generator and logits only.
    """
    rows = [
        torch.rand(positions.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in row_seeds(generators, len(positions))
    ]
    uniform = torch.stack(rows).to(logits.device)[positions].unsqueeze(1)  # (N, 1)
    block = max(1, LOGITS_AT_A_TIME // logits.shape[-1])
    drawn = []
    for some, at in zip(logits.split(block), uniform.split(block), strict=True):
        reached = nucleus(some, top_p).cumsum(dim=-1)
        # Less than all of it, so that what has no mass after the last token is never reached.
        target = at * reached[:, -1:] * (1 - 1e-12)
        drawn.append(torch.searchsorted(reached, target, right=True).squeeze(1))
    return torch.cat(drawn)


def without_tokens(logits: Tensor, token_ids: list[int]) -> Tensor:
    """Logits (..., V), at least float32, with -inf at the ids."""
    excluded = [token for token in token_ids if token < logits.shape[-1]]
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return scores.index_fill(-1, torch.tensor(excluded, dtype=torch.long, device=logits.device), -torch.inf)
