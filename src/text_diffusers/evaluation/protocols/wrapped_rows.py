"""Texts joined to one stream and cut into rows of one length, as most papers on discrete diffusion evaluate.

An end stands behind each text, or nothing where the stream is one of characters, as of text8. The rest that fills no
row is dropped, and counted. Characters are counted exactly: each token stands for those of the text up to its end.

Shapes: R rows, L tokens of a row.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from text_diffusers.common.plain_text import call_tokenizer, check_unicode, refuse_special
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.validation import is_int, require, require_int
from text_diffusers.data.rows import portions
from text_diffusers.evaluation.autoregression import autoregressive_row_nats, predicts_next
from text_diffusers.evaluation.likelihood import (
    Likelihood,
    check_has_bound,
    likelihood_of,
    row_bounds_of,
)
from text_diffusers.evaluation.modules import evaluating
from text_diffusers.models.language_model import as_denoiser, is_language_model
from text_diffusers.pipelines.calls.labels import label_frames, shown_labels


@dataclass
class WrappedRows:
    """Rows of a stream of texts.

    Attributes:
        rows: R rows of `input_ids` and `attention_mask`, and `given` where each begins with tokens that are not
            counted.
        num_characters: (R,) Unicode code points of the counted tokens of each row, an end being one.
        num_bytes: (R,) UTF-8 bytes, likewise.
        num_given: tokens of a row that are given.
        num_rows_in_all: rows of the whole stream, of which `rows` may be some.
        num_dropped: tokens of the stream behind its last full row.
    """

    rows: list[dict[str, list[Any]]]
    num_characters: np.ndarray
    num_bytes: np.ndarray
    num_given: int
    num_rows_in_all: int
    num_dropped: int

    @property
    def num_tokens(self) -> int:
        """Tokens that count, in all rows."""
        return sum(len(row["input_ids"]) - self.num_given for row in self.rows)


def wrap_texts(
    texts: Iterable[str],
    tokenizer: Any,
    length: int,
    ends: bool = True,
    framed: bool = False,
    given: Sequence[int] = (),
    max_rows: int | None = None,
) -> WrappedRows:
    """Rows of exactly `length` tokens, consecutive parts of all texts in a line.

    Args:
        texts: strings; an empty one is an end by itself.
        tokenizer: of the model.
        length: L, with what is given and the frame.
        ends: whether an end stands behind each text; without, the texts follow each other as they are.
        framed: whether each row begins with the start and ends with the end of the tokenizer, both of which count, as
            the rows of MDLM do (https://arxiv.org/abs/2406.07524).
        given: tokens before each row, which do not count.
        max_rows: at most so many rows are kept, spread over all of them.

    Raises:
        ValueError: if the tokenizer has no end where one is needed, or the texts do not fill a single row.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.evaluation.protocols import wrap_texts
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> wrapped = wrap_texts(texts * 3, tokenizer, length=8)
        >>> len(wrapped.rows) > 3, {len(row["input_ids"]) for row in wrapped.rows}
        (True, {8})
    """
    # 1. What stands around the tokens of a row
    end = end_ids(tokenizer)
    if (ends or framed) and not end:
        option = "ends" if ends else "framed"
        raise ValueError(
            f"`{option}` must be off: the tokenizer has no token for the end of a text."
        )
    first = (start_ids(tokenizer) or end) if framed else []
    last = end if framed else []
    room = length - len(given) - len(first) - len(last)
    require(
        is_int(length) and room >= 1, "length", "an integer that leaves room for a token", length
    )
    require_int("max_rows", max_rows, 1, optional=True)

    # 2. The stream, four bytes a token, and what each token stands for
    stream = array("i")
    characters = array("i")
    num_bytes = array("i")
    for ids, spans, sizes in each_with_spans(tokenizer, texts):
        stream.extend(ids)
        characters.extend(spans)
        num_bytes.extend(sizes)
        if ends:
            stream.append(end[0])
            characters.append(1)
            num_bytes.append(1)
    num_rows = len(stream) // room
    if not num_rows:
        raise ValueError(
            f"`texts` must fill a row of {room} tokens, got {len(stream)} in all: give more, or a shorter `length`."
        )

    # 3. Its rows
    num_kept = min(max_rows or num_rows, num_rows)
    kept = np.arange(num_kept) * num_rows // num_kept

    def by_rows(values: array) -> np.ndarray:
        return np.frombuffer(values, dtype=np.int32)[: num_rows * room].reshape(-1, room)[kept]

    is_given = [True] * len(given) + [False] * (length - len(given))
    rows = []
    for row_tokens in by_rows(stream):
        row: dict[str, list[Any]] = {
            "input_ids": [*given, *first, *row_tokens.tolist(), *last],
            "attention_mask": [1] * length,
        }
        if given:
            row["given"] = is_given
        rows.append(row)

    # A start or an end of the frame is a character too, as every end is.
    num_frame = len(first) + len(last)
    return WrappedRows(
        rows=rows,
        num_characters=by_rows(characters).sum(axis=1, dtype=np.int64) + num_frame,
        num_bytes=by_rows(num_bytes).sum(axis=1, dtype=np.int64) + num_frame,
        num_given=len(given),
        num_rows_in_all=num_rows,
        num_dropped=len(stream) - num_rows * room,
    )


def each_with_spans(
    tokenizer: Any, texts: Iterable[str]
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """`(ids, characters, bytes)` of each text: its tokens, and of how many characters and bytes each is."""
    for portion in portions(texts):
        yield from encoded_with_spans(tokenizer, portion)


def encoded_with_spans(
    tokenizer: Any, texts: list[str]
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """As `each_with_spans`, of a few texts.

    Raises:
        ValueError: if a text holds a special token, or the tokenizer cannot tell where its tokens stand.
    """
    require(
        bool(getattr(tokenizer, "is_fast", False)),
        "tokenizer",
        "one of the library `tokenizers`, which tells the characters of each token",
        type(tokenizer).__name__,
    )
    check_unicode("texts", texts)
    encoded = call_tokenizer(
        tokenizer, texts, split_special_tokens=True, return_offsets_mapping=True
    )
    rows = encoded["input_ids"]
    refuse_special(tokenizer, texts, rows, "texts")
    for text, ids, offsets in zip(texts, rows, encoded["offset_mapping"], strict=True):
        # What stands between two tokens, such as a space, goes to the second; what is behind all of them to the last.
        stops = [stop for _, stop in offsets]
        if stops:
            stops[-1] = len(text)
        spans = []
        sizes = []
        begin = 0
        for stop in stops:
            stop = max(stop, begin)
            spans.append(stop - begin)
            sizes.append(stop - begin if text.isascii() else len(text[begin:stop].encode()))
            begin = stop
        yield ids, spans, sizes


def given_before_rows(pipe: Any) -> list[int]:
    """The tokens that a pipeline's model is shown before a row, and which do not count.

    A language model reads a start, or the frame of no label, as before each text; other models read rows as they are.
    """
    if pipe.kind == "codes" or not is_language_model(pipe.denoiser):
        return []
    prompts = shown_labels(pipe.denoiser, pipe.config)
    if prompts is not None:
        return label_frames(pipe.tokenizer, prompts, [len(prompts)])[0]
    return start_ids(pipe.tokenizer)


@torch.no_grad()
def wrapped_likelihood(
    pipe: Any,
    wrapped: WrappedRows,
    num_times: int = 8,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    accelerator: Any = None,
) -> Likelihood:
    """Bound of -log p of wrapped rows under a pipeline of tokens or of word embeddings.

    The bound of all rows is the sum of the bounds of each; every token that is not given counts. Bits per character
    are the bound in bits over the characters of the rows.

    Args:
        pipe: as in `evaluate_likelihood`.
        wrapped: from `wrap_texts`, with the given tokens of `given_before_rows`.
        num_times: random times a row; the errors need two at least.
        batch_size: noisy rows in one call of the denoiser; the result does not depend on it.
        seed: of all draws; a row's depend on its place only.
        progress: show a bar.
        accelerator: its processes share the noisy rows and all get the same result; each must call this.

    Raises:
        ValueError: if the pipeline has no such bound, or a row is longer than the model or has a token that it cannot
            write.
    """
    check_has_bound(pipe, has_sources=False)
    longest = max(len(row["input_ids"]) for row in wrapped.rows)
    limit = f"at most {pipe.max_length} tokens, the longest row of the model"
    require(longest <= pipe.max_length, "length", limit, longest)
    for place, row in enumerate(wrapped.rows):
        if pipe.tokenizer.mask_token_id in row["input_ids"][wrapped.num_given :]:
            raise ValueError(f"Row {place} must not hold {pipe.tokenizer.mask_token}.")

    denoiser = as_denoiser(pipe.denoiser, pipe.tokenizer)
    options: Any = {"batch_size": batch_size, "accelerator": accelerator}
    next_token_nats = None
    with evaluating(pipe.denoiser):
        bounds = row_bounds_of(
            pipe,
            denoiser,
            wrapped.rows,
            full=False,
            num_times=num_times,
            num_noise=1,
            seed=seed,
            progress=progress,
            **options,
        )
        if predicts_next(denoiser):
            nats_of_rows = autoregressive_row_nats(denoiser, wrapped.rows, **options)
            next_token_nats = float(nats_of_rows.sum())
    if not bounds.nats.isfinite().all():
        place = int((~bounds.nats.isfinite()).nonzero()[0])
        raise ValueError(f"Row {place} must be of tokens that the model can write, but has others.")

    return likelihood_of(
        bounds,
        bounds.nats,
        counted=[row["input_ids"][wrapped.num_given :] for row in wrapped.rows],
        num_characters=int(wrapped.num_characters.sum()),
        num_bytes=int(wrapped.num_bytes.sum()),
        next_token_nats=next_token_nats,
    )
