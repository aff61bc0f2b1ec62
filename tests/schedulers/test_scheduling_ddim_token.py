"""Laws of DDIM for tokens: marginals on dense matrices, exact output laws by enumeration.

Shapes: B batch, L length, V vocabulary size.
"""

import numpy as np
import pytest
import torch
from conftest import covering, make_denoiser, mostly_slow
from support.oracles import MarkovSource, alpha_by_definition, chi_square_passes, transition_matrix
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

from text_diffusers import (
    D3PMUniformScheduler,
    PredictorCorrectorUniformScheduler,
    TextDiffusionPipeline,
    TokenDDIMScheduler,
)
from text_diffusers.schedulers.noise_schedules import NOISE_SCHEDULES

V = 5
CLEAN = 2
ETAS = [0.0, 0.3, 1.0]
SOURCE = MarkovSource([0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], 2)


def step_matrix(scheduler, timestep):
    """(V, V) q(x_s | x_t, x_0 = CLEAN) as the scheduler has it."""
    logits = torch.full((1, V, V), -torch.inf, dtype=torch.float64).index_fill(
        2, torch.tensor(CLEAN), 0.0
    )
    return scheduler.reverse_probs(logits, timestep, torch.arange(V).unsqueeze(0))[0].numpy()


@pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))
@pytest.mark.parametrize("eta", ETAS)
def test_when_x0_is_known_every_step_leads_from_marginal_to_marginal(schedule, eta):
    scheduler, steps = TokenDDIMScheduler(V, schedule=schedule, eta=eta), 7
    scheduler.set_timesteps(steps)
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        matrix = step_matrix(scheduler, timestep)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
        assert matrix.min() > -1e-14
        noisy, cleaner = [
            transition_matrix("uniform", alpha_by_definition(schedule, 1 - i / steps), V)[CLEAN]
            for i in (index, index + 1)
        ]
        np.testing.assert_allclose(noisy @ matrix, cleaner, atol=1e-12)


def test_eta_zero_adds_no_noise_and_eta_one_forgets_the_current_token():
    still, fresh = TokenDDIMScheduler(V, eta=0), TokenDDIMScheduler(V, eta=1)
    for timestep in [0.75, 0.5]:
        still.set_timesteps(4), fresh.set_timesteps(4)
        matrix = step_matrix(still, timestep)
        elsewhere = ~np.eye(V, dtype=bool)
        elsewhere[:, CLEAN] = False
        np.testing.assert_allclose(matrix[elsewhere], 0, atol=1e-15)
        stays = (
            timestep - 0.25,
            timestep,
        )  # sigma_max = (1 - alpha_s) / (1 - alpha_t) with alpha = 1 - t
        np.testing.assert_allclose(matrix[0, 0], stays[0] / stays[1], atol=1e-6)
        matrix = step_matrix(fresh, timestep)
        np.testing.assert_allclose(matrix, np.tile(matrix[:1], (V, 1)), atol=1e-15)


def test_ancestral_sampling_is_no_member_of_the_family():
    base = D3PMUniformScheduler(V)
    for scheduler in (
        base,
        *(members := [TokenDDIMScheduler(V, eta=eta) for eta in np.linspace(0, 1, 101).tolist()]),
    ):
        scheduler.set_timesteps(4)
    ancestral = step_matrix(base, 0.5)
    assert min(np.abs(step_matrix(member, 0.5) - ancestral).max() for member in members) > 0.02


@pytest.mark.parametrize("eta, dense", covering(ETAS, [False, True]))
def test_steps_draw_from_the_reverse_distribution(eta, dense):
    scheduler = TokenDDIMScheduler(V, schedule="cosine", eta=eta, temperature=0.7)
    scheduler.set_timesteps(4)
    logits = torch.randn(
        1, V, V + 2, generator=torch.Generator().manual_seed(3)
    )  # ids from V on are ignored
    for timestep in scheduler.timesteps.tolist():
        assert_steps_follow_reverse_probs(
            scheduler, logits, timestep, torch.arange(V)[None], dense=dense
        )


@pytest.mark.parametrize("eta", ETAS)
def test_only_selected_positions_take_x0(eta):
    scheduler = TokenDDIMScheduler(V, eta=eta)
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(5)
    sample = torch.full((1, 20_000), 1)
    positions = scheduler.select(0.5, sample, generator)
    jump = 0.75 - (1 - eta) * (0.25 / 0.5) * 0.5  # alpha_s - sigma alpha_t
    chosen = int(positions.sum())
    assert chi_square_passes(np.array([chosen, 20_000 - chosen]), np.array([jump, 1 - jump]))
    certain = torch.full((chosen, V), -torch.inf).index_fill(1, torch.tensor(CLEAN), 0.0)
    after = scheduler.step(
        certain, 0.5, sample, positions=positions, generator=generator
    ).prev_sample
    assert (after[positions] == CLEAN).all()
    rest = np.bincount(after[~positions], minlength=V)
    stays = (1 - eta) * 0.5 / (1 - jump)
    want = np.full(V, (1 - stays) / V)
    want[1] += stays
    assert chi_square_passes(rest, want)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_one_token_follows_the_source_exactly_in_any_number_of_steps(eta, steps):
    source = MarkovSource([0.5, 0.3, 0.2], np.eye(3), 1)
    law = output_law(TokenDDIMScheduler(3, eta=eta, schedule="cosine"), source, steps)
    np.testing.assert_allclose(law, source.probs, atol=1e-12)


@pytest.mark.parametrize("eta", mostly_slow(ETAS, fast=[0.3]))
def test_sampling_has_the_enumerated_law_and_comes_closer_to_the_data_with_more_steps(eta):
    scheduler = TokenDDIMScheduler(3, eta=eta)
    law = output_law(scheduler, SOURCE, 5)
    assert chi_square_passes(counts_of(draw(scheduler, SOURCE, 5, rows=20_000), 3), law)
    divergences = [
        divergence(SOURCE, output_law(scheduler, SOURCE, steps)) for steps in (1, 2, 4, 8, 16)
    ]
    assert all(
        after < 0.6 * before for before, after in zip(divergences, divergences[1:], strict=False)
    )


@pytest.mark.parametrize(
    "scheduler_class, changes",
    [
        (D3PMUniformScheduler, {}),
        (TokenDDIMScheduler, {"eta": 0.5}),
        (PredictorCorrectorUniformScheduler, {"corrector_steps": 2}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_leave_one_out_prediction_under_plug_in_writes_what_the_posterior_writes_under_marginal(
    scheduler_class, changes
):
    laws = [
        output_law(scheduler_class(3, reverse_rule=rule, **changes), SOURCE, 6)
        for rule in ("marginal", "plug_in")
    ]
    np.testing.assert_allclose(*laws, atol=1e-12)


def test_the_last_step_takes_x0_everywhere():
    scheduler = TokenDDIMScheduler(3)
    scheduler.set_timesteps(5)
    last = float(scheduler.timesteps[-1])
    sample = scheduler.prior((50, 2), torch.Generator().manual_seed(0))
    assert scheduler.select(last, sample).all()
    certain = torch.nn.functional.one_hot(torch.ones(50, 2).long(), 3) * 1000.0
    assert (scheduler.step(certain, last, sample).prev_sample == 1).all()


# The contract


@pytest.mark.parametrize("eta", ETAS)
def test_inputs_are_kept_and_a_row_does_not_depend_on_its_peers(eta):
    assert_inputs_are_kept_and_rows_are_their_own(lambda: TokenDDIMScheduler(V, eta=eta), V)


def test_config_survives_saving_and_swapping(tmp_path):
    base = D3PMUniformScheduler(V, schedule="cosine", reverse_rule="plug_in", top_k=3)
    assert_config_travels(TokenDDIMScheduler(V, eta=0.3), base, tmp_path, eta=0.3)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_through_the_pipeline_given_tokens_stay(tokenizer, eta):
    scheduler = TokenDDIMScheduler(tokenizer.pad_token_id, eta=eta)
    pipe = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer, time_conditioning=True), scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    assert_pipeline_keeps_what_is_given(pipe, tokenizer)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eta": -0.1}, r"`eta` must be a number in \[0, 1\], got -0.1"),
        ({"eta": "0"}, "`eta`"),
        ({"vocab_size": 1}, "`vocab_size`"),
        ({"reverse_rule": "both"}, "`reverse_rule`"),
        ({"top_p": 0.0}, "`top_p`"),
    ],
)
def test_wrong_config_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenDDIMScheduler(**({"vocab_size": V} | changes))


def test_wrong_calls_are_refused_by_name():
    scheduler = TokenDDIMScheduler(V)
    scheduler.set_timesteps(3)
    sample = scheduler.prior((1, 3))
    with pytest.raises(ValueError, match="one of the 3 `timesteps`"):
        scheduler.select(0.123, sample)
    with pytest.raises(ValueError, match="at least `num_tokens`=5 wide, got 4"):
        scheduler.step(torch.zeros(1, 3, 4), 1.0, sample)
    with pytest.raises(ValueError, match="one row a selected position"):
        scheduler.step(torch.zeros(1, V), 1.0, sample, positions=torch.ones(1, 3, dtype=torch.bool))
