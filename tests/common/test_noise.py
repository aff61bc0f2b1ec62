"""Laws of the random times of training."""

import torch
from support.oracles import chi_square_passes

from text_diffusers.common.training_randomness import row_noise, token_uniform


def test_a_row_has_one_number_without_blocks_and_one_a_block_with_them():
    uniform, generators = row_noise(0, 0, 3)
    assert torch.equal(token_uniform(uniform, 10, None, generators), uniform)
    assert torch.equal(
        token_uniform(uniform, 10, 10, generators), uniform.unsqueeze(1).expand(3, 10)
    )
    numbers = token_uniform(uniform, 10, 4, generators)  # blocks of 4, 4 and 2
    assert numbers.shape == (3, 10)
    for block in (numbers[:, :4], numbers[:, 4:8], numbers[:, 8:]):
        assert torch.equal(block, block[:, :1].expand_as(block))
    again = token_uniform(uniform, 10, 4, row_noise(0, 0, 3)[1])
    assert torch.equal(numbers, again)


def test_the_numbers_of_all_blocks_fall_one_in_each_stratum():
    rows, blocks = 6, 5
    numbers = token_uniform(*((noise := row_noise(1, 2, rows))[0], blocks, 1, noise[1]))
    strata = (numbers * rows * blocks).long().flatten()
    assert sorted(strata.tolist()) == list(range(rows * blocks))


def test_the_number_of_each_block_of_a_row_is_uniform():
    blocks, counts = 3, torch.zeros(3, 10)
    for step in range(1000):
        uniform, generators = row_noise(0, step, 1)
        numbers = token_uniform(uniform, blocks, 1, generators)[0]
        counts[torch.arange(blocks), (numbers * 10).long()] += 1
    for block in counts:
        assert chi_square_passes(block.numpy(), torch.full((10,), 0.1).numpy())
