"""The training step over latents: its expectation, its coins, its pairs of noise and latents, and that it teaches.

Shapes: B batch, K latents, E latent width.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.latent_models import make_autoencoder

from text_diffusers import (
    EmbeddingDDIMScheduler,
    LatentTransformerModel,
)
from text_diffusers.common.clean_estimate import NoiseLevel
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.models.latent.gaussian_prior import LatentGaussianPrior
from text_diffusers.schedulers.latent.scheduling_flow import (
    LatentFlowEulerScheduler,
)
from text_diffusers.schedulers.latent.scheduling_score import (
    ProbabilityFlowScheduler,
)
from text_diffusers.training.steps.latents import (
    WEIGHTINGS,
    LatentLoss,
    gaussian_prior_losses,
    shown_latents,
)
from text_diffusers.training.steps.transport import least_assignment, paired_noise

K, E, T = 2, 2, 1000
STEPS = 120
STRAIGHT = ProbabilityFlowScheduler(T)


class Constant(torch.nn.Module):
    """Predicts the same number everywhere, and keeps what it was told."""

    def __init__(self, prediction_type, value=0.0, **changes):
        super().__init__()
        config = {"num_train_timesteps": T, "prediction_type": prediction_type}
        config |= {"self_conditioning": False, "num_classes": None} | changes
        self.config = LatentTransformerModel(
            E, K, 8, 1, 2, **{name: value for name, value in config.items()}
        ).config
        self.value, self.calls = value, []

    def forward(self, sample, timestep, **told):
        self.calls.append({"sample": sample, "timestep": timestep} | told)
        return SimpleNamespace(sample=torch.full_like(sample, self.value))


def scheduler_of(path, prediction_type):
    if path == "straight":
        return ProbabilityFlowScheduler(T, prediction_type=prediction_type)
    return EmbeddingDDIMScheduler(T, "cosine", prediction_type=prediction_type)


PARTS = [
    *(("betas", kind) for kind in ("sample", "epsilon", "v_prediction")),
    *(("straight", kind) for kind in ("sample", "v_prediction", "flow")),
]


@pytest.mark.parametrize("path, prediction_type", PARTS)
def test_the_loss_of_a_constant_is_its_expectation(path, prediction_type):
    """E (c - a x_0 - b noise)^2 = (c - a mean)^2 + a^2 var + b^2 for a prediction a x_0 + b noise."""
    rows, mean, std, value = 4_000, 0.5, 0.8, 0.3
    scheduler = scheduler_of(path, prediction_type)
    model = Constant(prediction_type, value)
    loss = LatentLoss(scheduler, model, weighting="min_snr")
    uniform, generators = row_noise(seed=0, step=3, num_rows=rows)
    times = loss.draw_times(uniform)
    latents = mean + std * torch.randn(
        (rows, K, E), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    got = loss(model, {"latents": latents}, times, generators)

    signal, sigma = scheduler.noise_level(times)
    a, b = {
        "sample": (torch.ones_like(signal), torch.zeros_like(signal)),
        "epsilon": (torch.zeros_like(signal), torch.ones_like(signal)),
        "v_prediction": (-sigma, signal),
        "flow": (-torch.ones_like(signal), torch.ones_like(signal)),
    }[prediction_type]
    snr = (signal / sigma) ** 2
    weights = {
        "sample": snr.clamp(max=5),
        "epsilon": snr.clamp(max=5) / snr,
        "v_prediction": snr.clamp(max=5) * sigma**2 / (signal**2 + sigma**2) ** 2,
        "flow": snr.clamp(max=5) * sigma**2 / (signal + sigma) ** 2,
    }[prediction_type]
    expected = weights * ((value - a * mean) ** 2 + (a * std) ** 2 + b**2)
    difference = got - expected
    assert float(difference.mean().abs()) < 3 * float(difference.std()) / rows**0.5


def test_velocity_weights_make_it_the_loss_of_the_velocity():
    """For two estimates at the same noisy latents, the squared differences of their velocities."""
    level = NoiseLevel(torch.tensor([0.3, 0.8]), torch.tensor([0.7, 0.2]))
    weights = WEIGHTINGS["flow"]("sample", level)
    # noise - x_0 = (x_t - x_0) / sigma on the straight path
    torch.testing.assert_close(weights, 1 / torch.tensor([0.7, 0.2]) ** 2)
    torch.testing.assert_close(WEIGHTINGS["flow"]("flow", level), torch.ones(2))
    no_noise = NoiseLevel(torch.tensor([1.0]), torch.tensor([0.0]))
    assert torch.isfinite(WEIGHTINGS["flow"]("sample", no_noise)).all()


def test_a_row_costs_the_same_alone_and_in_a_batch_and_at_every_repetition():
    torch.manual_seed(0)
    model = LatentTransformerModel(E, K, 8, 1, 2, prediction_type="flow", num_classes=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    loss = LatentLoss(STRAIGHT, model, dropout=0.5, weighting="min_snr")
    batch = {"latents": torch.randn(4, K, E), "label": torch.tensor([0, 1, 0, 1])}

    def costs(rows):
        uniform, generators = row_noise(seed=1, step=5, num_rows=4)
        part = {name: column[rows] for name, column in batch.items()}
        return loss(model, part, loss.draw_times(uniform)[rows], generators[rows])

    together = costs(slice(None))
    assert torch.equal(together, costs(slice(None)))
    for row in range(4):
        alone = costs(slice(row, row + 1))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


def test_conditions_are_left_out_and_estimates_shown_to_their_share_of_the_rows():
    rows = 2_000
    model = Constant("flow", 0.2, num_classes=3, prompt_size=4, self_conditioning=True)
    loss = LatentLoss(STRAIGHT, model, self_conditioning=0.5, dropout=0.25)
    uniform, generators = row_noise(seed=0, step=0, num_rows=rows)
    batch = {
        "latents": torch.ones(rows, K, E),
        "label": torch.zeros(rows, dtype=torch.long),
        "prompt_states": torch.ones(rows, 1, 4),
    }
    times = loss.draw_times(uniform)
    loss(model, batch, times, generators)
    first, second = model.calls
    no_label = second["class_labels"] == 3
    no_prompt = second["prompt_mask"][:, 0] == 0
    shown = second["self_condition"].abs().amax(dim=(1, 2)) > 0
    for dropped, share in ((no_label, 0.25), (no_prompt, 0.25), (no_label & no_prompt, 0.0625)):
        assert float(dropped.float().mean()) == pytest.approx(share, abs=0.04)
    assert float(shown.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert len(first["sample"]) == int(shown.sum()) and not batch["label"].any()

    # The clean latents that a velocity of 0.2 stands for, at the same noisy latents
    assert torch.equal(first["sample"], second["sample"][shown])
    clean = second["sample"] - (times.view(-1, 1, 1) / T).float() * 0.2
    torch.testing.assert_close(second["self_condition"][shown], clean[shown])


def test_times_are_those_of_the_clock():
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    straight = LatentLoss(STRAIGHT, Constant("flow")).draw_times(uniform)
    assert 0 < straight.min() and straight.max() <= T
    assert float(straight.mean()) == pytest.approx(T / 2)
    betas = LatentLoss(scheduler_of("betas", "sample"), Constant("sample"))
    assert torch.equal(betas.draw_times(uniform), torch.arange(1000))
    middle = LatentLoss(STRAIGHT, Constant("flow"), time_sampling="logit_normal")
    shares = middle.draw_times(uniform) / T
    assert torch.special.logit(shares).std() == pytest.approx(1, abs=0.01)
    assert torch.isfinite(middle.draw_times(torch.zeros(1, dtype=torch.float64))).all()


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_the_pairing_is_the_least_of_all_permutations(size):
    random = np.random.default_rng(size)
    for costs in (random.normal(size=(size, size)), random.integers(0, 3, (size, size)) * 1.0):
        rows = np.arange(size)
        least = min(costs[rows, list(p)].sum() for p in itertools.permutations(range(size)))
        chosen = least_assignment(costs)
        assert sorted(chosen) == list(rows)
        assert costs[rows, chosen].sum() == pytest.approx(least, abs=1e-12)


def test_paired_noise_is_the_same_noise_at_the_least_squared_distance_within_its_label():
    latents, noise = torch.randn((2, 6, K, E), generator=torch.Generator().manual_seed(0)).unbind()
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    paired = paired_noise(latents, noise, labels)
    for label in (0, 1):
        rows = labels == label
        all_distances = [
            float((latents[rows] - noise[rows][list(order)]).square().sum())
            for order in itertools.permutations(range(3))
        ]
        distance = float((latents[rows] - paired[rows]).square().sum())
        assert distance == pytest.approx(min(all_distances), rel=1e-5)

    # The step shows the noise that way: at pure noise it is what the model sees.
    model = Constant("flow")
    loss = LatentLoss(STRAIGHT, model, optimal_transport=True)
    plain = LatentLoss(STRAIGHT, model)
    for step in (plain, loss):
        _, generators = row_noise(seed=0, step=0, num_rows=6)
        step(model, {"latents": latents}, torch.full((6,), float(T)), generators)
    drawn, dealt = (call["sample"] for call in model.calls)
    torch.testing.assert_close(dealt, paired_noise(latents, drawn))
    assert not torch.equal(dealt, drawn)


def test_given_noise_is_used_as_it_is_and_refused_for_pairing():
    model = Constant("flow")
    batch = {"latents": torch.zeros(2, K, E), "noise": torch.ones(2, K, E)}
    times = torch.full((2,), float(T))
    LatentLoss(STRAIGHT, model)(model, batch, times, row_noise(0, 0, 2)[1])
    assert torch.equal(model.calls[0]["sample"], batch["noise"])
    with pytest.raises(ValueError, match="`batch`.*noise"):
        transport = LatentLoss(STRAIGHT, model, optimal_transport=True)
        transport(model, batch, times, row_noise(0, 0, 2)[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dropout": 1.5}, "`dropout`"),
        ({"weighting": "snr"}, "`weighting`"),
        ({"time_sampling": "normal"}, "`time_sampling`"),
        ({"scheduler": scheduler_of("betas", "sample")}, "`scheduler`.*prediction_type"),
        ({"scheduler": ProbabilityFlowScheduler(50)}, "`scheduler`.*num_train_timesteps"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        LatentLoss(**{"scheduler": STRAIGHT, "denoiser": Constant("flow")} | changes)


@pytest.mark.slow
def test_a_tiny_model_learns_both_modes_of_a_mixture():
    torch.manual_seed(0)
    centres = torch.tensor([[[1.0, 1.0], [-1.0, 0.5]], [[-1.0, -1.0], [1.0, -0.5]]])  # (2, K, E)
    model = LatentTransformerModel(E, K, 32, 1, 2, prediction_type="sample")
    scheduler = LatentFlowEulerScheduler(prediction_type="sample")
    loss = LatentLoss(scheduler, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)
    for step in range(STEPS):
        uniform, generators = row_noise(seed=0, step=step, num_rows=48)
        modes = torch.arange(48) % 3 // 2  # two thirds in the first
        modes = modes[torch.randperm(48, generator=torch.Generator().manual_seed(step))]
        spread = torch.randn(48, K, E, generator=torch.Generator().manual_seed(step))
        batch = {"latents": centres[modes] + 0.1 * spread}
        total = loss(model, batch, loss.draw_times(uniform), generators).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        decay.step()

    scheduler.set_timesteps(20)
    latents = torch.randn(300, K, E, generator=torch.Generator().manual_seed(7))
    estimate = None
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            prediction = model.eval()(latents, timestep, self_condition=estimate).sample
            latents, estimate = scheduler.step(prediction, timestep, latents, return_dict=False)
    distances = (latents.unsqueeze(1) - centres).square().mean(dim=(2, 3)).sqrt()  # (300, 2)
    nearest, mode = distances.min(dim=1)
    assert float((nearest < 0.3).float().mean()) > 0.9
    assert float((mode == 0).float().mean()) == pytest.approx(2 / 3, abs=0.15)


def latent_batch(model, count):
    """Rows as `LatentRows` has them, with sources, of which every fourth is empty."""
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (count, 5))
    mask = (torch.arange(5) < (torch.arange(count) % 4)[:, None]).long()
    posterior = model.encode(torch.randint(1, 30, (count, 4)))
    columns = {"latents": posterior.latents, "logvar": posterior.logvar}
    return columns | {"source_ids": ids, "source_mask": mask, "label": torch.arange(count) % 2}


@torch.no_grad()
def test_what_is_shown_is_normalised_and_each_source_is_read_as_it_would_be_alone():
    model = make_autoencoder()
    model.set_latent_statistics(torch.full((3, 4), 0.3), torch.full((3, 4), 2.0))
    batch = latent_batch(model, 8)
    shown = shown_latents(model, batch, row_noise(0, 0, 8)[1])
    torch.testing.assert_close(shown["latents"], (batch["latents"] - 0.3) / 2)
    assert torch.equal(shown["label"], batch["label"])
    assert shown["prompt_mask"].sum(dim=1).tolist() == [0, 1, 2, 3] * 2
    for row in (1, 2, 3):
        states, _ = model.encode_states(batch["source_ids"][row : row + 1, :row])
        torch.testing.assert_close(shown["prompt_states"][row, :row], states[0])


@torch.no_grad()
def test_drawn_latents_have_the_moments_of_their_posterior_and_each_row_its_own():
    model = make_autoencoder()
    one = latent_batch(model, 4)
    batch = {name: column[1:2].expand(4_000, *column.shape[1:]) for name, column in one.items()}
    generators = row_noise(0, 0, 4_000)[1]
    drawn = shown_latents(model, batch, generators, draw=True)["latents"]
    std = (0.5 * one["logvar"][1]).exp()
    torch.testing.assert_close(drawn.std(dim=0), std, rtol=0.06, atol=0)
    assert ((drawn.mean(dim=0) - one["latents"][1]).abs() < 4.5 * std / 4_000**0.5).all()

    part = {name: column[7:8] for name, column in batch.items()}
    alone = shown_latents(model, part, row_noise(0, 0, 4_000)[1][7:8], draw=True)
    torch.testing.assert_close(alone["latents"][0], drawn[7])


@torch.no_grad()
def test_the_loss_of_a_gaussian_prior_is_its_density_and_some_rows_lose_their_prompt():
    prior = LatentGaussianPrior(4, 3, prompt_size=16, hidden_size=8)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rows = 2_000
    states = torch.randn(1, 5, 16).expand(rows, -1, -1)
    batch = {"latents": torch.randn(1, 3, 4).expand(rows, -1, -1), "prompt_states": states}
    batch["prompt_mask"] = torch.ones(rows, 5)
    losses = gaussian_prior_losses(prior, batch, row_noise(0, 0, rows)[1], dropout=0.25)

    nats = []
    for told in ((states[:1],), (None, None, 1)):
        mean, logvar = prior(*told, return_dict=False)
        normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
        nats.append(-normal.log_prob(batch["latents"][:1]).sum())
    lost = (losses - nats[1]).abs() < 1e-3
    assert float(lost.float().mean()) == pytest.approx(0.25, abs=0.04)
    torch.testing.assert_close(losses[~lost], nats[0].expand(int((~lost).sum())))
    assert batch["prompt_mask"].all()
