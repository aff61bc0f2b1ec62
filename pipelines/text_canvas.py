"""What a pipeline writes on: rows of tokens, which of them are to be written, and text to and from these rows.

Shapes: B rows, L sequence length.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Canvas:
    """The rows being denoised: `tokens` (B, L), which of them may change, which are real, and how a text may end."""

    tokens: Tensor
    editable: Tensor
    attention_mask: Tensor
    class_labels: Tensor | None
    ends_at_eos: bool


def start_ids(tokenizer: Any) -> list[int]:
    """What a text begins after: the tokenizer's start token, or `[CLS]` of one that has no other; may be nothing."""
    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [] if start is None else [start]


def end_ids(tokenizer: Any) -> list[int]:
    """What a text ends with: the tokenizer's end token, or `[SEP]` of one that has no other; may be nothing."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    return [] if end is None else [end]


def encode_infill(tokenizer: Any, texts: list[str], mask: Any) -> list[list[int | None]]:
    """Token ids, after the start token, with `None` wherever a token is to be filled in."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if mask is None:
        masks = [[token == tokenizer.mask_token_id for token in row] for row in rows]
    else:
        masks = mask.tolist() if hasattr(mask, "tolist") else list(mask)
        masks = masks if masks and is_list(masks[0]) else [masks]
        if [len(row) for row in masks] != [len(row) for row in rows]:
            raise ValueError(
                f"`mask` must have one value a token of `text`, {[len(row) for row in rows]} tokens, "
                f"got {[len(row) for row in masks]}."
            )
    for text, row in zip(texts, masks, strict=True):
        if not any(row):
            raise ValueError(f"`text` must hold {tokenizer.mask_token} where to write, got {text!r}.")
    blanked = zip(rows, masks, strict=True)
    start = start_ids(tokenizer)
    return [start + [None if m else t for t, m in zip(row, row_mask, strict=True)] for row, row_mask in blanked]


def partial_text(tokenizer: Any, row: list[int]) -> str:
    """Text of a row that still has masks, which keep the space that their word will bring."""
    mask, hidden = tokenizer.mask_token_id, set(tokenizer.all_special_ids)
    pieces, run = [], []
    for token in [*row, None]:
        if token is not None and token != mask:
            run.append(token)
            continue
        pieces.append(tokenizer.decode([t for t in run if t not in hidden]))
        pieces.append("" if token is None else f" {tokenizer.mask_token}")
        run = []
    return "".join(pieces).strip()


def is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
