"""Distances of embeddings against closed forms, brute force, and draws that are repeated."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from text_diffusers.evaluation.distances import (
    divergence_curve,
    divergence_curve_area,
    frechet_distance,
    frechet_of_moments,
    manifold_figures,
    maximum_mean_discrepancy,
    text_distances,
)
from text_diffusers.evaluation.distances.divergence_curve import area_under
from text_diffusers.evaluation.distances.figures import Figure, bootstrap_error, mean_figure

NAMES = ("frechet", "mmd", "precision", "recall", "density", "coverage", "divergence_curve")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def values_of(first, second):
    """All distances by their names, without errors."""
    found = text_distances(first, second, num_resamples=0)
    return {name: getattr(found, name).value for name in NAMES}


# Fréchet


def test_frechet_of_moments_is_its_closed_form():
    # Of covariances that commute, the sum of squared differences of standard deviations
    first, second = torch.tensor([1.0, 4.0, 9.0]).diag(), torch.tensor([4.0, 1.0, 0.0]).diag()
    found = frechet_of_moments(torch.ones(3), first, torch.zeros(3), second)
    assert found == pytest.approx(3 + (1 + 1 + 9), rel=1e-12)

    # Of others, by the root of a matrix that is not symmetric
    roots = [normal(seed, 5, 5) for seed in (0, 1)]
    covariances = [root @ root.T for root in roots]
    means = [normal(seed, 5) for seed in (2, 3)]
    root = linalg.sqrtm((covariances[0] @ covariances[1]).numpy()).real
    expected = (means[0] - means[1]).square().sum() + sum(c.trace() for c in covariances)
    expected = float(expected) - 2 * np.trace(root)
    found = frechet_of_moments(means[0], covariances[0], means[1], covariances[1])
    assert found == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_draws_is_that_of_their_laws_within_its_error():
    root = torch.tensor([[2.0, 0.0], [1.0, 1.0]]).double()
    first = normal(0, 4000, 2) @ root.T + 1.0
    second = normal(1, 4000, 2)
    found = frechet_distance(first, second)
    eye = torch.eye(2).double()
    exact = frechet_of_moments(torch.ones(2), root @ root.T, torch.zeros(2), eye)
    assert abs(found.value - exact) < 4 * found.standard_error < 0.4 * exact
    # Moved texts have the same covariance, to the last digit.
    moved = frechet_distance(first, first + torch.tensor([3.0, 4.0]), num_resamples=0)
    assert moved.value == pytest.approx(25.0, rel=1e-9)


def test_too_few_texts_for_the_frechet_distance_are_named(caplog):
    frechet_distance(normal(0, 5, 5), normal(1, 40, 5), num_resamples=0)
    assert "5 texts are too few for the Fréchet distance of embeddings of width 5" in caplog.text
    caplog.clear()
    frechet_distance(normal(0, 6, 5), normal(1, 40, 5), num_resamples=0)
    assert not caplog.text


# Maximum mean discrepancy


def test_mmd_of_two_normal_laws_is_its_closed_form_under_the_gaussian_kernel():
    width, bandwidth = 3, 1.5
    scales, means = (1.0, 2.0), (0.0, 0.5)

    def mean_kernel(one, other):
        total = bandwidth**2 + scales[one] ** 2 + scales[other] ** 2
        apart = width * (means[one] - means[other]) ** 2
        return (bandwidth**2 / total) ** (width / 2) * math.exp(-apart / (2 * total))

    expected = mean_kernel(0, 0) + mean_kernel(1, 1) - 2 * mean_kernel(0, 1)
    first = scales[0] * normal(0, 700, width) + means[0]
    second = scales[1] * normal(1, 700, width) + means[1]
    found = maximum_mean_discrepancy(first, second, bandwidth=bandwidth, num_permutations=9)
    assert abs(found.figure.value - expected) < 4 * found.figure.standard_error < 0.3 * expected
    # The linear kernel compares means alone.
    linear = maximum_mean_discrepancy(first, second, kernel="linear", num_permutations=9).figure
    assert abs(linear.value - width * 0.25) < 4 * linear.standard_error


def test_mmd_of_one_law_is_zero_on_average_and_its_p_values_are_uniform():
    values, p_values = [], []
    for seed in range(400):
        drawn = normal(seed, 25, 2)
        options = {"num_permutations": 39, "num_resamples": 0, "seed": seed}
        found = maximum_mean_discrepancy(drawn[:10], drawn[10:], **options)
        values.append(found.figure.value)
        p_values.append(found.p_value)
    mean = mean_figure(values)
    assert abs(mean.value) < 4 * mean.standard_error < 0.01
    # They are k / 40: ten even parts of four values each
    counts = np.histogram(p_values, bins=np.linspace(0.0125, 1.0125, 11))[0]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_mmd_of_a_few_texts_is_the_sum_over_pairs():
    first, second = normal(0, 4, 2), normal(1, 3, 2)
    found = maximum_mean_discrepancy(first, second, num_resamples=0, num_permutations=1)
    every = [*first, *second]
    apart = [float((a - b).norm()) for a, b in itertools.combinations(every, 2)]
    assert found.bandwidth == pytest.approx(sorted(apart)[(len(apart) - 1) // 2])

    def kernel(a, b):
        return math.exp(-float((a - b).square().sum()) / (2 * found.bandwidth**2))

    def within(texts):
        return np.mean([kernel(a, b) for a, b in itertools.combinations(texts, 2)])

    between = np.mean([kernel(a, b) for a in first for b in second])
    expected = within(first) + within(second) - 2 * between
    assert found.figure.value == pytest.approx(expected, rel=1e-12)


# Neighbours


def test_neighbours_of_texts_on_a_line_are_counted_by_hand():
    # With one neighbour the real balls are [-1, 1], [0, 2] and [1, 5], the written ones [0.25, 0.75], [0.5, 1] and
    # [0.75, 17.25].
    real = torch.tensor([[0.0], [1.0], [3.0]])
    written = torch.tensor([[0.5], [0.75], [9.0]])
    found = manifold_figures(written, real, num_neighbours=1, num_resamples=0)
    assert found.precision.value == pytest.approx(2 / 3)  # 0.5 and 0.75
    assert found.density.value == pytest.approx(4 / 3)  # these are in two balls each
    assert found.coverage.value == pytest.approx(2 / 3)  # none is near 3
    assert found.recall.value == pytest.approx(2 / 3)  # 0 is in no ball


@pytest.mark.parametrize("num_neighbours", [1, 3])
def test_neighbours_are_those_of_loops_over_all_texts(num_neighbours):
    written, real = normal(0, 12, 2) + 0.7, normal(1, 15, 2)

    def radius(texts, place):
        apart = sorted(float((texts[place] - other).norm()) for other in texts)
        return apart[num_neighbours]  # the first is the text itself

    near_real = [
        [float((a - b).norm()) <= radius(real, place) for place, b in enumerate(real)]
        for a in written
    ]
    near_written = [
        [float((a - b).norm()) <= radius(written, place) for place, b in enumerate(written)]
        for a in real
    ]
    found = manifold_figures(written, real, num_neighbours, num_resamples=0)
    assert found.precision.value == pytest.approx(np.mean(np.any(near_real, axis=1)))
    assert found.recall.value == pytest.approx(np.mean(np.any(near_written, axis=1)))
    assert found.density.value == pytest.approx(np.sum(near_real) / (num_neighbours * 12))
    assert found.coverage.value == pytest.approx(np.mean(np.any(near_real, axis=0)))


# The divergence curve


@pytest.mark.parametrize("scale", [1.0, 2.0, 5.0])
def test_histograms_without_a_shared_cluster_have_the_area_of_their_closed_form(scale):
    # y = (1 - x^(1/c))^c has the area Gamma(c + 1)^2 / Gamma(2 c + 1).
    points = divergence_curve(torch.tensor([1.0, 0]), torch.tensor([0, 1.0]), scale, 20_000)
    expected = math.gamma(scale + 1) ** 2 / math.gamma(2 * scale + 1)
    assert area_under(points) == pytest.approx(expected, rel=1e-3)


def test_points_of_the_curve_are_those_of_divergences_as_they_are_written_down():
    first, second = np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.3, 0.5])
    points = divergence_curve(torch.tensor(first), torch.tensor(second), scale=2.0, num_mixtures=3)
    expected = []
    for weight in (0.75, 0.5, 0.25):
        mixture = weight * first + (1 - weight) * second
        expected.append(
            [
                math.exp(-2 * stats.entropy(second, mixture)),
                math.exp(-2 * stats.entropy(first, mixture)),
            ]
        )
    np.testing.assert_allclose(points[1:-1], sorted(expected), rtol=1e-12)
    assert points[[0, -1]].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert area_under(divergence_curve(torch.tensor(first), torch.tensor(first))) == 1.0


# All of them


def test_distances_of_one_law_are_those_of_alike_texts_and_move_with_a_shift():
    first, second = normal(0, 150, 3), normal(1, 150, 3)
    same = text_distances(first, second, num_resamples=40)
    limits = {"frechet": 0.0, "mmd": 0.0, "density": 1.0, "divergence_curve": 1.0}
    for name, limit in limits.items():
        figure = getattr(same, name)
        assert abs(figure.value - limit) < 4 * figure.standard_error + 0.02, name
    assert same.mmd_p_value > 0.01
    assert min(same.precision.value, same.recall.value, same.coverage.value) > 0.9

    found = [values_of(first + shift, second) for shift in (0.0, 1.0, 2.0, 4.0)]
    for name in NAMES:
        values = [values[name] for values in found]
        rises = name in ("frechet", "mmd")
        assert values == sorted(values, reverse=not rises) and len(set(values)) == 4, name


@pytest.mark.slow
def test_bootstrap_errors_are_the_spread_of_repeated_draws():
    draws = [values_of(normal(seed, 80, 3) + 0.5, normal(1000 + seed, 80, 3)) for seed in range(60)]
    errors = []
    for seed in range(4):
        found = text_distances(normal(seed, 80, 3) + 0.5, normal(1000 + seed, 80, 3))
        errors.append({name: getattr(found, name).standard_error for name in NAMES})
    for name in NAMES:
        spread = np.std([values[name] for values in draws], ddof=1)
        error = np.mean([values[name] for values in errors])
        assert 0.6 < error / spread < 1.9, (name, error, spread)


def test_the_bootstrap_of_a_mean_is_its_standard_error():
    values = normal(0, 200)
    error = bootstrap_error(lambda counts: float(counts @ values / counts.sum()), (200,), 1000)
    assert error == pytest.approx(mean_figure(values).standard_error, rel=0.1)
    assert math.isnan(bootstrap_error(lambda counts: 0.0, (200,), 0))
    assert math.isnan(bootstrap_error(lambda counts: 0.0, (200, 3)))
    assert Figure(math.inf).record() == {"value": None, "standard_error": None}


def test_the_draws_of_one_seed_are_the_same():
    texts = normal(0, 40, 3)
    once, again = (text_distances(texts[:20], texts[20:], num_resamples=5) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(torch.zeros(3), torch.zeros(3, 1)), r"`first` must be a tensor"),
        (lambda: frechet_distance(torch.zeros(3, 2), torch.zeros(3, 1)), "`second` must be emb"),
        (lambda: frechet_distance(torch.full((3, 1), torch.nan), torch.zeros(3, 1)), "finite"),
        (lambda: maximum_mean_discrepancy(torch.zeros(3, 1), torch.zeros(3, 1)), "`bandwidth`"),
        (lambda: maximum_mean_discrepancy(torch.zeros(3, 1), torch.zeros(3, 1), "cosine"), "kern"),
        (lambda: manifold_figures(torch.zeros(3, 1), torch.zeros(9, 1), 3), "from 1 to 2, got 3"),
        (lambda: divergence_curve_area(normal(0, 9, 1), normal(1, 9, 1), 1), "`num_clusters`"),
        (lambda: text_distances(torch.zeros(9, 1), torch.zeros(20, 1)), "10 texts each, got 9"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
