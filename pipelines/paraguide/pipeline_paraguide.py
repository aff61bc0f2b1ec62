"""Paraphrases in another style: diffusion from a source text, steered by off-the-shelf classifiers and style encoders.

ParaGuide (https://arxiv.org/abs/2308.15459). A denoiser that paraphrases keeps the meaning; what it predicts is moved
up the gradient of controls that read clean text, so that these need not know of noise. Each step

1. predicts the clean words, given the source;
2. moves their logits `drift_steps` times by `strength * sin(pi * progress)` times the gradient of what controls say
   of softmax(logits / temperature);
3. draws clean words from the nucleus `top_p` of softmax(logits);
4. noises them afresh for the next time, by q(x_s | x_0) and not by the posterior given x_t.

The last step ends with the words that it drew.

Shapes: B rows (texts times `num_return_sequences` and `num_candidates`), L sequence length, V vocabulary size,
E embedding width, N open tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import never_written
from text_diffusers.common.validation import check_strings
from text_diffusers.pipelines.diffusion_lm.guidance import embedding_state
from text_diffusers.pipelines.diffusion_lm.pipeline_diffusion_lm import DiffusionLMPipeline, DiffusionLMPipelineOutput
from text_diffusers.pipelines.guidance import TextState, planned_lengths, refuse_two_lengths
from text_diffusers.pipelines.paraguide.steering import Steering, draw_tokens, without_tokens
from text_diffusers.pipelines.text_batch import EmbeddingCanvas, written_ends


@dataclass
class SteeredEmbeddingCanvas(EmbeddingCanvas):
    """A canvas with what steers it."""

    steering: Steering = field(default_factory=Steering)
    steps_done: int = 0


class ParaGuidePipeline(DiffusionLMPipeline):
    """Paraphrases by diffusion over word embeddings: `pipe(source, controls=[CleanClassifierGuidance(...)])`.

    The authors' setting. Theirs is a fixed number of padded tokens and a RoBERTa over its own embeddings; here the
    source stands before the text in one row, and self-conditioning, if the model has it, shows what the denoiser said
    last, without the drift. Words are drawn from the model's logits of the clean text. Those of a model with
    `categorical_output` are probabilities of words; those of another are read off its clean estimate, as in rounding,
    and where that lies between words they are no more than near it.

    Args:
        tokenizer, lengths: as in `DiffusionLMPipeline`.
        denoiser: with `partial_noising`, trained with `--source_column` to write a paraphrase of the source.
        scheduler: of word embeddings, which is asked for its noise and its timesteps only; not of the Euler kind.
    """

    @torch.no_grad()
    def __call__(
        self,
        source: str | list[str],
        controls: Any = None,
        strength: float = 200.0,
        drift_steps: int = 3,
        temperature: float = 3.0,
        top_p: float = 0.8,
        length: int | list[int] | None = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 200,
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
        """Write paraphrases.

        Args:
            source: the text or texts to paraphrase.
            controls: a control with `log_prob`, or several, whose log-probabilities add up, each times its scale: a
                `CleanClassifierGuidance`, a `StyleGuidance` or any other that acts on predictions.
            strength: lambda, the size of the drift in the middle of the steps; the authors take 200 to 10,000. 0 only
                paraphrases.
            drift_steps: gradient steps on the logits of each step.
            temperature: of the soft text that controls read.
            top_p: words are drawn from the smallest set that reaches this mass.
            length, max_new_tokens, num_inference_steps, num_return_sequences, num_candidates, choose, generator,
                output_type, return_dict, callback_on_step_end, callback_on_step_end_tensor_inputs: as in
                `DiffusionLMPipeline`.
            return_history: keep the words that each step drew.

        Returns:
            `DiffusionLMPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the model or the others, or predictions or gradients are not
                finite.
        """
        # 1. Check the inputs
        self._check_candidates(num_candidates, choose)
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        steering = Steering(controls, strength, drift_steps, temperature, top_p)
        # 2. Encode the source and cover what is to be written with pure noise
        texts = (length, max_new_tokens, num_return_sequences, generator)
        canvas, generators = self._begin_steered(source, steering, num_inference_steps, *texts, num_candidates)
        # 3. Denoise
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        history = self._write(canvas, generators, return_history, *callback)
        # 4. Cut each text at its end, choose among the candidates and decode
        return self._finish(canvas, history, num_candidates, choose, output_type, return_dict)

    @torch.no_grad()
    def stream(
        self,
        source: str | list[str],
        controls: Any = None,
        strength: float = 200.0,
        drift_steps: int = 3,
        temperature: float = 3.0,
        top_p: float = 0.8,
        length: int | list[int] | None = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 200,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[list[str]]:
        """Yield the B texts that every step drew, the last of them finished; arguments and errors of `__call__`."""
        steering = Steering(controls, strength, drift_steps, temperature, top_p)
        texts = (length, max_new_tokens, num_return_sequences, generator)
        yield from self._frames(*self._begin_steered(source, steering, num_inference_steps, *texts))

    def _begin_steered(
        self,
        source: Any,
        steering: Steering,
        num_inference_steps: int,
        length: Any,
        max_new_tokens: int | None,
        num_return_sequences: int,
        generator: Any,
        num_candidates: int = 1,
    ) -> tuple[SteeredEmbeddingCanvas, list[torch.Generator]]:
        """The canvas as pure noise and one generator a row, if the inputs fit."""
        check_strings("source", source)
        refuse_two_lengths(steering.controls, length=length, max_new_tokens=max_new_tokens)
        canvas, generators = self._begin(
            request=(None, None, None, None, max_new_tokens, num_return_sequences, generator),
            source=source,
            length=length,
            num_inference_steps=num_inference_steps,
            eta=0.0,
            known_words="clean",
            num_candidates=num_candidates,
            plan_lengths=lambda rows: planned_lengths(steering.controls, rows),
        )
        return SteeredEmbeddingCanvas(**vars(canvas), steering=steering), generators

    def _step(self, canvas: SteeredEmbeddingCanvas, timestep: float, generators: list[torch.Generator]):
        """Draw clean words at `timestep`, and bring `canvas.latents` to the next, less noisy time."""
        scheduler, writable = self._token_scheduler, canvas.editable
        noisy = torch.where(writable.unsqueeze(-1), canvas.latents, canvas.clean)
        logits = self._predict_words(canvas, noisy, timestep)[writable]  # (N, V)
        logits = canvas.steering.steer(logits, self._state(canvas, timestep), written_ends(canvas), self._eos_token_id)
        drawn = draw_tokens(logits, writable, canvas.steering.top_p, generators)
        canvas.tokens = canvas.tokens.masked_scatter(writable, drawn)
        canvas.latents = self.denoiser.embed(canvas.tokens).to(canvas.latents.dtype)
        canvas.steps_done += 1
        if canvas.steps_done < len(scheduler.timesteps):
            following = scheduler.timesteps[canvas.steps_done].item()
            canvas.latents = scheduler.add_noise(canvas.latents, following, generators)

    def _predict_words(self, canvas: SteeredEmbeddingCanvas, noisy: Tensor, timestep: float) -> Tensor:
        """(B, L, V) logits of the clean words."""
        dtype, optional = canvas.clean.dtype, {}
        if self.denoiser.config.self_conditioning and canvas.estimate is not None:
            optional["self_condition"] = canvas.estimate.to(dtype)
        said = self.denoiser(
            noisy.to(dtype), timestep, canvas.attention_mask, canvas.class_labels, given=~canvas.editable, **optional
        )
        canvas.estimate = self._token_scheduler.clean_estimate(said.sample.to(noisy.dtype), noisy, timestep)
        logits = getattr(said, "logits", None)
        if logits is None:
            logits = self.denoiser.logits(canvas.estimate.to(dtype))
        return without_tokens(logits, never_written(self.tokenizer))

    def _state(self, canvas: SteeredEmbeddingCanvas, timestep: float) -> TextState:
        """What controls see; where words are open, `tokens` are those that the step before drew."""
        assert canvas.starts is not None
        num_steps = len(self._token_scheduler.timesteps)
        return embedding_state(canvas, canvas.starts, timestep, num_steps, self.tokenizer.mask_token_id)

    def _read(self, canvas: EmbeddingCanvas, embeddings: Tensor):
        """Round clean embeddings (B, L, E), but where they are those of the drawn words, whatever is nearest."""
        drawn = canvas.tokens
        super()._read(canvas, embeddings)
        kept = (self.denoiser.embed(drawn).to(embeddings.dtype) == embeddings).all(dim=-1)
        canvas.tokens = torch.where(kept, drawn, canvas.tokens)

    def _check_request(self, prompt, text, source, length, max_new_tokens, known_words):
        super()._check_request(prompt, text, source, length, max_new_tokens, known_words)
        if float(self.scheduler.init_noise_sigma) != 1:
            raise ValueError(
                "`scheduler` must noise on the scale of the model, since its noise is all that is asked of it, such "
                f"as EmbeddingDDIMScheduler, got {type(self.scheduler).__name__}."
            )
        if not hasattr(self.denoiser, "logits"):
            raise ValueError(f"`denoiser` must have `logits` of words; {type(self.denoiser).__name__} has none.")
