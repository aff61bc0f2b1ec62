"""Rows of conversations as they are while an answer is written: what was said behind it is not there yet.

Shapes: B batch, L row length in tokens, n blocks of a row.
"""

import torch
from torch import Tensor

from text_diffusers.common.randomness import rand
from text_diffusers.common.row_blocks import join_blocks, split_into_blocks
from text_diffusers.data.rows import Batch, unknown_tokens


def with_ends_behind(
    batch: Batch,
    end_token_id: int,
    generators: list[torch.Generator],
    block_length: int | None = None,
    starts: Tensor | None = None,
) -> Batch:
    """A batch in which ends, to be learned too, stand behind each answer, as many as are written together with it.

    A pipeline writes an answer in a row, or a block, that is longer than the answer, so that a model must tell its end
    by what was said, and not by where the row ends. In blocks the ends go up to the end of the answer's last block.
    Without blocks, where a row has one answer, they are as many as a number of the row's own says, up to its whole
    length; all of them weigh no more than the answer.

    Args:
        batch: `input_ids`, `attention_mask` and `given` (B, L), and maybe `segment_ids`; not changed.
        end_token_id: the token that ends an answer.
        generators: one a row, of which each gives one number without blocks.
        block_length: tokens of a block.
        starts: (B,) columns at each of which a block begins, by default the first; or (B, L) places of the tokens in
            blocks, see `places_behind`.

    Returns:
        The batch, with the tokens that were there as `clean_ids`, and with `token_weights` (B, L) of the loss.

    Example:
        >>> import torch
        >>> from text_diffusers.training.steps.answers import with_ends_behind
        >>> batch = {
        ...     "input_ids": torch.tensor([[5, 6, 2, 7, 8, 9]]),
        ...     "attention_mask": torch.ones(1, 6, dtype=torch.long),
        ...     "given": torch.tensor([[True, False, False, True, True, True]]),
        ... }
        >>> generators = [torch.Generator().manual_seed(0)]
        >>> ended = with_ends_behind(batch, end_token_id=2, generators=generators, block_length=4)
        >>> ended["input_ids"].tolist(), ended["clean_ids"].tolist()
        ([[5, 6, 2, 2, 8, 9]], [[5, 6, 2, 7, 8, 9]])
    """
    tokens = batch["input_ids"]
    learned = unknown_tokens(batch)
    if block_length is None:
        behind = behind_last(learned, rand((len(tokens), 1), generators, tokens.device))
    else:
        is_answer = split_into_blocks(learned, block_length, 0, starts)  # (B, n, tokens)
        seen = join_blocks(is_answer.cumsum(dim=2) > 0, tokens.shape[1], starts)
        behind = seen & ~learned

    # A block may reach into the next conversation, which is no answer of this one.
    if "segment_ids" in batch:
        behind = behind & same_segment_as_answer(batch["segment_ids"], learned)
    counts = behind.sum(dim=1, keepdim=True).clamp(min=1)
    weights = (learned.sum(dim=1, keepdim=True) / counts).clamp(max=1)  # (B, 1)
    return batch | {
        "input_ids": tokens.masked_fill(behind, end_token_id),
        "attention_mask": batch["attention_mask"].masked_fill(behind, 1),
        "given": batch["given"] & ~behind,
        "clean_ids": tokens,
        "token_weights": torch.where(behind, weights, 1.0),
    }


def behind_last(learned: Tensor, shares: Tensor) -> Tensor:
    """(B, L) bool: tokens behind the last learned one of each row, the `shares` (B, 1) in [0, 1) of all of them.

    Example:
        >>> import torch
        >>> from text_diffusers.training.steps.answers import behind_last
        >>> learned = torch.tensor([[False, True, False, False, False, False]])
        >>> behind_last(learned, torch.tensor([[0.5]])).int().tolist()
        [[0, 0, 1, 1, 0, 0]]
    """
    length = learned.shape[1]
    columns = torch.arange(length, device=learned.device)
    last = (learned * columns).amax(dim=1, keepdim=True)  # (B, 1)
    counts = (shares * (length - last)).long()
    return (columns > last) & (columns <= last + counts)


def same_segment_as_answer(segment_ids: Tensor, learned: Tensor) -> Tensor:
    """(B, L) bool: tokens in the segment of the last learned token before them."""
    columns = torch.arange(learned.shape[1], device=learned.device)
    last = torch.where(learned, columns, 0).cummax(dim=1).values  # (B, L)
    return segment_ids == segment_ids.gather(1, last)
