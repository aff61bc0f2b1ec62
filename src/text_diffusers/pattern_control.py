"""Earlier name of `text_diffusers.guidance.patterns`."""

from text_diffusers.guidance.patterns import *  # noqa: F403
