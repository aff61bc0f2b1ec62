"""Generate, continue, fill in and transform text by diffusion over word embeddings (Diffusion-LM, DiffuSeq).

Noise is removed from embeddings, which are rounded to words in the end (https://arxiv.org/abs/2205.14217). A text
written from another one stands behind it in one row (https://arxiv.org/abs/2210.08933).

Shapes: B rows (texts times `num_return_sequences` and `num_candidates`), L sequence length, E embedding width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.randomness import randn, row_seeds
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.validation import check_strings, is_list
from text_diffusers.pipelines.embedding_steps import EmbeddingSteps
from text_diffusers.pipelines.text_batch import EmbeddingCanvas, append_exactly, cut_rows, encode_sources, lay_out
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import (
    TextDiffusionPipeline,
    TextDiffusionPipelineOutput,
)

KNOWN_WORDS = ("renoise", "clean")
PlanLengths = Callable[[list[torch.Generator]], list[int] | None] | None
NOISE_TOLERANCE = 0.02  # of weights that were rounded to bfloat16


@dataclass
class DiffusionLMPipelineOutput(TextDiffusionPipelineOutput):
    """Output of `DiffusionLMPipeline`.

    Attributes:
        texts: strings, with the prompt and without special tokens; `None` unless `output_type="text"`.
        tokens: (texts, L) ids, with the start token, padded after the end of a text; with `source`, what was written
            from it.
        history: with `return_history`, `num_inference_steps + 1` tensors (texts, L): the words that pure noise, then
            each clean estimate is rounded to.
        latents: (texts, L, E) embeddings before they are rounded, with `output_type="latents"`.
    """

    latents: Tensor | None = None


class DiffusionLMPipeline(TextDiffusionPipeline):
    """Text by diffusion over word embeddings: `pipe()`, `pipe("A prompt")`, `pipe(source="A text to rewrite")`.

    Args:
        tokenizer, lengths: as in `TextDiffusionPipeline`.
        denoiser: an `EmbeddingTransformerModel`, or what has its `config`, `embed`, `round` and `nearest_words` and is
            called like it.
        scheduler: `EmbeddingDDIMScheduler`, `EmbeddingDDPMScheduler` or `EmbeddingDPMSolverScheduler`; or a stock
            scheduler of diffusers that was made by `from_config` of one of these.

    Raises:
        ValueError: if the components disagree, or the scheduler would clip embeddings.
    """

    _callback_tensor_inputs = ["tokens", "latents"]
    _output_types = ("text", "tokens", "latents")

    @property
    def _exclude_from_cpu_offload(self) -> list[str]:
        # Its word embeddings are read outside of their layer, where sequential offloading does not load them.
        return ["denoiser"]

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
    ) -> DiffusionLMPipelineOutput | tuple:
        """Write text.

        Args:
            prompt, text, mask, class_labels, num_return_sequences, return_history: as in `TextDiffusionPipeline`.
            source: the text or texts to write from, for a denoiser with `partial_noising`, which sees them clean.
            length: the number of tokens of each text, one or one a text, without start and end.
            max_new_tokens: the longest continuation in tokens; by default up to the model's `max_length`.
            num_inference_steps: steps of the scheduler, each of which calls the denoiser once.
            eta: noise of each step of DDIM, 0 (none) to 1 (as much as ancestral sampling).
            known_words: how a denoiser without `partial_noising` sees prompts and what surrounds a gap: "renoise",
                at each step as noisy as the rest, or "clean", as Diffusion-LM's authors fill in text.
            num_candidates: texts written for each one returned.
            choose: picks one of `num_candidates` strings by its index, such as
                `text_diffusers.evaluation.text_metrics.minimum_bayes_risk`.
            generator: one generator, or one for each returned text. A text depends on its own generator and prompt
                only, not on the batch it is written in.
            output_type: "text", "tokens" or "latents".
            return_dict: return `DiffusionLMPipelineOutput`, else a tuple `(texts, tokens, history, latents)`.
            callback_on_step_end: called after each step as `f(pipe, step, timestep, tensors)`; may return new
                "latents", which have the scale of the scheduler.
            callback_on_step_end_tensor_inputs: names of the tensors it gets, "tokens" and "latents".

        Returns:
            `DiffusionLMPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the model or the others, or the predictions are not finite.
        """
        # 1. Check the inputs
        self._check_candidates(num_candidates, choose)
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        # 2. Encode the text and cover what is to be written with pure noise
        request = (prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator)
        sampling = (num_inference_steps, eta, known_words)
        canvas, generators = self._begin(request, source, length, *sampling, num_candidates)
        # 3. Denoise
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        history = self._write(canvas, generators, return_history, *callback)
        # 4. Cut each text at its end, choose among the candidates and decode
        return self._finish(canvas, history, num_candidates, choose, output_type, return_dict)

    def _begin(
        self,
        request: tuple,
        source: Any,
        length: Any,
        num_inference_steps: int,
        eta: float,
        known_words: str,
        num_candidates: int = 1,
        plan_lengths: PlanLengths = None,
    ) -> tuple[EmbeddingCanvas, list[torch.Generator]]:
        """The canvas as pure noise and one generator a row, if the inputs fit; `request` is what `_prepare` takes."""
        prompt, text, mask, _, max_new_tokens, num_return_sequences, _ = request
        self._check_inputs(prompt, text, mask, num_return_sequences, max_new_tokens)
        self._check_request(prompt, text, source, length, max_new_tokens, known_words)
        self._token_scheduler.check_eta(eta)
        self._token_scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        options: Any = {"num_candidates": num_candidates, "plan_lengths": plan_lengths}
        canvas, generators = self._prepare(*request, source=source, length=length, **options)
        canvas.eta, canvas.known_words = eta, known_words
        return canvas, generators

    def _finish(
        self,
        canvas: EmbeddingCanvas,
        history: list[Tensor] | None,
        num_candidates: int,
        choose: Callable[[list[str]], int] | None,
        output_type: str,
        return_dict: bool,
    ) -> DiffusionLMPipelineOutput | tuple:
        """What is returned of a denoised canvas."""
        self._read(canvas, canvas.latents)  # a callback may have changed them
        tokens = self._trim(canvas)
        chosen = self._choose(tokens, num_candidates, choose)
        tokens, latents = tokens[chosen], cut_rows(canvas.latents, canvas)[chosen]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True) if output_type == "text" else None
        if history is not None:
            history = [cut_rows(words, canvas, self.tokenizer.pad_token_id or 0)[chosen] for words in history]
        self.maybe_free_model_hooks()
        latents = latents if output_type == "latents" else None
        if not return_dict:
            return (texts, tokens, history, latents)
        return DiffusionLMPipelineOutput(texts=texts, tokens=tokens, history=history, latents=latents)

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
    ) -> Iterator[list[str]]:
        """Yield the B texts after every step, as their clean estimates are rounded; the last of them are finished.

        Arguments and errors are those of `__call__`.
        """
        request = (prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator)
        canvas, generators = self._begin(request, source, length, num_inference_steps, eta, known_words)
        yield from self._frames(canvas, generators)

    def _step(self, canvas: EmbeddingCanvas, timestep: float, generators: list[torch.Generator]):
        """Bring `canvas.latents` from `timestep` to the next, less noisy time, and read the words off them."""
        scheduler, latents = self._token_scheduler, canvas.latents
        known = ~canvas.editable.unsqueeze(-1)  # (B, L, 1)
        pasted = self._shows_clean(canvas)
        if not pasted:
            renoised = scheduler.add_noise(canvas.clean.to(latents.dtype), timestep, generators)
            latents = torch.where(known, renoised, latents)
        noisy = scheduler.scale_model_input(latents, timestep)
        if pasted:
            noisy = torch.where(known, canvas.clean, noisy)
        prediction = self._predict_embeddings(canvas, noisy, timestep)
        canvas.estimate = scheduler.clean_estimate(prediction, noisy, timestep)
        canvas.latents = scheduler.step(
            prediction, timestep, latents, canvas.eta, generators, lambda clean: self._nearest_words(canvas, clean)
        )
        last = timestep == scheduler.timesteps[-1].item()
        if last:
            canvas.latents = torch.where(known, canvas.clean, canvas.latents)
        self._read(canvas, canvas.latents if last else canvas.estimate)

    def _shows_clean(self, canvas: EmbeddingCanvas) -> bool:
        """Whether the denoiser sees known words clean."""
        return canvas.known_words == "clean" or self.denoiser.config.partial_noising

    def _predict_embeddings(self, canvas: EmbeddingCanvas, noisy: Tensor, timestep: float) -> Tensor:
        """(B, L, E) what the denoiser says of `noisy`, in the dtype of the latents."""
        config, dtype, optional = self.denoiser.config, canvas.clean.dtype, {}
        if config.self_conditioning and canvas.estimate is not None:
            optional["self_condition"] = canvas.estimate.to(dtype)
        if config.partial_noising:
            optional["given"] = ~canvas.editable
        prediction = self.denoiser(
            noisy.to(dtype), timestep, canvas.attention_mask, canvas.class_labels, **optional
        ).sample
        if not torch.isfinite(prediction).all():
            raise ValueError("`denoiser` predicted NaN or infinite values: check its weights and dtype.")
        return prediction.to(noisy.dtype)

    def _read(self, canvas: EmbeddingCanvas, embeddings: Tensor):
        """Round clean embeddings (B, L, E) to the words of the canvas; known words stay."""
        words = self.denoiser.round(embeddings.to(canvas.clean.dtype))
        canvas.tokens = torch.where(canvas.editable, words, canvas.tokens)

    def _nearest_words(self, canvas: EmbeddingCanvas, clean: Tensor) -> Tensor:
        return self.denoiser.nearest_words(clean.to(canvas.clean.dtype)).to(clean.dtype)

    def _accept(self, canvas: EmbeddingCanvas, changed: dict[str, Tensor]):
        if "tokens" in changed and not torch.equal(changed["tokens"], canvas.tokens):
            raise ValueError('`callback_on_step_end` may change "latents"; "tokens" are read off them.')
        canvas.latents = changed.get("latents", canvas.latents)

    def _trim(self, canvas: EmbeddingCanvas) -> Tensor:
        return cut_rows(super()._trim(canvas), canvas, self.tokenizer.pad_token_id or 0)

    def _choose(self, tokens: Tensor, num_candidates: int, choose: Callable[[list[str]], int] | None) -> list[int]:
        """The rows to return, one of each `num_candidates`."""
        if num_candidates == 1 or choose is None:
            return list(range(len(tokens)))
        texts, chosen = self.tokenizer.batch_decode(tokens, skip_special_tokens=True), []
        for first in range(0, len(texts), num_candidates):
            index = int(choose(texts[first : first + num_candidates]))
            if not 0 <= index < num_candidates:
                raise ValueError(
                    f"`choose` must return an index below `num_candidates`={num_candidates}, got {index}."
                )
            chosen.append(first + index)
        return chosen

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
        length: Any = None,
        num_candidates: int = 1,
        plan_lengths: PlanLengths = None,
    ) -> tuple[EmbeddingCanvas, list[torch.Generator]]:
        """The canvas as pure noise, and one generator a row; `plan_lengths` may say how long each row's text is."""
        several = [values for values in (class_labels, length) if is_list(values)]
        count = len(several[0]) if several else 1
        known = self._encode(prompt, text, mask, count) if source is None else encode_sources(self.tokenizer, source)
        lengths = self._text_lengths(length, len(known))
        repeats = num_return_sequences * num_candidates
        known = [row for row in known for _ in range(repeats)]
        lengths = [value for value in lengths for _ in range(repeats)]
        labels = self._expand_labels(class_labels, len(known), repeats)
        generators = self._row_generators(generator, len(known) // num_candidates)
        if num_candidates > 1:
            seeds = [seed for row in generators for seed in row_seeds(row, num_candidates)]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        starts = [len(start_ids(self.tokenizer)) if source is None else len(row) for row in known]
        planned = None if plan_lengths is None else plan_lengths(generators)
        if length is not None or planned is not None:
            known = append_exactly(known, starts, planned or lengths, end_ids(self.tokenizer))
        elif text is None:
            known = self._append_blanks(known, starts, max_new_tokens, generators)
        self._check_length(max(len(row) for row in known))
        free = text is None and length is None and planned is None
        canvas = self._canvas(known, labels, free, generators)
        canvas.starts = None if source is None else starts
        return canvas, generators

    def _text_lengths(self, length: int | list[int] | None, num_texts: int) -> list:
        lengths: Any = length if is_list(length) else [length] * num_texts
        if len(lengths) != num_texts:
            raise ValueError(f"`length` must be one or {num_texts}, one a text, got {len(lengths)}.")
        return lengths

    def _canvas(self, known: list, labels: Tensor | None, ends_at_eos: bool, generators: list) -> EmbeddingCanvas:
        self._check_noise()
        device = self._execution_device
        if hasattr(self.denoiser, "_hf_hook"):  # of CPU offloading, which waits for a call of the model as a whole
            self.denoiser._hf_hook.pre_forward(self.denoiser)
        tokens, editable, real = lay_out(known, self.tokenizer.pad_token_id or 0, device)
        clean = self.denoiser.embed(tokens)
        precise = torch.promote_types(clean.dtype, torch.float32)
        noise = randn(tuple(clean.shape), generators, "cpu", torch.float32).to(device, precise)
        latents = self._token_scheduler.scale_noise(noise)
        canvas = EmbeddingCanvas(tokens, editable, real, labels, ends_at_eos, latents, clean)
        self._read(canvas, noise)
        return canvas

    @property
    def _token_scheduler(self) -> EmbeddingSteps:
        config = self.denoiser.config
        return EmbeddingSteps(self.scheduler, config.prediction_type, config.num_train_timesteps)

    def _check_components(self):
        if self.tokenizer is None or self.denoiser is None or self.scheduler is None:
            return
        lacking = [name for name in ("embed", "round", "nearest_words") if not hasattr(self.denoiser, name)]
        if lacking:
            raise ValueError(
                f"`denoiser` must be of word embeddings, such as EmbeddingTransformerModel; "
                f"{type(self.denoiser).__name__} has no `{lacking[0]}`."
            )
        super()._check_components()

    def _check_scheduler(self):
        self._token_scheduler  # noqa: B018 - its errors say what does not fit

    def _check_noise(self):
        """A denoiser that was told its noise must not be shown another."""
        told = getattr(self.denoiser, "evidence", None)
        if told is None or not told.any():
            return
        alpha = self.scheduler.alphas_cumprod.double().cpu()
        signal = alpha.sqrt() / (1 - alpha)
        if not torch.allclose(told[0].double().cpu(), signal, rtol=NOISE_TOLERANCE):
            raise ValueError(
                "`scheduler` must have the noise that the denoiser was trained with: make it by `from_config` of the "
                f"saved scheduler, got alphas_cumprod from {float(alpha[0]):.4g} to {float(alpha[-1]):.4g}."
            )

    def _check_request(self, prompt, text, source, length, max_new_tokens, known_words):
        if known_words not in KNOWN_WORDS:
            raise ValueError(f"`known_words` must be one of {KNOWN_WORDS}, got {known_words!r}.")
        if source is not None:
            check_strings("source", source)
            if prompt is not None or text is not None:
                raise ValueError("`source` excludes `prompt` and `text`: what is written from it begins by itself.")
            if not self.denoiser.config.partial_noising:
                raise ValueError("`source` needs a denoiser with `partial_noising=True`.")
        if length is None:
            return
        if text is not None or max_new_tokens is not None:
            raise ValueError("`length` excludes `text` and `max_new_tokens`, which say how long a text is.")
        for value in length if is_list(length) else [length]:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`length` must be integers of at least 1, got {length!r}.")

    def _check_candidates(self, num_candidates: int, choose: Any):
        if not isinstance(num_candidates, int) or num_candidates < 1:
            raise ValueError(f"`num_candidates` must be an integer of at least 1, got {num_candidates!r}.")
        if num_candidates > 1 and choose is None:
            raise ValueError(
                f"`choose` must be given to pick one of {num_candidates} candidates, "
                "such as `text_diffusers.evaluation.text_metrics.minimum_bayes_risk`."
            )
