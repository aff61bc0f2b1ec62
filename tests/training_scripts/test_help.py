"""Every recipe explains its options."""

from dataclasses import fields
from importlib import import_module

import pytest

from text_diffusers.training.config import OptionParser

CONFIGS = {
    "train_classifier": "ClassifierConfig",
    "train_d3pm": "D3PMConfig",
    "train_diffusion_lm": "DiffusionLMConfig",
    "train_distill": "DistillationConfig",
    "train_latent_diffusion": "LatentDiffusionConfig",
    "train_text_autoencoder": "TextAutoencoderConfig",
    "train_two_level": "TwoLevelConfig",
    "train_vq_autoencoder": "AutoencoderConfig",
}


@pytest.mark.parametrize("recipe", CONFIGS)
def test_the_help_of_a_recipe_names_every_option(recipe):
    options = getattr(import_module(recipe), CONFIGS[recipe])
    text = OptionParser(options).format_help()
    assert all(f"--{field.name}" in text for field in fields(options) if field.init)
    assert "%%" not in text
