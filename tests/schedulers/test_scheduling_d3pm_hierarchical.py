"""Laws of hierarchical masks, against matrices that are integrated from the rates of the forward process.

Shapes: S states, V tokens, C clusters, L length.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from support.oracles import MarkovSource, bayes_posterior, chi_square_passes, float64

from text_diffusers import D3PMAbsorbingScheduler, D3PMHierarchicalScheduler
from text_diffusers.evaluation.bounds import token_bound
from text_diffusers.losses import absorbing_bound, absorbing_weight_discrete
from text_diffusers.schedulers.hierarchical.clusters import cluster_tokens

# Five tokens of two clusters; the mask is 5, and the clusters are 6 and 7.
CLUSTERS = torch.tensor([0, 1, 0, 1, 1])
MASK, V, S = 5, 5, 8
POWERS = [1.3, 2.0, 5.0]


def make(power=2.0, clusters=CLUSTERS, **settings):
    first = len(clusters) + 1
    size = first + int(clusters.max()) + 1
    return D3PMHierarchicalScheduler(len(clusters), size, clusters, power, **settings)


def dense(power, start, end, clusters=CLUSTERS):
    """(S, S) of the linear schedule, from the rates at which tokens fall to clusters and clusters to the mask.

    With 1 - t as the chance not to be masked and (1 - t)^p that of being itself, a token falls at the rate p / (1 - t)
    and a cluster at the rate at which masks appear, 1, over the chance to be a cluster.
    """

    def token_survives(since, until):
        return ((1 - until) / (1 - since)) ** power

    def cluster_survives(since, until):
        if since == 0 or until == 1:
            return 0.0

        def rate(time):
            return 1 / ((1 - time) - (1 - time) ** power)

        return math.exp(-quad(rate, since, until, epsabs=1e-12, epsrel=1e-11)[0])

    def falls_and_stays(time):
        return token_survives(start, time) * power / (1 - time) * cluster_survives(time, end)

    matrix = np.eye(len(clusters) + 1 + int(clusters.max()) + 1)
    if start == end:
        return matrix
    num_tokens = len(clusters)
    stays = token_survives(start, end) if end < 1 else 0.0
    falls = quad(falls_and_stays, start, end, epsabs=1e-11, limit=200)[0] if end < 1 else 0.0
    remains = cluster_survives(start, end)
    for token, cluster in enumerate(clusters.tolist()):
        matrix[token] = 0
        matrix[token, token] = stays
        matrix[token, num_tokens + 1 + cluster] = falls
        matrix[token, num_tokens] = 1 - stays - falls
    for cluster in range(int(clusters.max()) + 1):
        row = num_tokens + 1 + cluster
        matrix[row] = 0
        matrix[row, row] = remains
        matrix[row, num_tokens] = 1 - remains
    return matrix


# Forwards


@pytest.mark.parametrize("power", POWERS)
def test_tokens_fall_by_both_levels_as_the_rates_say_and_steps_compose(power):
    scheduler = make(power)
    for start, end in ((0.25, 0.5), (0.5, 0.75), (0.25, 1.0)):
        step = dense(power, start, end)
        np.testing.assert_allclose(step.sum(axis=1), 1, atol=1e-12)
        want = scheduler.transition(torch.arange(V), end).numpy()
        np.testing.assert_allclose(want.sum(axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(dense(power, 0.0, end)[:V], want, atol=1e-8)
        before = scheduler.transition(torch.arange(V), start).numpy()
        np.testing.assert_allclose(before @ step, want, atol=1e-8)
    noise = scheduler.transition(torch.arange(V), 1.0)
    assert torch.equal(noise, torch.eye(S, dtype=torch.float64)[[MASK] * V])
    torch.testing.assert_close(scheduler.token_alpha(0.3), float64(0.7**power))


def test_noise_has_the_row_of_the_matrix_and_goes_one_way():
    scheduler = make(3.0)
    tokens = torch.full((4, 20_000), 3)
    times = float64([0.0, 0.3, 0.7, 1.0])
    rows = scheduler.transition(torch.tensor([3] * 4), times)
    noisy = scheduler.add_noise(tokens, times, torch.Generator().manual_seed(0))
    for counted, row in zip(noisy, rows, strict=True):
        assert chi_square_passes(np.bincount(counted, minlength=S), row)

    # The same numbers at all times: no token comes back. What is no token stays.
    seen = [scheduler.add_noise(tokens[0], t, torch.Generator().manual_seed(1)) for t in times]
    levels = [torch.where(ids == 3, 0, torch.where(ids == MASK, 2, 1)) for ids in seen]
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise(levels))
    others = torch.tensor([[MASK, 6, 7, 40]])
    assert torch.equal(scheduler.add_noise(others, 1.0), others)


# Backwards


@pytest.mark.parametrize("power", POWERS)
def test_reverse_step_is_bayes_on_dense_matrices_and_what_steps_draw(power):
    scheduler = make(power, temperature=0.7, top_k=4)
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(S, S, generator=generator, dtype=torch.float64)
    current = torch.arange(S)
    scheduler.set_timesteps(4)
    for timestep in scheduler.timesteps:
        end, start = float(timestep), float(timestep) - 0.25
        until, between = dense(power, 0.0, start), dense(power, start, end)
        want = np.zeros((S, S))
        for x_t in range(S):
            if x_t < V:
                want[x_t, x_t] = 1.0
                continue
            # The prediction, restricted to the tokens that x_t may come from, then shaped
            possible = torch.ones(V, dtype=torch.bool) if x_t == MASK else CLUSTERS == x_t - 6
            scores = torch.where(possible, logits[x_t, :V], -math.inf)
            scores = torch.where(scores >= scores.topk(4).values[-1], scores / 0.7, -math.inf)
            clean = scores.softmax(dim=-1)
            for x_0 in possible.nonzero().flatten():
                if x_t == MASK or end < 1:
                    posterior = bayes_posterior(between, until, x_t, np.eye(S)[x_0])
                    want[x_t] += float(clean[x_0]) * posterior
        reached = [
            x_t for x_t in range(S) if end < 1 or x_t <= MASK
        ]  # at time 1 there are masks only
        got = scheduler.reverse_probs(logits.unsqueeze(0), timestep, current.unsqueeze(0))[0]
        np.testing.assert_allclose(got[reached], want[reached], atol=1e-7)
        # A cluster has no way to a token of another.
        assert not got[6][[1, 3, 4, MASK, 7]].any()

        rows = current.expand(4_000, S).contiguous()
        drawn = scheduler.step(logits.expand(4_000, S, S), timestep, rows, generator=generator)
        for x_t in reached:
            counts = np.bincount(drawn.prev_sample[:, x_t], minlength=S)
            assert chi_square_passes(counts, got[x_t].numpy())


def test_what_a_control_leaves_of_no_cluster_is_drawn_from_all_tokens():
    scheduler = make()
    scheduler.set_timesteps(1)
    logits = torch.zeros(1, 200, S)
    logits[..., [0, 2]] = -math.inf  # all tokens of cluster 6
    sample = torch.full((1, 200), 6)
    written = scheduler.step(logits, 1.0, sample, generator=torch.Generator().manual_seed(0))
    assert set(written.prev_sample.unique().tolist()) == {1, 3, 4}


# The bound


def divergence(scheduler, power, timestep, logits):
    """(S, V) T KL(q(x_s | x_t, x_0) || p(x_s | x_t)) from dense matrices, 0 where x_t is out of reach."""
    steps = scheduler.config.num_train_timesteps
    end, start = float(timestep), float(timestep) - 1 / steps
    until, between = dense(power, 0.0, start), dense(power, start, end)
    total = dense(power, 0.0, end)
    nats = np.zeros((S, V))
    for x_t in range(V, S):
        posteriors = {
            x_0: bayes_posterior(between, until, x_t, np.eye(S)[x_0])
            for x_0 in range(V)
            if total[x_0, x_t] > 0
        }
        scores = torch.full((V,), -math.inf, dtype=torch.float64)
        scores[list(posteriors)] = logits[x_t, list(posteriors)] if posteriors else float64([])
        clean = scores.softmax(dim=-1).numpy()
        model = sum(clean[x_0] * posterior for x_0, posterior in posteriors.items())
        for x_0, true in posteriors.items():
            ways = true > 0
            nats[x_t, x_0] = steps * (true[ways] * np.log(true[ways] / model[ways])).sum()
    return nats


@pytest.mark.parametrize("power", POWERS)
def test_the_bound_on_a_grid_is_the_divergence_of_dense_posteriors(power):
    scheduler = make(power, num_train_timesteps=4)
    logits = torch.randn(S, S, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for timestep in (0.25, 0.5, 0.75, 1.0):
        want = divergence(scheduler, power, timestep, logits)
        for x_t, x_0 in zip(*want.nonzero(), strict=True):
            noisy, clean = torch.tensor([x_t]), torch.tensor([x_0])
            got = token_bound(scheduler, logits[[x_t]], clean, noisy, float64([timestep]))
            assert float(got) == pytest.approx(want[x_t, x_0], abs=1e-6)


def exact_predictions(source, states, clusters):
    """(S^L, L, K) log p(x_0 | x_t), which is the same at all times."""
    first = len(clusters) + 1
    fits = np.zeros((len(source.sequences), len(states)))
    for row, state in enumerate(states.tolist()):
        compatible = np.ones(len(source.sequences), dtype=bool)
        for place, x_t in enumerate(state):
            tokens = source.sequences[:, place]
            if x_t < len(clusters):
                compatible &= tokens == x_t
            elif x_t >= first:
                compatible &= clusters.numpy()[tokens] == x_t - first
        fits[:, row] = compatible * source.probs
    table = np.zeros((len(states), source.length, source.num_tokens))
    for place, token in itertools.product(range(source.length), range(source.num_tokens)):
        table[:, place, token] = fits[source.sequences[:, place] == token].sum(axis=0)
    return torch.tensor(np.log(np.maximum(table, 1e-300)))


SOURCE = MarkovSource(
    [0.4, 0.3, 0.2, 0.1],
    [[0.2, 0.5, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.2, 0.2], [0.4, 0.1, 0.1, 0.4]],
    length=2,
)


def integrand(scheduler, logits, states, time):
    """E over x_0 and x_t of the bound's integrand at a time, in nats a sequence."""
    matrix = scheduler.transition(torch.arange(4), time).numpy()
    times = torch.full((states.numel(),), time, dtype=torch.float64)
    total = 0.0
    for sequence, prob in zip(SOURCE.sequences, SOURCE.probs, strict=True):
        weight = torch.tensor(np.prod(matrix[sequence, states.numpy()], axis=1) * prob)
        clean = torch.tensor(sequence).expand(states.shape).flatten()
        loss = token_bound(scheduler, logits, clean, states.flatten(), times)
        counted = scheduler.is_open(states) & (weight > 0).unsqueeze(1)
        total += float(
            (
                loss.view(states.shape)[counted] * weight.unsqueeze(1).expand(states.shape)[counted]
            ).sum()
        )
    return total


@pytest.mark.parametrize("clusters", [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]], ids=str)
def test_the_exact_prediction_has_a_bound_that_comes_down_to_the_entropy(clusters):
    clusters = torch.tensor(clusters)
    size = make(clusters=clusters).num_states
    states = torch.tensor(list(itertools.product(range(size), repeat=2)))
    logits = exact_predictions(SOURCE, states, clusters).flatten(0, 1)

    bounds = []
    for steps in (2, 8, 64):
        scheduler = make(clusters=clusters, num_train_timesteps=steps)
        grid = [(step + 1) / steps for step in range(steps)]
        bounds.append(sum(integrand(scheduler, logits, states, time) for time in grid) / steps)
    assert bounds[0] > bounds[1] > bounds[2] > SOURCE.entropy - 1e-9

    # In continuous time only the one step next to the data is above it.
    scheduler = make(clusters=clusters, min_timestep=0.05)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    times = 0.525 + 0.475 * nodes
    continuous = sum(
        weight * integrand(scheduler, logits, states, float(time))
        for time, weight in zip(times, 0.475 * weights, strict=True)
    )
    continuous += 0.05 * integrand(scheduler, logits, states, 0.05)
    assert SOURCE.entropy - 1e-9 < continuous < SOURCE.entropy + 0.01
    assert bounds[2] - SOURCE.entropy < 0.05


@pytest.mark.parametrize("steps", [None, 6])
def test_clusters_of_one_token_each_make_it_absorbing_noise(steps):
    alone = make(clusters=torch.arange(V), num_train_timesteps=steps)
    absorbing = D3PMAbsorbingScheduler(V, num_train_timesteps=steps)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, V + 1, generator=generator)
    clean = torch.randint(0, V, (60,), generator=generator)
    times = alone.training_timesteps(torch.rand(60, generator=generator))
    masked = torch.full((60,), V)
    want = token_bound(absorbing, logits, clean, masked, times)
    torch.testing.assert_close(token_bound(alone, logits, clean, masked, times), want)
    # A cluster says all of its token.
    assert not token_bound(alone, logits, clean, alone.cluster_ids(clean), times).any()


def test_one_cluster_for_all_makes_it_absorbing_noise_of_another_schedule():
    steps, power = 6, 2.5
    scheduler = make(power, clusters=torch.zeros(V, dtype=torch.long), num_train_timesteps=steps)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, V + 2, generator=generator, dtype=torch.float64)
    clean = torch.tensor([2])
    for step in range(1, steps + 1):
        times = float64([step / steps])
        alpha_t, alpha_s = scheduler.token_alpha(times), scheduler.token_alpha(times - 1 / steps)
        weight = absorbing_weight_discrete(alpha_t, alpha_s, steps)
        want = (1 - alpha_t) * absorbing_bound(logits[:, : V + 1], clean, weight, V)

        row = scheduler.transition(clean, times)[0]
        states = torch.tensor([V, V + 1])  # the mask and the cluster, which say the same
        losses = token_bound(
            scheduler, logits.expand(2, -1), clean.expand(2), states, times.expand(2)
        )
        torch.testing.assert_close((row[states] * losses).sum(), want[0])


def test_bounds_on_finer_grids_converge_to_that_of_continuous_time():
    logits = torch.randn(2, S, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean, noisy = torch.tensor([1, 1]), torch.tensor([MASK, 7])
    times = float64([0.5, 0.5])
    limit = token_bound(make(3.0), logits, clean, noisy, times)
    errors = []
    for steps in (100, 1_000):
        bound = token_bound(make(3.0, num_train_timesteps=steps), logits, clean, noisy, times)
        errors.append((bound - limit).abs())
    assert (errors[1] < 0.11 * errors[0]).all() and (errors[1] < 0.02).all()


# Clusters


def test_tokens_of_one_direction_are_a_cluster_and_every_token_is_in_the_nearest():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 8, generator=generator)
    truth = torch.arange(60) % 6
    lengths = 0.1 + torch.rand(60, 1, generator=generator)
    points = (centres[truth] + 0.05 * torch.randn(60, 8, generator=generator)) * lengths
    found = cluster_tokens(points, 6)
    pairs = set(zip(truth.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 6 and torch.equal(found, cluster_tokens(points, 6))

    points = torch.randn(200, 5, generator=generator)
    found = cluster_tokens(points, 17)
    points = torch.nn.functional.normalize(points.double(), dim=1)
    means = torch.stack([points[found == cluster].mean(dim=0) for cluster in range(17)])
    means = torch.nn.functional.normalize(means, dim=1)
    assert torch.equal((points @ means.T).argmax(dim=1), found)


def test_there_are_as_many_clusters_as_were_asked_for():
    for points, count in ((torch.ones(5, 2), 3), (torch.zeros(4, 2), 4), (torch.eye(3), 1)):
        assert cluster_tokens(points, count).unique().tolist() == list(range(count))
    with pytest.raises(ValueError, match="`num_clusters` must be .* got 6"):
        cluster_tokens(torch.ones(5, 2), 6)


def test_a_mask_among_the_tokens_has_no_cluster_and_is_never_written():
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    scheduler = D3PMHierarchicalScheduler.from_embeddings(vectors, 2, mask_token_id=1, num_ids=9)
    assert scheduler.config.clusters[1] == -1 and scheduler.first_cluster_id == 9
    scheduler.set_timesteps(5)
    sample = scheduler.prior((2, 400))
    generator = torch.Generator().manual_seed(0)
    for timestep in scheduler.timesteps:
        logits = torch.zeros(2, 400, 11)
        logits[..., 1] = 9.0
        sample = scheduler.step(logits, timestep, sample, generator=generator).prev_sample
    assert set(sample.unique().tolist()) == {0, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster_power": 1.0}, "`cluster_power` must be a number above 1, got 1.0"),
        ({"clusters": torch.tensor([0, 2, 2, 0, 0])}, "`clusters` must be numbers from 0 on"),
        ({"clusters": torch.ones(5)}, "`clusters` must be a tensor \\(V,\\) of integers"),
        ({"vocab_size": 6}, "`vocab_size` must be at least 2 above the 5 of `clusters`, got 6"),
        ({"mask_token_id": 6}, "`mask_token_id` must be below 6"),
        ({"mask_token_id": 2}, "`clusters` must be -1 for `mask_token_id`=2"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused_by_name(changes, message):
    arguments = {"mask_token_id": MASK, "vocab_size": S, "clusters": CLUSTERS}
    with pytest.raises(ValueError, match=message):
        D3PMHierarchicalScheduler(**arguments | changes)
