"""Generate, continue, fill in and rewrite text by discrete diffusion over tokens, under guidance and controls.

Guidance acts on predictions of clean tokens under absorbing noise, and on p(x_s | x_t) under other kernels (D-CFG and
D-CBG, https://arxiv.org/abs/2412.10193).

Shapes: B rows (texts times `num_return_sequences`), L sequence length, V vocabulary size, N selected positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.scheduler_config import HIDING_NOISES
from text_diffusers.models.language_model import (
    as_denoiser,
    in_blocks_of,
    is_language_model,
    predicts_end,
    reading_of,
)
from text_diffusers.pipelines.call_state import call_of
from text_diffusers.pipelines.calls.generation_defaults import writes_one_block
from text_diffusers.pipelines.calls.labels import check_label_prompts
from text_diffusers.pipelines.calls.steps import Steps, runs_to_its_end, texts_of_each_step
from text_diffusers.pipelines.component_checks import check_token_components, longest_row
from text_diffusers.pipelines.guidance import (
    ReverseStep,
    TextState,
    any_due,
    apply_controls,
    check_control_targets,
    guide,
    guided_log_reverse,
    guided_on_posterior,
    text_state,
    weighs_text,
)
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.pipelines.row_limits import RowLimits, language_limits
from text_diffusers.pipelines.scheduler_adapters import as_token_scheduler, with_shaping
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_diffusion.blocks import (
    Block,
    blocks_of_call,
    blocks_to_write,
    editable_blocks,
)
from text_diffusers.pipelines.text_diffusion.joint_draws import check_texts, controlled_prediction
from text_diffusers.pipelines.text_diffusion.prediction import TokenPredictor, without_suppressed
from text_diffusers.pipelines.text_diffusion.windows import (
    Window,
    check_windows,
    token_ids,
    visible_masks,
    window_masks,
    windows_to_write,
)
from text_diffusers.pipelines.text_endings import end_tensor, finished_rows, masked_tokens
from text_diffusers.pipelines.text_inputs import GuidanceInputs, TextInputs, prepare_batch
from text_diffusers.pipelines.text_lengths import length_model


@dataclass
class TextDiffusionPipelineOutput(BaseOutput):
    """Output of `TextDiffusionPipeline`.

    Attributes:
        texts: B strings, with the prompt and without special tokens, of a reply or a rewritten text without what it
            was written from; `None` with `output_type="tokens"`.
        tokens: (B, L) ids, with the start token, padded after the end of a text; with `source` or `messages`, of what
            was written from it.
        history: with `return_history`, tensors (B, L): pure noise, and one for each step of each block.
    """

    texts: list[str]
    tokens: Tensor
    history: list[Tensor] | None = None


class TextDiffusionPipeline(TextPipeline, DiffusionPipeline):
    """Text by discrete diffusion: `pipe()`, `pipe("A prompt")`, `pipe(text="Fill the [MASK] in.")`.

    A text ends at `[EOS]`, which the model predicts like any other token. If `lengths` is given, as for models trained
    on one text a row, the number of tokens is drawn from it instead, and the `[EOS]` is put there.

    A masked LM of transformers predicts no special token. Its texts end where they are told to: after
    `max_new_tokens`, or a number of tokens drawn from `lengths`.

    Diffusion language models that others published are loaded as they are, from a folder or the Hub; chat with those
    whose tokenizer has a template: `pipe(messages=[{"role": "user", "content": "Hello!"}])`.

    Classifier-free guidance, `pipe(class_labels=1, guidance_scale=3.0)`, strengthens a condition, the class label, the
    prompt (or source) or both, by comparing the prediction with that of the same text without the condition. Both come
    from one call of the denoiser. Scale 1 is the conditional model itself, without a second forward pass.

    Controls, `pipe(controls=[WordsControl(...)])`, are functions of predictions, such as those of
    `text_diffusers.guidance`; each sees what those before it made of them. Some act on p(x_s | x_t) instead and need
    an ancestral scheduler or `TokenDDIMScheduler`.

    A denoiser with `block_length` writes in blocks: all tokens of a block together, the blocks from left to right.
    `num_inference_steps` are then those of each block, blocks without anything to write take no step, and writing
    stops with the block in which the last row ends. A token sees its own block and those before it, so a gap is filled
    in without a look at later blocks. Over a causal past a block may have any length: a gap is filled in, and controls
    that weigh a text act, in one block that holds all of it. Set `use_cache = False` to read finished blocks in each
    call; the tokens are the same. Guidance by the prompt but for "masked_prompt" needs a denoiser without blocks.

    Args:
        tokenizer: any transformers tokenizer with a mask token.
        denoiser: `denoiser(input_ids, timestep, attention_mask, class_labels, positions=...).logits`, or any
            `AutoModelForMaskedLM`, such as `BertForMaskedLM`. For a label to be dropped by guidance, it should have
            been trained with `--condition_dropout`; for prompts any denoiser serves.
        scheduler: a token scheduler, such as `D3PMAbsorbingScheduler`; or diffusers' `BlockRefinementScheduler` for
            absorbing noise, `DiscreteDDIMScheduler` or `EntropyBoundScheduler` for uniform noise.
        lengths: `lengths[n]` is the number of training texts with n tokens.
        label_names: a name for each class label, by which `class_labels` may ask for it.
        label_prompts: of a language model that was trained with labels, what stands for each before a text; by default
            its name.
        takes_source: whether a language model was trained with a `source`.
        generation_defaults: arguments of a call that hold where it gives none, such as `num_inference_steps`.

    Raises:
        ValueError: if the vocabulary or the mask id of the components disagree.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> generator = torch.Generator().manual_seed(0)
        >>> output = pipe("i think", class_labels="chat", num_inference_steps=16, generator=generator)
        >>> output.texts[0].startswith("i think")
        True
    """

    model_cpu_offload_seq = "denoiser"
    accepted_inputs = (
        "prompt",
        "text",
        "mask",
        "source",
        "messages",
        "class_labels",
        "negative_prompt",
        "guidance_scale",
        "controls",
    )
    use_cache: bool = True
    _callback_tensor_inputs = ["tokens"]

    def __init__(
        self,
        tokenizer: Any,
        denoiser: Any,
        scheduler: Any,
        lengths: list[int] | None = None,
        label_names: list[str] | None = None,
        label_prompts: list[str] | None = None,
        takes_source: bool = False,
        generation_defaults: dict[str, Any] | None = None,
    ):
        super().__init__()
        is_complete = self._register_text_components(
            tokenizer, denoiser, scheduler, lengths, label_names
        )
        self._register_settings(label_prompts, takes_source, generation_defaults)
        if is_complete:
            check_token_components(tokenizer, denoiser, scheduler, lengths, self.config.label_names)
            check_label_prompts(tokenizer, denoiser, self.config)
            defaults = self.generation_defaults
            check_windows(self, defaults.get("block_length"), defaults.get("approximate_cache"))

    @runs_to_its_end
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        text: str | list[str] | None = None,
        mask: Any = None,
        source: str | list[str] | None = None,
        messages: list[dict[str, str]] | list[list[dict[str, str]]] | None = None,
        class_labels: int | str | list[int | str | None] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float | list[float] = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guide_by: str | None = None,
        controls: Any = None,
        max_new_tokens: int | None = None,
        length: int | list[int] | None = None,
        min_new_tokens: int = 0,
        suppress_tokens: Sequence[int | str] = (),
        block_length: int | None = None,
        approximate_cache: str | None = None,
        num_inference_steps: int = 128,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "text",
        return_dict: bool = True,
        return_history: bool = False,
        callback_on_step_end: Callable[[Any, int, float, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
    ) -> Steps[TextDiffusionPipelineOutput]:
        """Write text.

        Args:
            prompt: the beginning of the text or texts; without it, `text` and `source`, the model writes from nothing.
            text: text with `[MASK]` wherever one token is to be filled in, never with the end of a text; the rest is
                kept. It is a whole text for a model that has `lengths`, which has learned only such.
            mask: instead of `[MASK]`s, a bool array with one value a token of `text`, true where to rewrite.
            source: the text or texts to write from, for a denoiser that was trained with `--source_column`; what is
                written is returned without it.
            messages: a conversation, turns `{"role": ..., "content": ...}`, or a list of conversations; the replies
                are returned.
            class_labels: a label or its name, or one a text, for models that were trained with labels; `None` among
                them is no label.
            negative_prompt: what the texts are to be led away from, one or one a text: it begins the text without the
                condition, or is its source.
            guidance_scale: of classifier-free guidance, one or one a text; 0 is the unconditional model.
            guidance_interval: shares of the steps between which guidance acts; before and after them the scale is 1.
            guide_by: the condition that guidance strengthens, "label", "prompt" (also a source or messages), "both",
                or "masked_prompt", the prompt against as many masks; by default the label, if there is one, and the
                prompt if there is a negative one, or no label.
            controls: a control, or several in the order in which they act.
            max_new_tokens: the longest continuation in tokens; by default up to the model's `max_length`, or 128 of a
                language model. A masked LM needs it, unless the pipeline has `lengths`.
            length: the number of tokens of each text or reply, prompt included, without start and end; one, or one a
                text.
            min_new_tokens: tokens that are written before a text may end.
            suppress_tokens: tokens, by name or id, that are never written.
            block_length: tokens that are written together, from left to right: by a bidirectional model by default
                all, over a causal past as many as in training; where it is 1 the model is autoregressive.
            approximate_cache: of a bidirectional language model with `block_length`: "prefix" reads what stands before
                a block once a block, "dual" all outside of it (Fast-dLLM, https://arxiv.org/abs/2505.22618). Faster,
                and not quite the same prediction.
            num_inference_steps: steps of the scheduler, and at most that many calls of the denoiser; of each block.
            temperature, top_k, top_p: shape the predictions; by default as in the scheduler's configuration.
            num_return_sequences: texts for each prompt.
            generator: one generator, or one for each returned text. A text depends on its own generator and prompt
                only, not on the batch it is written in.
            output_type: "text" or "tokens".
            return_dict: return `TextDiffusionPipelineOutput`, else a tuple `(texts, tokens, history)`.
            return_history: keep the tokens of every step.
            callback_on_step_end: called after each step as `f(pipe, step, timestep, tensors)`; may return new ones.
            callback_on_step_end_tensor_inputs: names of the tensors it gets; only "tokens" is offered.

        Returns:
            `TextDiffusionPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the model or the others, or the model's logits are not finite.
            TypeError: if `generator` is none of torch, such as a seed.
        """
        # 1. Check the inputs
        self._check_output(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        inputs = TextInputs(
            prompt=prompt,
            text=text,
            mask=mask,
            source=source,
            messages=messages,
            class_labels=class_labels,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            length=length,
            num_return_sequences=num_return_sequences,
        )
        guidance = GuidanceInputs(
            guidance_scale, guidance_interval, guide_by, negative_prompt, controls
        )
        self._guidance_scale = guidance_scale
        check_windows(self, block_length, approximate_cache)
        given = {"text": text, "controls": controls, "block_length": block_length}
        one_block = writes_one_block(self, given)
        blocks = None if one_block else blocks_of_call(self, block_length)
        check_control_targets(guidance.controls, self.scheduler, blocks, self.has_causal_past)
        suppressed_ids = token_ids(self.tokenizer, suppress_tokens)

        # 2. Prepare the timesteps, and lay out the texts with pure noise on what is to be written
        scheduler = self._token_scheduler(temperature=temperature, top_k=top_k, top_p=top_p)
        scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = scheduler.timesteps.tolist()
        batch = prepare_batch(
            self.tokenizer,
            inputs,
            guidance,
            replace(self._row_limits, block_length=blocks, one_block=one_block),
            generator,
            device=self._execution_device,
        )

        # Noise is drawn after the lengths, for whole rows; known tokens keep their place.
        noise = scheduler.prior(
            tuple(batch.tokens.shape), generator=batch.generators, device=batch.tokens.device
        )
        batch.tokens = torch.where(batch.editable, noise, batch.tokens)
        batch.suppressed_ids += suppressed_ids
        batch.first_cluster_id = getattr(scheduler, "first_cluster_id", None)
        batch.denoiser = in_blocks_of(self._token_denoiser(scheduler), blocks)

        # Texts that no tokens could make right are refused before any work.
        check_texts(batch, self._text_state(scheduler, batch, timesteps[0], batch.editable))

        # 3. Denoise: blocks or windows from left to right, or whole rows, which are a single window
        batch.num_steps = len(timesteps)
        self._num_timesteps = len(timesteps)

        # Steps make new tensors, so what the history holds does not change.
        history = [batch.tokens] if return_history else None
        step = 0
        num_parts, parts = self._parts_to_write(batch, block_length, approximate_cache)
        with self.progress_bar(total=num_parts * len(timesteps)) as progress_bar:
            for part in parts:
                # Some schedulers keep state for a run, and each block is one.
                scheduler.set_timesteps(len(timesteps), device=batch.tokens.device)
                batch.steps_done = 0

                for timestep in timesteps:
                    self.take_guidance_scale(batch)

                    # Read again at each step, since a callback may have changed the rows.
                    part.write(self._denoise_step(scheduler, part.read(), timestep, part))
                    batch.steps_done += 1

                    # A callback sees whole rows, also while a block is written.
                    self.call_back(
                        callback_on_step_end,
                        callback_on_step_end_tensor_inputs,
                        batch,
                        step,
                        timestep,
                    )
                    if history is not None:
                        history.append(batch.tokens)
                    step += 1
                    progress_bar.update()
                    yield batch  # to `stream`
                    if self.interrupt:
                        break
                if self.interrupt:
                    break

        # 4. Cut each text at its end and decode
        tokens = self.finished_tokens(batch)
        texts: Any = None
        if output_type == "text":
            texts = self.finished_texts(batch)

        # Models that were offloaded go back to the CPU.
        self.maybe_free_model_hooks()
        if not return_dict:
            return cast(Any, (texts, tokens, history))
        return TextDiffusionPipelineOutput(texts=texts, tokens=tokens, history=history)

    stream = texts_of_each_step(__call__)

    # Steps

    def _parts_to_write(
        self, batch: TextBatch, block_length: int | None, approximate_cache: str | None
    ) -> tuple[int, Iterator[Block | Window]]:
        """How many parts of the rows there are, and these, from left to right.

        They are the blocks of a denoiser that has them, windows of any other, or whole rows.
        """
        if self.block_length is not None and batch.past_lengths is None:
            blocks = editable_blocks(batch, batch.denoiser.config.block_length)
            return len(blocks), blocks_to_write(
                batch,
                batch.denoiser,
                blocks,
                self.max_length,
                self.tokenizer,
                use_cache=self.use_cache,
            )
        if block_length is None:
            return 1, iter([Window(batch)])
        masks = window_masks(batch, block_length)
        return len(masks), windows_to_write(batch, self.tokenizer, masks, approximate_cache)

    def _denoise_step(
        self, scheduler: Any, batch: TextBatch, timestep: float, part: Block | Window
    ) -> Tensor:
        """(B, L) tokens at the next, less noisy time.

        A row draws by its own generator in the one kind of step that it takes.
        """
        # In one batch some rows may be guided on p(x_s | x_t), and others on predictions.
        by_posterior = guided_on_posterior(batch, scheduler)  # (B,)
        tokens = batch.tokens
        for rows, take_step in (
            (~by_posterior, self._plain_step),
            (by_posterior, self._posterior_step),
        ):
            if not rows.any():
                continue
            # A row must draw nothing in the kind of step that it does not take.
            generators = [
                generator if taken else torch.Generator()
                for generator, taken in zip(batch.generators, rows.tolist(), strict=True)
            ]
            changeable = rows.unsqueeze(1) & batch.editable
            if batch.window is not None:
                changeable = changeable & batch.window
            stepped = take_step(scheduler, batch, timestep, changeable, generators, part)
            tokens = torch.where(changeable, stepped, tokens)
        return tokens

    def _plain_step(
        self,
        scheduler: Any,
        batch: TextBatch,
        timestep: float,
        changeable: Tensor,
        generators: list[torch.Generator],
        part: Block | Window,
    ) -> Tensor:
        """(B, L) next tokens by the scheduler's own step from guided predictions, where they are `changeable`."""
        # The scheduler says which positions it will use before the model runs, so that the head runs on these alone.
        sample = visible_masks(batch, self.tokenizer)
        positions = scheduler.select(timestep, sample, generators)  # (B, L)
        # Finished rows have drawn as before, and need no prediction.
        positions &= changeable & ~self._finished_rows(batch).unsqueeze(1)
        logits, drawn = self._guided_logits(scheduler, batch, timestep, positions, part)  # (N, V)
        options = {} if drawn is None else {"drawn": drawn}
        if drawn is None:
            logits = without_suppressed(logits, batch, positions, self.tokenizer)
        output = scheduler.step(
            logits, timestep, sample, positions=positions, generator=generators, **options
        )
        return output.prev_sample

    def _guided_logits(
        self,
        scheduler: Any,
        batch: TextBatch,
        timestep: float,
        positions: Tensor,
        part: Block | Window,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, V) logits at the selected positions (B, L), guided and controlled; (N,) tokens if a control draws."""
        queried = positions
        if any_due(filter(weighs_text, batch.controls), batch.progress, "prediction"):
            # They weigh all that is open in a row, not only what this step draws.
            has_positions = positions.any(dim=1, keepdim=True)
            queried = (self._undecided(scheduler, batch) | positions) & has_positions

        predictor = TokenPredictor(batch.denoiser, self.tokenizer, scheduler)
        cond, uncond = predictor.predict_pair(batch, timestep, queried, part)
        logits = cond
        if uncond is not None:
            # Each position has the scale of its row.
            logits = guide(cond, uncond, batch.step_scales[queried.nonzero()[:, 0]])
        if queried is positions and not batch.controls:
            return logits, None

        state = self._text_state(scheduler, batch, timestep, is_open=queried, selected=positions)
        return controlled_prediction(logits, state, batch, self.tokenizer)

    def _posterior_step(
        self,
        scheduler: Any,
        batch: TextBatch,
        timestep: float,
        changeable: Tensor,
        generators: list[torch.Generator],
        part: Block | Window,
    ) -> Tensor:
        """(B, L) next tokens from guided p(x_s | x_t), where they are `changeable`; every open one is predicted."""
        tokens = batch.tokens
        positions = (
            self._undecided(scheduler, batch)
            & changeable
            & ~self._finished_rows(batch).unsqueeze(1)
        )
        state = self._text_state(scheduler, batch, timestep, is_open=positions)

        def control_of(target: str) -> Callable[[Tensor], Tensor] | None:
            if not any_due(batch.controls, batch.progress, target):
                return None
            return partial(apply_controls, state=state, controls=batch.controls, target=target)

        # (N, V) each, and the scale of each position's row
        predictor = TokenPredictor(batch.denoiser, self.tokenizer, scheduler)
        cond, uncond = predictor.predict_pair(batch, timestep, positions, part)
        cond = without_suppressed(cond, batch, positions, self.tokenizer)
        if uncond is not None:
            uncond = without_suppressed(uncond, batch, positions, self.tokenizer)
        scales = batch.step_scales[positions.nonzero()[:, 0]]
        log_weights = guided_log_reverse(
            ReverseStep(scheduler, timestep, tokens[positions], scales),
            cond,
            uncond,
            control=control_of("prediction"),
            posterior_control=control_of("posterior"),
        )
        return scheduler.draw(log_weights, tokens, positions, generators)

    def _token_denoiser(self, scheduler: Any) -> Any:
        """The denoiser, a language model being wrapped; it predicts the mask only if the scheduler allows that."""
        allows_mask = getattr(getattr(scheduler, "config", None), "allow_mask", False)
        allowed = (self.tokenizer.mask_token_id,) if allows_mask else ()
        return as_denoiser(self.denoiser, self.tokenizer, allowed)

    def _text_state(
        self,
        scheduler: Any,
        batch: TextBatch,
        timestep: float,
        is_open: Tensor,
        selected: Tensor | None = None,
    ) -> TextState:
        return text_state(
            batch,
            timestep,
            is_open=is_open,
            undecided=self._undecided(scheduler, batch),
            mask_token_id=self.tokenizer.mask_token_id,
            selected=selected,
            end_token_ids=end_tensor(batch, self.tokenizer).tolist() if batch.ends_at_eos else (),
            shape=scheduler.shape if getattr(scheduler, "shapes_predictions", False) else None,
        )

    def _undecided(self, scheduler: Any, batch: TextBatch) -> Tensor:
        """(B, L) bool: tokens that may still change; under noise that does not hide tokens, all that are written."""
        if scheduler.corruption not in HIDING_NOISES:
            return batch.editable
        return masked_tokens(batch, self.tokenizer)

    def _finished_rows(self, batch: TextBatch) -> Tensor:
        return finished_rows(batch, self.tokenizer, self._revises_tokens)

    @property
    def _revises_tokens(self) -> bool:
        return self._token_scheduler().revises_tokens

    # Components

    @property
    def max_length(self) -> int:
        """The longest row in tokens, with its start."""
        return longest_row(self.denoiser)

    @property
    def block_length(self) -> int | None:
        """Tokens of a block, for a denoiser that writes block by block."""
        if is_language_model(self.denoiser):
            return reading_of(self.denoiser).block_length
        return getattr(self.denoiser.config, "block_length", None)

    @property
    def has_causal_past(self) -> bool:
        """Whether a language model reads its past token by token, and so may write in blocks of any length."""
        return is_language_model(self.denoiser) and reading_of(self.denoiser).has_causal_past

    @property
    def predicts_end(self) -> bool:
        """Whether the model says where a text ends; a masked LM does not."""
        return predicts_end(self.denoiser)

    @property
    def _exclude_from_cpu_offload(self) -> list[str]:
        # A tied head reads the embedding outside of its layer, where sequential offloading does not load it.
        return ["denoiser"] if getattr(self.denoiser.config, "tie_embeddings", False) else []

    @classmethod
    def _loads(cls, saved: type) -> bool:
        """Its own children; by its own name, any pipeline of texts."""
        return cls is TextDiffusionPipeline or issubclass(saved, cls)

    @property
    def _row_limits(self) -> RowLimits:
        return RowLimits(
            max_length=self.max_length,
            histogram=self.config.lengths,
            predicts_end=self.predicts_end,
            label_names=self.config.get("label_names"),
            num_classes=self._num_labels,
            # UDLM, which has this, was shown a label in every text.
            tells_no_label=getattr(self.denoiser.config, "silu_before_sum", False),
            block_length=self.block_length,
            **language_limits(self.denoiser, self.config),
            length_logits=length_model(self.denoiser),
        )

    def _token_scheduler(self, **shaping: Any) -> Any:
        """The scheduler, or an adapter of one of diffusers' own, with the temperature, top_k and top_p of a call."""
        scheduler = with_shaping(self.scheduler, **shaping)
        call = call_of(self)
        if call is not None:
            # Callbacks see it as `pipe.scheduler`.
            call.step_by("scheduler", scheduler)
        return as_token_scheduler(scheduler, self.tokenizer)
