"""Windows of ConfidenceScheduler: only the first so many masks of a row may be committed, in any order, by any rule.

Shapes: B rows, L length, V vocabulary size.
"""

import pytest
import torch
from conftest import covering
from support.language_models import chat_pipe
from support.oracles import MarkovSource, TableDenoiser, chi_square_passes

from text_diffusers import ConfidenceScheduler

V = 6
MASK = V - 1
L = 11
GOLDEN = MarkovSource.golden()
ORDERS = ["confidence", "entropy", "margin", "random", "left_to_right"]
QUOTAS = ["proportional", "truncated", "even", "rounded"]


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def logits_of(tokens):
    """(B, L, V) of an imagined model: random, but the same for the same row."""
    keys = (tokens * torch.arange(1, tokens.shape[1] + 1)).sum(dim=1).tolist()
    rows = [torch.randn(tokens.shape[1], V, generator=seeded(7 + key)[0]) for key in keys]
    return 2 * torch.stack(rows)


def states(config, num_steps, selects=True, rows=4, length=L):
    """Every state of a run from masks on, some tokens being known."""
    scheduler = ConfidenceScheduler(MASK, **config)
    scheduler.set_timesteps(num_steps)
    tokens = scheduler.prior((rows, length))
    tokens[0, 2:5] = 1
    tokens[1, ::3] = 2
    generators = seeded(*range(rows))
    found = [tokens]
    for timestep in scheduler.timesteps:
        positions = tokens == MASK
        if selects:
            positions = scheduler.select(timestep, tokens, generators)
        logits = logits_of(tokens)[positions]
        tokens = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generators
        ).prev_sample
        found.append(tokens)
    return found


@pytest.mark.parametrize(
    "order, more, window",
    covering(ORDERS, [{}, {"threshold": 0.4}, {"entropy_bound": 1.2}], [1, 3]),
    ids=str,
)
def test_what_is_committed_is_among_the_first_masks(order, more, window):
    config = {"order": order, "window": window, **more}
    found = states(config, num_steps=L)
    assert not (found[-1] == MASK).any()
    for before, after in zip(found, found[1:-1], strict=False):
        committed = before != after
        quotas = committed.sum(dim=1, keepdim=True) if not more else torch.ones(4, 1)
        reach = quotas.clamp(min=window)
        ranks = (before == MASK).cumsum(dim=1)
        assert (ranks[committed] <= reach.expand(before.shape)[committed]).all()

    # Whether a caller asks for all masks or for those that are selected, a step commits the same.
    for one, other in zip(found, states(config, num_steps=L, selects=False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("quota, num_steps", covering(QUOTAS, [2, 5, 16]))
def test_a_window_leaves_as_many_masks_after_each_step_as_none(quota, num_steps):
    """Also where a step must commit more than the window holds, which then is wider."""
    config = {"quota": quota, "temperature": 0.0}
    counts = [(tokens == MASK).sum(dim=1) for tokens in states(config, num_steps)]
    for order in ORDERS:
        for window in (1, 4):
            found = states(config | {"order": order, "window": window}, num_steps)
            assert [(tokens == MASK).sum(dim=1).tolist() for tokens in found] == [
                count.tolist() for count in counts
            ]


@pytest.mark.parametrize("more", [{}, {"threshold": 0.4}, {"entropy_bound": 1.2}], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_a_window_of_all_masks_is_none(order, more):
    config = {"order": order, **more}
    for num_steps in (3, 11):
        wide = states(config | {"window": L}, num_steps)
        for one, other in zip(states(config, num_steps), wide, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("order", ORDERS)
def test_in_a_window_of_one_every_order_is_from_the_left(order):
    for num_steps in (4, L):
        left = states({"order": "left_to_right", "temperature": 0.0}, num_steps)
        found = states({"order": order, "window": 1, "temperature": 0.0}, num_steps)
        if num_steps == L:  # a token a step
            for one, other in zip(left, found, strict=True):
                assert torch.equal(one, other)
        assert [(tokens == MASK).sum().item() for tokens in found] == [
            (tokens == MASK).sum().item() for tokens in left
        ]


def test_no_more_is_selected_than_a_step_can_commit():
    """So the head of a model runs at a few positions only."""
    for config, most in (
        ({"order": "left_to_right"}, 1),
        ({"order": "left_to_right", "window": 4}, 1),
        ({"order": "left_to_right", "late_token_ids": [3]}, L),
        ({"window": 4}, 4),
        ({"window": 4, "threshold": 0.9}, 4),
    ):
        scheduler = ConfidenceScheduler(MASK, **config)
        scheduler.set_timesteps(2 * L)
        tokens = scheduler.prior((3, L))
        tokens[1, 1:9] = 0
        for timestep in scheduler.timesteps[:-1]:
            positions = scheduler.select(timestep, tokens)
            masks = (tokens == MASK).sum(dim=1)
            assert (positions.sum(dim=1) <= masks.clamp(max=most)).all()
            logits = logits_of(tokens)[positions]
            tokens = scheduler.step(logits, timestep, tokens, positions=positions).prev_sample


@pytest.mark.parametrize("order", ["random", "entropy", "left_to_right"])
def test_with_an_exact_model_one_token_a_step_of_a_window_reaches_the_source(order):
    scheduler = ConfidenceScheduler(GOLDEN.num_tokens, order=order, window=2)
    scheduler.set_timesteps(GOLDEN.length)
    denoiser = TableDenoiser(GOLDEN.masked_denoiser(), GOLDEN.num_tokens + 1)
    generator = torch.Generator().manual_seed(0)
    tokens = scheduler.prior((12_000, GOLDEN.length))
    for timestep in scheduler.timesteps:
        positions = scheduler.select(timestep, tokens, generator)
        logits = denoiser(tokens, timestep, positions=positions).logits
        tokens = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generator
        ).prev_sample
    counts = [
        int((tokens == torch.tensor(sequence)).all(dim=1).sum()) for sequence in GOLDEN.sequences
    ]
    assert chi_square_passes(counts, GOLDEN.probs)


@pytest.mark.parametrize("attention", ["bidirectional", "block"])
@pytest.mark.parametrize("config", [{"order": "entropy"}, {"threshold": 0.3}], ids=str)
def test_a_pipeline_writes_a_text_with_a_window_alone_as_in_a_batch(attention, config):
    pipe = chat_pipe(
        attention=attention, scheduler=ConfidenceScheduler(0, temperature=0.7, window=2, **config)
    )
    prompts = ["w8", "w9 w10 w11 w12 w13", "w14 w15"]
    call = {"max_new_tokens": 10, "num_inference_steps": 6}
    together = pipe(prompts, generator=seeded(0, 1, 2), **call).texts
    for index, prompt in enumerate(prompts):
        assert pipe(prompt, generator=seeded(index)[0], **call).texts == [together[index]]

    # Gaps of a text are written within the window as well.
    filled = pipe(text="w8 <|mask|> w9 <|mask|> <|mask|>", num_inference_steps=4).texts[0]
    assert "<|mask|>" not in filled


def test_a_window_is_saved_and_refused_by_name(tmp_path):
    scheduler = ConfidenceScheduler(MASK, window=3)
    scheduler.save_pretrained(tmp_path)
    assert ConfidenceScheduler.from_pretrained(tmp_path).config.window == 3
    for window in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="`window` must be"):
            ConfidenceScheduler(MASK, window=window)
