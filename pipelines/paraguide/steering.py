"""How ParaGuide steers a step: the drift of logits, the draw from their nucleus, and where the text ends.

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

from text_diffusers.common.randomness import rand
from text_diffusers.common.validation import is_int, is_number
from text_diffusers.pipelines.diffusion_lm.guidance import is_acting, log_prob_gradient
from text_diffusers.pipelines.guidance import TextState, acts_on, as_controls, draws_jointly

# Logits whose nuclei are found together.
LOGITS_AT_A_TIME = 2**22

# Less than the whole mass, so that a search never passes the last token that has any.
LARGEST_SHARE = 1 - 1e-12


@dataclass
class Steering:
    """The controls that lead the texts, and how strongly.

    Attributes:
        controls: with `log_prob(probs (B, L, V), state) -> (B,)`, whose negative is the loss.
        strength: lambda, of the middle of the steps.
        drift_steps: gradient steps on the logits of each step of the scheduler.
        drift_temperature: divides the logits of the soft text that controls read.
        top_p: tokens are drawn from the smallest set that reaches this mass.

    Raises:
        ValueError: if a setting is out of its range, or a control does not act on clean text.

    Example:
        >>> Steering(strength=-1)
        Traceback (most recent call last):
        ValueError: `strength` must be a finite number of at least 0, got -1.
    """

    controls: Any = None
    strength: float = 200.0
    drift_steps: int = 3
    drift_temperature: float = 3.0
    top_p: float = 0.8

    def __post_init__(self):
        # They are asked for their gradient in clean text, and never called on logits.
        self.controls = as_controls(self.controls)
        for control in self.controls:
            if acts_on(control) != "prediction" or not callable(getattr(control, "log_prob", None)):
                raise ValueError(
                    "`controls` must have a `log_prob` of clean text, such as CleanClassifierGuidance or "
                    f"StyleGuidance, got {type(control).__name__}."
                )
            if draws_jointly(control):
                raise ValueError(
                    "`controls` that draw tokens together, such as RegexControl, need TextDiffusionPipeline, got "
                    f"{type(control).__name__}."
                )

        if not is_number(self.strength, 0):
            raise ValueError(
                f"`strength` must be a finite number of at least 0, got {self.strength!r}."
            )
        if not is_int(self.drift_steps, 1):
            raise ValueError(
                f"`drift_steps` must be an integer of at least 1, got {self.drift_steps!r}."
            )
        if not is_number(self.drift_temperature, 0) or self.drift_temperature == 0:
            raise ValueError(
                f"`drift_temperature` must be a finite number above 0, got {self.drift_temperature!r}."
            )
        if not is_number(self.top_p, 0, 1) or self.top_p == 0:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p!r}.")

    def steer(self, logits: Tensor, state: TextState, endings: Tensor, eos_token_id: int) -> Tensor:
        """Logits (N, V) of the open tokens after their drift; the very same where nothing acts.

        Args:
            endings: (B, L) bool, the tokens of which the first that is `eos_token_id` ends its text.
        """
        size = sine_schedule(self.strength, state.progress)
        controls = [control for control in self.controls if is_acting(control, state.progress)]
        # Where nothing acts no gradient is taken.
        if size == 0 or not len(logits) or not controls:
            return logits

        # As the logits drift, other tokens become the likeliest, so a text may end elsewhere after each step.
        def log_prob(logits: Tensor) -> Tensor:
            ended = ended_state(logits, state, endings, eos_token_id)
            probs = soft_text_of(logits / self.drift_temperature, state)
            scaled = [
                getattr(control, "scale", 1.0) * control.log_prob(probs, ended)
                for control in controls
            ]
            return torch.stack(scaled).sum(dim=0).sum()

        return drift(logits, log_prob, size, self.drift_steps)


def sine_schedule(strength: float, progress: float) -> float:
    """`strength * sin(pi * progress)`: 0 to the last bit at both ends."""
    return strength * math.sin(math.pi * min(progress, 1 - progress))


def drift(
    logits: Tensor, objective: Callable[[Tensor], Tensor], size: float, num_steps: int
) -> Tensor:
    """Logits (N, V) after `num_steps` gradient steps of `size` up the objective, a scalar; never in place.

    Raises:
        ValueError: if the objective has no gradient, or one that is not finite.
    """
    for _ in range(num_steps):
        with torch.enable_grad():
            # A leaf of its own for each step: no gradient goes back through earlier ones.
            leaf = logits.detach().requires_grad_()
            gradient = log_prob_gradient(objective(leaf), leaf)
        logits = logits + size * gradient
    return logits


def soft_text_of(logits: Tensor, state: TextState) -> Tensor:
    """(B, L, V) softmax of logits (N, V) at the open tokens and one-hot rows elsewhere, differentiable."""
    # Any id serves where a token is open: its row is replaced.
    one_hot = F.one_hot(state.tokens.masked_fill(state.open, 0), logits.shape[-1]).to(logits.dtype)
    return one_hot.index_put((state.open,), logits.softmax(dim=-1))


def ended_state(logits: Tensor, state: TextState, endings: Tensor, eos_token_id: int) -> TextState:
    """The state whose texts end at their first likeliest `[EOS]`, as logits (N, V) of the open tokens have it."""
    likeliest = state.tokens.masked_scatter(state.open, logits.argmax(dim=-1))
    ends = endings & (likeliest == eos_token_id)

    # An end is inside of its text, and nothing behind it is.
    inside = (ends.cumsum(dim=1) - ends.long() == 0) & state.attention_mask.bool()
    return replace(
        state,
        open=state.open & inside,
        settled=state.settled & inside,
        attention_mask=state.attention_mask * inside,
    )


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Probabilities (N, V), float64, of the smallest set of tokens whose mass reaches `top_p`, the last one included.

    Raises:
        ValueError: if logits are NaN or infinite, or a row excludes every token.

    Example:
        >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]).log(), top_p=0.6)[0, 2].item()
        0.0
    """
    probs = logits.double().softmax(dim=-1)
    if not torch.isfinite(probs).all():
        raise ValueError(
            "`denoiser` predicted NaN or infinite logits: check its weights and dtype."
        )

    if top_p < 1:
        # A token is dropped if those before it have the mass already.
        ordered, order = probs.sort(dim=-1, descending=True)
        dropped = ordered.cumsum(dim=-1) - ordered >= top_p
        probs = probs.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


def draw_tokens(
    logits: Tensor, positions: Tensor, top_p: float, generators: list[torch.Generator]
) -> Tensor:
    """(N,) tokens drawn from the nuclei of logits (N, V), which are those at `positions` (B, L); one generator a row.

    A row's tokens depend on its own generator and logits only.
    """
    # One number for every token of a row, so that a draw does not depend on which are open.
    uniform = rand(tuple(positions.shape), generators, logits.device)  # (B, L)
    uniform = uniform[positions].unsqueeze(1)  # (N, 1)

    # Sorted probabilities in float64 take several times the memory of the logits.
    num_rows = max(1, LOGITS_AT_A_TIME // logits.shape[-1])
    drawn = []
    for block, block_uniform in zip(logits.split(num_rows), uniform.split(num_rows), strict=True):
        mass = nucleus(block, top_p).cumsum(dim=-1)
        target = block_uniform * mass[:, -1:] * LARGEST_SHARE
        drawn.append(torch.searchsorted(mass, target, right=True).squeeze(1))
    return torch.cat(drawn)


def without_tokens(logits: Tensor, token_ids: list[int]) -> Tensor:
    """Logits (..., V), at least float32, with -inf at the ids."""
    # Logits may have fewer columns than the tokenizer has ids.
    present_ids = [token for token in token_ids if token < logits.shape[-1]]
    excluded = torch.tensor(present_ids, dtype=torch.long, device=logits.device)
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return scores.index_fill(-1, excluded, -torch.inf)
