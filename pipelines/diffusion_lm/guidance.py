"""Guidance in diffusion over word embeddings: classifier-free, by gradients of log p(c | x_t), by inner updates.

Everything is on the scale on which the denoiser is trained, x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise.

Shapes: B rows, G of them with a guidance scale other than 1, L sequence length, E embedding width, V vocabulary size.
"""

import inspect
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from text_diffusers.common.validation import is_int, is_list, is_number, require
from text_diffusers.pipelines.diffusion_lm.prediction import EmbeddingPredictor
from text_diffusers.pipelines.guidance import draws_jointly, guide, is_due, text_state
from text_diffusers.pipelines.text_batch import TextBatch

# How the inner updates of Diffusion-LM's control go down their gradient.
OPTIMIZERS = ("adagrad", "sign")
ADAGRAD_EPS = 1e-10


# Classifier-free guidance


@dataclass
class GuidedPrediction:
    """A prediction under guidance, and the clean estimates (B, L, E) of it and of its parts.

    With self-conditioning each part is shown its own estimate in the next step, as in training.

    Attributes:
        prediction: (B, L, E) clean embeddings, noise or velocity, as the denoiser predicts.
        estimate: of the prediction.
        own_estimate: of the prediction with the condition, before guidance.
        unconditional_estimate: of the one without, in the rows of the unconditional view, with zeros in those that are
            not guided; `None` where no row is.
    """

    prediction: Tensor
    estimate: Tensor
    own_estimate: Tensor
    unconditional_estimate: Tensor | None = None


def strengthened_condition(
    source: Any, class_labels: Any, guidance_scale: Any, guide_by: str | None, negative_prompt: Any
) -> str | None:
    """The condition that guidance strengthens, by default all that there are: "label", "prompt" (a source) or "both".

    The beginning of a text is none: without it, the embeddings to be written would stand in other places.

    Raises:
        ValueError: if these arguments of a call do not fit each other.
    """
    scales = guidance_scale if is_list(guidance_scale) else [guidance_scale]
    if source is None and class_labels is None and any(scale != 1 for scale in scales):
        raise ValueError(
            f"`guidance_scale` must be 1 without a condition, `class_labels` or `source`, got {guidance_scale!r}."
        )

    if guide_by == "masked_prompt":
        raise ValueError(
            '`guide_by` must be "label", "prompt" or "both": masks are no embeddings that the model has seen, got '
            f"{guide_by!r}."
        )

    # What is asked for must be there.
    if guide_by in ("prompt", "both") and source is None:
        raise ValueError(f"`guide_by`={guide_by!r} needs `source`.")
    if negative_prompt is not None and (source is None or guide_by == "label"):
        raise ValueError(
            "`negative_prompt` needs a `source`, by which guidance leads away from it."
        )

    if guide_by is None and source is not None and class_labels is not None:
        return "both"
    return guide_by


def guided_rows(view: TextBatch, rows: Tensor) -> TextBatch:
    """The rows (G,) of the unconditional view that are guided, without padding that none of them needs."""
    length = int(view.attention_mask[rows].sum(dim=1).max())
    own_estimate = view.own_estimate
    return replace(
        view,
        tokens=view.tokens[rows, :length],
        editable=view.editable[rows, :length],
        attention_mask=view.attention_mask[rows, :length],
        class_labels=None if view.class_labels is None else view.class_labels[rows],
        clean=view.clean[rows, :length],
        own_estimate=None if own_estimate is None else own_estimate[rows, :length],
    )


def predict_guided(
    predictor: EmbeddingPredictor, batch: TextBatch, noisy: Tensor, timestep: float
) -> GuidedPrediction:
    """Prediction at noisy embeddings (B, L, E) under classifier-free guidance, by one call of the denoiser.

    Predictions of clean embeddings, noise and velocity are linear in each other, so guiding one is guiding all.
    """
    scheduler = predictor.scheduler
    scales = batch.step_scales
    rows = (scales != 1).nonzero()[:, 0]  # (G,)
    whole_view = batch.unconditional
    if whole_view is None or not len(rows):
        prediction = predictor.predict(batch, noisy, timestep)
        estimate = scheduler.clean_estimate(prediction, noisy, timestep)
        return GuidedPrediction(prediction, estimate, own_estimate=estimate)

    # Which rows are guided may change from step to step.
    if not len(whole_view.clean):
        whole_view.clean = predictor.embed(whole_view.tokens)
    view = guided_rows(whole_view, rows)

    # The same noisy words in both; words that are known are clean in both, and may stand elsewhere.
    editable = batch.editable[rows]
    if predictor.denoiser.config.partial_noising:
        written = noisy[rows][editable]  # (open tokens, E)
        view_noisy = view.clean.to(noisy).masked_scatter(view.editable.unsqueeze(-1), written)
    else:
        # Without a source in front the words stand in the same places.
        view_noisy = noisy[rows, : view.tokens.shape[1]]

    # One call for the B + G rows
    both = joined_rows(batch, view, noisy, view_noisy)
    predictions = predictor.predict(both, both.noisy, timestep)
    cond = predictions[: len(noisy), : noisy.shape[1]]
    view_prediction = predictions[len(noisy) :, : view_noisy.shape[1]]

    # Each prediction without the condition goes to the place of its word in the row that has it.
    uncond = cond[rows].masked_scatter(editable.unsqueeze(-1), view_prediction[view.editable])
    guided = cond.index_copy(0, rows, guide(cond[rows], uncond, scales[rows]).to(cond))

    # A row that is not guided has no estimate to be shown if it is later.
    view_estimate = scheduler.clean_estimate(view_prediction, view_noisy, timestep)  # (G, L, E)
    unconditional_estimate = view_estimate.new_zeros(*whole_view.tokens.shape, noisy.shape[-1])
    unconditional_estimate[rows, : view_estimate.shape[1]] = view_estimate
    return GuidedPrediction(
        prediction=guided,
        estimate=scheduler.clean_estimate(guided, noisy, timestep),
        own_estimate=scheduler.clean_estimate(cond, noisy, timestep),
        unconditional_estimate=unconditional_estimate,
    )


def joined_rows(batch: TextBatch, view: TextBatch, noisy: Tensor, view_noisy: Tensor) -> TextBatch:
    """The rows of both, padded to one length, with the noisy embeddings (B, L, E) and (G, L, E) of each."""
    length = max(noisy.shape[1], view_noisy.shape[1])

    def join(values: Tensor, view_values: Tensor) -> Tensor:
        # Padding on the right of the sequence, whatever axes come after it.
        padded = [
            F.pad(part, (0, 0) * (part.ndim - 2) + (0, length - part.shape[1]))
            for part in (values, view_values)
        ]
        return torch.cat(padded)

    joined = TextBatch(
        tokens=join(batch.tokens, view.tokens),
        editable=join(batch.editable, view.editable),
        attention_mask=join(batch.attention_mask, view.attention_mask),
        clean=join(batch.clean, view.clean),
        noisy=join(noisy, view_noisy),
    )
    if batch.class_labels is not None and view.class_labels is not None:
        joined.class_labels = torch.cat([batch.class_labels, view.class_labels])

    # One of them may have none yet, which is zeros to the denoiser.
    own_estimate = batch.own_estimate
    view_estimate = view.own_estimate
    if own_estimate is not None or view_estimate is not None:
        joined.own_estimate = join(
            torch.zeros_like(noisy) if own_estimate is None else own_estimate,
            torch.zeros_like(view_noisy) if view_estimate is None else view_estimate,
        )
    return joined


# Controls


def predict_controlled(
    predictor: EmbeddingPredictor, batch: TextBatch, noisy: Tensor, timestep: float, controls: list
) -> GuidedPrediction:
    """Prediction at noisy embeddings (B, L, E) under classifier-free guidance, moved up the gradient of controls."""
    if not controls:
        return predict_guided(predictor, batch, noisy, timestep)

    gradient, guided = gradient_of_controls(predictor, batch, noisy, timestep, controls)

    # No control went through the denoiser, so it is still to be asked.
    if guided is None:
        guided = predict_guided(predictor, batch, noisy, timestep)

    # The denoiser goes on being shown its own estimate, without the controls.
    scheduler = predictor.scheduler
    alpha_bar = scheduler.alpha_bar(timestep)
    guided.prediction = tilt_prediction(
        guided.prediction, gradient, scheduler.prediction_type, alpha_bar
    )
    guided.estimate = scheduler.clean_estimate(guided.prediction, noisy, timestep)
    return guided


def gradient_of_controls(
    predictor: EmbeddingPredictor, batch: TextBatch, noisy: Tensor, timestep: float, controls: list
) -> tuple[Tensor, GuidedPrediction | None]:
    """`(gradient, guided)`: (B, L, E) of the sum of `scale * log p(c | x_t)`, and the prediction it goes through.

    The denoiser is called if a control reads words, which are those of its clean estimate.

    Raises:
        ValueError: if the log-probabilities have no gradient, or one that is not finite.
    """
    # Where words are open, controls see those that the last clean estimate is rounded to.
    state = text_state(
        batch,
        timestep,
        is_open=batch.editable,
        undecided=batch.editable,
        mask_token_id=predictor.tokenizer.mask_token_id,
    )

    guided = None
    total = torch.zeros((), device=noisy.device)
    with torch.enable_grad():
        noisy = noisy.detach().requires_grad_()

        # One prediction serves all controls that read words.
        if not all(reads_latents(control) for control in controls):
            guided = predict_guided(predictor, batch, noisy, timestep)

        for control in controls:
            if guided is None or reads_latents(control):
                log_prob = control.latent_log_prob(noisy, timestep, batch.attention_mask)
            else:
                probs = words_of_estimate(
                    predictor, batch, guided.estimate, getattr(control, "temperature", 1.0)
                )
                log_prob = control.log_prob(probs, state)
            total = total + getattr(control, "scale", 1.0) * log_prob.sum()

        gradient = log_prob_gradient(total, noisy)

    # What the step goes on with needs no graph.
    if guided is not None:
        tensors = {
            name: value.detach() for name, value in vars(guided).items() if value is not None
        }
        guided = replace(guided, **tensors)
    return gradient, guided


def log_prob_gradient(log_prob: Tensor, values: Tensor) -> Tensor:
    """Gradient of what controls give, a scalar, in the `values` that they were given.

    Raises:
        ValueError: if there is none, or one that is not finite.
    """
    if not log_prob.requires_grad:
        raise ValueError("`controls` must give log-probabilities that can be differentiated.")

    # A control may leave the values out, and then has a gradient of zeros.
    (gradient,) = torch.autograd.grad(log_prob, values, allow_unused=True, materialize_grads=True)
    if not torch.isfinite(gradient).all():
        raise ValueError(
            "`controls` gave NaN or infinite gradients: check their log-probabilities."
        )
    return gradient


def tilt_prediction(
    prediction: Tensor, gradient: Tensor, prediction_type: str, alpha_bar: float
) -> Tensor:
    """(B, L, E) prediction of the denoiser if c were known, from the gradient (B, L, E) of log p(c | x_t).

    By Bayes' rule E[x_0 | x_t, c] = E[x_0 | x_t] + (1 - alpha_bar) / sqrt(alpha_bar) grad log p(c | x_t), the same as
    -sqrt(1 - alpha_bar) grad log p(c | x_t) on the noise (https://arxiv.org/abs/2105.05233). A gradient that is
    multiplied by s belongs to p(c | x_t)^s.
    """
    signal = math.sqrt(alpha_bar)
    noise = math.sqrt(1 - alpha_bar)
    weights = {"sample": noise**2 / signal, "epsilon": -noise, "v_prediction": -noise / signal}
    return prediction + weights[prediction_type] * gradient.to(prediction)


def words_of_estimate(
    predictor: EmbeddingPredictor, batch: TextBatch, clean: Tensor, temperature: float
) -> Tensor:
    """(B, L, V) probabilities of the words that clean estimates (B, L, E) stand for; known words are certain."""
    denoiser = predictor.denoiser
    logits = denoiser.logits(clean.to(batch.clean.dtype)).to(clean.dtype)  # (B, L, V)

    # The ids that the denoiser never writes
    special = (
        getattr(denoiser.config, "mask_token_id", None),
        getattr(denoiser.config, "pad_token_id", None),
    )
    never = [token for token in special if token is not None]
    return soft_words(logits, batch.tokens, batch.editable, temperature, never)


def soft_words(
    logits: Tensor, tokens: Tensor, undecided: Tensor, temperature: float, never: list[int]
) -> Tensor:
    """(B, L, V) probabilities of words: softmax(logits / temperature) where `undecided`, else certain `tokens`.

    Args:
        logits: (B, L, V).
        tokens: (B, L).
        undecided: (B, L) bool.
        never: ids that have no mass where the softmax is taken.
    """
    special = torch.tensor(never, device=logits.device, dtype=torch.long)
    soft = (logits / temperature).index_fill(-1, special, -torch.inf).softmax(dim=-1)
    return torch.where(undecided.unsqueeze(-1), soft, F.one_hot(tokens, logits.shape[-1]).to(soft))


def reads_latents(control: Any) -> bool:
    """Whether a control reads noisy embeddings, so that no clean estimate is needed."""
    return callable(getattr(control, "latent_log_prob", None))


def is_acting(control: Any, progress: float) -> bool:
    """Whether a control acts after this share of the steps."""
    return is_due(control, progress) and getattr(control, "scale", 1.0) != 0


def acting_controls(batch: TextBatch) -> list:
    """The controls of a batch that act in the step that is due."""
    return [control for control in batch.controls if is_acting(control, batch.progress)]


def check_embedding_controls(controls: list, denoiser: Any):
    """Raise a `ValueError` unless these controls can be read on word embeddings of this denoiser."""
    for control in controls:
        if reads_latents(control):
            continue
        if draws_jointly(control):
            raise ValueError(
                "`controls` that draw tokens together, such as RegexControl, need a pipeline of tokens, got "
                f"{type(control).__name__}."
            )
        if not callable(getattr(control, "log_prob", None)):
            raise ValueError(
                f"`controls` must have a `log_prob` or `latent_log_prob`, got {control!r}."
            )
        if not hasattr(denoiser, "logits"):
            raise ValueError(f"`controls` read words: {type(denoiser).__name__} has no `logits`.")


# Inner updates


@dataclass
class InnerUpdates:
    """Updates of x_s that lower `-log p(c | x_s) + fluency * |x_s - mean|^2 / std`, as Diffusion-LM's control.

    https://arxiv.org/abs/2205.14217, section 5.1; like its code this divides by the standard deviation. What the
    optimizer has learned is kept from step to step of a text. The code makes it anew before each update, which makes
    of Adagrad steps of `step_size` by the sign of the gradient, whatever its size: that is `optimizer="sign"`.

    Args:
        optimizer: "adagrad" or "sign".
        step_size: of an update; of Adagrad, of its first.
        fluency: weight of staying near the mean.
        inner_steps: updates after each step but the last; without any, controls move the clean estimate instead.
        squares: (B, L, E) sum of the squared gradients so far.

    Raises:
        ValueError: if one of them makes no sense.

    Example:
        >>> updates = InnerUpdates("sign", step_size=0.25, fluency=0.0)
        >>> updates.descend(torch.zeros(1, 1, 2), torch.tensor([[[7.0, -0.1]]]))
        tensor([[[-0.2500,  0.2500]]])
    """

    optimizer: str
    step_size: float
    fluency: float
    inner_steps: int = 0
    squares: Tensor | None = field(default=None, init=False)

    def __post_init__(self):
        if not is_int(self.inner_steps, 0):
            raise ValueError(
                f"`inner_steps` must be an integer of at least 0, got {self.inner_steps!r}."
            )
        is_known = self.optimizer in OPTIMIZERS
        require(is_known, "optimizer", f"one of {OPTIMIZERS}", self.optimizer, OPTIMIZERS)
        if not is_number(self.fluency, 0):
            raise ValueError(f"`fluency` must be at least 0, got {self.fluency!r}.")
        if not is_number(self.step_size, 0) or self.step_size == 0:
            raise ValueError(f"`step_size` must be above 0, got {self.step_size!r}.")

    def update(
        self, latents: Tensor, gradient: Tensor, mean: Tensor, std: float, editable: Tensor
    ) -> Tensor:
        """(B, L, E) latents after one update; `gradient` is that of log p(c | x_s), `editable` (B, L) may change."""
        # The gradient of the fluency term; known words do not move.
        pull = 2 * self.fluency * (latents - mean) / std
        return self.descend(latents, (pull - gradient) * editable.unsqueeze(-1))

    def descend(self, values: Tensor, gradient: Tensor) -> Tensor:
        """(B, L, E) values after a step of the optimizer down the gradient."""
        if self.optimizer == "sign":
            return values - self.step_size * gradient.sign()

        # Adagrad: entries that were moved a lot move less from then on.
        squares = gradient.square()
        self.squares = squares if self.squares is None else self.squares + squares
        return values - self.step_size * gradient / (self.squares.sqrt() + ADAGRAD_EPS)


def refine_latents(
    predictor: EmbeddingPredictor,
    batch: TextBatch,
    timesteps: list[float],
    updates: InnerUpdates,
    eta: float,
):
    """Make the inner updates of the latents that the last step of the scheduler left.

    Args:
        timesteps: of all steps; `batch.steps_done` of them are done.
        eta: share of fresh noise in a step of DDIM.
    """
    controls = acting_controls(batch)
    if not controls:
        return

    # From time t of the step that is done to time s of the next one
    scheduler = predictor.scheduler
    timestep = timesteps[batch.steps_done]
    alpha_t = scheduler.alpha_bar(timesteps[batch.steps_done - 1])
    alpha_s = scheduler.alpha_bar(timestep)

    # The latents as the denoiser is shown them next
    start = scheduler.scale_model_input(batch.latents, timestep)
    if batch.shows_clean:
        start = torch.where(batch.editable.unsqueeze(-1), start, batch.clean)

    # Without fresh noise the result of a step is its mean.
    noise_share = drawn_noise(scheduler.scheduler, eta)
    mean = (
        step_mean(batch.estimate, batch.noisy, alpha_t, alpha_s, noise_share)
        if noise_share
        else start
    )

    noisy = start
    for _ in range(updates.inner_steps):
        gradient, _ = gradient_of_controls(predictor, batch, noisy, timestep, controls)
        noisy = updates.update(noisy, gradient, mean, step_std(alpha_t, alpha_s), batch.editable)

    # Back on the scale of the scheduler
    unit = scheduler.scale_model_input(torch.ones_like(noisy[:1, :1, :1]), timestep)
    batch.latents = batch.latents + (noisy - start) / unit


def drawn_noise(scheduler: Any, eta: float) -> float:
    """Share of the standard deviation of DDPM's fresh noise that a scheduler's step draws."""
    if "eta" in inspect.signature(scheduler.step).parameters:
        return eta

    # Schedulers without an `eta` draw all of it or nothing.
    is_ancestral = isinstance(scheduler, (DDPMScheduler, EulerAncestralDiscreteScheduler))
    return 1.0 if is_ancestral or "sde" in str(scheduler.config.get("algorithm_type")) else 0.0


def step_mean(clean: Tensor, noisy: Tensor, alpha_t: float, alpha_s: float, eta: float) -> Tensor:
    """(B, L, E) mean of x_s given x_t, `noisy`, and a clean estimate, all (B, L, E), with a share `eta` of noise."""
    # As in DDIM: noise that is not drawn anew keeps the direction to x_t.
    variance = (eta * step_std(alpha_t, alpha_s)) ** 2
    direction = math.sqrt(max(0.0, 1 - alpha_s - variance) / (1 - alpha_t))
    return math.sqrt(alpha_s) * clean + direction * (noisy - math.sqrt(alpha_t) * clean)


def step_std(alpha_t: float, alpha_s: float) -> float:
    """Standard deviation of x_s given x_t and x_0, with all of DDPM's noise."""
    return math.sqrt((1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s))
