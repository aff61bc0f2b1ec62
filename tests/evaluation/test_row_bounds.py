"""Bounds of rows against enumeration over all noise, golden numbers, and each other.

Shapes: B batch, R rows, L length, T steps.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import make_denoiser, mostly_slow, slow
from datasets import Dataset
from support.oracles import MarkovSource, TableDenoiser, TimedDenoiser, float64, golden_cases

from text_diffusers import D3PMAbsorbingScheduler, D3PMMatrixScheduler, D3PMUniformScheduler
from text_diffusers.evaluation.bounds import noisy_token_bound, token_bound
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.evaluation.row_bounds import (
    any_order_bound,
    drawn_token_bound,
    even_times,
    full_bound,
    monte_carlo_bound,
    scheduled_bound,
)
from text_diffusers.schedulers.noise_schedules import NOISE_SCHEDULES, time_of_noise_level

SCHEDULES = [*sorted(NOISE_SCHEDULES), [1.0, 0.9, 0.3, 0.25, 0.0]]


def rows_of(source, given=None):
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * source.length}
        for ids in source.sequences
    ]
    return rows if given is None else [row | {"given": given} for row in rows]


def batch_of(source, given=None):
    tokens = torch.tensor(source.sequences)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return batch if given is None else batch | {"given": torch.tensor(given).expand_as(tokens)}


def exact_denoiser(source):
    return TableDenoiser(source.masked_denoiser(), source.num_tokens + 1)


def random_denoiser(size, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (size,) * length + (length, size)
    return TableDenoiser(torch.randn(shape, generator=generator, dtype=torch.float64), size)


def all_orders(source, denoiser, scheduler, given=None):
    """(R,) the sum over n of `any_order_bound`, averaged over every order in which the tokens can be masked."""
    batch, total = batch_of(source, given), 0.0
    free = source.length - sum(given or [])
    orders = list(itertools.permutations(range(source.length)))
    for order in orders:
        uniform = ((float64(order) + 0.5) / source.length).expand(len(source.probs), -1)
        for n in range(1, free + 1):
            counts = torch.full((len(source.probs),), n)
            total = total + any_order_bound(denoiser, scheduler, batch, counts, uniform)
    return total.numpy() / len(orders)


@pytest.mark.parametrize("schedule", ["linear", "sqrt"])
def test_over_all_orders_the_bound_of_each_row_is_exactly_its_log_likelihood(schedule):
    source = MarkovSource.golden()
    scheduler = D3PMAbsorbingScheduler(source.num_tokens, schedule=schedule)
    nats = all_orders(source, exact_denoiser(source), scheduler)
    np.testing.assert_allclose(nats, -np.log(source.probs), atol=1e-12)
    assert source.probs @ nats == pytest.approx(2.49905254516, abs=1e-10)


@pytest.mark.parametrize("given", [[True, False, False], [False, True, False], [True, False, True]])
def test_over_all_orders_the_bound_given_tokens_is_exactly_the_conditional_likelihood(given):
    source = MarkovSource.golden()
    scheduler = D3PMAbsorbingScheduler(source.num_tokens)
    nats = all_orders(source, exact_denoiser(source), scheduler, given)
    same = (source.sequences[:, None] == source.sequences[None])[:, :, given].all(
        axis=2
    )  # agree in what is given
    np.testing.assert_allclose(nats, -np.log(source.probs / (same @ source.probs)), atol=1e-12)


OPTIMAL = [
    case
    for case in golden_cases("sampling", "absorbing_elbo")
    if case["inputs"]["denoiser"] == "optimal"
]


@pytest.mark.parametrize("case", OPTIMAL, ids=lambda case: case["name"])
def test_over_all_noise_the_bound_of_t_steps_is_the_golden_one(case):
    inputs = case["inputs"]
    source = MarkovSource(inputs["initial"], inputs["transition"], inputs["L"])
    batch, denoiser = batch_of(source), exact_denoiser(source)
    for steps in inputs["num_steps"]:
        scheduler = D3PMAbsorbingScheduler(
            source.num_tokens, num_train_timesteps=steps, schedule=inputs["schedule"]
        )
        nats = 0.0
        for step, kept in itertools.product(
            range(1, steps + 1), itertools.product([1, 0], repeat=source.length)
        ):
            alpha = float(scheduler.alpha(step / steps))
            noisy = torch.where(torch.tensor(kept).bool(), batch["input_ids"], source.num_tokens)
            times = torch.full((len(noisy),), step / steps, dtype=torch.float64)
            weight = alpha ** sum(kept) * (1 - alpha) ** (source.length - sum(kept)) / steps
            nats = nats + weight * noisy_token_bound(denoiser, scheduler, batch, noisy, times).sum(
                dim=1
            )
        assert source.probs @ nats.numpy() == pytest.approx(
            case["outputs"][f"nelbo_{steps}_steps"], abs=1e-9
        )


def assert_near(source, bounds, want, width=4.0):
    """Within standard errors, over the rows of the source weighted by their probabilities."""
    got, error = (
        source.probs @ bounds.nats.numpy(),
        math.sqrt(source.probs**2 @ bounds.variance.numpy()),
    )
    assert abs(got - want) < width * error and error < 0.06 * want


@pytest.mark.parametrize(
    "schedule, steps, want", [slow("cosine", 2, 2.67467263209), ("cosine", 8, 2.55167047695)]
)
def test_the_full_absorbing_bound_has_the_golden_mean(schedule, steps, want):
    source = MarkovSource.golden()
    scheduler = D3PMAbsorbingScheduler(
        source.num_tokens, num_train_timesteps=steps, schedule=schedule
    )
    bounds = full_bound(
        exact_denoiser(source), scheduler, rows_of(source), batch_size=2000, num_noise=240 // steps
    )
    assert bounds.num_samples == 27 * 240
    assert_near(source, bounds, want)
    assert_near(
        source,
        monte_carlo_bound(exact_denoiser(source), scheduler, rows_of(source), 240, 2000),
        want,
    )


# Four steps, and eight.
SHORT_CHAINS = golden_cases("sampling", "uniform_elbo")[::2]


@pytest.mark.parametrize(
    "case", mostly_slow(SHORT_CHAINS, fast=SHORT_CHAINS[:1]), ids=lambda case: case["name"]
)
def test_the_full_uniform_bound_has_the_golden_mean(case):
    inputs, outputs = case["inputs"], case["outputs"]
    source, steps = (
        MarkovSource(inputs["initial"], inputs["transition"], inputs["L"]),
        inputs["num_steps"],
    )
    for rule, name in (("plug_in", "nelbo_plugin"), ("marginal", "nelbo_marginal")):
        scheduler = D3PMUniformScheduler(
            source.num_tokens,
            num_train_timesteps=steps,
            schedule=inputs["schedule"],
            reverse_rule=rule,
        )
        tables = {
            i: source.uniform_denoiser(float(scheduler.alpha(i / steps)))
            for i in range(1, steps + 1)
        }
        denoiser = TimedDenoiser(tables, source.num_tokens)
        bounds = full_bound(
            denoiser, scheduler, rows_of(source), batch_size=2000, num_noise=240 // steps
        )
        assert_near(source, bounds, outputs[name])


def test_the_bound_of_a_matrix_kernel_is_that_of_its_chain_with_the_prior():
    """Against the sum over all paths x_0, x_1, x_2 of one token, from the matrices; far from mixed, on purpose."""
    scheduler = D3PMMatrixScheduler(3, kernel="gaussian", betas=[0.3, 0.5], num_train_timesteps=2)
    denoiser = random_denoiser(3, 1)
    probs = denoiser.table[:, 0].softmax(dim=-1).numpy()  # p(x_0 | x_t)
    first, second = scheduler.matrix(1).numpy(), scheduler.matrix(2).numpy()
    both = first @ second
    back = np.einsum("tk,ks,st->ts", probs, first, second)  # p(x_1 | x_2), x_0 summed out
    back = np.stack(
        [
            sum(probs[t, k] * first[k] * second[:, t] / both[k, t] for k in range(3))
            for t in range(3)
        ]
    )
    want = np.zeros(3)
    for clean, one, two in itertools.product(range(3), repeat=3):
        path = first[clean, one] * second[one, two]
        want[clean] += path * np.log(path / (1 / 3 * back[two, one] * probs[one, clean]))
    rows = [{"input_ids": [i], "attention_mask": [1]} for i in range(3)]
    for bounds in (
        full_bound(denoiser, scheduler, rows, 3000, 500),
        monte_carlo_bound(denoiser, scheduler, rows, 2000),
    ):
        assert (np.abs(bounds.nats.numpy() - want) < 4 * bounds.variance.sqrt().numpy()).all()
        assert (bounds.variance.sqrt() < 0.05).all() and (
            scheduler.prior_bound(torch.arange(3)[None]) > 0.05
        ).any()


def test_a_denoiser_that_looks_at_the_time_has_the_same_bound_in_full_and_by_monte_carlo():
    source = MarkovSource.golden()

    class Hesitant(TableDenoiser):
        """Less sure the later it is."""

        def forward(self, input_ids, timestep, *inputs, positions):
            logits = self.table[tuple(input_ids.unbind(dim=1))] * (
                1 - 0.9 * timestep.view(-1, 1, 1)
            )
            return type("Output", (), {"logits": logits[positions]})()

    denoiser = Hesitant(3 * random_denoiser(4, 3).table, 4)
    scheduler = D3PMAbsorbingScheduler(3, schedule="cosine", min_timestep=1e-6)
    full = full_bound(denoiser, scheduler, rows_of(source), 2000, num_noise=100)
    drawn = monte_carlo_bound(denoiser, scheduler, rows_of(source), 300, 2000)
    assert_near(
        source,
        drawn._replace(variance=full.variance + drawn.variance),
        source.probs @ full.nats.numpy(),
    )
    count = 30_000  # and by times instead of numbers of masks
    picks = torch.tensor(np.random.default_rng(0).choice(27, size=count, p=source.probs))
    batch = {name: column[picks] for name, column in batch_of(source).items()}
    uniform = (
        torch.arange(count) + torch.rand(count, generator=torch.Generator().manual_seed(1))
    ) / count
    uniform = uniform[torch.randperm(count, generator=torch.Generator().manual_seed(2))]
    timed = drawn_token_bound(
        denoiser, scheduler, batch, uniform, torch.Generator().manual_seed(3)
    ).sum(dim=1)
    timed = timed - full.nats[picks]
    assert abs(timed.mean()) < 4 * timed.std() / count**0.5 + 3 * math.sqrt(
        source.probs**2 @ full.variance.numpy()
    )
    timeless = full_bound(
        TableDenoiser(denoiser.table, 4), scheduler, rows_of(source), 2000, num_noise=100
    )
    assert abs(source.probs @ (timeless.nats - full.nats).numpy()) > 0.1  # the time does matter


@pytest.mark.parametrize(
    "method, steps",
    [slow("full", None), ("full", 4), slow("monte_carlo", None), slow("monte_carlo", 4)],
)
def test_the_standard_error_is_the_spread_over_seeds(method, steps):
    source = MarkovSource.golden()
    scheduler, denoiser = (
        D3PMAbsorbingScheduler(3, num_train_timesteps=steps),
        random_denoiser(4, 3),
    )
    rows = rows_of(source)[5:9]
    sums, variances = [], []
    for seed in range(200):
        if method == "full":
            bounds = full_bound(denoiser, scheduler, rows, 64, num_noise=2, seed=seed)
        else:
            bounds = monte_carlo_bound(denoiser, scheduler, rows, 6, 64, seed=seed)
        sums.append(float(bounds.nats.sum()))
        variances.append(float(bounds.variance.sum()))
    assert np.std(sums, ddof=1) == pytest.approx(math.sqrt(np.mean(variances)), rel=0.2)


def test_one_draw_leaves_the_error_unknown():
    source = MarkovSource.golden()
    bounds = full_bound(
        exact_denoiser(source), D3PMAbsorbingScheduler(3), rows_of(source), num_noise=1
    )
    assert (
        bounds.variance.isnan().all()
        and bounds.nats.isfinite().all()
        and bounds.num_samples == 27 * 3
    )


@pytest.mark.parametrize("steps", [None, 6])
@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_padding_and_batch_size_change_nothing(tokenizer, denoiser, kernel, steps):
    if kernel == "absorbing":
        scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id, num_train_timesteps=steps)
    else:
        scheduler = D3PMUniformScheduler(tokenizer.pad_token_id, num_train_timesteps=steps)
    rng, pad = np.random.default_rng(0), tokenizer.pad_token_id
    texts = [rng.integers(1, 250, size=size).tolist() for size in (9, 3, 7)]
    plain = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts]
    padded = [
        {
            "input_ids": ids + [pad] * (12 - len(ids)),
            "attention_mask": [1] * len(ids) + [0] * (12 - len(ids)),
        }
        for ids in texts
    ]
    found = [
        monte_carlo_bound(denoiser, scheduler, rows, 4, size)
        for rows, size in ((plain, 64), (padded, 5))
    ]
    if kernel == "absorbing" or steps:
        found += [
            full_bound(denoiser, scheduler, rows, size) for rows, size in ((plain, 64), (padded, 5))
        ]
        torch.testing.assert_close(found[2].nats, found[3].nats, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[0].nats, found[1].nats, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[0].variance, found[1].variance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_given_tokens_are_seen_clean_and_cost_nothing(kernel):
    source, seen = MarkovSource.golden(), []

    class Watching(TableDenoiser):
        def forward(self, input_ids, *inputs, positions):
            seen.append((input_ids, positions))
            return super().forward(input_ids, *inputs, positions=positions)

    denoiser = Watching(random_denoiser(4, 3).table, 4)
    schedulers = {
        "absorbing": D3PMAbsorbingScheduler(3),
        "uniform": D3PMUniformScheduler(3, num_train_timesteps=4),
    }
    rows = rows_of(source, given=[False, True, False])[4:5]  # a row of its own
    full_bound(denoiser, schedulers[kernel], rows, num_noise=20)
    monte_carlo_bound(denoiser, schedulers[kernel], rows, num_times=40)
    inputs, positions = (torch.cat(column) for column in zip(*seen, strict=True))
    assert (inputs[:, 1] == rows[0]["input_ids"][1]).all() and not positions[:, 1].any()
    assert (inputs[:, 0] != rows[0]["input_ids"][0]).any() and positions[:, 0].any()


# Models that write in blocks


def block_rows(tokenizer, sizes):
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 250, size=size).tolist() for size in sizes]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts]


@pytest.mark.parametrize("steps", [None, 5])
def test_with_blocks_of_one_token_the_bound_is_the_likelihood_from_left_to_right(tokenizer, steps):
    denoiser, mask = make_denoiser(tokenizer, block_length=1), tokenizer.mask_token_id
    scheduler = D3PMAbsorbingScheduler(mask, num_train_timesteps=steps)
    rows = block_rows(tokenizer, (6, 4))
    want = []
    for row in rows:
        nats = 0.0
        for i, token in enumerate(row["input_ids"]):
            seen = torch.tensor([[*row["input_ids"][:i], mask]])
            logits = (
                denoiser(seen, 0.5)
                .logits[0, -1]
                .detach()
                .index_fill(0, torch.tensor(mask), -math.inf)
            )
            nats -= float(logits.log_softmax(dim=-1)[token])
        want.append(nats)
    if steps is None:  # one mask a block is all there is to a block
        bounds = full_bound(denoiser, scheduler, rows, num_noise=2)
        torch.testing.assert_close(bounds.nats, float64(want), rtol=1e-4, atol=0)
        torch.testing.assert_close(
            monte_carlo_bound(denoiser, scheduler, rows).nats, bounds.nats, rtol=1e-4, atol=0
        )
    else:
        bounds = full_bound(denoiser, scheduler, rows, num_noise=200)
        assert (np.abs(bounds.nats.numpy() - want) < 4 * bounds.variance.sqrt().numpy()).all()


@pytest.mark.parametrize("steps", [slow(None), 4])
def test_bounds_of_a_model_with_blocks_do_not_depend_on_the_batch(tokenizer, steps):
    denoiser = make_denoiser(tokenizer, block_length=4)
    scheduler = D3PMAbsorbingScheduler(
        tokenizer.mask_token_id, num_train_timesteps=steps, schedule="cosine"
    )
    rows = block_rows(tokenizer, (9, 3, 14))
    for bound in (full_bound, monte_carlo_bound):
        alone, together = (
            bound(denoiser, scheduler, rows, batch_size=1),
            bound(denoiser, scheduler, rows, batch_size=50),
        )
        torch.testing.assert_close(alone.nats, together.nats, rtol=1e-4, atol=1e-3)


def test_full_and_monte_carlo_bounds_agree_in_blocks(tokenizer):
    denoiser = make_denoiser(tokenizer, block_length=4)
    rows = block_rows(tokenizer, (9, 6))
    schedulers = [D3PMAbsorbingScheduler(tokenizer.mask_token_id, min_timestep=1e-6)]
    schedulers += [D3PMAbsorbingScheduler(tokenizer.mask_token_id, num_train_timesteps=3)]
    for scheduler in schedulers:
        full = full_bound(denoiser, scheduler, rows, 256, num_noise=200)
        drawn = monte_carlo_bound(denoiser, scheduler, rows, 600, 256)
        error = (full.variance + drawn.variance).sqrt()
        assert ((full.nats - drawn.nats).abs() < 4 * error).all() and (
            error < 0.1 * full.nats
        ).all()
    rows = {
        "input_ids": [row["input_ids"] for row in rows[:1]],
        "attention_mask": [rows[0]["attention_mask"]],
    }
    estimate = estimate_bound(denoiser, schedulers[0], Dataset.from_dict(rows), num_times=1000)
    full = full_bound(denoiser, schedulers[0], block_rows(tokenizer, (9,)), 256, num_noise=200)
    want = float(full.nats) / 9
    assert abs(estimate.bound - want) < 4 * (
        estimate.standard_error + float(full.variance.sqrt()) / 9
    )


# Times


@pytest.mark.parametrize(
    "schedule, steps",
    mostly_slow(
        itertools.product(SCHEDULES, [None, 7]),
        fast=[("linear", None), ("geometric", None), ("cosine", 7), (SCHEDULES[-1], 7)],
    ),
    ids=str,
)
def test_the_weights_of_even_times_keep_every_mean_over_time(schedule, steps):
    """Through `token_bound`: a token that costs 1 nat where it is masked, and the square of the masked share."""
    scheduler = D3PMAbsorbingScheduler(2, num_train_timesteps=steps, schedule=schedule)
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    times, weights = even_times(scheduler, uniform)
    logits = torch.tensor([[0.0, math.log(math.e - 1), 0.0]], dtype=torch.float64).expand(
        len(times), 3
    )
    zeros = torch.zeros(len(times), dtype=torch.long)
    masked = 1 - scheduler.alpha(times)
    integrand = token_bound(scheduler, logits, zeros, zeros + 2, times) * masked
    assert float((weights * integrand).mean()) == pytest.approx(1, abs=1e-3)
    if steps is None:
        want = 0.5 + (1 - float(scheduler.alpha(1e-3))) ** 2 / 2  # the first interval is one step
    else:
        ends = 1 - scheduler.alpha(torch.arange(steps + 1, dtype=torch.float64) / steps)
        want = float((ends.diff() * ends[1:]).sum())
    assert float((weights * integrand * masked).mean()) == pytest.approx(want, abs=1e-3)
    assert torch.equal(
        times, scheduler.training_timesteps(times - 1e-9) if steps else times.clamp(min=1e-3)
    )


def test_with_the_linear_schedule_even_times_are_those_of_training():
    uniform = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for steps in (None, 10):
        scheduler = D3PMAbsorbingScheduler(2, num_train_timesteps=steps)
        times, weights = even_times(scheduler, uniform)
        torch.testing.assert_close(times, scheduler.training_timesteps(uniform), atol=1e-12, rtol=0)
        torch.testing.assert_close(weights, torch.ones_like(weights), atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_time_of_noise_level_inverts_alpha(schedule):
    scheduler = D3PMAbsorbingScheduler(2, schedule=schedule)
    times = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(
        time_of_noise_level(scheduler.alpha, 1 - scheduler.alpha(times)), times, atol=1e-9, rtol=0
    )


def test_all_schedules_have_one_bound_and_even_times_the_least_variance():
    source, count = MarkovSource.golden(), 20_000
    denoiser, batch = random_denoiser(4, 3), batch_of(source)
    picks = torch.tensor(np.random.default_rng(0).choice(27, size=count, p=source.probs))
    batch = {name: column[picks] for name, column in batch.items()}
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    means, spreads = {}, {}
    for schedule in ("linear", "cosine", "sqrt", "geometric"):
        scheduler = D3PMAbsorbingScheduler(3, schedule=schedule, min_timestep=1e-6)
        even = drawn_token_bound(
            denoiser, scheduler, batch, uniform, torch.Generator().manual_seed(2)
        ).sum(dim=1)
        times = scheduler.training_timesteps(uniform)
        plain = scheduled_bound(denoiser, scheduler, batch, times, torch.Generator().manual_seed(2))
        means[schedule], spreads[schedule] = (even.mean(), plain.mean()), (even.std(), plain.std())
    full = full_bound(denoiser, D3PMAbsorbingScheduler(3), rows_of(source), 2000, num_noise=200)
    want = (full.nats[picks]).mean()
    for schedule, pair in means.items():
        for mean, spread in zip(pair, spreads[schedule], strict=True):
            assert abs(mean - want) < 4 * spread / count**0.5 + 0.02, schedule
    assert spreads["sqrt"][0] < 0.5 * spreads["sqrt"][1]
    for schedule in means:
        assert spreads[schedule][0] == pytest.approx(float(spreads["linear"][0]), rel=0.1)
