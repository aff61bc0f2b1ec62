"""Laws of ReMDM: marginals on dense matrices, exact output laws by enumeration, confidences by hand.

Shapes: B batch, L length, V vocabulary size.
"""

import numpy as np
import pytest
import torch
from conftest import slow
from support.oracles import (
    MarkovSource,
    alpha_by_definition,
    chi_square_passes,
    float64,
    transition_matrix,
)
from support.token_chains import (
    assert_config_travels,
    assert_inputs_are_kept_and_rows_are_their_own,
    assert_pipeline_keeps_what_is_given,
    assert_steps_follow_reverse_probs,
    counts_of,
    divergence,
    draw,
    output_law,
)

from text_diffusers import D3PMAbsorbingScheduler, ReMDMScheduler
from text_diffusers.schedulers.noise_schedules import NOISE_SCHEDULES

V = 5
MASK = V - 1
SIGMAS = [
    {"eta": 0.0},
    {"eta": 0.1},
    {"eta": 1.0},
    {"remasking": "rescale", "eta": 0.4},
    {"remasking": "rescale", "eta": 1.0},
    {"eta": 0.5, "start": 0.7, "stop": 0.3},
]


def known(token, vocab_size=V):
    """(1, V, V) logits that are certain of x_0, the same at V positions."""
    return torch.full((1, vocab_size, vocab_size), -torch.inf).index_fill(
        2, torch.tensor(token), 0.0
    )


@pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))
@pytest.mark.parametrize("settings", SIGMAS, ids=str)
def test_when_x0_is_known_every_step_leads_from_marginal_to_marginal(schedule, settings):
    scheduler, steps, clean = ReMDMScheduler(MASK, schedule=schedule, **settings), 7, 2
    scheduler.set_timesteps(steps)
    every_token = torch.arange(V).unsqueeze(0)
    remasks = 0
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        matrix = scheduler.reverse_probs(known(clean).double(), timestep, every_token)[
            0
        ].numpy()  # (V, V)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
        assert matrix.min() > -1e-14
        noisy, cleaner = [
            transition_matrix("absorbing", alpha_by_definition(schedule, 1 - i / steps), V, MASK)[
                clean
            ]
            for i in (index, index + 1)
        ]
        np.testing.assert_allclose(noisy @ matrix, cleaner, atol=1e-12)
        remasks += matrix[clean, MASK] > 1e-6
    assert (remasks > 0) == (settings["eta"] > 0)


def test_sigma_is_the_papers():
    cap, rescale = ReMDMScheduler(MASK, eta=0.2), ReMDMScheduler(MASK, remasking="rescale", eta=0.2)
    for scheduler, want in ((cap, [0.2, 0.2, 0.2, 0.0]), (rescale, [0.2, 0.2, 0.1, 0.0])):
        scheduler.set_timesteps(
            4
        )  # alpha 0, 1/4, 1/2, 3/4, 1: sigma_max is 1, min(1, 2), (1/4) / (1/2), 0
        probs = [
            scheduler.reverse_probs(known(0).double(), t, torch.arange(V)[None])
            for t in scheduler.timesteps
        ]
        np.testing.assert_allclose([p[0, 0, MASK] for p in probs], want, atol=1e-12)


def test_the_window_switches_remasking_on_and_off():
    scheduler = ReMDMScheduler(MASK, eta=0.3, start=0.8, stop=0.4)
    scheduler.set_timesteps(10)
    revealed = torch.arange(V).unsqueeze(0)
    on = [
        float(scheduler.reverse_probs(known(0), t, revealed)[0, 0, MASK]) > 0
        for t in scheduler.timesteps
    ]
    np.testing.assert_array_equal(
        on, [False, False, True, True, True, True, False, False, False, False]
    )


@pytest.mark.parametrize("remasking", ["cap", "rescale", "confidence"])
def test_sigma_zero_draws_the_tokens_of_ancestral_sampling(remasking):
    source = MarkovSource.golden()
    base = draw(D3PMAbsorbingScheduler(source.num_tokens), source, 12, rows=200)
    assert torch.equal(
        draw(ReMDMScheduler(source.num_tokens, remasking=remasking, eta=0), source, 12, rows=200),
        base,
    )
    window = ReMDMScheduler(source.num_tokens, remasking=remasking, eta=1, start=0.5, stop=0.5)
    assert torch.equal(draw(window, source, 12, rows=200), base)
    assert not torch.equal(
        draw(ReMDMScheduler(source.num_tokens, remasking=remasking, eta=1), source, 12, rows=200),
        base,
    )


@pytest.mark.parametrize("dense", [False, True], ids=["selected", "dense"])
@pytest.mark.parametrize("remasking", ["cap", "rescale"])
def test_steps_draw_from_the_reverse_distribution(remasking, dense):
    scheduler = ReMDMScheduler(MASK, schedule="cosine", remasking=remasking, eta=0.3, top_p=0.9)
    scheduler.set_timesteps(4)
    logits = torch.randn(1, V, V, generator=torch.Generator().manual_seed(3))
    for timestep in scheduler.timesteps.tolist():
        assert_steps_follow_reverse_probs(
            scheduler, logits, timestep, torch.arange(V)[None], dense=dense
        )


@pytest.mark.parametrize(
    "settings", [{"eta": 0.3}, slow({"remasking": "rescale", "eta": 1.0})], ids=str
)
def test_sampling_has_the_enumerated_law_and_comes_closer_to_the_data_with_more_steps(settings):
    source = MarkovSource.golden()
    size = source.num_tokens + 1
    scheduler = ReMDMScheduler(source.num_tokens, **settings)
    law = output_law(scheduler, source, 5)
    assert chi_square_passes(counts_of(draw(scheduler, source, 5, rows=20_000), size), law)
    divergences = [
        divergence(source, output_law(scheduler, source, steps)) for steps in (1, 2, 4, 8, 16, 32)
    ]
    assert all(
        after < 0.75 * before for before, after in zip(divergences, divergences[1:], strict=False)
    )
    assert divergences[-1] < 0.006


@pytest.mark.parametrize("remasking", ["cap", "rescale", "confidence"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_mask_is_left_even_if_the_logits_favour_it(remasking, steps):
    scheduler = ReMDMScheduler(MASK, remasking=remasking, eta=1.0, schedule="cosine")
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    tokens, logits = scheduler.prior((64, 8)), torch.zeros(64, 8, V)
    logits[..., MASK] = 1e4
    masks = []
    for timestep in scheduler.timesteps:
        after = scheduler.step(logits, timestep, tokens, generator=generator).prev_sample
        masks.append(((tokens != MASK) & (after == MASK)).any())
        tokens = after
    assert not (tokens == MASK).any()
    assert any(masks) == (steps > 2)  # alpha is 0 in the first step and sigma_max is 0 in the last


# Confidence


def confident(steps=4, eta=1.0):
    """After one step of 20,000 rows: positions 0 and 1 written with confidence .9 and .3, 2 given, 3 masked."""
    scheduler = ReMDMScheduler(MASK, remasking="confidence", eta=eta, temperature=0.0)
    scheduler.set_timesteps(steps)
    rows = 20_000
    sample = torch.tensor([[MASK, MASK, 1, MASK]]).expand(rows, 4)
    positions = torch.tensor([[True, True, False, False]]).expand(rows, 4)
    probs = float64(
        [[0.9, 0.05, 0.03, 0.02, 0.5], [0.3, 0.25, 0.25, 0.2, 0.5]]
    )  # some mass on the mask, too
    logits = probs.log().repeat(rows, 1)
    sample = scheduler.step(logits, 1.0, sample, positions=positions).prev_sample
    assert (sample == torch.tensor([0, 0, 1, MASK])).all()
    return scheduler, sample


def test_confidence_shares_sigma_by_a_softmax_of_what_the_denoiser_believed():
    scheduler, sample = confident()
    timestep, logits = 0.75, torch.zeros(1, 4, V)
    sigma_max = 1.0  # min(1, (1 - 1/2) / (1/4))
    share = np.exp([-0.9, -0.3]) / np.exp([-0.9, -0.3]).sum()
    want = [sigma_max * share[0], sigma_max * share[1], 0.0]
    probs = scheduler.reverse_probs(logits.expand(len(sample), -1, -1), timestep, sample)
    np.testing.assert_allclose(probs[0, :3, MASK], want, atol=1e-6)
    np.testing.assert_allclose(
        probs[0, 3, MASK], 1 - (0.5 - 0.25) / (1 - 0.25), atol=1e-6
    )  # as without remasking
    generator = torch.Generator().manual_seed(1)
    positions = scheduler.select(timestep, sample, generator)
    assert not positions[:, :3].any()
    after = scheduler.step(
        torch.zeros(int(positions.sum()), V),
        timestep,
        sample,
        positions=positions,
        generator=generator,
    ).prev_sample
    for position in range(4):
        counts = np.bincount(after[:, position], minlength=V)
        allowed = probs[0, position].numpy()
        if position == 3:  # greedy: all that is revealed is token 0
            allowed = np.array([1 - allowed[MASK], 0, 0, 0, allowed[MASK]])
        assert chi_square_passes(counts, allowed)
    # A token that was masked has no confidence any more: the other's share is then all of sigma.
    single = (after[:, 0] == MASK) & (after[:, 1] != MASK) & (after[:, 3] == MASK)
    later = scheduler.reverse_probs(logits.expand(len(after), -1, -1), 0.5, after)[single]
    np.testing.assert_allclose(later[:, 1, MASK], (1 - 0.75) / 0.5, atol=1e-6)
    np.testing.assert_allclose(later[:, 2, MASK], 0, atol=1e-12)


def test_confidences_are_forgotten_by_set_timesteps_and_belong_to_one_shape():
    scheduler, sample = confident()
    with pytest.raises(
        ValueError,
        match=r"keep its shape \(20000, 4\) until the next `set_timesteps`, got \(1, 4\)",
    ):
        scheduler.select(0.75, sample[:1])
    scheduler.set_timesteps(4)
    probs = scheduler.reverse_probs(torch.zeros(1, 4, V), 0.75, sample[:1])
    assert (probs[0, :3, MASK] == 0).all()


def test_confidence_leaves_fewer_tokens_than_alpha_says():
    """Masks are revealed as if none were made: of a single known token alpha_s - sigma alpha_t is revealed at s."""
    scheduler = ReMDMScheduler(MASK, remasking="confidence", eta=0.5)
    scheduler.set_timesteps(4)
    rows, generator = 20_000, torch.Generator().manual_seed(2)
    sample, logits = scheduler.prior((rows, 1)), known(0)[:, :1].expand(rows, 1, V)
    for timestep in (1.0, 0.75):
        sample = scheduler.step(logits, timestep, sample, generator=generator).prev_sample
    revealed = 0.25 * (1 - 0.5) + 0.75 * (0.5 - 0.25) / (1 - 0.25)
    counts = np.array([(sample == 0).sum(), (sample == MASK).sum()])
    assert revealed < 0.5 and chi_square_passes(counts, np.array([revealed, 1 - revealed]))


# The contract


@pytest.mark.parametrize("remasking", ["cap", "rescale", "confidence"])
def test_inputs_are_kept_and_a_row_does_not_depend_on_its_peers(remasking):
    assert_inputs_are_kept_and_rows_are_their_own(
        lambda: ReMDMScheduler(MASK, remasking=remasking, eta=0.5), V
    )


def test_config_survives_saving_and_swapping(tmp_path):
    own = {"remasking": "rescale", "eta": 0.3, "start": 0.9, "stop": 0.1}
    base = D3PMAbsorbingScheduler(MASK, schedule="cosine", top_k=3)
    assert_config_travels(ReMDMScheduler(MASK, **own), base, tmp_path, **own)


@pytest.mark.parametrize("remasking", ["cap", "rescale", "confidence"])
def test_through_the_pipeline_given_tokens_stay_and_no_mask_is_left(pipe, tokenizer, remasking):
    pipe.scheduler = ReMDMScheduler.from_config(pipe.scheduler.config, remasking=remasking, eta=0.5)
    assert_pipeline_keeps_what_is_given(pipe, tokenizer)


def test_the_pipeline_settles_no_row_at_an_end_that_may_still_be_masked(pipe, tokenizer):
    """A denoiser that believes in [EOS] while there is much noise and in a letter later: the ends are written over."""
    letter, eos = tokenizer("z")["input_ids"][0], tokenizer.eos_token_id

    def believe(_, args, output):
        output.logits = torch.zeros_like(output.logits)
        output.logits[:, eos if float(args[1][0]) > 0.5 else letter] = 100.0
        return output

    pipe.denoiser.register_forward_hook(believe)
    pipe.scheduler = ReMDMScheduler(tokenizer.mask_token_id, eta=1.0)
    settings = {"num_return_sequences": 64, "max_new_tokens": 6, "num_inference_steps": 8}
    output = pipe(**settings, return_history=True, generator=torch.Generator().manual_seed(0))
    early, last = output.history[4][:, 1] == eos, output.history[-1][:, 1]
    assert early.sum() > 10 and (last[early] == letter).float().mean() > 0.5
    assert not (output.history[-1] == tokenizer.mask_token_id).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"remasking": "loop"}, r"`remasking` must be one of cap, rescale, confidence, got 'loop'"),
        ({"eta": 1.5}, r"`eta` must be a number in \[0, 1\], got 1.5"),
        ({"eta": float("nan")}, "`eta`"),
        ({"start": 1.2}, "`start` must be"),
        ({"start": 0.4, "stop": 0.5}, r"`stop` must be a number in \[0, `start`=0.4\], got 0.5"),
        ({"mask_token_id": -1}, "`mask_token_id`"),
        ({"temperature": -1.0}, "`temperature`"),
    ],
)
def test_wrong_config_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ReMDMScheduler(**({"mask_token_id": MASK} | changes))
