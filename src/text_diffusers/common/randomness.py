"""Seeded random numbers, one generator a row: a row draws the same numbers alone and in any batch.

Shapes: B rows, L sequence length, E embedding width.

Example:
    >>> import torch
    >>> from text_diffusers.common.randomness import rand, row_generators
    >>> batch = rand((3, 8), row_generators(torch.Generator().manual_seed(0), 3), torch.device("cpu"))
    >>> alone = rand((1, 5), row_generators(torch.Generator().manual_seed(0), 3)[:1], torch.device("cpu"))
    >>> torch.equal(batch[:1, :5], alone)
    True
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.validation import is_int, is_list

Generators = torch.Generator | Sequence[torch.Generator] | None

# torch fills normal numbers in blocks of 16 and draws the end of a tensor anew if it is no whole block, so its first
# numbers depend on its size; in whole blocks they do not.
NORMAL_BLOCK = 16

# Seeds lie below this number.
SEED_LIMIT = 2**62


def check_generators(generator: Any):
    """Raise a `TypeError` unless `generator` is a generator of torch, a list of them, or `None`."""
    generators = generator if is_list(generator) else [] if generator is None else [generator]
    for value in generators:
        if not isinstance(value, torch.Generator):
            limit = "`generator` must be a torch.Generator or a list of them, one a returned text"
            advice = f": use `torch.Generator().manual_seed({value})`" if is_int(value) else ""
            raise TypeError(f"{limit}, got {value!r} ({type(value).__name__}){advice}.")


def row_seeds(generator: Generators, num_rows: int) -> list[int]:
    """A seed for each row: the next number of its own generator, or of the one that all rows share.

    Raises:
        TypeError: if something else is passed as a generator, such as a seed.
    """
    check_generators(generator)
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return torch.randint(SEED_LIMIT, (num_rows,), generator=generator, device=device).tolist()
    return [next_seed(row_generator) for row_generator in generator]


def next_seed(generator: torch.Generator) -> int:
    """The next number of a generator, as a seed."""
    return int(torch.randint(SEED_LIMIT, (1,), generator=generator, device=generator.device))


def row_generators(generator: Generators, num_rows: int) -> list[torch.Generator]:
    """A fresh generator on the CPU for each row, seeded by `row_seeds`."""
    return [torch.Generator().manual_seed(seed) for seed in row_seeds(generator, num_rows)]


def rand(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """(B, L) float64 uniform numbers in [0, 1).

    With a list, one generator a row, row b depends on its own generator only, and its first numbers do not depend on
    L: the same prompt draws the same noise alone or padded in a batch.
    """
    check_generators(generator)
    if generator is None or isinstance(generator, torch.Generator):
        # A shared generator draws on its own device, whatever that of the result.
        source = device if generator is None else generator.device
        return torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(device)
    check_one_a_row(generator, shape[0])

    # The row's generator gives one number however long the row is, so it stands at the same place afterwards.
    rows = []
    for row_generator in generator:
        fresh = torch.Generator(row_generator.device).manual_seed(next_seed(row_generator))
        rows.append(torch.rand(shape[1], generator=fresh, device=fresh.device, dtype=torch.float64))
    return torch.stack(rows).to(device)


def rand_like(tokens: Tensor, generator: Generators) -> Tensor:
    """(B, L) float64 uniform numbers in [0, 1), one for each of `tokens` (B, L), as `rand` draws them."""
    return rand(tuple(tokens.shape), generator, tokens.device)


def randn(
    shape: tuple[int, ...],
    generator: Generators,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    """(B, L, E) standard normal numbers, with one generator a row as in `rand`."""
    check_generators(generator)
    # Half precision is drawn in float32 and rounded.
    precise = torch.promote_types(dtype, torch.float32)
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source, dtype=precise).to(
            device, dtype
        )
    batch_size, length, width = shape
    check_one_a_row(generator, batch_size)

    # Whole blocks a row, see `NORMAL_BLOCK`.
    padded_width = width + -width % NORMAL_BLOCK
    rows = []
    for row_generator in generator:
        fresh = torch.Generator().manual_seed(next_seed(row_generator))
        rows.append(torch.randn(length, padded_width, generator=fresh, dtype=precise)[:, :width])
    return torch.stack(rows).to(device, dtype)


def check_one_a_row(generators: Sequence[torch.Generator], num_rows: int):
    """Raise a `ValueError` unless there are as many generators as rows."""
    if len(generators) != num_rows:
        raise ValueError(
            f"`generator` must be one generator or one a row: {num_rows} rows, got {len(generators)}."
        )
