"""How often times are drawn: weights keep the mean, loss-aware times have the least variance, warped ones a line."""

import pytest
import torch

from text_diffusers.losses.time_density import (
    TIME_DENSITIES,
    UNIFORM_SHARE,
    draw_times,
    loss_aware_density,
    warped_density,
)

STEPS = 400


def strata(count=40_000):
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def loss_at(times):
    """A curve like that of words: nothing at little noise, all at much, a rise in between."""
    return 6 * torch.sigmoid((times.double() / STEPS - 0.6) * 15)


def measured(bins=20):
    times = torch.arange(STEPS).view(bins, -1)
    return loss_at(times)


def test_times_of_a_flat_density_are_uniform_integers():
    times, weights = draw_times(strata(), torch.ones(7), STEPS)
    assert torch.equal(times.bincount(minlength=STEPS), torch.full((STEPS,), 100))
    torch.testing.assert_close(weights, torch.ones_like(weights))


@pytest.mark.parametrize("name", sorted(TIME_DENSITIES))
def test_weighted_draws_have_the_mean_of_uniform_ones(name):
    density = TIME_DENSITIES[name](measured())
    times, weights = draw_times(strata(), density, STEPS)
    want = loss_at(torch.arange(STEPS)).mean()
    assert float((weights * loss_at(times)).mean()) == pytest.approx(float(want), rel=1e-4)
    assert times.min() == 0 and times.max() == STEPS - 1 and weights.max() <= 1 / UNIFORM_SHARE


def test_loss_aware_draws_have_a_smaller_variance():
    even = loss_at(draw_times(strata(), torch.ones(20), STEPS)[0]).var()
    times, weights = draw_times(strata(), loss_aware_density(measured()), STEPS)
    assert (weights * loss_at(times)).var() < 0.25 * even


def test_the_loss_of_warped_draws_grows_linearly():
    """Without the share of uniform draws; with it, the correlation is what the share leaves."""
    density = warped_density(measured())
    pure = (density - UNIFORM_SHARE).clamp(min=1e-9)
    for drawn_by, least in ((pure, 0.995), (density, 0.95), (torch.ones(20), 0.0)):
        uniform = strata(2_000)
        losses = loss_at(draw_times(uniform, drawn_by, STEPS)[0])
        squared = float(torch.corrcoef(torch.stack([uniform, losses]))[0, 1]) ** 2
        assert squared > least
        if drawn_by is pure:
            best = squared
    assert best > squared + 0.05  # the last ones were uniform


def test_a_loss_that_does_not_grow_is_drawn_evenly():
    torch.testing.assert_close(warped_density(torch.ones(5, 3)), torch.ones(5, dtype=torch.float64))
    falling = warped_density(torch.tensor([[3.0], [2.0], [1.0]]))
    assert (falling > 0).all()
