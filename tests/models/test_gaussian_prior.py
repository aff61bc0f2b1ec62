"""The Gaussian prior of latents: its density, its draws, and what it knows of a prompt."""

import pytest
import torch

from text_diffusers.models.latent.gaussian_prior import LatentGaussianPrior, gaussian_nats

K, E, S = 2, 3, 4


def make_prior(**changes):
    torch.manual_seed(0)
    prior = LatentGaussianPrior(E, K, hidden_size=8, **{"prompt_size": S} | changes)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prior.eval()


@torch.no_grad()
def test_its_nats_are_those_of_independent_normal_distributions():
    states, latents = torch.randn(5, 6, S), torch.randn(5, K, E)
    output = make_prior()(states)
    expected = -torch.distributions.Normal(output.mean, (0.5 * output.logvar).exp()).log_prob(
        latents
    )
    torch.testing.assert_close(
        gaussian_nats(latents, output.mean, output.logvar), expected.sum(dim=(1, 2))
    )
    # A new prior is the one that normalised latents have without any prompt.
    new = LatentGaussianPrior(E, K, prompt_size=S, hidden_size=8)(states)
    assert not new.mean.any() and not new.logvar.any()


@torch.no_grad()
def test_draws_have_its_moments():
    prior = make_prior()
    states = torch.randn(1, 6, S)
    mean, logvar = prior(states, return_dict=False)
    noise = torch.randn(20_000, K, E, generator=torch.Generator().manual_seed(0))
    drawn = prior.draw(states.expand(len(noise), -1, -1), None, noise)
    std = (0.5 * logvar[0]).exp()
    assert ((drawn.mean(dim=0) - mean[0]).abs() < 4 * std / len(noise) ** 0.5).all()
    torch.testing.assert_close(drawn.std(dim=0), std, rtol=0.03, atol=0)


@torch.no_grad()
def test_padding_tells_nothing_and_a_row_of_it_is_no_prompt():
    prior = make_prior()
    states = torch.randn(3, 6, S)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 1]])
    spoiled = states.masked_fill(~mask.bool().unsqueeze(-1), float("inf"))
    output = prior(spoiled, mask)
    alone = prior(states[:1, :3])
    torch.testing.assert_close(output.mean[:1], alone.mean)
    torch.testing.assert_close(output.mean[1:2], prior(batch_size=1).mean)
    assert output.mean.isfinite().all() and not torch.allclose(output.mean[0], output.mean[1])


def test_it_learns_the_distribution_of_latents_given_a_prompt():
    """Latents that are a linear function of the prompt and noise of another size in each entry."""
    torch.manual_seed(0)
    prior = LatentGaussianPrior(2, 1, prompt_size=S, hidden_size=64)
    directions = torch.tensor([-1.5, 1.0])
    stds = torch.tensor([0.2, 0.6])
    kinds = torch.randn(2, 1, S)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(200):
        kind = torch.randint(0, 2, (256,))
        latents = (directions[kind, None] + stds * torch.randn(256, 2)).unsqueeze(1)
        output = prior(kinds[kind])
        optimizer.zero_grad()
        gaussian_nats(latents, output.mean, output.logvar).mean().backward()
        optimizer.step()
    output = prior(kinds)
    torch.testing.assert_close(
        output.mean[:, 0], directions[:, None].expand(2, 2), atol=0.1, rtol=0
    )
    torch.testing.assert_close(
        (0.5 * output.logvar[:, 0]).exp(), stds.expand(2, 2), atol=0.06, rtol=0
    )


def test_it_comes_back_from_a_folder(tmp_path):
    prior = make_prior()
    prior.save_pretrained(tmp_path)
    states = torch.randn(2, 5, S)
    loaded = LatentGaussianPrior.from_pretrained(tmp_path)
    assert torch.equal(loaded(states).mean, prior(states).mean)


@pytest.mark.parametrize(
    "changes, inputs, message",
    [
        ({"latent_dim": 0}, {}, "`latent_dim` must be an integer of at least 1"),
        ({"hidden_size": 1.5}, {}, "`hidden_size` must be an integer"),
        ({}, {}, "`batch_size` must be given where there are no `prompt_states`"),
        ({"prompt_size": None}, {"prompt_states": torch.zeros(1, 2, S)}, "`prompt_size=None`"),
        (
            {},
            {"prompt_states": torch.zeros(1, 2, 7)},
            r"`prompt_states` must be \(batch, length, 4\)",
        ),
        (
            {},
            {"prompt_states": torch.zeros(1, 2, S), "prompt_mask": torch.ones(1, 3)},
            r"`prompt_mask` must be \(1, 2\)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, inputs, message):
    with pytest.raises(ValueError, match=message):
        LatentGaussianPrior(**{"latent_dim": E, "num_latents": K, "prompt_size": S} | changes)(
            **inputs
        )
