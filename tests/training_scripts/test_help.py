"""Every recipe explains its options."""

from dataclasses import fields
from importlib import import_module

import pytest
from parts.common.recipes import CONFIGS

from text_diffusers.training.config import OptionParser


@pytest.mark.parametrize("recipe", CONFIGS)
def test_the_help_of_a_recipe_names_every_option(recipe):
    options = getattr(import_module(recipe), CONFIGS[recipe])
    text = OptionParser(options).format_help()
    assert all(f"--{field.name}" in text for field in fields(options) if field.init)
    assert "%%" not in text
