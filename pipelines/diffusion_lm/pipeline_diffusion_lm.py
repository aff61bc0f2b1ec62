"""Generate, continue, fill in and transform text by diffusion over word embeddings (Diffusion-LM, DiffuSeq).

Noise is removed from embeddings, which are rounded to words in the end (https://arxiv.org/abs/2205.14217). A text
written from another one stands behind it in one row (https://arxiv.org/abs/2210.08933).

Shapes: B rows (texts times `num_return_sequences` and `num_candidates`), L sequence length, E embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.token_ids import padding_id
from text_diffusers.common.validation import require
from text_diffusers.pipelines.calls.steps import Steps, runs_to_its_end, texts_of_each_step
from text_diffusers.pipelines.candidates import check_choice, chosen_rows
from text_diffusers.pipelines.diffusion_lm.guidance import (
    InnerUpdates,
    acting_controls,
    check_embedding_controls,
    predict_controlled,
    refine_latents,
    strengthened_condition,
)
from text_diffusers.pipelines.diffusion_lm.prediction import (
    EmbeddingPredictor,
    accept_latents,
    check_embedding_components,
    embedding_scheduler,
)
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.pipelines.row_limits import RowLimits
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_endings import cut_rows
from text_diffusers.pipelines.text_inputs import (
    GuidanceInputs,
    TextInputs,
    prepare_batch,
)
from text_diffusers.pipelines.text_lengths import length_model

# How the denoiser is shown known words: with as much noise as the rest, or as they are.
KNOWN_WORDS = ("renoise", "clean")


@dataclass
class DiffusionLMPipelineOutput(BaseOutput):
    """Output of `DiffusionLMPipeline`.

    Attributes:
        texts: strings, with the prompt and without special tokens; `None` unless `output_type="text"`.
        tokens: (texts, L) ids, with the start token, padded after the end of a text; with `source`, of what was
            written from it.
        history: with `return_history`, `num_inference_steps + 1` tensors (texts, L): the words that pure noise, then
            each clean estimate is rounded to.
        latents: (texts, L, E) embeddings before they are rounded, with `output_type="latents"`.
    """

    texts: list[str]
    tokens: Tensor
    history: list[Tensor] | None = None
    latents: Tensor | None = None


class DiffusionLMPipeline(TextPipeline, DiffusionPipeline):
    """Text by diffusion over word embeddings: `pipe()`, `pipe("A prompt")`, `pipe(source="A text to rewrite")`.

    Classifier-free guidance (https://arxiv.org/abs/2207.12598), `pipe(class_labels=1, guidance_scale=3.0)`,
    strengthens a condition, the class label, the source or both, by comparing the prediction with that of the same
    text without it. Both come from one call of the denoiser. Scale 1 is the conditional model itself, without rows
    for the other.

    Controls, `pipe(controls=[...])`, such as those of `text_diffusers.guidance.controls`, give the log-probability of
    what is wanted: of noisy embeddings, by `latent_log_prob`, or of the words that the clean estimate stands for, by
    `log_prob`, whose gradient goes back through the denoiser; a control's `temperature` is that of these words. The
    clean estimate is moved by `scale * (1 - alpha_bar) / sqrt(alpha_bar)` times the gradient. With `inner_steps`
    controls act as in Diffusion-LM instead, on the latents after each step but the last; the denoiser is then called
    in each update, if a control has no `latent_log_prob`.

    Args:
        tokenizer: any transformers tokenizer with a mask token.
        denoiser: an `EmbeddingTransformerModel`, a `BertEmbeddingDenoiser`, or what has the `config`, `embed`, `round`
            and `nearest_words` of the first and is called like it; for controls with `log_prob` also `logits`. For
            guidance it should have been trained with `--condition_dropout`.
        scheduler: `EmbeddingDDIMScheduler`, `EmbeddingDDPMScheduler` or `EmbeddingDPMSolverScheduler`; or a stock
            scheduler of diffusers that was made by `from_config` of one of these.
        lengths: `lengths[n]` is the number of training texts with n tokens.
        label_names: a name for each class label, by which `class_labels` may ask for it.

    Raises:
        ValueError: if the components disagree, or the scheduler would clip embeddings.

    Example:
        >>> from text_diffusers import DiffusionLMPipeline, EmbeddingDDIMScheduler, EmbeddingTransformerModel
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for the train and ran all the way"]
        >>> tokenizer = train_tokenizer(texts, vocab_size=300)
        >>> denoiser = EmbeddingTransformerModel(len(tokenizer), hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> pipe = DiffusionLMPipeline(tokenizer, denoiser, EmbeddingDDIMScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> output = pipe("the cat", length=6, num_inference_steps=4, output_type="latents")
        >>> output.tokens.shape, output.latents.shape
        (torch.Size([1, 8]), torch.Size([1, 8, 16]))
    """

    kind = "embeddings"
    accepted_inputs = (
        "prompt",
        "text",
        "mask",
        "source",
        "class_labels",
        "negative_prompt",
        "guidance_scale",
        "controls",
    )
    model_cpu_offload_seq = "denoiser"
    _callback_tensor_inputs = ["tokens", "latents"]
    _output_types = ("text", "tokens", "latents")

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
            check_embedding_components(
                tokenizer, denoiser, scheduler, lengths, self.config.label_names
            )

    @runs_to_its_end
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
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guide_by: str | None = None,
        controls: Any = None,
        inner_steps: int = 0,
        fluency: float = 0.01,
        step_size: float = 0.1,
        optimizer: str = "adagrad",
        max_new_tokens: int | None = None,
        length: int | list[int] | None = None,
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
    ) -> Steps[DiffusionLMPipelineOutput]:
        """Write text.

        Args:
            prompt: the beginning of the text or texts; without it, `text` and `source`, the model writes from nothing.
            text: text with `[MASK]` wherever one token is to be filled in; the rest is kept. It is a whole text for a
                model that has `lengths`, which has learned only such.
            mask: instead of `[MASK]`s, a bool array with one value a token of `text`, true where to rewrite.
            source: the text or texts to write from, for a denoiser with `partial_noising`, which sees them clean; what
                is written is returned without it.
            class_labels: a label or its name, or one a text, for models that were trained with labels; `None` among
                them is no label.
            negative_prompt: the source that the texts are to be led away from, one or one a text; by default empty.
            guidance_scale: of classifier-free guidance, one or one a text; 0 is the unconditional model.
            guidance_interval: shares of the steps between which guidance acts; before and after them the scale is 1.
            guide_by: the condition that guidance strengthens, "label", "prompt" (which is the source) or "both"; by
                default all that there are.
            controls: a control, or several that act together.
            inner_steps: updates of the latents after each step but the last; 0 moves the clean estimate instead.
            fluency: weight of staying near the mean of a step's result in these updates. Where the scheduler draws no
                noise, its result is that mean.
            step_size: of an update.
            optimizer: "adagrad", which remembers the gradients of all steps, or "sign"; see `InnerUpdates`.
            max_new_tokens: the longest continuation in tokens; by default up to the model's `max_length`.
            length: the number of tokens of each text, prompt included, without start and end; one or one a text.
            num_inference_steps: steps of the scheduler, each of which calls the denoiser once.
            eta: noise of each step of DDIM, 0 (none) to 1 (as much as ancestral sampling).
            known_words: how a denoiser without `partial_noising` sees prompts and what surrounds a gap: "renoise",
                at each step as noisy as the rest, or "clean", as Diffusion-LM's authors fill in text.
            num_return_sequences: texts for each prompt.
            num_candidates: texts written for each one returned.
            choose: picks one of `num_candidates` strings by its index, such as
                `text_diffusers.evaluation.text_metrics.minimum_bayes_risk`.
            generator: one generator, or one for each returned text. A text depends on its own generator and prompt
                only, not on the batch it is written in.
            output_type: "text", "tokens" or "latents".
            return_dict: return `DiffusionLMPipelineOutput`, else a tuple `(texts, tokens, history, latents)`.
            return_history: keep the words of every step.
            callback_on_step_end: called after each step as `f(pipe, step, timestep, tensors)`; may return new
                "latents", which have the scale of the scheduler.
            callback_on_step_end_tensor_inputs: names of the tensors it gets, "tokens" and "latents".

        Returns:
            `DiffusionLMPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the model or the others, or predictions or gradients are not
                finite.
            TypeError: if `generator` is none of torch, such as a seed.
        """
        # 1. Check the inputs
        self._check_output(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        inputs = TextInputs(
            prompt=prompt,
            text=text,
            mask=mask,
            source=source,
            class_labels=class_labels,
            max_new_tokens=max_new_tokens,
            length=length,
            num_return_sequences=num_return_sequences,
            num_candidates=num_candidates,
        )

        # Guidance by a condition, by controls, and how the controls act
        guide_by = strengthened_condition(
            source, class_labels, guidance_scale, guide_by, negative_prompt
        )
        guidance = GuidanceInputs(
            guidance_scale, guidance_interval, guide_by, negative_prompt, controls
        )
        self._guidance_scale = guidance_scale
        updates = InnerUpdates(optimizer, step_size, fluency, inner_steps)
        check_embedding_controls(guidance.controls, self.denoiser)
        if inner_steps and not guidance.controls:
            raise ValueError(f"`inner_steps` needs `controls`, got {inner_steps} without any.")

        # The scheduler, and what is asked of it
        predictor = EmbeddingPredictor(
            self.denoiser, self.tokenizer, embedding_scheduler(self.scheduler, self.denoiser)
        )
        scheduler = predictor.scheduler
        scheduler.check_eta(eta)
        check_choice(num_candidates, choose)
        self._check_known_words(known_words, source)

        # 2. Prepare the timesteps, and lay out the texts with pure noise on what is to be written
        scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = scheduler.timesteps.tolist()
        batch = prepare_batch(
            self.tokenizer,
            inputs,
            guidance,
            self._row_limits,
            generator,
            device=self._execution_device,
        )
        # A denoiser with partial noising was trained with known words that are clean.
        batch.shows_clean = known_words == "clean" or self.denoiser.config.partial_noising
        # The beginning of a text is no condition that guidance could strengthen.
        if source is None and class_labels is None:
            batch.make_unconditional = None

        # Noise is drawn after the lengths, by the same generators.
        predictor.begin(batch)

        # 3. Denoise
        batch.num_steps = len(timesteps)
        self._num_timesteps = len(timesteps)

        # Steps make new tensors, so what the history holds does not change.
        history = [batch.tokens] if return_history else None
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, timestep in enumerate(timesteps):
                self.take_guidance_scale(batch)

                # Controls move the clean estimate, or with inner steps the latents.
                controls_of_step = [] if inner_steps else acting_controls(batch)
                self._denoise_step(predictor, batch, timestep, controls_of_step, eta)

                batch.steps_done += 1
                # After the last step words are read off, and nothing is left to refine.
                if inner_steps and batch.steps_done < batch.num_steps:
                    refine_latents(predictor, batch, timesteps, updates, eta)

                # A callback may change the latents.
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
        predictor.read_words(batch, batch.latents)  # a callback may have changed them
        tokens = self.finished_tokens(batch)
        texts: Any = None
        if output_type == "text" or choose is not None:
            texts = self.finished_texts(batch)
        rows = chosen_rows(texts, len(tokens), num_candidates, choose)
        tokens = tokens[rows]
        texts = [texts[row] for row in rows] if output_type == "text" else None

        # History and latents lose the source in front, as the tokens did.
        if history is not None:
            pad_token_id = padding_id(self.tokenizer)
            history = [cut_rows(words, batch, pad_token_id)[rows] for words in history]
        latents = cut_rows(batch.latents, batch)[rows] if output_type == "latents" else None
        self.maybe_free_model_hooks()
        if not return_dict:
            return cast(Any, (texts, tokens, history, latents))
        return DiffusionLMPipelineOutput(
            texts=texts, tokens=tokens, history=history, latents=latents
        )

    stream = texts_of_each_step(__call__)

    def _denoise_step(
        self,
        predictor: EmbeddingPredictor,
        batch: TextBatch,
        timestep: float,
        controls: list,
        eta: float,
    ):
        """Bring the latents of a batch from `timestep` to the next, less noisy time, and read the words off them."""
        scheduler = predictor.scheduler
        is_known = ~batch.editable.unsqueeze(-1)  # (B, L, 1)

        # Known words are shown clean, or as noisy as the rest.
        latents = batch.latents
        if batch.shows_clean:
            noisy = torch.where(
                is_known, batch.clean, scheduler.scale_model_input(latents, timestep)
            )
        else:
            # Drawn at each step anew, before the noise of the step itself.
            renoised = scheduler.add_noise(
                batch.clean.to(latents.dtype), timestep, batch.generators
            )
            latents = torch.where(is_known, renoised, latents)
            noisy = scheduler.scale_model_input(latents, timestep)

        # Predict, and keep what the next step and the inner updates need.
        guided = predict_controlled(predictor, batch, noisy, timestep, controls)
        batch.noisy = noisy
        batch.estimate = guided.estimate
        batch.own_estimate = guided.own_estimate
        if batch.unconditional is not None:
            batch.unconditional.own_estimate = guided.unconditional_estimate

        # Known words are stepped with the rest; the next call of the denoiser shows them as above.
        batch.latents = scheduler.step(
            guided.prediction,
            timestep,
            latents,
            eta=eta,
            generators=batch.generators,
            round_function=lambda clean: predictor.nearest_words(batch, clean),
        )

        # Words are read off the clean estimate, and at the end off the embeddings themselves.
        if batch.steps_done == batch.num_steps - 1:
            batch.latents = torch.where(is_known, batch.clean, batch.latents)
            predictor.read_words(batch, batch.latents)
        else:
            predictor.read_words(batch, batch.estimate)

    def _accept_tensors(self, batch: TextBatch, changed: dict[str, Tensor]):
        accept_latents(batch, changed)

    @property
    def max_length(self) -> int:
        """The longest row in tokens, with its start."""
        return self.denoiser.config.max_length

    @property
    def _exclude_from_cpu_offload(self) -> list[str]:
        # Its word embeddings are read outside of their layer, where sequential offloading does not load them.
        return ["denoiser"]

    @property
    def _row_limits(self) -> RowLimits:
        return RowLimits(
            max_length=self.max_length,
            histogram=self.config.lengths,
            label_names=self.config.get("label_names"),
            num_classes=getattr(self.denoiser.config, "num_classes", None),
            source_ends=getattr(self.denoiser.config, "source_ends", 1),
            length_logits=length_model(self.denoiser),
        )

    def _check_known_words(self, known_words: str, source: Any):
        limit = f"one of {KNOWN_WORDS}"
        require(known_words in KNOWN_WORDS, "known_words", limit, known_words, KNOWN_WORDS)

        # Only with partial noising has a denoiser been trained on a clean source.
        if source is not None and not self.denoiser.config.partial_noising:
            raise ValueError("`source` needs a denoiser with `partial_noising=True`.")
