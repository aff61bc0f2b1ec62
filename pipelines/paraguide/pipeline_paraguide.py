"""Paraphrases in another style: diffusion from a source text, steered by off-the-shelf classifiers and style encoders.

ParaGuide (https://arxiv.org/abs/2308.15459). A denoiser that paraphrases keeps the meaning; what it predicts is moved
up the gradient of controls that read clean text, so that these need not know of noise.

Shapes: B rows (texts times `num_return_sequences` and `num_candidates`), L sequence length, V vocabulary size,
E embedding width, N open tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from text_diffusers.common.token_ids import padding_id
from text_diffusers.common.validation import check_strings
from text_diffusers.models.language_model import predicts_end
from text_diffusers.pipelines.calls.steps import Steps, runs_to_its_end, texts_of_each_step
from text_diffusers.pipelines.candidates import check_choice, chosen_rows
from text_diffusers.pipelines.component_checks import check_token_components, longest_row
from text_diffusers.pipelines.diffusion_lm.pipeline_diffusion_lm import DiffusionLMPipelineOutput
from text_diffusers.pipelines.diffusion_lm.prediction import (
    accept_latents,
    check_embedding_components,
    embedding_scheduler,
)
from text_diffusers.pipelines.guidance import TextState, text_state
from text_diffusers.pipelines.paraguide.embedding_steps import EmbeddingSteps, refuse_guidance
from text_diffusers.pipelines.paraguide.steering import Steering, draw_tokens
from text_diffusers.pipelines.paraguide.token_steps import TokenSteps
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.pipelines.row_limits import RowLimits
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import (
    TextDiffusionPipelineOutput,
)
from text_diffusers.pipelines.text_endings import cut_rows, end_token_id
from text_diffusers.pipelines.text_inputs import (
    GuidanceInputs,
    TextInputs,
    prepare_batch,
)
from text_diffusers.pipelines.text_lengths import length_model


class ParaGuidePipeline(TextPipeline, DiffusionPipeline):
    """Paraphrases, steered by controls: `pipe("A source", controls=[CleanClassifierGuidance(...)])`.

    Over word embeddings, the authors' setting, or over tokens, as the denoiser is. Under absorbing noise a revealed
    token is its own clean estimate, and the fresh noise may mask it again; under other kernels every token is
    predicted and drawn in each step. Classifier-free guidance, which strengthens the source, is for denoisers of
    tokens; it acts on the logits before the drift.

    The tokens of one step are drawn independently of each other, given those that were seen, and noised afresh. So
    the texts of an exact model, without a drift and with `top_p=1`, have the distribution of the data where tokens are
    independent, and otherwise near it as the number of steps grows.

    Args:
        tokenizer: any transformers tokenizer with a mask token.
        denoiser: of word embeddings, with `partial_noising`, or of tokens; trained with `--source_column` to write a
            paraphrase of the source.
        scheduler: of the same noise, which is asked for its noise and its timesteps only; not of the Euler kind, and
            for tokens one of this package, whose own temperature, top_k and top_p are not used.
        lengths: `lengths[n]` is the number of training texts with n tokens.
        label_names: a name for each class label; no label is asked for here.

    Raises:
        ValueError: if the components disagree.

    Example:
        >>> from text_diffusers import ParaGuidePipeline, TextDiffusionPipeline
        >>> from text_diffusers.guidance.controls import LengthControl
        >>> writer = TextDiffusionPipeline.from_pretrained("chat-and-novels")
        >>> pipe = ParaGuidePipeline(writer.tokenizer, writer.denoiser, writer.scheduler)
        >>> pipe.set_progress_bar_config(disable=True)
        >>> output = pipe("i think so", controls=[LengthControl(5)], num_inference_steps=2)
        >>> output.tokens.shape
        torch.Size([1, 6])
    """

    draws_from_scheduler = False
    model_cpu_offload_seq = "denoiser"

    def __init__(
        self,
        tokenizer: Any,
        denoiser: Any,
        scheduler: Any,
        lengths: list[int] | None = None,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        is_complete = self._register_text_components(
            tokenizer, denoiser, scheduler, lengths, label_names
        )
        if is_complete:
            # The kind of denoiser decides which scheduler fits it.
            is_over_tokens = self.kind == "tokens"
            check = check_token_components if is_over_tokens else check_embedding_components
            check(tokenizer, denoiser, scheduler, lengths, self.config.label_names)

    @runs_to_its_end
    @torch.no_grad()
    def __call__(
        self,
        source: str | list[str],
        controls: Any = None,
        strength: float = 200.0,
        drift_steps: int = 3,
        drift_temperature: float = 3.0,
        top_p: float = 0.8,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float | list[float] = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        max_new_tokens: int | None = None,
        length: int | list[int] | None = None,
        num_inference_steps: int = 200,
        num_return_sequences: int = 1,
        num_candidates: int = 1,
        choose: Callable[[list[str]], int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "text",
        return_dict: bool = True,
        return_history: bool = False,
        callback_on_step_end: Callable[[Any, int, float, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> Steps[TextDiffusionPipelineOutput | DiffusionLMPipelineOutput]:
        """Write paraphrases.

        Args:
            source: the text or texts to paraphrase.
            controls: a control with `log_prob`, or several, whose log-probabilities add up, each times its scale: a
                `CleanClassifierGuidance`, a `StyleGuidance` or any other that acts on predictions.
            strength: lambda, the size of the drift in the middle of the steps; the authors take 200 to 10,000. 0 only
                paraphrases.
            drift_steps: gradient steps on the logits of each step.
            drift_temperature: of the soft text that controls read.
            top_p: words are drawn from the smallest set that reaches this mass.
            negative_prompt: the source that the texts are to be led away from, one or one a text; by default empty.
            guidance_scale: of classifier-free guidance by the source, one or one a text; for denoisers of tokens.
            guidance_interval: shares of the steps between which guidance acts; before and after them the scale is 1.
            max_new_tokens: the longest paraphrase in tokens; by default up to the model's `max_length`.
            length: the number of tokens of each text, without its end; one or one a text.
            num_inference_steps: steps of the scheduler, each of which calls the denoiser at most once.
            num_return_sequences: texts for each source.
            num_candidates: texts written for each one returned.
            choose: picks one of `num_candidates` strings by its index.
            generator: one generator, or one for each returned text.
            output_type: "text", "tokens" or, over word embeddings, "latents".
            return_dict: return an output, else a tuple of its fields.
            return_history: keep the tokens of every step; over word embeddings those that it drew.
            callback_on_step_end: called after each step as `f(pipe, step, timestep, tensors)`; may return new
                "tokens", or over word embeddings new "latents".
            callback_on_step_end_tensor_inputs: names of the tensors it gets, by default all of these.

        Returns:
            `TextDiffusionPipelineOutput` over tokens, `DiffusionLMPipelineOutput` over word embeddings.

        Raises:
            ValueError: if an argument does not fit the model or the others, or predictions or gradients are not
                finite.
            TypeError: if `generator` is none of torch, such as a seed.
        """
        # 1. Check the inputs
        if callback_on_step_end_tensor_inputs is None:
            callback_on_step_end_tensor_inputs = self._callback_tensor_inputs
        self._check_output(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_strings("source", source)
        inputs = TextInputs(
            source=source,
            max_new_tokens=max_new_tokens,
            length=length,
            num_return_sequences=num_return_sequences,
            num_candidates=num_candidates,
        )

        # Guidance acts on the logits first, then the controls.
        steering = Steering(controls, strength, drift_steps, drift_temperature, top_p)
        guidance = GuidanceInputs(
            guidance_scale,
            guidance_interval,
            negative_prompt=negative_prompt,
            controls=steering.controls,
        )
        check_choice(num_candidates, choose)
        self._guidance_scale = guidance_scale

        steps = self._steps
        steps.check(guidance)

        # 2. Prepare the timesteps, and lay out the texts behind their sources, as pure noise
        steps.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = steps.scheduler.timesteps.tolist()
        batch = prepare_batch(
            self.tokenizer,
            inputs,
            guidance,
            self._row_limits,
            generator,
            device=self._execution_device,
        )
        steps.begin(batch)

        # 3. Denoise
        batch.num_steps = len(timesteps)
        self._num_timesteps = len(timesteps)

        # Steps make new tensors, so what the history holds does not change.
        history = [batch.tokens] if return_history else None
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, timestep in enumerate(timesteps):
                self.take_guidance_scale(batch)

                # Predict the clean words, given the source.
                positions = steps.open_tokens(batch)  # (B, L)
                logits = steps.predict_words(batch, timestep, positions)  # (N, V)

                # Move their logits up the gradient of what controls say of softmax(logits / drift_temperature).
                state = self._text_state(batch, timestep, positions)
                endings = batch.editable & batch.ends_at_eos  # (B, L)
                logits = steering.steer(logits, state, endings, end_token_id(self.tokenizer))

                # Draw clean words from the nucleus of softmax(logits).
                drawn = draw_tokens(logits, positions, steering.top_p, batch.generators)
                batch.tokens = batch.tokens.masked_scatter(positions, drawn)

                # Noise them afresh, by q(x_s | x_0) and not by the posterior given x_t; the last step keeps them.
                batch.steps_done += 1
                is_last = batch.steps_done == batch.num_steps
                steps.add_noise(batch, None if is_last else timesteps[batch.steps_done])

                # A callback may change the tokens, or the latents that they are read off.
                self.call_back(
                    callback_on_step_end, callback_on_step_end_tensor_inputs, batch, step, timestep
                )
                if history is not None:
                    history.append(batch.tokens)
                progress_bar.update()
                yield batch  # to `stream`
                if self.interrupt:
                    break

        # 4. Cut each text at its end, decode and choose among the candidates
        if isinstance(steps, EmbeddingSteps):
            steps.finish(batch)  # a callback may have changed the latents
        tokens = self.finished_tokens(batch)
        texts: Any = None
        if output_type == "text" or choose is not None:
            texts = self.finished_texts(batch)
        rows = chosen_rows(texts, len(tokens), num_candidates, choose)
        tokens = tokens[rows]
        texts = [texts[row] for row in rows] if output_type == "text" else None
        self.maybe_free_model_hooks()

        # Over tokens the history is that of whole rows, source and masks included.
        if self.kind == "tokens":
            if history is not None:
                history = [words[rows] for words in history]
            if not return_dict:
                return cast(Any, (texts, tokens, history))
            return TextDiffusionPipelineOutput(texts=texts, tokens=tokens, history=history)

        if history is not None:
            pad_token_id = padding_id(self.tokenizer)
            history = [cut_rows(words, batch, pad_token_id)[rows] for words in history]
        latents = cut_rows(batch.latents, batch)[rows] if output_type == "latents" else None
        if not return_dict:
            return cast(Any, (texts, tokens, history, latents))
        return DiffusionLMPipelineOutput(
            texts=texts, tokens=tokens, history=history, latents=latents
        )

    stream = texts_of_each_step(__call__)

    # Steps

    @property
    def _steps(self) -> TokenSteps | EmbeddingSteps:
        """The steps of this denoiser's kind."""
        if self.kind == "tokens":
            return TokenSteps(self.denoiser, self.tokenizer, self.scheduler)
        return EmbeddingSteps(
            self.denoiser, self.tokenizer, embedding_scheduler(self.scheduler, self.denoiser)
        )

    def _text_state(self, batch: TextBatch, timestep: float, positions: Tensor) -> TextState:
        # Each step draws all open tokens anew.
        return text_state(
            batch,
            timestep,
            is_open=positions,
            undecided=positions,
            mask_token_id=self.tokenizer.mask_token_id,
            selected=positions,
        )

    @property
    def _revises_tokens(self) -> bool:
        return self._steps.revises_tokens

    def _accept_guidance_scale(self, batch: TextBatch, guidance_scale: Any):
        if self.kind == "embeddings":
            refuse_guidance(guidance_scale)
        super()._accept_guidance_scale(batch, guidance_scale)

    def _accept_tensors(self, batch: TextBatch, changed: dict[str, Tensor]):
        if self.kind == "tokens":
            super()._accept_tensors(batch, changed)
        else:
            accept_latents(batch, changed)

    # Tokens or word embeddings

    @property
    def kind(self) -> str:
        """What is denoised, "tokens" or "embeddings"."""
        return "embeddings" if hasattr(self.denoiser, "embed") else "tokens"

    @property
    def accepted_inputs(self) -> tuple[str, ...]:
        """The arguments of a call that say what to write."""
        if self.kind == "tokens":
            return ("source", "negative_prompt", "guidance_scale", "controls")
        return ("source", "controls")

    @property
    def max_length(self) -> int:
        """The longest row in tokens, with its start."""
        return longest_row(self.denoiser)

    @property
    def predicts_end(self) -> bool:
        """Whether the model says where a text ends; a masked LM does not."""
        return predicts_end(self.denoiser)

    @property
    def _callback_tensor_inputs(self) -> list[str]:
        return ["tokens"] if self.kind == "tokens" else ["tokens", "latents"]

    @property
    def _output_types(self) -> tuple[str, ...]:
        return ("text", "tokens") if self.kind == "tokens" else ("text", "tokens", "latents")

    @property
    def _exclude_from_cpu_offload(self) -> list[str]:
        # Embeddings that are read outside of their layer are not loaded by sequential offloading.
        is_tied = getattr(self.denoiser.config, "tie_embeddings", False)
        return ["denoiser"] if self.kind == "embeddings" or is_tied else []

    @property
    def _row_limits(self) -> RowLimits:
        return RowLimits(
            max_length=self.max_length,
            histogram=self.config.lengths,
            predicts_end=self.predicts_end,
            length_logits=length_model(self.denoiser),
        )
