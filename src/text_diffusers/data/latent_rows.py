"""Rows of text for autoencoders whose encoder and decoder have tokenizers of their own.

Shapes: B batch, L tokens of the encoder.
"""

from functools import partial
from typing import Any

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.token_ids import padding_id
from text_diffusers.data.rows import ROWS_PER_MAP, Columns

ENCODER_COLUMNS = ("encoder_ids", "encoder_mask")


def with_encoder_columns(rows: Any, tokenizer: Any, encoder_tokenizer: Any, length: int) -> Any:
    """Rows with the same texts in the tokens of the encoder, as `encoder_ids` and `encoder_mask` (L).

    The encoder reads what the decoder is to write: where a row cuts a text, both have its beginning.

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
    for ids, mask in zip(columns["input_ids"], columns["attention_mask"], strict=True):
        real = [token for token, is_real in zip(ids, mask, strict=True) if is_real]
        texts.append(tokenizer.decode(real, skip_special_tokens=True))

    filling = padding_id(encoder_tokenizer)
    added: Columns = {name: [] for name in ENCODER_COLUMNS}
    for tokens in encode_plain(encoder_tokenizer, texts, with_ends=True):
        # The last token is often one that ends a text, and stays.
        if len(tokens) > length:
            tokens = [*tokens[: length - 1], tokens[-1]]
        missing = length - len(tokens)
        added["encoder_ids"].append([*tokens, *[filling] * missing])
        added["encoder_mask"].append([1] * len(tokens) + [0] * missing)
    return added
