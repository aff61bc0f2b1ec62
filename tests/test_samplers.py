"""Laws of the samplers by name: each fits the noise of its pipeline, and every public scheduler has a name."""

import diffusers
import pytest
import torch
from conftest import make_denoiser, mostly_slow
from support.embedding_pipes import make_embedding_pipe
from support.latent_pipes import make_latent_denoiser, make_latent_pipe, make_latent_prior
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level

import text_diffusers
from text_diffusers import (
    BlockAncestralScheduler,
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMHierarchicalScheduler,
    D3PMHybridScheduler,
    D3PMUniformScheduler,
    ParaGuidePipeline,
    ProbabilityFlowScheduler,
    TextDiffusionPipeline,
)
from text_diffusers.samplers import (
    ABSORBING,
    EMBEDDINGS,
    FLOW,
    LATENTS,
    SCORE,
    UNIFORM,
    current_sampler,
    most_steps,
    samplers_for,
    with_sampler,
)

KINDS = {
    "plain": ABSORBING,
    "uniform": UNIFORM,
    "block": ABSORBING,
    "masked_lm": ABSORBING,
    "two_level": ABSORBING,
    "embeddings": EMBEDDINGS,
    "flow": FLOW,
    "stock_flow": FLOW,
    "latents": LATENTS,
    "latents_by_flow": SCORE,
    "hybrid": {"ancestral"},
    "hierarchical": {"ancestral"},
    "stock_ddim": UNIFORM,
    "stock_entropy": UNIFORM,
    "stock_block": ABSORBING,
}
CASES = [(kind, name) for kind, names in KINDS.items() for name in names]
# Each sampler of each noise once, and two of every other kind of model
FAST = [case for case in CASES if case[0] in ("plain", "uniform", "embeddings", "flow", "latents")]
FAST += [(kind, name) for kind, names in KINDS.items() for name in [*names][:2]]
LENGTH = 6


def make_pipe(kind, tokenizer):
    mask, words = tokenizer.mask_token_id, min(tokenizer.mask_token_id, tokenizer.pad_token_id)
    if kind == "two_level":
        pipe = make_two_level(tokenizer)
    elif kind == "embeddings":
        pipe = make_embedding_pipe(tokenizer)
    elif kind in ("flow", "stock_flow", "latents", "latents_by_flow"):
        denoiser = make_latent_denoiser(prediction_type="epsilon" if kind == "latents" else "flow")
        pipe = make_latent_pipe(tokenizer, denoiser)
        if kind == "stock_flow":
            config = pipe.scheduler.config
            pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
        if kind == "latents_by_flow":
            betas = {"beta_schedule": "cosine", "num_train_timesteps": 100}
            pipe.scheduler = ProbabilityFlowScheduler(**betas)
    elif kind == "masked_lm":
        model, own = make_masked_lm("bert")
        pipe = TextDiffusionPipeline(own, model, D3PMAbsorbingScheduler(own.mask_token_id))
    elif kind == "block":
        denoiser = make_denoiser(tokenizer, block_length=4)
        pipe = TextDiffusionPipeline(tokenizer, denoiser, D3PMAbsorbingScheduler(mask))
    else:
        schedulers = {
            "uniform": lambda: D3PMUniformScheduler(words, reverse_rule="plug_in"),
            "hybrid": lambda: D3PMHybridScheduler(mask, words, num_train_timesteps=20),
            "hierarchical": lambda: D3PMHierarchicalScheduler(
                mask, len(tokenizer) + 4, torch.arange(words) % 4
            ),
            "stock_ddim": diffusers.DiscreteDDIMScheduler,
            "stock_entropy": diffusers.EntropyBoundScheduler,
            "stock_block": diffusers.BlockRefinementScheduler,
        }
        scheduler = schedulers.get(kind, lambda: D3PMAbsorbingScheduler(mask))()
        # Clusters are ids behind those of the tokens.
        denoiser = make_denoiser(tokenizer, vocab_size=len(tokenizer) + 4)
        pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(pipe, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return pipe(max_new_tokens=LENGTH, generator=generator, num_inference_steps=steps)


@pytest.mark.parametrize("kind, name", mostly_slow(CASES, fast=FAST))
def test_every_sampler_that_is_offered_writes_whole_texts(kind, name, tokenizer):
    pipe = make_pipe(kind, tokenizer)
    own = {component: getattr(pipe, component) for component in pipe.scheduler_names}
    assert set(samplers_for(pipe)) == set(KINDS[kind])
    changed = with_sampler(pipe, name)
    steps = most_steps(pipe) if samplers_for(pipe)[name].token_a_step else 5
    output = write(changed, steps)
    assert len(output.texts) == 1 and isinstance(output.texts[0], str)
    assert not (output.tokens == pipe.tokenizer.mask_token_id).any()
    assert torch.equal(write(changed, steps).tokens, output.tokens)
    assert current_sampler(changed) == name and changed.components.keys() == pipe.components.keys()
    for component, scheduler in own.items():  # the pipeline that was given writes as before
        assert getattr(pipe, component) is scheduler
        assert type(getattr(changed, component)) is samplers_for(pipe)[name].scheduler


def test_every_public_scheduler_of_a_noise_with_several_has_a_name():
    public = [
        getattr(text_diffusers, name)
        for name in text_diffusers.__all__
        if name.endswith("Scheduler")
    ]
    offered = {corruption: {sampler.scheduler for sampler in table.values()} for corruption, table in
               {"absorbing": ABSORBING, "uniform": UNIFORM}.items()}  # fmt: skip
    for corruption, classes in offered.items():
        assert classes == {
            found for found in public if getattr(found, "corruption", None) == corruption
        }
    embeddings = {found for found in public if found.__name__.startswith("Embedding")}
    assert {sampler.scheduler for sampler in EMBEDDINGS.values()} == embeddings
    of_latents = {found for found in public if ".latent." in found.__module__}
    assert {sampler.scheduler for sampler in FLOW.values()} == of_latents
    assert (
        BlockAncestralScheduler in public
    )  # which is one of diffusers' LLaDA2Pipeline, and not offered


@pytest.mark.parametrize("name", ABSORBING)
def test_samplers_of_tokens_keep_noise_and_settings(name, tokenizer):
    settings = {"schedule": "cosine", "num_train_timesteps": 40, "top_k": 7}
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id, **settings)
    pipe = TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), scheduler)
    made = with_sampler(pipe, name, temperature=0.5).scheduler
    times = torch.linspace(0, 1, 41)
    assert torch.equal(made.alpha(times), scheduler.alpha(times))
    assert (made.config.top_k, made.config.temperature, made.config.num_train_timesteps) == (
        7,
        0.5,
        40,
    )
    assert most_steps(pipe) == 32 and scheduler.config.temperature == 1.0


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_samplers_of_embeddings_keep_the_noise(name, tokenizer):
    pipe = make_embedding_pipe(tokenizer, num_train_timesteps=100, beta_schedule="cosine")
    made = with_sampler(pipe, name).scheduler
    torch.testing.assert_close(
        made.alphas_cumprod, pipe.scheduler.alphas_cumprod, atol=1e-12, rtol=0
    )


def test_a_swap_writes_what_from_config_by_hand_writes(tokenizer):
    pipe = make_pipe("plain", tokenizer)
    changed = with_sampler(pipe, "entropy", top_p=0.8)
    by_hand = TextDiffusionPipeline(
        tokenizer,
        pipe.denoiser,
        ConfidenceScheduler.from_config(pipe.scheduler.config, order="entropy", top_p=0.8),
    )
    assert torch.equal(write(changed, 4).tokens, write(by_hand, 4).tokens)
    back = with_sampler(changed, "ancestral", top_p=None)
    assert torch.equal(write(back, 4).tokens, write(pipe, 4).tokens)


def test_presets_of_one_class_do_not_leak_into_each_other(tokenizer):
    pipe = make_pipe("plain", tokenizer)
    for first in ("threshold", "entropy_bound", "margin"):
        for second in ("confidence", "threshold", "entropy_bound"):
            made = with_sampler(with_sampler(pipe, first), second).scheduler
            assert dict(made.config) == dict(with_sampler(pipe, second).scheduler.config)


def test_levels_keep_their_own_masks(tokenizer):
    pipe = make_two_level(tokenizer)
    changed = with_sampler(pipe, "confidence")
    masks = [
        getattr(changed, name).config.mask_token_id
        for name in ("coarse_scheduler", "fine_scheduler")
    ]
    assert masks == [5, 7]
    assert with_sampler(make_two_level(tokenizer, two=False), "remdm").coarse_scheduler is None


def test_stock_schedulers_are_replaced_with_the_right_ids_and_take_a_temperature(tokenizer):
    for stock, name in (
        ("BlockRefinementScheduler", "confidence"),
        ("DiscreteDDIMScheduler", "ddim"),
    ):
        pipe = TextDiffusionPipeline(
            tokenizer, make_denoiser(tokenizer), getattr(diffusers, stock)()
        )
        pipe.set_progress_bar_config(disable=True)
        warm, cold = write(pipe, 4), with_sampler(pipe, temperature=0.0)
        assert not torch.equal(write(cold, 4).tokens, warm.tokens)
        assert torch.equal(write(cold, 4).tokens, write(with_sampler(cold), 4).tokens)
        made = with_sampler(pipe, name).scheduler
        ids = (
            made.config.get("mask_token_id", tokenizer.mask_token_id),
            made.config.get("vocab_size"),
        )
        assert ids[0] == tokenizer.mask_token_id and (
            name == "confidence" or ids[1] == tokenizer.pad_token_id
        )
    two = make_two_level(tokenizer, two=False)
    two.fine_scheduler = diffusers.BlockRefinementScheduler()
    assert with_sampler(two, "ancestral").fine_scheduler.config.mask_token_id == 7


def test_what_does_not_fit_is_refused(tokenizer):
    pipe, embeddings = make_pipe("plain", tokenizer), make_pipe("embeddings", tokenizer)
    with pytest.raises(ValueError, match="`scheduler` must be one of ancestral, .*, got 'ddim'"):
        with_sampler(pipe, "ddim")
    with pytest.raises(ValueError, match="`temperature` must be .*got -1"):
        with_sampler(pipe, "remdm", temperature=-1.0)
    with pytest.raises(
        ValueError, match="`eta` must be left out: ReMDMScheduler takes temperature"
    ):
        with_sampler(pipe, "remdm", eta=0.5)
    for name in ("ddpm", None):
        with pytest.raises(
            ValueError, match="`temperature` must be left out: .* takes no settings, got 0.5"
        ):
            with_sampler(embeddings, name, temperature=0.5)
    parts = tokenizer, make_denoiser(tokenizer), D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    paraphraser = ParaGuidePipeline(*parts)
    assert samplers_for(paraphraser) == {} and with_sampler(paraphraser) is not paraphraser
    with pytest.raises(ValueError, match="`scheduler` must be left out, since this pipeline"):
        with_sampler(paraphraser, "ancestral")
    with pytest.raises(ValueError, match="`top_k` must be left out"):
        with_sampler(paraphraser, top_k=3)
    prior = make_latent_pipe(tokenizer, make_latent_prior())
    assert samplers_for(prior) == {} and current_sampler(prior) is None
    with pytest.raises(ValueError, match="`temperature` must be left out: .* takes no settings"):
        with_sampler(make_pipe("flow", tokenizer), temperature=0.5)
