"""Earlier name of `text_diffusers.pipelines.guidance`, kept for programs that import it."""

from text_diffusers.pipelines.guidance import guide

__all__ = ["guide"]
