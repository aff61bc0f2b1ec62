"""Laws of ConfidenceScheduler, against a slow recursion over all patterns and dense formulas.

Shapes: B batch, L length, V vocabulary size, K data tokens of the enumerable source; the mask has the last id.
"""

import itertools
import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from conftest import covering, slow
from support.oracles import MarkovSource, TableDenoiser, alpha_by_definition, chi_square_passes

from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler
from text_diffusers.schedulers.noise_schedules import NOISE_SCHEDULES
from text_diffusers.schedulers.scheduling_confidence import row_sums

V = 6
MASK = V - 1
SCHEDULES = sorted(NOISE_SCHEDULES)
ORDERS = ["confidence", "entropy", "margin"]
ROWS = 12_000
GOLDEN = MarkovSource.golden()
# The first token has the lowest entropy, the second the largest margin.
CONTRARY = MarkovSource(
    [0.49, 0.49, 0.02], [[0.8, 0.1, 0.1], [0.2, 0.45, 0.35], [0.1, 0.1, 0.8]], 3
)


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def denoise(scheduler, denoiser, tokens, generator):
    """Every state from `tokens` on; the denoiser is called only where something is selected."""
    states = [tokens]
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens, generator)
        logits = torch.zeros(0, denoiser.config.vocab_size)
        if positions.any():
            logits = denoiser(tokens, timestep, positions=positions).logits
        tokens = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generator
        ).prev_sample
        states.append(tokens)
    return states


def flat(vocab_size=V):
    """A denoiser that knows nothing."""
    denoiser = TableDenoiser(None, vocab_size)
    denoiser.table = None

    def forward(tokens, timestep, positions):
        denoiser.calls += 1
        return type("Output", (), {"logits": torch.zeros(int(positions.sum()), vocab_size)})

    denoiser.forward = forward
    return denoiser


def score(probs, token, order):
    """On a logarithmic scale, larger first."""
    if order == "confidence":
        return math.log(probs[token])
    if order == "margin":
        first, second = sorted(probs, reverse=True)[:2]
        return math.log(first - second)
    return sum(p * math.log(p) for p in probs if p > 0) if order == "entropy" else 0.0


def text_probs(source, steps, order, temperature=1.0, noise=0.0, threshold=None, bound=None):
    """Probabilities of the source's sequences by recursion over patterns, the schedule being linear."""
    mask, table = source.num_tokens, source.masked_denoiser().exp().numpy()

    def choices(scores, candidates, probs, kept):
        """(probability, positions to commit) of each way to choose."""
        ranked = sorted(scores, key=lambda position: (-scores[position], position))
        if kept == 0:
            return [(1.0, ranked)]
        if threshold is not None:
            sure = [
                position for position in ranked if probs[position][candidates[position]] > threshold
            ]
            return [(1.0, sure or ranked[:1])]
        if bound is not None:
            entropies = [-score(probs[position], None, "entropy") for position in ranked]
            sizes = [
                n
                for n in range(1, len(ranked) + 1)
                if sum(entropies[:n]) - max(entropies[:n]) <= bound
            ]
            return [(1.0, ranked[: max(sizes)])]
        if noise == 0:
            return [(1.0, ranked[: len(ranked) - kept])]
        assert kept == len(ranked) - 1  # Gumbel noise: the first is drawn from the softmax
        weights = {position: math.exp(scores[position] / noise) for position in ranked}
        return [
            (weight / sum(weights.values()), [position]) for position, weight in weights.items()
        ]

    @cache
    def finish(pattern, step):
        if step == steps:
            return {pattern: 1.0}
        masked = [position for position, token in enumerate(pattern) if token == mask]
        kept = round(len(masked) * Fraction(steps - step - 1, steps - step))
        probs = {}
        for position in masked:
            own = table[pattern][position][:mask]
            own = (own == own.max()) * 1.0 if temperature == 0 else own ** (1 / temperature)
            probs[position] = (own / own.sum()).tolist()
        judged = (
            {p: table[pattern][p][:mask].tolist() for p in masked} if temperature == 0 else probs
        )
        texts = {}
        for drawn in itertools.product(range(mask), repeat=len(masked)):
            candidates = dict(zip(masked, drawn, strict=True))
            joint = math.prod(probs[position][token] for position, token in candidates.items())
            if joint == 0:
                continue
            scores = {p: score(judged[p], candidates[p], order) for p in masked}
            for chance, chosen in (
                choices(scores, candidates, judged, kept) if masked else [(1.0, [])]
            ):
                after = tuple(
                    candidates[p] if p in chosen else token for p, token in enumerate(pattern)
                )
                for text, weight in finish(after, step + 1).items():
                    texts[text] = texts.get(text, 0.0) + joint * chance * weight
        return texts

    texts = finish((mask,) * source.length, 0)
    return [texts.get(tuple(sequence), 0.0) for sequence in source.sequences.tolist()]


def text_counts(source, steps, **config):
    scheduler = ConfidenceScheduler(source.num_tokens, **config)
    scheduler.set_timesteps(steps)
    denoiser = TableDenoiser(source.masked_denoiser(), source.num_tokens + 1)
    tokens = denoise(scheduler, denoiser, scheduler.prior((ROWS, source.length)), seeded(0))[-1]
    return [
        int((tokens == torch.tensor(sequence)).all(dim=1).sum()) for sequence in source.sequences
    ]


# Distributions


@pytest.mark.parametrize("order", ["random", slow("entropy"), slow("margin")])
def test_one_token_a_step_in_an_order_blind_to_the_candidates_reaches_the_source(order):
    assert chi_square_passes(text_counts(GOLDEN, GOLDEN.length, order=order), GOLDEN.probs)
    assert chi_square_passes(
        text_counts(GOLDEN, GOLDEN.length, order=order, order_temperature=0.5), GOLDEN.probs
    )
    np.testing.assert_allclose(
        text_probs(GOLDEN, GOLDEN.length, order, noise=1.0), GOLDEN.probs, atol=1e-12
    )


@pytest.mark.parametrize("source, order, steps", covering([GOLDEN, CONTRARY], ORDERS, [1, 2, 3, 5]))
def test_texts_have_the_enumerated_distribution(source, order, steps):
    want = text_probs(source, steps, order)
    assert abs(sum(want) - 1) < 1e-12
    assert chi_square_passes(text_counts(source, steps, order=order), want)


@pytest.mark.parametrize("order", ORDERS)
def test_the_orders_are_told_apart_by_the_same_test(order):
    counts = text_counts(CONTRARY, 2, order=order)
    assert [chi_square_passes(counts, text_probs(CONTRARY, 2, other)) for other in ORDERS] == [
        other == order for other in ORDERS
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_scores_are_of_the_shaped_distribution(order):
    want = text_probs(GOLDEN, 2, order, temperature=0.5)
    assert chi_square_passes(text_counts(GOLDEN, 2, order=order, temperature=0.5), want)


@pytest.mark.parametrize("order", ORDERS)
def test_order_temperature_draws_the_first_in_proportion_to_a_power_of_its_score(order):
    logits = torch.randn(5, V, generator=seeded(5))
    scores = dense_scores(dense_probs(logits), order)
    scheduler = ConfidenceScheduler(MASK, order=order, order_temperature=0.7, temperature=0.0)
    scheduler.set_timesteps(5)
    sample = scheduler.prior((ROWS, 5))
    first = (
        scheduler.step(logits.expand(ROWS, 5, V), 1.0, sample, generator=seeded(6)).prev_sample
        != MASK
    )
    weights = (scores if order == "entropy" else scores.log()).div(0.7).softmax(dim=0)
    assert (first.sum(dim=1) == 1).all() and chi_square_passes(
        first.sum(dim=0).numpy(), weights.numpy()
    )


def test_texts_in_a_noisy_order_have_the_enumerated_distribution():
    want = text_probs(GOLDEN, 3, "confidence", noise=0.4)
    assert chi_square_passes(text_counts(GOLDEN, 3, order_temperature=0.4), want)
    assert not chi_square_passes(text_counts(GOLDEN, 3), want)


@pytest.mark.parametrize(
    "config, steps",
    covering([{"threshold": 0.5}, {"entropy_bound": 0.7}, {"entropy_bound": 2.0}], [2, 3]),
)
def test_adaptive_commits_have_the_enumerated_distribution(config, steps):
    order = "confidence" if "threshold" in config else "entropy"
    want = text_probs(
        GOLDEN, steps, order, threshold=config.get("threshold"), bound=config.get("entropy_bound")
    )
    assert chi_square_passes(text_counts(GOLDEN, steps, **config), want)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_greedy_gives_the_one_enumerated_text(order, steps):
    want = text_probs(GOLDEN, steps, order, temperature=0)
    assert max(want) == 1.0
    assert text_counts(GOLDEN, steps, order=order, temperature=0.0)[int(np.argmax(want))] == ROWS


# Which positions a step commits


def dense_probs(logits, temperature=1.0, top_k=None):
    logits = logits.double().index_fill(-1, torch.tensor(logits.shape[-1] - 1), -torch.inf)
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    return (logits / temperature).softmax(dim=-1)


def dense_scores(probs, order):
    if order == "confidence":
        return probs.amax(dim=-1)
    if order == "entropy":
        return -torch.distributions.Categorical(probs).entropy()
    first, second = probs.topk(2).values.unbind(dim=-1)
    return first - second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "order, shaping",
    [
        *[(order, {"temperature": 0.0}) for order in ORDERS],
        ("entropy", {"temperature": 0.7}),
        ("margin", {"temperature": 1.3, "top_k": 20}),
        ("entropy", {"top_k": 50}),
    ],
)
def test_a_large_vocabulary_is_ranked_as_by_the_dense_formula(order, shaping, dtype):
    size, length = 30_000, 12
    generator = seeded(1)
    spread = torch.rand(2, length, 1, generator=generator) * 4 + 1
    logits = (torch.randn(2, length, size, generator=generator) * spread).to(dtype)
    scheduler = ConfidenceScheduler(size - 1, order=order, **shaping)
    scheduler.set_timesteps(4)
    kept = logits.clone()
    stepped = scheduler.step(
        logits, 1.0, scheduler.prior((2, length)), generator=generator
    ).prev_sample
    shown = {**shaping, "temperature": shaping.get("temperature", 1.0) or 1.0}
    scores = dense_scores(dense_probs(logits, **shown), order)
    best = torch.zeros(2, length, dtype=torch.bool).scatter(
        1, scores.topk(3).indices, True
    )  # 12 / 4 of 12
    assert torch.equal(stepped != size - 1, best)
    assert torch.equal(logits, kept)
    if shaping.get("temperature") == 0:
        assert torch.equal(stepped[best], logits[..., :-1].argmax(dim=-1)[best])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_threshold_commits_what_exceeds_it_or_the_best(threshold):
    logits = torch.randn(40, 8, V, generator=seeded(2)) * 2
    scheduler = ConfidenceScheduler(MASK, threshold=threshold, temperature=0.0)
    scheduler.set_timesteps(3)
    sample = scheduler.prior((40, 8))
    sample[:, 3] = 1
    stepped = scheduler.step(
        logits[sample == MASK], 1.0, sample, positions=sample == MASK
    ).prev_sample
    confidence = dense_probs(logits).amax(dim=-1).masked_fill(sample != MASK, -1)
    for row in range(40):
        want = {i for i in range(8) if confidence[row, i] > threshold} or {
            int(confidence[row].argmax())
        }
        assert {i for i in range(8) if stepped[row, i] != sample[row, i]} == want


@pytest.mark.parametrize("order", [None, "confidence", "margin"])
@pytest.mark.parametrize("bound", [0.0, 0.5, 2.0, 100.0])
def test_entropy_bound_commits_the_longest_run_within_it(bound, order):
    logits = torch.randn(40, 8, V, generator=seeded(3)) * 2
    scheduler = ConfidenceScheduler(MASK, entropy_bound=bound, order=order, temperature=0.0)
    scheduler.set_timesteps(3)
    sample = scheduler.prior((40, 8))
    sample[:, 5] = 1
    stepped = scheduler.step(
        logits[sample == MASK], 1.0, sample, positions=sample == MASK
    ).prev_sample
    probs = dense_probs(logits)
    entropies, scores = -dense_scores(probs, "entropy"), dense_scores(probs, order or "entropy")
    for row in range(40):
        ranked = sorted((i for i in range(8) if i != 5), key=lambda i: -float(scores[row, i]))
        run = [ranked[:n] for n in range(1, 8) if excess(entropies[row, ranked[:n]]) <= bound][-1]
        assert {i for i in range(8) if stepped[row, i] != sample[row, i]} == set(run)


def excess(entropies):
    return float(entropies.sum() - entropies.max())


def test_ties_go_to_the_left():
    scheduler = ConfidenceScheduler(MASK)
    scheduler.set_timesteps(3)
    for config in ({}, {"order": "margin"}, {"order": "entropy"}):
        scheduler = ConfidenceScheduler(MASK, **config)
        scheduler.set_timesteps(3)
        sample = scheduler.prior((1, 7))
        sample[0, 1] = 0
        stepped = scheduler.step(
            torch.zeros(6, V), 1.0, sample, positions=sample == MASK
        ).prev_sample
        assert (stepped != MASK).tolist() == [[True, True, True, False, False, False, False]]


# How many


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_the_masks_left_are_the_stated_quota_and_none_at_the_end(schedule, order):
    length = 5
    for steps in range(1, length + 4):
        scheduler = ConfidenceScheduler(MASK, schedule=schedule, order=order, order_temperature=0.5)
        scheduler.set_timesteps(steps)
        tokens = scheduler.prior((length + 1, length))
        for row in range(length + 1):
            tokens[row, row:] = 0
        left = list(range(length + 1))
        for step, state in enumerate(denoise(scheduler, flat(), tokens, seeded(0))[1:]):
            now, then = (alpha_by_definition(schedule, (steps - step - i) / steps) for i in (0, 1))
            left = [round(round(m * (1 - then) / (1 - now), 9)) for m in left]
            assert (state == MASK).sum(dim=1).tolist() == left
        assert not any(left)


def test_halves_stay_masked_by_rounding_to_even():
    for steps, masks in itertools.product(range(1, 8), range(1, 14)):
        scheduler = ConfidenceScheduler(MASK)
        scheduler.set_timesteps(steps)
        tokens, left = scheduler.prior((1, masks)), masks
        for step, timestep in enumerate(scheduler.timesteps):
            left = round(left * Fraction(steps - step - 1, steps - step))
            positions = scheduler.select(timestep, tokens)
            logits = torch.zeros(int(positions.sum()), V)
            tokens = scheduler.step(logits, timestep, tokens, positions=positions).prev_sample
            assert int((tokens == MASK).sum()) == left


def test_all_masks_are_selected_in_rows_that_commit_and_none_in_rows_that_do_not():
    scheduler = ConfidenceScheduler(MASK)
    scheduler.set_timesteps(10)
    sample = scheduler.prior((3, 8))
    sample[1, :4], sample[2, :7] = 0, 0  # of 8, 4 and 1 masks 7, 4 and 1 stay: 7.2, 3.6, 0.9
    selected = scheduler.select(1.0, sample)
    assert torch.equal(selected[0], sample[0] == MASK) and not selected[1:].any()
    for config in ({"threshold": 0.9}, {"entropy_bound": 0.1}):
        scheduler = ConfidenceScheduler(MASK, **config)
        scheduler.set_timesteps(10)
        assert torch.equal(scheduler.select(1.0, sample), sample == MASK)


@pytest.mark.parametrize(
    "config, calls", [({"threshold": 0.0}, 1), ({"threshold": 1.0}, 4), ({}, 4)]
)
def test_steps_with_nothing_to_do_call_no_model(config, calls):
    scheduler = ConfidenceScheduler(MASK, **config)
    scheduler.set_timesteps(50)
    denoiser = flat()
    tokens = denoise(scheduler, denoiser, scheduler.prior((3, 4)), seeded(0))[-1]
    assert denoiser.calls == calls and not (tokens == MASK).any()


@pytest.mark.parametrize(
    "config", [{"threshold": 1.0}, {"entropy_bound": 0.0}, {}, {"order": "random"}]
)
def test_the_last_step_commits_all_that_is_left(config):
    scheduler = ConfidenceScheduler(MASK, **config)
    scheduler.set_timesteps(2)
    states = denoise(scheduler, flat(), scheduler.prior((4, 9)), seeded(0))
    assert (states[1] == MASK).any(dim=1).all() and not (states[2] == MASK).any()


@pytest.mark.parametrize(
    "config, fewest, most",
    [
        ({"threshold": 0.0}, 1, 1),
        ({"threshold": 0.02, "temperature": 0.5}, 2, 11),
        ({"entropy_bound": 9.0}, 2, 11),
        ({"order": "margin", "order_temperature": 0.3}, 8, 12),
        ({"order": "random"}, 8, 12),
        ({"quota": "even", "order": "left_to_right"}, 8, 12),
    ],
)
def test_a_pipeline_stops_early_and_a_text_is_the_same_alone_and_in_a_batch(
    pipe, config, fewest, most
):
    prompts, calls = ["the cat", "a bird sang in the tree and", "she", "the dog sat on"], []
    pipe.scheduler = ConfidenceScheduler.from_config(pipe.scheduler.config, **config)
    settings = {"num_inference_steps": 24, "max_new_tokens": 12}
    hook = pipe.denoiser.register_forward_hook(lambda *_: calls.append(1))
    together = pipe(prompts, generator=[seeded(i) for i in range(4)], **settings)
    hook.remove()
    assert fewest <= len(calls) <= most
    assert not (together.tokens == pipe.tokenizer.mask_token_id).any()
    for i, prompt in enumerate(prompts):
        assert pipe(prompt, generator=seeded(i), **settings).texts[0] == together.texts[i]


# Quotas by name


def masks_left(quota, masks, times):
    """The masks of a row after each step between `times` by the definition of a quota, the schedule being linear."""
    steps = len(times) - 1
    left = [masks]
    for step in range(steps):
        now, then = times[step], times[step + 1]
        if quota == "even":
            committed = masks // steps + (1 if step < masks % steps else 0)
        elif quota == "truncated":
            committed = math.floor(left[-1] * (1 - then / now))
        else:
            now, then = np.float32(now), np.float32(then)
            one = np.float32(1)
            stay = (one - (one - then)) / (one - (one - now))
            committed = round(left[-1] * (1 - float(stay)))
        left.append(left[-1] - committed)
    return left[1:]


@pytest.mark.parametrize("quota", ["even", "truncated", "rounded"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 8, 16])
def test_a_named_quota_leaves_as_many_masks_as_its_definition(quota, steps):
    length = 13
    scheduler = ConfidenceScheduler(MASK, quota=quota)
    scheduler.set_timesteps(steps)
    tokens = scheduler.prior((length + 1, length))
    for row in range(length + 1):
        tokens[row, row:] = 0
    states = denoise(scheduler, flat(), tokens, seeded(0))
    counts = torch.stack([(state == MASK).sum(dim=1) for state in states[1:]])

    # Fractions, where a floor must be exact; floats, where halves fall as they round.
    times = [Fraction(steps - step, steps) for step in range(steps + 1)]
    if quota == "rounded":
        times = [float(time) for time in times]
    for masks in range(length + 1):
        assert counts[:, masks].tolist() == masks_left(quota, masks, times)
    assert not counts[-1].any()


def test_an_even_grid_ends_where_it_is_told_to():
    """Dream's times, https://arxiv.org/abs/2508.15487: of 8 masks in 8 steps none is committed at the first."""
    scheduler = ConfidenceScheduler(MASK, quota="truncated", grid_end=1e-3)
    scheduler.set_timesteps(8)
    times = torch.linspace(1, 1e-3, 9, dtype=torch.float64)
    torch.testing.assert_close(scheduler.timesteps.double(), times[:-1], rtol=1e-6, atol=0)
    states = denoise(scheduler, flat(), scheduler.prior((1, 8)), seeded(0))
    assert [int((state == MASK).sum()) for state in states] == [8, 8, 7, 6, 5, 4, 3, 2, 0]

    scheduler.set_timesteps(timesteps=[1.0, 0.5])
    assert scheduler.timesteps.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("order", ["confidence", "left_to_right"])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.6, 1.0])
def test_a_named_quota_is_the_least_that_a_threshold_commits(threshold, order):
    logits = torch.randn(40, 8, V, generator=seeded(2)) * 2
    options = {"threshold": threshold, "quota": "even", "order": order}
    scheduler = ConfidenceScheduler(MASK, temperature=0.0, **options)
    scheduler.set_timesteps(3)
    sample = scheduler.prior((40, 8))
    sample[:, 3] = 1
    masked = sample == MASK
    stepped = scheduler.step(logits[masked], 1.0, sample, positions=masked).prev_sample

    confidence = dense_probs(logits).amax(dim=-1)
    for row in range(40):
        open_positions = [i for i in range(8) if i != 3]
        sure = {i for i in open_positions if confidence[row, i] > threshold}
        if order == "confidence":
            open_positions.sort(key=lambda i: -float(confidence[row, i]))
        want = sure | set(open_positions[:3])  # of 7 in 3 steps
        assert {i for i in range(8) if stepped[row, i] != sample[row, i]} == want


def test_left_to_right_commits_the_first_masks_whatever_the_model_says():
    scheduler = ConfidenceScheduler(MASK, order="left_to_right", order_temperature=5.0)
    scheduler.set_timesteps(3)
    sample = scheduler.prior((20, 7))
    sample[:, 1] = 0
    logits = torch.randn(20, 7, V, generator=seeded(3)) * 4
    stepped = scheduler.step(logits, 1.0, sample, generator=seeded(4)).prev_sample
    assert torch.equal((stepped != MASK).sum(dim=0), torch.tensor([20, 20, 20, 0, 0, 0, 0]))


def test_a_run_counts_the_masks_of_its_first_step_that_are_to_be_written():
    scheduler = ConfidenceScheduler(MASK, quota="even")
    tokens = scheduler.prior((2, 9))
    tokens[1, 2:] = 0
    first_block = torch.arange(9).expand(2, 9) < 5
    logits = torch.zeros(2, 9, V)

    for block, counts in ((first_block, [2, 2, 1]), (~first_block, [2, 1, 1])):
        scheduler.set_timesteps(3)
        for timestep, count in zip(scheduler.timesteps, counts, strict=True):
            positions = scheduler.select(timestep, tokens) & block
            stepped = scheduler.step(
                logits[positions], timestep, tokens, positions=positions
            ).prev_sample
            assert int((stepped != tokens)[0].sum()) == count
            tokens = stepped
    assert not (tokens == MASK).any()


def test_a_run_begins_at_the_first_step_and_keeps_its_rows():
    scheduler = ConfidenceScheduler(MASK, quota="rounded")
    scheduler.set_timesteps(5)
    first, second = scheduler.timesteps[:2]
    for length in (2, 10):
        sample = scheduler.prior((1, length))
        # Of 2 masks none is committed at first, but that is counted in the step.
        assert scheduler.select(first, sample).all()
        stepped = scheduler.step(torch.zeros(1, length, V), first, sample).prev_sample
        assert int((stepped != MASK).sum()) == (0 if length == 2 else 2)
    with pytest.raises(ValueError, match="`sample` must be of 1 rows as in the steps before, got"):
        scheduler.select(second, scheduler.prior((3, 10)))
    scheduler.set_timesteps(5)
    assert scheduler.select(second, scheduler.prior((3, 10))).all()


# The mask as a token


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_that_is_allowed_counts_in_the_distribution(order, temperature):
    logits = torch.randn(30, 8, V, generator=seeded(7)) * 2
    # One token is drawn for sure, where any is drawn.
    shaping = {"temperature": temperature, "top_k": V if temperature == 0 else 1}
    scheduler = ConfidenceScheduler(MASK, order=order, allow_mask=True, **shaping)
    scheduler.set_timesteps(4)
    sample = scheduler.prior((30, 8))
    stepped = scheduler.step(logits, 1.0, sample, generator=seeded(0)).prev_sample

    probs = logits.double().softmax(dim=-1)
    if temperature > 0:
        probs = (probs == probs.amax(dim=-1, keepdim=True)).double()
    chosen = dense_scores(probs, order).sort(dim=-1, descending=True, stable=True).indices[:, :2]
    committed = logits.argmax(dim=-1).gather(1, chosen)
    assert torch.equal(stepped, sample.scatter(1, chosen, committed))
    assert (committed == MASK).any()


def test_a_committed_mask_spends_its_quota_and_stays_after_the_last_step():
    logits = torch.zeros(1, 6, V)
    logits[0, :, 1] = 5.0
    logits[0, 2, MASK] = 9.0  # the surest of all
    for options, left in (({"quota": "even"}, 3), ({"quota": "rounded"}, 3), ({}, 1)):
        scheduler = ConfidenceScheduler(MASK, temperature=0.0, allow_mask=True, **options)
        scheduler.set_timesteps(3)
        tokens = scheduler.prior((1, 6))
        for timestep in scheduler.timesteps:
            tokens = scheduler.step(logits, timestep, tokens).prev_sample
        # Of a schedule of 2, 2, 2 each step spends one on the mask; without one the last step commits all others.
        assert tokens[0, 2] == MASK and int((tokens == MASK).sum()) == left


# Seeds, edges and errors


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"order": "random"},
        {"order_temperature": 1.0},
        {"threshold": 0.4},
        {"quota": "even", "order": "left_to_right"},
        {"quota": "even", "threshold": 0.4},
        {"quota": "rounded", "allow_mask": True},
        {"quota": "truncated", "grid_end": 1e-3},
    ],
)
def test_a_row_is_the_same_alone_and_in_a_batch(config):
    logits = torch.randn(3, 6, V, generator=seeded(4)) * 2

    def run(rows):
        scheduler = ConfidenceScheduler(MASK, **config)
        scheduler.set_timesteps(4)
        generator = [seeded(10 + row) for row in rows]
        tokens = scheduler.prior((len(rows), 6))
        tokens[[row == 1 for row in rows], :4] = 0
        for timestep in scheduler.timesteps:
            tokens = scheduler.step(logits[rows], timestep, tokens, generator=generator).prev_sample
        return tokens

    together = run([0, 1, 2])
    for row in range(3):
        assert torch.equal(run([row])[0], together[row])


def test_sums_of_a_row_do_not_depend_on_other_rows_or_threads():
    values = torch.rand(4, 50_258, generator=seeded(8))
    alone = torch.cat([row_sums(row.unsqueeze(0)) for row in values])
    torch.set_num_threads(2)
    try:
        assert torch.equal(row_sums(values), alone)
        assert torch.equal(torch.cat([row_sums(row.unsqueeze(0)) for row in values]), alone)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(alone.double(), values.double().sum(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(row_sums(values[:, :7]), values[:, :7].sum(dim=1))


@pytest.mark.parametrize(
    "config", [{}, {"temperature": 0.0}, {"order": "entropy"}, {"threshold": 0.5}]
)
def test_the_mask_is_never_written_and_the_inputs_stay(config):
    scheduler = ConfidenceScheduler(MASK, **config)
    logits = torch.zeros(16, 5, V)
    logits[..., MASK] = 1e4
    logits[:, 2, MASK] = torch.inf
    before = logits.clone()
    scheduler.set_timesteps(3)
    tokens = scheduler.prior((16, 5))
    for timestep in scheduler.timesteps:
        kept = tokens.clone()
        stepped = scheduler.step(logits, timestep, tokens, generator=seeded(0)).prev_sample
        assert torch.equal(tokens, kept) and torch.equal(logits, before)
        assert torch.equal(stepped[tokens != MASK], tokens[tokens != MASK])
        tokens = stepped
    assert not (tokens == MASK).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"order": "best"}, r"`order` must be None or one of confidence, .*random, got 'best'"),
        ({"threshold": 1.5}, r"`threshold` must be None or a number in \[0, 1\], got 1.5"),
        ({"threshold": -0.1}, "`threshold` must be"),
        (
            {"entropy_bound": -1.0},
            "`entropy_bound` must be None or a number of at least 0, got -1.0",
        ),
        ({"entropy_bound": float("nan")}, "`entropy_bound` must be"),
        (
            {"order_temperature": -1.0},
            "`order_temperature` must be a number of at least 0, got -1.0",
        ),
        (
            {"threshold": 0.5, "entropy_bound": 1.0},
            "`entropy_bound` must be None if `threshold` is given, got 1.0",
        ),
        ({"quota": "odd"}, "`quota` must be None or one of proportional, .*rounded, got 'odd'"),
        ({"allow_mask": 1}, "`allow_mask` must be True or False, got 1"),
        ({"grid_end": 1.0}, "`grid_end` must be a number of at least 0 and below 1, got 1.0"),
        (
            {"grid_end": 0.1, "num_train_timesteps": 50},
            "`grid_end` must be 0 if `num_train_timesteps` is given, got 0.1",
        ),
        ({"temperature": -1.0}, "`temperature` must be"),
        ({"top_p": 0.0}, "`top_p` must be"),
        ({"mask_token_id": -1}, "`mask_token_id` must be"),
    ],
)
def test_wrong_arguments_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceScheduler(**{"mask_token_id": MASK, **changes})


def test_wrong_calls_are_refused_by_name():
    scheduler = ConfidenceScheduler(MASK)
    sample = scheduler.prior((1, 3))
    with pytest.raises(ValueError, match="one of the 128 `timesteps`"):
        scheduler.select(0.12345, sample)
    with pytest.raises(ValueError, match="one row a selected position"):
        scheduler.step(torch.zeros(1, V), 1.0, sample, positions=sample == MASK)
    with pytest.raises(ValueError, match=f"`mask_token_id` must be below the 4 logits, got {MASK}"):
        scheduler.step(torch.zeros(3, 4), 1.0, sample, positions=sample == MASK)
    for temperature in (0.0, 1.0):
        scheduler = ConfidenceScheduler(MASK, temperature=temperature)
        with pytest.raises(ValueError, match="NaN or infinite"):
            scheduler.step(torch.full((3, V), float("nan")), 1.0, sample, positions=sample == MASK)
    assert isinstance(scheduler.step(torch.zeros(1, 3, V), 1.0, sample, return_dict=False), tuple)


def test_swaps_keep_the_settings_in_both_directions_and_on_disk(tmp_path):
    shared = {"num_train_timesteps": 50, "schedule": "cosine", "min_timestep": 0.01}
    shared |= {"temperature": 0.8, "top_k": 4, "top_p": 0.9}
    ancestral = D3PMAbsorbingScheduler(
        MASK, **shared
    )  # by position: diffusers takes it for a default
    own = {"order": "margin", "threshold": 0.7, "order_temperature": 0.2}
    swapped = ConfidenceScheduler.from_config(ancestral.config, **own)
    swapped.save_pretrained(tmp_path)
    loaded = ConfidenceScheduler.from_pretrained(tmp_path)
    back = D3PMAbsorbingScheduler.from_config(loaded.config)
    for scheduler in (swapped, loaded, back, ConfidenceScheduler(MASK, **shared, **own)):
        assert {name: scheduler.config[name] for name in shared} == shared
        assert scheduler.config.mask_token_id == MASK
    assert {name: loaded.config[name] for name in own} == own
    again = ConfidenceScheduler.from_config(back.config)
    assert {name: again.config[name] for name in own} == own
    plain = ConfidenceScheduler.from_config(D3PMAbsorbingScheduler(MASK).config)
    assert (
        plain.config.mask_token_id == MASK and plain.config.threshold is None and plain.order == 1
    )
    assert {ConfidenceScheduler, D3PMAbsorbingScheduler} <= set(plain.compatibles)


@pytest.mark.parametrize(
    "settings", [{}, {"quota": "even"}, {"threshold": 0.2}, {"order": "random"}]
)
def test_late_tokens_wait_for_all_others(settings):
    """No end is committed in a row while another candidate is left, and the last step leaves no mask."""
    late = [3, 4]
    scheduler = ConfidenceScheduler(9, temperature=0.0, late_token_ids=late, **settings)
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(0)
    sample = scheduler.prior((20, 12))
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, sample, generator)
        logits = torch.randn(int(positions.sum()), 10, generator=generator)
        logits[:, late] += 1.5
        candidates = torch.full(sample.shape, -1)
        candidates[positions] = logits[:, :9].argmax(dim=-1)
        is_late = torch.isin(candidates, torch.tensor(late))
        next_sample = scheduler.step(
            logits, timestep, sample, positions=positions, generator=generator
        ).prev_sample
        committed = (sample == 9) & (next_sample != 9)
        is_left = (positions & ~is_late & ~committed).any(dim=1)
        assert not (committed & is_late)[is_left].any()
        sample = next_sample
    assert (sample != 9).all() and torch.isin(sample, torch.tensor(late)).any()
