"""Laws of the kernels that are given by their transitions, against dense matrices, enumeration and golden numbers.

Shapes: S states, V vocabulary size, L length, K tokens of an enumerable source.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import covering, mostly_slow
from scipy.linalg import expm
from support.oracles import (
    MarkovSource,
    TableDenoiser,
    assert_golden,
    bayes_posterior,
    chi_square_passes,
    float64,
    golden_cases,
    transition_matrix,
)

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMBitFlipScheduler,
    D3PMHybridScheduler,
    D3PMMatrixScheduler,
    D3PMNeighborScheduler,
    D3PMUniformScheduler,
)
from text_diffusers.evaluation.bounds import token_bound
from text_diffusers.losses.discrete import uniform_bound_discrete
from text_diffusers.schedulers import scheduling_d3pm_matrix
from text_diffusers.schedulers.noise_schedules import (
    mutual_information,
    mutual_information_schedule,
)
from text_diffusers.schedulers.scheduling_d3pm_bits import embedding_codes, frequency_codes
from text_diffusers.schedulers.scheduling_d3pm_neighbors import (
    GRAPH_RATES,
    hashed_uniform,
    nearest_neighbors,
    neighbor_counts,
)

STEPS = 12
ASYMMETRIC = [
    [0.2, 0.5, 0.3, 0.0],
    [0.1, 0.2, 0.3, 0.4],
    [0.3, 0.3, 0.2, 0.2],
    [0.4, 0.0, 0.2, 0.4],
]


def line(size):
    """Embeddings on a line with a gap, so that the graph of neighbours falls apart."""
    return torch.tensor([[float(i + 10 * (i >= size // 2))] for i in range(size)])


def make(kernel, size=4, **changes):
    settings = {"num_train_timesteps": STEPS} | changes
    if kernel == "hybrid":
        return D3PMHybridScheduler(size, size, mask_fraction=0.7, **settings)
    if kernel == "bit_flip":
        codes = torch.arange(size).flip(0) ^ 1
        return D3PMBitFlipScheduler(size, codes=codes, **settings)
    if kernel == "neighbors":
        return D3PMNeighborScheduler.from_embeddings(line(size), num_neighbors=1, **settings)
    betas = np.linspace(0.1, 0.9, settings["num_train_timesteps"]).tolist()
    shape = {"bandwidth": 1} if kernel == "band" else {}
    if kernel == "matrix":
        shape = {
            "transitions": float64(ASYMMETRIC) if size == 4 else torch.full((size, size), 1 / size)
        }
    return D3PMMatrixScheduler(size, kernel=kernel, betas=betas, **shape | settings)


KERNELS = ["hybrid", "bit_flip", "neighbors", "gaussian", "band", "matrix"]
TIMES = [(1.0, 0.5), (0.75, 0.25), (0.5, 5 / 12), (0.25, 0.0), (1 / 12, 0.0)]


def dense(scheduler, start, end):
    """(S, S) by definition of each kernel, in numpy."""
    size, states = scheduler.config.vocab_size, scheduler.num_states
    if scheduler.corruption == "matrix":
        product = np.eye(size)
        for step in range(round(start * STEPS) + 1, round(end * STEPS) + 1):
            product = product @ scheduler.matrix(step).numpy()
        return product
    if start == end:
        return np.eye(states)
    alpha = (1 - end) / (1 - start)
    if scheduler.corruption == "hybrid":
        noise = np.array([0.3 / size] * size + [0.7])
        return alpha * np.eye(states) + (1 - alpha) * np.tile(noise, (states, 1))
    if scheduler.corruption == "bit_flip":
        codes = scheduler.config.codes.tolist()
        flip = (1 - alpha) / 2
        apart = [[bin(a ^ b).count("1") for b in codes] for a in codes]
        return np.array(
            [[flip**d * (1 - flip) ** (scheduler.num_bits - d) for d in row] for row in apart]
        )
    rates = np.zeros((size, size))
    rates[tuple(scheduler.config.edges.numpy())] = scheduler.config.rates.numpy()
    rates -= np.diag(rates.sum(axis=1))
    walked = (
        expm(-scheduler.config.walk_rate * math.log(alpha) * rates) if alpha > 0 else np.eye(size)
    )
    return alpha * walked + (1 - alpha) / size


# Matrices


@pytest.mark.parametrize("kind", ["gaussian_matrix", "band_matrix", "nn_sinkhorn"])
def test_matrices_equal_the_golden_numbers(kind):
    cases = [
        case
        for case in golden_cases("matrices", kind)
        if case["inputs"].get("variant", "paper") == "paper"
    ]
    assert cases
    for case in cases:
        inputs = case["inputs"]
        shape = {"bandwidth": inputs["bandwidth"]} if kind == "band_matrix" else {}
        if kind == "nn_sinkhorn":
            neighbors = nearest_neighbors(float64(inputs["embeddings"]), inputs["k"])
            assert_golden(
                neighbor_counts(neighbors).to_dense().double(), case["outputs"]["adjacency"], case
            )
            (start, end), values = GRAPH_RATES["sinkhorn"](neighbors)
            base = torch.zeros(6, 6, dtype=torch.float64)
            base[start, end] = values
            assert_golden(base, case["outputs"]["base"], case)
            shape = {"transitions": base}
        kernel = {"nn_sinkhorn": "matrix"}.get(kind, kind.removesuffix("_matrix"))
        betas = inputs["betas"]
        scheduler = D3PMMatrixScheduler(
            6, kernel=kernel, betas=betas, num_train_timesteps=len(betas), **shape
        )
        one_step = torch.stack([scheduler.matrix(step) for step in range(1, len(betas) + 1)])
        cumulative = torch.stack(
            [
                scheduler.transition(torch.arange(6), step / len(betas))
                for step in range(1, len(betas) + 1)
            ]
        )
        assert_golden(one_step, case["outputs"]["one_step"], case)
        assert_golden(cumulative, case["outputs"]["cumulative"], case)


@pytest.mark.parametrize("case", golden_cases("matrices", "nn_expm"), ids=lambda case: case["name"])
def test_rates_and_walks_between_neighbors_equal_the_golden_numbers(case):
    inputs, outputs = case["inputs"], case["outputs"]
    (start, end), values = GRAPH_RATES["rate"](
        nearest_neighbors(float64(inputs["embeddings"]), inputs["k"])
    )
    rates = torch.zeros(6, 6, dtype=torch.float64)
    rates[start, end] = values
    assert_golden(rates - torch.diag(rates.sum(dim=1)), outputs["rate"], case)

    # alpha = 1/e, so walk_rate is the time walked; the uniform part is taken off again.
    for walked, want in zip(np.cumsum(inputs["rates"]), outputs["cumulative"], strict=True):
        scheduler = D3PMNeighborScheduler(
            6,
            edges=torch.stack([start, end]),
            rates=values,
            walk_rate=float(walked),
            num_train_timesteps=4,
        )
        alpha, t = math.exp(-1), 1 - math.exp(-1)
        assert_golden(
            (scheduler.transition(torch.arange(6), t) - (1 - alpha) / 6) / alpha, want, case
        )


@pytest.mark.parametrize(
    "case", golden_cases("matrices", "bit_flip"), ids=lambda case: case["name"]
)
def test_bit_flips_equal_the_golden_numbers(case):
    survival = [1.0, *np.cumprod(1 - np.array(case["inputs"]["betas"])), 0.0]
    scheduler = D3PMBitFlipScheduler(8, schedule=survival, num_train_timesteps=5)
    for step, (one_step, cumulative) in enumerate(
        zip(case["outputs"]["one_step"], case["outputs"]["cumulative"], strict=True), start=1
    ):
        eye = torch.eye(8, dtype=torch.float64)
        assert_golden(scheduler.diffuse(eye, (step - 1) / 5, step / 5), one_step, case)
        assert_golden(scheduler.transition(torch.arange(8), step / 5), cumulative, case)


@pytest.mark.parametrize(
    "case", golden_cases("matrices", "matrix_posterior"), ids=lambda case: case["name"]
)
def test_posteriors_equal_the_golden_numbers(case):
    inputs, outputs = case["inputs"], case["outputs"]
    betas = golden_cases("matrices", "gaussian_matrix")[0]["inputs"]["betas"]
    scheduler = D3PMMatrixScheduler(6, betas=betas, num_train_timesteps=6)
    assert_golden(torch.stack([scheduler.matrix(k) for k in range(1, 7)]), inputs["one_step"], case)
    current = torch.arange(6)
    start, end = (inputs["step"] - 1) / 6, inputs["step"] / 6
    step, total = scheduler.likelihood(current, start, end), scheduler.likelihood(current, 0.0, end)
    for clean in range(6):
        got = scheduler.posterior(
            scheduler.one_hot(torch.full((6,), clean), torch.float64), step, total, start
        )
        assert_golden(got, outputs["q_posterior"][clean], case)
    probs = float64(inputs["x0_probs"]).expand(6, 6)
    assert_golden(
        scheduler.posterior(probs, step, total, start, "plug_in"), outputs["p_plugin"], case
    )
    assert_golden(
        scheduler.posterior(probs, step, total, start, "marginal"), outputs["p_marginal"], case
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_transitions_are_the_dense_matrices_and_compose(kernel):
    scheduler = make(kernel)
    eye = torch.eye(scheduler.num_states, dtype=torch.float64)
    for end, start in TIMES:
        want = dense(scheduler, start, end)
        np.testing.assert_allclose(want.sum(axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(scheduler.diffuse(eye, start, end), want, atol=1e-12)
        np.testing.assert_allclose(
            scheduler.likelihood(torch.arange(len(eye)), start, end), want.T, atol=1e-12
        )
        np.testing.assert_allclose(
            scheduler.transition(torch.arange(len(eye)), end), dense(scheduler, 0.0, end)
        )
        two = scheduler.diffuse(scheduler.diffuse(eye, 0.0, start), start, end)
        np.testing.assert_allclose(two, dense(scheduler, 0.0, end), atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_at_different_times_and_in_float32_are_diffused_alike(kernel):
    scheduler = make(kernel)
    probs = torch.rand(
        5, scheduler.num_states, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    start, end = float64([0.0, 0.25, 0.0, 0.5, 0.0]), float64([1.0, 0.75, 0.5, 0.75, 0.0])
    got = scheduler.diffuse(probs, start, end)
    for row in range(5):
        want = probs[row].numpy() @ dense(scheduler, float(start[row]), float(end[row]))
        np.testing.assert_allclose(got[row], want, atol=1e-12)
    torch.testing.assert_close(
        scheduler.diffuse(probs.float(), start, end), got.float(), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gradient_of_diffusion_is_its_transpose(kernel):
    scheduler = make(kernel)
    probs = torch.rand(2, scheduler.num_states, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: scheduler.diffuse(x, 0.25, 0.75), probs)


def test_a_walk_of_rate_zero_and_a_code_of_one_bit_are_the_uniform_kernel():
    still = make("neighbors", walk_rate=0.0)
    np.testing.assert_allclose(
        still.transition(torch.arange(4), 0.3), transition_matrix("uniform", 0.7, 4)
    )
    bit = D3PMBitFlipScheduler(2)
    np.testing.assert_allclose(
        bit.transition(torch.arange(2), 0.3), transition_matrix("uniform", 0.7, 2)
    )
    nearly_absorbing = D3PMHybridScheduler(4, 4, mask_fraction=1 - 1e-12)
    want = transition_matrix("absorbing", 0.7, 5, 4)
    np.testing.assert_allclose(nearly_absorbing.transition(torch.arange(5), 0.3), want, atol=1e-11)


@pytest.mark.parametrize("normalization", sorted(GRAPH_RATES))
def test_graphs_are_symmetric_and_lead_to_nearest_neighbors_only(normalization):
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(60, 3, generator=generator)
    neighbors = nearest_neighbors(embeddings, 4)
    distances = ((embeddings.unsqueeze(1) - embeddings) ** 2).sum(dim=-1)
    for token in range(60):
        assert set(neighbors[token].tolist()) == set(distances[token].argsort()[1:5].tolist())
    try:
        (start, end), rates = GRAPH_RATES[normalization](neighbors)
    except ValueError as error:
        assert normalization == "sinkhorn" and "no doubly stochastic scaling" in str(error)
        return
    matrix = torch.zeros(60, 60, dtype=torch.float64)
    matrix[start, end] = rates
    assert torch.equal(matrix, matrix.T) and not matrix.diagonal().any()
    near = torch.zeros(60, 60, dtype=torch.bool).scatter_(1, neighbors, True)
    assert torch.equal(matrix > 0, near | near.T)
    if normalization == "metropolis":
        assert matrix.sum(dim=1).max() <= 1 + 1e-12
    else:
        assert float(matrix.sum(dim=1).mean()) == pytest.approx(1.0)


def test_a_graph_without_a_doubly_stochastic_scaling_is_refused():
    star = torch.tensor([[1], [0], [0], [0]])
    with pytest.raises(
        ValueError, match='`normalization` must be "rate" or "metropolis" for this graph'
    ):
        GRAPH_RATES["sinkhorn"](star)


def test_thirty_thousand_tokens_walk_without_a_dense_matrix():
    size = 30_000
    grid = torch.arange(size)
    edges = torch.stack(
        [torch.cat([grid, (grid + 1) % size]), torch.cat([(grid + 1) % size, grid])]
    )
    scheduler = D3PMNeighborScheduler(
        size, edges=edges, rates=torch.full((2 * size,), 0.5), walk_rate=3.0
    )
    tokens = torch.full((2, 5_000), 100)
    noisy = scheduler.add_noise(tokens, 0.25, torch.Generator().manual_seed(0)).flatten() - 100
    near = noisy[noisy.abs() < 10].double()  # the rest was redrawn
    share, walked = 0.75, -3 * math.log(0.75)
    assert abs(len(near) / 10_000 - (share + 0.25 * 19 / size)) < 4 * math.sqrt(
        share * 0.25 / 10_000
    )
    # A walk with hops of one at rate 1 has the variance of its length.
    assert float(near.var()) == pytest.approx(walked, rel=0.1) and abs(float(near.mean())) < 0.05
    logits = torch.zeros(1, 3, size)
    logits[0, :, 100] = 20.0
    scheduler.set_timesteps(10)
    stepped = scheduler.step(logits, scheduler.timesteps[-1], tokens[:1, :3]).prev_sample
    assert stepped.tolist() == [[100, 100, 100]]


def test_codes_are_permutations_that_keep_near_tokens_near():
    generator = torch.Generator().manual_seed(1)
    frequencies = torch.rand(64, generator=generator)
    codes = frequency_codes(frequencies)
    ranked = codes[frequencies.argsort(descending=True)]
    assert sorted(codes.tolist()) == list(range(64))
    assert all(bin(int(a ^ b)).count("1") == 1 for a, b in itertools.pairwise(ranked))

    centres = torch.randn(8, 5, generator=generator) * 10
    embeddings = (centres.unsqueeze(1) + torch.randn(8, 8, 5, generator=generator) * 0.1).flatten(
        0, 1
    )
    codes = embedding_codes(embeddings)
    assert sorted(codes.tolist()) == list(range(64))
    assert all(
        len(set((codes[8 * i : 8 * i + 8] >> 3).tolist())) == 1 for i in range(8)
    )  # a cluster shares 3 bits


def test_hashed_numbers_are_uniform_and_do_not_follow_each_other():
    from scipy.stats import kstest

    seeds = torch.arange(20_000, dtype=torch.float64) / 20_000
    first, second = hashed_uniform(seeds, 1), hashed_uniform(seeds, 2)
    for numbers in (first, second):
        assert kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    assert (
        abs(np.corrcoef(first, second)[0, 1]) < 0.03 and abs(np.corrcoef(first, seeds)[0, 1]) < 0.03
    )


# Noise, posterior, step


@pytest.mark.parametrize(
    "kernel", mostly_slow(KERNELS, fast=["hybrid", "bit_flip", "neighbors", "band"])
)
def test_noise_has_the_row_of_the_dense_matrix(kernel):
    scheduler = make(kernel)
    times = float64([0.0, 0.25, 0.75, 1.0])
    tokens = torch.full((4, 20_000), 1)
    noisy = scheduler.add_noise(tokens, times, torch.Generator().manual_seed(4))
    for row, t in enumerate(times.tolist()):
        counts = np.bincount(noisy[row], minlength=scheduler.num_states)
        assert chi_square_passes(counts, dense(scheduler, 0.0, t)[1])
    per_token = times[[1, 2]].unsqueeze(1).expand(2, 5)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    again = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    assert torch.equal(
        scheduler.add_noise(tokens[:2, :5], per_token, seeds),
        scheduler.add_noise(tokens[:2, :5], times[[1, 2]], again),
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_gets_the_same_noise_alone_and_in_a_longer_batch(kernel):
    scheduler = make(kernel)
    tokens = torch.randint(0, 4, (3, 40), generator=torch.Generator().manual_seed(0))

    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = scheduler.add_noise(tokens, float64([0.3, 0.6, 0.9]), seeded(1, 2, 3))
    alone = scheduler.add_noise(tokens[1:2, :30], 0.6, seeded(2))
    assert torch.equal(together[1, :30], alone[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_noise_ends_in_the_prior(kernel):
    scheduler = make(kernel, num_train_timesteps=STEPS)
    noise = np.bincount(scheduler.prior((1, 40_000), torch.Generator().manual_seed(0))[0])
    end = dense(scheduler, 0.0, 1.0)
    prior = np.array([0.075] * 4 + [0.7]) if kernel == "hybrid" else np.full(4, 0.25)
    assert chi_square_passes(noise, prior)
    divergence = (end * np.log(np.maximum(end, 1e-300) / prior)).sum(axis=1)
    tokens = torch.arange(4).unsqueeze(0)
    np.testing.assert_allclose(scheduler.prior_bound(tokens)[0], divergence[:4], atol=1e-12)
    assert (divergence[:4].max() < 1e-12) == (scheduler.corruption != "matrix")


@pytest.mark.parametrize("kernel, rule", covering(KERNELS, ["marginal", "plug_in"]))
def test_reverse_step_is_bayes_on_dense_matrices_and_what_steps_draw(kernel, rule):
    scheduler = make(kernel, reverse_rule=rule, temperature=0.7, top_k=3)
    states, size = scheduler.num_states, scheduler.num_tokens
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(states, size, generator=generator, dtype=torch.float64)
    kept = (
        torch.where(logits >= logits.topk(3).values[:, -1:], logits / 0.7, -math.inf)
        .softmax(dim=-1)
        .numpy()
    )
    clean = np.concatenate([kept, np.zeros((states, states - size))], axis=1)
    scheduler.set_timesteps(4)
    current = torch.arange(states)
    for timestep in scheduler.timesteps:
        end, start = float(timestep), float(timestep) - 0.25
        until, between, whole = (
            dense(scheduler, 0, start),
            dense(scheduler, start, end),
            dense(scheduler, 0, end),
        )
        want = np.zeros((states, states))
        for x_t in range(states):
            if rule == "plug_in":
                want[x_t] = bayes_posterior(between, until, x_t, clean[x_t])
                continue
            for x_0 in range(size):
                if whole[x_0, x_t] > 0:
                    want[x_t] += clean[x_t, x_0] * bayes_posterior(
                        between, until, x_t, np.eye(states)[x_0]
                    )
            want[x_t] /= want[x_t].sum()
        got = scheduler.reverse_probs(logits.unsqueeze(0), timestep, current.unsqueeze(0))[0]
        np.testing.assert_allclose(got, want, atol=1e-12)

        rows = current.expand(4_000, states).contiguous()
        predictions = logits.expand(4_000, states, size)
        drawn = scheduler.step(predictions, timestep, rows, generator=generator).prev_sample
        assert torch.equal(rows, current.expand(4_000, states))
        for x_t in range(states):
            assert chi_square_passes(np.bincount(drawn[:, x_t], minlength=states), want[x_t])


def test_positions_that_are_not_selected_stay():
    scheduler = make("bit_flip")
    sample = torch.randint(0, 4, (3, 6), generator=torch.Generator().manual_seed(0))
    positions = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    stepped = scheduler.step(
        torch.zeros(int(positions.sum()), 4), 1.0, sample, positions=positions
    ).prev_sample
    assert torch.equal(stepped[~positions], sample[~positions])


# Sampling and bound with the exact denoiser of an enumerable source


def exact_denoiser(source, scheduler, t):
    """(S, ..., S, L, K) log-probabilities of x_0 given x_t."""
    matrix, size = dense(scheduler, 0.0, t), scheduler.num_states
    table = np.zeros((size,) * source.length + (source.length, source.num_tokens))
    for noisy in itertools.product(range(size), repeat=source.length):
        weight = source.probs * np.prod(matrix[source.sequences, np.array(noisy)], axis=1)
        weight = weight / weight.sum() if weight.sum() > 0 else source.probs
        for position in range(source.length):
            np.add.at(table[noisy][position], source.sequences[:, position], weight)
    return torch.tensor(np.log(np.maximum(table, 1e-300)))


TRANSITION = 0.9 * np.array(ASYMMETRIC) + 0.025
SOURCE = MarkovSource([0.4, 0.3, 0.2, 0.1], TRANSITION, length=2)


@pytest.mark.parametrize("kernel", mostly_slow(KERNELS, fast=["hybrid"]))
def test_sampling_has_the_distribution_of_the_dense_chain(kernel):
    scheduler = make(kernel)
    scheduler.set_timesteps(4)
    states = torch.tensor(list(itertools.product(range(scheduler.num_states), repeat=2)))
    tables = {float(t): exact_denoiser(SOURCE, scheduler, float(t)) for t in scheduler.timesteps}
    prior = np.array([0.075] * 4 + [0.7]) if kernel == "hybrid" else np.full(4, 0.25)
    current = np.prod(prior[states.numpy()], axis=1)
    for timestep in scheduler.timesteps:
        by_position = scheduler.reverse_probs(
            tables[float(timestep)][tuple(states.T)], timestep, states
        ).numpy()
        chain = np.ones((len(states), len(states)))
        for position in range(2):
            chain *= by_position[:, position][:, states[:, position]]
        current = current @ chain

    denoiser = TableDenoiser(lambda t: tables[t], scheduler.num_states)
    generator = torch.Generator().manual_seed(0)
    tokens = scheduler.prior((20_000, 2), generator)
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens, generator)
        logits = denoiser(tokens, timestep, positions=positions).logits
        tokens = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generator
        ).prev_sample
    counts = [int((tokens == state).all(dim=1).sum()) for state in states]
    assert chi_square_passes(counts, current)
    clean = (states < 4).all(dim=1).numpy()
    assert current[~clean].sum() < 1e-12
    if kernel in (
        "hybrid",
        "bit_flip",
        "neighbors",
    ):  # four steps are near the data; the others have not mixed
        assert np.abs(current[clean] - SOURCE.probs).sum() / 2 < 0.15


def enumerated_bound(source, scheduler):
    """E over x_0, x_t and all T times of the integrand, through `token_bound`, and the prior term; nats a sequence."""
    steps, total = scheduler.config.num_train_timesteps, 0.0
    states = torch.tensor(
        list(itertools.product(range(scheduler.num_states), repeat=source.length))
    )
    clean = torch.tensor(source.sequences)
    for step in range(1, steps + 1):
        t = step / steps
        matrix = dense_at(scheduler, step)
        logits = exact_denoiser_at(source, scheduler, matrix)[tuple(states.T)].flatten(0, 1)
        for sequence, prob in zip(clean, source.probs, strict=True):
            weight = np.prod(matrix[sequence.numpy(), states.numpy()], axis=1) * prob
            times = torch.full((states.numel(),), t, dtype=torch.float64)
            loss = token_bound(
                scheduler, logits, sequence.expand(states.shape).flatten(), states.flatten(), times
            )
            total += (
                float(
                    (loss.view(states.shape).sum(dim=1).nan_to_num() * torch.tensor(weight)).sum()
                )
                / steps
            )
    return total + float(
        (scheduler.prior_bound(clean).sum(dim=1) * torch.tensor(source.probs)).sum()
    )


def dense_at(scheduler, step):
    return scheduler.transition(
        torch.arange(scheduler.num_states), step / scheduler.config.num_train_timesteps
    ).numpy()


def exact_denoiser_at(source, scheduler, matrix):
    size = scheduler.num_states
    noisy = np.array(list(itertools.product(range(size), repeat=source.length)))
    weight = source.probs[:, None] * np.prod(
        matrix[source.sequences[:, None], noisy[None]], axis=2
    )  # (sequences, S^L)
    weight = weight / np.maximum(weight.sum(axis=0), 1e-300)
    table = np.zeros((len(noisy), source.length, source.num_tokens))
    for position in range(source.length):
        for token in range(source.num_tokens):
            table[:, position, token] = weight[source.sequences[:, position] == token].sum(axis=0)
    shape = (size,) * source.length + (source.length, source.num_tokens)
    return torch.tensor(np.log(np.maximum(table, 1e-300)).reshape(shape))


@pytest.mark.parametrize("kernel", mostly_slow(KERNELS, fast=["hybrid"]))
def test_the_bound_lies_above_the_entropy_and_comes_down_to_it_with_more_steps(kernel):
    bounds = []
    for steps in (4, 48):
        settings = {"num_train_timesteps": steps}
        if kernel in ("gaussian", "band", "matrix"):
            settings["betas"] = (1 - np.exp(-np.full(steps, 12.0 / steps))).tolist()
        scheduler = (
            make(kernel, **settings)
            if "betas" not in settings
            else matrix_scheduler(kernel, settings)
        )
        bounds.append(enumerated_bound(SOURCE, scheduler))
    assert bounds[0] > bounds[1] > SOURCE.entropy - 1e-9
    assert bounds[1] - SOURCE.entropy < 0.08


def matrix_scheduler(kernel, settings):
    shape = {"band": {"bandwidth": 2}, "matrix": {"transitions": float64(ASYMMETRIC)}}.get(
        kernel, {}
    )
    return D3PMMatrixScheduler(4, kernel=kernel, **shape, **settings)


def test_the_bound_of_a_walk_of_rate_zero_is_that_of_the_uniform_kernel():
    walk = make("neighbors", walk_rate=0.0, num_train_timesteps=20)
    uniform = D3PMUniformScheduler(4, num_train_timesteps=20)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    clean, noisy = (torch.randint(0, 4, (200,), generator=generator) for _ in range(2))
    times = (torch.randint(1, 20, (200,), generator=generator) / 20).double()
    for rule in ("marginal", "plug_in"):
        walk.register_to_config(reverse_rule=rule)
        want = uniform_bound_discrete(
            logits, clean, noisy, uniform.alpha(times), uniform.alpha(times - 0.05), 20, rule
        )
        torch.testing.assert_close(token_bound(walk, logits, clean, noisy, times), want)


# Schedules by mutual information


def test_absorbing_noise_loses_information_linearly():
    frequencies = float64([5.0, 3.0, 1.0, 1.0])
    entropy = float(torch.distributions.Categorical(frequencies / 10).entropy())
    times = [0.0, 0.3, 0.8, 1.0]
    got = mutual_information(D3PMAbsorbingScheduler(4), frequencies, times)
    assert got == pytest.approx([entropy * (1 - t) for t in times], abs=1e-12)


@pytest.mark.parametrize("kernel", ["uniform", "neighbors", "bit_flip"])
def test_under_its_schedule_a_kernel_loses_information_linearly(kernel):
    size = 16
    frequencies = 1 / torch.arange(1.0, size + 1)
    build = (
        (lambda **k: D3PMUniformScheduler(size, **k))
        if kernel == "uniform"
        else lambda **k: make(kernel, size, **k)
    )
    scheduler = build(schedule=mutual_information_schedule(build(), frequencies))
    times = np.linspace(0, 1, 13)
    information = mutual_information(scheduler, frequencies, times.tolist())
    np.testing.assert_allclose(np.array(information) / information[0], 1 - times, atol=5e-3)
    linear = mutual_information(build(), frequencies, times.tolist())
    assert np.abs(np.array(linear) / linear[0] - 1 + times).max() > 0.05


def test_a_schedule_of_values_is_joined_by_straight_lines():
    scheduler = D3PMUniformScheduler(4, schedule=[1.0, 0.4, 0.1, 0.0])
    times = float64([0.0, 1 / 6, 1 / 3, 0.5, 1.0])
    torch.testing.assert_close(scheduler.alpha(times), float64([1.0, 0.7, 0.4, 0.25, 0.0]))
    torch.testing.assert_close(
        scheduler.alpha_derivative(times), float64([-1.8, -1.8, -1.8, -0.9, -0.3])
    )
    for values in ([1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [0.9, 0.0]):
        with pytest.raises(ValueError, match="`schedule` must fall from 1 to 0"):
            D3PMUniformScheduler(4, schedule=values)


# Configuration


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_survive_saving_and_changing(kernel, tmp_path):
    scheduler = make(kernel, temperature=0.5)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    changed = type(scheduler).from_config(scheduler.config, temperature=0.9)
    assert loaded.config.temperature == 0.5 and changed.config.temperature == 0.9
    for other in (loaded, changed):
        got = other.transition(torch.arange(4), 0.5)
        torch.testing.assert_close(got, scheduler.transition(torch.arange(4), 0.5), rtol=0, atol=0)
    assert "[" not in (tmp_path / "scheduler_config.json").read_text() or kernel in (
        "gaussian",
        "band",
        "matrix",
    )


def test_a_matrix_that_has_not_mixed_is_reported(caplog):
    import logging

    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        D3PMMatrixScheduler(8, kernel="band", bandwidth=1, num_train_timesteps=10)
    diffusers_logging.disable_propagation()
    assert "nats from uniform noise" in caplog.text


def test_products_are_not_all_kept(monkeypatch):
    steps = 100
    monkeypatch.setattr(scheduling_d3pm_matrix, "STORED_NUMBERS", 0)
    scheduler = D3PMMatrixScheduler(60, num_train_timesteps=steps)
    assert len(scheduler._stored) == math.isqrt(steps) + 1
    rows = scheduler.transition(torch.tensor([3, 50]), 0.3)
    product = torch.zeros(2, 60, dtype=torch.float64).index_put_(
        (torch.arange(2), torch.tensor([3, 50])), float64(1.0)
    )
    for step in range(1, 31):
        product = product @ scheduler.matrix(step)
    torch.testing.assert_close(rows, product, atol=1e-13, rtol=1e-9)


@pytest.mark.parametrize("reverse_rule", ["marginal", "plug_in"])
def test_the_mask_of_hybrid_noise_may_stand_among_the_tokens(reverse_rule):
    settings = {"num_train_timesteps": STEPS, "reverse_rule": reverse_rule}
    scheduler = D3PMHybridScheduler(1, 4, mask_fraction=0.7, **settings)
    noise = np.full(4, 0.3 / 4) + 0.7 * np.eye(4)[1]
    rows = scheduler.transition(torch.arange(4), 0.75).numpy()
    np.testing.assert_allclose(rows, 0.25 * np.eye(4) + 0.75 * noise, atol=1e-12)

    generator = torch.Generator().manual_seed(0)
    noisy = scheduler.add_noise(torch.full((1, 20_000), 3), 0.75, generator)
    assert chi_square_passes(np.bincount(noisy[0], minlength=4), rows[3] * 20_000)

    # x_0 is never the mask, whatever the logits say.
    scheduler.set_timesteps(4)
    sample = scheduler.prior((2, 500), generator)
    for timestep in scheduler.timesteps:
        logits = torch.zeros(2, 500, 4)
        logits[..., 1] = 9.0
        sample = scheduler.step(logits, timestep, sample, generator=generator).prev_sample
    assert set(sample.unique().tolist()) == {0, 2, 3}


@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_that_is_no_state_stays(kernel):
    scheduler = make(kernel)
    tokens = torch.tensor([[0, 1, 2, 3, 9, 9]])
    assert scheduler.add_noise(tokens, 1.0)[0, 4:].tolist() == [9, 9]


@pytest.mark.parametrize(
    "make_it, message",
    [
        (
            lambda: D3PMHybridScheduler(-1, 4),
            "`mask_token_id` must be an integer of at least 0, got -1",
        ),
        (
            lambda: D3PMHybridScheduler(4, 4, mask_fraction=1.0),
            "`mask_fraction` must be .* exclusive, got 1.0",
        ),
        (
            lambda: D3PMHybridScheduler(4, 4, num_train_timesteps=None),
            "`num_train_timesteps` must be .* got None",
        ),
        (lambda: D3PMHybridScheduler(4, 4, reverse_rule="x"), "`reverse_rule` must be one of"),
        (lambda: D3PMBitFlipScheduler(6), "`vocab_size` must be a power of two, got 6"),
        (
            lambda: D3PMBitFlipScheduler(4, num_tokens=5),
            "`num_tokens` must be .* `vocab_size`=4, got 5",
        ),
        (
            lambda: D3PMBitFlipScheduler(4, codes=torch.tensor([0, 1, 1, 3])),
            "`codes` must be a permutation of 0 to 3",
        ),
        (
            lambda: D3PMMatrixScheduler(5000),
            "`vocab_size` must be an integer from 2 to 4096, got 5000",
        ),
        (lambda: D3PMMatrixScheduler(4, kernel="bands"), "`kernel` must be one of"),
        (
            lambda: D3PMMatrixScheduler(4, kernel="band"),
            '`bandwidth` must be given with kernel "band" only',
        ),
        (
            lambda: D3PMMatrixScheduler(4, bandwidth=2),
            '`bandwidth` must be given with kernel "band" only, got 2',
        ),
        (
            lambda: D3PMMatrixScheduler(4, kernel="band", bandwidth=0),
            "`bandwidth` must be an integer of at least 1",
        ),
        (
            lambda: D3PMMatrixScheduler(4, kernel="matrix"),
            '`transitions` must be given with kernel "matrix" only',
        ),
        (
            lambda: D3PMMatrixScheduler(4, kernel="matrix", transitions=torch.eye(3)),
            r"`transitions` must be \(4, 4\), got \(3, 3\)",
        ),
        (
            lambda: D3PMMatrixScheduler(
                2, kernel="matrix", transitions=float64([[0.9, 0.1], [0.3, 0.7]])
            ),
            "`transitions` must be doubly stochastic",
        ),
        (
            lambda: D3PMMatrixScheduler(4, betas=[0.1, 0.2]),
            "`betas` must be as many as `num_train_timesteps`=1000",
        ),
        (
            lambda: D3PMMatrixScheduler(4, betas=[0.0], num_train_timesteps=1),
            r"`betas` must be numbers in \(0, 1\]",
        ),
        (
            lambda: make("neighbors", walk_rate=-1.0),
            "`walk_rate` must be a number of at least 0, got -1.0",
        ),
        (
            lambda: D3PMNeighborScheduler(
                4, edges=torch.tensor([[0, 1], [1, 0]]), rates=float64([0.2, 0.3])
            ),
            "`rates` must be the same from a to b as from b to a",
        ),
        (
            lambda: D3PMNeighborScheduler(
                4, edges=torch.tensor([[0, 4], [4, 0]]), rates=float64([0.2, 0.2])
            ),
            "`edges` must be pairs of different ids below 4",
        ),
        (
            lambda: nearest_neighbors(line(4), 4),
            "`num_neighbors` must be an integer from 1 to 3, got 4",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


@pytest.mark.parametrize("rule", ["marginal", "plug_in"])
def test_predictions_from_which_one_does_not_get_to_x_t_neither_break_the_bound_nor_a_step(rule):
    betas = [2e-5] * 4  # steps of a few ids out of 300
    scheduler = D3PMMatrixScheduler(
        300, betas=betas, num_train_timesteps=4, reverse_rule=rule, temperature=0.0
    )
    clean = torch.arange(0, 300, 7)
    noisy = scheduler.add_noise(clean.unsqueeze(0), 0.5, torch.Generator().manual_seed(0))[0]
    far = torch.nn.functional.one_hot((clean + 150) % 300, 300) * 200.0
    logits = far.requires_grad_()
    bound = token_bound(
        scheduler, logits, clean, noisy, torch.full((len(clean),), 0.5, dtype=torch.float64)
    )
    bound.sum().backward()
    assert torch.isfinite(bound).all() and torch.isfinite(logits.grad).all() and (bound >= 0).all()
    scheduler.set_timesteps(4)
    stepped = scheduler.step(
        far.detach().unsqueeze(0), scheduler.timesteps[2], noisy.unsqueeze(0)
    ).prev_sample
    assert ((stepped >= 0) & (stepped < 300)).all()
