"""DPM-Solver++ for word embeddings against golden numbers, DDIM, stock, and the exact flow of a Gaussian."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from support.gaussian_chains import (
    MEAN,
    STD,
    embedding_cases,
    gaussian_denoiser,
    gaussian_flow,
    mixture_denoiser,
    sample,
)
from support.oracles import assert_golden, float64

from text_diffusers import EmbeddingDDIMScheduler, EmbeddingDPMSolverScheduler
from text_diffusers.schedulers.embedding_noise import EMBEDDING_SCHEDULES

SDE = "sde-dpmsolver++"


@pytest.mark.parametrize(
    "case", embedding_cases("dpm_solver", "dpm_multistep"), ids=lambda case: case["name"]
)
def test_trajectory_equals_the_golden_numbers(case):
    inputs, want = case["inputs"], case["outputs"]
    scheduler = EmbeddingDPMSolverScheduler(
        inputs["T"],
        inputs["schedule"],
        solver_order=inputs["order"],
        lower_order_final=inputs["lower_order_final"],
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(timesteps=inputs["grid"][:-1])
    denoise = mixture_denoiser(inputs["embedding"], inputs["weights"], inputs["std"])
    start = float64(inputs["x_T"])
    alphas = scheduler.alphas_cumprod[inputs["grid"]]
    first = scheduler.step(denoise(start, alphas[0]), inputs["grid"][0], start).prev_sample
    assert_golden(first, want["after_first_step"], case)
    end = sample(scheduler, start, denoise)
    assert_golden(end, want["final"], case)
    assert_golden(denoise(end, alphas[-1]), want["denoised"], case)


@pytest.mark.parametrize("schedule", sorted(EMBEDDING_SCHEDULES))
@pytest.mark.parametrize(("algorithm_type", "eta"), [("dpmsolver++", 0.0), (SDE, 1.0)])
@pytest.mark.parametrize("steps", [5, 33])
def test_first_order_is_ddim(schedule, algorithm_type, eta, steps):
    solver = EmbeddingDPMSolverScheduler(
        500, schedule, solver_order=1, algorithm_type=algorithm_type
    )
    solver.set_timesteps(steps)
    ddim = EmbeddingDDIMScheduler.from_config(solver.config)
    ddim.set_timesteps(timesteps=solver.timesteps)
    start = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(
        steps, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    x = y = start
    for timestep, draw in zip(solver.timesteps, noise, strict=True):
        x = solver.step(torch.sin(x), timestep, x, variance_noise=draw).prev_sample
        y = ddim.step(torch.sin(y), timestep, y, eta=eta, variance_noise=draw).prev_sample
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("order", "algorithm_type"), [(1, "dpmsolver++"), (2, "dpmsolver++"), (1, SDE), (2, SDE)]
)
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_equals_stock_up_to_the_second_order(
    order, algorithm_type, solver_type, steps, prediction_type
):
    ours = EmbeddingDPMSolverScheduler(
        200,
        "linear",
        solver_order=order,
        algorithm_type=algorithm_type,
        solver_type=solver_type,
        prediction_type=prediction_type,
        lambda_min_clipped=-math.inf,
    )
    stock = DPMSolverMultistepScheduler.from_config(ours.config)
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    ends = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(steps)
        ends.append(sample(scheduler, start, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(ours.timesteps, stock.timesteps)
    torch.testing.assert_close(*ends, atol=2e-4, rtol=2e-4)


class StockThirdOrder(EmbeddingDPMSolverScheduler):
    multistep_dpm_solver_third_order_update = (
        DPMSolverMultistepScheduler.multistep_dpm_solver_third_order_update
    )


class FirstStepOfFirstOrder(EmbeddingDPMSolverScheduler):
    def _lacking_in_first_step(self):
        return torch.zeros(())


def run_on_an_even_grid(scheduler_class, order, count, start, denoise):
    """The end of a run from log-SNR / 2 = -3 to 2 in `count` even steps of it, and alpha_bar at both ends."""
    lambdas = torch.linspace(2, -3, count + 1, dtype=torch.float64)
    alphas = torch.sigmoid(2 * lambdas)
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    scheduler = scheduler_class(
        count + 1,
        "custom",
        betas.tolist(),
        solver_order=order,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(timesteps=list(range(count, 0, -1)))
    end = sample(scheduler, start, denoise)
    assert end.dtype == torch.float64 and len(scheduler.timesteps) == count
    return end, alphas[-1], alphas[0]


def errors_on_even_grids(scheduler_class, order, counts):
    """Largest error at the end of the flow of a Gaussian, for each number of steps."""
    errors = []
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, -1)
    for count in counts:
        end, *ends = run_on_an_even_grid(scheduler_class, order, count, start, gaussian_denoiser)
        errors.append((end - gaussian_flow(start, *ends)).abs().max())
    return torch.stack(errors)


@pytest.mark.parametrize(
    ("scheduler_class", "order", "low", "high"),
    [
        (EmbeddingDPMSolverScheduler, 1, 0.85, 1.15),
        (EmbeddingDPMSolverScheduler, 2, 1.85, 2.15),
        (EmbeddingDPMSolverScheduler, 3, 2.9, 3.2),
        (StockThirdOrder, 3, 1.85, 2.3),
    ],
)
def test_error_falls_with_the_order_of_the_solver(scheduler_class, order, low, high):
    """The last case documents why the third order is corrected."""
    errors = errors_on_even_grids(scheduler_class, order, [80, 160, 320])
    slopes = (errors[:-1] / errors[1:]).log2()
    assert ((slopes > low) & (slopes < high)).all(), slopes


def flow_by_runge_kutta(start, denoise, steps=800):
    """The end of the same flow, d(x / sigma) = estimate d(alpha / sigma), by the classical method of fourth order."""
    lambdas = torch.linspace(
        -3, 2, 2 * steps + 1, dtype=torch.float64
    )  # also the middle of each step
    h = 2 * float(lambdas[1] - lambdas[0])

    def slope(scaled, log_snr):
        alpha_bar = torch.sigmoid(2 * log_snr)
        return log_snr.exp() * denoise(scaled * (1 - alpha_bar).sqrt(), alpha_bar)

    scaled = start / (1 - torch.sigmoid(2 * lambdas[0])).sqrt()
    for first, middle, last in zip(lambdas[:-2:2], lambdas[1:-1:2], lambdas[2::2], strict=True):
        k1 = slope(scaled, first)
        k2 = slope(scaled + h / 2 * k1, middle)
        k3 = slope(scaled + h / 2 * k2, middle)
        k4 = slope(scaled + h * k3, last)
        scaled = scaled + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return scaled * (1 - torch.sigmoid(2 * lambdas[-1])).sqrt()


def test_a_run_of_each_order_is_of_that_order_for_words():
    """Whose clean estimate is not linear; the last case documents why the second step mends the first."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    denoise = mixture_denoiser(words.tolist(), [0.3, 0.2, 0.2, 0.2, 0.1], 0.5)
    start = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    want = flow_by_runge_kutta(start, denoise)

    def slopes(scheduler_class, order):
        errors = []
        for count in (80, 160, 320):
            end, *_ = run_on_an_even_grid(scheduler_class, order, count, start, denoise)
            errors.append((end - want).abs().max())
        return [float((errors[i] / errors[i + 1]).log2()) for i in range(2)]

    assert slopes(EmbeddingDPMSolverScheduler, 2) == pytest.approx([2, 2], abs=0.05)
    assert slopes(EmbeddingDPMSolverScheduler, 3) == pytest.approx([3, 3], abs=0.1)
    assert max(slopes(FirstStepOfFirstOrder, 3)) < 2.7


def test_higher_orders_are_better_at_equal_cost():
    errors = [
        errors_on_even_grids(EmbeddingDPMSolverScheduler, order, [40]).item() for order in (1, 2, 3)
    ]
    assert errors[1] < errors[0] / 4 and errors[2] < errors[1] / 2


@pytest.mark.parametrize(
    ("order", "algorithm_type", "steps"),
    [
        (1, "dpmsolver++", 20),
        (2, "dpmsolver++", 20),
        (3, "dpmsolver++", 20),
        (1, SDE, 40),
        (2, SDE, 20),
    ],
)
def test_few_steps_sample_a_gaussian(order, algorithm_type, steps):
    """A sampler that puts its clean estimate in place of the sample would end with no spread at all."""
    scheduler = EmbeddingDPMSolverScheduler(
        beta_schedule="cosine", solver_order=order, algorithm_type=algorithm_type
    )
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(100, 100, 4, dtype=torch.float64, generator=generator)
    end = sample(scheduler, start, generator=generator)
    assert end.mean().item() == pytest.approx(MEAN, rel=0.1) and end.std().item() == pytest.approx(
        STD, rel=0.1
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_steps_that_clamp_are_of_first_order(order):
    scheduler = EmbeddingDPMSolverScheduler(
        200, solver_order=order, clamp_steps=3, lower_order_final=False
    )
    scheduler.set_timesteps(8)
    ddim = EmbeddingDDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(timesteps=scheduler.timesteps)
    noisy = torch.linspace(-3, 3, 24, dtype=torch.float64).view(2, 3, 4)
    equal = []
    for timestep in scheduler.timesteps:
        predicted = torch.sin(3 * noisy)
        got = scheduler.step(predicted, timestep, noisy, round_function=torch.round).prev_sample
        want = ddim.step(predicted, timestep, noisy, round_function=torch.round).prev_sample
        equal.append(torch.allclose(got, want, atol=1e-10))
        noisy = got
    assert equal == [True] + [order == 1] * 4 + [True] * 3


def test_a_second_run_forgets_the_first():
    scheduler = EmbeddingDPMSolverScheduler(200, solver_order=3)
    scheduler.set_timesteps(20)
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(scheduler, start), sample(scheduler, start))


def test_clipped_noise_is_not_used_and_no_more_steps_than_remain():
    scheduler = EmbeddingDPMSolverScheduler(100, "cosine", lambda_min_clipped=-2.0)
    usable = sum(math.log(a / (1 - a)) / 2 >= -2 for a in scheduler.alphas_cumprod.tolist())
    assert 80 < usable < 100 and scheduler.timesteps.tolist() == list(range(usable - 1, -1, -1))
    with pytest.raises(
        ValueError, match=f"must be in 1 to the timesteps in use, {usable}, got {usable + 1}"
    ):
        scheduler.set_timesteps(usable + 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm_type": "dpmsolver"}, "`algorithm_type` must be one of"),
        (
            {"algorithm_type": SDE, "solver_order": 3},
            "`solver_order` must be in 1 to 2 for sde-dpmsolver",
        ),
        ({"solver_order": 4}, "`solver_order` must be in 1 to 3"),
        ({"solver_order": 0}, "`solver_order` must be in 1 to 3"),
        ({"final_sigmas_type": "one"}, "`final_sigmas_type` must be one of"),
    ],
)
def test_wrong_arguments_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EmbeddingDPMSolverScheduler(10, **changes)
