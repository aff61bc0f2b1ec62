"""DDPM for word embeddings against golden numbers, stock DDPM, DDIM and data with a known denoiser."""

import pytest
import torch
from conftest import covering
from diffusers import DDPMScheduler
from support.gaussian_chains import MEAN, STD, embedding_cases, sample
from support.oracles import assert_golden, float64

from text_diffusers import EmbeddingDDIMScheduler, EmbeddingDDPMScheduler
from text_diffusers.schedulers.embedding_noise import EMBEDDING_SCHEDULES


@pytest.mark.parametrize(
    "case", embedding_cases("diffusion_lm", "ddpm_step"), ids=lambda case: case["name"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_step_equals_the_golden_numbers(case, dtype):
    inputs = case["inputs"]
    scheduler = EmbeddingDDPMScheduler(
        inputs["T"], inputs["schedule"], variance_type=inputs["variance"]
    )
    means, samples = [], []
    for t, *values in zip(
        inputs["t"], inputs["x_t"], inputs["model_output"], inputs["noise"], strict=True
    ):
        noisy, predicted, noise = (float64([value]).to(dtype) for value in values)
        samples.append(scheduler.step(predicted, t, noisy, variance_noise=noise).prev_sample)
        means.append(
            scheduler.step(predicted, t, noisy, variance_noise=torch.zeros_like(noise)).prev_sample
        )
    assert_golden(torch.cat(means), case["outputs"]["mean"], case)
    assert_golden(torch.cat(samples), case["outputs"]["sample"], case)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [12, 200])
def test_equals_stock(variance_type, prediction_type, steps):
    ours = EmbeddingDDPMScheduler(200, prediction_type=prediction_type, variance_type=variance_type)
    stock = DDPMScheduler.from_config(ours.config)
    ours.set_timesteps(steps)
    stock.set_timesteps(steps)
    assert torch.equal(ours.timesteps, stock.timesteps)
    noisy, predicted = torch.randn(2, steps, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    for index in range(
        0, steps - 1, max(1, steps // 12)
    ):  # the last step has a law of its own, below
        timestep, draws = (
            ours.timesteps[index],
            [torch.Generator().manual_seed(2) for _ in range(2)],
        )
        got = ours.step(predicted[index], timestep, noisy[index], generator=draws[0]).prev_sample
        want = stock.step(predicted[index], timestep, noisy[index], generator=draws[1]).prev_sample
        torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_last_step_adds_no_noise(variance_type, steps):
    scheduler = EmbeddingDDPMScheduler(200, variance_type=variance_type)
    scheduler.set_timesteps(steps)
    clean, noisy = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scheduler.step(clean, scheduler.timesteps[-1], noisy).prev_sample, clean)


@pytest.mark.parametrize("schedule", sorted(EMBEDDING_SCHEDULES))
@pytest.mark.parametrize("steps", [7, 50])
def test_small_variance_is_ddim_with_eta_one(schedule, steps):
    ddpm = EmbeddingDDPMScheduler(300, schedule)
    ddim = EmbeddingDDIMScheduler.from_config(ddpm.config)
    start = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for scheduler, arguments in ((ddpm, {}), (ddim, {"eta": 1.0})):
        scheduler.set_timesteps(steps)
        ends.append(
            sample(scheduler, start, generator=torch.Generator().manual_seed(1), **arguments)
        )
    torch.testing.assert_close(*ends, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "case, variance_type",
    covering([(2000, (0.025, 0.018)), (40, (0.07, 0.05))], ["fixed_small", "fixed_large"]),
)
def test_chain_samples_a_gaussian(case, variance_type):
    """Of 10,000 values: standard errors 0.005 of the mean and 0.0035 of the standard deviation."""
    steps, allowed = case
    scheduler = EmbeddingDDPMScheduler(2000, "cosine", variance_type=variance_type)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 50, 4, dtype=torch.float64, generator=generator)
    end = sample(scheduler, start, generator=generator)
    assert end.mean().item() == pytest.approx(MEAN, abs=allowed[0])
    assert end.std().item() == pytest.approx(STD, abs=allowed[1])


def test_learned_variances_are_refused_and_none_is_the_small_one():
    for variance_type in ("learned", "learned_range", "fixed_small_log"):
        with pytest.raises(
            ValueError, match=f"`variance_type` must be None or one of .*, got '{variance_type}'"
        ):
            EmbeddingDDPMScheduler(10, variance_type=variance_type)
    assert EmbeddingDDPMScheduler(10, variance_type=None).config.variance_type == "fixed_small"
