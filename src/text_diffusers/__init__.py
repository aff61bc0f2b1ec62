"""Diffusion models for text in the manner of Hugging Face diffusers."""

from text_diffusers.models.autoencoder_vq_text import AutoencoderVQTextModel
from text_diffusers.models.classifier_text import TextClassifierModel
from text_diffusers.models.prompt_encoder import PromptEncoderModel
from text_diffusers.models.transformer_code import CodeTransformerModel
from text_diffusers.models.transformer_embedding import EmbeddingTransformerModel
from text_diffusers.models.transformer_text import TextTransformerModel
from text_diffusers.pipelines.pipeline_diffusion_lm import DiffusionLMPipeline, DiffusionLMPipelineOutput
from text_diffusers.pipelines.pipeline_diffusion_lm_guided import GuidedDiffusionLMPipeline
from text_diffusers.pipelines.pipeline_paraguide import ParaGuidePipeline
from text_diffusers.pipelines.pipeline_paraguide_tokens import TokenParaGuidePipeline
from text_diffusers.pipelines.pipeline_text_block_diffusion import TextBlockDiffusionPipeline
from text_diffusers.pipelines.pipeline_text_diffusion import TextDiffusionPipeline, TextDiffusionPipelineOutput
from text_diffusers.pipelines.pipeline_text_diffusion_cfg import TextDiffusionCFGPipeline
from text_diffusers.pipelines.pipeline_two_level_vq import (
    TwoLevelVQDiffusionPipeline,
    TwoLevelVQDiffusionPipelineOutput,
)
from text_diffusers.schedulers.scheduling_block_ancestral import BlockAncestralScheduler
from text_diffusers.schedulers.scheduling_confidence import ConfidenceScheduler
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.schedulers.scheduling_d3pm_bits import D3PMBitFlipScheduler
from text_diffusers.schedulers.scheduling_d3pm_hybrid import D3PMHybridScheduler
from text_diffusers.schedulers.scheduling_d3pm_matrix import D3PMMatrixScheduler
from text_diffusers.schedulers.scheduling_d3pm_neighbors import D3PMNeighborScheduler
from text_diffusers.schedulers.scheduling_ddim_embedding import EmbeddingDDIMScheduler
from text_diffusers.schedulers.scheduling_ddim_token import TokenDDIMScheduler
from text_diffusers.schedulers.scheduling_ddpm_embedding import EmbeddingDDPMScheduler
from text_diffusers.schedulers.scheduling_dpmsolver_embedding import EmbeddingDPMSolverScheduler
from text_diffusers.schedulers.scheduling_first_hitting import FirstHittingScheduler
from text_diffusers.schedulers.scheduling_predictor_corrector import (
    PredictorCorrectorAbsorbingScheduler,
    PredictorCorrectorUniformScheduler,
)
from text_diffusers.schedulers.scheduling_remdm import ReMDMScheduler

__version__ = "0.1.0"

__all__ = [
    "AutoencoderVQTextModel",
    "BlockAncestralScheduler",
    "CodeTransformerModel",
    "ConfidenceScheduler",
    "D3PMAbsorbingScheduler",
    "D3PMBitFlipScheduler",
    "D3PMHybridScheduler",
    "D3PMMatrixScheduler",
    "D3PMNeighborScheduler",
    "D3PMUniformScheduler",
    "DiffusionLMPipeline",
    "DiffusionLMPipelineOutput",
    "EmbeddingDDIMScheduler",
    "EmbeddingDDPMScheduler",
    "EmbeddingDPMSolverScheduler",
    "EmbeddingTransformerModel",
    "FirstHittingScheduler",
    "GuidedDiffusionLMPipeline",
    "ParaGuidePipeline",
    "PredictorCorrectorAbsorbingScheduler",
    "PredictorCorrectorUniformScheduler",
    "PromptEncoderModel",
    "ReMDMScheduler",
    "TextBlockDiffusionPipeline",
    "TextClassifierModel",
    "TextDiffusionCFGPipeline",
    "TextDiffusionPipeline",
    "TextDiffusionPipelineOutput",
    "TextTransformerModel",
    "TokenDDIMScheduler",
    "TokenParaGuidePipeline",
    "TwoLevelVQDiffusionPipeline",
    "TwoLevelVQDiffusionPipelineOutput",
]
