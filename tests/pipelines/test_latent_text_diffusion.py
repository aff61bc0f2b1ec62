"""Laws of the pipeline over latents: batches, samplers, guidance, latents that are given, ways between texts."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from conftest import SENTENCES, make_embedding_model, mostly_slow
from datasets import Dataset
from support.gaussian_mixtures import deviations, exact_clean
from support.latent_pipes import (
    make_latent_denoiser,
    make_latent_pipe,
    make_latent_prior,
    scheduler_for,
)

from text_diffusers import (
    AnnealedLangevinScheduler,
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
    LatentFlowEulerScheduler,
    LatentFlowHeunScheduler,
    LatentTextDiffusionPipeline,
    ProbabilityFlowScheduler,
    ReverseSDEScheduler,
    TextDiffusionPipeline,
)
from text_diffusers.common.clean_estimate import prediction_of
from text_diffusers.common.token_ids import end_ids
from text_diffusers.data.latent_rows import with_encoder_columns
from text_diffusers.data.rows import tokenize
from text_diffusers.evaluation import evaluate_likelihood
from text_diffusers.evaluation.latents import rewritten_texts
from text_diffusers.pipelines.latent_diffusion.latent_steps import latent_path, latent_scheduler

STEPS = {"num_inference_steps": 4, "max_new_tokens": 8}
STRAIGHT = {
    "euler": LatentFlowEulerScheduler,
    "heun": LatentFlowHeunScheduler,
    "ode": ProbabilityFlowScheduler,
    "sde": ReverseSDEScheduler,
    "langevin": AnnealedLangevinScheduler,
}
BETAS = {
    "ddim": EmbeddingDDIMScheduler,
    "ddpm": EmbeddingDDPMScheduler,
    "dpm_solver": EmbeddingDPMSolverScheduler,
    "ode_of_betas": ProbabilityFlowScheduler,
    "sde_of_betas": ReverseSDEScheduler,
}
STOCK = {
    "stock_ddim": diffusers.DDIMScheduler,
    "stock_euler": diffusers.EulerDiscreteScheduler,
    "stock_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "stock_unipc": diffusers.UniPCMultistepScheduler,
}
STOCK_FLOW = {
    "stock_flow": diffusers.FlowMatchEulerDiscreteScheduler,
    "stock_flow_heun": diffusers.FlowMatchHeunDiscreteScheduler,
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_scheduler(name, prediction_type, steps):
    """A scheduler by its name above, with the noise of its family."""
    told = {"num_train_timesteps": steps, "prediction_type": prediction_type}
    if name in STRAIGHT:
        return STRAIGHT[name](**told)
    if name in STOCK_FLOW:
        return STOCK_FLOW[name].from_config(LatentFlowEulerScheduler(**told).config)
    # Stock's ancestral steps cannot be told a clean estimate, and are told its noise.
    if name == "stock_ancestral" and prediction_type == "sample":
        told["prediction_type"] = "epsilon"
    own = BETAS.get(name, EmbeddingDDIMScheduler)(beta_schedule="cosine", **told)
    return own if name in BETAS else STOCK[name].from_config(own.config)


# A text alone = in a batch


@pytest.mark.parametrize("decode_strategy", ["greedy", "sample"])
@pytest.mark.parametrize("kind", ["flow", "v_prediction", "prior"])
def test_a_text_alone_is_the_text_in_a_batch(tokenizer, kind, decode_strategy):
    if kind == "prior":
        denoiser = make_latent_prior()
    else:
        denoiser = make_latent_denoiser(prediction_type=kind, num_classes=2)
    pipe = make_latent_pipe(tokenizer, denoiser, reads_source=True)
    arguments = {
        "prompt": ["the cat", "", "she was late for"],
        "source": ["a bird sang in the tree", "", "the dog"],
        "generator": [1, 2, 3],
    }
    if kind != "prior":
        arguments |= {"class_labels": [1, None, 0], "guidance_scale": [2.0, 1.0, 0.0]}
    options = STEPS | {"decode_strategy": decode_strategy}

    def write(row=None):
        chosen = {
            name: values if row is None else values[row] for name, values in arguments.items()
        }
        seeds = chosen["generator"]
        chosen["generator"] = seeded(seeds) if row is not None else [seeded(seed) for seed in seeds]
        return pipe(**chosen, **options)

    together = write()
    assert len(set(together.texts)) == 3
    for row, prompt in enumerate(arguments["prompt"]):
        alone = write(row)
        assert alone.texts == together.texts[row : row + 1]
        torch.testing.assert_close(alone.latents[0], together.latents[row], atol=1e-4, rtol=1e-4)
        assert together.texts[row].startswith(prompt)


def test_texts_hold_no_mask_and_end_at_their_end(tokenizer):
    pipe = make_latent_pipe(tokenizer)
    (end,) = end_ids(tokenizer)
    options = {"temperature": 3.0, "max_new_tokens": 40, "num_inference_steps": 1}
    output = pipe(num_return_sequences=64, generator=seeded(0), **options)
    ended = 0
    for row in output.tokens[:, 1:].tolist():  # behind the start token
        length = row.index(end) + 1 if end in row else len(row)
        assert tokenizer.mask_token_id not in row
        assert tokenizer.pad_token_id not in row[:length]
        assert set(row[length:]) <= {tokenizer.pad_token_id}
        ended += end in row
    assert 0 < ended < 64


def test_copies_differ_by_their_latents_and_seeds_repeat(tokenizer):
    pipe = make_latent_pipe(tokenizer)
    first, again, other = (
        pipe(num_return_sequences=3, generator=seeded(seed), **STEPS) for seed in (0, 0, 1)
    )
    assert first.texts == again.texts and torch.equal(first.latents, again.latents)
    assert len(set(first.texts) | set(other.texts)) > 3


# Samplers


class ExactDenoiser(torch.nn.Module):
    """The denoiser of the Gaussian mixture, which knows the noise of a scheduler."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, scheduler, prediction_type, steps):
        super().__init__()
        names = {"num_latents": 1, "latent_dim": 2, "num_train_timesteps": steps}
        self.config = SimpleNamespace(prediction_type=prediction_type, **names)
        self.noise = latent_scheduler(scheduler, self)

    def forward(self, noisy, timestep):
        level = self.noise.noise_level(timestep)
        clean = exact_clean(noisy.double(), level)
        sigma = max(level.sigma, 1e-12)
        noise = (noisy - level.signal * clean) / sigma
        prediction = prediction_of(self.config.prediction_type, clean, noise, level)
        return SimpleNamespace(sample=prediction.float())


SAMPLERS = {name: ("flow", "sample") for name in STRAIGHT}
SAMPLERS |= {name: ("v_prediction", "sample") for name in (*BETAS, *STOCK)}
SAMPLERS |= {name: ("v_prediction", "flow") for name in STOCK_FLOW}
PAIRS = [(name, kind) for name, kinds in SAMPLERS.items() for kind in kinds]
# Those that need few steps
FAST = [(name, SAMPLERS[name][0]) for name in ("ode", "heun", "ddim", "dpm_solver", "stock_flow")]


@pytest.mark.parametrize("name, kind", mostly_slow(PAIRS, FAST))
def test_every_sampler_draws_from_the_mixture_that_the_denoiser_knows(tokenizer, name, kind):
    scheduler = make_scheduler(name, kind, steps=1000)
    denoiser = ExactDenoiser(scheduler, kind, steps=1000)
    pipe = make_latent_pipe(tokenizer, denoiser, scheduler, num_latents=1, latent_size=2)
    steps = {"langevin": 250, "sde": 100, "sde_of_betas": 100, "ddpm": 100, "stock_ancestral": 100}
    output = pipe(
        num_inference_steps=steps.get(name, 30),
        num_return_sequences=500,
        generator=seeded(0),
        output_type="latents",
    )
    assert output.texts is None and output.tokens is None
    samples = pipe.autoencoder.normalize(output.latents)
    found = deviations(samples)
    assert max(found.values()) < 3.5, found


@pytest.mark.parametrize("kind", ["flow", "v_prediction", "epsilon"])
def test_steps_are_those_of_the_scheduler_with_self_conditioning(tokenizer, kind):
    """The same by hand: each prediction is shown the clean estimate before it."""
    denoiser = make_latent_denoiser(prediction_type=kind, self_conditioning=True)
    pipe = make_latent_pipe(tokenizer, denoiser)
    output = pipe(generator=[seeded(5)], return_history=True, **STEPS)
    assert len(output.history) == 5
    torch.testing.assert_close(output.history[-1], output.latents)

    scheduler = scheduler_for(denoiser)
    scheduler.set_timesteps(4)
    latents = pipe.autoencoder.normalize(output.history[0])
    estimate = None
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            prediction = denoiser(latents, timestep, self_condition=estimate).sample
            step = scheduler.step(prediction, timestep, latents)
            latents, estimate = step.prev_sample, step.pred_original_sample
    expected = pipe.autoencoder.denormalize(latents)
    torch.testing.assert_close(output.latents, expected, atol=1e-4, rtol=1e-4)


# Guidance


@pytest.mark.parametrize("self_conditioning", [False, True])
def test_scale_1_is_the_conditional_model_and_0_the_unconditional_one(tokenizer, self_conditioning):
    denoiser = make_latent_denoiser(num_classes=2, self_conditioning=self_conditioning)
    pipe = make_latent_pipe(tokenizer, denoiser)
    told = {"source": "the cat sat", "class_labels": 1}

    def latents(**arguments):
        return pipe(generator=seeded(0), output_type="latents", **STEPS, **arguments).latents

    plain, conditional = latents(), latents(**told)
    torch.testing.assert_close(latents(**told, guidance_scale=0.0), plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(latents(**told, guidance_scale=1.0), conditional)
    torch.testing.assert_close(latents(class_labels=None, source=""), plain, atol=1e-5, rtol=1e-5)
    three = latents(**told, guidance_scale=3.0)
    assert min((a - b).abs().max() for a, b in ((plain, conditional), (three, conditional))) > 0.01

    # Outside of the interval the scale is 1.
    never = latents(**told, guidance_scale=3.0, guidance_interval=(0.0, 0.0))
    assert torch.equal(never, conditional)


def test_guidance_is_once_for_label_and_source_together(tokenizer):
    """One step from pure noise: uncond + scale * (cond - uncond), by hand."""
    denoiser = make_latent_denoiser(num_classes=2)
    pipe = make_latent_pipe(tokenizer, denoiser)
    calls = []
    denoiser.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    told = {"source": ["the cat", "she"], "class_labels": [0, 1], "guidance_scale": [2.5, 1.0]}
    output = pipe(num_inference_steps=1, return_history=True, output_type="latents", **told)
    assert calls == [3]

    noise = pipe.autoencoder.normalize(output.history[0])
    ids = tokenizer(told["source"], padding=True, return_tensors="pt", add_special_tokens=True)
    with torch.no_grad():
        states, mask = pipe.autoencoder.encode_states(ids.input_ids, ids.attention_mask)
        labels = torch.tensor(told["class_labels"])
        cond = denoiser(noise, 100.0, labels, states, mask).sample
        uncond = denoiser(noise, 100.0).sample
    guided = uncond + torch.tensor([2.5, 1.0])[:, None, None] * (cond - uncond)
    expected = pipe.autoencoder.denormalize(noise - guided)  # along the velocity to the end
    torch.testing.assert_close(output.latents, expected, atol=1e-4, rtol=1e-4)


# Latents and texts


@pytest.mark.parametrize("decode_strategy", ["greedy", "sample"])
def test_latents_that_are_given_back_write_the_same_text(tokenizer, decode_strategy):
    pipe = make_latent_pipe(tokenizer, reads_source=True)
    told = {"source": ["the dog", "she"], "prompt": "the cat", "decode_strategy": decode_strategy}

    def write(**arguments):
        return pipe(generator=[seeded(1), seeded(2)], **told, **STEPS, **arguments)

    first = write()
    again = write(latents=first.latents)
    assert again.texts == first.texts and torch.equal(again.latents, first.latents)
    assert pipe.num_timesteps == 0
    # Of the steps, too: what is in the history can be decoded.
    history = write(return_history=True).history
    assert write(latents=history[-1]).texts == first.texts
    # Another source is another text, from the same latents.
    told["source"] = "a bird sang"
    assert write(latents=first.latents).texts != first.texts


def test_reconstructions_are_those_that_the_autoencoder_reports(tokenizer):
    pipe = make_latent_pipe(tokenizer)
    length = 12
    documents = [{"text": text} for text in SENTENCES]
    rows = tokenize(Dataset.from_list(documents), tokenizer, length=length, packing=False)
    rows = with_encoder_columns(rows, tokenizer, tokenizer, length=length)
    texts, written = rewritten_texts(pipe.autoencoder, tokenizer, rows, len(SENTENCES))
    found = pipe.reconstruct(texts, max_new_tokens=length - 1)
    assert len(set(found)) > 1
    assert found == written


def test_the_ends_of_a_way_between_texts_are_their_reconstructions(tokenizer):
    pipe = make_latent_pipe(tokenizer)
    first, second = SENTENCES[1], SENTENCES[3]
    limit = {"max_new_tokens": 10}
    way = pipe.interpolate(first, second, count=5, **limit)
    assert len(way) == 5
    assert [way[0], way[-1]] == pipe.reconstruct([first, second], **limit)
    # A pipeline whose calls draw by default still decodes what is likeliest here.
    pipe.generation_defaults = {"temperature": 3.0, "top_p": 0.9}
    assert pipe.interpolate(first, second, count=5, **limit) == way
    with pytest.raises(ValueError, match="`count` must be an integer of at least 2, got 1"):
        pipe.interpolate(first, second, count=1)

    # Half-way, latents are as long as those of texts.
    ends = torch.randn(2, 3, 4, generator=seeded(0))
    path = latent_path(*ends, count=3)
    assert torch.equal(path[[0, 2]], ends)
    torch.testing.assert_close(path[1].norm(), ends.flatten(1).norm(dim=1).mean())
    opposite = latent_path(ends[0], -ends[0], count=3)
    assert opposite.isfinite().all()


def test_a_stream_ends_with_the_texts_and_shows_the_best_guess_before(tokenizer):
    pipe = make_latent_pipe(tokenizer)
    arguments = {"prompt": "the", "temperature": 1.0, **STEPS}
    whole = pipe(generator=seeded(0), return_history=True, **arguments)
    shown = list(pipe.stream(generator=seeded(0), **arguments))
    assert len(shown) == 4 and shown[-1] == whole.texts
    for texts, latents in zip(shown[:-1], whole.history[1:-1], strict=True):
        assert texts == pipe(prompt="the", latents=latents, max_new_tokens=8).texts

    # Latents that are not decoded are shown as texts, too.
    told = {"prompt": "the", "latents": whole.latents, "max_new_tokens": 8}
    (texts,) = pipe.stream(output_type="latents", **told)
    assert texts == pipe(**told).texts

    # A call that is ended returns the best guess of its step.
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1

    ended = pipe(generator=seeded(0), callback_on_step_end=stop, **arguments)
    torch.testing.assert_close(ended.latents, whole.history[2])


def test_messages_are_a_source_of_a_line_a_turn(tokenizer):
    pipe = make_latent_pipe(tokenizer, reads_source=True)
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "she was"}]
    by_turns, by_source = (
        pipe(generator=seeded(0), **told, **STEPS)
        for told in ({"messages": turns}, {"source": "the cat\nshe was"})
    )
    assert by_turns.texts == by_source.texts
    assert not by_turns.texts[0].startswith("the cat")


# Saving, and what is refused


@pytest.mark.parametrize("kind", [*STRAIGHT, *BETAS, "prior"])
def test_a_saved_pipeline_writes_the_same(tokenizer, tmp_path, kind, caplog):
    if kind == "prior":
        pipe = make_latent_pipe(tokenizer, make_latent_prior(), reads_source=True)
    else:
        prediction_type = "flow" if kind in STRAIGHT else "epsilon"
        denoiser = make_latent_denoiser(prediction_type=prediction_type, num_classes=2)
        scheduler = make_scheduler(kind, prediction_type, steps=100)
        pipe = make_latent_pipe(tokenizer, denoiser, scheduler, ["calm", "loud"])
    pipe.generation_defaults = {"num_inference_steps": 3, "max_new_tokens": 6}
    pipe.save_pretrained(tmp_path)
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is LatentTextDiffusionPipeline
    assert (
        "not expected" not in caplog.text
    )  # of what the stock scheduler adds to the configuration
    loaded.set_progress_bar_config(disable=True)
    told = {"source": "the cat"} | ({} if kind == "prior" else {"class_labels": "loud"})
    first, again = (
        each(generator=seeded(0), num_return_sequences=2, **told) for each in (pipe, loaded)
    )
    assert first.texts == again.texts
    # With the start token, but for a decoder that reads a source before the text
    assert first.tokens.shape[1] == (6 if kind == "prior" else 7)
    assert torch.equal(first.latents, again.latents)
    assert pipe.num_timesteps == loaded.num_timesteps


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("`source` must be left out with `messages`", {"source": "x", "messages": [{}]}),
        (
            "`latents` must be .*3, 4.*decoder reads them, got .1, 2, 4",
            {"latents": [[[0.0] * 4] * 2]},
        ),
        ("`latents` must be finite", {"latents": [[[float("nan")] * 4] * 3]}),
        ("`class_labels` must be left out with `latents`", {"latents": [], "class_labels": 1}),
        ("`guidance_scale` must be 1, or left out", {"latents": [], "guidance_scale": 2.0}),
        ("`source` needs a denoiser", {"latents": [[[0.0] * 4] * 3], "source": "the cat"}),
        ("`class_labels` need a denoiser", {"class_labels": 1}),
        ("`guidance_scale` must be 1 without", {"guidance_scale": 2.0}),
        ("`decode_strategy` must be None or one of greedy", {"decode_strategy": "beam"}),
        ("`temperature` must be left out", {"decode_strategy": "greedy", "temperature": 0.5}),
        ("`top_p` must be .* number in .0, 1.", {"top_p": 0.0}),
        ("`num_inference_steps` must be an integer", {"num_inference_steps": 0}),
        ("`source` must be one or 3", {"source": ["a", "b"], "prompt": ["a", "b", "c"]}),
        ("`source` must fit into the encoder's 64 tokens", {"source": "the cat " * 90}),
        ("`prompt` and `max_new_tokens` together", {"max_new_tokens": 5000}),
        ("`output_type` must be", {"output_type": "codes"}),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(tokenizer, message, arguments):
    pipe = make_latent_pipe(tokenizer)
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_components_that_disagree_are_refused(tokenizer):
    flow = LatentFlowEulerScheduler
    cases = {
        "`denoiser` must have `latent_dim`=4": (make_latent_denoiser(latent_dim=8), None),
        "`denoiser` must have `prompt_size`=16": (make_latent_denoiser(prompt_size=8), None),
        "`scheduler` must be one for latents": (
            make_latent_denoiser(),
            D3PMAbsorbingScheduler(tokenizer.mask_token_id),
        ),
        "`scheduler` has `num_train_timesteps`=1000": (make_latent_denoiser(), flow()),
        "`scheduler` has `prediction_type`='flow'": (
            make_latent_denoiser(prediction_type="sample"),
            flow(100),
        ),
        "`scheduler` must be None for a LatentGaussianPrior": (make_latent_prior(), flow(100)),
    }
    for message, (denoiser, scheduler) in cases.items():
        with pytest.raises(ValueError, match=message):
            make_latent_pipe(tokenizer, denoiser, scheduler)
    with pytest.raises(ValueError, match="`scheduler` must be one for embeddings"):
        DiffusionLMPipeline(tokenizer, make_embedding_model(tokenizer), ProbabilityFlowScheduler())
    clipping = diffusers.DDIMScheduler(100, prediction_type="v_prediction", clip_sample=True)
    with pytest.raises(ValueError, match="`clip_sample=False`"):
        make_latent_pipe(tokenizer, make_latent_denoiser(prediction_type="v_prediction"), clipping)


def test_a_prior_that_takes_no_steps_is_not_guided(tokenizer):
    pipe = make_latent_pipe(tokenizer, make_latent_prior())
    with pytest.raises(ValueError, match="`guidance_scale` must be 1 for a LatentGaussianPrior"):
        pipe(source="the cat", guidance_scale=[2.0])


def test_without_a_scheduler_only_latents_are_decoded(tokenizer):
    pipe = make_latent_pipe(tokenizer)
    parts = pipe.components | {"scheduler": None}
    decoder = LatentTextDiffusionPipeline(**parts)
    limit = {"max_new_tokens": 6}
    assert decoder.reconstruct("the cat", **limit) == pipe.reconstruct("the cat", **limit)
    with pytest.raises(ValueError, match="`scheduler` must be given for a LatentTransformerModel"):
        decoder()


def test_there_is_no_bound_yet_and_a_bad_prediction_is_no_text(tokenizer):
    pipe = make_latent_pipe(tokenizer)
    with pytest.raises(ValueError, match="LatentTextDiffusionPipeline"):
        evaluate_likelihood(pipe, ["the cat"])
    torch.nn.init.constant_(pipe.denoiser.proj_out.bias, float("nan"))
    with pytest.raises(ValueError, match="`denoiser` predicted NaN"):
        pipe(**STEPS)
