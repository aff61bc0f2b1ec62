"""Earlier name of `text_diffusers.hub.model_card`."""

from text_diffusers.hub.model_card import *  # noqa: F403
