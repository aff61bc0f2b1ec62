"""Laws of bounds over a causal past: those of the blocks that are written, at any length, and of next tokens.

Shapes: B rows, L row length in tokens.
"""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import slow
from datasets import Dataset
from support.language_models import make_language_model, word_tokenizer

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.evaluation import (
    estimate_autoregressive_loss,
    evaluate_likelihood,
    full_bound,
)
from text_diffusers.evaluation.held_out import make_validation_rows
from text_diffusers.models import LanguageModelDenoiser, Reading

MASK, PAD, END, START = 0, 1, 2, 4
EXCLUDED = [MASK, PAD, *range(40, 44)]  # mask, padding, ids without a token
READING = Reading(
    attention="block",
    past="causal",
    block_length=2,
    alignment="shifted",
    mask_token_id=MASK,
    end_token_ids=[END],
)


def causal_pipe():
    tokenizer = word_tokenizer(
        mask_token="<|mask|>", pad_token="<|pad|>", eos_token="<|end|>", bos_token="<|user|>"
    )
    model = make_language_model("qwen2", READING)
    return TextDiffusionPipeline(tokenizer, model, D3PMAbsorbingScheduler(MASK))


@torch.no_grad()
def log_probs_of(model, row):
    """(L - 1,) log-probabilities of the tokens of a row but the first, by the model as stock transformers calls it."""
    logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
    logits[:, EXCLUDED] = -torch.inf
    return logits.log_softmax(dim=-1).gather(1, torch.tensor(row[1:]).unsqueeze(1)).squeeze(1)


@torch.no_grad()
def cost_in_blocks(denoiser, row, num_given, block_length):
    """The mean cost over all orders of writing in each block, one call for each set of masks."""
    total = 0.0
    for begin in range(num_given, len(row), block_length):
        block = row[begin : begin + block_length]
        orders = list(itertools.permutations(range(len(block))))
        for order in orders:
            noisy = [*row[:begin], *[MASK] * block_length]
            for place in order:
                # The row as a whole; its past is causal, and the rest one block, whatever blocks are counted from.
                size = len(noisy)
                visible = torch.ones(size, size).tril()
                visible[begin:] = 1
                logits = denoiser(torch.tensor([noisy]), attention_mask=visible[None]).logits[0]
                log_probs = logits[begin + place].log_softmax(dim=-1)
                total -= float(log_probs[block[place]]) / len(orders)
                noisy[begin + place] = block[place]
    return total


@pytest.mark.parametrize("block_length", [slow(1), slow(2), 3])
def test_the_bound_is_that_of_the_blocks_behind_the_prompt_of_any_length(block_length):
    pipe = causal_pipe()
    denoiser = LanguageModelDenoiser(pipe.denoiser, EXCLUDED)
    row = [START, 8, 13, 20, 9, 31, 17, END]
    exact = cost_in_blocks(denoiser, row, 3, block_length)
    got = evaluate_likelihood(
        pipe, ["w20 w9 w31 w17"], prompts=["w8 w13"], num_times=1600, block_length=block_length
    )
    error = max(5 * got.per_text_errors[0], 1e-4)
    assert got.num_tokens == 5 and error < 1
    assert got.per_text_nats[0] == pytest.approx(exact, abs=error)

    # The bound of blocks is above what the same weights need token by token, and is that in blocks of one token.
    next_tokens = -float(log_probs_of(pipe.denoiser, row)[2:].sum())
    assert got.autoregressive_nats_per_token == pytest.approx(next_tokens / 5, rel=1e-4)
    assert (abs(exact - next_tokens) < 1e-4) == (block_length == 1)


def test_next_tokens_cost_the_same_whoever_draws_lengths_and_puts_the_ends():
    pipe = causal_pipe()
    drawn = TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, pipe.scheduler, lengths=[1] * 9)
    texts = ["w8", "w9 w10 w11", "w20 w21"]
    want = evaluate_likelihood(pipe, texts, num_times=2)
    got = evaluate_likelihood(drawn, texts, num_times=2)
    by_hand = 0.0
    for text in texts:
        row = [START, *pipe.tokenizer(text)["input_ids"], END]
        by_hand -= float(log_probs_of(pipe.denoiser, row).sum())
    assert got.num_tokens == want.num_tokens == 9
    for likelihood in (got, want):
        assert likelihood.autoregressive_nats_per_token == pytest.approx(by_hand / 9, rel=1e-4)

    # So do those of a validation in training.
    data = SimpleNamespace(
        tokenizer=pipe.tokenizer,
        validation_documents=Dataset.from_dict({"text": texts}),
        lengths=[1] * 9,
        template=None,
        label_prompts=None,
    )
    config = SimpleNamespace(packing=False, validation_rows=9, length=32)
    denoiser = LanguageModelDenoiser(pipe.denoiser, EXCLUDED)
    rows = make_validation_rows(config, data, denoiser)
    assert rows.autoregressive_metrics(denoiser)["ar_loss"] == pytest.approx(by_hand / 9, rel=1e-4)


def test_texts_cost_the_same_alone_and_beside_longer_ones():
    pipe = causal_pipe()
    texts = ["w8", "w9 w10 w11 w12 w13 w14 w15", "w20 w21 w22"]
    together = evaluate_likelihood(pipe, texts, full=True, num_noise=1)
    alone = [evaluate_likelihood(pipe, [text], full=True, num_noise=1) for text in texts]
    # The first text draws the same alone; next tokens cost everyone the same.
    assert together.per_text_nats[0] == pytest.approx(alone[0].per_text_nats[0], rel=1e-4)
    total = sum(one.autoregressive_nats_per_token * one.num_tokens for one in alone)
    assert together.autoregressive_nats_per_token * together.num_tokens == pytest.approx(total)


def shared_with_next(columns):
    """Two rows as one, in which `segment_ids` tell them apart."""
    joined = {name: [[*values[0], *values[1]]] for name, values in columns.items()}
    lengths = [len(row) for row in columns["input_ids"]]
    return joined | {"segment_ids": [[1] * lengths[0] + [2] * lengths[1]]}


@torch.no_grad()
@pytest.mark.parametrize("alignment", ["shifted", "aligned"])
def test_the_loss_of_next_tokens_of_rows_is_that_of_stock_transformers(alignment):
    model = make_language_model("gpt2", replace(READING, alignment=alignment))
    denoiser = LanguageModelDenoiser(model)
    tokens = torch.randint(6, 40, (7, 9), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 4, 7, 9, 2, 9, 6])
    mask = (torch.arange(9) < lengths.unsqueeze(1)).long()
    given = (torch.arange(9) < torch.tensor([1, 2, 3, 1, 1, 4, 1]).unsqueeze(1)) & mask.bool()
    rows = Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": mask.tolist(), "given": given.tolist()}
    )
    labels = tokens.masked_fill(given | (mask == 0), -100)
    want = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    got = estimate_autoregressive_loss(denoiser, rows, batch_size=4)
    assert got == pytest.approx(float(want), rel=1e-5)

    # Texts that share a row cost what they cost alone.
    shared = rows.map(shared_with_next, batched=True, batch_size=2, drop_last_batch=True)
    apart = estimate_autoregressive_loss(denoiser, rows.select(range(6)))
    assert len(shared) == 3
    assert estimate_autoregressive_loss(denoiser, shared) == pytest.approx(apart, rel=1e-5)

    # Aligned, a block of one token is read off a mask, and not off the token before it.
    if alignment == "aligned":
        return
    # In blocks of one token nothing of the bound is random, and it is the same; masks are never written.
    denoiser = LanguageModelDenoiser(model, [MASK]).with_block_length(1)
    bounds = full_bound(denoiser, D3PMAbsorbingScheduler(MASK), list(rows))
    want = estimate_autoregressive_loss(denoiser, rows)
    assert float(bounds.nats.sum() / (labels != -100).sum()) == pytest.approx(want, rel=1e-5)
