"""Ids of the tokens that begin, end and fill up a text, of those before it, and of those that are never written."""

from collections.abc import Sequence
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


def frames_with_none(frames: Sequence[list[int]], mask_token_id: int) -> list[list[int]]:
    """The tokens "start label end" before the texts of each label, and last those before a text without one.

    No label is as many masks as the first label has tokens.

    Args:
        frames: of all labels, in their order.

    Example:
        >>> from text_diffusers.common.token_ids import frames_with_none
        >>> frames_with_none([[0, 7, 8, 1], [0, 9, 1]], mask_token_id=5)
        [[0, 7, 8, 1], [0, 9, 1], [0, 5, 5, 1]]
    """
    start, *first_label, end = frames[0]
    return [*frames, [start, *[mask_token_id] * len(first_label), end]]


def padding_id(tokenizer: Any) -> int:
    """The token that fills rows up: padding, or for a tokenizer without it the end of texts, or else the mask.

    Any of them is special, so that filled rows are decoded to the same texts as rows that are not.

    Example:
        >>> from types import SimpleNamespace
        >>> from text_diffusers.common.token_ids import padding_id
        >>> padding_id(SimpleNamespace(pad_token_id=None, eos_token_id=2, sep_token_id=None, mask_token_id=9))
        2
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    fillings = [*end_ids(tokenizer), tokenizer.mask_token_id]
    return next((token for token in fillings if token is not None), 0)


def never_written(tokenizer: Any) -> list[int]:
    """The mask, and the padding unless it also ends a text."""
    # Where one token is padding and end, as often in models of the GPT kind, it must be writable.
    special = {tokenizer.mask_token_id, tokenizer.pad_token_id} - {None, *end_ids(tokenizer)}
    return sorted(special)


def num_ids(tokenizer: Any) -> int:
    """One more than the last id: ids may have gaps, and are then more than the tokens."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def unwritable_ids(tokenizer: Any, num_logits: int) -> list[int]:
    """What is `never_written`, and ids of no token: models may have more logits than there are tokens."""
    known = set(tokenizer.get_vocab().values())
    unknown = [token for token in range(num_logits) if token not in known]
    return sorted([*never_written(tokenizer), *unknown])


def noise_vocabulary(tokenizer: Any) -> int:
    """The number of ids, from 0, among which noise draws tokens: all up to the last that may be written.

    Tokenizers made for diffusion have padding and mask behind them. Where they stand among the other tokens, as those
    of BERT and T5, noise may be one of them, and a text never is.

    Example:
        >>> from text_diffusers.common.token_ids import noise_vocabulary
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> noise_vocabulary(train_tokenizer(texts * 9, vocab_size=300))
        300
    """
    size = num_ids(tokenizer)
    excluded = never_written(tokenizer)
    while size - 1 in excluded:
        size -= 1
    return size
