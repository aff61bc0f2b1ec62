"""Laws of EvenRevealScheduler, against enumerations.

Shapes: B batch, L length, K data tokens of an enumerable source; the mask has the last id.
"""

import math

import numpy as np
import pytest
import torch
from support.oracles import MarkovSource, chi_square_passes

from text_diffusers import D3PMAbsorbingScheduler, EvenRevealScheduler

ROWS = 20_000
# Tokens that depend on the one before them
SOURCE = MarkovSource([0.7, 0.3], [[0.9, 0.1], [0.2, 0.8]], length=4)
MASK = SOURCE.num_tokens
TABLE = SOURCE.masked_denoiser()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def counts_of_written(scheduler, num_steps):
    """How often each sequence of the source is written, by its exact denoiser."""
    scheduler.set_timesteps(num_steps)
    generator = seeded(0)
    tokens = scheduler.prior((ROWS, SOURCE.length))
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens, generator)
        logits = TABLE[tuple(tokens.T)][positions]
        tokens = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generator
        ).prev_sample
    return np.array(
        [int((tokens == torch.tensor(row)).all(dim=1).sum()) for row in SOURCE.sequences]
    )


def factorised(pattern, places):
    """`(sequence, probability)` of all ways to fill the `places` of a pattern independently of each other."""
    filled = [(tuple(pattern), 1.0)]
    for place in places:
        probs = TABLE[tuple(pattern)][place].exp().tolist()
        filled = [
            ((*row[:place], token, *row[place + 1 :]), mass * probs[token])
            for row, mass in filled
            for token in range(MASK)
        ]
    return filled


def test_two_steps_write_every_other_token_and_then_the_rest():
    law = dict.fromkeys(map(tuple, SOURCE.sequences.tolist()), 0.0)
    for first, second in (((0, 2), (1, 3)), ((1, 3), (0, 2))):
        for row, mass in factorised([MASK] * 4, first):
            for sequence, rest in factorised(row, second):
                law[sequence] += mass * rest / 2
    want = np.array(list(law.values()))
    assert chi_square_passes(counts_of_written(EvenRevealScheduler(MASK), 2), want)

    # Nearer to the source than steps at random places are
    ancestral = counts_of_written(D3PMAbsorbingScheduler(MASK), 2) / ROWS
    distance = np.abs(want - SOURCE.probs).sum()
    assert distance < 0.8 * np.abs(ancestral - SOURCE.probs).sum()


def test_as_many_steps_as_tokens_write_the_source():
    steps = SOURCE.length
    assert chi_square_passes(counts_of_written(EvenRevealScheduler(MASK), steps), SOURCE.probs)
    assert not chi_square_passes(
        counts_of_written(D3PMAbsorbingScheduler(MASK), steps), SOURCE.probs
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_each_mask_is_revealed_with_the_probability_of_the_step_and_away_from_the_others(schedule):
    scheduler = EvenRevealScheduler(MASK, schedule=schedule)
    scheduler.set_timesteps(6)
    tokens = scheduler.prior((ROWS, 15))
    tokens[:, [2, 3, 9]] = 0  # given
    alpha = scheduler.alpha(torch.tensor([1.0, 5 / 6]).double())
    reveal = float((alpha[1] - alpha[0]) / (1 - alpha[0]))

    selected = scheduler.select(1.0, tokens, seeded(1))
    assert not selected[:, [2, 3, 9]].any()
    masks = selected[:, (tokens[0] == MASK)]  # (B, 12)
    # Each as often as any other, within five standard errors
    error = 5 * math.sqrt(reveal * (1 - reveal) / ROWS)
    torch.testing.assert_close(
        masks.double().mean(dim=0), torch.full((12,), reveal).double(), atol=error, rtol=0
    )
    counts = masks.sum(dim=1)
    assert {*counts.tolist()} <= {math.floor(12 * reveal), math.ceil(12 * reveal)}
    assert not (masks[:, 1:] & masks[:, :-1]).any()


def test_a_row_does_not_depend_on_the_batch():
    scheduler = EvenRevealScheduler(MASK)
    scheduler.set_timesteps(3)
    tokens = scheduler.prior((2, 9))
    together = scheduler.select(1.0, tokens, [seeded(5), seeded(6)])
    assert torch.equal(together[1:], scheduler.select(1.0, tokens[1:], [seeded(6)]))
