"""Training steps of blocks over a causal past: the autoregressive loss, turns of block lengths, the loss of the bound.

Shapes: B batch, L row length in tokens.
"""

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.language_models import make_language_model

from text_diffusers import D3PMAbsorbingScheduler
from text_diffusers.models import LanguageModelDenoiser, Reading
from text_diffusers.training.steps.blocks import BlockSteps
from text_diffusers.training.steps.tokens import TokenCorruption

MASK = 0


def make_denoiser(model, block_length=3):
    reading = Reading(
        attention="block",
        past="causal",
        block_length=block_length,
        alignment="shifted",
        mask_token_id=MASK,
    )
    model.config.diffusion = vars(reading)
    return LanguageModelDenoiser(model, [MASK])


def make_batch(rows=4, length=9):
    tokens = torch.randint(6, 40, (rows, length), generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([length, 5, 7, length])[:rows]
    num_given = torch.tensor([1, 2, 1, 4])[:rows]
    columns = torch.arange(length)
    return {
        "input_ids": tokens,
        "attention_mask": (columns < sizes.unsqueeze(1)).long(),
        "given": columns < num_given.unsqueeze(1),
    }


def step_loss(denoiser, batch, steps, step, seed=0, block_length=None):
    """The loss of a training step as a recipe computes it, and what the denoiser said."""
    corruption = TokenCorruption(D3PMAbsorbingScheduler(MASK), denoiser.config)
    generators = [
        torch.Generator().manual_seed(seed * 100_003 + row)
        for row in range(len(batch["input_ids"]))
    ]
    uniform = torch.rand(len(generators), generator=torch.Generator().manual_seed(seed))
    block_length = block_length or steps.length_at(step)
    corrupted = corruption(batch, uniform, generators, block_length)
    inputs = corrupted.block_inputs | steps.inputs(batch, block_length, step)
    mask = corrupted.batch["attention_mask"]
    output = denoiser(
        corrupted.noisy, corrupted.times, mask, positions=corrupted.positions, **inputs
    )
    return corrupted.criterion(output.logits) + steps.loss(output, batch, inputs), corrupted


def test_in_blocks_of_one_token_a_step_has_the_loss_of_stock_transformers():
    model = make_language_model("llama")
    batch = make_batch()
    labels = batch["input_ids"].masked_fill(batch["given"] | (batch["attention_mask"] == 0), -100)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logits = logits[:, :-1].index_fill(-1, torch.tensor([MASK]), -torch.inf)
    want = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").double()

    denoiser = make_denoiser(model)
    for weight in (0.0, 0.3):
        steps = BlockSteps(denoiser.config, next_token_weight=weight)
        loss, _ = step_loss(denoiser, batch, steps, step=0, block_length=1)
        torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)


def test_next_tokens_come_first_and_their_loss_is_added_to_that_of_longer_blocks():
    denoiser = make_denoiser(make_language_model("llama"))
    batch = make_batch()
    steps = BlockSteps(denoiser.config, [3, 5], next_token_weight=0.3, next_token_share=0.6)
    plain = BlockSteps(denoiser.config, [3, 5], next_token_weight=0.0)
    assert {steps.length_at(step, progress=0.59) for step in range(4)} == {1}
    later = [steps.length_at(step, progress=0.6) for step in range(4)]
    assert later == [plain.length_at(step) for step in range(4)]

    ones, _ = step_loss(denoiser, batch, steps, step=0, block_length=1)
    # Each next token is asked for once in four steps, and then counts for as many.
    added = [
        step_loss(denoiser, batch, steps, step)[0] - step_loss(denoiser, batch, plain, step)[0]
        for step in range(4)
    ]
    assert min(added) > 0 and len({round(float(loss), 3) for loss in added}) == 4
    torch.testing.assert_close(sum(added) / 4, 0.3 * ones, rtol=1e-4, atol=1e-4)


def test_blocks_of_each_length_meet_each_next_token():
    denoiser = make_denoiser(make_language_model("llama"))
    batch = make_batch()
    steps = BlockSteps(denoiser.config, block_lengths=[2, 3, 4, 5])
    met = set()
    for step in range(100):
        positions = steps.inputs(batch, steps.length_at(step), step)["clean_positions"]
        met |= {(steps.length_at(step), column) for column in positions.nonzero()[:, 1].tolist()}
    # A row has nine tokens, of which the first is given.
    assert met == {(length, column) for length in (2, 3, 4, 5) for column in range(1, 9)}


@torch.no_grad()
def test_the_loss_of_longer_blocks_is_the_mean_over_what_may_be_masked():
    """Of n tokens of a block, masks of every number weigh alike: 2 / (n + 1) of the cost of all choices of them."""
    denoiser = make_denoiser(make_language_model("qwen2"))
    batch = {name: column[2:3, :7] for name, column in make_batch().items()}
    row = batch["input_ids"][0]
    # Behind the first token, which is given, stand two blocks of three.
    total = 0.0
    for begin in (1, 4):
        orders = list(permutations(range(begin, begin + 3)))
        for order in orders:
            for count in range(1, 4):
                noisy = row[: begin + 3].clone()
                noisy[list(order[:count])] = MASK
                visible = torch.ones(begin + 3, begin + 3).tril()
                visible[begin:] = 1
                logits = denoiser(noisy.unsqueeze(0), attention_mask=visible[None]).logits[0]
                places = list(order[:count])
                cost = F.cross_entropy(logits[places], row[places], reduction="sum")
                total += float(cost) / len(orders) / 3 * (2 * 3 / 4)

    steps = BlockSteps(denoiser.config, next_token_weight=0)
    many = {name: column.expand(30, -1) for name, column in batch.items()}
    losses = [step_loss(denoiser, many, steps, 0, seed)[0] / 30 for seed in range(20)]
    assert torch.stack(losses).mean().item() == pytest.approx(total, rel=0.03)


def test_lengths_of_blocks_take_turns_and_rows_are_masked_in_blocks_of_these():
    denoiser = make_denoiser(make_language_model("llama"))
    steps = BlockSteps(denoiser.config, block_lengths=[2, 4], seed=5)
    lengths = [steps.length_at(step) for step in range(12)]
    assert lengths == [BlockSteps(denoiser.config, [2, 4], seed=5).length_at(i) for i in range(12)]
    assert all({*lengths[first : first + 2]} == {2, 4} for first in range(0, 12, 2))
    assert lengths != [BlockSteps(denoiser.config, [2, 4], seed=6).length_at(i) for i in range(12)]

    for step, length in enumerate(lengths[:4]):
        _, corrupted = step_loss(denoiser, make_batch(), steps, step)
        assert corrupted.block_inputs["block_length"] == length
        assert corrupted.block_inputs["block_starts"].tolist() == [
            first % length for first in (1, 2, 1, 4)
        ]
        # Each block with a token to learn has a mask.
        masked = corrupted.positions[0, 1:].split(length)
        assert all(block.any() for block in masked)


def test_what_needs_a_causal_past_is_refused_by_name():
    config = SimpleNamespace(block_length=4, causal_past=False)
    assert BlockSteps(config, [4]).length_at(3) is None
    for options, message in [
        ({"block_lengths": [4, 8]}, r"`block_length` must be one length .*got \[4, 8\]"),
        ({"next_token_weight": 0.1}, "`ar_loss_weight` must be left out"),
        ({"next_token_share": 0.6}, "`next_token_share` must be 0 without a past"),
    ]:
        with pytest.raises(ValueError, match=message):
            BlockSteps(config, **options)

    causal = SimpleNamespace(block_length=4, causal_past=True)
    for share in (-0.1, 1, float("nan"), "most"):
        with pytest.raises(ValueError, match=r"`next_token_share` must be a number in \[0, 1\)"):
            BlockSteps(causal, next_token_share=share)
