"""Texts as a pipeline writes them: what it is given, what it writes, and what of that is counted.

One definition for every figure per token. Counted are the tokens that the pipeline writes, the end of a text among
them, and nothing that is given or always the same, such as the token that texts begin with. Where the number of tokens
is drawn first, from a histogram or from what the model says of a source, the end is put where it says: it still counts
as a token, and the length is what it costs. Characters and bytes are those of the same texts, the end counting as one.

A language model that predicts the end writes more tokens at once than a text needs, so masks stand behind the end: the
width of a row must not tell where its text ends.

Shapes: R texts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from text_diffusers.common.token_ids import end_ids, padding_id
from text_diffusers.common.validation import is_int, require
from text_diffusers.data.rows import encode_texts, source_room
from text_diffusers.evaluation.given_tokens import (
    given_messages,
    given_prompts,
    given_sources,
    refuse_two_conditions,
)
from text_diffusers.evaluation.modules import device_of
from text_diffusers.models.language_model import is_language_model, predicts_end, reading_of
from text_diffusers.models.reading import Reading
from text_diffusers.pipelines.calls.labels import label_frames, shown_labels
from text_diffusers.pipelines.row_limits import NEW_TOKENS
from text_diffusers.pipelines.text_batch import lay_out
from text_diffusers.pipelines.text_lengths import length_log_probs, length_model


class WrittenText(NamedTuple):
    """One text as a row "given, tokens, end".

    Attributes:
        given: ids of the start and of the prompt or source; they stay clean and cost nothing.
        tokens: ids of the text.
        end: ids of the end, none for a tokenizer without such a token.
        end_is_given: whether the model is shown the end instead of predicting it.
        end_is_counted: whether it is paid for, by itself or by the length.
        length_nats: cost of the number of tokens under the histogram; that of a length which the model predicts is not
            among it, see `predicted_length_nats`.
        text: the text, as far as it is in `tokens`.
        truncated: whether the text, or its source, was cut.
        padding: ids before the row, with which the given tokens fill whole blocks.
        blanks: masks behind the end, which is written together with as many tokens; they stay and cost nothing.
    """

    given: list[int]
    tokens: list[int]
    end: list[int]
    end_is_given: bool
    end_is_counted: bool
    length_nats: float
    text: str
    truncated: bool
    padding: tuple[int, ...] = ()
    blanks: tuple[int, ...] = ()

    @property
    def counted(self) -> list[int]:
        """Ids of the tokens that count."""
        return [*self.tokens, *self.end] if self.end_is_counted else self.tokens

    @property
    def num_characters(self) -> int:
        """Unicode code points of the text, and one for an end that counts."""
        return len(self.text) + len(self.counted) - len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text, and one for an end that counts."""
        return len(self.text.encode()) + len(self.counted) - len(self.tokens)

    def row(self, label: int | None = None) -> dict[str, Any]:
        """The row of a data set, as the bounds read it."""
        num_given = len(self.padding) + len(self.given)
        ids = [*self.padding, *self.given, *self.tokens, *self.end, *self.blanks]
        is_given = [True] * num_given + [False] * len(self.tokens)
        is_given += [self.end_is_given] * len(self.end) + [True] * len(self.blanks)
        row: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": [int(column >= len(self.padding)) for column in range(len(ids))],
            "given": is_given,
        }
        if label is not None:
            row["label"] = label
        return row

    def next_token_row(self) -> dict[str, Any]:
        """The row as it is written one token after the other: an end that counts is predicted like any other token."""
        return self._replace(end_is_given=not self.end_is_counted, blanks=()).row()


def texts_of_pipeline(
    pipe: Any,
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    max_length: int | None = None,
    messages: Any = None,
    labels: Sequence[int] | None = None,
    block_length: int | None = None,
) -> list[WrittenText]:
    """The texts as a pipeline of tokens or of word embeddings would write them; arguments as in `written_texts`.

    Args:
        labels: a number a text, the one behind all labels being none. A denoiser is told it by its row; a language
            model is shown a prompt for it.
        block_length: of the blocks over a causal past, if another than the model's own.

    Raises:
        ValueError: naming the argument, if the pipeline cannot be shown such a condition.
    """
    require(
        max_length is None or is_int(max_length, 1),
        "max_length",
        "None or an integer >= 1",
        max_length,
    )
    reading = reading_of(pipe.denoiser) if is_language_model(pipe.denoiser) else None
    if reading is not None and reading.has_causal_past and block_length is not None:
        reading = replace(reading, block_length=block_length)
    takes_source = reading is not None and bool(pipe.config.get("takes_source"))
    predicts_ends = reading is not None and bool(reading.end_token_ids)
    if sources is not None and predicts_ends and not takes_source:
        raise ValueError(
            "`sources` need a denoiser that was trained with them; give a language model `prompts` or `messages`."
        )
    return written_texts(
        pipe.tokenizer,
        texts,
        prompts,
        sources,
        max_length=min(max_length or pipe.max_length, pipe.max_length),
        histogram=pipe.config.lengths,
        predicts_end=predicts_end(pipe.denoiser),
        predicts_length=length_model(pipe.denoiser) is not None,
        cuts_texts=max_length is not None,
        reading=reading,
        source_ends=getattr(pipe.denoiser.config, "source_ends", 1),
        messages=messages,
        frames=frames_of_labels(pipe, labels, len(texts), sources is None and messages is None),
        framed_sources=takes_source,
    )


def frames_of_labels(
    pipe: Any, labels: Sequence[int] | None, num_texts: int, begins_text: bool
) -> list[list[int]] | None:
    """What a language model is shown before each text for its label; `None` if it was trained without labels.

    Args:
        begins_text: whether the texts stand behind nothing but a prompt.

    Raises:
        ValueError: if there are labels where something else stands before the texts.
    """
    prompts = shown_labels(pipe.denoiser, pipe.config)
    if prompts is None:
        return None
    if not begins_text:
        limit = "None with `sources` or `messages` for a language model, which reads either before a text"
        require(labels is None, "class_labels", limit, labels)
        return None
    # Without a label it writes behind as many masks.
    numbers = [len(prompts)] * num_texts if labels is None else list(labels)
    for number in numbers:
        limit = f"between 0 and {len(prompts) - 1} (or {len(prompts)} for no label)"
        require(is_int(number, 0) and number <= len(prompts), "class_labels", limit, number)
    return label_frames(pipe.tokenizer, prompts, numbers)


def written_texts(
    tokenizer: Any,
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    *,
    max_length: int,
    histogram: Sequence[int] | None,
    predicts_end: bool = True,
    predicts_length: bool = False,
    cuts_texts: bool = False,
    reading: Reading | None = None,
    source_ends: int = 1,
    messages: Any = None,
    frames: Sequence[list[int]] | None = None,
    framed_sources: bool = False,
) -> list[WrittenText]:
    """The texts as a pipeline would write them after their prompts, from their sources, or as replies.

    Args:
        prompts: beginnings of the texts, one each; `texts` are what follows them.
        sources: other texts, one each, from which the texts are written.
        max_length: tokens of the longest row, start, prompt or source, and end included.
        histogram: counts of texts of 0, 1, ... tokens, from which the pipeline draws lengths.
        predicts_end: whether the model says where a text ends, where there is no histogram.
        predicts_length: whether the model says of a source how long the text is, before any of it is written.
        cuts_texts: cut what does not fit: texts to what is left of a row, and sources to what they have in training.
        reading: of a language model, which may count its blocks from the prompt, and write ends of which its tokenizer
            has none.
        source_ends: end tokens between a source and the text.
        messages: conversations, one each, to which the texts are the replies.
        frames: tokens that stand before each text and its prompt in the place of the start.
        framed_sources: whether a source begins with the end of the text before where there is no other start.

    Raises:
        ValueError: naming the text, if it cannot be written by such a pipeline.
    """
    refuse_two_conditions(prompts=prompts, sources=sources, messages=messages)
    default_end = end_ids(tokenizer) or (reading.end_token_ids[:1] if reading is not None else [])
    has_sources = sources is not None

    # A length is drawn from what the model says of the source, or else from the histogram.
    asks_model = has_sources and predicts_length
    if asks_model:
        histogram = None
    length_is_drawn = asks_model or bool(histogram)

    # What is given before each text
    if sources is not None:
        room = source_room(max_length) if cuts_texts else None
        before = given_sources(tokenizer, sources, source_ends, room, framed_sources)
    elif messages is not None:
        before = given_messages(tokenizer, messages, texts)
    else:
        before = given_prompts(tokenizer, prompts or [""] * len(texts), frames)

    written = []
    for index, (text, text_ids) in enumerate(
        zip(texts, encode_texts(tokenizer, list(texts)), strict=True)
    ):
        # 1. The tokens of the text and its end, which a template may write in its own way
        name = f"`texts[{index}]`"
        given = before[index]
        if given.text is not None:
            text_ids = given.text
        end = default_end if given.end is None else given.end
        truncated = given.truncated
        if not text or not text_ids:
            raise ValueError(f"{name} must hold at least one token, got {text!r}.")

        # 2. The text, as far as there is room for it
        num_padding = num_filled_up(reading, len(given.ids))
        padding = [padding_id(tokenizer)] * num_padding
        num_before = len(padding) + len(given.ids)
        room = max_length - num_before - len(end)
        if histogram and cuts_texts:
            room = min(room, len(histogram) - 1 - given.num_known)
        if len(text_ids) > room and cuts_texts and room > 0:
            text_ids = text_ids[:room]
            # The characters of a cut text are those of its tokens.
            text = tokenizer.decode(text_ids)
            truncated = True
        check_fits(name, num_before + len(text_ids) + len(end), max_length, cuts_texts)
        # Masks may stand for a label, but in nothing that was said.
        known = given.ids if has_sources else given.ids[len(given.ids) - given.num_known :]
        check_ids(name, tokenizer, [*known, *text_ids], text)

        # 3. Its length. Who draws the length, or is told it, puts the end itself; otherwise the model predicts it.
        end_is_given = length_is_drawn or not predicts_end
        num_blanks = 0
        if reading is not None and not end_is_given:
            num_written = len(text_ids) + len(end)
            num_blanks = num_blanks_behind(reading, num_before, num_written, max_length)
        cost = 0.0
        if histogram:
            cost = checked_length_nats(name, histogram, given.num_known, len(text_ids))
        written.append(
            WrittenText(
                given=given.ids,
                tokens=text_ids,
                end=end,
                end_is_given=end_is_given,
                end_is_counted=length_is_drawn or predicts_end,
                length_nats=cost,
                text=text,
                truncated=truncated,
                padding=tuple(padding),
                blanks=(tokenizer.mask_token_id,) * num_blanks,
            )
        )
    return written


def num_filled_up(reading: Reading | None, num_given: int) -> int:
    """Tokens of padding before those that are given, where the model's first block begins behind them."""
    if reading is None or reading.blocks_from != "prompt" or reading.block_length is None:
        return 0
    return -num_given % reading.block_length


def num_blanks_behind(reading: Reading, num_before: int, num_written: int, max_length: int) -> int:
    """Tokens behind the end of a text that a language model writes together with it, see `WrittenText`.

    They go up to the end of the text's last block. Without blocks a row is as long as one that a pipeline writes, or
    some such rows if the text is longer.

    Args:
        num_before: tokens before the text.
        num_written: tokens of the text and its end.
        max_length: tokens of the longest row.

    Example:
        >>> from text_diffusers.evaluation.written_texts import num_blanks_behind
        >>> from text_diffusers.models import Reading
        >>> num_blanks_behind(Reading(attention="block", block_length=4), 3, num_written=3, max_length=64)
        2
        >>> num_blanks_behind(Reading(), num_before=3, num_written=3, max_length=64)
        58
    """
    # What stands behind a token that sees none of it makes no difference.
    if reading.attention == "causal":
        return 0
    size = reading.block_length or NEW_TOKENS
    counts_from_row = reading.attention == "block" and not reading.begins_behind_prompt
    num_before_blocks = 0 if counts_from_row else num_before
    end = num_before + num_written
    return min(-(end - num_before_blocks) % size, max_length - end)


def check_fits(name: str, num_tokens: int, max_length: int, cuts_texts: bool):
    """Refuse a row that is too long."""
    if num_tokens > max_length:
        advice = "." if cuts_texts else ", or pass `max_length`."
        raise ValueError(
            f"{name} must fit into {max_length} tokens with its prompt or source, start and end, got {num_tokens}: "
            f"shorten it{advice}"
        )


def check_ids(name: str, tokenizer: Any, ids: Sequence[int], text: str):
    """Refuse what would be taken for a token that is still to be written."""
    if tokenizer.mask_token_id in ids:
        raise ValueError(
            f"{name} and its prompt must not hold {tokenizer.mask_token}, got {text!r}."
        )


def checked_length_nats(name: str, histogram: Sequence[int], num_known: int, length: int) -> float:
    """`length_nats` of one text among the lengths that its prompt of `num_known` tokens leaves possible.

    Raises:
        ValueError: if the text is beyond the histogram, or nothing is left of it.
    """
    if num_known + length >= len(histogram):
        raise ValueError(
            f"{name} must have at most {len(histogram) - 1} tokens with its prompt, the longest text in the "
            f"model's length histogram, got {num_known + length}."
        )
    possible = list(histogram[num_known:])
    if not any(possible):
        raise ValueError(
            f"{name} must have a prompt below the longest text in the model's length histogram, got one of "
            f"{num_known} tokens."
        )
    return length_nats(possible, [length])


def length_nats(histogram: Sequence[int], lengths: Iterable[int]) -> float:
    """Nats to tell the lengths of texts, summed, under the histogram that a pipeline draws them from.

    Infinite if one of them is never drawn.

    Example:
        >>> from text_diffusers.evaluation import length_nats
        >>> round(length_nats([0, 1, 3], lengths=[2, 2]), 4)  # twice 3 of 4 counts
        0.5754
        >>> length_nats([0, 1, 3], lengths=[0])
        inf
    """
    counts = np.asarray(histogram, dtype=np.float64)
    lengths = np.fromiter(lengths, dtype=np.int64)

    # What is beyond the histogram is not drawn either.
    is_within = (lengths >= 0) & (lengths < len(counts))
    drawn = np.where(is_within, counts[lengths * is_within], 0.0)
    if not drawn.all():
        return float("inf")
    return float((np.log(counts.sum()) - np.log(drawn)).sum())


@torch.no_grad()
def predicted_length_nats(
    denoiser: Any,
    texts: Sequence[WrittenText],
    labels: Sequence[int] | None,
    pad_token_id: int,
    batch_size: int = 64,
) -> Tensor:
    """(R,) float64 nats of the numbers of tokens, as the model predicts them of the sources and a pipeline draws them.

    Args:
        denoiser: with `length_logits`.
        texts: with sources.
        labels: one a text, or `None`.
    """
    length_logits = length_model(denoiser)
    if length_logits is None:
        raise ValueError(
            f"`denoiser` must be a model with `predicts_length=True`, got {denoiser!r}."
        )
    device = device_of(denoiser)
    nats = []
    for first in range(0, len(texts), batch_size):
        part = texts[first : first + batch_size]
        part_labels = None if labels is None else torch.tensor(labels[first : first + batch_size])
        given: list[Any] = [text.given for text in part]
        sources = lay_out(given, pad_token_id, device, part_labels)

        # Behind the source there is room for the text and its end.
        rooms = [denoiser.config.max_length - len(text.given) - 1 for text in part]
        log_probs = length_log_probs(length_logits, sources, rooms).cpu()  # (B, L)
        sizes = torch.tensor([len(text.tokens) for text in part])
        nats.append(-log_probs.gather(1, sizes.unsqueeze(1)).squeeze(1))
    return torch.cat(nats)


def smoothed_lengths(counts: Sequence[int]) -> list[int]:
    """A histogram from which every length but 0 is drawn now and then, so that held-out texts have a finite cost.

    One is added to each count. Where there are few texts their counts are multiplied before, so that what is added
    stays below a hundredth of all: else lengths that no text has would be most of what is drawn.

    Args:
        counts: numbers of texts of 0, 1, ... tokens.

    Example:
        >>> from text_diffusers.evaluation.written_texts import smoothed_lengths
        >>> smoothed_lengths([0, 400, 0])
        [0, 401, 1]
        >>> smoothed_lengths([0, 0, 4])
        [0, 1, 201]
    """
    num_added = len(counts) - 1
    weight = max(1, -(-100 * num_added // max(1, sum(counts))))
    return [weight * counts[0], *(weight * count + 1 for count in counts[1:])]


def padded_rows(texts: Sequence[WrittenText], pad_token_id: int, labels: Any = None) -> Dataset:
    """The rows of texts as a tokenized data set, padded to the longest.

    Args:
        labels: one a text, or `None`.
    """
    return pad_rows([text.row() for text in texts], pad_token_id, labels)


def pad_rows(rows: Sequence[dict[str, Any]], pad_token_id: int, labels: Any = None) -> Dataset:
    """As `padded_rows`, of rows that were made of texts before."""
    longest = max(len(row["input_ids"]) for row in rows)

    columns: dict[str, list] = {"input_ids": [], "attention_mask": [], "given": []}
    for row in rows:
        missing = longest - len(row["input_ids"])
        columns["input_ids"].append(row["input_ids"] + [pad_token_id] * missing)
        columns["attention_mask"].append(row["attention_mask"] + [0] * missing)
        columns["given"].append(row["given"] + [False] * missing)
    if labels is not None:
        columns["label"] = list(labels)
    return Dataset.from_dict(columns)
