"""Every sampler of latents against a Gaussian mixture whose score is known, the ODE's exact solution, and each other.

Shapes: N samples, K latents, E latent width.
"""

import math

import pytest
import torch
from conftest import slow
from diffusers import FlowMatchEulerDiscreteScheduler
from support.gaussian_chains import MEAN, STD, gaussian_denoiser
from support.gaussian_mixtures import deviations, exact_prediction, run

from text_diffusers import (
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
    LatentTransformerModel,
)
from text_diffusers.common.clean_estimate import prediction_of
from text_diffusers.common.randomness import row_generators
from text_diffusers.pipelines.guidance import guide
from text_diffusers.schedulers.latent.scheduling_flow import (
    LatentFlowEulerScheduler,
    LatentFlowHeunScheduler,
)
from text_diffusers.schedulers.latent.scheduling_score import (
    AnnealedLangevinScheduler,
    ProbabilityFlowScheduler,
    ReverseSDEScheduler,
)

COSINE = {"beta_schedule": "cosine"}
MIXTURE_CASES = {
    "ddpm": EmbeddingDDPMScheduler(1000, "cosine"),
    "ddim": EmbeddingDDIMScheduler(1000, "cosine", prediction_type="epsilon"),
    "dpm_solver": EmbeddingDPMSolverScheduler(1000, "cosine", prediction_type="v_prediction"),
    "flow_euler": LatentFlowEulerScheduler(),
    "flow_heun": LatentFlowHeunScheduler(prediction_type="sample"),
    "ode_of_betas": ProbabilityFlowScheduler(**COSINE, prediction_type="v_prediction"),
    "ode_of_flow": ProbabilityFlowScheduler(prediction_type="sample", solver_order=1),
    "sde_of_betas": ReverseSDEScheduler(**COSINE, prediction_type="epsilon"),
    "sde_of_flow": ReverseSDEScheduler(stochasticity=2.0),
    "langevin_of_betas": AnnealedLangevinScheduler(
        **COSINE, prediction_type="epsilon", steps_per_level=4
    ),
    "langevin_of_flow": AnnealedLangevinScheduler(steps_per_level=4),
    "langevin_corrector": AnnealedLangevinScheduler(prediction_type="sample", predictor=True),
}


def noise(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    "name", [slow(name) if name == "langevin_of_flow" else name for name in MIXTURE_CASES]
)
def test_samplers_reach_a_mixture_by_its_exact_score(name):
    """Share of each mode, mean and covariance within three standard errors."""
    scheduler = MIXTURE_CASES[name]
    scheduler.set_timesteps(150)
    samples = run(scheduler, noise(2000, 1, 2), torch.Generator().manual_seed(2))
    off = deviations(samples)
    assert samples.dtype == torch.float64
    assert max(off.values()) < 3, off


ODE_CASES = {
    "flow_euler": (LatentFlowEulerScheduler, {}, 1),
    "flow_heun": (LatentFlowHeunScheduler, {}, 2),
    "euler_of_betas": (ProbabilityFlowScheduler, COSINE | {"solver_order": 1}, 1),
    "heun_of_betas": (ProbabilityFlowScheduler, COSINE, 2),
    "heun_of_flow": (ProbabilityFlowScheduler, {"prediction_type": "v_prediction"}, 2),
}


def even_times(scheduler, steps):
    """Times between which sigma / (signal + sigma), in which the ODE is solved, falls by even steps."""
    signal, sigma = scheduler.noise_level(torch.arange(scheduler.config.num_train_timesteps))
    wanted = 1 - torch.arange(steps) / steps
    return (sigma / (signal + sigma) - wanted.unsqueeze(1)).abs().argmin(dim=1)


@pytest.mark.parametrize("name", ODE_CASES)
def test_odes_have_the_order_of_their_solver(name):
    """The error against the exact solution falls with the step, or with its square."""
    scheduler_class, settings, order = ODE_CASES[name]
    scheduler = scheduler_class(num_train_timesteps=4096, **settings)
    begin = noise(8, 1, 1)
    errors = []
    for steps in (16, 32, 64):
        scheduler.set_timesteps(steps)
        if "betas" in name:
            scheduler.set_timesteps(timesteps=even_times(scheduler, steps))
        sample = begin
        for timestep in scheduler.timesteps:
            level = scheduler.noise_level(timestep)
            signal, sigma = level
            # On any path, the sample over its norm is one of variance-preserving noise.
            norm = (signal**2 + sigma**2).sqrt()
            clean = gaussian_denoiser(sample / norm, (signal / norm) ** 2)
            kind = scheduler.config.prediction_type
            predicted = prediction_of(kind, clean, (sample - signal * clean) / sigma, level)
            sample = scheduler.step(predicted, timestep, sample).prev_sample
        # A point keeps its quantile, from that of the first time to the data's.
        first, first_sigma = scheduler.noise_level(scheduler.timesteps[0])
        quantile = (begin - first * MEAN) / (first**2 * STD**2 + first_sigma**2).sqrt()
        errors.append(float((sample - MEAN - STD * quantile).abs().max()))
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert slopes == pytest.approx([order] * 2, abs=0.2), errors


def test_the_score_samplers_are_the_others_where_these_are_the_same():
    """First order is DDIM on betas and stock's flow Euler on the straight path; the reverse SDE is DDPM."""
    pairs = [
        (
            ProbabilityFlowScheduler(**COSINE, solver_order=1),
            EmbeddingDDIMScheduler(1000, "cosine"),
        ),
        (ReverseSDEScheduler(**COSINE, stochasticity=0.0), EmbeddingDDIMScheduler(1000, "cosine")),
        (ReverseSDEScheduler(**COSINE), EmbeddingDDPMScheduler(1000, "cosine")),
        (ProbabilityFlowScheduler(solver_order=1), LatentFlowEulerScheduler()),
        (ReverseSDEScheduler(stochasticity=0.0), LatentFlowEulerScheduler()),
        (ProbabilityFlowScheduler(), LatentFlowHeunScheduler()),
    ]
    for ours, other in pairs:
        ours = type(ours).from_config(ours.config, prediction_type=other.config.prediction_type)
        results = []
        for scheduler in (ours, other):
            scheduler.set_timesteps(20)
            generator = torch.Generator().manual_seed(3)
            results.append(run(scheduler, noise(4, 3, 2, dtype=torch.float32), generator))
        torch.testing.assert_close(*results, atol=2e-5, rtol=1e-4)


def test_flow_steps_are_those_of_stock_on_the_same_grid():
    stock, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), LatentFlowEulerScheduler(shift=3.0)
    ours.set_timesteps(5)
    stock.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])
    assert torch.equal(ours.timesteps, stock.timesteps)
    velocity, sample = noise(2, 3, 4), noise(2, 3, 4, seed=5)
    for timestep in ours.timesteps:
        got = ours.step(velocity, timestep, sample)
        assert torch.equal(got.prev_sample, stock.step(velocity, timestep, sample).prev_sample)
        clean = sample - float(timestep) / 1000 * velocity
        torch.testing.assert_close(got.pred_original_sample, clean, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", MIXTURE_CASES)
def test_a_row_is_the_same_alone_and_in_a_batch(name):
    scheduler = MIXTURE_CASES[name]
    scheduler.set_timesteps(6)
    begin = noise(3, 2, 2, dtype=torch.float32)

    def sample(rows):
        generators = row_generators(torch.Generator().manual_seed(4), 3)[rows]
        latents = begin[rows]
        for timestep in scheduler.timesteps:
            # Of each row by itself: sums over a batch may differ in their last bit.
            parts = [
                exact_prediction(scheduler, row[None, :1], timestep).expand(-1, 2, -1)
                for row in latents
            ]
            output = scheduler.step(torch.cat(parts), timestep, latents, generator=generators)
            latents = output.prev_sample
        return latents

    together = sample(slice(None))
    for row in range(3):
        assert torch.equal(sample(slice(row, row + 1))[0], together[row])


@pytest.mark.parametrize("name", [name for name in MIXTURE_CASES if "d" not in name[:1]])
def test_the_last_step_ends_at_the_clean_estimate_and_steps_change_no_input(name):
    scheduler = MIXTURE_CASES[name]
    scheduler.set_timesteps(3)
    latents = noise(2, 1, 2)
    for timestep in scheduler.timesteps:
        inputs = exact_prediction(scheduler, latents, timestep), latents
        copies = [part.clone() for part in inputs]
        output = scheduler.step(inputs[0], timestep, latents, generator=torch.Generator())
        assert all(torch.equal(*pair) for pair in zip(inputs, copies, strict=True))
        latents = output.prev_sample
    torch.testing.assert_close(latents, output.pred_original_sample, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale, label", [(1.0, 1), (0.0, None)])
def test_guidance_by_1_is_the_conditional_model_and_by_0_the_unconditional_one(scale, label):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    model = LatentTransformerModel(4, 2, **sizes, prediction_type="flow", num_classes=3).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    scheduler = ProbabilityFlowScheduler()

    @torch.no_grad()
    def sample(predict):
        scheduler.set_timesteps(4)
        latents = noise(2, 2, 4)
        for timestep in scheduler.timesteps:
            latents = scheduler.step(predict(latents, timestep), timestep, latents).prev_sample
        return latents

    def conditional(latents, timestep, of=1):
        labels = None if of is None else torch.full((2,), of)
        return model(latents, timestep, class_labels=labels).sample

    def guided(latents, timestep):
        both = conditional(latents, timestep), conditional(latents, timestep, None)
        return guide(*both, torch.full((2,), scale))

    assert torch.equal(sample(guided), sample(lambda *inputs: conditional(*inputs, of=label)))
    assert not torch.equal(sample(conditional), sample(lambda *told: conditional(*told, of=None)))


def test_configurations_go_between_schedulers_of_the_same_path_only():
    flow = LatentFlowEulerScheduler(500, prediction_type="sample")
    again = AnnealedLangevinScheduler.from_config(flow.config)
    assert again.config.prediction_type == "sample" and again.config.num_train_timesteps == 500
    assert LatentFlowHeunScheduler.from_config(again.config).config.prediction_type == "sample"

    betas = EmbeddingDDIMScheduler(300, "sqrt", prediction_type="epsilon")
    score = ReverseSDEScheduler.from_config(betas.config)
    assert torch.equal(score.alphas_cumprod, betas.alphas_cumprod)
    back = EmbeddingDDPMScheduler.from_config(score.config)
    assert torch.equal(back.alphas_cumprod, betas.alphas_cumprod)

    with pytest.raises(ValueError, match="straight path of flow for LatentFlowHeunScheduler"):
        LatentFlowHeunScheduler.from_config(betas.config)
    for straight in (flow, again):
        with pytest.raises(ValueError, match="`config`|`beta_schedule`"):
            EmbeddingDDIMScheduler.from_config(straight.config)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LatentFlowEulerScheduler(prediction_type="epsilon"), "`prediction_type`"),
        (lambda: LatentFlowEulerScheduler(shift=0), "`shift`"),
        (lambda: LatentFlowEulerScheduler().set_timesteps(0), "`num_inference_steps`"),
        (lambda: ReverseSDEScheduler(prediction_type="score"), "`prediction_type`"),
        (lambda: ReverseSDEScheduler(stochasticity=-1), "`stochasticity`"),
        (lambda: ReverseSDEScheduler(beta_schedule="square"), "`beta_schedule`"),
        (lambda: ReverseSDEScheduler(trained_betas=[0.1]), "`trained_betas`"),
        (lambda: ReverseSDEScheduler().set_timesteps(timesteps=[3, 4]), "`timesteps`"),
        (lambda: ReverseSDEScheduler().set_timesteps(timesteps=[4, 0]), "`timesteps`"),
        (lambda: ProbabilityFlowScheduler(solver_order=3), "`solver_order`"),
        (lambda: ProbabilityFlowScheduler(50, "cosine").set_timesteps(51), "`num_inference_steps`"),
        (lambda: AnnealedLangevinScheduler(step_size=1), "`step_size`"),
        (lambda: AnnealedLangevinScheduler(steps_per_level=0), "`steps_per_level`"),
        (
            lambda: ReverseSDEScheduler().step(noise(1, 1, 1), 0.3, noise(1, 1, 1)),
            "`timestep` must be one of",
        ),
        (
            lambda: LatentFlowEulerScheduler().step(noise(1, 1, 1), 0.3, noise(1, 1, 1)),
            "`timestep` must be one of",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_of_stock_flow_are_no_warning_to_samplers_that_have_none(caplog):
    config = LatentFlowEulerScheduler(50).config
    with caplog.at_level("WARNING"):
        for sampler in (ReverseSDEScheduler, ProbabilityFlowScheduler, AnnealedLangevinScheduler):
            assert sampler.from_config(config).config.num_train_timesteps == 50
    assert not caplog.messages
    # A grid that is not even is something to be told of.
    with caplog.at_level("WARNING"):
        ReverseSDEScheduler.from_config(LatentFlowEulerScheduler(50, shift=3.0).config)
    assert any("shift" in message for message in caplog.messages)
