"""Training steps over tokens: mask counts against enumeration, lengths that a model is asked for."""

from itertools import combinations, permutations

import pytest
import torch
import torch.nn.functional as F

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    TextDiffusionPipeline,
    TextTransformerModel,
)
from text_diffusers.common.training_randomness import masks_by_count
from text_diffusers.data.rows import tensor_batches, tokenize, unknown_tokens
from text_diffusers.training.steps.lengths import ASKED_SHARE
from text_diffusers.training.steps.tokens import MaskCountLoss, TokenCorruption

MASK = 6


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed * 100_003 + row) for row in range(count)]


def make_model(**changes):
    torch.manual_seed(0)
    model = TextTransformerModel(
        7, hidden_size=8, num_layers=1, num_attention_heads=2, max_length=6, **changes
    )
    # A fresh head predicts all tokens alike.
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


def costs_of_masks(model, tokens, counted):
    """The cost in nats of each masked token, by the set of tokens that are masked with it."""
    costs = {}
    for size in range(1, len(counted) + 1):
        for masked in combinations(counted, size):
            noisy = tokens.clone()
            noisy[list(masked)] = MASK
            logits = model(noisy.unsqueeze(0)).logits[0]
            logits[:, MASK] = -torch.inf
            for place in masked:
                costs[masked, place] = float(F.cross_entropy(logits[place], tokens[place]).detach())
    return costs


def test_masks_weigh_alike_or_as_in_the_bound():
    """Two oracles without times: all choices of masks, and tokens written one after the other in every order."""
    model = make_model()
    tokens = torch.tensor([5, 0, 3, 1])
    counted = [1, 2, 3]
    costs = costs_of_masks(model, tokens, counted)

    # The bound is the mean cost over all orders of writing.
    orders = []
    for order in permutations(counted):
        masked_then = [tuple(sorted(order[place:])) for place in range(len(order))]
        steps = zip(masked_then, order, strict=True)
        orders.append(sum(costs[masked, place] for masked, place in steps))
    bound = sum(orders) / len(orders)

    # Evenly weighed masks of every number: of n tokens, (n + 1) / 2 are masked on average.
    by_size = []
    for size in range(1, 4):
        choices = [
            sum(costs[masked, place] for place in masked) for masked in combinations(counted, size)
        ]
        by_size.append(sum(choices) / len(choices))
    even = sum(by_size) / 3 * 3 / 2

    rows = 6_000
    batch = {
        "input_ids": tokens.expand(rows, -1),
        "attention_mask": torch.ones(rows, 4),
        "given": torch.tensor([True, False, False, False]).expand(rows, -1),
    }
    scheduler = D3PMAbsorbingScheduler(MASK, schedule="cosine")
    uniform = (torch.arange(rows) + 0.5) / rows
    corrupted = TokenCorruption(scheduler, model.config)(batch, uniform, generators(rows))
    masks = masks_by_count(unknown_tokens(batch), uniform, generators(rows))
    assert torch.equal(corrupted.positions, masks.masked)
    of_bound = MaskCountLoss(scheduler, batch, corrupted.noisy, masks.shares, masks.bound_weights)
    with torch.no_grad():
        logits = model(corrupted.noisy, corrupted.times, positions=corrupted.positions).logits
    assert float(corrupted.criterion(logits)) / rows == pytest.approx(even, rel=0.02)
    assert float(of_bound(logits)) / rows == pytest.approx(bound, rel=0.02)

    # In chunks of any size it is the same.
    sizes = [slice(0, 1_000), slice(1_000, 1_007), slice(1_007, None)]
    parts = [float(corrupted.criterion(logits[chunk], chunk)) for chunk in sizes]
    assert sum(parts) == pytest.approx(float(corrupted.criterion(logits)))


@pytest.mark.parametrize("block_length, start", [(None, None), (3, None), (3, 1)])
def test_every_number_of_masks_is_as_likely_and_so_is_every_choice(block_length, start):
    rows = 1_200
    counted = torch.tensor([False, True, True, True, True, False]).expand(rows, -1)
    uniform = (torch.arange(rows) + 0.5) / rows
    if block_length:
        uniform = uniform.unsqueeze(1).expand(-1, 6)
    starts = None if start is None else torch.full((rows,), start)
    masked, counts_of_rows, totals = masks_by_count(
        counted, uniform, generators(rows), block_length, starts
    )
    shares = counts_of_rows / totals
    assert not masked[~counted].any()

    blocks = {
        None: [range(1, 5)],
        3: [range(1, 3), range(3, 5)] if start is None else [range(1, 4), range(4, 5)],
    }
    for block in blocks[block_length]:
        of_block = masked[:, list(block)]
        counts = of_block.sum(dim=1)
        assert counts.bincount().tolist() == [0] + [rows // len(block)] * len(block)
        assert torch.equal(shares[:, block[0]], counts / len(block))
        # With one mask of the block, each of its tokens is it equally often.
        alone = of_block[counts == 1].sum(dim=0)
        expected = rows / len(block) / len(block)
        assert ((alone - expected).abs() < 5 * expected**0.5).all()


def test_mask_counts_are_refused_where_they_do_not_say_the_time():
    model = make_model()
    timed = make_model(time_conditioning=True)
    for scheduler, denoiser in (
        (D3PMUniformScheduler(6), model),
        (D3PMAbsorbingScheduler(MASK, num_train_timesteps=10), model),
        (D3PMAbsorbingScheduler(MASK), timed),
    ):
        with pytest.raises(ValueError, match='`time_sampling` "mask_count" needs'):
            TokenCorruption(scheduler, denoiser.config, "mask_count")
        assert TokenCorruption(scheduler, denoiser.config).time_sampling == "log_uniform"


def test_texts_and_lengths_each_cost_what_they_would_without_the_other():
    """Some rows are asked for a length and have no text: on average the loss is that of all texts and all lengths."""
    model = make_model(predicts_length=True)
    rows = 8_000
    tokens = torch.tensor([5, 2, 5, 1, 3, 5])
    given = torch.tensor([True, True, True, False, False, False])
    batch = {
        "input_ids": tokens.expand(rows, -1),
        "attention_mask": torch.ones(rows, 6, dtype=torch.long),
        "given": given.expand(rows, -1),
    }
    scheduler = D3PMAbsorbingScheduler(MASK)
    uniform = torch.rand(rows, generator=torch.Generator().manual_seed(1))

    def mean_loss(config):
        corrupted = TokenCorruption(scheduler, config)(batch, uniform, generators(rows))
        with torch.no_grad():
            logits = model(
                corrupted.noisy,
                corrupted.times,
                corrupted.batch["attention_mask"],
                positions=corrupted.positions,
            ).logits
        return float(corrupted.criterion(logits)) / rows, corrupted

    texts, _ = mean_loss(make_model().config)
    both, corrupted = mean_loss(model.config)
    # Two tokens behind the source, asked at its end
    logits = model.length_logits(tokens[:3].unsqueeze(0))
    length = float(F.cross_entropy(logits, torch.tensor([2])).detach())
    assert both == pytest.approx(texts + length, rel=0.05)

    asked = (corrupted.batch["attention_mask"].sum(dim=1) == 3).float().mean()
    assert float(asked) == pytest.approx(ASKED_SHARE, rel=0.2)


@pytest.mark.slow
def test_a_reply_has_the_length_that_its_question_asks_for(tokenizer):
    """Trained on pairs whose source says how long the reply is, the pipeline chooses these lengths itself."""
    from datasets import Dataset

    words = "the cat sat on a mat and".split()
    sizes = {"one": 1, "three": 3, "six": 6}
    documents = {
        "source": [name for name in sizes for _ in range(40)],
        "text": [" ".join(words[:size]) for size in sizes.values() for _ in range(40)],
    }
    expected = {}
    for name, text in zip(documents["source"], documents["text"], strict=True):
        expected[name] = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    rows = tokenize(Dataset.from_dict(documents), tokenizer, length=20, packing=False)
    batch = next(tensor_batches(rows, len(rows)))
    assert int(unknown_tokens(batch).sum()) == 40 * sum(expected.values()) + 120

    torch.manual_seed(0)
    model = TextTransformerModel(
        len(tokenizer),
        hidden_size=32,
        num_layers=1,
        num_attention_heads=2,
        max_length=20,
        tie_embeddings=True,
        predicts_length=True,
    )
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    corruption = TokenCorruption(scheduler, model.config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        uniform = torch.rand(120, generator=torch.Generator().manual_seed(step))
        corrupted = corruption(batch, uniform, generators(120, seed=step + 1))
        logits = model(
            corrupted.noisy,
            corrupted.times,
            corrupted.batch["attention_mask"],
            positions=corrupted.positions,
        ).logits
        optimizer.zero_grad()
        (corrupted.criterion(logits) / 120).backward()
        optimizer.step()

    pipe = TextDiffusionPipeline(tokenizer, model.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    sources = list(sizes) * 4
    seed = torch.Generator().manual_seed(0)
    written = pipe(
        source=sources, num_inference_steps=8, generator=seed, output_type="tokens"
    ).tokens
    # Without the end
    lengths = (written != tokenizer.pad_token_id).sum(dim=1) - 1
    assert lengths.tolist() == [expected[name] for name in sources]

    # No more than asked for, and exactly what is asked for
    short = pipe(source="six", max_new_tokens=2, num_inference_steps=2, output_type="tokens").tokens
    assert (short != tokenizer.pad_token_id).sum() == 3
    exact = pipe(source="one", length=5, num_inference_steps=2, output_type="tokens").tokens
    assert (exact != tokenizer.pad_token_id).sum() == 6


def test_lengths_are_guided_as_texts_are(tokenizer):
    """At scale 0 a reply, its length included, is that of the question without its label."""
    torch.manual_seed(0)
    model = TextTransformerModel(
        len(tokenizer),
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        max_length=20,
        num_classes=2,
        predicts_length=True,
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    pipe = TextDiffusionPipeline(
        tokenizer, model.eval(), D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)

    def write(**arguments):
        return pipe(
            source=["the cat"] * 40,
            num_inference_steps=4,
            output_type="tokens",
            generator=generators(40),
            **arguments,
        ).tokens

    unlabelled = write()
    labelled = write(class_labels=1)
    assert torch.equal(write(class_labels=1, guidance_scale=0.0), unlabelled)
    assert not torch.equal(labelled, unlabelled)

    # A scale that begins later leaves the length as it is.
    later = write(class_labels=1, guidance_scale=3.0, guidance_interval=(0.5, 1.0))
    padding = tokenizer.pad_token_id
    assert torch.equal(later == padding, labelled == padding)
    stronger = write(class_labels=1, guidance_scale=3.0)
    assert stronger.shape != labelled.shape or not torch.equal(
        stronger == padding, labelled == padding
    )
