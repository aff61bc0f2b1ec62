"""Blocks of rows of tokens, counted from a column of each row's own.

Blocks of a model are counted from the first token of a row. Over a past that is read token by token they may begin
anywhere, and begin behind what is given: `starts` then are columns, one a row, at each of which a block begins. Or
they are places, one a token, see `places_behind`, where blocks begin anew in the midst of a row and some are short.

Shapes: B rows, L row length in tokens, n blocks of a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def count_blocks(length: int, block_length: int, starts: Tensor | None = None) -> int:
    """n for rows of `length` tokens; with `starts` the most that there can be, wherever blocks begin.

    Example:
        >>> from text_diffusers.common.row_blocks import count_blocks
        >>> count_blocks(8, block_length=4), count_blocks(8, 4, starts=torch.tensor([0, 1]))
        (2, 3)
    """
    # A row's own noise must not depend on where the blocks of other rows begin.
    if starts is not None and starts.ndim == 2:
        return length
    most = length if starts is None else length + block_length - 1
    return -(-most // block_length)


def places_in_blocks(length: int, block_length: int, starts: Tensor) -> Tensor:
    """(B, L) places of the tokens in rows that are filled up on the left, so that whole blocks come one by one."""
    if starts.ndim == 2:
        return starts
    columns = torch.arange(length, device=starts.device)
    return columns + (-starts % block_length).unsqueeze(1)


def places_behind(begins: Tensor, block_length: int) -> Tensor:
    """(B, L) places of the tokens in rows of whole blocks, where a block begins at each of `begins` (B, L) bool.

    A block that the next one interrupts is filled up: place p is in block p // block_length.

    Example:
        >>> import torch
        >>> from text_diffusers.common.row_blocks import places_behind
        >>> begins = torch.tensor([[False, False, False, True, False, False]])
        >>> places_behind(begins, block_length=2).tolist()
        [[0, 1, 2, 4, 5, 6]]
    """
    columns = torch.arange(begins.shape[1], device=begins.device)
    last_begin = torch.where(begins, columns, 0).cummax(dim=1).values
    offsets = (columns - last_begin) % block_length
    numbers = (offsets == 0).cumsum(dim=1) - 1
    return numbers * block_length + offsets


def block_numbers(length: int, block_length: int, starts: Tensor) -> Tensor:
    """(B, L) the block of each token, from 0; `starts` (B,) are columns at which a block begins.

    Example:
        >>> import torch
        >>> from text_diffusers.common.row_blocks import block_numbers
        >>> block_numbers(6, block_length=4, starts=torch.tensor([0, 1])).tolist()
        [[0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 2]]
    """
    return places_in_blocks(length, block_length, starts) // block_length


def split_into_blocks(
    values: Tensor, block_length: int, filling: float = 0, starts: Tensor | None = None
) -> Tensor:
    """(B, n, block_length) of `values` (B, L), with `filling` where a row has no token.

    Example:
        >>> import torch
        >>> from text_diffusers.common.row_blocks import split_into_blocks
        >>> split_into_blocks(torch.tensor([[1, 2, 3]]), 2, starts=torch.tensor([1])).tolist()
        [[[0, 1], [2, 3]]]
    """
    length = values.shape[1]
    width = count_blocks(length, block_length, starts) * block_length
    if starts is None:
        padded = F.pad(values, (0, width - length), value=filling)
    else:
        places = places_in_blocks(length, block_length, starts)
        padded = values.new_full((len(values), width), filling).scatter(1, places, values)
    return padded.unflatten(1, (-1, block_length))


def join_blocks(blocks: Tensor, length: int, starts: Tensor | None = None) -> Tensor:
    """(B, L) of (B, n, block_length), which `split_into_blocks` made of rows of L tokens."""
    values = blocks.flatten(1)
    if starts is None:
        return values[:, :length]
    return values.gather(1, places_in_blocks(length, blocks.shape[2], starts))
