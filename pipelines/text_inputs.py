"""Input handling of the pipelines: prompts, gaps, sources, labels and guidance to a padded batch of token rows.

Shapes: B rows (texts times `num_return_sequences`, and candidates of each), L sequence length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.randomness import Generators, row_generators
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.validation import check_strings, is_int, is_list
from text_diffusers.pipelines.guidance import (
    as_controls,
    check_interval,
    guided_condition,
    negative_texts,
    planned_lengths,
    refuse_two_lengths,
    scales_by_row,
)
from text_diffusers.pipelines.text_batch import (
    Row,
    TextBatch,
    append_exactly,
    encode_gaps,
    encode_prompts,
    encode_sources,
    lay_out,
    repeat_rows,
)


@dataclass
class TextInputs:
    """The arguments of a call that say what is written, and how many times; see the `__call__` of the pipelines.

    Raises:
        ValueError: if they exclude each other, or one is out of its range.

    Example:
        >>> TextInputs(prompt=["I think", "You say"], num_return_sequences=2).repeats
        2
        >>> TextInputs(prompt="I think", text="A [MASK].")
        Traceback (most recent call last):
        ValueError: `prompt` and `text` exclude each other: give the one to continue or the one to fill in.
    """

    prompt: str | list[str] | None = None
    text: str | list[str] | None = None
    mask: Any = None
    source: str | list[str] | None = None
    class_labels: Any = None
    max_new_tokens: int | None = None
    length: int | list[int] | None = None
    num_return_sequences: int = 1
    num_candidates: int = 1

    def __post_init__(self):
        # Exactly one of these says what is written; without any, the model writes from nothing.
        for name in ("prompt", "text", "source"):
            if getattr(self, name) is not None:
                check_strings(name, getattr(self, name))
        if self.prompt is not None and self.text is not None:
            raise ValueError(
                "`prompt` and `text` exclude each other: give the one to continue or the one to fill in."
            )
        if self.source is not None and (self.prompt is not None or self.text is not None):
            raise ValueError(
                "`source` excludes `prompt` and `text`: what is written from it begins by itself."
            )
        # Each way of saying how much is written goes with its own input.
        if self.mask is not None and self.text is None:
            raise ValueError("`mask` needs `text`, whose tokens it marks.")
        if self.text is not None and self.max_new_tokens is not None:
            raise ValueError(
                "`max_new_tokens` goes with `prompt`; `text` has as many new tokens as it has masks."
            )
        if self.length is not None and (self.text is not None or self.max_new_tokens is not None):
            raise ValueError(
                "`length` excludes `text` and `max_new_tokens`, which say how long a text is."
            )

        # Only the limit of new tokens may be left out.
        for name in ("num_return_sequences", "max_new_tokens", "num_candidates"):
            value = getattr(self, name)
            if not is_int(value, 1) and (value is not None or name != "max_new_tokens"):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")

        # One length for all texts, or one a text.
        lengths = self.length if is_list(self.length) else [self.length]
        if self.length is not None and not all(is_int(length, 1) for length in lengths):
            raise ValueError(f"`length` must be integers of at least 1, got {self.length!r}.")

    @property
    def repeats(self) -> int:
        """Rows for each text that is asked for."""
        return self.num_return_sequences * self.num_candidates


@dataclass
class GuidanceInputs:
    """The arguments of a call that lead what is written; see the `__call__` of the pipelines.

    Raises:
        ValueError: if the interval is none, or a control is none.
    """

    guidance_scale: float | list[float] = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guide_by: str | None = None
    negative_prompt: str | list[str] | None = None
    controls: Any = field(default_factory=list)

    def __post_init__(self):
        check_interval(self.guidance_interval)
        self.controls = as_controls(self.controls)


@dataclass
class RowLimits:
    """The rows that a model can write.

    Attributes:
        max_length: the longest row in tokens, with the start token.
        histogram: `histogram[n]` is the number of training texts with n tokens, from which lengths are drawn.
        predicts_end: whether the model says where a text ends; a masked LM does not, and has its end token in place.
        label_names: of the class labels.
        num_classes: number of labels, and the id that stands for no label.
        block_length: tokens of a block, for a model that writes block by block.
    """

    max_length: int
    histogram: list[int] | None = None
    predicts_end: bool = True
    label_names: Sequence[str] | None = None
    num_classes: int | None = None
    block_length: int | None = None

    def check_length(self, length: int):
        """Raise a `ValueError` if a row of `length` tokens does not fit."""
        if length > self.max_length:
            # A masked LM reads texts between two special tokens, other models after one.
            ends = "start token" if self.predicts_end else "tokens around it"
            raise ValueError(
                f"`prompt` and `max_new_tokens` together, or `text`, must fit into the model's {self.max_length} "
                f"tokens (with the {ends}), got {length}: shorten the text or lower `max_new_tokens`."
            )


def prepare_batch(
    tokenizer: Any,
    inputs: TextInputs,
    guidance: GuidanceInputs,
    limits: RowLimits,
    generator: Generators = None,
    device: torch.device | str | None = None,
) -> TextBatch:
    """The rows of a call, with padding wherever a token is to be written, and their unconditional view if guided.

    Args:
        generator: one, or one for each returned text.

    Raises:
        ValueError: if the inputs do not fit each other or the model.
    """
    # 1. Check what only the arguments together can say
    refuse_two_lengths(
        guidance.controls,
        text=inputs.text,
        length=inputs.length,
        max_new_tokens=inputs.max_new_tokens,
    )
    guide_by = guided_condition(
        inputs.prompt,
        inputs.text,
        inputs.source,
        inputs.class_labels,
        guidance.negative_prompt,
        guidance.guide_by,
    )

    # 2. One row a text, then one for each of its copies, which stand next to each other
    rows = encode_inputs(tokenizer, inputs, guidance)
    num_texts = len(rows)
    scales = scales_by_row(guidance.guidance_scale, num_texts, inputs.repeats)
    # Without a condition both predictions would be the same.
    if guide_by is None and any(scale != 1 for scale in scales):
        raise ValueError(
            "`guidance_scale` must be 1 without a condition, `class_labels`, `prompt` or `source`, "
            f"got {guidance.guidance_scale!r}."
        )

    # Without the condition, these stand where prompts or sources stand with it.
    negatives = encode_negatives(
        tokenizer, guidance.negative_prompt, num_texts, inputs.source is not None
    )
    lengths = lengths_by_text(inputs.length, num_texts)
    labels = label_tensor(inputs.class_labels, limits, num_texts, inputs.repeats)
    rows = repeat_rows(rows, inputs.repeats)
    negatives = repeat_rows(negatives, inputs.repeats)

    # Each row draws by its own generator, so that a text does not depend on its batch.
    generators = text_generators(generator, len(rows), inputs.num_candidates)

    # 3. A blank for each token that is to be written
    beginnings = [len(row) for row in rows]
    # A text begins behind its source, or behind the start token, prompt included.
    starts = beginnings if inputs.source is not None else [len(start_ids(tokenizer))] * len(rows)
    # A control may fix the lengths, which else are given, drawn, or left to the end token.
    planned = planned_lengths(guidance.controls, generators)
    if planned is None and lengths is not None:
        planned = repeat_rows(lengths, inputs.repeats)

    # Where the length is fixed the end token is put in place, and not left to the model.
    end = end_ids(tokenizer) if limits.predicts_end else []
    if planned is not None:
        rows = append_exactly(rows, starts, planned, end)
    elif inputs.text is None:
        rows = append_blanks(rows, starts, inputs.max_new_tokens, limits, end, generators)

    # A masked LM never writes its end token, so every row has it from the beginning.
    if not limits.predicts_end:
        rows = [row + end_ids(tokenizer) for row in rows]

    # The longest row decides: the others are padded to it.
    limits.check_length(max(len(row) for row in rows))

    # 4. The batch, and what leads it
    pad_token_id = tokenizer.pad_token_id or 0
    batch = lay_out(rows, pad_token_id, device)
    batch.class_labels = None if labels is None else labels.to(device)
    # A text without a fixed length ends at the first end token that the model writes.
    batch.ends_at_eos = inputs.text is None and planned is None and limits.predicts_end
    batch.starts = starts
    batch.drops_source = inputs.source is not None
    batch.generators = generators
    batch.controls = guidance.controls
    batch.scales = torch.tensor(scales, dtype=torch.float64, device=device)  # (B,)
    batch.guidance_interval = guidance.guidance_interval

    # At scale 1 there is no second prediction, and no second view of the rows.
    if any(scale != 1 for scale in scales):
        batch.unconditional = unconditional_view(
            rows,
            beginnings,
            negatives,
            batch,
            guide_by=str(guide_by),
            limits=limits,
            pad_token_id=pad_token_id,
        )
    return batch


def unconditional_view(
    rows: list[Row],
    beginnings: list[int],
    negatives: list[Row],
    batch: TextBatch,
    *,
    guide_by: str,
    limits: RowLimits,
    pad_token_id: int,
) -> TextBatch:
    """The same tokens to write in rows without the condition.

    Args:
        rows: of the batch, with `None` for what is to be written.
        beginnings: number of tokens of each row that are its prompt or source, and its start.
        negatives: what stands there instead, if guidance is by the prompt.

    Raises:
        ValueError: if such a row does not fit the model.
    """
    # The negative prompt takes the place of the prompt or source; what is to be written stays.
    if guide_by != "label":
        if limits.block_length is not None:
            raise ValueError(
                '`guide_by` must be "label" for a denoiser with blocks: without its prompt, a text would stand in '
                f"other blocks, got {guide_by!r}."
            )
        rows = [
            negative + row[beginning:]
            for row, beginning, negative in zip(rows, beginnings, negatives, strict=True)
        ]
    limits.check_length(max(len(row) for row in rows))
    view = lay_out(rows, pad_token_id, batch.tokens.device)
    view.class_labels = unconditional_labels(batch.class_labels, guide_by, limits)
    return view


def encode_inputs(tokenizer: Any, inputs: TextInputs, guidance: GuidanceInputs) -> list[Row]:
    """Token ids of each text, `None` where one is to be filled in; without any text, a bare start for each."""
    # At most one of the three was given.
    if inputs.source is not None:
        return encode_sources(tokenizer, inputs.source)
    if inputs.text is not None:
        return encode_gaps(tokenizer, inputs.text, inputs.mask)
    if inputs.prompt:
        return encode_prompts(
            tokenizer, [inputs.prompt] if isinstance(inputs.prompt, str) else inputs.prompt
        )

    # As many texts as the first argument that has one value a text
    per_text: tuple[Any, ...] = (
        inputs.class_labels,
        guidance.guidance_scale,
        guidance.negative_prompt,
        inputs.length,
    )
    num_texts = next((len(values) for values in per_text if is_list(values)), 1)
    return encode_prompts(tokenizer, [""] * num_texts)


def encode_negatives(
    tokenizer: Any, negative_prompt: Any, num_texts: int, as_source: bool
) -> list[Row]:
    """The beginning of each text without the condition: the start, and what it is led away from."""
    negatives = negative_texts(negative_prompt, num_texts)
    if as_source:
        return encode_sources(tokenizer, negatives, "negative_prompt")
    return encode_prompts(tokenizer, negatives, "negative_prompt")


def lengths_by_text(length: int | list[int] | None, num_texts: int) -> list[int] | None:
    """The number of tokens that each text is to have, if it is given.

    Raises:
        ValueError: if there are neither one nor one a text.
    """
    if length is None:
        return None
    lengths = list(length) if is_list(length) else [length] * num_texts
    if len(lengths) != num_texts:
        raise ValueError(f"`length` must be one or {num_texts}, one a text, got {len(lengths)}.")
    return lengths


def append_blanks(
    rows: list[Row],
    starts: list[int],
    max_new_tokens: int | None,
    limits: RowLimits,
    end: list[int],
    generators: list[torch.Generator],
) -> list[Row]:
    """The rows, each followed by `None` for every token to be written, up to a limit or a length that is drawn.

    Raises:
        ValueError: if there is neither a limit nor anything to draw from, or the prompt leaves nothing to draw.
    """
    histogram = limits.histogram
    if not limits.predicts_end and histogram is None and max_new_tokens is None:
        raise ValueError(
            "`max_new_tokens` must be given: a masked LM does not predict where a text ends."
        )

    # As many as allowed or as fit; the text ends where the model writes its end token.
    if histogram is None or max_new_tokens is not None:
        return [
            row + [None] * (max_new_tokens or max(1, limits.max_length - len(row))) for row in rows
        ]

    # Each text has a length drawn from those of the training texts.
    extended = []
    for row, start, generator in zip(rows, starts, generators, strict=True):
        # Only lengths from the known tokens on
        num_known = len(row) - start
        weights = torch.tensor(histogram[num_known:], dtype=torch.float64)
        if not weights.sum() > 0:
            raise ValueError(
                f"`prompt` must leave room below the longest training text, {len(histogram) - 1} tokens, "
                f"got {num_known}; pass `max_new_tokens`."
            )

        # Entry i weighs a text of i tokens more than are known.
        num_new = int(torch.multinomial(weights, 1, generator=generator))
        extended.append(row + [None] * num_new + end)
    return extended


def label_tensor(
    class_labels: Any, limits: RowLimits, num_texts: int, repeats: int
) -> Tensor | None:
    """(B,) label ids from one label or one a text, by id or by name; `None` among them is no label.

    Raises:
        ValueError: if there are neither one nor one a text, or a name is unknown.
    """
    if class_labels is None:
        return None
    labels = list(class_labels) if is_list(class_labels) else [class_labels] * num_texts
    if len(labels) != num_texts:
        raise ValueError(
            f"`class_labels` must be one or {num_texts}, one a text, got {len(labels)}."
        )

    # Names become ids, and no label the id behind those of all labels.
    names = list(limits.label_names or [])
    ids = []
    for label in labels:
        if isinstance(label, str) and label not in names:
            raise ValueError(
                f"`class_labels` must be among the model's `label_names`, {names}, got {label!r}."
            )
        if label is None:
            ids.append(limits.num_classes)
        else:
            ids.append(names.index(label) if isinstance(label, str) else label)
    return torch.tensor(repeat_rows(ids, repeats))


def unconditional_labels(labels: Tensor | None, guide_by: str, limits: RowLimits) -> Tensor | None:
    """(B,) labels of the unconditional view: no label, unless guidance is by the prompt alone."""
    if labels is None or guide_by == "prompt":
        return labels
    assert limits.num_classes is not None  # a model that is told labels has as many
    return torch.full_like(labels, limits.num_classes)


def text_generators(
    generator: Generators, num_rows: int, num_candidates: int = 1
) -> list[torch.Generator]:
    """One generator a row, seeded by the next number of its text's own generator or of the shared one.

    Raises:
        ValueError: if there are neither one nor one for each returned text.
    """
    num_texts = num_rows // num_candidates
    if is_list(generator) and len(generator) != num_texts:
        raise ValueError(
            f"`generator` must be one or {num_texts}, one a returned text, got {len(generator)}."
        )
    generators = row_generators(generator, num_texts)
    if num_candidates == 1:
        return generators

    # Candidates of a text draw by seeds from the generator of that text.
    return [candidate for text in generators for candidate in row_generators(text, num_candidates)]
