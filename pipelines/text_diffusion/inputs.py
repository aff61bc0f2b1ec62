"""What `TextDiffusionPipeline` is asked for, as rows of tokens to be written; and whether its parts fit each other.

Shapes: B rows (texts times `num_return_sequences`), L sequence length.
"""

from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.validation import check_strings, is_list
from text_diffusers.models.language_model import is_masked_lm, masked_lm_length
from text_diffusers.pipelines.component_checks import (
    check_label_names,
    check_lengths,
    check_special_ids,
    check_token_scheduler,
    check_words,
)
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.pipelines.scheduler_adapters import as_token_scheduler
from text_diffusers.pipelines.text_batch import Canvas, encode_infill, encode_prompts, lay_out


class TokenRowsPipeline(TextPipeline):
    """A `TextPipeline` with a tokenizer, a denoiser and a scheduler, whose texts are rows of a canvas of tokens."""

    denoiser: Any
    scheduler: Any
    _execution_device: Any

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
