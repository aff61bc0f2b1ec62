"""Earlier name of `text_diffusers.evaluation.text_metrics`."""

from text_diffusers.evaluation.text_metrics import *  # noqa: F403
