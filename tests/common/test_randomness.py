"""Laws of seeded random numbers: a row does not notice who shares its batch."""

import pytest
import torch

from text_diffusers.common.randomness import rand, randn, row_generators

CPU = torch.device("cpu")


def generators(count):
    return row_generators(torch.Generator().manual_seed(0), count)


def draw_uniform(rows, length, source):
    return rand((rows, length), source, CPU)


def draw_normal(rows, length, source):
    return randn((rows, length, 5), source, CPU, torch.float32)


@pytest.mark.parametrize("draw", [draw_uniform, draw_normal])
def test_a_row_draws_the_same_alone_and_padded_in_a_batch(draw):
    together = draw(3, 8, generators(3))
    for row, length in enumerate((8, 5, 1)):
        alone = draw(1, length, [generators(3)[row]])
        assert torch.equal(alone[0], together[row, :length])


@pytest.mark.parametrize("draw", [draw_uniform, draw_normal])
def test_the_length_of_a_draw_does_not_change_the_next_one(draw):
    after = []
    for length in (2, 9):
        source = generators(2)
        draw(2, length, source)
        after.append(draw(2, 4, source))
    assert torch.equal(*after)


@pytest.mark.parametrize("draw", [draw_uniform, draw_normal])
def test_as_many_generators_as_rows_are_needed(draw):
    with pytest.raises(ValueError, match="one generator or one a row: 3 rows, got 2"):
        draw(3, 4, generators(2))
