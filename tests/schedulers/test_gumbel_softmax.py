"""Laws of Gumbel-softmax samples: whose gradient they have, whose distribution, and both ends of the temperature.

Shapes: N rows, V vocabulary size.
"""

import numpy as np
import pytest
import torch
from support.oracles import chi_square_passes

from text_diffusers.common.randomness import rand
from text_diffusers.common.sampling import gumbel_softmax


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_logits(rows, vocab_size, seed=0):
    return 2 * torch.randn(rows, vocab_size, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("mask_token_id", [None, 2])
def test_the_gradient_of_a_relaxed_sample_is_the_numeric_derivative(temperature, mask_token_id):
    logits = random_logits(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: gumbel_softmax(x, temperature, seeded(1), mask_token_id=mask_token_id), (logits,)
    )


def test_a_hard_sample_is_one_hot_with_the_gradient_of_the_relaxed_one():
    logits, weights = random_logits(50, 7).requires_grad_(), random_logits(50, 7, seed=5)
    soft, hard = (gumbel_softmax(logits, 0.7, seeded(2), hard=hard) for hard in (False, True))
    assert torch.equal(
        hard.sort(dim=-1).values, torch.eye(7, dtype=torch.float64)[-1].expand(50, 7)
    )
    assert torch.equal(hard.argmax(dim=-1), soft.argmax(dim=-1))
    gradients = [
        torch.autograd.grad((sample * weights).sum(), logits)[0] for sample in (soft, hard)
    ]
    assert gradients[0].abs().min() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_samples_follow_the_categorical_distribution_at_any_temperature(temperature, dtype):
    logits = random_logits(1, 8)
    samples = gumbel_softmax(logits.to(dtype).expand(40_000, -1), temperature, seeded(3), hard=True)
    assert samples.dtype == dtype
    assert chi_square_passes(samples.sum(dim=0).numpy(), logits.softmax(dim=-1).numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_gumbel_noise_of_float64(dtype):
    """In float32 uniform numbers end at 1 - 2^-24, and noise at 16.6: too early for large vocabularies."""
    logits = random_logits(400, 30).to(dtype)
    uniform = rand((400, 30), seeded(4), logits.device).numpy()
    assert (uniform * 2**24 % 1 != 0).mean() > 0.99
    want = np.exp(logits.double().numpy() / 0.5) * np.power(-np.log(uniform), -1 / 0.5)
    want /= want.sum(axis=1, keepdims=True)
    got = gumbel_softmax(logits, 0.5, seeded(4))
    np.testing.assert_allclose(
        got.numpy(), want, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-300
    )


def test_relaxed_samples_tend_to_one_hot_and_to_uniform():
    logits = random_logits(200, 6)
    cold, hot = gumbel_softmax(logits, 1e-4, seeded(6)), gumbel_softmax(logits, 1e6, seeded(6))
    hard = gumbel_softmax(logits, 1.0, seeded(6), hard=True)
    assert ((cold - hard).abs().amax(dim=-1) < 1e-3).float().mean() > 0.98  # but for near ties
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / 6), atol=1e-4, rtol=0)
    for sample in (cold, hot, hard):
        torch.testing.assert_close(sample.sum(dim=-1), torch.ones(200, dtype=torch.float64))


def test_the_mask_gets_no_mass_and_the_logits_are_left_alone():
    logits = random_logits(100, 5)
    logits[:, 3] = 50.0
    kept = logits.clone()
    for hard in (False, True):
        assert (gumbel_softmax(logits, 1.0, seeded(7), hard=hard, mask_token_id=3)[:, 3] == 0).all()
    assert torch.equal(logits, kept)


def test_a_row_depends_on_its_own_generator_only():
    logits = random_logits(4, 5)
    together = gumbel_softmax(logits, 1.0, [seeded(i) for i in range(4)])
    for i in range(4):
        assert torch.equal(gumbel_softmax(logits[i : i + 1], 1.0, [seeded(i)])[0], together[i])
    assert torch.equal(
        gumbel_softmax(logits, 1.0, seeded(9)), gumbel_softmax(logits, 1.0, seeded(9))
    )


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), None])
def test_temperatures_that_are_not_positive_are_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be a number above 0, got"):
        gumbel_softmax(random_logits(1, 3), temperature)
