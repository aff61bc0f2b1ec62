"""Laws of the training loop: what a step is does not depend on restarts, micro-batches or processes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from text_diffusers.common.training_randomness import log_uniform_times, row_noise, uniform_times
from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.runtime import ThreadTuner

ROOT = Path(__file__).parent.parent.parent


def weights(one):
    return {name: p.detach().clone() for name, p in one.state.parameters.items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_continues_bit_for_bit(make_loop, stop):
    straight = make_loop("straight")
    losses = straight.run()
    broken = make_loop("broken", checkpointing_steps=stop)
    first = []
    while broken.step < stop:
        first.append(broken.train_step()[0])
        broken.step += 1
    broken.save()
    resumed = make_loop("broken", resume_from_checkpoint="latest")
    second = resumed.run()
    assert first + second == losses
    assert_equal(weights(resumed), weights(straight))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            resumed.state.ema.shadow_params, straight.state.ema.shadow_params, strict=True
        )
    )


def test_a_checkpoint_is_safetensors_and_json_and_only_the_newest_are_kept(make_loop):
    one = make_loop(checkpointing_steps=2, checkpoints_total_limit=2)
    one.run()
    folders = sorted(one.checkpoint_folder.iterdir())
    assert [folder.name for folder in folders] == ["step-00000006", "step-00000008"]
    assert {file.suffix for folder in folders for file in folder.iterdir()} == {
        ".safetensors",
        ".json",
    }


def test_resuming_what_is_not_there_is_refused(make_loop):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        make_loop(resume_from_checkpoint="latest").run()


def test_accumulation_does_not_change_the_loss_or_the_weights(make_loop, tokenizer):
    sizes = {"max_train_steps": 4, "dropout": 0.0}
    whole = make_loop("whole", train_batch_size=16, gradient_accumulation_steps=1, **sizes)
    parts = make_loop("parts", train_batch_size=4, gradient_accumulation_steps=4, **sizes)
    np.testing.assert_allclose(whole.run(), parts.run(), rtol=1e-5)
    for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


def test_times_are_stratified_and_noise_is_a_function_of_seed_step_and_row():
    uniform, generators = row_noise(seed=3, step=7, num_rows=64)
    assert sorted((uniform * 64).long().tolist()) == list(range(64))
    again, others = row_noise(seed=3, step=7, num_rows=64)
    assert torch.equal(uniform, again)
    draws = [torch.rand(1, generator=g).item() for g in generators]
    assert draws == [torch.rand(1, generator=g).item() for g in others] and len(set(draws)) == 64
    firsts = {row_noise(seed, step, 64)[0][0].item() for seed in range(20) for step in range(20)}
    assert len(firsts) == 400  # every seed and every step has noise of its own
    spread = [row_noise(0, step, 16)[0].mean().item() for step in range(400)]
    assert np.std(spread) < 0.5 * np.sqrt(
        1 / 12 / 16
    )  # independent times would have the right-hand side


def test_log_uniform_times_average_every_loss_as_uniform_ones_do():
    first, fine = 0.02, (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for loss in (lambda t: t**2, lambda t: 1 / t, torch.cos):
        plain, ones = uniform_times(fine, first)
        want = (loss(plain.clamp(min=first)) * ones).mean()
        times, weights = log_uniform_times(fine, first)
        torch.testing.assert_close((loss(times) * weights).mean(), want, rtol=1e-4, atol=0)
    times, weights = log_uniform_times(fine, first)
    torch.testing.assert_close(weights / times, torch.full_like(times, 1 - np.log(first)))
    assert times.min() == first and times.max() <= 1


def test_training_learns_and_the_learning_rate_warms_up_and_falls_to_zero(make_loop):
    one = make_loop(max_train_steps=60, learning_rate=3e-3, lr_warmup_steps=10)
    rates = []
    step = one.train_step

    def recorded():
        rates.append(one.learning_rate())
        return step()

    one.train_step = recorded
    losses = one.run()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert rates[0] == pytest.approx(3e-4, rel=0.01) and max(rates) < 3e-3 and rates[-1] < 1e-5


@pytest.mark.parametrize("seconds, num_steps", [(6.0, 10), (0.6, 99)])
def test_a_warm_up_by_the_clock_takes_a_tenth_of_the_minutes_or_100_steps(
    make_loop, seconds, num_steps
):
    """Of ten minutes: one, which is ten slow steps, or the 100 quick ones that come sooner."""
    one = make_loop(max_train_steps=10**6, max_train_minutes=10, learning_rate=3e-3)
    one.config.lr_warmup_steps = None
    shares = []
    for step in range(120):
        one.step = step
        one.elapsed = step * seconds
        cosine = 0.5 * (1 + np.cos(np.pi * one.elapsed / 600))
        shares.append(one.learning_rate() / (3e-3 * cosine) if cosine > 1e-9 else 1.0)
    assert shares[0] == pytest.approx(0.01)
    assert shares[: num_steps + 1] == sorted(shares[: num_steps + 1])
    assert shares[num_steps - 1] < 0.995
    np.testing.assert_allclose(shares[num_steps:100], 1.0)


def test_a_loss_that_is_not_finite_stops_before_the_update(make_loop):
    one = make_loop()
    one.train_step()
    with torch.no_grad():
        next(one.unwrapped.parameters())[0, 0] = float("inf")
    before = weights(one)
    with pytest.raises(FloatingPointError, match="Step 0: loss .* weights were not changed"):
        one.train_step()
    assert_equal(weights(one), before)


def test_a_time_limit_ends_the_run_with_the_schedule_finished(make_loop):
    one = make_loop(max_train_steps=10**6, max_train_minutes=0.02)
    losses = one.run()
    assert 0 < len(losses) < 10**5 and one.progress == 1 and one.learning_rate() < 1e-9


def test_the_thread_tuner_ends_its_trials_on_the_fastest_number():
    before = torch.get_num_threads()
    tuner = ThreadTuner(most=4)
    used = []
    for _ in range(20):
        tuner.before_step()
        used.append(torch.get_num_threads())
        tuner.after_step({1: 0.3, 2: 0.1, 4: 0.2}[used[-1]])
    torch.set_num_threads(before)
    assert used == [1] * 4 + [2] * 4 + [4] * 4 + [2] * 8


def test_a_checkpoint_that_was_not_finished_is_not_found(make_loop):
    one = make_loop(max_train_steps=2, checkpointing_steps=1)
    one.run()
    newest = sorted(one.checkpoint_folder.glob("step-*"))[-1]
    newest.rename(
        one.checkpoint_folder / ".draft-00000002"
    )  # as a crash before the renaming leaves it
    resumed = make_loop(max_train_steps=2, resume_from_checkpoint="latest")
    resumed.load()
    assert resumed.step == 1


def test_averaged_weights_are_swapped_in_and_out(make_loop):
    one = make_loop(max_train_steps=5)
    one.run()
    trained = weights(one)
    with one.state.averaged() as model:
        assert not model.training
        for p, shadow in zip(model.parameters(), one.state.ema.shadow_params, strict=True):
            assert torch.equal(p, shadow)
    assert_equal(weights(one), trained)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_train_steps": 0}, "`max_train_steps` must be above 0, got 0"),
        ({"learning_rate": -1.0}, "`learning_rate`"),
        ({"ema_decay": 1.0}, "`ema_decay`"),
        ({"max_train_minutes": 0.0}, "`max_train_minutes`"),
        ({"mixed_precision": "half"}, "`mixed_precision`"),
        ({"lr_warmup_steps": -1}, "`lr_warmup_steps`"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(output_dir=str(tmp_path), **changes)
