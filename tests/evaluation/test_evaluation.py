"""Estimates against exact values: bounds by Monte Carlo and in full, likelihoods of texts, entropies and distances."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SENTENCES, make_denoiser
from datasets import Dataset
from support.character_texts import character_tokenizer, ignorant_pipe
from support.masked_lms import make_masked_lm
from support.oracles import MarkovSource, TableDenoiser, TimedDenoiser

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler, TextDiffusionPipeline
from text_diffusers.evaluation.bounds import batch_bound
from text_diffusers.evaluation.likelihood import (
    estimate_bound,
    evaluate_likelihood,
    length_distance,
    unigram_entropy,
)
from text_diffusers.evaluation.written_texts import length_nats


def sampled_rows(source, count, seed=0):
    picks = np.random.default_rng(seed).choice(len(source.probs), size=count, p=source.probs)
    tokens = source.sequences[picks]
    return Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}
    ), picks


@pytest.mark.parametrize("steps", [None, 8])
def test_the_estimated_bound_is_within_three_standard_errors_of_the_exact_one(steps):
    source = MarkovSource.golden()
    rows, picks = sampled_rows(source, 2000)
    denoiser = TableDenoiser(source.masked_denoiser(), source.num_tokens + 1)
    scheduler = D3PMAbsorbingScheduler(
        source.num_tokens, num_train_timesteps=steps, schedule="cosine"
    )
    bound, error, _ = estimate_bound(denoiser, scheduler, rows, num_times=4)
    code_length = (
        -np.log(source.probs[picks]).mean() / source.length
    )  # what the exact continuous bound averages to
    exact = code_length + (2.55167047695 - 2.49905254516) / source.length if steps else code_length
    assert abs(bound - exact) < 3 * error + (0.01 if steps else 0.001) and error < 0.02


def test_the_uniform_bound_is_above_the_entropy():
    source = MarkovSource.golden()
    rows, picks = sampled_rows(source, 2000)
    scheduler = D3PMUniformScheduler(source.num_tokens, num_train_timesteps=8)

    tables = {i: source.uniform_denoiser(float(scheduler.alpha(i / 8))) for i in range(1, 9)}
    bound, error, _ = estimate_bound(TimedDenoiser(tables, source.num_tokens), scheduler, rows)
    assert bound > -np.log(source.probs[picks]).mean() / source.length - 3 * error
    assert bound < np.log(source.num_tokens)


@pytest.mark.parametrize("schedule", ["linear", "sqrt"])
def test_the_tenths_of_the_noise_average_to_the_bound(schedule):
    rows, _ = sampled_rows(MarkovSource.golden(), 400)
    denoiser = TableDenoiser(MarkovSource.golden().masked_denoiser(), 4)
    estimate = estimate_bound(
        denoiser, D3PMAbsorbingScheduler(3, schedule=schedule), rows, batch_size=100
    )
    assert (
        np.mean(estimate.by_noise) == pytest.approx(estimate.bound) and len(estimate.by_noise) == 10
    )
    assert estimate.by_noise[-1] == pytest.approx(
        1.0, abs=0.1
    )  # all masked: each letter for itself


class ToldDenoiser(torch.nn.Module):
    """Knows a code if it is told the coarser code and the prompt: it is their sum."""

    def __init__(self, num_codes, ratio):
        super().__init__()
        self.num_codes, self.ratio, self.scale = (
            num_codes,
            ratio,
            torch.nn.Parameter(torch.tensor(30.0)),
        )

    def forward(self, noisy, times, mask, label, positions, context_ids, prompt_ids, prompt_mask):
        told = context_ids.repeat_interleave(self.ratio, dim=1) + (prompt_ids * prompt_mask).sum(
            dim=1, keepdim=True
        )
        logits = self.scale * torch.nn.functional.one_hot(told % self.num_codes, self.num_codes + 1)
        return SimpleNamespace(logits=logits[positions])


def test_coarser_codes_and_prompts_of_a_row_are_told_to_the_model():
    rng = np.random.default_rng(0)
    context, prompts, mask = (
        rng.integers(5, size=(50, 3)),
        rng.integers(5, size=(50, 2)),
        rng.integers(2, size=(50, 2)),
    )
    codes = (context.repeat(4, axis=1) + (prompts * mask).sum(1, keepdims=True)) % 5
    told = {"context_ids": context, "prompt_ids": prompts, "prompt_mask": mask}
    columns = {"input_ids": codes, "attention_mask": np.ones_like(codes)} | told
    denoiser, scheduler = ToldDenoiser(5, ratio=4), D3PMAbsorbingScheduler(5)
    bounds = {}
    for changed in (None, *told):
        moved = {changed: np.roll(columns[changed], 1, axis=0)} if changed else {}
        rows = Dataset.from_dict(
            {name: column.tolist() for name, column in (columns | moved).items()}
        )
        bounds[changed] = estimate_bound(denoiser, scheduler, rows, batch_size=16).bound
    assert bounds[None] == pytest.approx(0, abs=1e-6) and min(bounds[name] for name in told) > 1
    with pytest.raises(TypeError, match="context_ids"):
        estimate_bound(denoiser, scheduler, rows.remove_columns(["context_ids"]))


def test_padding_is_neither_predicted_nor_counted(tokenizer, denoiser):
    tokens = torch.randint(1, 256, (4, 12), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([tokens, torch.full((4, 6), tokenizer.pad_token_id)], dim=1)
    uniform = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    for scheduler in (
        D3PMAbsorbingScheduler(tokenizer.mask_token_id),
        D3PMUniformScheduler(tokenizer.pad_token_id),
    ):
        values = []
        for rows in (tokens, padded):
            batch = {
                "input_ids": rows,
                "attention_mask": (torch.arange(rows.shape[1]) < 12).long().expand_as(rows),
            }
            generators = [torch.Generator().manual_seed(i) for i in range(4)]
            values.append(batch_bound(denoiser, scheduler, batch, uniform, generators))
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)


def test_unigram_entropy_is_that_of_the_frequencies():
    rows = [
        {"input_ids": [0, 1, 2, 3], "attention_mask": [1, 1, 1, 1]},
        {"input_ids": [0, 1, 9, 9], "attention_mask": [1, 1, 0, 0]},
    ]
    assert unigram_entropy(rows) == pytest.approx(
        -(2 * (1 / 3) * np.log(1 / 3) + 2 * (1 / 6) * np.log(1 / 6))
    )


def test_lengths_cost_what_the_histogram_says():
    assert length_nats([0, 1, 5], [2, 2, 1]) == pytest.approx(-2 * np.log(5 / 6) - np.log(1 / 6))
    assert length_nats([0, 1, 5], [2, 0]) == length_nats([0, 1, 5], [3]) == math.inf


def test_length_distance_is_that_of_scipy():
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(0)
    first, second = rng.poisson(8, 300), rng.poisson(11, 200)
    assert length_distance(first, second) == pytest.approx(wasserstein_distance(first, second))
    assert length_distance([3, 4], [4, 3]) == 0
    with pytest.raises(ValueError, match="got 0 and 1"):
        length_distance([], [1])


# Likelihoods of texts


@pytest.fixture(scope="module")
def toy():
    """A source of texts of three letters, one a token, its texts, and the pipeline that knows it."""
    source = MarkovSource.golden()
    tokenizer = character_tokenizer("abc")
    texts = ["".join("abc"[token] for token in sequence) for sequence in source.sequences]
    denoiser = TableDenoiser(source.masked_denoiser(), 4)
    return source, texts, TextDiffusionPipeline(tokenizer, denoiser, D3PMAbsorbingScheduler(3))


@pytest.mark.parametrize(
    "method", [{"full": True, "num_noise": 100}, {"num_times": 300}], ids=["full", "monte_carlo"]
)
def test_likelihood_of_the_texts_of_a_source_is_its_entropy(toy, method):
    source, texts, pipe = toy
    result = evaluate_likelihood(pipe, texts, batch_size=1000, **method)
    nats, errors = np.array(result.per_text_nats), np.array(result.per_text_errors)
    assert (np.abs(nats + np.log(source.probs)) < 4.5 * errors).all()
    entropy, error = source.probs @ nats, math.sqrt(source.probs**2 @ errors**2)
    assert abs(entropy - source.entropy) < 3 * error and error < 0.02
    assert (
        result.num_samples == 27 * 300
        and result.num_tokens == result.num_characters == result.num_bytes == 81
    )
    assert result.bits_per_character == pytest.approx(result.nats_per_token / math.log(2))
    assert result.nats_per_token == pytest.approx(nats.mean() / 3) and result.num_truncated == 0


def test_likelihood_after_a_prompt_is_that_of_the_conditional_source(toy):
    source, texts, pipe = toy
    after = [text[1:] for text in texts]
    result = evaluate_likelihood(
        pipe, after, [text[0] for text in texts], full=True, num_noise=100, batch_size=1000
    )
    want = -np.log(source.probs / source.initial[source.sequences[:, 0]])
    nats, errors = np.array(result.per_text_nats), np.array(result.per_text_errors)
    assert (np.abs(nats - want) < 4.5 * errors + 1e-6).all()
    conditional = source.entropy + source.initial @ np.log(source.initial)
    assert abs(source.probs @ nats - conditional) < 3 * math.sqrt(source.probs**2 @ errors**2)
    assert result.num_tokens == result.num_characters == 27 * 2


def test_bits_per_character_and_byte_count_code_points_and_utf_8():
    texts = ["да, 🙂", "e\u0301!"]  # 5 code points in 2+2+1+1+4 bytes; 3 in 1+2+1
    characters = sorted(set("".join(texts)))
    pipe = ignorant_pipe(character_tokenizer(characters))
    result = evaluate_likelihood(pipe, texts, full=True)
    total = 8 * math.log(len(characters))
    assert (result.num_tokens, result.num_characters, result.num_bytes) == (8, 8, 14)
    assert result.nats_per_token == pytest.approx(math.log(len(characters)))
    assert result.perplexity == pytest.approx(len(characters))
    assert result.bits_per_character == pytest.approx(total / 8 / math.log(2))
    assert result.bits_per_byte == pytest.approx(total / 14 / math.log(2))
    assert result.standard_error == pytest.approx(0, abs=1e-6) and result.bound == "full"


def test_bytes_of_a_byte_level_tokenizer_are_those_of_the_text(tokenizer):
    text = "Привет 🙂"
    result = evaluate_likelihood(ignorant_pipe(tokenizer), text, full=True)
    tokens = len(tokenizer(text)["input_ids"])
    # The end is a token, a character and a byte.
    counts = (result.num_characters, result.num_bytes, result.num_tokens)
    assert counts == (8 + 1, 17 + 1, tokens + 1)
    assert result.bits_per_byte == pytest.approx((tokens + 1) * math.log2(len(tokenizer) - 1) / 18)


def test_the_standard_error_of_perplexity_is_its_slope_times_that_of_nats(toy):
    _, texts, pipe = toy
    result = evaluate_likelihood(pipe, texts, num_times=8)
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_token))
    assert result.perplexity_error == pytest.approx(result.perplexity * result.standard_error)
    total = math.sqrt(sum(error**2 for error in result.per_text_errors))
    assert result.standard_error == pytest.approx(total / 81) and result.standard_error > 0
    assert math.isnan(evaluate_likelihood(pipe, texts, full=True, num_noise=1).standard_error)


def test_with_a_length_histogram_a_text_costs_its_length_and_its_end_is_known():
    tokenizer = character_tokenizer("ab", bos_token="<", eos_token=">")
    lengths = [0, 3, 5, 2]
    known, unknown = ignorant_pipe(tokenizer, lengths), ignorant_pipe(tokenizer)
    each = math.log(4)  # "a", "b", "<" or ">"
    assert evaluate_likelihood(unknown, "ab").per_text_nats == pytest.approx(
        [3 * each], abs=0.5 * each
    )
    exact = evaluate_likelihood(known, ["ab", "b"], full=True)
    assert exact.per_text_nats == pytest.approx(
        [2 * each - math.log(5 / 10), each - math.log(3 / 10)]
    )
    assert exact.num_tokens == exact.num_characters == 2 + 1 + 2
    after = evaluate_likelihood(known, "b", "ab", full=True)  # of the lengths 2 and 3
    assert after.per_text_nats == pytest.approx([each - math.log(2 / 7)])
    assert evaluate_likelihood(unknown, ["ab"], full=True).per_text_nats == pytest.approx(
        [3 * each]
    )


def test_likelihood_does_not_depend_on_the_batch_or_on_other_texts(pipe):
    results = [
        evaluate_likelihood(pipe, SENTENCES, num_times=4, batch_size=size) for size in (1, 3, 64)
    ]
    for other in results[1:]:
        assert other.per_text_nats == pytest.approx(results[0].per_text_nats, rel=1e-4)
        assert other.per_text_errors == pytest.approx(results[0].per_text_errors, rel=1e-3)
    fewer = evaluate_likelihood(pipe, SENTENCES[:2], num_times=4)
    assert fewer.per_text_nats == pytest.approx(results[0].per_text_nats[:2], rel=1e-4)
    other_seed = evaluate_likelihood(pipe, SENTENCES, num_times=4, seed=1)
    assert other_seed.per_text_nats != pytest.approx(results[0].per_text_nats, rel=1e-2)


@pytest.mark.parametrize("full", [True, False])
def test_a_pipeline_of_the_uniform_kernel_is_evaluated_at_its_own_steps(tokenizer, denoiser, full):
    scheduler = D3PMUniformScheduler(tokenizer.pad_token_id, num_train_timesteps=3)
    pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler)
    method = {"full": True, "num_noise": 50} if full else {"num_times": 150}
    results = [
        evaluate_likelihood(pipe, SENTENCES[:2], batch_size=size, **method) for size in (30, 64)
    ]
    assert results[0].per_text_nats == pytest.approx(results[1].per_text_nats, rel=1e-4)
    assert results[0].num_samples == 2 * 150 and results[0].bound == (
        "full" if full else "monte_carlo"
    )
    other = evaluate_likelihood(pipe, SENTENCES[:2], full=True, num_noise=50, seed=1)
    error = math.hypot(results[0].standard_error, other.standard_error)
    assert (
        abs(results[0].nats_per_token - other.nats_per_token)
        < 4 * error
        < 0.1 * other.nats_per_token
    )


def test_a_masked_lm_is_told_the_ends_and_the_number_of_tokens():
    masked_lm, tokenizer = make_masked_lm("bert")
    pipe = TextDiffusionPipeline(
        tokenizer, masked_lm, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    cat = tokenizer("cat", add_special_tokens=False)["input_ids"]
    result = evaluate_likelihood(pipe, "cat", "the", full=True, num_noise=1)
    assert result.num_tokens == result.num_samples == len(cat) == 1
    the = tokenizer("the", add_special_tokens=False)["input_ids"]
    masked = torch.tensor(
        [[tokenizer.cls_token_id, *the, tokenizer.mask_token_id, tokenizer.sep_token_id]]
    )
    with torch.no_grad():
        logits = masked_lm(masked).logits[0, -2]
    logits[
        [*tokenizer.all_special_ids, *range(len(tokenizer), masked_lm.config.vocab_size)]
    ] = -math.inf
    assert result.per_text_nats == pytest.approx([-float(logits.log_softmax(0)[cat[0]])], rel=1e-4)
    with pytest.raises(
        ValueError, match=r"`texts\[1\]` must be of tokens that the model can write"
    ):
        evaluate_likelihood(pipe, ["cat", "ж"])


def test_likelihood_is_evaluated_without_dropout(tokenizer):
    denoiser = make_denoiser(tokenizer, dropout=0.5)
    pipe = TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    calm = evaluate_likelihood(pipe, SENTENCES, num_times=4)
    denoiser.train()
    assert evaluate_likelihood(pipe, SENTENCES, num_times=4) == calm and denoiser.training


def test_labels_reach_the_model(tokenizer):
    denoiser = make_denoiser(tokenizer, num_classes=2)
    pipe = TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    texts = [SENTENCES[0]] * 2
    both = evaluate_likelihood(pipe, texts, class_labels=[0, 1], num_times=4).per_text_nats
    first, second = (
        evaluate_likelihood(pipe, texts, class_labels=[i, i], num_times=4).per_text_nats
        for i in (0, 1)
    )
    assert both == pytest.approx([first[0], second[1]], rel=1e-4) and first[1] != pytest.approx(
        second[1], rel=1e-3
    )


def test_cut_texts_count_as_those_they_are_cut_to(tokenizer, pipe):
    long = " ".join(SENTENCES)
    kept = tokenizer.decode(tokenizer(long)["input_ids"][:6])
    cut = evaluate_likelihood(pipe, [SENTENCES[0], long], max_length=8, num_times=4)
    assert cut.num_truncated == 2 and cut.num_tokens == 2 * 7
    whole = evaluate_likelihood(pipe, [SENTENCES[0][:1], kept], num_times=4)
    assert whole.num_truncated == 0
    assert cut.per_text_nats[1] == pytest.approx(whole.per_text_nats[1], rel=1e-4)
    first = tokenizer.decode(tokenizer(SENTENCES[0])["input_ids"][:6])
    assert cut.num_characters == len(first) + 1 + len(kept) + 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"texts": ["ab", "abababab"]},
            r"`texts\[1\]` must fit into 5 tokens .* got 10: .* `max_length`",
        ),
        (
            {"texts": ["ab", "ab"], "prompts": ["", "ababa"], "max_length": 5},
            r"`texts\[1\]` must fit into 5 tokens",
        ),
        ({"texts": ["ab", ""]}, r"`texts\[1\]` must hold at least one token, got ''"),
        ({"texts": []}, "`texts` must be at least one text"),
        ({"texts": ["ab", "a"], "prompts": ["b"]}, "`prompts` must be one a text, 2, got 1"),
        ({"texts": "ab", "class_labels": [1, 2]}, "`class_labels` must be one a text, 1, got 2"),
        (
            {"texts": "ab", "num_times": 0},
            "`num_times` must be an integer of at least 1, got 0",
        ),
        (
            {"texts": "ab", "num_noise": 0, "full": True},
            "`num_noise` must be an integer of at least 1, got 0",
        ),
        ({"texts": "ab", "max_length": 0}, "`max_length` must be None or an integer >= 1, got 0"),
    ],
)
def test_bad_arguments_of_the_likelihood_are_named(arguments, message):
    pipe = ignorant_pipe(character_tokenizer("ab", bos_token="<", eos_token=">"))
    pipe.denoiser.config.max_length = 5
    with pytest.raises(ValueError, match=message):
        evaluate_likelihood(pipe, **arguments)


def test_texts_that_the_model_cannot_write_are_named(toy):
    tokenizer = character_tokenizer("ab", bos_token="<", eos_token=">")
    with pytest.raises(ValueError, match=r"`texts\[1\]` must have at most 2 tokens .* got 3"):
        evaluate_likelihood(ignorant_pipe(tokenizer, [0, 1, 1]), ["ab", "aba"])
    impossible = MarkovSource([1.0, 0.0], [[0.5, 0.5], [0.5, 0.5]], 2)
    with np.errstate(invalid="ignore"):
        denoiser = TableDenoiser(impossible.masked_denoiser(), 3)
    pipe = TextDiffusionPipeline(character_tokenizer("ab"), denoiser, D3PMAbsorbingScheduler(2))
    with pytest.raises(
        ValueError, match=r"`texts\[1\]` must be of tokens that the model can write"
    ):
        evaluate_likelihood(pipe, ["ab", "ba"], full=True)
    stock = toy[2]
    stock = TextDiffusionPipeline(stock.tokenizer, stock.denoiser, D3PMUniformScheduler(3))
    with pytest.raises(ValueError, match="`scheduler` must have `num_train_timesteps`"):
        evaluate_likelihood(stock, "abc", full=True)
