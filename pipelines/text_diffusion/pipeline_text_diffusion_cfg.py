"""Text diffusion that is told what to write: classifier-free guidance, classifiers and other controls.

Guidance acts on predictions of clean tokens under absorbing noise, and on p(x_s | x_t) under other kernels (D-CFG and
D-CBG, https://arxiv.org/abs/2412.10193).

Shapes: B rows (texts times `num_return_sequences`), L sequence length, V vocabulary size, N selected positions.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.validation import is_list
from text_diffusers.models.language_model import as_denoiser, is_masked_lm
from text_diffusers.pipelines.guidance import (
    TextState,
    acts,
    as_controls,
    check_interval,
    guide,
    guided_condition,
    planned_lengths,
    refuse_two_lengths,
    scales_by_row,
    spread,
    tilt,
)
from text_diffusers.pipelines.text_batch import (
    Canvas,
    GuidedCanvas,
    append_exactly,
    cut_rows,
    encode_prompts,
    encode_sources,
    lay_out,
    without_beginnings,
)
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import (
    TextDiffusionPipeline,
    TextDiffusionPipelineOutput,
)


class TextDiffusionCFGPipeline(TextDiffusionPipeline):
    """`TextDiffusionPipeline` under guidance: `pipe(class_labels=1, guidance_scale=3.0)`, `pipe(controls=[...])`.

    Classifier-free guidance strengthens a condition, the class label, the prompt (or source) or both, by comparing the
    prediction with that of the same text without the condition: `uncond + guidance_scale * (cond - uncond)`. Both come
    from one call of the denoiser. Scale 1 is the conditional model itself, without a second forward pass, and 0 the
    unconditional one.

    Controls are functions of predictions, such as those of `text_diffusers.guidance.controls`; each sees what those before it
    made of them. Some act on p(x_s | x_t) instead and need an ancestral scheduler or `TokenDDIMScheduler`.

    Args:
        tokenizer, denoiser, scheduler, lengths: as in `TextDiffusionPipeline`. For a label to be dropped, the denoiser
            should have been trained with `--condition_dropout`; for prompts any denoiser serves.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        text: str | list[str] | None = None,
        mask: Any = None,
        source: str | list[str] | None = None,
        class_labels: int | str | list[int | str | None] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float | list[float] = 1.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        guide_by: str | None = None,
        controls: Any = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 128,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "text",
        return_dict: bool = True,
        return_history: bool = False,
        callback_on_step_end: Callable[[Any, int, float, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
    ) -> TextDiffusionPipelineOutput | tuple:
        """Write text.

        Args:
            source: the text or texts to write from, for a denoiser that was trained with `--source_column`; what is
                written is returned without it.
            class_labels: a label or its name, or one a text; `None` among them is no label.
            negative_prompt: what the texts are to be led away from, one or one a text: it begins the text without the
                condition, or is its source.
            guidance_scale: one, or one a text.
            guidance_start, guidance_stop: shares of the steps between which guidance acts; before and after them the
                scale is 1.
            guide_by: the condition that guidance strengthens, "label", "prompt" (also a source) or "both"; by default
                the label, if there is one, and the prompt if there is a negative one, or no label.
            controls: a control, or several in the order in which they act.
            prompt, text, mask, max_new_tokens, num_inference_steps, num_return_sequences, generator, output_type,
                return_dict, return_history, callback_on_step_end, callback_on_step_end_tensor_inputs: as in
                `TextDiffusionPipeline`.

        Returns:
            `TextDiffusionPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the model or the others, or the model's logits are not finite.
        """
        # 1. Check the inputs, encode the text and cover what is to be written with pure noise
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        request = (prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator)
        interval = (guidance_start, guidance_stop)
        guidance = (source, negative_prompt, guidance_scale, interval, guide_by, as_controls(controls))
        canvas, generators = self._begin(request, guidance, num_inference_steps)
        # 2. Denoise
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        history = self._write(canvas, generators, return_history, *callback)
        # 3. Cut each text at its end and decode
        return self._decode(canvas, history, output_type, return_dict)

    @torch.no_grad()
    def stream(
        self,
        prompt: str | list[str] | None = None,
        text: str | list[str] | None = None,
        mask: Any = None,
        source: str | list[str] | None = None,
        class_labels: int | str | list[int | str | None] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float | list[float] = 1.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        guide_by: str | None = None,
        controls: Any = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 128,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[list[str]]:
        """Yield the B texts after every step, the last of them finished; tokens to come are shown as the mask token.

        Arguments and errors are those of `__call__`.
        """
        request = (prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator)
        interval = (guidance_start, guidance_stop)
        guidance = (source, negative_prompt, guidance_scale, interval, guide_by, as_controls(controls))
        yield from self._frames(*self._begin(request, guidance, num_inference_steps))

    def _begin(
        self, request: tuple, guidance: tuple, num_inference_steps: int
    ) -> tuple[GuidedCanvas, list[torch.Generator]]:
        """The canvas at time 1 and one generator a row, if the inputs, those of `_prepare`, fit."""
        prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, _ = request
        source, negative_prompt, guidance_scale, interval, guide_by, controls = guidance
        self._check_inputs(prompt, text, mask, num_return_sequences, max_new_tokens)
        check_interval(*interval)
        guide_by = guided_condition(prompt, text, source, class_labels, negative_prompt, guide_by)
        self._check_controls(controls, text, max_new_tokens)
        self._token_scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        guidance = (source, negative_prompt, guidance_scale, interval, guide_by, controls)
        return self._prepare(*request, *guidance)

    def _step(self, canvas: GuidedCanvas, timestep: float, generators: list[torch.Generator]):
        """Bring `canvas.tokens` from `timestep` to the next, less noisy time."""
        by_posterior = self._guided_on_posterior(canvas)
        tokens = canvas.tokens
        for rows, step in ((~by_posterior, self._plain_step), (by_posterior, self._posterior_step)):
            if rows.any():  # a row draws by its own generator in the one kind of step that it takes
                own = zip(generators, rows.tolist(), strict=True)
                theirs = [generator if taken else torch.Generator() for generator, taken in own]
                changed = rows.unsqueeze(1) & canvas.editable
                tokens = torch.where(changed, step(canvas, timestep, changed, theirs), tokens)
        canvas.tokens = tokens
        canvas.steps_done += 1

    def _plain_step(
        self, canvas: GuidedCanvas, timestep: float, changed: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """(B, L) next tokens by the scheduler's own step from guided predictions, where they may be `changed`."""
        scheduler, tokens = self._token_scheduler, canvas.tokens
        positions = scheduler.select(timestep, tokens, generators)
        positions &= changed & ~self._finished(canvas).unsqueeze(1)
        logits = self._predict(canvas, timestep, positions)  # (N, V)
        return scheduler.step(logits, timestep, tokens, positions=positions, generator=generators).prev_sample

    def _posterior_step(
        self, canvas: GuidedCanvas, timestep: float, changed: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """(B, L) next tokens from guided p(x_s | x_t), where they may be `changed`; every open one is predicted."""
        scheduler, tokens = self._token_scheduler, canvas.tokens
        positions = self._open(canvas) & changed & ~self._finished(canvas).unsqueeze(1)
        state = self._state(canvas, timestep, positions, None)
        current = tokens[positions]

        def log_reverse(logits: Tensor) -> Tensor:
            logits = tilt(logits, state, canvas.controls, "prediction")
            return scheduler.reverse_probs(logits.unsqueeze(0), timestep, current.unsqueeze(0))[0].log()

        cond, uncond = self._predict_both(canvas, timestep, positions)  # (N, V)
        scales = self._scales(canvas)[positions.nonzero()[:, 0]]
        if uncond is None:
            log_weights = log_reverse(cond)
        elif scheduler.corruption == "absorbing":
            log_weights = log_reverse(guide(cond, uncond, scales))
        else:
            log_weights = guide(log_reverse(cond), log_reverse(uncond), scales)
        log_weights = tilt(log_weights, state, canvas.controls, "posterior")
        return scheduler.draw(log_weights, tokens, positions, generators)

    def _predict(self, canvas: GuidedCanvas, timestep: float, positions: Tensor) -> Tensor:
        """(N, V) guided logits at the selected positions; rows without any are left out of the call."""
        asked = positions
        if any(acts(control, self._progress(canvas), "prediction") for control in canvas.controls):
            asked = (self._open(canvas) | positions) & positions.any(dim=1, keepdim=True)
        cond, uncond = self._predict_both(canvas, timestep, asked)
        logits = cond
        if uncond is not None:
            logits = guide(cond, uncond, self._scales(canvas)[asked.nonzero()[:, 0]])
        logits = tilt(logits, self._state(canvas, timestep, asked, positions), canvas.controls, "prediction")
        return logits if asked is positions else logits[positions[asked]]

    def _predict_both(self, canvas: GuidedCanvas, timestep: float, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, V) logits with and without the condition, from one call; each row is asked only what its scale needs."""
        other, scales = canvas.unconditional, self._scales(canvas)
        if other is None or (scales == 1).all():
            return super()._predict(canvas, timestep, positions), None
        other.tokens = other.tokens.masked_scatter(other.editable, canvas.tokens[canvas.editable])
        there = torch.zeros_like(other.editable).masked_scatter(other.editable, positions[canvas.editable])
        times = self._token_scheduler.model_timesteps(timestep, canvas.tokens)
        some = positions.any(dim=1)
        chosen = (canvas, positions, some & (scales != 0)), (other, there, some & (scales != 1))
        logits = self._call(chosen, times)
        cond, uncond = logits.split([int(asked[rows].sum()) for _, asked, rows in chosen])
        counts = positions.sum(dim=1)
        with_cond, with_uncond = (rows.repeat_interleave(counts) for _, _, rows in chosen)  # (N,) bool
        return spread(cond, with_cond, uncond, with_uncond), spread(uncond, with_uncond, cond, with_cond)

    def _call(self, parts: Sequence[tuple[Canvas, Tensor, Tensor]], times: Tensor) -> Tensor:
        """Logits at the positions (B, L) of the rows (B,) of canvases, padded to one length."""
        length = max(canvas.tokens.shape[1] for canvas, _, _ in parts)

        def joined(values: list[Tensor], filling: int) -> Tensor:
            padded = [torch.nn.functional.pad(v, (0, length - v.shape[1]), value=filling) for v in values]
            return torch.cat(padded)

        tokens = joined([canvas.tokens[rows] for canvas, _, rows in parts], self.tokenizer.pad_token_id or 0)
        real = joined([canvas.attention_mask[rows] for canvas, _, rows in parts], 0)
        positions = joined([asked[rows] for _, asked, rows in parts], 0)
        given = [canvas.class_labels[rows] for canvas, _, rows in parts if canvas.class_labels is not None]
        labels = torch.cat(given) if given else None  # both canvases have them, or none
        if not len(tokens):
            return torch.zeros(0, self.denoiser.config.vocab_size, device=tokens.device)
        denoiser = as_denoiser(self.denoiser, self.tokenizer)
        times = torch.cat([times[rows] for _, _, rows in parts])
        return denoiser(tokens, times, real, labels, positions=positions).logits

    def _scales(self, canvas: GuidedCanvas) -> Tensor:
        """(B,) scales of the step that is due: 1 outside the interval of guidance."""
        assert canvas.scales is not None
        start, stop = canvas.interval
        return canvas.scales if start <= self._progress(canvas) < stop else torch.ones_like(canvas.scales)

    def _progress(self, canvas: GuidedCanvas) -> float:
        return canvas.steps_done / len(self._token_scheduler.timesteps)

    def _guided_on_posterior(self, canvas: GuidedCanvas) -> Tensor:
        """(B,) bool: the rows whose p(x_s | x_t) is guided in the step that is due, and not the predictions alone."""
        scheduler, scales = self._token_scheduler, self._scales(canvas)
        if any(acts(control, self._progress(canvas), "posterior") for control in canvas.controls):
            return torch.ones_like(scales, dtype=torch.bool)
        drawn = scheduler.corruption != "absorbing" and getattr(scheduler, "draws_reverse", False)
        return (scales != 0) & (scales != 1) & drawn

    def _open(self, canvas: GuidedCanvas) -> Tensor:
        """(B, L) bool: tokens that are not decided yet; noise that is not a mask is never."""
        absorbing = self._token_scheduler.corruption == "absorbing"
        return self._open_tokens(canvas) if absorbing else canvas.editable

    def _state(self, canvas: GuidedCanvas, timestep: float, asked: Tensor, selected: Tensor | None) -> TextState:
        return TextState(
            tokens=canvas.tokens,
            open=asked,
            settled=canvas.attention_mask.bool() & ~self._open(canvas),
            attention_mask=canvas.attention_mask,
            starts=canvas.starts,
            timestep=timestep,
            progress=self._progress(canvas),
            last=canvas.steps_done == len(self._token_scheduler.timesteps) - 1,
            selected=selected,
            mask_token_id=self.tokenizer.mask_token_id,
        )

    def _trim(self, canvas: GuidedCanvas) -> Tensor:
        tokens = super()._trim(canvas)
        return cut_rows(tokens, canvas, self.tokenizer.pad_token_id or 0) if canvas.cut else tokens

    def _prepare(
        self,
        prompt,
        text,
        mask,
        class_labels,
        max_new_tokens,
        num_return_sequences,
        generator,
        source: Any = None,
        negative_prompt: Any = None,
        guidance_scale: float | list[float] = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        guide_by: str | None = None,
        controls: Sequence[Any] = (),
    ) -> tuple[GuidedCanvas, list[torch.Generator]]:
        """The canvas at time 1 with its unconditional view, and one generator a row."""
        several: list[Any] = [values for values in (class_labels, guidance_scale, negative_prompt) if is_list(values)]
        count = len(several[0]) if several else 1
        known = self._encode(prompt, text, mask, count) if source is None else encode_sources(self.tokenizer, source)
        scales = scales_by_row(guidance_scale, len(known), num_return_sequences)
        negatives = self._encode_negatives(negative_prompt, len(known), source is not None)
        known, negatives = ([row for row in rows for _ in range(num_return_sequences)] for rows in (known, negatives))
        labels = self._expand_labels(class_labels, len(known), num_return_sequences)
        generators = self._row_generators(generator, len(known))
        begins = [len(row) for row in known]
        first = len(start_ids(self.tokenizer))
        starts = [first] * len(known) if source is None else begins
        lengths = planned_lengths(list(controls), generators)
        masked_lm = is_masked_lm(self.denoiser)
        if lengths is not None:
            known = append_exactly(known, starts, lengths, [] if masked_lm else end_ids(self.tokenizer))
        elif text is None:
            known = self._append_blanks(known, starts, max_new_tokens, generators)
        if masked_lm:
            known = [row + end_ids(self.tokenizer) for row in known]
        self._check_length(max(len(row) for row in known))
        ends_at_eos = text is None and lengths is None and not masked_lm
        canvas = self._canvas(known, labels, ends_at_eos, generators)
        if guide_by is not None:
            rows = without_beginnings(known, begins, negatives) if guide_by != "label" else known
            canvas.unconditional = self._unconditional(rows, labels, guide_by)
        canvas.scales = torch.tensor(scales, dtype=torch.float64, device=canvas.tokens.device)
        canvas.interval, canvas.controls, canvas.starts, canvas.cut = (
            interval,
            list(controls),
            starts,
            source is not None,
        )
        self._check_guided(canvas)
        return canvas, generators

    def _canvas(self, known: list, labels: Tensor | None, ends_at_eos: bool, generators: list) -> GuidedCanvas:
        plain = super()._canvas(known, labels, ends_at_eos, generators)
        return GuidedCanvas(plain.tokens, plain.editable, plain.attention_mask, labels, ends_at_eos)

    def _unconditional(self, rows: list, labels: Tensor | None, guide_by: str) -> Canvas:
        """The same tokens to write in rows without the condition."""
        self._check_length(max(len(row) for row in rows))
        laid_out = lay_out(rows, self.tokenizer.pad_token_id or 0, self._execution_device)
        if labels is not None and guide_by != "prompt":
            labels = torch.full_like(labels, self.denoiser.config.num_classes)
        return Canvas(*laid_out, labels, ends_at_eos=False)

    def _encode_negatives(self, negative_prompt: Any, num_texts: int, as_source: bool) -> list[list[int]]:
        """What stands before the same texts without the condition: the start, and what they are led away from."""
        negatives = [negative_prompt or ""] * num_texts if not is_list(negative_prompt) else negative_prompt
        if len(negatives) != num_texts:
            raise ValueError(f"`negative_prompt` must be one or {num_texts}, one a text, got {len(negatives)}.")
        if as_source:
            return encode_sources(self.tokenizer, negatives)
        return encode_prompts(self.tokenizer, negatives, "negative_prompt")

    def _expand_labels(self, class_labels, num_rows: int, num_return_sequences: int) -> Tensor | None:
        if is_list(class_labels) and None in class_labels:
            class_labels = [self.denoiser.config.num_classes if label is None else label for label in class_labels]
        return super()._expand_labels(class_labels, num_rows, num_return_sequences)

    def _check_controls(self, controls: list, text: Any, max_new_tokens: int | None):
        scheduler = self.scheduler
        posterior = any(getattr(control, "acts_on", "prediction") == "posterior" for control in controls)
        if posterior and not getattr(scheduler, "draws_reverse", False):
            raise ValueError(
                "`controls` that act on p(x_s | x_t) need a scheduler that draws from it, such as "
                f"D3PMAbsorbingScheduler or D3PMUniformScheduler, got {type(scheduler).__name__}."
            )
        refuse_two_lengths(controls, text=text, max_new_tokens=max_new_tokens)

    def _check_guided(self, canvas: GuidedCanvas):
        if canvas.unconditional is None and canvas.scales is not None and not (canvas.scales == 1).all():
            raise ValueError(
                "`guidance_scale` must be 1 without a condition, `class_labels`, `prompt` or `source`, got "
                f"{canvas.scales.tolist()}."
            )
