"""The laboratory: its denoiser is the exact one, samplers come back to the figure, and pictures say what they show."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from text_diffusers.schedulers.latent.scheduling_score import ProbabilityFlowScheduler
from text_diffusers.space.limits import Refusal
from text_diffusers.space.parts.mixtures import (
    FIGURES,
    NUM_POINTS,
    PLANE_SAMPLERS,
    alphas,
    by_score,
    mixture_of,
    noisy_points,
    path_of,
)
from text_diffusers.space.tabs.laboratory import (
    FIRST,
    MOST_STEPS,
    accepted_request,
    draw_noise,
    draw_ways,
    drawn,
)


@pytest.mark.parametrize("alpha", [0.999, 0.5, 0.01])
@pytest.mark.parametrize("figure", FIGURES)
def test_the_noise_expected_is_the_score_of_the_noisy_figure(figure, alpha):
    """Against the density of torch and its gradient: E[noise | x] = -sigma times the gradient of log p."""
    mixture = mixture_of(figure)
    std = math.sqrt(alpha * mixture.std**2 + 1 - alpha)
    parts = Independent(Normal(math.sqrt(alpha) * mixture.centres, std), 1)
    weights = Categorical(logits=torch.zeros(len(mixture.centres), dtype=torch.float64))
    density = MixtureSameFamily(weights, parts)

    points = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(density.log_prob(points).sum(), points)
    expected = -math.sqrt(1 - alpha) * score
    torch.testing.assert_close(mixture.noise_in(points.detach(), alpha), expected)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_has_mean_0_and_mean_square_1(figure):
    mixture = mixture_of(figure)
    assert mixture.centres.mean(dim=0).abs().max() < 1e-9
    assert abs(float(mixture.centres.square().mean()) + mixture.std**2 - 1) < 1e-9


def test_the_noise_of_both_libraries_is_the_same():
    scheduler = by_score(ProbabilityFlowScheduler)
    torch.testing.assert_close(scheduler.alphas_cumprod, alphas(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("sampler", [name for name in PLANE_SAMPLERS if name != "langevin"])
@pytest.mark.parametrize("figure", FIGURES)
def test_a_sampler_with_many_steps_ends_on_the_figure_and_with_few_it_does_not(figure, sampler):
    near = mixture_of(figure).share_near
    assert near(path_of(figure, sampler, MOST_STEPS, seed=1)[-1]) > 0.95
    assert near(path_of(figure, sampler, 3, seed=1)[-1]) < 0.8
    assert near(path_of(figure, sampler, MOST_STEPS, seed=1)[0]) < 0.6


def test_langevin_dynamics_want_many_steps():
    near = mixture_of("moons").share_near
    shares = [near(path_of("moons", "langevin", steps, seed=1)[-1]) for steps in (8, 32, 64)]
    assert shares == sorted(shares) and shares[-1] > 0.6 > 0.3 > shares[0]


def test_samplers_without_fresh_noise_follow_the_same_ode():
    """They begin with the same noise, and by many steps they end at the same points."""
    ends = [path_of("rings", name, MOST_STEPS, 5)[-1] for name in ("ddim", "probability_flow")]
    other = path_of("rings", "ddpm", MOST_STEPS, 5)[-1]
    assert (ends[0] - ends[1]).norm(dim=1).median() < 0.1 < (ends[0] - other).norm(dim=1).median()


def test_noise_goes_from_the_figure_to_nothing_of_it():
    clean, first = noisy_points("moons", 0.0, seed=2)
    _, last = noisy_points("moons", 1.0, seed=2)
    assert torch.equal(clean, first) and mixture_of("moons").share_near(clean) > 0.95
    assert abs(float(last.square().mean()) - 1) < 0.2
    correlation = torch.corrcoef(torch.cat([clean.T, last.T]))[:2, 2:]
    assert correlation.abs().max() < 4 / math.sqrt(NUM_POINTS)


@pytest.mark.parametrize("way", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sampler", PLANE_SAMPLERS)
def test_a_picture_has_every_point_and_says_what_it_shows(sampler, way):
    shown = drawn(accepted_request(replace(FIRST, sampler=sampler, steps=8.0, way=way)))
    picture = draw_ways(shown, "en")
    figure, ways, points = re.findall(r' d="([^"]*)"', picture)
    call = round(way * (len(shown.path) - 1))
    assert figure.count("M") == points.count("M") == NUM_POINTS
    assert ways.count("L") == ways.count("M") * call
    near = 100 * mixture_of("moons").share_near(shown.path[call])
    assert f"after {call} of {len(shown.path) - 1} calls" in picture and f" {near:.0f}% " in picture


@pytest.mark.parametrize(("time", "share"), [(0.0, "0%"), (1.0, "100%")])
def test_the_picture_of_the_noise_says_how_much_of_it_there_is(time, share):
    assert f"when {share} of" in draw_noise(replace(FIRST, time=time), "en")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"figure": "spiral"}, "error.choice"),
        ({"figure": ["moons"]}, "error.choice"),
        ({"sampler": "__class__"}, "error.choice"),
        ({"steps": MOST_STEPS + 1}, "error.range"),
        ({"steps": 0}, "error.range"),
        ({"steps": 2.5}, "error.integer"),
        ({"time": float("nan")}, "error.range"),
        ({"way": "1"}, "error.range"),
        ({"seed": -1}, "error.range"),
    ],
)
def test_values_outside_their_limits_are_refused(changes, key):
    with pytest.raises(Refusal) as refused:
        accepted_request(replace(FIRST, **changes))
    assert refused.value.key == key
