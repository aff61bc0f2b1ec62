"""The models of the laboratory by their names, in the order of the table."""

from collections.abc import Callable
from typing import Any

from laboratory.autoregressive import AutoregressiveModel
from laboratory.base import PointModel
from laboratory.diffusion import Diffusion
from laboratory.energy import EnergyModel
from laboratory.flow_matching import FlowMatching
from laboratory.gan import GAN, WassersteinGAN
from laboratory.mixture import MixtureModel
from laboratory.realnvp import RealNVP
from laboratory.vae import VariationalAutoencoder

MODELS: dict[str, Callable[..., PointModel]] = {
    "mixture": MixtureModel,
    "autoregressive": AutoregressiveModel,
    "vae": VariationalAutoencoder,
    "gan": GAN,
    "wgan_gp": WassersteinGAN,
    "realnvp": RealNVP,
    "energy": EnergyModel,
    "diffusion": Diffusion,
    "flow_matching": FlowMatching,
}

# How the table and the pictures call them
TITLES = {
    "mixture": "Gaussian mixture, EM",
    "autoregressive": "autoregressive",
    "vae": "VAE",
    "gan": "GAN",
    "wgan_gp": "WGAN-GP",
    "realnvp": "RealNVP",
    "energy": "energy-based",
    "diffusion": "diffusion",
    "flow_matching": "flow matching",
}


def make_model(name: str, **settings: Any) -> PointModel:
    """A model by its name, one of `MODELS`; the settings are those of `Diffusion`, and for it alone."""
    return MODELS[name](**settings) if name == "diffusion" else MODELS[name]()
