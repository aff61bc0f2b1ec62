"""Losses of diffusion over word embeddings against golden numbers, distributions and an enumerable source."""

import json

import pytest
import torch
from conftest import slow
from diffusers import DDIMScheduler, DDPMScheduler
from support.oracles import GOLDEN, assert_golden, float64
from support.word_sources import WordSource, cosine_alphas
from torch.distributions import Normal, kl_divergence

from text_diffusers.common.clean_estimate import clean_estimate
from text_diffusers.losses.embedding import (
    anchor_loss,
    diffusion_lm_loss,
    noisy_start,
    prediction_target,
    prior_kl,
    reconstruction,
    reparameterize,
    simple_loss,
    transition_kl,
)
from text_diffusers.schedulers.embedding_noise import embedding_betas

GOLDEN_FILE = json.loads((GOLDEN / "diffusion_lm.json").read_text())
GOLDEN_LOSSES = [case | {"tolerance": GOLDEN_FILE["tolerance"]} for case in GOLDEN_FILE["cases"]]
GOLDEN_LOSSES = [case for case in GOLDEN_LOSSES if case["kind"] == "dlm_loss"]
PREDICTION_TYPES = ("sample", "epsilon", "v_prediction")


def random_embeddings(count, shape=(2, 5, 4)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("case", GOLDEN_LOSSES, ids=lambda case: case["name"])
def test_diffusion_lm_loss_is_that_of_the_authors(case):
    inputs, want = case["inputs"], case["outputs"]
    alphas = (1 - embedding_betas(inputs["schedule"], inputs["T"])).cumprod(dim=0)
    times, ids = torch.tensor(inputs["t"]), torch.tensor(inputs["input_ids"])
    table, noise = float64(inputs["embedding"]), float64(inputs["noise_x_t"])
    clean = table[ids]
    start = noisy_start(clean, alphas[0], float64(inputs["noise_x_start"]))
    noisy = reparameterize(
        alphas[times].sqrt().view(-1, 1, 1) * start, (1 - alphas[times]).sqrt(), noise
    )
    assert_golden(noisy, want["x_t"], case)
    target = prediction_target("sample", start, clean, noise, alphas[times], first=times == 0)
    terms = diffusion_lm_loss(
        float64(inputs["model_output"]), target, start @ table.T, ids, start, alphas[-1]
    )
    for got, name in zip(terms, ("mse", "decoder_nll", "tT_loss"), strict=True):
        assert_golden(got.mean(dim=1), want[name], case)
    assert_golden(sum(terms).mean(dim=1), want["loss"], case)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_clean_estimate_of_the_target_is_the_start(prediction_type):
    start, clean, noise = random_embeddings(3)
    alpha = float64([0.93, 0.02])
    noisy = reparameterize(alpha.sqrt().view(-1, 1, 1) * start, (1 - alpha).sqrt(), noise)
    target = prediction_target(
        prediction_type, start, clean, noise, alpha, first=torch.tensor([False, False])
    )
    torch.testing.assert_close(clean_estimate(prediction_type, target, noisy, alpha), start)


def test_at_the_first_timestep_the_target_is_without_noise():
    start, clean, noise = random_embeddings(3)
    target = prediction_target(
        "sample", start, clean, noise, float64([0.9, 0.9]), first=torch.tensor([True, False])
    )
    assert torch.equal(target[0], clean[0]) and torch.equal(target[1], start[1])


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_targets_and_estimates_are_those_of_stock_schedulers(prediction_type):
    start, clean, noise, prediction = (values.float() for values in random_embeddings(4))
    stock = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    stock.set_timesteps(1000)
    times = torch.tensor([20, 700])
    alphas = stock.alphas_cumprod[times]
    noisy = stock.add_noise(start, noise, times)
    estimate = clean_estimate(prediction_type, prediction, noisy, alphas)
    for row in range(2):
        want = stock.step(prediction[row], int(times[row]), noisy[row]).pred_original_sample
        torch.testing.assert_close(estimate[row], want, rtol=1e-4, atol=1e-5)
    if prediction_type == "v_prediction":
        velocity = DDPMScheduler().get_velocity(start, noise, times)
        first = torch.tensor([False, False])
        torch.testing.assert_close(
            prediction_target("v_prediction", start, clean, noise, alphas, first),
            velocity,
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("function", ["target", "estimate"])
def test_an_unknown_prediction_type_is_refused(function):
    values = random_embeddings(3)
    with pytest.raises(
        ValueError, match="`prediction_type` must be one of sample, epsilon, v_prediction, got 'x0'"
    ):
        if function == "target":
            prediction_target("x0", *values, float64(0.5), torch.tensor([False, False]))
        else:
            clean_estimate("x0", *values[:2], float64(0.5))


def test_the_loss_of_a_token_hears_of_its_own_prediction_only():
    """So a mean over the target leaves the source out, which costs nothing where it is given clean."""
    prediction, target, start = random_embeddings(3)
    prediction.requires_grad_(True)
    ids = torch.randint(6, (2, 5), generator=torch.Generator().manual_seed(1))
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    terms = diffusion_lm_loss(prediction, target, logits, ids, start, float64(0.01))
    for loss in (
        terms.mse,
        simple_loss(prediction, target),
        anchor_loss(prediction @ prediction[0].detach().T, ids % 5),
    ):
        assert loss.shape == (2, 5)
        (gradient,) = torch.autograd.grad(loss[:, 3:].sum(), prediction, retain_graph=True)
        assert (gradient[:, :3] == 0).all() and (gradient[:, 3:] != 0).all()


def test_rounding_hears_of_the_noisy_words_and_the_anchor_of_the_estimate():
    prediction, target, table = random_embeddings(3)
    table = table[0].requires_grad_(True)
    ids = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    prediction.requires_grad_(True)
    start = noisy_start(table[ids], float64(0.98), target)
    terms = diffusion_lm_loss(prediction, target, start @ table.T, ids, start, float64(1e-4))
    assert torch.autograd.grad(
        terms.rounding.sum(), prediction, allow_unused=True, retain_graph=True
    ) == (None,)
    assert torch.autograd.grad(terms.rounding.sum(), table, retain_graph=True)[0].abs().min() > 0
    assert (
        torch.autograd.grad(anchor_loss(prediction @ table.T, ids).sum(), prediction)[0].abs().min()
        > 0
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_anchor_is_the_cross_entropy_of_smoothed_targets(smoothing):
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[0, 6, 3], [2, 2, 5]])
    wanted = (1 - smoothing) * torch.eye(7, dtype=torch.float64)[ids] + smoothing / 7
    probs = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    torch.testing.assert_close(
        anchor_loss(logits, ids, smoothing), -(wanted * probs.log()).sum(dim=-1)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_float32_at_least_whatever_the_coefficients_are(dtype):
    prediction, target, start = (values.to(dtype) for values in random_embeddings(3))
    alpha = float64([0.9, 0.2])
    ids = torch.zeros(2, 5, dtype=torch.long)
    assert clean_estimate("epsilon", prediction, target, alpha).dtype == dtype
    losses = [*diffusion_lm_loss(prediction, target, prediction, ids, start, float64(0.01))]
    losses += [prior_kl(start, alpha[1]), transition_kl(start, prediction, alpha, alpha + 0.05)]
    assert {loss.dtype for loss in losses} == {torch.float32} and {
        loss.shape for loss in losses
    } == {(2, 5)}


# The bound


@pytest.mark.parametrize("alpha", [0.7, 1e-3, 2e-7])
def test_prior_term_is_the_divergence_of_gaussians(alpha):
    (clean,) = random_embeddings(1)
    last = Normal(alpha**0.5 * clean, float64((1 - alpha) ** 0.5))
    want = kl_divergence(last, Normal(float64(0.0), float64(1.0))).sum(dim=-1)
    torch.testing.assert_close(prior_kl(clean, float64(alpha)), want, rtol=1e-8, atol=1e-12)


def posterior(noisy, clean, alpha_t, alpha_s):
    """q(z_s | z_t, x) by Bayes: the prior q(z_s | x) times the likelihood q(z_t | z_s), by adding precisions."""
    kept = alpha_t / alpha_s
    precision = 1 / (1 - alpha_s) + kept / (1 - kept)
    mean = (alpha_s.sqrt() * clean / (1 - alpha_s) + kept.sqrt() * noisy / (1 - kept)) / precision
    return Normal(mean, (1 / precision).sqrt())


def test_transition_term_is_the_divergence_of_posteriors():
    clean, estimate, noisy = random_embeddings(3)
    alpha_t, alpha_s = float64([0.93, 0.02]), float64([0.95, 0.3])
    alphas = alpha_t.view(-1, 1, 1), alpha_s.view(-1, 1, 1)
    want = kl_divergence(posterior(noisy, clean, *alphas), posterior(noisy, estimate, *alphas)).sum(
        dim=-1
    )
    torch.testing.assert_close(transition_kl(clean, estimate, alpha_t, alpha_s), want)


@pytest.mark.parametrize(
    "source",
    [
        slow(WordSource([0.5, 0.3, 0.2], [[-1.2], [0.1], [1.4]])),
        WordSource([0.9, 0.1], [[0.3], [1.9]]),
    ],
    ids=["three words", "two words"],
)
def test_the_bound_of_the_exact_denoiser_comes_down_to_the_entropy(source):
    gaps = []
    for num_timesteps in (100, 400, 1600):
        steps, prior = source.exact_steps(cosine_alphas(num_timesteps))
        gaps.append(float(steps.sum()) + prior - source.entropy)
    assert gaps[2] > 0 and gaps[2] < 0.001
    assert gaps[0] / gaps[1] == pytest.approx(4, abs=0.5) and gaps[1] / gaps[2] == pytest.approx(
        4, abs=0.5
    )


def test_a_worse_denoiser_costs_what_it_is_off():
    """The step's divergence has its least mean at the posterior mean, and grows with the squared distance to it."""
    source, alphas = WordSource([0.5, 0.5], [[-1.0], [1.0]]), cosine_alphas(50)
    noisy, alpha_t, alpha_s = float64([[[0.3]]]), alphas[20], alphas[19]
    probs = source.log_posterior(noisy, alpha_t.view(1, 1, 1)).exp()[0, 0]
    mean = (probs @ source.table).view(1, 1, 1)

    def cost(estimate):
        return sum(
            p * transition_kl(word.view(1, 1, 1), estimate, alpha_t, alpha_s)
            for p, word in zip(probs, source.table, strict=True)
        )

    off = transition_kl(mean, mean + 0.2, alpha_t, alpha_s)
    torch.testing.assert_close(cost(mean + 0.2), cost(mean) + off)


def test_reconstruction_is_the_probability_of_the_word():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[0, 1, 2], [3, 3, 0]])
    probs = torch.exp(-reconstruction(logits, ids))
    torch.testing.assert_close(probs, logits.softmax(dim=-1).gather(2, ids.unsqueeze(2)).squeeze(2))
