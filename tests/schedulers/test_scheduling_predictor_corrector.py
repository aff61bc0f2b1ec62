"""Laws of predictor-corrector sampling: what a corrector leaves invariant, and what it brings, by enumeration.

Shapes: B batch, L length, V vocabulary size, K data tokens of a source, S = V^L states.
"""

import numpy as np
import pytest
import torch
from conftest import covering, make_denoiser
from support.oracles import MarkovSource, TableDenoiser, alpha_by_definition, chi_square_passes
from support.token_chains import (
    all_states,
    assert_config_travels,
    assert_inputs_are_kept_and_rows_are_their_own,
    assert_pipeline_keeps_what_is_given,
    assert_steps_follow_reverse_probs,
    counts_of,
    divergence,
    draw,
    joint_kernel,
    noisy_law,
    output_law,
    predictions_at,
    step_kernel,
    take_step,
)

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    PredictorCorrectorAbsorbingScheduler,
    PredictorCorrectorUniformScheduler,
    TextDiffusionPipeline,
)
from text_diffusers.schedulers.noise_schedules import NOISE_SCHEDULES

V = 5
SOURCE = MarkovSource.golden()
K = SOURCE.num_tokens
CLASSES = {
    "absorbing": (PredictorCorrectorAbsorbingScheduler, D3PMAbsorbingScheduler),
    "uniform": (PredictorCorrectorUniformScheduler, D3PMUniformScheduler),
}
kernels = pytest.mark.parametrize("kernel", ["absorbing", "uniform"])


def make(kernel, token_id=V, **changes):
    """`token_id`: how many tokens there are, the mask included."""
    return CLASSES[kernel][0](token_id - (kernel == "absorbing"), **changes)


def for_source(kernel, **changes):
    return CLASSES[kernel][0](K, **changes)


def at_corrector(scheduler, length, number=1, predictors=4):
    """`scheduler` with `number` predictor steps behind it and a corrector ahead, and the time of that."""
    correctors = scheduler.config.corrector_steps
    scheduler.set_timesteps(predictors + correctors * (predictors - 1))
    done = 1 + (number - 1) * (1 + correctors)
    for timestep in scheduler.timesteps[:done].tolist():
        take_step(scheduler, timestep, torch.zeros(1, length, dtype=torch.long))
    return float(scheduler.timesteps[done])


# The order of steps


@pytest.mark.parametrize("correctors", [0, 1, 2, 5])
@pytest.mark.parametrize("calls", [1, 2, 3, 6, 7, 20])
@kernels
def test_every_model_call_is_one_of_num_inference_steps(kernel, calls, correctors):
    scheduler = make(kernel, corrector_steps=correctors)
    scheduler.set_timesteps(calls)
    times = scheduler.timesteps.tolist()
    assert len(times) == calls == scheduler.num_inference_steps and times[0] == 1 and times[-1] > 0
    assert times == sorted(times, reverse=True)
    visits = [times.count(time) for time in dict.fromkeys(times)]
    predictors = len(visits)
    np.testing.assert_allclose(
        list(dict.fromkeys(times)), [1 - i / predictors for i in range(predictors)], atol=1e-6
    )
    assert visits[0] == 1 and all(
        count == 1 + correctors for count in visits[2:]
    )  # nothing corrects pure noise
    assert predictors == 1 or 1 <= visits[1] <= 1 + correctors


@kernels
def test_steps_are_taken_in_order_and_anew_after_set_timesteps(kernel):
    scheduler = make(kernel)
    scheduler.set_timesteps(5)
    sample = scheduler.prior((2, 3))
    with pytest.raises(ValueError, match="number 0 of `timesteps`, 1, got 0.5"):
        scheduler.select(0.5, sample)
    for timestep in scheduler.timesteps.tolist():
        take_step(scheduler, timestep, sample)
    with pytest.raises(ValueError, match="follow a new `set_timesteps`"):
        take_step(scheduler, 1.0, sample)
    scheduler.set_timesteps(5)
    take_step(scheduler, 1.0, sample)


@kernels
def test_trained_steps_limit_the_predictor_steps(kernel):
    scheduler = make(kernel, num_train_timesteps=5, corrector_steps=2)
    scheduler.set_timesteps(13)
    np.testing.assert_allclose(
        sorted(set(scheduler.timesteps.tolist())), [0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-6
    )
    for wrong in (14, 0, 2.5):
        with pytest.raises(
            ValueError, match=f"`num_inference_steps` must be between 1 and 13, .*=5, got {wrong}"
        ):
            scheduler.set_timesteps(wrong)


@kernels
def test_without_correctors_the_tokens_are_those_of_ancestral_sampling(kernel):
    ancestral = draw(CLASSES[kernel][1](K), SOURCE, 10, rows=200)
    assert torch.equal(draw(for_source(kernel, corrector_steps=0), SOURCE, 10, rows=200), ancestral)
    assert not torch.equal(
        draw(for_source(kernel, corrector_steps=1), SOURCE, 19, rows=200), ancestral
    )


# Invariance


@pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))
@pytest.mark.parametrize("number", [1, 2, 3])
@kernels
def test_a_corrector_leaves_the_law_of_one_token_as_it_is(kernel, schedule, number):
    source = MarkovSource([0.5, 0.3, 0.2], np.eye(3), 1)
    scheduler = CLASSES[kernel][0](3, schedule=schedule, corrector_length=2.0)
    timestep = at_corrector(scheduler, 1, number)
    law = noisy_law(source, kernel, alpha_by_definition(schedule, 1 - number / 4))
    matrix = step_kernel(scheduler, source, timestep)
    np.testing.assert_allclose(law @ matrix, law, atol=1e-12)
    assert np.abs(matrix - np.eye(len(law))).max() > 0.01  # it does something


@kernels
def test_the_law_of_several_tokens_changes_by_the_square_of_the_length(kernel):
    law, changes = noisy_law(SOURCE, kernel, 0.5), []
    for length in (0.2, 0.1, 0.05, 0.025):
        scheduler = for_source(kernel, corrector_length=length)
        timestep = at_corrector(scheduler, SOURCE.length, number=2)
        changes.append(np.abs(law @ step_kernel(scheduler, SOURCE, timestep) - law).sum() / 2)
    ratios = np.array(changes[:-1]) / np.array(changes[1:])
    assert changes[0] < 2e-3 and ratios[-1] == pytest.approx(4, rel=0.05)


def one_position_kernel(scheduler, timestep, position):
    """(S, S) of a corrector when all positions but one are put back."""
    states = all_states(K, SOURCE.length)
    logits = predictions_at(scheduler, SOURCE)(timestep)[tuple(states.T)]
    by_position = scheduler.reverse_probs(logits, timestep, states).clone()
    for other in set(range(SOURCE.length)) - {position}:
        by_position[:, other] = torch.nn.functional.one_hot(states[:, other], K)
    return joint_kernel(by_position, states)


@pytest.mark.parametrize("position", range(SOURCE.length))
@pytest.mark.parametrize("number", [1, 2, 3])
def test_gibbs_at_one_position_draws_the_exact_conditional_and_keeps_the_law(number, position):
    scheduler = for_source("uniform", corrector_length=100.0)  # every position is redrawn
    timestep = at_corrector(scheduler, SOURCE.length, number)
    law = noisy_law(SOURCE, "uniform", 1 - timestep)
    kernel = one_position_kernel(scheduler, timestep, position)
    np.testing.assert_allclose(law @ kernel, law, atol=1e-12)
    joint = law.reshape((K,) * SOURCE.length)
    conditional = joint / joint.sum(
        axis=position, keepdims=True
    )  # q(x_l | the others) from the joint itself
    got = (
        kernel.sum(axis=0).reshape(joint.shape) / K
    )  # K tokens lead to each state, all with the same probability
    np.testing.assert_allclose(got, conditional, atol=1e-9)


def test_gibbs_at_all_positions_at_once_does_not_keep_the_law():
    scheduler = for_source("uniform", corrector_length=100.0)
    timestep = at_corrector(scheduler, SOURCE.length, 3)
    law = noisy_law(SOURCE, "uniform", 1 - timestep)
    assert np.abs(law @ step_kernel(scheduler, SOURCE, timestep) - law).sum() > 0.05


@kernels
def test_real_corrector_steps_on_noised_data_have_the_computed_law(kernel):
    generator = torch.Generator().manual_seed(9)
    scheduler = for_source(kernel, corrector_length=1.0)
    timestep = at_corrector(scheduler, SOURCE.length, 2)
    chosen = torch.multinomial(
        torch.tensor(SOURCE.probs), 20_000, replacement=True, generator=generator
    )
    noisy = scheduler.add_noise(torch.tensor(SOURCE.sequences)[chosen], timestep, generator)
    size = K + (kernel == "absorbing")
    logits = TableDenoiser(predictions_at(scheduler, SOURCE), size)(noisy, timestep).logits
    want = noisy_law(SOURCE, kernel, 0.5) @ step_kernel(scheduler, SOURCE, timestep)
    corrected = scheduler.step(logits, timestep, noisy, generator=generator).prev_sample
    assert chi_square_passes(counts_of(corrected, size), want)
    assert not chi_square_passes(
        counts_of(corrected, size), output_law(for_source(kernel), SOURCE, 4)
    )


def test_real_gibbs_steps_at_one_random_position_a_row_keep_the_law():
    generator = torch.Generator().manual_seed(10)
    scheduler = for_source("uniform", corrector_length=100.0)
    timestep = at_corrector(scheduler, SOURCE.length, 3)
    chosen = torch.multinomial(
        torch.tensor(SOURCE.probs), 20_000, replacement=True, generator=generator
    )
    noisy = scheduler.add_noise(torch.tensor(SOURCE.sequences)[chosen], timestep, generator)
    logits = TableDenoiser(predictions_at(scheduler, SOURCE), K)(noisy, timestep).logits
    redrawn = scheduler.step(logits, timestep, noisy, generator=generator).prev_sample
    one = torch.nn.functional.one_hot(
        torch.randint(SOURCE.length, (20_000,), generator=generator), SOURCE.length
    )
    corrected = torch.where(one.bool(), redrawn, noisy)
    assert (corrected != noisy).any(dim=1).float().mean() > 0.2
    assert chi_square_passes(counts_of(corrected, K), noisy_law(SOURCE, "uniform", 1 - timestep))


# Sampling


@pytest.mark.parametrize("kernel, dense", covering(["absorbing", "uniform"], [False, True]))
def test_steps_draw_from_the_reverse_distribution(kernel, dense):
    scheduler = make(kernel, schedule="cosine", corrector_length=0.8, top_p=0.95)
    scheduler.set_timesteps(7)
    logits = torch.randn(1, V, V, generator=torch.Generator().manual_seed(3))
    for timestep in scheduler.timesteps.tolist():
        assert_steps_follow_reverse_probs(
            scheduler, logits, timestep, torch.arange(V)[None], dense=dense
        )


@kernels
def test_sampling_has_the_enumerated_law(kernel):
    scheduler = for_source(kernel, corrector_steps=2)
    size = K + (kernel == "absorbing")
    law = output_law(scheduler, SOURCE, 9)
    assert chi_square_passes(counts_of(draw(scheduler, SOURCE, 9, rows=20_000), size), law)


@kernels
def test_correctors_bring_the_output_closer_to_the_data(kernel):
    """At four predictor steps, with the exact denoiser; in nats a sequence."""
    divergences = []
    for correctors in (0, 1, 4, 16):
        scheduler = for_source(kernel, corrector_steps=correctors, corrector_length=0.25)
        divergences.append(divergence(SOURCE, output_law(scheduler, SOURCE, 4 + 3 * correctors)))
    ancestral = divergence(SOURCE, output_law(CLASSES[kernel][1](K), SOURCE, 4))
    assert divergences[0] == pytest.approx(ancestral, rel=1e-12)
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[-1] < {"absorbing": 0.2, "uniform": 0.65}[kernel] * ancestral


@pytest.mark.parametrize("calls", [1, 2, 8])
def test_no_mask_is_left_even_if_the_logits_favour_it(calls):
    scheduler = make("absorbing", corrector_steps=2, corrector_length=3.0)
    scheduler.set_timesteps(calls)
    generator = torch.Generator().manual_seed(0)
    tokens, logits = scheduler.prior((64, 8)), torch.zeros(64, 8, V)
    logits[..., V - 1] = 1e4
    for timestep in scheduler.timesteps:
        tokens = scheduler.step(logits, timestep, tokens, generator=generator).prev_sample
    assert not (tokens == V - 1).any()


# The contract


@kernels
def test_inputs_are_kept_and_a_row_does_not_depend_on_its_peers(kernel):
    assert_inputs_are_kept_and_rows_are_their_own(lambda: make(kernel, corrector_steps=2), V)


@kernels
def test_config_survives_saving_and_swapping(kernel, tmp_path):
    base = CLASSES[kernel][1](V, schedule="cosine", top_k=3)
    own = {"corrector_steps": 2, "corrector_length": 0.5}
    assert_config_travels(make(kernel, **own), base, tmp_path, **own)


@kernels
def test_through_the_pipeline_given_tokens_stay_and_no_mask_is_left(pipe, tokenizer, kernel):
    if kernel == "absorbing":
        pipe.scheduler = PredictorCorrectorAbsorbingScheduler.from_config(
            pipe.scheduler.config, corrector_steps=2
        )
    else:
        scheduler = PredictorCorrectorUniformScheduler(tokenizer.pad_token_id, corrector_steps=2)
        pipe = TextDiffusionPipeline(
            tokenizer, make_denoiser(tokenizer, time_conditioning=True), scheduler
        )
        pipe.set_progress_bar_config(disable=True)
    assert_pipeline_keeps_what_is_given(pipe, tokenizer)


@kernels
def test_the_model_is_told_the_time_of_the_sample_it_sees(kernel, tokenizer):
    told = []
    ids = (tokenizer.mask_token_id,) if kernel == "absorbing" else (tokenizer.pad_token_id,)
    scheduler = CLASSES[kernel][0](*ids, corrector_steps=1)
    pipe = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer, time_conditioning=True), scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.denoiser.register_forward_pre_hook(lambda _, args: told.append(args[1].unique().tolist()))
    pipe(num_return_sequences=16, num_inference_steps=7, generator=torch.Generator().manual_seed(0))
    assert told == [[time] for time in scheduler.timesteps.tolist()] and len(told) == 7


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"corrector_steps": -1}, "`corrector_steps` must be an integer of at least 0, got -1"),
        ({"corrector_steps": 1.5}, "`corrector_steps`"),
        ({"corrector_length": 0.0}, "`corrector_length` must be a number above 0, got 0.0"),
        ({"corrector_length": float("inf")}, "`corrector_length`"),
        ({"temperature": -1.0}, "`temperature`"),
    ],
)
@kernels
def test_wrong_config_values_are_refused_by_name(kernel, changes, message):
    with pytest.raises(ValueError, match=message):
        make(kernel, **changes)


def test_wrong_ids_and_rules_are_refused_by_name():
    with pytest.raises(ValueError, match="`mask_token_id`"):
        PredictorCorrectorAbsorbingScheduler(-1)
    with pytest.raises(ValueError, match="`vocab_size`"):
        PredictorCorrectorUniformScheduler(1)
    with pytest.raises(ValueError, match="`reverse_rule`"):
        PredictorCorrectorUniformScheduler(5, reverse_rule="both")
