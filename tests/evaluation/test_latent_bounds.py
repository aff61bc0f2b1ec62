"""The bound of texts by an autoencoder and a prior: against exact densities, by quadrature and over all texts.

Shapes: R rows, K latents, E latent width.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import slow
from datasets import Dataset
from support.latent_models import make_autoencoder

from text_diffusers import EmbeddingDDIMScheduler, LatentTransformerModel
from text_diffusers.common.clean_estimate import NoiseLevel, prediction_of
from text_diffusers.evaluation.latent_bounds import (
    HeldOutLatents,
    estimate_latent_bound,
    hold_out_latents,
)
from text_diffusers.models.latent.gaussian_prior import LatentGaussianPrior, gaussian_nats
from text_diffusers.schedulers.latent.scheduling_flow import LatentFlowEulerScheduler

T, K, E = 1000, 1, 2
MEAN, STD = 0.4, 0.7


class ExactGaussian(torch.nn.Module):
    """The denoiser of latents N(MEAN, STD^2), for any prediction; it may be wrong by a constant."""

    def __init__(self, scheduler, error=0.0):
        super().__init__()
        kind = scheduler.config.prediction_type
        self.config = SimpleNamespace(prediction_type=kind, self_conditioning=False)
        self.scheduler, self.error = scheduler, error

    def forward(self, sample, timestep, **told):
        level = self.scheduler.noise_level(timestep[:1])
        signal, sigma = (float(part) for part in level)
        gain = signal * STD**2 / (signal**2 * STD**2 + sigma**2)
        clean = MEAN + gain * (sample - signal * MEAN) + self.error
        noise = (sample - signal * clean) / sigma
        return SimpleNamespace(
            sample=prediction_of(
                self.config.prediction_type, clean, noise, NoiseLevel(signal, sigma)
            )
        )


def scheduler_of(prediction_type, schedule):
    if schedule == "straight":
        return LatentFlowEulerScheduler(T, prediction_type=prediction_type)
    return EmbeddingDDIMScheduler(T, schedule, prediction_type=prediction_type)


def held_out_of(latents, **changes):
    settings = {"reconstruction": 0.0, "entropy": 0.0, "tokens": len(latents)}
    return HeldOutLatents(latents, **settings | changes)


@pytest.mark.parametrize(
    "prediction_type, schedule",
    [
        slow("flow", "straight"),
        slow("sample", "straight"),
        ("epsilon", "cosine"),
        slow("v_prediction", "sqrt"),
        slow("sample", "linear"),
    ],
)
def test_of_the_exact_denoiser_it_is_the_exact_density_and_of_a_wrong_one_above(
    prediction_type, schedule
):
    generator = torch.Generator().manual_seed(0)
    latents = MEAN + STD * torch.randn(20_000, K, E, generator=generator)
    held_out = held_out_of(latents)
    scheduler = scheduler_of(prediction_type, schedule)
    exact = float(
        gaussian_nats(latents, torch.tensor(MEAN), torch.tensor(2 * math.log(STD))).mean()
    )
    found = estimate_latent_bound(ExactGaussian(scheduler), scheduler, held_out, num_times=48)
    assert found.bound == pytest.approx(exact, abs=0.05)
    wrong = estimate_latent_bound(ExactGaussian(scheduler, 0.2), scheduler, held_out, num_times=48)
    assert wrong.bound > exact + 0.5


@torch.no_grad()
@pytest.mark.parametrize("regularization", ["kl", "noise"])
def test_it_is_above_the_exact_nats_of_every_text(
    regularization,
):
    """Texts of two of three words: -log p of each by quadrature over a latent of one entry; all of them sum to 1."""
    changes = {"noise_scale": 0.8} if regularization == "noise" else {}
    model = make_autoencoder(
        num_latents=1, latent_size=1, std=0.5, regularization=regularization, **changes
    )
    model.set_latent_statistics(torch.tensor([[0.3]]), torch.tensor([[1.7]]))
    prior = LatentGaussianPrior(1, 1, hidden_size=4)
    torch.nn.init.normal_(prior.distribution_out.weight, std=0.3)
    output = prior(batch_size=1)
    mean, std = float(output.mean), float((0.5 * output.logvar).exp())

    # 1. Exact: the language model is asked at each point of a grid of normalised latents.
    grid = mean + std * torch.linspace(-6, 6, 1201)
    weights = torch.distributions.Normal(mean, std).log_prob(grid).exp() * (grid[1] - grid[0])
    texts = [[1, *words] for words in itertools.product((3, 4, 5), repeat=2)]
    exact = []
    for text in texts:
        ids = torch.tensor([text]).expand(len(grid), -1)
        logits = model.decode_logits(model.denormalize(grid[:, None, None]), ids)[:, 1:]
        scores = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None]).sum(dim=(1, 2))
        exact.append(-float((weights * scores.exp()).sum().log()))
    assert sum(math.exp(-nats) for nats in exact) < 1

    # 2. The bound, a mean over many draws of each text
    for text, nats in zip(texts, exact, strict=True):
        count = 400
        columns = {"input_ids": [text] * count, "attention_mask": [[1] * 3] * count}
        columns["given"] = [[True, False, False]] * count
        columns["encoder_ids"] = [[token + 5 for token in text]] * count
        columns["encoder_mask"] = columns["attention_mask"]
        held_out = hold_out_latents(model, Dataset.from_dict(columns))
        found = estimate_latent_bound(prior, None, held_out)
        assert held_out.tokens == 2 * count
        assert 2 * found.bound > nats - 0.02
        assert found.bound == pytest.approx(found.reconstruction + found.rate)


@torch.no_grad()
def test_the_rate_does_not_depend_on_how_latents_are_normalised():
    """Of a prior that is moved and scaled as they are."""
    columns = {"input_ids": [[1, 3, 4], [1, 5, 6]], "attention_mask": [[1] * 3] * 2}
    columns |= {"encoder_ids": [[6, 8, 9], [6, 10, 11]], "encoder_mask": [[1] * 3] * 2}
    rows = Dataset.from_dict(columns)
    model = make_autoencoder()
    shape = model.latent_mean.shape
    rates = []
    for mean, std in ((0.0, 1.0), (0.5, 3.0)):
        model.set_latent_statistics(torch.full(shape, mean), torch.full(shape, std))
        prior = LatentGaussianPrior(4, 3, hidden_size=4)
        prior.distribution_out.bias.data[:12] = -mean / std
        prior.distribution_out.bias.data[12:] = -2 * math.log(std)
        rates.append(estimate_latent_bound(prior, None, hold_out_latents(model, rows)).rate)
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)


@torch.no_grad()
def test_padding_of_sources_and_an_empty_source_tell_nothing():
    torch.manual_seed(0)
    model = make_autoencoder()
    denoiser = LatentTransformerModel(
        4, 3, 16, 1, 2, prediction_type="flow", prompt_size=16, num_classes=2
    )
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    scheduler = LatentFlowEulerScheduler()
    columns = {"input_ids": [[1, 3, 4]] * 3, "attention_mask": [[1] * 3] * 3, "label": [0, 1, 0]}
    columns |= {"encoder_ids": [[6, 8, 9]] * 3, "encoder_mask": [[1] * 3] * 3}
    columns["source_ids"] = [[7, 8, 9, 0], [7, 0, 0, 0], [0, 0, 0, 0]]
    columns["source_mask"] = [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    held_out = hold_out_latents(model, Dataset.from_dict(columns))
    assert held_out.conditions["prompt_mask"].sum(dim=1).tolist() == [3, 1, 0]

    # States at padding may be any.
    total = estimate_latent_bound(denoiser.eval(), scheduler, held_out, num_times=4).rate
    spoiled = held_out.conditions | {"prompt_states": held_out.conditions["prompt_states"].clone()}
    spoiled["prompt_states"][1, 1:] = 9.0
    spoiled["prompt_states"][2] = -9.0
    other = held_out_of(
        held_out.latents, entropy=held_out.entropy, tokens=held_out.tokens, conditions=spoiled
    )
    again = estimate_latent_bound(denoiser, scheduler, other, num_times=4).rate
    assert total == pytest.approx(again, rel=1e-6)
