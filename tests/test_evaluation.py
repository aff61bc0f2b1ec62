"""Estimates against exact values: the Monte-Carlo bound, entropies and distances."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from oracles import MarkovSource, TableDenoiser

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.bounds import batch_bound
from text_diffusers.evaluation import estimate_bound, length_distance, length_nats, unigram_entropy


def sampled_rows(source, count, seed=0):
    picks = np.random.default_rng(seed).choice(len(source.probs), size=count, p=source.probs)
    tokens = source.sequences[picks]
    return Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}), picks


@pytest.mark.parametrize("steps", [None, 8])
def test_the_estimated_bound_is_within_three_standard_errors_of_the_exact_one(steps):
    source = MarkovSource.golden()
    rows, picks = sampled_rows(source, 2000)
    denoiser = TableDenoiser(source.masked_denoiser(), source.num_tokens + 1)
    scheduler = D3PMAbsorbingScheduler(source.num_tokens, num_train_timesteps=steps, schedule="cosine")
    bound, error, _ = estimate_bound(denoiser, scheduler, rows, num_times=4)
    code_length = -np.log(source.probs[picks]).mean() / source.length  # what the exact continuous bound averages to
    exact = code_length + (2.55167047695 - 2.49905254516) / source.length if steps else code_length
    assert abs(bound - exact) < 3 * error + (0.01 if steps else 0.001) and error < 0.02


def test_the_uniform_bound_is_above_the_entropy():
    source = MarkovSource.golden()
    rows, picks = sampled_rows(source, 2000)
    scheduler = D3PMUniformScheduler(source.num_tokens, num_train_timesteps=8)

    class AtEachTime(TableDenoiser):
        def forward(self, input_ids, timestep=None, *args, positions=None):
            logits = torch.stack(
                [source_logits[round(float(t) * 8)][tuple(row)] for t, row in zip(timestep, input_ids, strict=True)]
            )
            return type("Output", (), {"logits": logits[positions]})()

    source_logits = {i: source.uniform_denoiser(float(scheduler.alpha(i / 8))) for i in range(1, 9)}
    bound, error, _ = estimate_bound(AtEachTime(None, source.num_tokens), scheduler, rows)
    assert bound > -np.log(source.probs[picks]).mean() / source.length - 3 * error
    assert bound < np.log(source.num_tokens)


def test_padding_is_neither_predicted_nor_counted(tokenizer, denoiser):
    tokens = torch.randint(1, 256, (4, 12), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([tokens, torch.full((4, 6), tokenizer.pad_token_id)], dim=1)
    uniform = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    for scheduler in (D3PMAbsorbingScheduler(tokenizer.mask_token_id), D3PMUniformScheduler(tokenizer.pad_token_id)):
        values = []
        for rows in (tokens, padded):
            batch = {"input_ids": rows, "attention_mask": (torch.arange(rows.shape[1]) < 12).long().expand_as(rows)}
            generators = [torch.Generator().manual_seed(i) for i in range(4)]
            values.append(batch_bound(denoiser, scheduler, batch, uniform, generators))
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)


def test_unigram_entropy_is_that_of_the_frequencies():
    rows = [
        {"input_ids": [0, 1, 2, 3], "attention_mask": [1, 1, 1, 1]},
        {"input_ids": [0, 1, 9, 9], "attention_mask": [1, 1, 0, 0]},
    ]
    assert unigram_entropy(rows) == pytest.approx(-(2 * (1 / 3) * np.log(1 / 3) + 2 * (1 / 6) * np.log(1 / 6)))


def test_lengths_cost_what_the_histogram_says():
    assert length_nats([0, 1, 5], [2, 2, 0]) == pytest.approx(-2 * np.log(6 / 9) - np.log(1 / 9))


def test_length_distance_is_that_of_scipy():
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(0)
    first, second = rng.poisson(8, 300), rng.poisson(11, 200)
    assert length_distance(first, second) == pytest.approx(wasserstein_distance(first, second))
    assert length_distance([3, 4], [4, 3]) == 0
    with pytest.raises(ValueError, match="got 0 and 1"):
        length_distance([], [1])
