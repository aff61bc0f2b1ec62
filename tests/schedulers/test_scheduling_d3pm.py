"""Laws of the D3PM schedulers, against dense matrices, enumeration and golden numbers.

Shapes: B batch, L length, V vocabulary size, T steps.
"""

import math

import numpy as np
import pytest
import torch
from conftest import covering, slow
from support.oracles import (
    MarkovSource,
    TableDenoiser,
    alpha_by_definition,
    assert_golden,
    bayes_posterior,
    chi_square_passes,
    float64,
    golden_cases,
    transition_matrix,
)

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.common.randomness import rand
from text_diffusers.common.sampling import sample_tokens, token_weights
from text_diffusers.schedulers.noise_schedules import NOISE_SCHEDULES
from text_diffusers.schedulers.scheduling_d3pm import (
    absorbing_reverse,
    reveal_prob,
    uniform_reverse,
)

V = 5
MASK = V - 1
SCHEDULES = sorted(NOISE_SCHEDULES)
TIMES = [(1.0, 0.7), (0.9, 0.4), (0.5, 0.45), (0.2, 0.0), (0.01, 0.0)]


def make(kernel, **changes):
    return (
        D3PMAbsorbingScheduler(MASK, **changes)
        if kernel == "absorbing"
        else D3PMUniformScheduler(V, **changes)
    )


def alphas(scheduler, t, s):
    return scheduler.alpha(float64(t)).view(-1, 1, 1), scheduler.alpha(float64(s)).view(-1, 1, 1)


# Schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alpha_is_the_papers_and_runs_from_exactly_one_to_exactly_zero(schedule):
    scheduler = make("absorbing", schedule=schedule)
    times = np.linspace(0, 1, 41)
    want = [alpha_by_definition(schedule, t) for t in times]
    assert scheduler.alpha(torch.tensor(times)).dtype == torch.float64
    np.testing.assert_allclose(scheduler.alpha(torch.tensor(times)), want, atol=1e-14)
    assert float(scheduler.alpha(0.0)) == 1.0 and float(scheduler.alpha(1.0)) == 0.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alpha_derivative_is_the_slope_of_alpha(schedule):
    scheduler = make("uniform", schedule=schedule)
    times = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    h = 1e-6
    slope = (scheduler.alpha(times + h) - scheduler.alpha(times - h)) / (2 * h)
    torch.testing.assert_close(scheduler.alpha_derivative(times), slope, rtol=1e-7, atol=1e-9)


def test_reciprocal_schedule_is_the_product_of_one_minus_beta():
    steps = 50
    survival = np.cumprod([1 - 1 / (steps - i + 1) for i in range(1, steps + 1)])
    scheduler = make("absorbing", schedule="reciprocal", num_train_timesteps=steps)
    np.testing.assert_allclose(
        scheduler.alpha(torch.arange(1, steps + 1) / steps), survival, atol=1e-7
    )


# Posterior and reverse step


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t, s", TIMES)
@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_reverse_step_is_bayes_on_dense_matrices(kernel, schedule, t, s):
    scheduler = make(kernel, schedule=schedule)
    alpha_t, alpha_s = float(scheduler.alpha(t)), float(scheduler.alpha(s))
    between = transition_matrix(kernel, alpha_t / alpha_s, V, MASK)
    until = transition_matrix(kernel, alpha_s, V, MASK)
    probs = torch.rand(1, V, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kernel == "absorbing":
        probs[..., MASK] = 0
    probs = probs / probs.sum(dim=-1, keepdim=True)
    sample = torch.arange(V).unsqueeze(0)  # every x_t, one a position
    eye = np.eye(V)
    for rule in ["marginal", "plug_in"] if kernel == "uniform" else [None]:
        if kernel == "uniform":
            got = uniform_reverse(probs, sample, alpha_t, alpha_s, rule)[0]
        else:
            got = absorbing_reverse(probs, sample, reveal_prob(alpha_t, alpha_s), 0.0, MASK)[0]
        for current in range(V):
            clean = probs[0, current].numpy()
            if kernel == "absorbing" and current != MASK:
                want = eye[current]  # a revealed token stays
            elif rule == "plug_in":
                want = bayes_posterior(between, until, current, clean)
            else:
                reachable = [k for k in range(V) if clean[k] > 0]
                want = sum(
                    clean[k] * bayes_posterior(between, until, current, eye[k]) for k in reachable
                )
            np.testing.assert_allclose(got[current], want, atol=1e-12)


@pytest.mark.parametrize("t, s", TIMES)
def test_plug_in_with_a_leave_one_out_prediction_is_the_marginal_rule(t, s):
    scheduler = make("uniform")
    alpha_t, alpha_s = float(scheduler.alpha(t)), float(scheduler.alpha(s))
    probs = torch.rand(1, V, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    probs = probs / probs.sum(dim=-1, keepdim=True)
    sample = torch.arange(V).unsqueeze(0)
    seen = torch.tensor(transition_matrix("uniform", alpha_t, V)).T.unsqueeze(
        0
    )  # q(x_t = position | x_0)
    leave_one_out = probs / seen
    leave_one_out = leave_one_out / leave_one_out.sum(dim=-1, keepdim=True)
    marginal = uniform_reverse(probs, sample, alpha_t, alpha_s, "marginal")
    plug_in = uniform_reverse(leave_one_out, sample, alpha_t, alpha_s, "plug_in")
    torch.testing.assert_close(plug_in, marginal, atol=1e-14, rtol=1e-12)
    if 0 < s and t < 1:
        assert (
            uniform_reverse(probs, sample, alpha_t, alpha_s, "plug_in") - marginal
        ).abs().max() > 1e-4


@pytest.mark.parametrize(
    "case", golden_cases("d3pm_absorbing", "absorbing_reverse"), ids=lambda case: case["name"]
)
def test_absorbing_step_equals_the_golden_numbers(case):
    inputs, outputs = case["inputs"], case["outputs"]
    scheduler = D3PMAbsorbingScheduler(inputs["mask_id"], schedule=inputs["schedule"])
    alpha_t, alpha_s = alphas(scheduler, inputs["t"], inputs["s"])
    assert_golden(alpha_t.flatten(), outputs["alpha_t"], case)
    logits = float64(inputs["logits"])
    probs = token_weights(logits.flatten(0, 1), mask_token_id=inputs["mask_id"])
    probs = (probs / probs.sum(dim=-1, keepdim=True)).view(logits.shape)
    sample = torch.tensor(inputs["xt"])
    masked = sample == inputs["mask_id"]
    assert_golden(probs[masked], float64(outputs["subs_probs"])[masked].tolist(), case)
    got = absorbing_reverse(probs, sample, reveal_prob(alpha_t, alpha_s), 0.0, inputs["mask_id"])
    assert_golden(got, outputs["p_reverse"], case)


@pytest.mark.parametrize(
    "case", golden_cases("d3pm_uniform", "uniform_reverse"), ids=lambda case: case["name"]
)
def test_uniform_step_equals_the_golden_numbers(case):
    inputs, outputs = case["inputs"], case["outputs"]
    scheduler = D3PMUniformScheduler(inputs["vocab_size"], schedule=inputs["schedule"])
    probs, sample = float64(inputs["logits"]).softmax(dim=-1), torch.tensor(inputs["xt"])
    both = alphas(scheduler, inputs["t"], inputs["s"])
    assert_golden(uniform_reverse(probs, sample, *both, "plug_in"), outputs["p_plugin"], case)
    assert_golden(uniform_reverse(probs, sample, *both, "marginal"), outputs["p_marginal"], case)
    clean = torch.nn.functional.one_hot(torch.tensor(inputs["x0"]), inputs["vocab_size"]).double()
    assert_golden(uniform_reverse(clean, sample, *both, "marginal"), outputs["q_posterior"], case)


# Sampling


@pytest.mark.parametrize(
    "rule, dense", covering(["absorbing", "marginal", "plug_in"], [False, True])
)
def test_steps_draw_from_the_reverse_distribution(rule, dense):
    kernel = "absorbing" if rule == "absorbing" else "uniform"
    scheduler = make(
        kernel, schedule="cosine", **({} if kernel == "absorbing" else {"reverse_rule": rule})
    )
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, V, V, generator=generator)
    sample = torch.arange(V).unsqueeze(0)
    many = 20_000
    for timestep in scheduler.timesteps:
        want = scheduler.reverse_probs(logits, timestep, sample)[0]
        rows, predictions = sample.expand(many, V), logits.expand(many, V, V)
        if dense:
            drawn = scheduler.step(predictions, timestep, rows, generator=generator).prev_sample
        else:
            positions = scheduler.select(timestep, rows, generator)
            drawn = scheduler.step(
                predictions[positions], timestep, rows, positions=positions, generator=generator
            ).prev_sample
        for current in range(V):
            assert chi_square_passes(
                np.bincount(drawn[:, current], minlength=V), want[current].numpy()
            )


@pytest.mark.parametrize(
    "case", golden_cases("sampling", "ancestral_enumeration"), ids=lambda case: case["name"]
)
def test_absorbing_sampling_has_the_enumerated_distribution(case):
    inputs = case["inputs"]
    size, length = inputs["K"] + 1, inputs["L"]
    table = torch.full((size,) * length + (length, size), -math.inf, dtype=torch.float64)
    for pattern, rows in inputs["denoiser"].items():
        table[tuple(map(int, pattern.split()))][:, :-1] = float64(rows).log()
    scheduler = D3PMAbsorbingScheduler(inputs["K"], schedule=inputs["schedule"])
    tokens = run(
        scheduler, TableDenoiser(table, size), inputs["num_steps"], rows=20_000, length=length
    )
    counts = np.zeros((inputs["K"],) * length)
    np.add.at(counts, tuple(tokens.T.numpy()), 1)
    assert chi_square_passes(counts, np.array(case["outputs"]["probs"]))


def run(scheduler, denoiser, steps, rows, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    tokens = scheduler.prior((rows, length), generator)
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens, generator)
        if positions.any():
            logits = denoiser(tokens, timestep, positions=positions).logits
        else:
            logits = torch.zeros(0, denoiser.config.vocab_size)
        tokens = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generator
        ).prev_sample
    return tokens


@pytest.mark.parametrize(
    "case",
    [
        slow(case) if case["inputs"]["num_steps"] == 1000 else case
        for case in golden_cases("sampling", "forward_rows")
    ],
    ids=lambda case: case["name"],
)
def test_a_row_is_selected_in_as_many_steps_as_enumeration_says(case):
    inputs, rows = case["inputs"], 2000
    scheduler = D3PMAbsorbingScheduler(MASK, schedule=inputs["schedule"])
    scheduler.set_timesteps(inputs["num_steps"])
    generator = torch.Generator().manual_seed(8)
    tokens, needed = scheduler.prior((rows, inputs["L"])), torch.zeros(rows)
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens, generator)
        needed += positions.any(dim=1)
        tokens = tokens.masked_fill(positions, 0)
    error = float(needed.std()) / math.sqrt(rows)
    assert abs(float(needed.mean()) - case["outputs"]["expected_forwards_per_row"]) < 4 * error


@pytest.mark.slow
def test_twenty_thousand_samples_pass_a_chi_square_test_against_the_source():
    source = MarkovSource.golden()
    scheduler = D3PMAbsorbingScheduler(source.num_tokens)
    denoiser = TableDenoiser(source.masked_denoiser(), source.num_tokens + 1)
    tokens = run(scheduler, denoiser, steps=1000, rows=20_000, length=source.length)
    counts = [
        int((tokens == torch.tensor(sequence)).all(dim=1).sum()) for sequence in source.sequences
    ]
    assert sum(counts) == 20_000
    assert chi_square_passes(counts, source.probs)


@pytest.mark.parametrize("rule", ["marginal", slow("plug_in")])
def test_uniform_sampling_has_the_distribution_of_the_dense_chain(rule):
    source, steps = MarkovSource.golden(), 6
    scheduler = D3PMUniformScheduler(source.num_tokens, reverse_rule=rule)
    scheduler.set_timesteps(steps)

    def predictions(t):
        return source.uniform_denoiser(float(scheduler.alpha(t)))

    states = torch.tensor(source.sequences)
    current = np.full(len(states), 1 / len(states))
    for timestep in scheduler.timesteps:
        logits = predictions(float(timestep))[tuple(states.T)]
        by_position = scheduler.reverse_probs(logits, timestep, states).numpy()  # (27, L, K)
        chain = np.ones((len(states), len(states)))
        for position in range(source.length):
            chain *= by_position[:, position][:, source.sequences[:, position]]
        current = current @ chain
    tokens = run(
        scheduler,
        TableDenoiser(predictions, source.num_tokens),
        steps,
        rows=20_000,
        length=source.length,
    )
    counts = [int((tokens == state).all(dim=1).sum()) for state in states]
    assert chi_square_passes(counts, current)


def test_a_vocabulary_of_a_million_unmasks_at_the_right_rate():
    size, rows = 2**20, 512
    scheduler = D3PMAbsorbingScheduler(size - 1)
    scheduler.set_timesteps(40)
    generator = torch.Generator().manual_seed(5)
    tokens = scheduler.prior((rows, 1), generator)
    logits = torch.zeros(1, 1, size).expand(rows, 1, size)
    stepped = scheduler.step(
        logits, scheduler.timesteps[0], tokens, generator=generator
    ).prev_sample
    revealed = int((stepped != size - 1).sum())
    expected, sigma = rows / 40, math.sqrt(rows * (1 / 40) * (39 / 40))
    assert abs(revealed - expected) < 3 * sigma


def test_inverse_cdf_draws_each_of_a_million_flat_tokens_alike():
    from scipy.stats import kstest

    size = 2**20
    uniform = torch.rand(2000, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    weights = token_weights(torch.zeros(1, size))
    drawn = torch.cat([sample_tokens(weights, u.unsqueeze(0)) for u in uniform])
    assert kstest(drawn.double().numpy() / size, "uniform").pvalue > 1e-3
    torch.testing.assert_close(drawn, (uniform * size).long(), atol=1, rtol=0)


def test_inverse_cdf_never_draws_an_impossible_token():
    weights = torch.zeros(3, 1000)
    weights[:, [7, 600]] = 1.0
    extremes = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert sample_tokens(weights, extremes).tolist() == [7, 600, 600]


@pytest.mark.parametrize("case", golden_cases("sampling", "filter"), ids=lambda case: case["name"])
def test_temperature_top_k_and_top_p_equal_transformers(case):
    inputs = case["inputs"]
    weights = token_weights(
        float64(inputs["logits"]), inputs["temperature"], inputs["top_k"], inputs["top_p"]
    )
    assert_golden(weights / weights.sum(dim=-1, keepdim=True), case["outputs"]["probs"], case)


@pytest.mark.parametrize(
    "kernel, changes", [("absorbing", {}), ("uniform", {}), ("uniform", {"top_p": 0.9})]
)
@pytest.mark.parametrize("rule", ["marginal", "plug_in"])
def test_logits_shaped_in_blocks_draw_the_tokens_of_all_at_once(kernel, changes, rule, monkeypatch):
    scheduler = make(kernel, **changes | ({"reverse_rule": rule} if kernel == "uniform" else {}))
    scheduler.set_timesteps(1)
    shape, generator = (3, 7), torch.Generator().manual_seed(0)
    sample, logits = scheduler.prior(shape, generator), torch.randn(*shape, V, generator=generator)
    tokens = []
    for size in (1, 4 * V + 1, 100 * V):  # blocks of one row, of four, and of all
        monkeypatch.setattr("text_diffusers.common.sampling.CPU_BLOCK", size)
        step = scheduler.step(logits, 1.0, sample, generator=torch.Generator().manual_seed(1))
        tokens.append(step.prev_sample.tolist())
    assert tokens[0] == tokens[1] == tokens[2] != sample.tolist()


def test_temperature_zero_takes_the_most_probable_token():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert token_weights(logits, temperature=0).tolist() == [[0.0, 1.0, 0.0]]


def test_logits_that_favour_the_mask_leave_none_and_are_not_changed():
    scheduler = make("absorbing")
    generator = torch.Generator().manual_seed(7)
    tokens = scheduler.prior((64, 8))
    logits = torch.zeros(64, 8, V)
    logits[..., MASK] = 1e4
    before = logits.clone()
    for steps in (1, 3):
        scheduler.set_timesteps(steps)
        sample = tokens
        for timestep in scheduler.timesteps:
            kept = sample.clone()
            stepped = scheduler.step(logits, timestep, sample, generator=generator).prev_sample
            assert torch.equal(sample, kept) and torch.equal(logits, before)
            assert torch.equal(
                stepped[sample != MASK], sample[sample != MASK]
            )  # revealed tokens stay
            sample = stepped
        assert not (sample == MASK).any()
        assert np.bincount(sample.flatten(), minlength=V)[:MASK].min() > 64


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_step_works_and_the_last_ends_clean(kernel, steps):
    scheduler = make(kernel)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    assert (
        torch.all(scheduler.timesteps.diff() < 0)
        and scheduler.timesteps[0] == 1
        and scheduler.timesteps[-1] > 0
    )
    clean = torch.full((2000, 1), 2)
    noisy = scheduler.add_noise(
        clean, float(scheduler.timesteps[-1]), torch.Generator().manual_seed(0)
    )
    logits = torch.nn.functional.one_hot(clean, V) * 100.0
    last = scheduler.step(
        logits, scheduler.timesteps[-1], noisy, generator=torch.Generator().manual_seed(1)
    )
    assert (noisy != clean).any() and torch.equal(last.prev_sample, clean)


# Forward process


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_add_noise_has_the_row_of_the_dense_matrix(kernel):
    scheduler = make(kernel, schedule="cosine")
    times = torch.tensor([0.3, 0.8], dtype=torch.float64)
    tokens = torch.full((2, 20_000), 1)
    noisy = scheduler.add_noise(tokens, times, torch.Generator().manual_seed(4))
    for row, t in enumerate(times.tolist()):
        want = transition_matrix(kernel, alpha_by_definition("cosine", t), V, MASK)[1]
        assert chi_square_passes(np.bincount(noisy[row], minlength=V), want)
    again = scheduler.add_noise(tokens, times, torch.Generator().manual_seed(4))
    assert torch.equal(noisy, again) and (tokens == 1).all()


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_no_noise_at_time_zero_and_only_noise_at_time_one(kernel):
    scheduler = make(kernel)
    tokens = torch.randint(0, MASK, (4, 500))
    assert torch.equal(scheduler.add_noise(tokens, 0.0), tokens)
    noisy = scheduler.add_noise(tokens, 1.0)
    assert (
        (noisy == MASK).all() if kernel == "absorbing" else (noisy == tokens).float().mean() < 0.3
    )


def test_a_row_draws_the_same_numbers_alone_longer_or_in_a_batch():
    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    device = torch.device("cpu")
    batch = rand((3, 50), seeded(1, 2, 3), device)
    assert torch.equal(batch[1], rand((1, 50), seeded(2), device)[0])
    assert torch.equal(batch[1, :20], rand((1, 20), seeded(2), device)[0])
    short, long = seeded(9), seeded(9)
    rand((1, 5), short, device), rand((1, 50), long, device)
    assert torch.equal(
        rand((1, 7), short, device), rand((1, 7), long, device)
    )  # also after the first draw
    with pytest.raises(ValueError, match="3 rows, got 2"):
        rand((3, 4), seeded(1, 2), device)


def test_training_times_are_the_grid_or_stay_above_the_first_interval():
    grid = make("absorbing", num_train_timesteps=4).training_timesteps(
        float64([0.0, 0.24, 0.25, 0.99])
    )
    assert grid.tolist() == [0.25, 0.25, 0.5, 1.0]
    continuous = make("absorbing").training_timesteps(float64([0.0, 0.0004, 0.5]))
    assert continuous.tolist() == [1e-3, 1e-3, 0.5]


# Configuration


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedule": "linaer"}, "`schedule` must be one of"),
        ({"num_train_timesteps": 0}, "`num_train_timesteps` must be"),
        ({"num_train_timesteps": 2.5}, "`num_train_timesteps` must be"),
        ({"temperature": -1.0}, "`temperature` must be"),
        ({"temperature": float("nan")}, "`temperature` must be"),
        ({"top_k": 0}, "`top_k` must be"),
        ({"top_p": 0.0}, "`top_p` must be"),
        ({"top_p": 1.5}, "`top_p` must be"),
        ({"min_timestep": 0.0}, "`min_timestep` must be"),
    ],
)
@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_wrong_config_values_are_refused_by_name(kernel, changes, message):
    with pytest.raises(ValueError, match=message):
        make(kernel, **changes)


def test_wrong_ids_and_rules_are_refused_by_name():
    with pytest.raises(
        ValueError, match="`mask_token_id` must be an integer of at least 0, got -1"
    ):
        D3PMAbsorbingScheduler(-1)
    with pytest.raises(ValueError, match="`vocab_size`"):
        D3PMUniformScheduler(1)
    with pytest.raises(ValueError, match="`reverse_rule`"):
        D3PMUniformScheduler(5, reverse_rule="both")
    with pytest.raises(ValueError, match="`mask_token_id` must be below the 5 logits, got 9"):
        scheduler = D3PMAbsorbingScheduler(9)
        scheduler.step(torch.zeros(1, 2, 5), 1.0, scheduler.prior((1, 2)), positions=None)


def test_steps_are_checked_before_they_are_taken():
    scheduler = make("absorbing", num_train_timesteps=10)
    with pytest.raises(
        ValueError,
        match="`num_inference_steps` must be between 1 and `num_train_timesteps`=10, got 11",
    ):
        scheduler.set_timesteps(11)
    with pytest.raises(ValueError, match="got 0"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(3)
    assert all(round(float(t) * 10, 4).is_integer() for t in scheduler.timesteps)
    sample = scheduler.prior((1, 3))
    with pytest.raises(ValueError, match="one of the 3 `timesteps`"):
        scheduler.select(0.123, sample)
    with pytest.raises(ValueError, match="one row a selected position"):
        scheduler.step(torch.zeros(1, V), 1.0, sample, positions=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"must be \(1, 3\) \+ \(V,\) like `sample`, got \(1, 2, 5\)"
    ):
        scheduler.step(torch.zeros(1, 2, V), 1.0, sample)
    with pytest.raises(ValueError, match="NaN or infinite"):
        scheduler.step(torch.full((1, 3, V), float("nan")), scheduler.timesteps[-1], sample)
    with pytest.raises(ValueError, match=r"`timesteps` must lie in \[0, 1\]"):
        scheduler.add_noise(sample, 1.5)


def test_config_survives_saving_and_swapping(tmp_path):
    scheduler = make("uniform", schedule="cosine", reverse_rule="plug_in", top_k=3)
    scheduler.save_pretrained(tmp_path)
    loaded = D3PMUniformScheduler.from_pretrained(tmp_path)
    for name in ("vocab_size", "schedule", "reverse_rule", "top_k", "num_train_timesteps"):
        assert loaded.config[name] == scheduler.config[name]
    greedy = D3PMUniformScheduler.from_config(scheduler.config, temperature=0)
    assert greedy.config.temperature == 0 and greedy.config.schedule == "cosine"
    assert (
        D3PMUniformScheduler in scheduler.compatibles
        and D3PMAbsorbingScheduler not in scheduler.compatibles
    )
    assert scheduler.order == 1 and scheduler.init_noise_sigma == 1.0
    sample = torch.zeros(1, 3, dtype=torch.long)
    assert scheduler.scale_model_input(sample, 0.5) is sample
    assert isinstance(scheduler.step(torch.zeros(1, 3, V), 1.0, sample, return_dict=False), tuple)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_a_cpu_generator_gives_the_same_tokens_on_a_gpu(kernel):
    outputs = []
    for device in ("cpu", "cuda"):
        scheduler = make(kernel)
        scheduler.set_timesteps(5, device=device)
        generator = torch.Generator().manual_seed(0)
        tokens = scheduler.prior((4, 16), generator, device)
        for timestep in scheduler.timesteps:
            tokens = scheduler.step(
                torch.zeros(4, 16, V, device=device), timestep, tokens, generator=generator
            )[0]
        outputs.append(tokens.cpu())
    assert torch.equal(*outputs)
