"""Laws of FirstHittingScheduler, against enumerations and the order statistics of reveal times.

Shapes: B batch, L length, V vocabulary size, K data tokens of an enumerable source; the mask has the last id.
"""

import math

import numpy as np
import pytest
import torch
from support.oracles import (
    MarkovSource,
    alpha_by_definition,
    chi_square_passes,
    golden_cases,
)

from text_diffusers import D3PMAbsorbingScheduler, FirstHittingScheduler
from text_diffusers.schedulers.noise_schedules import NOISE_SCHEDULES

V = 6
MASK = V - 1
PAD = 0
SCHEDULES = sorted(NOISE_SCHEDULES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def denoise(scheduler, predict, tokens, generator, editable=True):
    """The tokens after the last step, the number of predictions each row took (B,), and the times told (steps, B).

    As in a pipeline: `editable` is applied after `select`, and `predict(tokens, times, positions)` gets only the rows
    that have a selected position.
    """
    taken, told = torch.zeros(len(tokens), dtype=torch.long), []
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens, generator)
        positions &= torch.as_tensor(editable)
        rows = positions.any(dim=1)
        times = scheduler.model_timesteps(timestep, tokens)
        logits = (
            predict(tokens[rows], times[rows], positions[rows]) if rows.any() else torch.zeros(0, V)
        )
        taken, told = taken + rows, [*told, times]
        before = tokens.clone()
        stepped = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generator
        ).prev_sample
        assert torch.equal(tokens, before)
        tokens = stepped
    return tokens, taken, torch.stack(told)


def flat(tokens, times, positions):
    return torch.zeros(int(positions.sum()), V)


def by_table(table):
    return lambda tokens, times, positions: table[tuple(tokens.T)][positions]


def counts_of(tokens, sequences):
    return [int((tokens == torch.tensor(sequence)).all(dim=1).sum()) for sequence in sequences]


# Distributions


def test_texts_have_the_enumerated_first_hitting_distribution():
    (case,) = golden_cases("sampling", "first_hitting_enumeration")
    size, rows = case["inputs"]["K"], 20_000
    table = torch.full((size + 1,) * 2 + (2, size + 1), -torch.inf, dtype=torch.float64)
    for pattern, probs in case["inputs"]["denoiser"].items():
        first, second = map(int, pattern.split())
        table[first, second, :, :size] = torch.tensor(probs, dtype=torch.float64).log()
    want = np.array(case["outputs"]["probs"]).ravel()
    sequences = list(np.ndindex(size, size))
    ancestral = golden_cases("sampling", "ancestral_enumeration")[0]["outputs"]["probs"]
    for steps in (2, 7):
        scheduler = FirstHittingScheduler(size)
        scheduler.set_timesteps(steps)
        tokens, taken, _ = denoise(
            scheduler, by_table(table), scheduler.prior((rows, 2)), seeded(0)
        )
        counts = counts_of(tokens, sequences)
        assert (taken == 2).all() and sum(counts) == rows
        assert chi_square_passes(counts, want) and not chi_square_passes(
            counts, np.array(ancestral).ravel()
        )


def test_rows_of_different_lengths_in_one_batch_each_reach_their_source():
    source, rows = MarkovSource.golden(), 16_000
    scheduler = FirstHittingScheduler(source.num_tokens, schedule="cosine")
    scheduler.set_timesteps(5)
    tokens = scheduler.prior((rows, 3))
    tokens[::2, 1] = 2  # every other row has to fill in its first and last token only
    written, taken, _ = denoise(scheduler, by_table(source.masked_denoiser()), tokens, seeded(1))
    assert (taken[::2] == 2).all() and (taken[1::2] == 3).all() and (written[::2, 1] == 2).all()
    assert chi_square_passes(counts_of(written[1::2], source.sequences), source.probs)
    given = source.probs * (source.sequences[:, 1] == 2)
    assert chi_square_passes(counts_of(written[::2], source.sequences), given / given.sum())


@pytest.mark.parametrize("schedule, mean", [("linear", 1 / 3), ("cosine", 1 / 2 - 2 / math.pi**2)])
def test_a_model_that_depends_on_time_gives_the_law_of_continuous_time(schedule, mean):
    """Token 1 has probability t^2 at time t, whose mean is the integral of -alpha'(t) t^2."""
    rows = 20_000

    def predict(tokens, times, positions):
        t = times.double()[positions.nonzero()[:, 0]]
        return torch.stack([1 - t**2, t**2, torch.zeros_like(t)], dim=1).log()

    scheduler = FirstHittingScheduler(2, schedule=schedule)
    scheduler.set_timesteps(2)
    tokens, _, _ = denoise(scheduler, predict, scheduler.prior((rows, 2)), seeded(2))
    want = np.outer([1 - mean, mean], [1 - mean, mean]).ravel()
    assert chi_square_passes(counts_of(tokens, list(np.ndindex(2, 2))), want)


# Times


@pytest.mark.parametrize(
    "case", golden_cases("sampling", "reveal_times"), ids=lambda case: case["name"]
)
def test_the_times_told_to_the_model_have_the_mean_reveal_times(case):
    length, rows = case["inputs"]["L"], 20_000
    scheduler = FirstHittingScheduler(MASK, schedule=case["inputs"]["schedule"])
    scheduler.set_timesteps(length + 2)
    _, _, told = denoise(scheduler, flat, scheduler.prior((rows, length)), seeded(3))
    errors = told[:length].double().std(dim=1) / math.sqrt(rows)
    want = torch.tensor(case["outputs"]["mean_reveal_times_descending"])
    assert ((told[:length].mean(dim=1) - want).abs() < 5 * errors).all()
    assert (told.diff(dim=0)[: length - 1] < 0).all() and told.dtype == torch.float32
    assert torch.equal(told[length], told[length - 1])  # the clock of a finished row stands still


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reveal_times_are_the_largest_of_independent_draws_from_the_schedule(schedule):
    """The largest of n independent times is below t with probability (1 - alpha(t))^n, then the next of n - 1."""
    from scipy.stats import kstest

    length, rows = 3, 4000
    scheduler = FirstHittingScheduler(MASK, schedule=schedule)
    scheduler.set_timesteps(length)
    _, _, told = denoise(scheduler, flat, scheduler.prior((rows, length)), seeded(4))
    levels = np.array(
        [[1 - alpha_by_definition(schedule, t) for t in row] for row in told.double().tolist()]
    )
    assert kstest(levels[0] ** length, "uniform").pvalue > 1e-3
    for step in (1, 2):
        assert kstest((levels[step] / levels[step - 1]) ** (length - step), "uniform").pvalue > 1e-3


def test_each_masked_position_is_equally_likely_to_be_next():
    scheduler = FirstHittingScheduler(MASK)
    sample = scheduler.prior((9000, 6))
    sample[:, [0, 3]] = 1
    first = scheduler.select(1.0, sample, seeded(5))
    assert (first.sum(dim=1) == 1).all() and not first[:, [0, 3]].any()
    assert chi_square_passes(first.sum(dim=0)[[1, 2, 4, 5]].numpy(), np.full(4, 1 / 4))


def test_a_model_trained_in_steps_is_told_the_end_of_its_step():
    told = []
    for steps in (None, 8):
        scheduler = FirstHittingScheduler(MASK, num_train_timesteps=steps)
        scheduler.set_timesteps(4)
        told.append(denoise(scheduler, flat, scheduler.prior((500, 4)), seeded(6))[2])
    assert (
        torch.equal(told[1], torch.ceil(told[0] * 8) / 8)
        and told[1].min() == 1 / 8
        and told[1].max() == 1
    )


def test_a_run_that_begins_in_the_middle_begins_at_the_noise_of_its_time():
    scheduler = FirstHittingScheduler(MASK, schedule="cosine")
    scheduler.set_timesteps(10)
    middle = scheduler.timesteps[6]
    assert torch.equal(
        scheduler.model_timesteps(middle, torch.zeros(2, 3)), torch.full((2,), float(middle))
    )
    scheduler.select(middle, scheduler.prior((5000, 1)), seeded(7))
    told = scheduler.model_timesteps(middle, torch.zeros(5000, 1))
    level = 1 - alpha_by_definition("cosine", float(middle))
    levels = torch.tensor([1 - alpha_by_definition("cosine", t) for t in told.double().tolist()])
    assert (
        abs(float(levels.mean()) - level / 2) < 5 * level / math.sqrt(12 * 5000)
        and levels.max() <= level
    )


# How many calls


@pytest.mark.parametrize("steps", [7, 30])
def test_a_row_takes_one_prediction_for_each_of_its_masks(steps):
    scheduler = FirstHittingScheduler(MASK)
    scheduler.set_timesteps(steps)
    tokens = scheduler.prior((8, 7))
    for row in range(8):
        tokens[row, :row] = PAD
    written, taken, _ = denoise(scheduler, flat, tokens, seeded(8))
    assert taken.tolist() == list(range(7, -1, -1)) and not (written == MASK).any()
    assert all((written[row, :row] == PAD).all() for row in range(8))


def test_too_few_steps_are_refused_before_the_model_is_called(pipe):
    pipe.scheduler = FirstHittingScheduler.from_config(pipe.scheduler.config)
    calls = []
    hook = pipe.denoiser.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(
        ValueError, match="`num_inference_steps` must be at least 9, one for each token .* got 8"
    ):
        pipe(["the cat", "she"], max_new_tokens=9, num_inference_steps=8)
    assert not calls
    pipe(["the cat", "she"], max_new_tokens=9, num_inference_steps=9)
    hook.remove()
    assert 1 <= len(calls) <= 9


def test_masks_that_are_to_stay_cost_a_step_and_nothing_else():
    scheduler = FirstHittingScheduler(MASK)
    scheduler.set_timesteps(6)
    editable = torch.ones(400, 6, dtype=torch.bool)
    editable[::2, :3] = False  # as for a text that has ended, or a mask that belongs to the text
    written, taken, _ = denoise(scheduler, flat, scheduler.prior((400, 6)), seeded(9), editable)
    assert torch.equal(written == MASK, ~editable)
    assert torch.equal(taken, editable.sum(dim=1))


def test_a_token_that_is_masked_again_is_written_again():
    scheduler = FirstHittingScheduler(MASK)
    scheduler.set_timesteps(6)
    tokens, generator = scheduler.prior((50, 4)), seeded(10)
    for step, timestep in enumerate(scheduler.timesteps):
        positions = scheduler.select(timestep, tokens, generator)
        logits = flat(tokens, None, positions)
        after = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generator
        ).prev_sample
        tokens = tokens if step in (0, 2) else after  # a callback takes the written token away
    assert not (tokens == MASK).any()


# Pipelines, seeds, edges and errors


def test_ended_texts_are_dropped_and_a_text_is_the_same_alone_and_in_a_batch(pipe):
    pipe.scheduler = FirstHittingScheduler.from_config(pipe.scheduler.config, temperature=1.5)
    prompts = ["the cat", "a bird sang in the tree and", "she", "the dog sat on"] * 8
    rows = []
    hook = pipe.denoiser.register_forward_pre_hook(
        lambda _, arguments: rows.append(len(arguments[0]))
    )
    together = pipe(
        prompts,
        num_inference_steps=32,
        generator=[seeded(i) for i in range(32)],
        return_history=True,
    )
    hook.remove()
    blanks = (together.history[0] == pipe.tokenizer.mask_token_id).sum(dim=1)
    assert sum(rows) < int(blanks.sum())  # some texts ended before all their blanks were filled
    assert (
        len(rows) <= int(blanks.max())
        and not (together.tokens == pipe.tokenizer.mask_token_id).any()
    )
    for i in (0, 1, 6, 31):
        alone = pipe(prompts[i], num_inference_steps=32, generator=seeded(i))
        assert alone.texts[0] == together.texts[i]


def test_a_row_and_its_times_are_the_same_alone_padded_and_in_a_batch():
    def run(rows, width):
        scheduler = FirstHittingScheduler(MASK)
        scheduler.set_timesteps(5)
        tokens = torch.full((len(rows), width), PAD)
        for place, row in enumerate(rows):
            tokens[place, : 3 + row] = MASK
        return denoise(scheduler, flat, tokens, [seeded(20 + row) for row in rows])

    together, _, told = run([0, 1, 2], 5)
    for row in range(3):
        alone, _, own = run([row], 3 + row)
        assert torch.equal(alone[0], together[row, : 3 + row]) and torch.equal(
            own[:, 0], told[:, row]
        )


def test_a_second_run_starts_anew():
    scheduler = FirstHittingScheduler(MASK)
    scheduler.set_timesteps(4)
    first = denoise(scheduler, flat, scheduler.prior((6, 4)), seeded(11))
    again = denoise(scheduler, flat, scheduler.prior((6, 4)), seeded(11))
    other = denoise(scheduler, flat, scheduler.prior((2, 3)), seeded(11))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and other[0].shape == (
        2,
        3,
    )


def test_the_mask_is_never_written_and_steps_may_select_by_themselves():
    scheduler = FirstHittingScheduler(MASK)
    scheduler.set_timesteps(5)
    logits = torch.zeros(64, 5, V)
    logits[..., MASK] = 1e4
    before, tokens, generator = logits.clone(), scheduler.prior((64, 5)), seeded(12)
    for step, timestep in enumerate(scheduler.timesteps):
        tokens = scheduler.step(logits, timestep, tokens, generator=generator).prev_sample
        assert ((tokens == MASK).sum(dim=1) == 4 - step).all()
    assert torch.equal(logits, before)


def test_wrong_arguments_are_refused_by_name():
    scheduler = FirstHittingScheduler(MASK, num_train_timesteps=10)
    with pytest.raises(
        ValueError, match="`num_inference_steps` must be between 1 and `num_train_timesteps`=10"
    ):
        scheduler.set_timesteps(11)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="one of the 5 `timesteps`"):
        scheduler.select(0.123, scheduler.prior((1, 2)))
    with pytest.raises(ValueError, match="`num_inference_steps` must be at least 6, .* got 5"):
        scheduler.select(1.0, scheduler.prior((2, 6)))
    scheduler.select(1.0, scheduler.prior((2, 3)))
    with pytest.raises(
        ValueError, match=r"`sample` must be \(2, 3\) as in the steps before, got \(3, 3\)"
    ):
        scheduler.select(scheduler.timesteps[1], scheduler.prior((3, 3)))
    with pytest.raises(ValueError, match="`temperature` must be"):
        FirstHittingScheduler(MASK, temperature=-1.0)


def test_swaps_keep_the_settings_in_both_directions_and_on_disk(tmp_path):
    shared = {"num_train_timesteps": 50, "schedule": "cosine", "min_timestep": 0.01}
    shared |= {"temperature": 0.8, "top_k": 4, "top_p": 0.9}
    ancestral = D3PMAbsorbingScheduler(
        MASK, **shared
    )  # by position: diffusers takes it for a default
    swapped = FirstHittingScheduler.from_config(ancestral.config)
    swapped.save_pretrained(tmp_path)
    loaded = FirstHittingScheduler.from_pretrained(tmp_path)
    for scheduler in (swapped, loaded, D3PMAbsorbingScheduler.from_config(loaded.config)):
        assert {name: scheduler.config[name] for name in shared} == shared
        assert scheduler.config.mask_token_id == MASK
    assert {FirstHittingScheduler, D3PMAbsorbingScheduler} <= set(loaded.compatibles)
    assert isinstance(
        loaded.step(torch.zeros(1, 3, V), 1.0, loaded.prior((1, 3)), return_dict=False), tuple
    )
