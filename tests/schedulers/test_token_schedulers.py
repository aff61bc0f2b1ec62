"""Laws that all token schedulers share: grids given time by time, types of ids, configurations of another noise.

Shapes: B batch, L sequence length, V vocabulary size, S states of a token.
"""

import itertools

import numpy as np
import pytest
import torch

from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMBitFlipScheduler,
    D3PMHierarchicalScheduler,
    D3PMHybridScheduler,
    D3PMMatrixScheduler,
    D3PMNeighborScheduler,
    D3PMUniformScheduler,
    EmbeddingDDIMScheduler,
    EmbeddingDPMSolverScheduler,
    EvenRevealScheduler,
    FirstHittingScheduler,
    PredictorCorrectorAbsorbingScheduler,
    PredictorCorrectorUniformScheduler,
    ReMDMScheduler,
    TokenDDIMScheduler,
)
from text_diffusers.schedulers.noise_schedules import mutual_information

B, L, V = 3, 6, 8
MASK = V  # behind the words
CLUSTERS = torch.arange(V) % 3
VECTORS = torch.randn(V, 3, generator=torch.Generator().manual_seed(0))
MAKERS = {
    "absorbing": lambda **more: D3PMAbsorbingScheduler(MASK, **more),
    "confidence": lambda **more: ConfidenceScheduler(MASK, **more),
    "remdm": lambda **more: ReMDMScheduler(MASK, remasking="confidence", eta=0.5, **more),
    "even": lambda **more: EvenRevealScheduler(MASK, **more),
    "first_hitting": lambda **more: FirstHittingScheduler(MASK, **more),
    "corrected_absorbing": lambda **more: PredictorCorrectorAbsorbingScheduler(MASK, **more),
    "uniform": lambda **more: D3PMUniformScheduler(V, **more),
    "ddim": lambda **more: TokenDDIMScheduler(V, eta=0.5, **more),
    "corrected_uniform": lambda **more: PredictorCorrectorUniformScheduler(V, **more),
    "hierarchical": lambda **more: D3PMHierarchicalScheduler(MASK, V + 4, CLUSTERS, **more),
    "hybrid": lambda **more: D3PMHybridScheduler(MASK, V, **more),
    "bit_flip": lambda **more: D3PMBitFlipScheduler(V, **more),
    "neighbors": lambda **more: D3PMNeighborScheduler.from_embeddings(VECTORS, 2, **more),
    "matrix": lambda **more: D3PMMatrixScheduler(V, num_train_timesteps=40, beta_end=0.6, **more),
}
# A single step draws every token from `reverse_probs`.
ANCESTRAL = [name for name, make in MAKERS.items() if make().draws_reverse and name != "ddim"]


def written(scheduler, dtype=torch.int64):
    """(B, L) tokens of a run over the grid of the scheduler, from a random table of predictions."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(B, L, V + 1, generator=generator)
    tokens = scheduler.prior((B, L), generator).to(dtype)
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens, generator)
        tokens = scheduler.step(
            logits[positions], timestep, tokens, positions=positions, generator=generator
        ).prev_sample
        assert tokens.dtype == dtype
    return tokens


# Grids


@pytest.mark.parametrize("name", MAKERS)
def test_times_given_one_by_one_are_those_of_the_run(name):
    scheduler, steps = MAKERS[name](), 10
    scheduler.set_timesteps(steps)
    even = scheduler.timesteps
    exact = scheduler._grid[[scheduler._grid_index(time) for time in even]]
    want = written(scheduler)
    for times in (exact, exact.tolist(), exact.numpy(), list(exact.numpy())):
        scheduler.set_timesteps(timesteps=times)
        assert torch.equal(scheduler.timesteps, even) and scheduler.num_inference_steps == steps
        assert torch.equal(written(scheduler), want)
    scheduler.set_timesteps(timesteps=even)  # in float32
    assert torch.equal(scheduler.timesteps, even)
    scheduler.set_timesteps(np.int64(steps))
    assert torch.equal(scheduler.timesteps, even)

    uneven = [1.0, 0.9, 0.6, 0.5, 0.3, 0.05]
    scheduler.set_timesteps(timesteps=uneven)
    assert scheduler.timesteps.tolist() == pytest.approx(uneven)
    assert (written(scheduler) != MASK).all()


@pytest.mark.parametrize("name", ANCESTRAL)
@pytest.mark.parametrize("start", [1.0, 0.5])
def test_one_token_comes_out_as_the_data_whatever_the_grid(name, start):
    """With the exact p(x_0 | x_t), from q(x_start), over uneven steps."""
    data = torch.tensor([0.3, 0.2, 0.02, 0.03, 0.15, 0.1, 0.05, 0.15], dtype=torch.float64)
    scheduler = MAKERS[name]()
    scheduler.set_timesteps(timesteps=[start, 0.45, 0.4, 0.1])

    law = data @ scheduler.transition(torch.arange(V), start)  # (S,)
    states = torch.arange(len(law)).unsqueeze(1)
    for timestep in scheduler.timesteps:
        rows = scheduler.transition(torch.arange(V), float(timestep))  # (V, S)
        joint = data.unsqueeze(1) * rows
        # States that no token can be in have some prediction too.
        joint = torch.where(joint.sum(dim=0) > 0, joint, 1.0)
        # A mask behind the words is no x_0.
        logits = torch.nn.functional.pad(joint.T.log(), (0, 1), value=-torch.inf)
        law = law @ scheduler.reverse_probs(logits.unsqueeze(1), timestep, states)[:, 0]
    torch.testing.assert_close(law[:V], data, atol=2e-6, rtol=0)


@pytest.mark.parametrize("scheduler", [MAKERS["absorbing"](), MAKERS["corrected_uniform"]()])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`num_inference_steps` must be at least 1, got None"),
        ({"num_inference_steps": True}, "`num_inference_steps` must be at least 1, got True"),
        (
            {"num_inference_steps": 3, "timesteps": [1.0]},
            "must be None where `timesteps` are given",
        ),
        ({"timesteps": []}, "`timesteps` must be a list of at least one number"),
        ({"timesteps": ["a"]}, "`timesteps` must be a list of at least one number"),
        ({"timesteps": [0.2, 0.4]}, "`timesteps` must be in \\(0, 1\\] and descending"),
        ({"timesteps": [0.4, 0.4]}, "`timesteps` must be in \\(0, 1\\] and descending"),
        ({"timesteps": [1.2, 0.4]}, "`timesteps` must be in \\(0, 1\\] and descending"),
        ({"timesteps": [0.4, 0.0]}, "`timesteps` must be in \\(0, 1\\] and descending"),
        ({"timesteps": [float("nan")]}, "`timesteps` must be a list of at least one number"),
    ],
    ids=str,
)
def test_grids_that_make_no_sense_are_refused_by_name(scheduler, arguments, message):
    before = scheduler.timesteps
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(**arguments)
    assert scheduler.timesteps is before


def test_a_model_of_so_many_steps_knows_their_times_only():
    scheduler = D3PMAbsorbingScheduler(MASK, num_train_timesteps=10)
    with pytest.raises(ValueError, match="`timesteps` must be multiples of 1 / T for"):
        scheduler.set_timesteps(timesteps=[1.0, 0.55])
    scheduler.set_timesteps(timesteps=torch.tensor([0.9, 0.3]))  # in float32
    assert scheduler._grid.tolist() == [0.9, 0.3, 0.0]


def test_a_time_that_comes_again_is_that_of_a_corrector():
    scheduler = PredictorCorrectorUniformScheduler(V, corrector_steps=2)
    scheduler.set_timesteps(7)
    assert scheduler.timesteps.tolist() == pytest.approx([1] + 3 * [2 / 3] + 3 * [1 / 3])
    by_number = list(scheduler._plan)
    scheduler.set_timesteps(timesteps=scheduler.timesteps)
    assert scheduler._plan == by_number
    with pytest.raises(ValueError, match="`timesteps` must be in"):
        scheduler.set_timesteps(timesteps=[0.5, 0.5, 0.2])


# Types of ids


@pytest.mark.parametrize("name", MAKERS)
def test_ids_of_32_bits_are_stepped_as_those_of_64(name):
    scheduler = MAKERS[name]()
    scheduler.set_timesteps(L + 1)
    want = written(scheduler)
    scheduler.set_timesteps(L + 1)
    assert torch.equal(written(scheduler, torch.int32).long(), want)

    noisy = scheduler.add_noise(want, np.float64(0.5), torch.Generator().manual_seed(2))
    again = scheduler.add_noise(want.int(), 0.5, torch.Generator().manual_seed(2))
    assert again.dtype == torch.int32 and torch.equal(again.long(), noisy)

    scheduler.set_timesteps(L + 1)
    logits, timestep = torch.zeros(B, L, V + 1), scheduler.timesteps[0]
    both = [scheduler.reverse_probs(logits, timestep, ids) for ids in (noisy, noisy.int())]
    assert torch.equal(*both)
    rows = [scheduler.transition(ids, 0.3) for ids in (want[0], want[0].int())]
    assert torch.equal(*rows)

    with pytest.raises(ValueError, match="`sample` must be a tensor of token ids.*torch.float32"):
        scheduler.step(logits, timestep, noisy.float())
    with pytest.raises(ValueError, match="`tokens` must be a tensor of token ids.*torch.bool"):
        scheduler.add_noise(noisy > 3, 0.5)


# What becomes of each token


@pytest.mark.parametrize("mask", [0, 3, V])
def test_the_mask_stays_the_mask_and_ids_above_it_turn_into_it(mask):
    scheduler = D3PMAbsorbingScheduler(mask)
    tokens, times = torch.tensor([0, 3, V, 5]), torch.tensor([0.0, 0.3, 0.7, 1.0])
    want = torch.zeros(4, V + 1, dtype=torch.float64)
    for row, (token, time) in enumerate(zip(tokens, times.double(), strict=True)):
        want[row, mask] += time
        want[row, token] += 1 - time
    torch.testing.assert_close(scheduler.transition(tokens, times), want)


def test_information_about_a_masked_token_falls_with_time_wherever_the_mask_stands():
    frequencies = torch.tensor([1.0, 2.0, 0.0, 3.0, 4.0])
    probs = frequencies.double() / frequencies.sum()
    entropy = float(-torch.xlogy(probs, probs).sum())
    for mask in (2, 5):  # among the tokens, where it never occurs, and behind them
        nats = mutual_information(D3PMAbsorbingScheduler(mask), frequencies, [0.0, 0.25, 1.0])
        assert nats == pytest.approx([entropy, 0.75 * entropy, 0.0], abs=1e-12)
    assert len(mutual_information(D3PMAbsorbingScheduler(103), torch.ones(2_000), [0.5])) == 1


@pytest.mark.parametrize(
    "name", ["uniform", "hybrid", "hierarchical", "bit_flip", "neighbors", "matrix"]
)
def test_ids_that_the_noise_does_not_have_are_named(name):
    for token in (-1, V + 4):
        with pytest.raises(ValueError, match="`tokens` must be ids from 0 to .*the states of this"):
            MAKERS[name]().transition(torch.tensor([token]), 0.3)


# Configurations


def test_a_configuration_of_another_noise_is_refused_and_of_the_same_is_taken():
    for (source, make), (target, make_other) in itertools.product(MAKERS.items(), MAKERS.items()):
        scheduler, cls = make(temperature=0.5), type(make_other())
        if scheduler.corruption == cls.corruption:
            assert cls.from_config(scheduler.config).config.temperature == 0.5
            continue
        with pytest.raises(ValueError, match=f"`config` must be .* for {cls.__name__}"):
            cls.from_config(scheduler.config)
        assert source != target

    # What the noise is made of may be given.
    uniform = D3PMUniformScheduler.from_config(MAKERS["absorbing"](top_k=3).config, vocab_size=V)
    assert uniform.config.top_k == 3


def test_a_saved_configuration_of_another_noise_is_refused(tmp_path):
    MAKERS["hybrid"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got that of D3PMHybridScheduler \\(hybrid noise\\)"):
        D3PMUniformScheduler.from_pretrained(tmp_path)
    assert D3PMHybridScheduler.from_pretrained(tmp_path).config.mask_token_id == MASK


def test_embeddings_and_tokens_do_not_take_each_others_configurations():
    tokens, embeddings = D3PMAbsorbingScheduler(MASK, 100), EmbeddingDDIMScheduler(100)
    with pytest.raises(ValueError, match="`config` must be that of a scheduler of embeddings"):
        EmbeddingDPMSolverScheduler.from_config(tokens.config)
    with pytest.raises(ValueError, match="or come with its `mask_token_id`"):
        D3PMAbsorbingScheduler.from_config(embeddings.config)


def test_what_was_passed_by_position_is_kept():
    chosen = D3PMAbsorbingScheduler(MASK, 100, "cosine").config
    again = ReMDMScheduler.from_config(chosen).config
    assert (again.mask_token_id, again.num_train_timesteps, again.schedule) == (MASK, 100, "cosine")


def test_embedding_clocks_take_numbers_of_numpy_and_refuse_halves():
    scheduler = EmbeddingDDIMScheduler(100)
    scheduler.set_timesteps(np.int64(4))
    want = scheduler.timesteps
    scheduler.set_timesteps(timesteps=want.numpy())
    assert torch.equal(scheduler.timesteps, want)
    clean = torch.ones(1, 2, 3)
    noisy = [scheduler.add_noise(clean, clean, time) for time in (torch.tensor(5), np.int64(5))]
    assert torch.equal(*noisy)
    with pytest.raises(ValueError, match="`timesteps` must be a list of integers"):
        scheduler.set_timesteps(timesteps=[99, 5.5])
    with pytest.raises(ValueError, match="`timestep` must be one of"):
        scheduler.step(clean, float(want[0]) + 0.5, clean)
