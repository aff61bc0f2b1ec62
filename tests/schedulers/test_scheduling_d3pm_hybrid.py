"""Laws of GIDD's noise, in which the share of random tokens depends on the time, against its formulas.

Shapes: S states of a token.
"""

import numpy as np
import pytest
import torch
from support.oracles import bayes_posterior, chi_square_passes

from text_diffusers import D3PMHybridScheduler, D3PMUniformScheduler

WORDS = 4
MASK = 4
TIMES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def make(p_uniform=0.2, steps=20, **settings):
    return D3PMHybridScheduler(
        MASK, WORDS, p_uniform=p_uniform, num_train_timesteps=steps, **settings
    )


def marginals(time, p_uniform=0.2):
    """(S, S) q(x_t | x_0) as the paper has it; the row of the mask, with which no text begins, is alike."""
    ratio = 2 * p_uniform / (1 - p_uniform)
    weight = ratio * np.sqrt(time * (1 - time))
    noise = np.full(WORDS + 1, weight / WORDS)
    noise[MASK] = time
    return ((1 - time) * np.eye(WORDS + 1) + noise) / (1 + weight)


def between(start, end):
    """(S, S) q(x_t | x_s), which takes the marginals of s to those of t."""
    return np.linalg.solve(marginals(start), marginals(end))


@pytest.mark.parametrize("time", TIMES)
def test_tokens_are_lost_as_in_the_paper(time):
    scheduler = make()
    rows = scheduler.transition(torch.arange(WORDS + 1), time).numpy()
    np.testing.assert_allclose(rows, marginals(time), atol=1e-12)

    generator = torch.Generator().manual_seed(0)
    noisy = scheduler.add_noise(torch.full((1, 20_000), 2), time, generator)
    assert chi_square_passes(np.bincount(noisy[0], minlength=WORDS + 1), 20_000 * rows[2])


def test_a_random_token_is_likeliest_at_half_the_time():
    scheduler = make(p_uniform=0.3, steps=1000)
    shares = [
        float(
            scheduler.transition(torch.tensor([0]), time)[0, :WORDS].sum() - scheduler.alpha(time)
        )
        for time in np.linspace(0, 1, 101)
    ]
    assert np.argmax(shares) == 50
    assert shares[50] == pytest.approx(0.3)


def test_times_of_a_batch_are_its_rows_or_tokens():
    scheduler = make()
    times = torch.tensor([0.1, 0.9])
    tokens = torch.zeros(2, 4_000, dtype=torch.long)
    for given in (times, times.unsqueeze(1).expand(tokens.shape)):
        noisy = scheduler.add_noise(tokens, given, torch.Generator().manual_seed(1))
        for row, time in zip(noisy, times.tolist(), strict=True):
            assert chi_square_passes(
                np.bincount(row, minlength=WORDS + 1), 4_000 * marginals(time)[0]
            )


def test_pure_noise_is_all_masks_and_clean_text_is_itself():
    scheduler = make()
    tokens = torch.arange(WORDS).repeat(2, 50)
    assert (scheduler.prior((2, 8)) == MASK).all()
    assert (scheduler.add_noise(tokens, 1.0) == MASK).all()
    assert torch.equal(scheduler.add_noise(tokens, 0.0), tokens)


@pytest.mark.parametrize("start, end", [(0.0, 0.3), (0.3, 0.3), (0.3, 0.8), (0.3, 1.0), (1.0, 1.0)])
def test_steps_lead_from_one_marginal_to_the_other(start, end):
    scheduler = make()
    states = torch.eye(WORDS + 1, dtype=torch.float64)
    want = between(start, end) if start < 1 else np.eye(WORDS + 1)
    assert want.min() > -1e-12
    np.testing.assert_allclose(scheduler.diffuse(states, start, end), want, atol=1e-12)
    likelihood = scheduler.likelihood(torch.arange(WORDS + 1), start, end)
    np.testing.assert_allclose(likelihood, want.T, atol=1e-12)


def test_alpha_falls_with_its_derivative():
    scheduler = make()
    times = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    step = 1e-6
    slope = (scheduler.alpha(times + step) - scheduler.alpha(times - step)) / (2 * step)
    torch.testing.assert_close(scheduler.alpha_derivative(times), slope, atol=1e-7, rtol=1e-6)
    assert (slope < 0).all()
    assert scheduler.alpha([0.0, 1.0]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("reverse_rule", ["marginal", "plug_in"])
def test_steps_back_are_bayes_rule_on_dense_matrices(reverse_rule):
    scheduler = make(reverse_rule=reverse_rule)
    scheduler.set_timesteps(timesteps=[0.7, 0.4])
    logits = torch.randn(1, WORDS + 1, WORDS + 1, generator=torch.Generator().manual_seed(2))
    sample = torch.arange(WORDS + 1).unsqueeze(0)
    probs = scheduler.reverse_probs(logits.double(), scheduler.timesteps[0], sample)[0]

    clean = torch.zeros(WORDS + 1, WORDS + 1, dtype=torch.float64)
    clean[:, :WORDS] = logits[0, :, :WORDS].double().softmax(dim=-1)
    for current in range(WORDS + 1):
        matrices = (between(0.4, 0.7), marginals(0.4), current)
        predicted = clean[current].numpy()
        if reverse_rule == "plug_in":
            want = bayes_posterior(*matrices, predicted)
        else:
            want = sum(
                predicted[word] * bayes_posterior(*matrices, np.eye(WORDS + 1)[word])
                for word in range(WORDS)
            )
        np.testing.assert_allclose(probs[current], want, atol=1e-6)


def test_a_run_leaves_no_mask():
    scheduler = make()
    scheduler.set_timesteps(5)
    sample = scheduler.prior((2, 200))
    for timestep in scheduler.timesteps:
        logits = torch.randn(2, 200, WORDS + 1)
        sample = scheduler.step(logits, timestep, sample).prev_sample
    assert set(sample.unique().tolist()) == set(range(WORDS))


def test_it_is_saved_and_refused_with_its_share(tmp_path):
    make().save_pretrained(tmp_path)
    loaded = D3PMHybridScheduler.from_pretrained(tmp_path)
    assert torch.equal(loaded.alpha(torch.tensor(0.3)), make().alpha(torch.tensor(0.3)))
    with pytest.raises(ValueError, match="`p_uniform` must be a number between 0 and 1, exclusive"):
        make(p_uniform=0.0)
    with pytest.raises(ValueError, match='`schedule` must be "linear" with `p_uniform`'):
        make(schedule="cosine")
    with pytest.raises(ValueError, match="hybrid noise"):
        D3PMUniformScheduler.from_pretrained(tmp_path)
