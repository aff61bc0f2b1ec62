"""Diffusion over word embeddings that is told what to write: classifier-free guidance, classifiers, other controls.

Shapes: B rows (texts times `num_return_sequences` and `num_candidates`), G of them with a guidance scale other than 1,
L sequence length, E embedding width, V vocabulary size.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import start_ids
from text_diffusers.common.validation import check_strings, is_list
from text_diffusers.pipelines.diffusion_lm.guidance import (
    GuidedEmbeddingCanvas,
    InnerUpdates,
    check_control_settings,
    drawn_noise,
    embedding_state,
    is_acting,
    joined_canvas,
    reads_latents,
    soft_words,
    step_mean,
    step_std,
    texts_behind,
    tilt_prediction,
)
from text_diffusers.pipelines.diffusion_lm.pipeline_diffusion_lm import DiffusionLMPipeline, DiffusionLMPipelineOutput
from text_diffusers.pipelines.guidance import (
    TextState,
    as_controls,
    check_interval,
    guide,
    planned_lengths,
    refuse_two_lengths,
    scales_by_row,
)
from text_diffusers.pipelines.text_batch import EmbeddingCanvas, encode_sources, lay_out

GUIDED_BY = ("label", "source", "both")


class GuidedDiffusionLMPipeline(DiffusionLMPipeline):
    """`DiffusionLMPipeline` under guidance: `pipe(class_labels=1, guidance_scale=3.0)`, `pipe(controls=[...])`.

    Classifier-free guidance (https://arxiv.org/abs/2207.12598) strengthens a condition, the class label, the source or
    both, by comparing the prediction with that of the same text without it: `uncond + guidance_scale * (cond -
    uncond)`. Both come from one call of the denoiser. Scale 1 is the conditional model itself, without rows for the
    other, and 0 the unconditional one. Predictions of clean embeddings, noise and velocity are linear in each other,
    so guiding one is guiding all.

    Controls, such as those of `text_diffusers.guidance.controls`, give the log-probability of what is wanted: of noisy
    embeddings, by `latent_log_prob`, or of the words that the clean estimate stands for, by `log_prob`, whose gradient
    goes back through the denoiser; a control's `temperature` is that of these words. The clean estimate is moved by
    `scale * (1 - alpha_bar) / sqrt(alpha_bar)` times the gradient. With `inner_steps` controls act as in Diffusion-LM
    instead, on the latents after each step but the last; the denoiser is then called in each update, if a control has
    no `latent_log_prob`.

    Args:
        tokenizer, denoiser, scheduler, lengths: as in `DiffusionLMPipeline`. The denoiser should have been trained
            with `--condition_dropout` for classifier-free guidance, and needs `logits` for controls with `log_prob`.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        text: str | list[str] | None = None,
        mask: Any = None,
        source: str | list[str] | None = None,
        class_labels: int | list[int] | None = None,
        length: int | list[int] | None = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        known_words: str = "renoise",
        num_return_sequences: int = 1,
        num_candidates: int = 1,
        choose: Callable[[list[str]], int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "text",
        return_dict: bool = True,
        return_history: bool = False,
        callback_on_step_end: Callable[[Any, int, float, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens", "latents"),
        guidance_scale: float | list[float] = 1.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        guide_by: str | None = None,
        negative_source: str | list[str] | None = None,
        controls: Any = None,
        inner_steps: int = 0,
        fluency: float = 0.01,
        step_size: float = 0.1,
        optimizer: str = "adagrad",
    ) -> DiffusionLMPipelineOutput | tuple:
        """Write text.

        Args:
            guidance_scale: one, or one a text.
            guidance_start, guidance_stop: shares of the steps between which the scale applies; before and after them
                it is 1.
            guide_by: the condition that guidance strengthens, "label", "source" or "both"; by default what is given.
            negative_source: what the texts are to be led away from, one or one a text, instead of an empty source.
            controls: a control, or several that act together.
            inner_steps: updates of the latents after each step but the last; 0 moves the clean estimate instead.
            fluency: weight of staying near the mean of a step's result in these updates. Where the scheduler draws no
                noise, its result is that mean.
            step_size: of an update.
            optimizer: "adagrad", which remembers the gradients of all steps, or "sign"; see `InnerUpdates`.
            All others are those of `DiffusionLMPipeline`.

        Returns:
            `DiffusionLMPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the model or the others, or predictions or gradients are not
                finite.
        """
        # 1. Check the inputs
        self._check_candidates(num_candidates, choose)
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        # 2. Encode the text and cover what is to be written with pure noise
        request = (prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator)
        sampling = (num_inference_steps, eta, known_words)
        guidance = (guidance_scale, (guidance_start, guidance_stop), guide_by, negative_source)
        control = (controls, inner_steps, fluency, step_size, optimizer)
        canvas, generators = self._begin_guided(request, source, length, sampling, num_candidates, guidance, control)
        # 3. Denoise
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        history = self._write(canvas, generators, return_history, *callback)
        # 4. Cut each text at its end, choose among the candidates and decode
        return self._finish(canvas, history, num_candidates, choose, output_type, return_dict)

    @torch.no_grad()
    def stream(
        self,
        prompt: str | list[str] | None = None,
        text: str | list[str] | None = None,
        mask: Any = None,
        source: str | list[str] | None = None,
        class_labels: int | list[int] | None = None,
        length: int | list[int] | None = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        known_words: str = "renoise",
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_scale: float | list[float] = 1.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        guide_by: str | None = None,
        negative_source: str | list[str] | None = None,
        controls: Any = None,
        inner_steps: int = 0,
        fluency: float = 0.01,
        step_size: float = 0.1,
        optimizer: str = "adagrad",
    ) -> Iterator[list[str]]:
        """Yield the B texts after every step, as their clean estimates are rounded; the last of them are finished.

        Arguments and errors are those of `__call__`.
        """
        request = (prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator)
        sampling = (num_inference_steps, eta, known_words)
        guidance = (guidance_scale, (guidance_start, guidance_stop), guide_by, negative_source)
        control = (controls, inner_steps, fluency, step_size, optimizer)
        yield from self._frames(*self._begin_guided(request, source, length, sampling, 1, guidance, control))

    def _begin_guided(
        self, request: tuple, source: Any, length: Any, sampling: tuple, num_candidates: int, guidance: tuple, control
    ) -> tuple[GuidedEmbeddingCanvas, list[torch.Generator]]:
        """The canvas as pure noise with what guides it, and one generator a row."""
        prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator = request
        guidance_scale, interval, guide_by, negative_source = guidance
        controls, inner_steps, fluency, step_size, optimizer = control
        controls = as_controls(controls)
        check_interval(*interval)
        check_control_settings(controls, inner_steps, fluency, step_size, optimizer)
        self._check_controls(controls, text, length, max_new_tokens)
        guide_by = self._check_guided_by(guide_by, class_labels, source, negative_source)
        if is_list(guidance_scale) and isinstance(class_labels, int) and prompt is text is source is None:
            class_labels = [class_labels] * len(guidance_scale)
        request = (prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator)
        plan: Any = {"num_candidates": num_candidates, "plan_lengths": partial(planned_lengths, controls)}
        plain, generators = self._begin(request, source, length, *sampling, **plan)
        repeats = num_return_sequences * num_candidates
        scales = scales_by_row(guidance_scale, len(plain.tokens) // repeats, repeats)
        if guide_by is None and any(scale != 1 for scale in scales):
            raise ValueError(
                f"`guidance_scale` must be 1 without a condition, `class_labels` or `source`, got {guidance_scale!r}."
            )
        canvas = GuidedEmbeddingCanvas(**vars(plain), num_steps=len(self._token_scheduler.timesteps))
        canvas.scales = torch.tensor(scales, device=canvas.tokens.device)
        canvas.guided = (canvas.scales != 1).nonzero()[:, 0]
        canvas.interval, canvas.controls, canvas.inner_steps = interval, controls, inner_steps
        canvas.inner = InnerUpdates(optimizer, step_size, fluency)
        if len(canvas.guided):
            canvas.unconditional = self._unconditional(canvas, guide_by, negative_source, repeats)
        return canvas, generators

    def _unconditional(
        self, canvas: GuidedEmbeddingCanvas, guide_by: str | None, negative_source: Any, repeats: int
    ) -> EmbeddingCanvas:
        """The guided rows without their condition."""
        chosen, labels = canvas.guided, canvas.class_labels
        if labels is not None:
            labels = labels[chosen]
            labels = labels if guide_by == "source" else torch.full_like(labels, self.denoiser.config.num_classes)
        if guide_by == "label":
            laid_out = canvas.tokens[chosen], canvas.editable[chosen], canvas.attention_mask[chosen]
        else:
            beginnings = self._encode_negatives(negative_source, len(canvas.tokens) // repeats)
            rows = texts_behind(canvas, [row for row in beginnings for _ in range(repeats)])
            self._check_length(max(len(row) for row in rows))
            laid_out = lay_out(
                [rows[i] for i in chosen.tolist()], self.tokenizer.pad_token_id or 0, canvas.tokens.device
            )
        clean = self.denoiser.embed(laid_out[0])
        return EmbeddingCanvas(*laid_out, labels, canvas.ends_at_eos, clean, clean)

    def _encode_negatives(self, negative_source: Any, num_texts: int) -> list[list[int]]:
        """What stands before the texts in rows without the source, one each."""
        negatives = list(negative_source) if is_list(negative_source) else [negative_source or ""] * num_texts
        if len(negatives) != num_texts:
            raise ValueError(f"`negative_source` must be one or {num_texts}, one a text, got {len(negatives)}.")
        return encode_sources(self.tokenizer, negatives)

    def _step(self, canvas: GuidedEmbeddingCanvas, timestep: float, generators: list[torch.Generator]):
        """Bring `canvas.latents` from `timestep` to the next, less noisy time, and read the words off them."""
        super()._step(canvas, timestep, generators)
        canvas.steps_done += 1
        if canvas.inner_steps and canvas.steps_done < canvas.num_steps:
            self._refine(canvas, timestep)

    def _predict_embeddings(self, canvas: GuidedEmbeddingCanvas, noisy: Tensor, timestep: float) -> Tensor:
        """(B, L, E) what the denoiser says of `noisy` under guidance, in the dtype of the latents."""
        controls = [] if canvas.inner_steps else self._acting(canvas)
        predicted, gradient = self._gradient(canvas, noisy, timestep, controls)
        prediction, own, other = self._predict_guided(canvas, noisy, timestep) if predicted is None else predicted
        canvas.noisy, canvas.own_estimate = noisy, own
        if canvas.unconditional is not None:
            canvas.unconditional.estimate = other
        if gradient is None:
            return prediction
        alpha_bar = float(self.scheduler.alphas_cumprod[round(timestep)])
        return tilt_prediction(prediction, gradient, self.denoiser.config.prediction_type, alpha_bar)

    def _predict_guided(
        self, canvas: GuidedEmbeddingCanvas, noisy: Tensor, timestep: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`(prediction, own, other)`: (B, L, E) by classifier-free guidance, and the clean estimates of both parts."""
        scheduler, other = self._token_scheduler, canvas.unconditional
        own_rows = EmbeddingCanvas(
            *(canvas.tokens, canvas.editable, canvas.attention_mask, canvas.class_labels, canvas.ends_at_eos),
            *(noisy, canvas.clean, canvas.own_estimate),
        )
        start, stop = canvas.interval
        if other is None or not start <= canvas.progress < stop:
            cond = super()._predict_embeddings(own_rows, noisy, timestep)
            return cond, scheduler.clean_estimate(cond, noisy, timestep), None
        rows, editable = canvas.guided, canvas.editable[canvas.guided]
        other.latents = noisy[rows]
        if self.denoiser.config.partial_noising:  # what is known is clean, and may stand elsewhere
            written = noisy[rows][editable]  # (open tokens, E), in the same order in both
            other.latents = other.clean.to(noisy).masked_scatter(other.editable.unsqueeze(-1), written)
        both = joined_canvas(own_rows, other)
        said = super()._predict_embeddings(both, both.latents, timestep)
        cond = said[: len(noisy), : noisy.shape[1]]
        other_said = said[len(noisy) :, : other.tokens.shape[1]]
        uncond = cond[rows].masked_scatter(editable.unsqueeze(-1), other_said[other.editable])
        guided = cond.index_copy(0, rows, guide(cond[rows], uncond, canvas.scales[rows]))
        own = scheduler.clean_estimate(cond, noisy, timestep)
        return guided, own, scheduler.clean_estimate(other_said, other.latents, timestep)

    def _gradient(
        self, canvas: GuidedEmbeddingCanvas, noisy: Tensor, timestep: float, controls: list
    ) -> tuple[tuple | None, Tensor | None]:
        """What `_predict_guided` says, if controls read words, and (B, L, E) the gradient of what all controls give.

        It is that of the sum of `scale * log p(c | x_t)`; `None` without controls.
        """
        if not controls:
            return None, None
        predicted = clean = None
        state = self._state(canvas, timestep)
        total = torch.zeros((), device=noisy.device)
        with torch.enable_grad():
            noisy = noisy.detach().requires_grad_()
            if not all(reads_latents(control) for control in controls):
                predicted = self._predict_guided(canvas, noisy, timestep)
                clean = self._token_scheduler.clean_estimate(predicted[0], noisy, timestep)
            for control in controls:
                if reads_latents(control):
                    found = control.latent_log_prob(noisy, timestep, canvas.attention_mask)
                else:
                    probs = self._soft_words(canvas, clean, getattr(control, "temperature", 1.0))
                    found = control.log_prob(probs, state)
                total = total + getattr(control, "scale", 1.0) * found.sum()
            if not total.requires_grad:
                raise ValueError("`controls` must give log-probabilities that can be differentiated.")
            gradient = torch.autograd.grad(total, noisy, allow_unused=True, materialize_grads=True)[0]
        if not torch.isfinite(gradient).all():
            raise ValueError("`controls` gave NaN or infinite gradients: check their log-probabilities.")
        predicted = None if predicted is None else tuple(None if v is None else v.detach() for v in predicted)
        return predicted, gradient

    def _soft_words(self, canvas: GuidedEmbeddingCanvas, clean: Any, temperature: float) -> Tensor:
        """(B, L, V) probabilities of the words that clean embeddings stand for; known words are certain."""
        logits = self.denoiser.logits(clean.to(canvas.clean.dtype)).to(clean.dtype)
        config = self.denoiser.config
        special = (getattr(config, "mask_token_id", None), getattr(config, "pad_token_id", None))
        never = [token for token in special if token is not None]
        return soft_words(logits, canvas.tokens, canvas.editable, temperature, never)

    def _refine(self, canvas: GuidedEmbeddingCanvas, timestep: float):
        """The inner updates of the latents after the step from `timestep`."""
        scheduler, controls = self._token_scheduler, self._acting(canvas)
        assert canvas.inner is not None and canvas.noisy is not None and canvas.estimate is not None
        if not controls:
            return
        following = scheduler.timesteps[canvas.steps_done].item()
        alpha_t, alpha_s = (float(self.scheduler.alphas_cumprod[round(time)]) for time in (timestep, following))
        at_first = scheduler.scale_model_input(canvas.latents, following)
        if self._shows_clean(canvas):
            at_first = torch.where(canvas.editable.unsqueeze(-1), at_first, canvas.clean)
        eta = drawn_noise(self.scheduler, canvas.eta)
        mean = step_mean(canvas.estimate, canvas.noisy, alpha_t, alpha_s, eta) if eta else at_first
        noisy = at_first
        for _ in range(canvas.inner_steps):
            gradient = self._gradient(canvas, noisy, following, controls)[1]
            assert gradient is not None
            noisy = canvas.inner.update(noisy, gradient, mean, step_std(alpha_t, alpha_s), canvas.editable)
        unit = scheduler.scale_model_input(torch.ones_like(noisy[:1, :1, :1]), following)
        canvas.latents = canvas.latents + (noisy - at_first) / unit

    def _acting(self, canvas: GuidedEmbeddingCanvas) -> list:
        return [control for control in canvas.controls if is_acting(control, canvas.progress)]

    def _state(self, canvas: GuidedEmbeddingCanvas, timestep: float) -> TextState:
        """What controls see; where words are open, `tokens` are those that the last clean estimate is rounded to."""
        starts = canvas.starts or [len(start_ids(self.tokenizer))] * len(canvas.tokens)
        return embedding_state(canvas, starts, timestep, canvas.num_steps, self.tokenizer.mask_token_id)

    def _check_guided_by(self, guide_by, class_labels, source, negative_source) -> str | None:
        """The condition that guidance strengthens, or `None` without one."""
        given = [name for name, value in (("label", class_labels), ("source", source)) if value is not None]
        if guide_by is None:
            guide_by = "both" if len(given) == 2 else given[0] if given else None
        elif guide_by not in GUIDED_BY:
            raise ValueError(f"`guide_by` must be one of {GUIDED_BY}, got {guide_by!r}.")
        for name, argument in (("label", "class_labels"), ("source", "source")):
            if guide_by in (name, "both") and name not in given:
                raise ValueError(f"`guide_by`={guide_by!r} needs `{argument}`.")
        if negative_source is not None:
            check_strings("negative_source", negative_source)
            if guide_by not in ("source", "both"):
                raise ValueError("`negative_source` needs a `source`, by which guidance leads away from it.")
        return guide_by

    def _check_controls(self, controls: list, text: Any, length: Any, max_new_tokens: int | None):
        if not all(reads_latents(control) for control in controls) and not hasattr(self.denoiser, "logits"):
            raise ValueError(f"`controls` read words: {type(self.denoiser).__name__} has no `logits`.")
        refuse_two_lengths(controls, text=text, length=length, max_new_tokens=max_new_tokens)
