"""A pipeline under hierarchical masks: clusters are inside of it, and no text shows them.

Shapes: B rows, L sequence length.
"""

import pytest
import torch
from conftest import make_denoiser

from text_diffusers import D3PMHierarchicalScheduler, ParaGuidePipeline, TextDiffusionPipeline
from text_diffusers.evaluation import evaluate_likelihood
from text_diffusers.evaluation.row_bounds import full_bound, monte_carlo_bound

NUM_CLUSTERS = 5
WRITE = {"num_inference_steps": 8, "max_new_tokens": 10}


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def make_pipe(tokenizer):
    def make(**settings):
        words = tokenizer.pad_token_id  # the first id that is no word
        clusters = torch.arange(words) % NUM_CLUSTERS
        size = len(tokenizer) + NUM_CLUSTERS
        scheduler = D3PMHierarchicalScheduler(tokenizer.mask_token_id, size, clusters, **settings)
        denoiser = make_denoiser(tokenizer, vocab_size=size)
        pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def test_every_token_goes_from_mask_to_cluster_to_a_token_of_it(make_pipe, tokenizer):
    pipe = make_pipe(cluster_power=6.0)
    steps = {"num_inference_steps": 40, "length": 12, "return_history": True}
    output = pipe("the cat", generator=seeded(0, 1), num_return_sequences=2, **steps)
    frames = torch.stack(output.history)  # (K + 1, B, L)
    first = pipe.scheduler.first_cluster_id
    clusters = torch.where(frames >= first, frames - first, -1)
    given = (frames == frames[0]).all(dim=0)
    assert (frames[0][~given] == tokenizer.mask_token_id).all() and not (frames[-1] >= first).any()

    # The cluster that is shown is one, and that of the token in its place in the end.
    seen = clusters.amax(dim=0)
    final = pipe.scheduler.cluster_ids(frames[-1]) - first
    was_cluster = seen >= 0
    assert was_cluster.sum() > 10 and torch.equal(seen[was_cluster], final[was_cluster])
    levels = torch.where(frames == tokenizer.mask_token_id, 2, (clusters >= 0).long())
    assert (levels.diff(dim=0) <= 0).all()


def test_a_cluster_is_shown_as_the_mask_while_texts_are_written(make_pipe, tokenizer):
    pipe = make_pipe(cluster_power=6.0)
    request = {"text": "the [MASK] sat [MASK] [MASK] mat", "num_inference_steps": 12}
    frames = pipe(generator=seeded(3), return_history=True, **request).history[1:]
    shown = list(pipe.stream(generator=seeded(3), **request))
    assert len(shown) == len(frames)
    open_tokens = [int(pipe.scheduler.is_open(frame).sum()) for frame in frames]
    assert [texts[0].count(tokenizer.mask_token) for texts in shown] == open_tokens
    assert len({*open_tokens}) > 1 and open_tokens[-1] == 0
    assert all(texts[0].startswith("the ") and " mat" in texts[0] for texts in shown)


def test_a_text_does_not_depend_on_its_batch_and_seeds_repeat_it(make_pipe):
    pipe = make_pipe()
    prompts = ["the cat", "a bird sang", "she"]
    together = pipe(prompts, generator=seeded(0, 1, 2), **WRITE).texts
    alone = [
        pipe(prompt, generator=seeded(seed), **WRITE).texts[0]
        for seed, prompt in enumerate(prompts)
    ]
    assert together == alone


def test_rows_that_are_written_to_their_end_ask_nothing_more(make_pipe):
    pipe = make_pipe()
    calls = []
    pipe.denoiser.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    pipe(generator=seeded(0), num_inference_steps=200, length=3)
    # Three tokens move twice each at most, and nothing else needs a prediction.
    assert 3 <= len(calls) <= 6


@pytest.mark.parametrize("steps", [None, 20])
def test_likelihoods_are_bounds_of_either_clock(make_pipe, tokenizer, steps):
    pipe = make_pipe(num_train_timesteps=steps)
    with torch.no_grad():
        pipe.denoiser.head.weight.zero_()
    # All tokens being equally likely, each costs log V under any noise.
    texts = ["the cat sat on the mat", "she was late"]
    found = evaluate_likelihood(pipe, texts, num_times=400, seed=1)
    want = torch.tensor(tokenizer.pad_token_id).log()
    assert found.nats_per_token == pytest.approx(float(want), rel=0.1)

    rows = [{"input_ids": [5, 9, 3], "attention_mask": [1, 1, 1]}]
    if steps is None:
        with pytest.raises(ValueError, match="the hierarchical kernel is an integral"):
            full_bound(pipe.denoiser, pipe.scheduler, rows)
        return
    exact = full_bound(pipe.denoiser, pipe.scheduler, rows, num_noise=100)
    drawn = monte_carlo_bound(pipe.denoiser, pipe.scheduler, rows, num_times=2_000)
    error = float((exact.variance + drawn.variance).sqrt())
    assert abs(float(exact.nats - drawn.nats)) < 4 * error


def test_parts_that_do_not_fit_are_refused(make_pipe, tokenizer):
    pipe = make_pipe()
    with pytest.raises(ValueError, match="`block_length` needs a scheduler of absorbing noise"):
        pipe("the cat", block_length=4)
    with pytest.raises(ValueError, match="another noise than hierarchical masks"):
        ParaGuidePipeline(tokenizer, pipe.denoiser, pipe.scheduler)("the cat")
    with pytest.raises(ValueError, match="`scheduler` has `vocab_size`=.*, but the denoiser's is"):
        TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), pipe.scheduler)

    words = tokenizer.pad_token_id
    config = dict(pipe.scheduler.config) | {"vocab_size": len(tokenizer) + NUM_CLUSTERS - 1}
    config["mask_token_id"] = words
    shifted = D3PMHierarchicalScheduler.from_config(config)
    shifted.register_to_config(mask_token_id=tokenizer.mask_token_id)
    with pytest.raises(ValueError, match="`scheduler` has clusters from id .* on, but the"):
        TextDiffusionPipeline(tokenizer, pipe.denoiser, shifted)
