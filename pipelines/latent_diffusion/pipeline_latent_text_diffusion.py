"""Text by diffusion over a few latents of it, which a language model decodes.

Latent Diffusion for Language Generation (https://arxiv.org/abs/2212.09462); as the prior of replies, Dior-CVAE
(https://arxiv.org/abs/2305.15025). Latents are rounded to words once, at the end, by a model that knows the language.

Shapes: B rows (texts times `num_return_sequences`), L sequence length, K latents of a text, E latent width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.randomness import randn, row_generators
from text_diffusers.common.source_prompts import source_prompt_ids
from text_diffusers.common.token_ids import end_ids, padding_id, start_ids, unwritable_ids
from text_diffusers.common.validation import check_strings, require, require_int
from text_diffusers.pipelines.calls.labels import label_numbers
from text_diffusers.pipelines.calls.steps import Steps, runs_to_its_end, texts_of_each_step
from text_diffusers.pipelines.latent_diffusion.latent_components import (
    check_latent_components,
    check_what_is_told,
    reads_prompts,
)
from text_diffusers.pipelines.latent_diffusion.latent_inputs import (
    Decoding,
    LatentInputs,
    as_texts,
    each_text,
    latent_rows,
    read_sources,
    read_texts,
)
from text_diffusers.pipelines.latent_diffusion.latent_steps import (
    LatentBatch,
    LatentSteps,
    latent_path,
    latent_scheduler,
)
from text_diffusers.pipelines.pipeline_base import TextPipeline, as_names
from text_diffusers.pipelines.row_limits import NEW_TOKENS, RowLimits
from text_diffusers.pipelines.text_batch import (
    Row,
    TextBatch,
    encode_prompts,
    lay_out,
    repeat_rows,
    text_before,
)
from text_diffusers.pipelines.text_inputs import text_generators

# Of a decoder whose positions have no limit, as those of T5
LONGEST_TEXT = 2**16


@dataclass
class LatentTextDiffusionPipelineOutput(BaseOutput):
    """Output of `LatentTextDiffusionPipeline`.

    Attributes:
        texts: B strings, with the prompt and without special tokens; `None` unless `output_type="text"`.
        tokens: (B, L) ids of the decoder's tokenizer, with the start token, padded after the end of a text; without a
            source that the decoder reads. `None` with `output_type="latents"`.
        history: with `return_history`, a tensor (B, K, E) like `latents` of the noise, then one of the clean estimate
            of each step.
        latents: (B, K, E) as the decoder reads them. A call that is given these writes the same texts.
    """

    texts: list[str]
    tokens: Tensor
    history: list[Tensor] | None = None
    latents: Tensor | None = None


class LatentTextDiffusionPipeline(TextPipeline, DiffusionPipeline):
    """Text by diffusion over its latents: `pipe()`, `pipe(source="A text to rewrite")`, `pipe(messages=turns)`.

    A denoiser writes the latents, a few vectors for a whole text, and the decoder of an autoencoder, a language model,
    writes the text from them. Other latents are another text, so that greedy decoding gives varied ones.

    Classifier-free guidance, `pipe(class_labels=1, guidance_scale=3.0)`, strengthens all that the denoiser is told,
    label and source, by comparing its prediction with the one without; both come from one call. What the decoder reads
    stays the same under guidance.

    In the place of the denoiser may be a `LatentGaussianPrior`, the prior of a conditional VAE, which draws latents
    without steps and has no scheduler. Without a scheduler a pipeline of any denoiser still decodes `latents`.

    `stream` yields the decoded best guess after each step. Each is written anew, the likeliest token each time, which
    costs as much as the text itself.

    Args:
        tokenizer: of the decoder.
        encoder_tokenizer: of the encoder.
        autoencoder: an `AutoencoderTextLatentModel`.
        denoiser: a `LatentTransformerModel` over the autoencoder's normalised latents, or a `LatentGaussianPrior`.
            With `prompt_size` it reads sources, as states of the autoencoder's encoder.
        scheduler: of the noise that the denoiser learned to remove: `LatentFlowEulerScheduler`,
            `LatentFlowHeunScheduler`, `ProbabilityFlowScheduler`, `ReverseSDEScheduler`, `AnnealedLangevinScheduler`,
            one for word embeddings such as `EmbeddingDDIMScheduler`, or a stock scheduler of diffusers made by
            `from_config` of one of these. `None` for a `LatentGaussianPrior`.
        label_names: a name for each class label, by which `class_labels` may ask for it.
        generation_defaults: arguments of a call where it gives none, such as `num_inference_steps`.

    Raises:
        ValueError: if the components disagree.

    Example:
        >>> from transformers import BertConfig, LlamaConfig
        >>> from text_diffusers import AutoencoderTextLatentModel, LatentFlowEulerScheduler, LatentTransformerModel
        >>> from text_diffusers import LatentTextDiffusionPipeline
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for the train and ran all the way"]
        >>> tokenizer = train_tokenizer(texts, vocab_size=300)
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> encoder = BertConfig(vocab_size=len(tokenizer), **sizes).to_dict()
        >>> decoder = LlamaConfig(vocab_size=len(tokenizer), **sizes).to_dict()
        >>> pipe = LatentTextDiffusionPipeline(
        ...     tokenizer,
        ...     tokenizer,
        ...     AutoencoderTextLatentModel(encoder, decoder, num_latents=2, latent_size=4, hidden_size=8).eval(),
        ...     LatentTransformerModel(4, 2, hidden_size=8, num_attention_heads=2, prediction_type="flow").eval(),
        ...     LatentFlowEulerScheduler(),
        ... )
        >>> pipe.set_progress_bar_config(disable=True)
        >>> output = pipe("the cat", num_inference_steps=4, max_new_tokens=6)
        >>> output.latents.shape, output.texts[0].startswith("the cat")
        (torch.Size([1, 2, 4]), True)
        >>> len(pipe.interpolate("the cat sat", "the dog", count=3, max_new_tokens=6))
        3
    """

    kind = "latents"
    accepted_inputs = ("prompt", "source", "messages", "class_labels", "guidance_scale", "latents")
    model_cpu_offload_seq = "denoiser->autoencoder"
    # They use weights outside of the layers that hold them, where sequential offloading does not load these.
    _exclude_from_cpu_offload = ["autoencoder", "denoiser"]
    _optional_components = ["scheduler"]
    _callback_tensor_inputs = ["latents"]
    _output_types = ("text", "tokens", "latents")
    encoder_tokenizer: Any
    autoencoder: Any

    def __init__(
        self,
        tokenizer: Any,
        encoder_tokenizer: Any,
        autoencoder: Any,
        denoiser: Any,
        scheduler: Any,
        label_names: list[str] | None = None,
        generation_defaults: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            encoder_tokenizer=encoder_tokenizer,
            autoencoder=autoencoder,
            denoiser=denoiser,
            scheduler=scheduler,
        )
        self.register_to_config(label_names=as_names(label_names))
        self.generation_defaults = generation_defaults

        # diffusers may load a pipeline with parts left out, which then cannot be checked.
        if not any(part is None for part in (tokenizer, encoder_tokenizer, autoencoder, denoiser)):
            self._check_components()

    @runs_to_its_end
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        source: str | list[str] | None = None,
        messages: Any = None,
        class_labels: int | str | list[int | str | None] | None = None,
        guidance_scale: float | list[float] = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_inference_steps: int = 50,
        max_new_tokens: int | None = None,
        decode_strategy: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        latents: Any = None,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "text",
        return_dict: bool = True,
        return_history: bool = False,
        callback_on_step_end: Callable[[Any, int, float, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Steps[LatentTextDiffusionPipelineOutput]:
        """Write text.

        Args:
            prompt: the beginning of the text or texts, which the decoder continues; the latents know nothing of it.
            source: the text or texts to write from: what the denoiser is told, and an autoencoder with `reads_source`
                too. An empty one is none.
            messages: a conversation to reply to, a list of turns `{"role": ..., "content": ...}`, or several. It is
                a source of a line a turn.
            class_labels: a label or its name, or one a text, for denoisers that were trained with labels; `None` among
                them is no label.
            guidance_scale: of classifier-free guidance, one or one a text; 0 is the unconditional denoiser.
            guidance_interval: shares of the steps between which guidance acts; before and after them the scale is 1.
            num_inference_steps: steps of the scheduler; those of second order call the denoiser twice in each but the
                last. A `LatentGaussianPrior` takes none.
            max_new_tokens: the longest text in tokens, without its prompt; by default 128, or as many as fit.
            decode_strategy: "greedy", the likeliest token each time, or "sample"; by default "sample" if one of the
                next three is given.
            temperature, top_k, top_p: of the draws of "sample".
            latents: (texts, K, E) latents to decode, as in the output, or (1, K, E) for all texts; no step is taken.
            num_return_sequences: texts for each that is asked for, from latents of their own.
            generator: one generator, or one for each returned text. A text depends on its own generator and inputs
                only, not on the batch it is written in; what the decoder draws does not depend on whether its latents
                were given or written.
            output_type: "text", "tokens", or "latents", which are not decoded then.
            return_dict: return `LatentTextDiffusionPipelineOutput`, else a tuple `(texts, tokens, history, latents)`.
            return_history: keep the clean estimates of every step.
            callback_on_step_end: called after each step as `f(pipe, step, timestep, tensors)`; may return new
                "latents", which are normalised and have the scale of the scheduler. If it ends the call by
                `pipe._interrupt = True`, the latest clean estimate is decoded.
            callback_on_step_end_tensor_inputs: names of the tensors it gets; only "latents" is offered.

        Returns:
            `LatentTextDiffusionPipelineOutput`.

        Raises:
            ValueError: if an argument does not fit the models or the others, or predictions are not finite.
            TypeError: if `generator` is none of torch, such as a seed.
        """
        # 1. Check the inputs, and the components, which may have been changed
        self._check_components()
        self._check_output(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        require_int("num_inference_steps", num_inference_steps, 1)
        decoding = Decoding(decode_strategy, temperature, top_k, top_p, max_new_tokens)
        inputs = LatentInputs(
            prompt=prompt,
            source=source,
            messages=messages,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            latents=latents,
            num_return_sequences=num_return_sequences,
        )
        check_what_is_told(inputs, self.autoencoder, self.denoiser, self.scheduler)
        self._guidance_scale = guidance_scale

        # 2. Prepare the timesteps, and lay out the texts, blank yet, with pure noise as their latents
        device = self._execution_device
        steps = None
        timesteps: list[float] = []
        if latents is None and self.scheduler is not None:
            scheduler = latent_scheduler(self.scheduler, self.denoiser)
            scheduler.set_timesteps(num_inference_steps, device=device)
            timesteps = scheduler.timesteps.tolist()
            steps = LatentSteps(self.denoiser, scheduler)
        batch = self._prepare(inputs, decoding, generator)
        noise = batch.latents
        batch.num_steps = max(1, len(timesteps))
        self._num_timesteps = len(timesteps)

        # 3. Write the latents: as they are given, by one draw, or step by step
        history = None
        if latents is not None:
            batch.written = batch.latents
        elif steps is None:
            batch.latents = self._draw(batch, noise)
            batch.estimate = batch.latents
        else:
            history = [noise]
            batch.latents = steps.scheduler.scale_noise(noise)
            with self.progress_bar(total=len(timesteps)) as progress_bar:
                for step, timestep in enumerate(timesteps):
                    self.take_guidance_scale(batch)
                    steps.step(batch, timestep)
                    batch.steps_done += 1

                    # A callback may change the latents.
                    self.call_back(
                        callback_on_step_end,
                        callback_on_step_end_tensor_inputs,
                        batch,
                        step,
                        timestep,
                    )
                    if return_history:
                        history.append(batch.estimate)
                    progress_bar.update()
                    if self.interrupt or batch.steps_done == len(timesteps):
                        break
                    yield batch  # to `stream`, which decodes the best guess

            # The last step ends at clean latents, and no other does.
            if batch.steps_done == len(timesteps):
                batch.estimate = batch.latents

        # 4. Decode, and cut each text at its end
        written = self._as_decoded(batch.estimate) if batch.written is None else batch.written
        batch.written = written
        if output_type != "latents":
            batch.tokens = self._decode(batch, written, decoding)
            batch.is_decoded = True
        yield batch  # to `stream`, as it is returned

        # 5. Return what was asked for
        tokens = self.finished_tokens(batch) if batch.is_decoded else None
        texts = self.finished_texts(batch) if output_type == "text" else None
        if return_history:
            history = [self._as_decoded(values) for values in history or []]
        else:
            history = None
        self.maybe_free_model_hooks()
        if not return_dict:
            return cast(Any, (texts, tokens, history, written))
        return LatentTextDiffusionPipelineOutput(
            texts=cast(Any, texts), tokens=cast(Any, tokens), history=history, latents=written
        )

    stream = texts_of_each_step(__call__)

    # Texts and latents

    @torch.no_grad()
    def encode(self, texts: str | list[str]) -> Tensor:
        """(texts, K, E) latents of texts, the means of their posteriors, as the decoder reads them.

        Raises:
            ValueError: if a text is longer than the encoder takes.
        """
        self._check_components()
        check_strings("texts", texts)
        latents = read_texts(
            self.autoencoder,
            self.encoder_tokenizer,
            as_texts(texts),
            "texts",
            self._execution_device,
        )
        self.maybe_free_model_hooks()
        return latents.float()

    def reconstruct(
        self,
        texts: str | list[str],
        source: str | list[str] | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Texts as the decoder writes them from their own latents, the likeliest token each time.

        Args:
            texts: one or several.
            source: what they are written from, for an autoencoder with `reads_source`.
            max_new_tokens: the longest in tokens, as in a call.
        """
        latents = self.encode(texts)
        return self._decoded(latents, source=source, max_new_tokens=max_new_tokens)

    def interpolate(
        self,
        first: str,
        second: str,
        count: int = 5,
        source: str | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """`count` texts on the way from one text to another; the ends are the reconstructions of both.

        The way is spherical in normalised latents, see `latent_path`.

        Args:
            first, second: texts.
            count: at least 2.
            source: what they are written from, for an autoencoder with `reads_source`.
            max_new_tokens: the longest in tokens, as in a call.

        Raises:
            ValueError: if `count` is below 2, or a text does not fit the encoder.
        """
        for name, text in (("first", first), ("second", second)):
            require(isinstance(text, str), name, "a string", text)
        require_int("count", count, 2)
        ends = self.encode([first, second])
        first_latents, second_latents = self.autoencoder.normalize(ends)
        path = latent_path(first_latents, second_latents, count)
        between = self.autoencoder.denormalize(path[1:-1])
        latents = torch.cat([ends[:1], between, ends[1:]])
        return self._decoded(latents, source=source, max_new_tokens=max_new_tokens)

    def _decoded(self, latents: Tensor, **options: Any) -> list[str]:
        """The likeliest texts of latents (texts, K, E)."""
        call: Any = self
        # Whatever the defaults of a call are: at temperature 0 draws are the likeliest tokens.
        return call(latents=latents, decode_strategy="sample", temperature=0.0, **options).texts

    # Rows

    def _prepare(self, inputs: LatentInputs, decoding: Decoding, generator: Any) -> LatentBatch:
        """Rows of text before anything is written, and their latents: as given, or standard normal noise."""
        device = self._execution_device
        num_texts = inputs.num_texts
        repeats = inputs.num_return_sequences
        config = self.autoencoder.config

        # 1. What stands before each text, for the decoder: a source, and the beginning of the text itself
        sources = inputs.sources()
        sources = [""] * num_texts if sources is None else each_text(sources, num_texts)
        prompts = [""] if inputs.prompt is None else as_texts(inputs.prompt)
        prompts = each_text(prompts, num_texts)
        frames = self._frames(sources, "source" if inputs.messages is None else "messages")
        num_start = len(start_ids(self.tokenizer))
        beginnings: list[Row] = []
        for frame, row in zip(frames, encode_prompts(self.tokenizer, prompts), strict=True):
            beginnings.append([*frame, *row[num_start:]])

        # 2. Rows with a blank for each token that may be written
        num_blanks = self._num_blanks(beginnings, decoding.max_new_tokens)
        rows = repeat_rows([[*row, *[None] * num_blanks] for row in beginnings], repeats)
        laid_out = lay_out(rows, padding_id(self.tokenizer), device)
        batch = LatentBatch(**vars(laid_out))
        batch.ends_at_eos = True
        batch.repeats = repeats
        given_texts = [
            text_before(prompt, row) for prompt, row in zip(prompts, beginnings, strict=True)
        ]
        batch.given_texts = repeat_rows(given_texts, repeats)

        # A text is returned with its start token, and without its source.
        batch.drops_source = config.reads_source
        starts = [len(frame) for frame in frames]
        batch.starts = repeat_rows(starts, repeats)

        # 3. What the denoiser is told
        if inputs.latents is None:
            condition = self._condition(inputs, sources)
            places = torch.tensor(repeat_rows(range(num_texts), repeats), device=device)
            batch.condition = {name: values[places] for name, values in condition.items()}
        batch.guidance_interval = inputs.guidance_interval
        batch.guide_by(inputs.guidance_scale)

        # 4. Each stage draws from a generator of its own, so that none depends on what the others draw
        generators = text_generators(generator, len(rows))
        stages = zip(*[row_generators(each, 3) for each in generators], strict=True)
        noise_generators, batch.step_generators, batch.token_generators = map(list, stages)

        shape = (len(rows), config.num_latents, config.latent_size)
        if inputs.latents is None:
            batch.latents = randn(shape, noise_generators, "cpu", torch.float32).to(device)
        else:
            given = latent_rows(inputs.latents, *shape[1:], device)
            batch.latents = given.expand(num_texts, -1, -1).repeat_interleave(repeats, dim=0)
        return batch

    def _frames(self, sources: list[str], name: str) -> list[list[int]]:
        """Token ids that stand before each text and its prompt."""
        if self.autoencoder.config.reads_source:
            # Longer ones are cut in training, and refused here.
            return source_prompt_ids(self.tokenizer, sources, LONGEST_TEXT, name)
        # A text begins after the end of the one before, where the tokenizer has no token for the start.
        start = start_ids(self.tokenizer) or end_ids(self.tokenizer)
        return [start] * len(sources)

    def _num_blanks(self, beginnings: list[Row], max_new_tokens: int | None) -> int:
        """The tokens that are written at most, the same for all rows.

        Raises:
            ValueError: if there is no room for so many, or for any.
        """
        longest = max(len(row) for row in beginnings)
        room = self.max_length - longest
        if max_new_tokens is None:
            max_new_tokens = max(1, min(room, NEW_TOKENS))
        RowLimits(self.max_length).check_length(longest + max_new_tokens)
        return max_new_tokens

    def _condition(self, inputs: LatentInputs, sources: list[str]) -> dict[str, Tensor]:
        """What the denoiser is told, a row for each text; empty without any condition."""
        device = self._execution_device
        condition = {}
        if inputs.class_labels is not None:
            numbers = label_numbers(inputs.class_labels, self._row_limits, len(sources))
            condition["class_labels"] = torch.tensor(numbers, device=device)
        if reads_prompts(self.denoiser):
            name = "source" if inputs.messages is None else "messages"
            condition |= read_sources(
                self.autoencoder, self.encoder_tokenizer, sources, name, device
            )
        return condition

    @property
    def _row_limits(self) -> RowLimits:
        return RowLimits(
            max_length=self.max_length,
            label_names=self.config.get("label_names"),
            num_classes=self._num_labels,
        )

    def _draw(self, batch: LatentBatch, noise: Tensor) -> Tensor:
        """(B, K, E) normalised latents from a prior that draws them at once."""
        states = batch.condition.get("prompt_states")
        dtype = self.denoiser.dtype
        drawn = self.denoiser.draw(
            None if states is None else states.to(dtype),
            batch.condition.get("prompt_mask"),
            noise.to(dtype),
        )
        return drawn.to(noise.dtype)

    def _as_decoded(self, latents: Tensor) -> Tensor:
        """(B, K, E) normalised latents as the decoder reads them."""
        return self.autoencoder.denormalize(latents).to(latents.dtype)

    def _decode(self, batch: LatentBatch, latents: Tensor, decoding: Decoding) -> Tensor:
        """(B, L) tokens of the rows of a batch, with the text of latents (B, K, E), padded after its end."""
        # What stands before the blanks, of which all rows have equally many
        num_blanks = int(batch.editable[0].sum())
        known = batch.attention_mask.bool() & ~batch.editable
        longest = int(known.sum(dim=1).max())

        vocab_size = self.autoencoder.decoder.vocab_size
        shaping = {"top_k": decoding.top_k, "top_p": decoding.top_p}
        if decoding.temperature is not None:
            shaping["temperature"] = decoding.temperature
        written = self.autoencoder.generate(
            latents,
            batch.tokens[:, :longest],
            known[:, :longest],
            max_new_tokens=num_blanks,
            do_sample=decoding.draws,
            end_token_ids=end_ids(self.tokenizer),
            pad_token_id=padding_id(self.tokenizer),
            suppressed_ids=unwritable_ids(self.tokenizer, vocab_size),
            generator=batch.token_generators if decoding.draws else None,
            **shaping,
        )

        # Writing stops where the last text ends.
        missing = num_blanks - written.shape[1]
        filled = torch.nn.functional.pad(written, (0, missing), value=padding_id(self.tokenizer))
        return batch.tokens.masked_scatter(batch.editable, filled)

    # Steps

    @torch.no_grad()
    def texts_so_far(self, batch: Any) -> list[str]:
        """The texts of a batch, or the likeliest ones of its latest clean estimate while latents are written."""
        if batch.is_decoded:
            return super().texts_so_far(batch)
        written = self._as_decoded(batch.estimate) if batch.written is None else batch.written
        guess = self._decode(batch, written, Decoding())
        return super().texts_so_far(replace(batch, tokens=guess))

    def _accept_guidance_scale(self, batch: Any, guidance_scale: Any):
        batch.guide_by(guidance_scale)

    def _accept_tensors(self, batch: TextBatch, changed: dict[str, Tensor]):
        latents = changed.get("latents", batch.latents)
        shape = tuple(batch.latents.shape)
        if tuple(latents.shape) != shape:
            raise ValueError(
                f"`callback_on_step_end` must return latents of {shape}, got {tuple(latents.shape)}."
            )
        batch.latents = latents

    # Components

    @property
    def draws_from_scheduler(self) -> bool:
        """Whether latents are written step by step; a `LatentGaussianPrior` draws them at once."""
        return self.scheduler is not None

    @property
    def scheduler_names(self) -> tuple[str, ...]:
        """The components that hold a scheduler, if there is one."""
        return () if self.scheduler is None else ("scheduler",)

    @property
    def max_length(self) -> int:
        """The longest row of the decoder in tokens, with its start, source and prompt."""
        longest = self.autoencoder.longest_text
        return LONGEST_TEXT if longest is None else longest

    def _check_components(self):
        check_latent_components(
            self.tokenizer,
            self.encoder_tokenizer,
            self.autoencoder,
            self.denoiser,
            self.scheduler,
            self.config.get("label_names"),
        )
