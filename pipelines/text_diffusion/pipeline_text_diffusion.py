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

from text_diffusers.models.language_model import as_denoiser
from text_diffusers.pipelines.lora import DenoiserLoraLoaderMixin
from text_diffusers.pipelines.pipeline_base import TextPipeline, loaded_subclasses
from text_diffusers.pipelines.text_batch import Canvas, partial_text
from text_diffusers.pipelines.text_diffusion.inputs import TokenRowsPipeline


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


class TextDiffusionPipeline(TokenRowsPipeline, DiffusionPipeline, DenoiserLoraLoaderMixin):
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
        if isinstance(label_names, dict):  # as a folder for the Hub holds them: {"0": name, ...}
            label_names = list(label_names.values())
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
