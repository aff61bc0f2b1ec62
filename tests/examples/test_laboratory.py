"""The laboratory: densities integrate to 1, bounds bound, samplers reach the law, and the command goes on."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import train_2d
from conftest import mostly_slow
from PIL import Image
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import nn
from torch.distributions import MultivariateNormal

from laboratory import pictures
from laboratory.autoregressive import LIMIT, AutoregressiveModel
from laboratory.base import PointModel
from laboratory.diffusion import Diffusion
from laboratory.energy import EnergyModel
from laboratory.gan import GAN, WassersteinGAN
from laboratory.ideal import ideal_diffusion, ideal_flow
from laboratory.mixture import MixtureModel
from laboratory.points import FIGURES, GaussianMixture, eight_gaussians, make_points, moons
from laboratory.realnvp import RealNVP
from laboratory.samplers import SAMPLERS
from laboratory.vae import VariationalAutoencoder
from text_diffusers.training.config import OptionParser

# All but the time that training took, which is never the same
TINY = {
    "max_train_steps": 24,
    "train_batch_size": 16,
    "num_points": 200,
    "num_samples": 60,
    "num_train_timesteps": 20,
}
SOME_MODELS = ["mixture", "realnvp", "diffusion", "flow_matching"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def cells(limit=8.0, width=0.0625):
    """Middles (G, 2) of the cells of a square of the plane, and the area of one."""
    axis = torch.arange(-limit + width / 2, limit, width)
    return torch.cartesian_prod(axis, axis), width**2


# Points


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_mean_zero_unit_mean_square_and_a_density(name):
    truth = FIGURES[name]()
    second_moment = truth.centres.square().mean() + truth.std**2
    assert truth.centres.mean(dim=0).abs().max() < 1e-6
    assert abs(float(second_moment) - 1) < 1e-6

    # What is drawn has these moments, and the density is that of a law.
    points = truth.sample(20_000)
    assert points.mean(dim=0).abs().max() < 5 / math.sqrt(20_000)
    assert abs(float(points.square().mean()) - 1) < 0.03
    middles, area = cells(limit=3.0)
    assert abs(float(truth.log_density(middles).exp().sum()) * area - 1) < 1e-3


@pytest.mark.slow
def test_words_have_unit_variance_and_no_held_out_one_is_trained_with():
    points = make_points("words", 0, 300)
    both = torch.cat([points.training, points.held_out])
    assert both.mean(dim=0).abs().max() < 1e-4
    assert (both.var(dim=0) - 1).abs().max() < 1e-3
    assert points.names is not None and len(points.names) == len(points.held_out) == 300
    assert all(name.isalpha() and name.islower() for name in points.names)
    assert torch.cdist(points.training, points.held_out).min() > 0


# Densities that are known exactly


@pytest.mark.parametrize("model_class", [AutoregressiveModel, RealNVP, EnergyModel, MixtureModel])
def test_densities_integrate_to_one(model_class):
    model = model_class()
    for parameter in model.parameters():  # far from the flat beginning
        parameter.data += 0.1 * torch.randn_like(parameter)
    middles, area = cells()
    log_density = model.log_density(middles)
    assert abs(float(log_density.exp().sum()) * area - 1) < 0.01
    assert float(log_density.max() - log_density.median()) > 0.5


def test_a_flow_is_one_to_one_and_knows_its_determinant():
    model = RealNVP().double()
    points = torch.randn(50, 2, dtype=torch.float64)
    noise, log_determinant = model.noise_of(points)
    assert torch.allclose(model.points_of(noise), points, atol=1e-10)

    for point, value in zip(points[:5], log_determinant, strict=False):
        jacobian = torch.autograd.functional.jacobian(
            lambda one: model.noise_of(one.unsqueeze(0))[0].squeeze(0), point
        )
        assert isinstance(jacobian, torch.Tensor)
        assert torch.allclose(jacobian.det().abs().log(), value)


def test_the_likelihood_of_a_mixture_is_that_of_scikit_learn():
    points = moons().sample(500)
    model = MixtureModel(num_components=5)
    model.fit(points, budget=1, batch_size=1)

    stock = SklearnMixture(5)
    stock.weights_ = model.weights.double().numpy()
    stock.means_ = model.means.double().numpy()
    stock.covariances_ = model.covariances.double().numpy()
    precisions = np.linalg.inv(stock.covariances_)
    stock.precisions_cholesky_ = np.linalg.cholesky(precisions)
    expected = torch.as_tensor(stock.score_samples(points.numpy()))
    assert torch.allclose(model.log_density(points).double(), expected, atol=1e-4)
    # EM has found more than one Gaussian can say.
    one = MultivariateNormal(points.mean(dim=0), points.T.cov())
    assert expected.mean() > one.log_prob(points).mean() + 0.3


def test_tokens_are_drawn_with_the_probabilities_of_the_chain_rule():
    model = AutoregressiveModel(num_bins=3)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    count = 20_000
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    expected = model.log_probabilities(pairs).exp().detach()

    tokens = model.tokens_of(model.sample(count))
    counts = torch.bincount(3 * tokens[:, 0] + tokens[:, 1], minlength=9)
    chi_square = ((counts - count * expected).square() / (count * expected)).sum()
    assert abs(float(expected.sum()) - 1) < 1e-6
    assert chi_square < 26.1  # at 8 degrees of freedom, once in a thousand
    assert model.log_density(torch.tensor([[LIMIT + 1, 0.0]])) == -torch.inf


# Bounds


class LinearDecoder(nn.Module):
    """z to (2 z_1, 0.5 z_2)."""

    def forward(self, latents):
        return latents * torch.tensor([2.0, 0.5])


class LinearPosterior(nn.Module):
    """The exact posterior of `LinearDecoder` with noise of variance 0.25, or one whose deviation is larger."""

    def __init__(self, widening=1.0):
        super().__init__()
        self.widening = widening

    def forward(self, points):
        scale = torch.tensor([2.0, 0.5])
        precision = 1 + scale.square() / 0.25
        mean = scale * points / 0.25 / precision
        log_std = -precision.log() / 2 + math.log(self.widening)
        return torch.cat([mean, log_std.expand_as(mean)], dim=1)


@pytest.mark.parametrize("widening", [1.0, 1.5])
def test_the_bound_of_a_vae_is_the_likelihood_only_for_the_true_posterior(widening):
    model = VariationalAutoencoder()
    model.encoder = LinearPosterior(widening)
    model.decoder = LinearDecoder()
    model.log_variance.data.fill_(math.log(0.25))
    truth = MultivariateNormal(torch.zeros(2), torch.diag(torch.tensor([4.25, 0.5])))
    points = truth.sample((2000,))
    log_density = truth.log_prob(points)

    # 2 (w^2 - 1 - 2 log w) / 2 is the KL of a posterior that is w times too wide, in two coordinates.
    gap = widening**2 - 1 - 2 * math.log(widening)
    with torch.no_grad():
        bound = model.bound(points)
    assert abs(float((log_density - bound).mean()) - gap) < 0.1
    # Weighted draws correct the posterior: what is left is noise, and none with the true one.
    tolerance = 1e-4 if widening == 1 else 0.05
    assert abs(float((model.log_density(points) - log_density).mean())) < tolerance


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_of_diffusion_is_the_likelihood_for_the_exact_denoiser_of_a_gaussian(schedule):
    truth = GaussianMixture(torch.tensor([[0.3, -0.2]]), std=0.6)
    options = {"num_train_timesteps": 200, "beta_schedule": schedule}
    model = ideal_diffusion(truth, prediction_type="v_prediction", **options)
    points = truth.sample(1000)
    entropy = -float(truth.log_density(points).mean())

    bound = float(model.bound_terms(points).sum())
    narrow_bound = float(model.bound_terms(points, widened=False).sum())
    assert abs(bound - entropy) < 0.05
    assert narrow_bound > bound + 0.1

    # Another denoiser costs more: one for a Gaussian somewhere else.
    elsewhere = GaussianMixture(truth.centres + 0.5, std=0.6)
    wrong = ideal_diffusion(elsewhere, prediction_type="v_prediction", **options)
    cost = 0.5 * 2 * 0.5**2 / 0.6**2  # KL of both Gaussians
    assert abs(float(wrong.bound_terms(points).sum()) - entropy - cost) < 0.1


@pytest.mark.parametrize("make", [ideal_diffusion, ideal_flow])
def test_the_density_along_the_ode_is_the_true_one_for_the_exact_denoiser(make):
    truth = moons()
    points = truth.sample(200)
    log_density = make(truth).log_density(points)
    errors = log_density - truth.log_density(points)
    assert abs(float(errors.mean())) < 0.03
    assert float(errors.std()) < 0.15


# Samplers


@pytest.mark.parametrize(
    "sampler", mostly_slow([*SAMPLERS, "flow matching"], ["DDIM", "flow matching"])
)
def test_samplers_with_the_exact_denoiser_reach_all_modes_with_their_width(sampler):
    truth = eight_gaussians()
    noise = torch.randn(2000, 2)
    if sampler == "flow matching":
        samples = ideal_flow(truth).path(noise)[-1]
    else:
        samples = ideal_diffusion(truth).path(sampler, noise)[-1]

    # 1. Moments of the whole
    assert samples.mean(dim=0).abs().max() < 0.1
    assert abs(float(samples.square().mean()) - 1) < 0.05

    # 2. Each mode has its share, within four standard deviations, and its width
    distances, modes = torch.cdist(samples, truth.centres).min(dim=1)
    counts = torch.bincount(modes, minlength=8)
    assert (counts - 250).abs().max() < 4 * math.sqrt(2000 * 7 / 64)
    std = float((distances.square().mean() / 2).sqrt())
    assert abs(std / truth.std - 1) < 0.2


@pytest.mark.slow
def test_langevin_dynamics_keep_the_law_of_an_energy():
    model = EnergyModel()
    for parameter in model.network.parameters():
        parameter.data.zero_()
    # What is left is the bowl |x|^2 / 8, that of a Gaussian of variance 4.
    assert abs(model.log_normaliser().item() - math.log(2 * math.pi * 4)) < 0.02
    points = model.langevin(2 * torch.randn(4000, 2), 50)
    assert abs(float(points.var()) - 4) < 0.25


def test_adversaries_that_cannot_tell_pay_what_guessing_costs():
    batch = torch.randn(64, 2)
    model = GAN()
    for parameter in model.discriminator.parameters():
        parameter.data.zero_()
    assert abs(model.discriminator_loss(batch).item() - 2 * math.log(2)) < 1e-6
    assert abs(model.generator_loss(batch).item() - math.log(2)) < 1e-6


def test_a_critic_of_slope_one_pays_no_penalty_and_measures_the_distance():
    model = WassersteinGAN()
    critic = nn.Linear(2, 1, bias=False)
    critic.weight.data = torch.tensor([[1.0, 0.0]])
    model.discriminator = critic  # type: ignore[assignment]
    model.generator = nn.Identity()  # type: ignore[assignment]
    shift = 3.0
    batch = torch.randn(20_000, 2) + torch.tensor([shift, 0.0])
    assert abs(model.discriminator_loss(batch).item() + shift) < 0.05


@pytest.mark.slow
def test_a_trained_diffusion_comes_near_the_entropy_and_never_below():
    points = make_points("moons", 5000, 500)
    assert points.truth is not None
    model = Diffusion(num_train_timesteps=200)
    model.fit(points.training, budget=2500, batch_size=256)
    entropy = -float(points.truth.log_density(points.held_out).mean())
    bound = float(model.bound_terms(points.held_out).sum())
    assert entropy - 0.02 < bound < entropy + 0.4


# The command


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A folder of the command with some models, and its rows."""
    folder = tmp_path_factory.mktemp("whole")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(pictures, "DENSITY_SIZE", 16)
    monkeypatch.setattr(pictures, "NUM_FRAMES", 12)
    config = train_2d.LaboratoryConfig(output_dir=str(folder), models=SOME_MODELS, **TINY)
    rows = train_2d.main(config)
    monkeypatch.undo()
    return folder, rows


def without_times(rows):
    return [row.record() | {"cpu_seconds": None} for row in rows]


def test_a_killed_command_goes_on_and_gives_the_same_table(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    folders = [str(tmp_path / name) for name in ("killed", "whole")]
    models = ["mixture", "realnvp", "vae"]
    config, other = (
        train_2d.LaboratoryConfig(output_dir=folder, models=models, **TINY) for folder in folders
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VariationalAutoencoder, "fit", killed)
        train_2d.main(config)
    finished = Path(folders[0], "models/mixture/weights.pt")
    time = finished.stat().st_mtime_ns

    rows = train_2d.main(config)
    assert finished.stat().st_mtime_ns == time
    assert without_times(rows) == without_times(train_2d.main(other))


@pytest.mark.slow
def test_the_table_has_a_line_for_each_model_and_sampler(whole_run):
    folder, rows = whole_run
    records = json.loads(Path(folder, "table.json").read_text())
    assert records == [row.record() for row in rows]
    # The data, three models, the samplers of diffusion, and the exact denoiser
    assert len(records) == 1 + 3 + len(SAMPLERS) + 1
    lines = Path(folder, "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(records)
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.slow
def test_pictures_are_drawn(whole_run):
    folder, _ = whole_run
    names = ("models", "densities", "schedules", "fields", "paths")
    for name in names:
        picture = np.asarray(Image.open(folder / f"{name}.png").convert("L"))
        assert min(picture.shape) > 100 and picture.std() > 10, name

    film = Image.open(folder / "paths.gif")
    assert film.n_frames > 10  # type: ignore[attr-defined]
    first = np.asarray(film.convert("L")).astype(float)
    film.seek(film.n_frames - 1)  # type: ignore[attr-defined]
    last = np.asarray(film.convert("L")).astype(float)
    assert abs(last - first).max() > 50


@pytest.mark.slow
def test_other_options_are_refused_where_models_are_kept(whole_run):
    folder, _ = whole_run
    with pytest.raises(ValueError, match="`seed` must be 0, as in `output_dir`"):
        train_2d.prepare_folder(
            train_2d.LaboratoryConfig(output_dir=str(folder), seed=1, **TINY), folder
        )
    with pytest.raises(ValueError, match="`models` must be among .*did you mean 'realnvp'"):
        train_2d.LaboratoryConfig(output_dir=str(folder), models=["realnpv"])


def test_the_help_explains_every_option():
    text = OptionParser(train_2d.LaboratoryConfig).format_help()
    assert all(f"--{name}" in text for name in train_2d.LaboratoryConfig.__dataclass_fields__)


def test_every_model_says_how_its_density_is_known():
    for name, make in train_2d.MODELS.items():
        model = make()
        assert isinstance(model, PointModel)
        has_density = type(model).log_density is not PointModel.log_density
        assert has_density == (model.density_kind is not None), name
