"""Ids of the tokens that begin and end a text, and of those that are never written."""

from typing import Any


def start_ids(tokenizer: Any) -> list[int]:
    """The start token, or `[CLS]` of a tokenizer that has no other; an empty list for one without either.

    Example:
        >>> from types import SimpleNamespace
        >>> from text_diffusers.common.token_ids import start_ids
        >>> start_ids(SimpleNamespace(bos_token_id=None, cls_token_id=101))
        [101]
    """
    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [] if start is None else [start]


def end_ids(tokenizer: Any) -> list[int]:
    """The end token, or `[SEP]` of a tokenizer that has no other; an empty list for one without either."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    return [] if end is None else [end]


def never_written(tokenizer: Any) -> list[int]:
    """The mask, and the padding unless it also ends a text."""
    # Where one token is padding and end, as often in models of the GPT kind, it must be writable.
    special = {tokenizer.mask_token_id, tokenizer.pad_token_id} - {None, *end_ids(tokenizer)}
    return sorted(special)
