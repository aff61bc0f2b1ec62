"""Rows of whole texts behind their start token and label, for language models that know where a text begins.

A row is "[CLS] text [SEP] text [SEP] ...", or with labels "[CLS] label [SEP] text [SEP] text [SEP] ...", and padding.
What stands before the first text is `given`. Shapes: L row length in tokens.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from text_diffusers.common.token_ids import frames_with_none
from text_diffusers.data.rows import (
    ROWS_PER_MAP,
    Columns,
    Rows,
    each_encoded,
    encode_texts,
    pad_to_length,
    text_ends,
)


def label_beginnings(
    tokenizer: PreTrainedTokenizerFast, label_prompts: Sequence[str]
) -> list[list[int]]:
    """The tokens before the texts of each label, "[CLS] label [SEP]", and last those without one, masks in its place.

    Raises:
        ValueError: if a prompt has no token.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.data.whole_texts import label_beginnings
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> tokenizer.batch_decode(label_beginnings(tokenizer, ["the"]))
        ['[EOS]the[EOS]', '[EOS][MASK][EOS]']
    """
    start, end = text_ends(tokenizer)
    beginnings = []
    for prompt, ids in zip(
        label_prompts, encode_texts(tokenizer, list(label_prompts)), strict=True
    ):
        if not ids:
            raise ValueError(f"`label_prompts` must have a token each, got {prompt!r}.")
        beginnings.append([start, *ids, end])
    mask: Any = tokenizer.mask_token_id
    return frames_with_none(beginnings, mask)


def has_start(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a tokenizer has a token that begins a text, other than the one that ends the text before."""
    start, end = text_ends(tokenizer)
    return start != end


def tokenize_whole_texts(
    documents: Rows,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    packing: bool = True,
    label_prompts: Sequence[str] | None = None,
    fills_rows: bool = False,
) -> Rows:
    """Documents as rows of `input_ids`, `attention_mask` and `given`, see `pack_whole_texts`.

    Raises:
        ValueError: if there is no text, or a label leaves less than half of a row.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.data.whole_texts import tokenize_whole_texts
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> documents = Dataset.from_dict({"text": ["the cat", "the dog"], "label": [0, 1]})
        >>> rows = tokenize_whole_texts(documents, tokenizer, length=24, label_prompts=["the", "dog"])
        >>> len(rows), rows.column_names
        (2, ['input_ids', 'attention_mask', 'given'])
    """
    make_rows = partial(
        pack_whole_texts,
        tokenizer=tokenizer,
        length=length,
        packing=packing,
        label_prompts=label_prompts,
        fills_rows=fills_rows,
    )
    # A stream may not know its columns before it is read.
    columns = documents.column_names or list(next(iter(documents), {}))
    rows = documents.map(make_rows, batched=True, batch_size=ROWS_PER_MAP, remove_columns=columns)
    if isinstance(rows, Dataset) and len(rows) == 0:
        raise ValueError("`documents` must hold at least one text, got none.")
    return rows


def pack_whole_texts(
    columns: Columns,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    packing: bool = True,
    label_prompts: Sequence[str] | None = None,
    fills_rows: bool = False,
) -> Columns:
    """Rows that begin with the beginning of a text, as many whole texts in each as there is room for.

    Texts of one label share rows, in their order, and those of different labels never do. A text that fits into no
    row goes on in the next.

    Args:
        columns: `text`, and with `label_prompts` the `label`, a number; without it no text has a label.
        length: L.
        packing: off: a row holds one text only, which is cut where it is too long.
        label_prompts: what stands for each label.
        fills_rows: whether the text that begins the next row stands, cut, also at the end of a row, in the place of
            padding: for training, where no token is counted.

    Raises:
        ValueError: if a label leaves less than half of a row.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.data.whole_texts import pack_whole_texts
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> rows = pack_whole_texts({"text": ["the cat", "the dog"]}, tokenizer, length=24)
        >>> tokenizer.decode(rows["input_ids"][0]).replace("[PAD]", "")
        '[EOS]the cat[EOS]the dog[EOS]'
    """
    start, end = text_ends(tokenizer)
    beginnings = [[start]]
    if label_prompts is not None:
        beginnings = label_beginnings(tokenizer, label_prompts)
    longest = max(len(beginning) for beginning in beginnings)
    if longest > length // 2:
        raise ValueError(
            f"`label_prompts` must leave half of the {length} tokens of a row, got one of {longest}."
        )

    # 1. The texts of each label, their ends behind them
    # Last among the beginnings is that of no label, or the only one.
    labels = [len(beginnings) - 1] * len(columns["text"])
    if label_prompts is not None and "label" in columns:
        labels = columns["label"]
    texts_of: dict[int, list[list[int]]] = {}
    for label, ids in zip(labels, each_encoded(tokenizer, columns["text"]), strict=True):
        texts_of.setdefault(label, []).append([*ids, end])

    # 2. Their rows
    rows = []
    given = []
    for label, texts in texts_of.items():
        beginning = beginnings[label]
        room = length - len(beginning)
        if packing:
            parts = filled_parts(texts, room, fills_rows)
        else:
            parts = (text[:room] for text in texts)
        for part in parts:
            rows.append(beginning + part)
            given.append([True] * len(beginning) + [False] * room)
    return pad_to_length(rows, tokenizer, length) | {"given": given}


def filled_parts(
    texts: Sequence[list[int]], room: int, fills_rows: bool = False
) -> Iterator[list[int]]:
    """Runs of whole texts of at most `room` tokens; a text that is longer is cut into such runs.

    Args:
        fills_rows: see `pack_whole_texts`.

    Example:
        >>> from text_diffusers.data.whole_texts import filled_parts
        >>> list(filled_parts([[1, 0], [2, 0], [3, 3, 3, 3, 3, 0]], room=4))
        [[1, 0, 2, 0], [3, 3, 3, 3], [3, 0]]
    """
    part: list[int] = []
    for text in texts:
        if part and len(part) + len(text) > room:
            yield part + text[: room - len(part)] if fills_rows else part
            part = []
        while len(text) > room:
            yield text[:room]
            text = text[room:]
        part = part + text
    if part:
        yield part
