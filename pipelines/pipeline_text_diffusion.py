"""Generate, continue and fill in text by discrete diffusion over tokens.

Shapes: B rows (texts times `num_return_sequences`), L sequence length, V vocabulary size, N selected positions.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.pipelines.component_checks import (
    check_label_names,
    check_lengths,
    check_special_ids,
    check_token_scheduler,
    check_words,
)
from text_diffusers.pipelines.lora import DenoiserLoraLoaderMixin
from text_diffusers.pipelines.masked_lm import as_denoiser, is_masked_lm, masked_lm_length
from text_diffusers.pipelines.stock_schedulers import as_token_scheduler
from text_diffusers.pipelines.text_canvas import (
    Canvas,
    check_strings,
    encode_infill,
    encode_prompts,
    end_ids,
    is_list,
    lay_out,
    partial_text,
    start_ids,
)
from text_diffusers.pipelines.text_pipeline import TextPipeline, loaded_subclasses


@dataclass
class TextDiffusionPipelineOutput(BaseOutput):
    """Output of `TextDiffusionPipeline`.

    Attributes:
        texts: B strings, with the prompt and without special tokens; `None` with `output_type="tokens"`.
        tokens: (B, L) ids, with the start token, padded after the end of a text.
        history: with `return_history`, `num_inference_steps + 1` tensors (B, L), pure noise first.
    """

    texts: list[str] | None
    tokens: Tensor
    history: list[Tensor] | None = None


class TextDiffusionPipeline(TextPipeline, DiffusionPipeline, DenoiserLoraLoaderMixin):
    """Text by discrete diffusion: `pipe()`, `pipe("A prompt")`, `pipe(text="Fill the [MASK] in.")`.

    A text ends at `[EOS]`, which the model predicts like any other token. If `lengths` is given, as for models trained
    on one text a row, the number of tokens is drawn from it instead, and the `[EOS]` is put there.

    A masked LM of transformers predicts no special token. Its texts end where they are told to: after
    `max_new_tokens`, or a number of tokens drawn from `lengths`.

    Args:
        tokenizer: any transformers tokenizer with a mask token.
        denoiser: `denoiser(input_ids, timestep, attention_mask, class_labels, positions=...).logits`, or any
            `AutoModelForMaskedLM`, such as `BertForMaskedLM`.
        scheduler: a token scheduler, such as `D3PMAbsorbingScheduler`; or diffusers' `BlockRefinementScheduler` for
            absorbing noise, `DiscreteDDIMScheduler` or `EntropyBoundScheduler` for uniform noise.
        lengths: `lengths[n]` is the number of training texts with n tokens.
        label_names: a name for each class label, by which `class_labels` may ask for it.

    Raises:
        ValueError: if the vocabulary or the mask id of the components disagree.
    """

    model_cpu_offload_seq = "denoiser"
    _interrupt = False
    _callback_tensor_inputs = ["tokens"]
    denoiser: Any
    scheduler: Any

    def __init__(
        self,
        tokenizer,
        denoiser,
        scheduler,
        lengths: list[int] | None = None,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(lengths=lengths, label_names=label_names)
        self._check_components()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        text: str | list[str] | None = None,
        mask: Any = None,
        class_labels: int | str | list[int | str] | None = None,
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
            prompt: the beginning of the text or texts; without it and `text`, the model writes from nothing.
            text: text with `[MASK]` wherever one token is to be filled in; the rest is kept.
            mask: instead of `[MASK]`s, a bool array with one value a token of `text`, true where to rewrite.
            class_labels: a label or its name, or one a text, for models that were trained with labels.
            max_new_tokens: the longest continuation in tokens; by default up to the model's `max_length`.
                A masked LM needs it, unless the pipeline has `lengths`.
            num_inference_steps: steps of the scheduler, and at most that many calls of the denoiser.
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
        """
        # 1. Check the inputs
        self._check_inputs(prompt, text, mask, num_return_sequences, max_new_tokens)
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        # 2. Encode the text and cover what is to be written with pure noise
        self._token_scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        canvas, generators = self._prepare(
            prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator
        )
        # 3. Denoise
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        history = self._write(canvas, generators, return_history, *callback)
        # 4. Cut each text at its end and decode
        return self._decode(canvas, history, output_type, return_dict)

    @torch.no_grad()
    def stream(
        self,
        prompt: str | list[str] | None = None,
        text: str | list[str] | None = None,
        mask: Any = None,
        class_labels: int | str | list[int | str] | None = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 128,
        num_return_sequences: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[list[str]]:
        """Yield the B texts after every step, the last of them finished; tokens to come are shown as the mask token.

        Arguments and errors are those of `__call__`.
        """
        self._check_inputs(prompt, text, mask, num_return_sequences, max_new_tokens)
        self._token_scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        yield from self._frames(
            *self._prepare(prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator)
        )

    @property
    def _exclude_from_cpu_offload(self) -> list[str]:
        # A tied head reads the embedding outside of its layer, where sequential offloading does not load it.
        return ["denoiser"] if getattr(self.denoiser.config, "tie_embeddings", False) else []

    @property
    def num_timesteps(self) -> int:
        """Steps of the scheduler, as set for the call under way or the last one."""
        return len(self._token_scheduler.timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the call, which then returns what is written, by `pipe._interrupt = True`."""
        return self._interrupt

    @classmethod
    def _loadable_classes(cls) -> list[type]:
        """Its own children; by its own name, any pipeline of texts."""
        return loaded_subclasses(TextPipeline if cls is TextDiffusionPipeline else cls)

    def save_pretrained(self, save_directory, safe_serialization: bool = True, **kwargs):
        """As in diffusers, always as safetensors.

        Raises:
            ValueError: if the denoiser has LoRA layers, whose weights would be saved under other names.
        """
        if self.denoiser is not None and any(hasattr(module, "base_layer") for module in self.denoiser.modules()):
            raise ValueError("`denoiser` has LoRA layers: call `fuse_lora()`, if wanted, and `unload_lora_weights()`.")
        super().save_pretrained(save_directory, safe_serialization, **kwargs)

    def _write(
        self, canvas: Canvas, generators: list[torch.Generator], return_history: bool, callback, names: Sequence[str]
    ) -> list[Tensor] | None:
        """Denoise the canvas, calling back after each step; returns the tokens of every step if asked for."""
        history = [canvas.tokens] if return_history else None
        self._interrupt = False
        with contextlib.closing(self._denoise(canvas, generators)) as steps:
            for step, timestep in enumerate(steps):
                if callback is not None:
                    offered = {name: getattr(canvas, name) for name in names}
                    self._accept(canvas, callback(self, step, timestep, offered) or {})
                if history is not None:
                    history.append(canvas.tokens)
                if self.interrupt:
                    break
        return history

    def _decode(
        self, canvas: Canvas, history: list[Tensor] | None, output_type: str, return_dict: bool
    ) -> TextDiffusionPipelineOutput | tuple:
        """What is returned of a denoised canvas."""
        tokens = self._trim(canvas)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True) if output_type == "text" else None
        self.maybe_free_model_hooks()
        if not return_dict:
            return (texts, tokens, history)
        return TextDiffusionPipelineOutput(texts=texts, tokens=tokens, history=history)

    def _accept(self, canvas: Canvas, changed: dict[str, Tensor]):
        """Take the tensors that a callback returned."""
        canvas.tokens = changed.get("tokens", canvas.tokens)

    def _frames(self, canvas: Canvas, generators: list[torch.Generator]) -> Iterator[list[str]]:
        """Denoise the canvas, yielding the texts after every step."""
        for _ in self._denoise(canvas, generators):
            yield [partial_text(self.tokenizer, row) for row in self._trim(canvas).tolist()]
        self.maybe_free_model_hooks()

    def _denoise(self, canvas: Canvas, generators: list[torch.Generator]) -> Generator[float, None, None]:
        """Step `canvas.tokens` through the timesteps, yielding each timestep after its step."""
        timesteps = self._token_scheduler.timesteps.tolist()
        with self.progress_bar(total=len(timesteps)) as bar:
            for timestep in timesteps:
                self._step(canvas, timestep, generators)
                bar.update()
                yield timestep

    def _step(self, canvas: Canvas, timestep: float, generators: list[torch.Generator]):
        """Bring `canvas.tokens` from `timestep` to the next, less noisy time."""
        scheduler, tokens = self._token_scheduler, canvas.tokens
        positions = scheduler.select(timestep, tokens, generators)
        positions &= canvas.editable & ~self._finished(canvas).unsqueeze(1)
        logits = self._predict(canvas, timestep, positions)  # (N, V)
        output = scheduler.step(logits, timestep, tokens, positions=positions, generator=generators)
        canvas.tokens = torch.where(canvas.editable, output.prev_sample, tokens)

    def _predict(self, canvas: Canvas, timestep: float, positions: Tensor) -> Tensor:
        """(N, V) logits at the selected positions; rows without any are left out of the call."""
        rows = positions.any(dim=1)
        if not rows.any():
            return torch.zeros(0, self.denoiser.config.vocab_size, device=positions.device)
        tokens = canvas.tokens[rows]
        times = self._token_scheduler.model_timesteps(timestep, canvas.tokens)[rows]
        labels = None if canvas.class_labels is None else canvas.class_labels[rows]
        denoiser = as_denoiser(self.denoiser, self.tokenizer)
        return denoiser(tokens, times, canvas.attention_mask[rows], labels, positions=positions[rows]).logits

    def _finished(self, canvas: Canvas) -> Tensor:
        """(B,) bool: rows whose text can no longer change, every token up to their first `[EOS]` being settled."""
        if self._token_scheduler.revises_tokens:
            return torch.zeros_like(canvas.editable[:, 0])
        finished = ~self._open_tokens(canvas).any(dim=1)
        return finished | self._ends(canvas).any(dim=1) if canvas.ends_at_eos else finished

    def _open_tokens(self, canvas: Canvas) -> Tensor:
        """(B, L) bool: tokens that are still to be revealed."""
        return canvas.editable & (canvas.tokens == self.tokenizer.mask_token_id)

    def _ends(self, canvas: Canvas) -> Tensor:
        """(B, L) bool: written `[EOS]`s; with a scheduler that settles tokens, those with nothing open before them."""
        ends = canvas.editable & (canvas.tokens == self._eos_token_id)
        if self._token_scheduler.revises_tokens:
            return ends
        return ends & (self._open_tokens(canvas).cumsum(dim=1) == 0)

    def _trim(self, canvas: Canvas) -> Tensor:
        """(B, L) tokens with everything after a written `[EOS]` turned to padding, if all before it is settled."""
        if not canvas.ends_at_eos:
            return canvas.tokens
        ends = self._ends(canvas)
        after = (ends.cumsum(dim=1) - ends.long()) > 0
        return canvas.tokens.masked_fill(after & canvas.editable, self.tokenizer.pad_token_id or 0)

    def _prepare(
        self, prompt, text, mask, class_labels, max_new_tokens, num_return_sequences, generator
    ) -> tuple[Canvas, list[torch.Generator]]:
        """The canvas at time 1, and one generator a row."""
        known = self._encode(prompt, text, mask, len(class_labels) if is_list(class_labels) else 1)
        known = [row for row in known for _ in range(num_return_sequences)]
        labels = self._expand_labels(class_labels, len(known), num_return_sequences)
        generators = self._row_generators(generator, len(known))
        if text is None:
            starts = [len(start_ids(self.tokenizer))] * len(known)
            known = self._append_blanks(known, starts, max_new_tokens, generators)
        masked_lm = is_masked_lm(self.denoiser)
        if masked_lm:
            known = [row + end_ids(self.tokenizer) for row in known]
        self._check_length(max(len(row) for row in known))
        return self._canvas(known, labels, text is None and not masked_lm, generators), generators

    def _encode(self, prompt, text, mask, count: int) -> list:
        """Token ids of each text, `None` where it is to be filled in; `count` bare starts without any text."""
        if text is not None:
            return encode_infill(self.tokenizer, [text] if isinstance(text, str) else text, mask)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return encode_prompts(self.tokenizer, prompts or [""] * count)

    def _append_blanks(self, known: list, starts: list[int], max_new_tokens: int | None, generators: list) -> list:
        """The prompts, each followed by `None` for every token to be written; `starts` is where their texts begin."""
        lengths, masked_lm = self.config.lengths, is_masked_lm(self.denoiser)
        if masked_lm and lengths is None and max_new_tokens is None:
            raise ValueError("`max_new_tokens` must be given: a masked LM does not predict where a text ends.")
        if lengths is None or max_new_tokens is not None:
            return [row + [None] * (max_new_tokens or max(1, self._max_length - len(row))) for row in known]
        end = [] if masked_lm else end_ids(self.tokenizer)
        rows = []
        for row, start, row_generator in zip(known, starts, generators, strict=True):
            shortest = len(row) - start
            weights = torch.tensor(lengths[shortest:], dtype=torch.float64)
            if not weights.sum() > 0:
                raise ValueError(
                    f"`prompt` must leave room below the longest training text, {len(lengths) - 1} tokens, "
                    f"got {shortest}; pass `max_new_tokens`."
                )
            extra = int(torch.multinomial(weights, 1, generator=row_generator))
            rows.append(row + [None] * extra + end)
        return rows

    def _canvas(self, known: list, labels: Tensor | None, ends_at_eos: bool, generators: list) -> Canvas:
        """Right-padded rows, with noise from the scheduler's prior wherever a token is `None`."""
        device = self._execution_device
        tokens, editable, real = lay_out(known, self.tokenizer.pad_token_id or 0, device)
        noise = self._token_scheduler.prior(tuple(tokens.shape), generator=generators, device=device)
        return Canvas(torch.where(editable, noise, tokens), editable, real, labels, ends_at_eos)

    def _expand_labels(self, class_labels, num_rows: int, num_return_sequences: int) -> Tensor | None:
        if class_labels is None:
            return None
        labels = list(class_labels) if is_list(class_labels) else [class_labels] * (num_rows // num_return_sequences)
        labels = [self._label_id(label) for label in labels for _ in range(num_return_sequences)]
        if len(labels) != num_rows:
            raise ValueError(
                f"`class_labels` must be one or {num_rows // num_return_sequences}, one a text, "
                f"got {len(labels) // num_return_sequences}."
            )
        return torch.tensor(labels, device=self._execution_device)

    def _label_id(self, label: int | str) -> int:
        names = self.config.get("label_names") or []
        if isinstance(label, str) and label not in names:
            raise ValueError(f"`class_labels` must be among the model's `label_names`, {names}, got {label!r}.")
        return names.index(label) if isinstance(label, str) else label

    @property
    def _eos_token_id(self) -> int:
        """The token that ends a text; an id that no token has for a tokenizer without one."""
        return next(iter(end_ids(self.tokenizer)), -1)

    @property
    def _token_scheduler(self) -> Any:
        """The scheduler, or an adapter of one of diffusers' own."""
        return as_token_scheduler(self.scheduler, self.tokenizer)

    @property
    def _max_length(self) -> int:
        if is_masked_lm(self.denoiser):
            return masked_lm_length(self.denoiser)
        config = self.denoiser.config
        return getattr(config, "max_length", None) or config.max_position_embeddings

    def _check_length(self, length: int):
        limit, ends = self._max_length, "tokens around it" if is_masked_lm(self.denoiser) else "start token"
        if length > limit:
            raise ValueError(
                f"`prompt` and `max_new_tokens` together, or `text`, must fit into the model's {limit} tokens "
                f"(with the {ends}), got {length}: shorten the text or lower `max_new_tokens`."
            )

    def _check_inputs(self, prompt, text, mask, num_return_sequences, max_new_tokens):
        if prompt is not None and text is not None:
            raise ValueError("`prompt` and `text` exclude each other: give the one to continue or the one to fill in.")
        for name, value in (("prompt", prompt), ("text", text)):
            if value is not None:
                check_strings(name, value)
        if mask is not None and text is None:
            raise ValueError("`mask` needs `text`, whose tokens it marks.")
        if text is not None and max_new_tokens is not None:
            raise ValueError("`max_new_tokens` goes with `prompt`; `text` has as many new tokens as it has masks.")
        for name, value in (("num_return_sequences", num_return_sequences), ("max_new_tokens", max_new_tokens)):
            if not (value is None and name == "max_new_tokens") and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")

    def _check_components(self):
        if self.tokenizer is None or self.denoiser is None or self.scheduler is None:
            return
        mask, scheduled = self.tokenizer.mask_token_id, self.scheduler.config.get("mask_token_id")
        config, masked_lm = self.denoiser.config, is_masked_lm(self.denoiser)
        if mask is None:
            raise ValueError("`tokenizer` must have a mask token.")
        if scheduled is not None and scheduled != mask:
            raise ValueError(f"`scheduler` has `mask_token_id`={scheduled}, but the tokenizer's is {mask}.")
        check_words(self.tokenizer, "denoiser", config.vocab_size)
        noised = self.scheduler.config.get("vocab_size") or 0
        if noised > config.vocab_size:
            raise ValueError(f"`scheduler` has `vocab_size`={noised}, but the denoiser's is {config.vocab_size}.")
        if not masked_lm:
            check_special_ids(self.tokenizer, config)
        check_label_names(self.config.get("label_names"), getattr(config, "num_classes", None))
        ends = len(start_ids(self.tokenizer)) + len(end_ids(self.tokenizer))
        check_lengths(self.config.get("lengths"), self._max_length - ends)
        self._check_blocks(getattr(config, "block_length", None))
        self._check_scheduler()
        if masked_lm and getattr(self._token_scheduler, "corruption", None) == "uniform":
            raise ValueError("`scheduler` must be of an absorbing kernel for a masked LM, which fills in masks only.")

    def _check_scheduler(self):
        check_token_scheduler(self._token_scheduler)

    def _check_blocks(self, block_length: int | None):
        if block_length is not None:
            raise ValueError(
                f"`denoiser` writes in blocks (`block_length`={block_length}): use `TextBlockDiffusionPipeline`."
            )
