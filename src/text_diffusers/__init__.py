"""Diffusion models for text in the manner of Hugging Face diffusers."""

from text_diffusers.models.transformer_text import TextTransformerModel
from text_diffusers.pipelines.pipeline_text_diffusion import TextDiffusionPipeline, TextDiffusionPipelineOutput
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler, D3PMUniformScheduler

__version__ = "0.1.0"

__all__ = [
    "D3PMAbsorbingScheduler",
    "D3PMUniformScheduler",
    "TextDiffusionPipeline",
    "TextDiffusionPipelineOutput",
    "TextTransformerModel",
]
