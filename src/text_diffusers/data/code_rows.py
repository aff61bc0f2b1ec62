"""Rows of text without padding, and rows of the codes that an autoencoder gives them, for two-level diffusion.

Shapes: B batch, L tokens of a row, n codes of a row, C coarse codes of a row, P prompt tokens.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.validation import require
from text_diffusers.data.rows import ROWS_PER_MAP, Batch, Columns, text_ends

LEVELS = ("coarse", "fine")
ENCODED_AT_ONCE = 64


def text_rows(
    rows: Any, tokenizer: Any, length: int, prompt_length: int | None = None, packed: bool = True
) -> Any:
    """Rows of text without padding: `input_ids` and `attention_mask` (L), and prompts `prompt_ids`, `prompt_mask` (P).

    A row is followed by as many ends as are missing; the mask is 1 at the tokens that are counted, the text and its
    first end.

    Args:
        rows: from `tokenize`. Packed ones have L + P tokens, of which the first P are the prompt. Padded ones have
            L + 1, of which the first is where the text begins. Pairs have a prompt that is their source, cut to P.
        length: L.
        prompt_length: P; `None` has no prompts.
        packed: whether several texts share a row.
    """
    # A stream may not know its columns before it is read.
    row_columns = rows.column_names or next(iter(rows))
    columns = [name for name in ("input_ids", "attention_mask", "given") if name in row_columns]
    to_text = partial(
        text_columns, tokenizer=tokenizer, length=length, prompt_length=prompt_length, packed=packed
    )
    return rows.map(to_text, batched=True, batch_size=ROWS_PER_MAP, remove_columns=columns)


def text_columns(
    columns: Columns, tokenizer: Any, length: int, prompt_length: int | None, packed: bool
) -> Columns:
    """The columns of `text_rows`; a row that holds no text after its prompt is left out."""
    _, end = text_ends(tokenizer)
    rows: Columns = {"input_ids": [], "attention_mask": []}
    if prompt_length is not None:
        rows |= {"prompt_ids": [], "prompt_mask": []}

    for place, (row, mask) in enumerate(
        zip(columns["input_ids"], columns["attention_mask"], strict=True)
    ):
        # 1. Prompt and text of the row, without padding
        row = row[: sum(mask)]
        if (
            "given" in columns
        ):  # "[EOS] source [EOS] text [EOS]", or without a source "[EOS] text [EOS]"
            start = sum(columns["given"][place])
            prompt = row[1 : start - 1]
            text = row[start:]
        else:
            start = (prompt_length or 0) if packed else 1
            prompt = row[:start]
            text = row[start:]
        if not text:
            continue

        # 2. Both filled up: texts by ends, which are written; prompts by padding, which is not read
        add_filled(rows, "input_ids", "attention_mask", text, length, end)
        if prompt_length is not None:
            add_filled(
                rows, "prompt_ids", "prompt_mask", prompt, prompt_length, tokenizer.pad_token_id
            )
    return rows


def add_filled(rows: Columns, ids: str, mask: str, tokens: list[int], length: int, filling: int):
    """Add a row of `length` tokens, cut or filled up, to the column `ids`, and where they are its own to `mask`."""
    # Cut first: nothing is missing from a row that is too long.
    tokens = tokens[:length]
    missing = length - len(tokens)
    rows[ids].append(tokens + [filling] * missing)
    rows[mask].append([1] * len(tokens) + [0] * missing)


def code_rows(autoencoder: Any, rows: Any, level: str) -> Any:
    """The codes of rows of text, as rows that a denoiser is trained on and bounded by.

    Args:
        autoencoder: an `AutoencoderVQTextModel` in evaluation mode.
        rows: from `text_rows`, of a length that the autoencoder takes.
        level: "coarse" or "fine".

    Returns:
        Rows of `input_ids` (n), `attention_mask` (n) of ones, the prompts if there are any, and with two levels for
        fine codes `context_ids` (C), the coarse ones.

    Raises:
        ValueError: if the level is unknown, or coarse and the autoencoder has one level.
    """
    levels = LEVELS if autoencoder.config.coarse_ratio is not None else LEVELS[1:]
    require(level in levels, "level", f"one of {levels} for this autoencoder", level, levels)
    # `datasets` knows a cached result by the weights of the autoencoder, which are part of the function.
    encode = partial(code_columns, autoencoder=autoencoder, level=level)
    return rows.map(encode, batched=True, batch_size=ENCODED_AT_ONCE)


def code_columns(columns: Columns, autoencoder: Any, level: str) -> Columns:
    # The whole row is encoded, its ends included: the codes must hold where a text ends.
    device = next(autoencoder.parameters()).device
    codes = autoencoder.encode(torch.tensor(columns["input_ids"], device=device))
    rows = {
        "input_ids": codes[level].tolist(),
        "attention_mask": torch.ones_like(codes[level]).tolist(),
    }
    if level == "fine" and codes.coarse is not None:
        rows["context_ids"] = codes.coarse.tolist()
    return rows


def full_rows(batch: Batch, end_token_id: int) -> Tensor:
    """(B, L) tokens of a batch with the end token in place of padding: an autoencoder's rows are full."""
    return torch.where(batch["attention_mask"].bool(), batch["input_ids"], end_token_id)
