"""Earlier name of `text_diffusers.guidance.classifiers`."""

from text_diffusers.guidance.classifiers import *  # noqa: F403
