"""Laws of guidance over embeddings: Bayes' rule in every form, Adagrad and its sign, means of steps, soft words."""

import math

import pytest
import torch
from conftest import slow
from support.gaussian_chains import MEAN, STD, prediction_of, sample

from text_diffusers import (
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
)
from text_diffusers.pipelines.diffusion_lm.guidance import (
    InnerUpdates,
    drawn_noise,
    is_acting,
    reads_latents,
    soft_words,
    step_mean,
    step_std,
    tilt_prediction,
)

KINDS = ["sample", "epsilon", "v_prediction"]
OBSERVED, OBSERVED_STD = -0.4, 0.6  # c is x_0 seen under noise of this size


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_log_prob(noisy, alpha_bar):
    """log p(c | x_t), but for a constant, of Gaussian data and a linear-Gaussian classifier."""
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    clean = MEAN + alpha_bar.sqrt() * STD**2 / variance * (noisy - alpha_bar.sqrt() * MEAN)
    left = STD**2 * (1 - alpha_bar) / variance  # the variance of x_0 given x_t
    return -((OBSERVED - clean) ** 2) / (2 * (left + OBSERVED_STD**2))


def posterior():
    """Mean and standard deviation of x_0 given c."""
    variance = 1 / (1 / STD**2 + 1 / OBSERVED_STD**2)
    return variance * (MEAN / STD**2 + OBSERVED / OBSERVED_STD**2), math.sqrt(variance)


def guided_denoiser(kind):
    """The clean estimate that a denoiser's prediction of some kind means once it is guided."""

    def denoise(noisy, alpha_bar):
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        clean = MEAN + alpha_bar.sqrt() * STD**2 / variance * (noisy - alpha_bar.sqrt() * MEAN)
        leaf = noisy.clone().requires_grad_()
        gradient = torch.autograd.grad(exact_log_prob(leaf, alpha_bar).sum(), leaf)[0]
        said = tilt_prediction(
            prediction_of(kind, clean, noisy, alpha_bar), gradient, kind, float(alpha_bar)
        )
        noise = (1 - alpha_bar).sqrt()
        if kind == "sample":
            return said
        return (
            (noisy - noise * said) / alpha_bar.sqrt()
            if kind == "epsilon"
            else alpha_bar.sqrt() * noisy - noise * said
        )

    return denoise


@pytest.mark.parametrize("kind", KINDS)
def test_the_guided_estimate_is_the_mean_given_the_condition_at_every_time(kind):
    """E[x_0 | x_t, c] is known: x_t and c are two Gaussian observations of x_0."""
    noisy = normal(4, 5, 3)
    for alpha_bar in torch.tensor([0.999, 0.7, 0.2, 1e-3], dtype=torch.float64):
        precisions = torch.stack(
            [alpha_bar * 0 + 1 / STD**2, alpha_bar / (1 - alpha_bar), alpha_bar * 0 + 1 / 0.36]
        )
        seen = [
            torch.full_like(noisy, MEAN),
            noisy / alpha_bar.sqrt(),
            torch.full_like(noisy, OBSERVED),
        ]
        want = sum(p * x for p, x in zip(precisions, seen, strict=True)) / precisions.sum()
        torch.testing.assert_close(guided_denoiser(kind)(noisy, alpha_bar), want)


@pytest.mark.parametrize("kind", ["sample", slow("epsilon"), slow("v_prediction")])
def test_sampling_without_noise_ends_in_the_quantile_of_the_exact_posterior(kind):
    scheduler = EmbeddingDDIMScheduler(num_train_timesteps=1000, beta_schedule="cosine")
    scheduler.set_timesteps(1000)
    start = normal(10, 10, 2)
    end = sample(scheduler, start, guided_denoiser(kind))
    mean, std = posterior()
    torch.testing.assert_close(end, mean + std * start, atol=0.02, rtol=0.0)


@pytest.mark.parametrize("name", [slow("ddim"), "ddpm"])
def test_sampling_with_noise_has_the_mean_and_variance_of_the_exact_posterior(name):
    make = {"ddim": EmbeddingDDIMScheduler, "ddpm": EmbeddingDDPMScheduler}[name]
    arguments = {"eta": 1.0} if name == "ddim" else {}
    scheduler = make(num_train_timesteps=1000, beta_schedule="cosine")
    scheduler.set_timesteps(500)
    start, generator = normal(100, 50, 4), torch.Generator().manual_seed(1)
    ends = sample(scheduler, start, guided_denoiser("sample"), generator=generator, **arguments)
    mean, std = posterior()
    error = std / math.sqrt(ends.numel())
    assert abs(float(ends.mean()) - mean) < 4 * error + 0.003
    assert abs(float(ends.var()) / std**2 - 1) < 0.05  # of which 0.03 are chance
    unguided = sample(scheduler, start, generator=generator, **arguments)
    assert (
        abs(float(unguided.mean()) - MEAN) < 0.02 and abs(float(unguided.var()) / STD**2 - 1) < 0.05
    )


def test_adagrad_remembers_the_gradients_of_all_updates_as_torch_does():
    updates, values = InnerUpdates("adagrad", 0.1, 0.0), normal(2, 3, 4)
    reference = values.clone().requires_grad_()
    torch_adagrad = torch.optim.Adagrad([reference], lr=0.1)
    for seed in range(1, 6):
        gradient = normal(2, 3, 4, seed=seed)
        values = updates.descend(values, gradient)
        reference.grad = gradient.clone()
        torch_adagrad.step()
        torch.testing.assert_close(values, reference.detach())


def test_a_fresh_adagrad_in_each_update_is_a_step_by_the_sign():
    """What Diffusion-LM's code does: gradients of 1e-3 and of 7 move as much."""
    start, gradient = normal(2, 3, 4), normal(2, 3, 4, seed=1) * 10 ** normal(2, 3, 4, seed=2)
    fresh = sign = start
    for _ in range(3):
        fresh = InnerUpdates("adagrad", 0.1, 0.0).descend(fresh, gradient)
        sign = InnerUpdates("sign", 0.1, 0.0).descend(sign, gradient)
    torch.testing.assert_close(fresh, sign)
    torch.testing.assert_close((sign - start).abs(), torch.full_like(start, 0.3))
    kept, updates = start, InnerUpdates("adagrad", 0.1, 0.0)
    for _ in range(3):
        kept = updates.descend(kept, gradient)
    torch.testing.assert_close(
        (kept - start).abs(), torch.full_like(start, 0.1 * (1 + 2**-0.5 + 3**-0.5))
    )


def test_an_update_goes_down_the_gradient_of_what_it_is_to_lower():
    latents, mean, std = normal(2, 3, 4), normal(2, 3, 4, seed=1), 0.3
    editable = torch.tensor([[True, True, False], [False, True, True]])

    def log_prob(x):
        return -((x - 1) ** 4).sum()

    leaf = latents.clone().requires_grad_()
    loss = -log_prob(leaf) + 0.2 * ((leaf - mean) ** 2 / std).sum()
    want = latents - 0.1 * torch.autograd.grad(loss, leaf)[0].sign() * editable.unsqueeze(-1)
    gradient = torch.autograd.grad(log_prob(leaf), leaf)[0]
    updated = InnerUpdates("sign", 0.1, 0.2).update(latents, gradient, mean, std, editable)
    torch.testing.assert_close(updated, want)
    assert torch.equal(updated[~editable], latents[~editable])


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_mean_of_a_step_is_what_the_scheduler_steps_to_without_its_noise(eta):
    scheduler = EmbeddingDDIMScheduler(num_train_timesteps=50)
    scheduler.set_timesteps(10)
    noisy, clean, zeros = normal(2, 3, 4), normal(2, 3, 4, seed=1), torch.zeros(2, 3, 4)
    time, following = scheduler.timesteps[4:6]
    alphas = [float(scheduler.alphas_cumprod[t]) for t in (time, following)]
    settled = scheduler.step(clean, time, noisy, eta=eta, variance_noise=zeros).prev_sample
    torch.testing.assert_close(step_mean(clean, noisy, *alphas, eta), settled)
    noise = normal(2, 3, 4, seed=2)
    drawn = scheduler.step(clean, time, noisy, eta=1.0, variance_noise=noise).prev_sample
    torch.testing.assert_close(
        step_mean(clean, noisy, *alphas, 1.0) + step_std(*alphas) * noise, drawn
    )


def test_schedulers_draw_the_noise_they_are_known_for():
    assert drawn_noise(EmbeddingDDIMScheduler(), 0.3) == 0.3
    assert drawn_noise(EmbeddingDDPMScheduler(), 0.0) == 1
    assert drawn_noise(EmbeddingDPMSolverScheduler(), 0.0) == 0
    assert drawn_noise(EmbeddingDPMSolverScheduler(algorithm_type="sde-dpmsolver++"), 0.0) == 1


def test_soft_words_are_probabilities_where_undecided_and_certain_elsewhere():
    logits, tokens = normal(2, 3, 6), torch.tensor([[5, 1, 2], [0, 3, 4]])
    undecided = torch.tensor([[False, True, True], [True, False, True]])
    probs = soft_words(logits, tokens, undecided, 0.5, [0, 5])
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(2, 3, dtype=torch.float64))
    want = torch.exp(logits[0, 1, 1:5] / 0.5)
    torch.testing.assert_close(probs[0, 1, 1:5], want / want.sum())
    assert (probs[undecided][:, [0, 5]] == 0).all()
    assert torch.equal(probs[~undecided].argmax(dim=-1), tokens[~undecided]) and probs[0, 0, 5] == 1


def test_controls_act_within_their_part_of_the_steps_unless_their_scale_is_0():
    class Wanted:
        scale, start, stop = 2.0, 0.25, 0.75

        def latent_log_prob(self, latents, timestep, attention_mask): ...

    assert [is_acting(Wanted(), done) for done in (0.0, 0.25, 0.5, 0.75)] == [
        False,
        True,
        True,
        False,
    ]
    assert reads_latents(Wanted()) and not reads_latents(object())
    Wanted.scale = 0.0
    assert not is_acting(Wanted(), 0.5)
