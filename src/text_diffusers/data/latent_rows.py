"""Rows of text for autoencoders whose encoder and decoder have tokenizers of their own.

A source, from which a text is to be written, stands before it in the rows of the decoder, and for the denoiser in
columns of its own in the tokens of the encoder.

Shapes: B batch, L tokens of the encoder, P of a source, T tokens of the decoder.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import Dataset

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.source_prompts import framed_source, source_prompt_ids
from text_diffusers.common.token_ids import padding_id
from text_diffusers.common.validation import require, require_int
from text_diffusers.data.rows import ROWS_PER_MAP, Columns, pad_to_length

__all__ = [
    "ENCODER_COLUMNS",
    "SOURCE_COLUMNS",
    "conversation_pairs",
    "room_for_pairs",
    "source_prompt_ids",
    "with_encoder_columns",
    "with_source_columns",
    "with_sources_apart",
]

ENCODER_COLUMNS = ("encoder_ids", "encoder_mask")
SOURCE_COLUMNS = ("source_ids", "source_mask")
# Tokens of a pair beside source and text: one before, one between and one behind them
PAIR_ENDS = 3


def with_encoder_columns(rows: Any, tokenizer: Any, encoder_tokenizer: Any, length: int) -> Any:
    """Rows with the same texts in the tokens of the encoder, as `encoder_ids` and `encoder_mask` (L).

    The encoder reads what the decoder is to write: where a row cuts a text, both have its beginning. A source, which
    is given, is not among it.

    Args:
        rows: from `tokenize`, one text a row.
        tokenizer: of these rows.
        encoder_tokenizer: of the encoder; it puts around a text what its model is used to.
        length: L; what is longer is cut.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.latent_rows import with_encoder_columns
        >>> from text_diffusers.data.rows import tokenize
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> rows = tokenize(Dataset.from_dict({"text": ["the cat"]}), tokenizer, length=16, packing=False)
        >>> row = with_encoder_columns(rows, tokenizer, tokenizer, length=8)[0]
        >>> len(row["encoder_ids"]), tokenizer.decode(row["encoder_ids"], skip_special_tokens=True)
        (8, 'the cat')
    """
    add_columns = partial(
        encoder_columns, tokenizer=tokenizer, encoder_tokenizer=encoder_tokenizer, length=length
    )
    return rows.map(add_columns, batched=True, batch_size=ROWS_PER_MAP)


def encoder_columns(
    columns: Columns, tokenizer: Any, encoder_tokenizer: Any, length: int
) -> Columns:
    """The columns of `with_encoder_columns`."""
    texts = []
    for place, real in enumerate(real_tokens(columns)):
        given = num_given(columns, place)
        texts.append(tokenizer.decode(real[given:], skip_special_tokens=True))

    rows = []
    for tokens in encode_plain(encoder_tokenizer, texts, with_ends=True):
        # The last token is often one that ends a text, and stays.
        if len(tokens) > length:
            tokens = [*tokens[: length - 1], tokens[-1]]
        rows.append(tokens)
    return filled(rows, ENCODER_COLUMNS, encoder_tokenizer, length)


def real_tokens(columns: Columns) -> list[list[int]]:
    """The tokens of each row that are no padding."""
    rows = []
    for ids, mask in zip(columns["input_ids"], columns["attention_mask"], strict=True):
        rows.append([token for token, is_real in zip(ids, mask, strict=True) if is_real])
    return rows


def num_given(columns: Columns, place: int) -> int:
    """The number of tokens that a row begins with and that are not learned."""
    return sum(columns["given"][place]) if "given" in columns else 0


def filled(
    rows: Sequence[list[int]], names: tuple[str, str], tokenizer: Any, length: int
) -> Columns:
    """Two columns of rows of at most `length` tokens: the tokens, filled up by padding, and where they are real."""
    filling = padding_id(tokenizer)
    columns: Columns = {name: [] for name in names}
    for tokens in rows:
        missing = length - len(tokens)
        columns[names[0]].append([*tokens, *[filling] * missing])
        columns[names[1]].append([1] * len(tokens) + [0] * missing)
    return columns


# Sources


def room_for_pairs(length: int, source_length: int) -> int:
    """Tokens of a row of `tokenize` for pairs in which nothing is cut that `with_sources_apart` would keep.

    A source may take half of such a row, and is cut behind; twice as many tokens as stay are read of it, so that the
    last ones are mostly those of the source itself.
    """
    return 2 * max(length, 2 * source_length) + 2 * PAIR_ENDS


def with_sources_apart(rows: Any, tokenizer: Any, length: int, source_length: int) -> Any:
    """Pairs anew, as "start source end text end", with room for a source and for a text each.

    A row has `source_length + length - 1` tokens: the source with start and end takes at most `source_length`, of a
    longer one the last tokens stay; the text and its end take at most `length - 1`, as much as they have behind the
    start token of a row without a source. A text that is cut has no end. The source and what is around it is `given`.

    Args:
        rows: pairs from `tokenize`, of `room_for_pairs` tokens.
        tokenizer: of these rows.
        length: of a row without a source, at least 2.
        source_length: at least 2.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.latent_rows import with_sources_apart
        >>> from text_diffusers.data.rows import tokenize
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> pairs = Dataset.from_dict({"source": ["the cat"], "text": ["sat on the mat"]})
        >>> rows = tokenize(pairs, tokenizer, length=38, packing=False)
        >>> row = with_sources_apart(rows, tokenizer, length=16, source_length=8)[0]
        >>> tokenizer.decode(row["input_ids"][: sum(row["given"])]), len(row["input_ids"])
        ('[EOS]the cat[EOS]', 23)
    """
    require_int("length", length, 2)
    require_int("source_length", source_length, 2)
    sizes = {"length": length, "source_length": source_length}
    apart = partial(columns_apart, tokenizer=tokenizer, **sizes)
    return rows.map(apart, batched=True, batch_size=ROWS_PER_MAP)


def columns_apart(columns: Columns, tokenizer: Any, length: int, source_length: int) -> Columns:
    """The columns of `with_sources_apart`."""
    width = source_length + length - 1
    rows = []
    given = []
    for place, real in enumerate(real_tokens(columns)):
        num_before = num_given(columns, place)
        source = framed_source(tokenizer, real[1 : num_before - 1], source_length)
        # The end of the row goes with what is cut, as in rows without a source.
        rows.append([*source, *real[num_before:][: length - 1]])
        given.append([True] * len(source) + [False] * (width - len(source)))
    return pad_to_length(rows, tokenizer, width) | {"given": given}


def with_source_columns(rows: Any, tokenizer: Any, encoder_tokenizer: Any, length: int) -> Any:
    """Pairs with their sources in the tokens of the encoder, as `source_ids` and `source_mask` (P).

    An empty source has a mask of zeros. Of a longer one the last tokens stay, and the token before them with which
    the encoder's tokenizer begins.

    Args:
        rows: pairs, in which the source is `given`.
        tokenizer: of these rows.
        encoder_tokenizer: of the encoder.
        length: P.
    """
    add_columns = partial(
        source_columns, tokenizer=tokenizer, encoder_tokenizer=encoder_tokenizer, length=length
    )
    return rows.map(add_columns, batched=True, batch_size=ROWS_PER_MAP)


def source_columns(
    columns: Columns, tokenizer: Any, encoder_tokenizer: Any, length: int
) -> Columns:
    """The columns of `with_source_columns`."""
    sources = []
    for place, real in enumerate(real_tokens(columns)):
        given = real[: num_given(columns, place)]
        sources.append(tokenizer.decode(given, skip_special_tokens=True))
    rows = source_encoder_ids(encoder_tokenizer, sources, length)
    return filled(rows, SOURCE_COLUMNS, encoder_tokenizer, length)


def source_encoder_ids(encoder_tokenizer: Any, sources: Sequence[str], length: int) -> list:
    """Token ids of sources for the encoder, at most `length` each; none of an empty source."""
    rows = []
    encoded = encode_plain(encoder_tokenizer, list(sources), "source", with_ends=True)
    for source, tokens in zip(sources, encoded, strict=True):
        if len(tokens) > length:
            tokens = [tokens[0], *tokens[len(tokens) - length + 1 :]]
        rows.append(tokens if source.strip() else [])
    return rows


def conversation_pairs(conversations: Any, context_turns: int) -> Dataset:
    """Pairs of conversations: each answer that is learned as `text`, and the turns before it as `source`.

    Args:
        conversations: with `messages`, from `load_conversations`.
        context_turns: most turns of a source, the last ones, one a line.

    Raises:
        ValueError: if there is no answer.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.latent_rows import conversation_pairs
        >>> turns = [("user", "Hi!", False), ("assistant", "Hello!", True), ("user", "Tea?", False)]
        >>> turns += [("assistant", "Please.", True)]
        >>> messages = [dict(zip(("role", "content", "learned"), turn)) for turn in turns]
        >>> conversation_pairs(Dataset.from_dict({"messages": [messages]}), context_turns=2)["source"][:]
        ['Hi!', 'Hello!\\nTea?']
    """
    require_int("context_turns", context_turns, 1)
    pairs: dict[str, list[str]] = {"text": [], "source": []}
    for conversation in conversations:
        turns = conversation["messages"]
        for place, turn in enumerate(turns):
            if not turn["learned"]:
                continue
            before = turns[max(0, place - context_turns) : place]
            pairs["text"].append(turn["content"])
            pairs["source"].append("\n".join(earlier["content"] for earlier in before))
    require(bool(pairs["text"]), "conversations", "ones with an answer", len(conversations))
    return Dataset.from_dict(pairs)
