"""DDIM for word embeddings against golden numbers, stock DDIM and data with a known denoiser."""

import pytest
import torch
from diffusers import DDIMScheduler
from support.gaussian_chains import (
    MEAN,
    STD,
    embedding_cases,
    gaussian_flow,
    mixture_denoiser,
    sample,
)
from support.oracles import assert_golden, float64

from text_diffusers import EmbeddingDDIMScheduler
from text_diffusers.schedulers.embedding_noise import EMBEDDING_SCHEDULES


@pytest.mark.parametrize(
    "case", embedding_cases("diffusion_lm", "ddim_step"), ids=lambda case: case["name"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_step_equals_the_golden_numbers(case, dtype):
    inputs = case["inputs"]
    scheduler = EmbeddingDDIMScheduler(inputs["T"], inputs["schedule"])
    rows = zip(inputs["t"], inputs["x_t"], inputs["model_output"], inputs["noise"], strict=True)
    got = [
        scheduler.step(
            float64([predicted]).to(dtype),
            t,
            float64([noisy]).to(dtype),
            eta=inputs["eta"],
            variance_noise=float64([noise]),
        ).prev_sample
        for t, noisy, predicted, noise in rows
    ]
    assert_golden(torch.cat(got), case["outputs"]["sample"], case)


@pytest.mark.parametrize(
    "case", embedding_cases("diffusion_lm", "ddim_trajectory"), ids=lambda case: case["name"]
)
def test_trajectory_equals_the_golden_numbers(case):
    inputs = case["inputs"]
    scheduler = EmbeddingDDIMScheduler(inputs["T"], inputs["schedule"])
    scheduler.set_timesteps(timesteps=inputs["timesteps"])
    denoise = mixture_denoiser(inputs["embedding"], inputs["weights"], inputs["std"])
    assert_golden(
        sample(scheduler, float64(inputs["x_T"]), denoise), case["outputs"]["final"], case
    )


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_equals_stock_where_the_number_of_steps_divides(prediction_type, eta):
    ours = EmbeddingDDIMScheduler(200, "sqrt", prediction_type=prediction_type)
    stock = DDIMScheduler.from_config(ours.config)
    ours.set_timesteps(10)
    stock.set_timesteps(10)
    assert torch.equal(ours.timesteps, stock.timesteps)
    draws = [torch.Generator().manual_seed(2) for _ in range(2)]
    noisy, predicted = torch.randn(2, 10, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    for timestep, x, output in zip(ours.timesteps, noisy, predicted, strict=True):
        got = ours.step(output, timestep, x, eta=eta, generator=draws[0])
        want = stock.step(output, timestep, x, eta=eta, generator=draws[1])
        # Stock's float32 table is off by 1e-4 of alpha_bar at the noisiest timesteps.
        torch.testing.assert_close(got.prev_sample, want.prev_sample, atol=2e-5, rtol=2e-4)
        torch.testing.assert_close(
            got.pred_original_sample, want.pred_original_sample, atol=1e-5, rtol=2e-4
        )


@pytest.mark.parametrize("schedule", sorted(EMBEDDING_SCHEDULES))
@pytest.mark.parametrize("steps", [1, 3, 7, 30, 64])
def test_a_network_that_knows_the_truth_stays_on_its_path(schedule, steps):
    """From alpha_t x_0 + sigma_t noise a step leads to the same with the next alpha, and in the end to x_0."""
    scheduler = EmbeddingDDIMScheduler(200, schedule)
    scheduler.set_timesteps(steps)
    clean, noise = torch.randn(
        2, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    noisy = scheduler.add_noise(clean, noise, scheduler.timesteps[0])
    for later in scheduler.timesteps[1:]:
        noisy = scheduler.step(
            clean, scheduler.timesteps[scheduler.timesteps > later][-1], noisy
        ).prev_sample
        torch.testing.assert_close(
            noisy, scheduler.add_noise(clean, noise, later), atol=1e-12, rtol=1e-12
        )
    assert torch.equal(scheduler.step(clean, scheduler.timesteps[-1], noisy).prev_sample, clean)


def test_stock_leaves_the_grid_where_the_number_of_steps_does_not_divide():
    """Its step length is T // n = 6, that of the grid 20 / 3: the last step starts at 6 and does not reach x_0."""
    ours = EmbeddingDDIMScheduler(2000, "sqrt")
    stock = DDIMScheduler.from_config(ours.config)
    clean, noisy = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    ends = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(300)
        ends.append(scheduler.step(clean, scheduler.timesteps[-1], noisy).prev_sample)
    assert torch.equal(ends[0], clean)
    assert (ends[1] - clean).abs().min() > 0.1


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 20), (0.5, 20), (1.0, 40)])
def test_few_steps_sample_a_gaussian(eta, steps):
    """A sampler that puts its clean estimate in place of the sample would end with no spread at all."""
    scheduler = EmbeddingDDIMScheduler(beta_schedule="cosine")
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(100, 100, 4, dtype=torch.float64, generator=generator)
    end = sample(scheduler, start, eta=eta, generator=generator)
    assert end.mean().item() == pytest.approx(MEAN, rel=0.1) and end.std().item() == pytest.approx(
        STD, rel=0.1
    )


def test_error_falls_in_proportion_to_the_step():
    errors = []
    for steps in (250, 500, 1000):
        scheduler = EmbeddingDDIMScheduler(4000, "cosine")
        start = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, -1)
        scheduler.set_timesteps(steps)
        first = scheduler.alphas_cumprod[scheduler.timesteps[0]]
        want = gaussian_flow(start, first, torch.ones_like(first))
        errors.append((sample(scheduler, start) - want).abs().max())
    slopes = (torch.stack(errors)[:-1] / torch.stack(errors)[1:]).log2()
    assert ((slopes - 1).abs() < 0.15).all()


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_the_unit_interval_is_refused(eta):
    scheduler = EmbeddingDDIMScheduler(10)
    with pytest.raises(ValueError, match=r"`eta` must be a number in \[0, 1\]"):
        scheduler.step(torch.zeros(1, 1, 1), 9, torch.zeros(1, 1, 1), eta=eta)
