"""Input handling of the pipelines: prompts, gaps, sources, labels and guidance to a padded batch of token rows.

Shapes: B rows (texts times `num_return_sequences`, and candidates of each), L sequence length.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from text_diffusers.common.randomness import Generators, row_generators
from text_diffusers.common.token_ids import end_ids, padding_id, start_ids
from text_diffusers.common.validation import check_strings, is_int, is_list
from text_diffusers.pipelines.calls.labels import (
    behind_frames,
    encode_frames,
    label_frames,
    label_numbers,
    label_tensor,
    moved,
)
from text_diffusers.pipelines.calls.unconditional import condition_spans, unconditional_view
from text_diffusers.pipelines.chat_inputs import encode_messages
from text_diffusers.pipelines.given_text import GivenText
from text_diffusers.pipelines.guidance import (
    as_controls,
    check_interval,
    conditional_scales,
    guided_condition,
    negative_texts,
    planned_lengths,
    refuse_two_lengths,
    set_guidance_scale,
)
from text_diffusers.pipelines.row_limits import RowLimits
from text_diffusers.pipelines.text_batch import (
    LEFT_PADDING,
    Row,
    TextBatch,
    append_exactly,
    encode_prompts,
    encode_sources,
    lay_out,
    repeat_rows,
    text_before,
)
from text_diffusers.pipelines.text_gaps import encode_gaps
from text_diffusers.pipelines.text_lengths import (
    draw_lengths,
    length_log_probs,
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
    messages: Any = None
    class_labels: Any = None
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
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
        if self.messages is not None:
            others = {"prompt": self.prompt, "text": self.text, "source": self.source}
            given = [name for name, value in others.items() if value is not None]
            if given:
                raise ValueError(
                    f"`messages` excludes `{given[0]}`: a conversation holds all that is said."
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

        if not is_int(self.min_new_tokens, 0):
            raise ValueError(
                f"`min_new_tokens` must be an integer of at least 0, got {self.min_new_tokens!r}."
            )
        if self.min_new_tokens and (self.text is not None or self.length is not None):
            raise ValueError(
                "`min_new_tokens` excludes `text` and `length`, which say how long a text is, got "
                f"{self.min_new_tokens}."
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"`min_new_tokens` must be at most `max_new_tokens`={self.max_new_tokens}, "
                f"got {self.min_new_tokens}."
            )

        # One length for all texts, or one a text.
        lengths = self.length if is_list(self.length) else [self.length]
        if self.length is not None and not all(is_int(length, 1) for length in lengths):
            raise ValueError(f"`length` must be integers of at least 1, got {self.length!r}.")

    @property
    def drops_beginning(self) -> bool:
        """Whether a text is returned without what it was written from."""
        return self.source is not None or self.messages is not None

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
    check_conditions(inputs, limits)
    has_source_frame = inputs.source is not None and limits.takes_source
    guide_by = condition_to_guide(inputs, guidance, limits)

    # 2. One row a text, then one for each of its copies, which stand next to each other
    rows, given_texts = encode_inputs(tokenizer, inputs, guidance, limits)
    num_texts = len(rows)
    num_start = len(start_ids(tokenizer))
    frames = frames_of_texts(tokenizer, inputs, limits, num_texts)
    if frames:
        rows = behind_frames(rows, frames, num_start)
        given_texts = [
            moved(given, len(frame) - num_start)
            for given, frame in zip(given_texts, frames, strict=True)
        ]
    if limits.blocks_from_prompt and limits.block_length is not None and inputs.text is None:
        filled = [fill_block(row, limits.block_length) for row in rows]
        given_texts = [
            moved(given, len(behind) - len(row))
            for given, row, behind in zip(given_texts, rows, filled, strict=True)
        ]
        rows = filled
    # Checked before anything is drawn
    scales = conditional_scales(
        guidance.guidance_scale, num_texts, inputs.repeats, has_condition=guide_by is not None
    )

    # Without the condition, these stand where prompts or sources stand with it.
    negatives = encode_negatives(
        tokenizer, guidance.negative_prompt, num_texts, inputs.source is not None, limits
    )
    if frames:
        negatives = behind_frames(negatives, frames, num_start)
    lengths = lengths_by_text(inputs.length, num_texts)
    labels = None
    if limits.label_prompts is None:
        labels = label_tensor(inputs.class_labels, limits, num_texts, inputs.repeats)
    rows = repeat_rows(rows, inputs.repeats)
    frames = repeat_rows(frames, inputs.repeats)
    negatives = repeat_rows(negatives, inputs.repeats)

    # Each row draws by its own generator, so that a text does not depend on its batch.
    generators = text_generators(generator, len(rows), inputs.num_candidates)

    # 3. A blank for each token that is to be written
    beginnings = [len(row) for row in rows]
    pad_token_id = padding_id(tokenizer)
    # The same rows without the condition, if there is one to compare with
    without_condition = None
    if guide_by is not None:
        without_condition = partial(
            unconditional_view,
            spans=condition_spans(rows, frames, has_source_frame),
            beginnings=beginnings,
            negatives=negatives,
            class_labels=labels,
            guide_by=guide_by,
            limits=limits,
            pad_token_id=pad_token_id,
            mask_token_id=tokenizer.mask_token_id,
            device=device,
        )
    # A text begins behind its source or conversation, or behind the start token or label, prompt included.
    starts = beginnings
    if not inputs.drops_beginning:
        num_before = [len(frame) for frame in frames] or [num_start] * len(rows)
        starts = [
            row.count(LEFT_PADDING) + number for row, number in zip(rows, num_before, strict=True)
        ]
    # A control may fix the lengths, which else are given, drawn, or left to the end token.
    planned = planned_lengths(guidance.controls, generators)
    if planned is None and lengths is not None:
        planned = repeat_rows(lengths, inputs.repeats)
    # A model may say itself how long a text from this source is.
    if planned is None and inputs.source is not None and limits.length_logits is not None:
        # What guides the first step guides the length.
        is_guided = guidance.guidance_interval[0] == 0 and any(scale != 1 for scale in scales)
        log_probs = length_log_probs(
            limits.length_logits,
            lay_out(rows, pad_token_id, device, labels),
            rooms_behind(rows, inputs, limits),
            without_condition(rows) if without_condition and is_guided else None,
            torch.tensor(scales, device=device),
            inputs.min_new_tokens,
        )
        planned = draw_lengths(log_probs, generators)

    # Where the length is fixed the end token is put in place, and not left to the model.
    end = end_ids(tokenizer) if limits.predicts_end else []
    if planned is not None:
        rows = append_exactly(rows, starts, planned, end)
    elif inputs.text is None:
        rows = append_blanks(
            rows, starts, inputs.max_new_tokens, limits, end, generators, inputs.min_new_tokens
        )
    elif limits.histogram is not None:
        # A model of whole texts has seen nothing that goes on behind them, except what was cut.
        rows = [row + end if len(row + end) <= limits.max_length else row for row in rows]

    # A masked LM never writes its end token, so every row has it from the beginning.
    if not limits.predicts_end:
        rows = [row + end_ids(tokenizer) for row in rows]

    # The longest row decides: the others are padded to it.
    limits.check_length(max(len(row) for row in rows))

    # 4. The batch, and what leads it
    batch = lay_out(rows, pad_token_id, device, labels)
    # A text without a fixed length ends at the first end token that the model writes.
    batch.ends_at_eos = inputs.text is None and planned is None and limits.predicts_end
    batch.starts = starts
    batch.given_texts = repeat_rows(given_texts, inputs.repeats)
    batch.drops_source = inputs.drops_beginning or bool(frames)
    batch.end_token_ids = limits.end_token_ids
    # Neither a gap nor a text of a given length is a place for an end. The tokenizer's own end may stand in
    # a text of a given length, which can hold several texts.
    if inputs.text is not None or planned is not None:
        batch.suppressed_ids = list(limits.end_token_ids)
    if inputs.text is not None:
        batch.suppressed_ids += end
    if inputs.min_new_tokens:
        batch.earliest_ends = (torch.tensor(beginnings) + inputs.min_new_tokens).to(device)
    if limits.one_block:
        # What is filled in stands in a block with the whole of its text, behind the start or the label.
        pasts = beginnings
        if inputs.text is not None:
            pasts = [len(frame) for frame in frames] or [num_start] * len(rows)
        batch.past_lengths = torch.tensor(pasts, device=device)
    batch.generators = generators
    batch.controls = guidance.controls
    batch.guidance_interval = guidance.guidance_interval
    batch.repeats = inputs.repeats

    # A callback may set another scale, which may then need the view without the condition.
    if without_condition:
        batch.make_unconditional = partial(without_condition, rows)
    set_guidance_scale(batch, guidance.guidance_scale)
    return batch


def rooms_behind(rows: list[Row], inputs: TextInputs, limits: RowLimits) -> list[int]:
    """The most tokens of the text behind each row that ends with its source.

    Raises:
        ValueError: if a source leaves no room for a token and the end.
    """
    rooms = []
    for row in rows:
        limits.check_length(len(row) + 2)
        room = limits.max_length - len(row) - 1
        rooms.append(min(room, inputs.max_new_tokens or room))
    return rooms


def encode_inputs(
    tokenizer: Any, inputs: TextInputs, guidance: GuidanceInputs, limits: RowLimits
) -> tuple[list[Row], list[GivenText]]:
    """Token ids of each text, `None` where one is to be filled in, and its characters; without any, a bare start."""
    # At most one of these was given.
    if inputs.text is not None:
        return encode_gaps(tokenizer, inputs.text, inputs.mask)

    if inputs.messages is not None:
        rows = encode_messages(tokenizer, inputs.messages)
        return rows, [text_before("", row) for row in rows]

    # What is written from a source is returned without it.
    if inputs.source is not None:
        rows = encode_conditions(tokenizer, inputs.source, "source", limits)
        return rows, [text_before("", row) for row in rows]

    prompts = [inputs.prompt] if isinstance(inputs.prompt, str) else inputs.prompt
    if not inputs.prompt or prompts is None:
        # As many texts as the first argument that has one value a text
        per_text: tuple[Any, ...] = (
            inputs.class_labels,
            guidance.guidance_scale,
            guidance.negative_prompt,
            inputs.length,
        )
        num_texts = next((len(values) for values in per_text if is_list(values)), 1)
        prompts = [""] * num_texts
    rows = encode_prompts(tokenizer, prompts)
    return rows, [text_before(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]


def encode_negatives(
    tokenizer: Any, negative_prompt: Any, num_texts: int, as_source: bool, limits: RowLimits
) -> list[Row]:
    """The beginning of each text without the condition: the start, and what it is led away from."""
    negatives = negative_texts(negative_prompt, num_texts)
    if as_source:
        return encode_conditions(tokenizer, negatives, "negative_prompt", limits)
    return encode_prompts(tokenizer, negatives, "negative_prompt")


def encode_conditions(tokenizer: Any, sources: Any, name: str, limits: RowLimits) -> list[Row]:
    """Token ids of the sources from which texts are written, with the start and the ends around them."""
    if not limits.takes_source:
        return encode_sources(tokenizer, sources, name, limits.source_ends)
    texts = [sources] if isinstance(sources, str) else sources
    frames: Any = encode_frames(tokenizer, texts, name)
    return frames


def condition_to_guide(
    inputs: TextInputs, guidance: GuidanceInputs, limits: RowLimits
) -> str | None:
    """The condition that guidance strengthens in a call, as `guided_condition` says it."""
    guide_by = guided_condition(
        inputs.prompt,
        inputs.text,
        inputs.source,
        inputs.class_labels,
        guidance.negative_prompt,
        guidance.guide_by,
        inputs.messages,
    )
    # In a language model masks take the place of a source, as in its training.
    is_by_default = guidance.guide_by is None and guidance.negative_prompt is None
    if guide_by == "prompt" and is_by_default and inputs.source is not None and limits.takes_source:
        return "masked_prompt"
    return guide_by


def frames_of_texts(
    tokenizer: Any, inputs: TextInputs, limits: RowLimits, num_texts: int
) -> list[list[int]]:
    """What a language model reads before each text for its label; empty without labels, or behind another frame."""
    if limits.label_prompts is None or inputs.drops_beginning:
        return []
    label_ids = label_numbers(inputs.class_labels, limits, num_texts)
    return label_frames(tokenizer, limits.label_prompts, label_ids)


def check_conditions(inputs: TextInputs, limits: RowLimits):
    """Refuse a condition that the model was not trained with, or two that it cannot be shown together.

    Raises:
        ValueError: that names the argument.
    """
    # What was trained on texts alone takes a source for a text that has ended.
    if inputs.source is not None and limits.end_token_ids and not limits.takes_source:
        raise ValueError(
            "`source` needs a denoiser that was trained with one; give a language model a `prompt` or `messages`, "
            f"got {inputs.source!r}."
        )
    # A label takes the place of a source or conversation before the text.
    if limits.label_prompts is not None and inputs.drops_beginning:
        other = "source" if inputs.source is not None else "messages"
        if inputs.class_labels is not None:
            raise ValueError(
                f"`class_labels` exclude `{other}` in a language model, which reads either before its text, got "
                f"{inputs.class_labels!r}."
            )


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
    min_new_tokens: int = 0,
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
            row + [None] * (max_new_tokens or default_new_tokens(len(row), limits, min_new_tokens))
            for row in rows
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


def fill_block(row: Row, block_length: int) -> Row:
    """The row behind as much padding as fills its blocks up.

    Example:
        >>> fill_block([7, 8, 9, 7, 8], block_length=4)
        [-1, -1, -1, 7, 8, 9, 7, 8]
    """
    padding: Row = [LEFT_PADDING] * (-len(row) % block_length)
    return padding + row


def default_new_tokens(num_known: int, limits: RowLimits, min_new_tokens: int = 0) -> int:
    """The number of tokens that are written behind `num_known` ones where nothing says it.

    Raises:
        ValueError: if there is no room for so many as are asked for at least.
    """
    room = max(1, limits.max_length - num_known)
    if min_new_tokens > room:
        raise ValueError(
            f"`min_new_tokens` must fit behind the prompt, into {room} of the model's {limits.max_length} tokens, "
            f"got {min_new_tokens}."
        )
    if limits.new_tokens is None:
        return room
    return min(room, max(limits.new_tokens, min_new_tokens))


def text_generators(
    generator: Generators, num_rows: int, num_candidates: int = 1
) -> list[torch.Generator]:
    """One generator a row, seeded by the next number of its text's own generator or of the shared one.

    Raises:
        ValueError: if there are neither one nor one for each returned text.
        TypeError: if something else is passed as a generator, such as a seed.
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
