"""Guidance of any pipeline: classifier-free guidance, controls, and the state of the text that controls see.

Classifier-free guidance (https://arxiv.org/abs/2207.12598) compares the prediction with that of the same text without
its condition: `uncond + scale * (cond - uncond)`. Scale 1 is the conditional model and costs one forward, 0 is the
unconditional one.

Shapes: B rows, L sequence length, V vocabulary size, N tokens that are still open.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.scheduler_config import HIDING_NOISES
from text_diffusers.common.validation import check_strings, is_list, is_number, require
from text_diffusers.pipelines.given_text import GivenText
from text_diffusers.pipelines.text_batch import TextBatch

# Values of `guide_by`; a source and messages count as a prompt.
CONDITIONS = ("label", "prompt", "both", "masked_prompt")


@dataclass
class TextState:
    """The state of the texts being written, as a control sees it.

    Attributes:
        tokens: (B, L), settled tokens, and noise or masks where `open`.
        open: (B, L) bool, the N tokens that are still to be decided.
        settled: (B, L) bool, tokens that will not change.
        attention_mask: (B, L), 1 at real tokens.
        starts: index of the first token of each text, its prompt included.
        timestep: time of the noise, as the denoiser is told.
        progress: share of the steps that are done, in [0, 1).
        last: whether this is the last step.
        selected: (B, L) bool, the open tokens that this step draws; `None` if it is not known.
        mask_token_id: the id of the mask, if the tokenizer has one.
        end_token_ids: tokens that end a text; none where the length is given.
        given_texts: the given characters of each text; none if they are those of its tokens.
        generators: one a row, for controls that draw tokens.
        shape: makes logarithms of probabilities (n, V) those that tokens are drawn from; `None` leaves them.
    """

    tokens: Tensor
    open: Tensor
    settled: Tensor
    attention_mask: Tensor
    starts: list[int]
    timestep: float
    progress: float
    last: bool
    selected: Tensor | None = None
    mask_token_id: int | None = None
    end_token_ids: list[int] = field(default_factory=list)
    given_texts: list[GivenText] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)
    shape: Callable[[Tensor], Tensor] | None = None


def text_state(
    batch: TextBatch,
    timestep: float,
    *,
    is_open: Tensor,
    undecided: Tensor,
    mask_token_id: int | None,
    selected: Tensor | None = None,
    end_token_ids: Sequence[int] = (),
    shape: Callable[[Tensor], Tensor] | None = None,
) -> TextState:
    """The state of a batch before the step that is due.

    Args:
        is_open: (B, L) bool, the tokens that controls are asked about.
        undecided: (B, L) bool, all tokens that may still change.
        selected: (B, L) bool, the open tokens that this step draws.
        end_token_ids: tokens that end a text.
        shape: temperature, top_k and top_p of the step.
    """
    return TextState(
        tokens=batch.tokens,
        open=is_open,
        settled=batch.attention_mask.bool() & ~undecided,
        attention_mask=batch.attention_mask,
        starts=batch.starts,
        timestep=timestep,
        progress=batch.progress,
        last=batch.steps_done == batch.num_steps - 1,
        selected=selected,
        mask_token_id=mask_token_id,
        end_token_ids=list(end_token_ids),
        given_texts=batch.given_texts,
        generators=batch.generators,
        shape=shape,
    )


# Classifier-free guidance


def guide(cond: Tensor, uncond: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance: `uncond + scale * (cond - uncond)`.

    Scale 1 is `cond` and 0 is `uncond` to the last bit. On logits or log-probabilities -inf is a token that cannot be:
    one that `cond` excludes stays excluded, one that only `uncond` excludes keeps its value in `cond`. Half precision
    comes back as float32.

    Args:
        cond, uncond: (N, ...) predictions with and without the condition: logits, noise or clean embeddings.
        scale: (N,), one for each.

    Example:
        >>> guide(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([3.0]))
        tensor([[4., 1.]])
    """
    # In half precision the difference would lose its digits, and a large scale end at infinity.
    cond = at_least_float32(cond)
    uncond = at_least_float32(uncond)
    # (N, 1, ...), to be broadcast over what is predicted
    weight = scale.view(-1, *[1] * (cond.ndim - 1)).to(cond)
    # `lerp` is exact at both ends, which the formula as it is written is not.
    guided = torch.lerp(uncond, cond, weight)

    # One cheap pass instead of three where no token is excluded.
    if guided.sum().isfinite():
        return guided

    # Infinite numbers have no differences: the tokens that only one of both excludes are set apart.
    guided = torch.lerp(torch.where(uncond == -torch.inf, cond, uncond), cond, weight)
    guided = torch.where(cond == -torch.inf, cond, guided)
    guided = torch.where(weight == 0, uncond, guided)

    # A prediction that was finite before has become infinite by its scale.
    was_finite = cond.amax(dim=-1).isfinite() & uncond.amax(dim=-1).isfinite()
    if (was_finite & ~guided.amax(dim=-1).isfinite()).any():
        limit = "small enough for guided predictions to stay finite"
        require(False, "guidance_scale", limit, float(scale.abs().max()))
    return guided


@dataclass
class ReverseStep:
    """A step of a token scheduler that draws from p(x_s | x_t), as guidance asks about it.

    Args:
        scheduler: with `clean_scores`, `shape` and `reverse_probs`.
        timestep: one of its `timesteps`.
        tokens: (N,) x_t.
        scale: (N,) of classifier-free guidance.
    """

    scheduler: Any
    timestep: float
    tokens: Tensor
    scale: Tensor

    def scores(self, logits: Tensor) -> Tensor:
        """(N, V) log-probabilities of x_0, not shaped yet, from logits (N, V or more)."""
        # The scheduler sees one row of N tokens.
        sample = self.tokens.unsqueeze(0)
        return self.scheduler.clean_scores(logits.unsqueeze(0), self.timestep, sample)[0]

    def log_probs(self, predictions: list[Tensor]) -> Tensor:
        """(N, S) log p(x_s | x_t) of scores (N, V) of x_0, or guided from two, with and without the condition."""
        sample = self.tokens.unsqueeze(0)
        logs = []
        for scores in predictions:
            probs = self.scheduler.reverse_probs(
                scores.unsqueeze(0), self.timestep, sample, from_scores=True
            )
            logs.append(probs[0].log())
        return logs[0] if len(logs) == 1 else guide(logs[0], logs[1], self.scale)


def guided_log_reverse(
    step: ReverseStep,
    cond: Tensor,
    uncond: Tensor | None,
    control: Callable[[Tensor], Tensor] | None = None,
    posterior_control: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Guided log p(x_s | x_t), (N, S) up to a constant a token.

    The order is that of all steps: guidance, controls, and then temperature, top_k and top_p. So it is the guided
    prediction of x_0 that is shaped, and what shaping does to it is done to both predictions alike: each is
    multiplied, token by token, by the same factors. Of each follows a p(x_s | x_t), and these are guided, D-CFG
    (https://arxiv.org/abs/2412.10193). Without shaping that is D-CFG as it is published. The lower the temperature,
    the more alike both predictions become; at 0 both are the token that is likeliest under guidance, and that is the
    x_0 that a step takes. Controls of p(x_s | x_t) likewise come before shaping: what a token gains counts for it as
    x_0.

    Under absorbing noise p(x_s | x_t) of the guided prediction is the same, and cheaper. Under hierarchical noise it
    is taken too: a guided cluster has the summed guided probability of its tokens.

    Args:
        cond, uncond: (N, V) logits with and without the condition; `None` is a step without guidance.
        control: logits (N, V) to what controls make of them, if any is due.
        posterior_control: log p(x_s | x_t) (N, S) likewise.
    """
    # 1. Both predictions; under noise that hides tokens, or without guidance, one will do
    predictions = []
    if uncond is not None and step.scheduler.corruption not in HIDING_NOISES:
        predictions = [step.scores(cond), step.scores(uncond)]

    # Where nothing is done to the guided prediction, it need not be known.
    is_shaped = step.scheduler.shapes_predictions
    if predictions and control is None and not is_shaped:
        log_weights = step.log_probs(predictions)
        return log_weights if posterior_control is None else posterior_control(log_weights)

    # 2. The guided prediction, and both changed as controls change it. A control may do so in its place.
    guided = cond if uncond is None else guide(cond, uncond, step.scale)
    controlled = guided if control is None else control(guided.clone())
    target = step.scores(controlled)  # (N, V)
    if not predictions:
        predictions = [target]
    elif control is not None:
        predictions = changed_alike(predictions, step.scores(guided), target)

    # 3. Both predictions, changed as shaping changes it
    if not is_shaped:
        log_weights = step.log_probs(predictions)
        return log_weights if posterior_control is None else posterior_control(log_weights)
    if posterior_control is None:
        return step.log_probs(changed_alike(predictions, target, step.scheduler.shape(target)))

    # 4. What a token gains from controls of p(x_s | x_t) counts when predictions are shaped, and then once more there
    log_weights = step.log_probs(predictions)  # (N, S)
    tilted = posterior_control(log_weights.clone())
    impossible = log_weights == -torch.inf
    gain = torch.where(impossible, 0.0, tilted - log_weights)
    clean_gain = gain[:, : target.shape[1]]
    # A token may only stay where no x_0 is left.
    is_left = (target + clean_gain).amax(dim=-1, keepdim=True) > -torch.inf
    clean_gain = torch.where(is_left, clean_gain, 0.0)

    shaped = step.scheduler.shape(target + clean_gain)
    ungained = torch.where(shaped == -torch.inf, shaped, shaped - clean_gain)
    weights = step.log_probs(changed_alike(predictions, target, ungained)) + gain
    return torch.where(impossible, tilted, weights)


def changed_alike(predictions: list[Tensor], before: Tensor, after: Tensor) -> list[Tensor]:
    """Each of the logits (N, V) changed as others (N, V) were, from `before` to `after`.

    A token without mass after it has none. Where that leaves no token, since a prediction had excluded all that
    remain, it becomes `after`.

    Example:
        >>> before = torch.tensor([[1.0, 2.0, 3.0]])
        >>> after = torch.tensor([[2.0, -torch.inf, 3.0]])
        >>> changed_alike([torch.tensor([[5.0, 6.0, 7.0]])], before, after)
        [tensor([[6., -inf, 7.]])]
    """
    changed = []
    for logits in predictions:
        moved = torch.where(after == -torch.inf, after, logits - before + after)
        is_left = moved.amax(dim=-1, keepdim=True) > -torch.inf
        changed.append(torch.where(is_left, moved, after))
    return changed


def split_predictions(
    logits: Tensor, cond_rows: Tensor, uncond_rows: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """`(cond, uncond)`, (N, V) each, from one call in which each row was asked only for what its scale needs.

    A row that was asked once has the same prediction in both.

    Args:
        logits: (M, V) of the positions of all `cond_rows`, then those of all `uncond_rows`.
        cond_rows, uncond_rows: (B,) bool, the rows that were asked with and without the condition.
        counts: (B,) positions of each row, N in all.
    """
    # From rows to their positions, (N,) bool
    has_cond = cond_rows.repeat_interleave(counts)
    has_uncond = uncond_rows.repeat_interleave(counts)
    # Every row was asked at least once, so what one half lacks is in the other.
    cond, uncond = logits.split([int(has_cond.sum()), int(has_uncond.sum())])
    return (
        fill_missing(cond, has_cond, uncond, has_uncond),
        fill_missing(uncond, has_uncond, cond, has_cond),
    )


def fill_missing(values: Tensor, present: Tensor, others: Tensor, others_present: Tensor) -> Tensor:
    """(N, V) with `values` where `present` (N,) is true, and `others` elsewhere."""
    if present.all():
        return values

    # Where both are present, `values` are written last.
    filled = values.new_empty(len(present), values.shape[1])
    filled[others_present] = others
    filled[present] = values
    return filled


def scales_by_row(
    guidance_scale: float | Sequence[float],
    num_texts: int,
    repeats: int,
    name: str = "guidance_scale",
) -> list[float]:
    """One scale a row, from one or one a text.

    Raises:
        ValueError: if there are as many as neither, or they are no finite numbers; `name` is the argument to be named.
    """
    scales: list[Any] = (
        list(guidance_scale) if is_list(guidance_scale) else [guidance_scale] * num_texts
    )
    if len(scales) != num_texts:
        raise ValueError(f"`{name}` must be one or {num_texts}, one a text, got {len(scales)}.")
    if not all(is_number(scale) for scale in scales):
        raise ValueError(f"`{name}` must be finite numbers, got {guidance_scale!r}.")

    # Copies of a text stand next to each other.
    return [float(scale) for scale in scales for _ in range(repeats)]


def conditional_scales(
    guidance_scale: float | Sequence[float], num_texts: int, repeats: int, has_condition: bool
) -> list[float]:
    """As `scales_by_row`, where scales must be 1 without a condition to strengthen."""
    scales = scales_by_row(guidance_scale, num_texts, repeats)
    # Without a condition both predictions would be the same.
    if not has_condition and any(scale != 1 for scale in scales):
        raise ValueError(
            "`guidance_scale` must be 1 without a condition, `class_labels`, `prompt` or `source`, "
            f"got {guidance_scale!r}."
        )
    return scales


def set_guidance_scale(batch: TextBatch, guidance_scale: float | Sequence[float]):
    """Guide a batch by a scale, or one a text, from the step that is due on.

    Raises:
        ValueError: if there are as many as neither, they are no finite numbers, or there is nothing to strengthen.
    """
    num_texts = len(batch.tokens) // batch.repeats
    make_view = batch.make_unconditional
    scales = conditional_scales(
        guidance_scale, num_texts, batch.repeats, has_condition=make_view is not None
    )

    # At scale 1 there is no second prediction, and no second view of the rows.
    is_guided = any(scale != 1 for scale in scales)
    if is_guided and batch.unconditional is None and make_view is not None:
        batch.unconditional = make_view()
    batch.scales = torch.tensor(scales, dtype=torch.float64, device=batch.tokens.device)  # (B,)
    batch.guidance_scale = guidance_scale


def check_interval(guidance_interval: tuple[float, float]):
    """Raise a `ValueError` unless these are two shares of the steps, in order."""
    in_order = (
        is_list(guidance_interval)
        and len(guidance_interval) == 2
        and all(is_number(share) for share in guidance_interval)
        and 0 <= guidance_interval[0] <= guidance_interval[1] <= 1
    )
    if not in_order:
        raise ValueError(
            f"`guidance_interval` must be two shares of the steps, 0 <= start <= stop <= 1, got {guidance_interval!r}."
        )


def guided_condition(
    prompt: Any,
    text: Any,
    source: Any,
    class_labels: Any,
    negative_prompt: Any,
    guide_by: str | None,
    messages: Any = None,
) -> str | None:
    """The condition that guidance strengthens, one of `CONDITIONS`; `None` without one.

    Raises:
        ValueError: if these arguments of a pipeline do not fit each other.
    """
    # Arguments of the wrong type, or that exclude each other
    for name, value in (("source", source), ("negative_prompt", negative_prompt)):
        if value is not None:
            check_strings(name, value)
    if source is not None and (prompt is not None or text is not None):
        raise ValueError(
            "`source` excludes `prompt` and `text`: what is written from it begins by itself."
        )
    if text is not None and negative_prompt is not None:
        raise ValueError(
            "`negative_prompt` goes with `prompt` or `source`; `text` has no beginning to replace."
        )
    is_condition = guide_by is None or guide_by in CONDITIONS
    require(is_condition, "guide_by", f"one of {CONDITIONS}", guide_by, CONDITIONS)

    # A condition can be strengthened only if it is there.
    has_label = class_labels is not None
    has_prompt = any(value is not None for value in (prompt, source, negative_prompt, messages))
    lacks_label = guide_by in ("label", "both") and not has_label
    lacks_prompt = guide_by in ("prompt", "both", "masked_prompt") and not has_prompt
    if lacks_label or lacks_prompt:
        raise ValueError(
            f"`guide_by`={guide_by!r} needs `class_labels` or a `prompt` or `source` to that effect."
        )

    if guide_by == "masked_prompt" and negative_prompt is not None:
        raise ValueError(
            '`negative_prompt` must be left out with `guide_by="masked_prompt"`, where masks stand for the prompt, '
            f"got {negative_prompt!r}."
        )

    # By default the label, and the prompt where nothing else is or where it is led away from another.
    if guide_by is not None:
        return guide_by
    if has_label:
        return "label" if negative_prompt is None else "both"
    return "prompt" if has_prompt else None


def negative_texts(negative_prompt: str | Sequence[str] | None, num_texts: int) -> list[str]:
    """What each text is led away from; an empty text without a negative prompt.

    Raises:
        ValueError: if there are neither one nor one a text.
    """
    if negative_prompt is None or isinstance(negative_prompt, str):
        return [negative_prompt or ""] * num_texts
    if len(negative_prompt) != num_texts:
        raise ValueError(
            f"`negative_prompt` must be one or {num_texts}, one a text, got {len(negative_prompt)}."
        )
    return list(negative_prompt)


# Controls


def as_controls(controls: Any) -> list:
    """A control, several or none as a list.

    Raises:
        ValueError: if one of them cannot be called on logits.
    """
    if controls is None:
        return []
    control_list = list(controls) if isinstance(controls, Sequence) else [controls]
    for control in control_list:
        if not callable(control):
            raise ValueError(
                f"`controls` must be controls, such as those of text_diffusers.guidance, got {control!r}."
            )
    return control_list


def check_control_targets(
    controls: list, scheduler: Any, block_length: int | None, causal_past: bool = False
):
    """Refuse controls that cannot act where these steps are taken.

    Args:
        block_length: tokens of a block of the denoiser in this call; `None` where it writes all of a text together.
        causal_past: whether it does so over a causal past, where only a `block_length` of the call makes blocks.

    Raises:
        ValueError: if some act on p(x_s | x_t) and the scheduler does not draw from it, one draws tokens together and
            the scheduler or another control draws them otherwise, or there are blocks for one that weighs all of a
            text.
    """
    # Only an ancestral step draws from p(x_s | x_t), which these controls change.
    on_posterior = any(acts_on(control) == "posterior" for control in controls)
    if on_posterior and not getattr(scheduler, "draws_reverse", False):
        raise ValueError(
            "`controls` that act on p(x_s | x_t) need a scheduler that draws from it, such as "
            f"D3PMAbsorbingScheduler or D3PMUniformScheduler, got {type(scheduler).__name__}."
        )
    joint = [control for control in controls if draws_jointly(control)]
    if joint and not getattr(scheduler, "takes_drawn", False):
        raise ValueError(
            "`controls` that draw tokens together, such as RegexControl, need a scheduler of absorbing noise of this "
            f"package, such as D3PMAbsorbingScheduler or ConfidenceScheduler, got {type(scheduler).__name__}."
        )
    if joint and (len(joint) > 1 or on_posterior):
        raise ValueError(
            "`controls` must have one that draws tokens at most: one that draws them together, such as RegexControl, "
            f"excludes others, and those that act on p(x_s | x_t), got {controls!r}."
        )
    weighing = [control for control in controls if weighs_text(control)]
    if not weighing or block_length is None:
        return
    if causal_past:
        raise ValueError(
            f"`block_length` must be left out with `controls` that weigh all of a text, got {block_length} with "
            f"{weighing!r}: without it the text is written in one block, which they see as a whole."
        )
    raise ValueError(
        "`controls` must be left out for a denoiser with blocks, which predicts one block at a time, but for those "
        f"that change each token by itself, as `LengthControl` does; got {weighing!r}."
    )


def is_due(control: Any, progress: float) -> bool:
    """Whether this share of the steps is between a control's `start` and `stop`, if it has these."""
    return getattr(control, "start", 0.0) <= progress < getattr(control, "stop", 1.0)


def acts_on(control: Any) -> str:
    """What a control changes: "prediction", logits of clean tokens, or "posterior", log p(x_s | x_t)."""
    return getattr(control, "acts_on", "prediction")


def weighs_text(control: Any) -> bool:
    """Whether a control weighs all that is open in a text, and does not change each prediction by itself."""
    return getattr(control, "weighs_text", True)


def guided_on_posterior(batch: TextBatch, scheduler: Any) -> Tensor:
    """(B,) bool: the rows whose p(x_s | x_t) is guided in the step that is due, and not the predictions alone."""
    scales = batch.step_scales

    # A control of the posterior needs it in every row.
    if any_due(batch.controls, batch.progress, "posterior"):
        return torch.ones_like(scales, dtype=torch.bool)
    # What comes of predictions by another rule than p(x_s | x_t) can be guided on the predictions only.
    hides_tokens = scheduler.corruption in HIDING_NOISES
    draws_reverse = getattr(scheduler, "draws_reverse", False) and not hides_tokens
    return (scales != 0) & (scales != 1) & draws_reverse


def draws_jointly(control: Any) -> bool:
    """Whether a control draws the tokens of a step together, in the place of the scheduler."""
    return getattr(control, "draws_jointly", False)


def any_due(controls: Iterable, progress: float, target: str) -> bool:
    """Whether a control that acts on "prediction" or "posterior" is due after this share of the steps."""
    return any(acts_on(control) == target and is_due(control, progress) for control in controls)


def apply_controls(logits: Tensor, state: TextState, controls: list, target: str) -> Tensor:
    """(N, V) of the open tokens after each control that is due on "prediction" or "posterior", in order."""
    # Each control sees what those before it made of the logits.
    for control in controls:
        if acts_on(control) == target and is_due(control, state.progress):
            logits = control(logits, state)
    return logits


def planned_lengths(controls: list, generators: list[torch.Generator]) -> list[int] | None:
    """Number of tokens of each text, if a control fixes it.

    Raises:
        ValueError: if two of them do.
    """
    # A plan may draw from the generators, so it is made once a call.
    plans = [
        control.plan_lengths(generators) for control in controls if hasattr(control, "plan_lengths")
    ]
    if len(plans) > 1:
        raise ValueError(
            f"`controls` must fix the length of a text once, got {len(plans)} controls that do."
        )
    return plans[0] if plans else None


def refuse_two_lengths(controls: list, **others: Any):
    """Raise a `ValueError` if a control fixes the length of a text, and so does one of the arguments `others`."""
    is_planned = any(hasattr(control, "plan_lengths") for control in controls)
    if is_planned and any(value is not None for value in others.values()):
        *first, last = (f"`{name}`" for name in others)
        raise ValueError(
            f"`controls` that fix the length exclude {', '.join(first)} and {last}, which also do."
        )
