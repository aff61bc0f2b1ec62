from .models.autoencoder_vq_text import AutoencoderVQTextModel
from .models.classifier_text import TextClassifierModel
from .models.latent.autoencoder_text_latent import AutoencoderTextLatentModel
from .models.latent.gaussian_prior import LatentGaussianPrior
from .models.latent.transformer_latent import LatentTransformerModel
from .models.prompt_encoder import PromptEncoderModel
from .models.transformer_code import CodeTransformerModel
from .models.transformer_embedding import EmbeddingTransformerModel
from .models.transformer_embedding_bert import BertEmbeddingDenoiser
from .models.transformer_text import TextTransformerModel
from .pipelines.diffusion_lm.pipeline_diffusion_lm import (
    DiffusionLMPipeline,
    DiffusionLMPipelineOutput,
)
from .pipelines.latent_diffusion.pipeline_latent_text_diffusion import (
    LatentTextDiffusionPipeline,
    LatentTextDiffusionPipelineOutput,
)
from .pipelines.paraguide.pipeline_paraguide import ParaGuidePipeline
from .pipelines.text_diffusion.pipeline_text_diffusion import (
    TextDiffusionPipeline,
    TextDiffusionPipelineOutput,
)
from .pipelines.two_level_vq.pipeline_two_level_vq import (
    TwoLevelVQDiffusionPipeline,
    TwoLevelVQDiffusionPipelineOutput,
)
from .schedulers.few_steps.scheduling_even import EvenRevealScheduler
from .schedulers.hierarchical.scheduling_d3pm_hierarchical import D3PMHierarchicalScheduler
from .schedulers.latent.scheduling_flow import (
    LatentFlowEulerScheduler,
    LatentFlowHeunScheduler,
)
from .schedulers.latent.scheduling_score import (
    AnnealedLangevinScheduler,
    ProbabilityFlowScheduler,
    ReverseSDEScheduler,
)
from .schedulers.scheduling_block_ancestral import BlockAncestralScheduler
from .schedulers.scheduling_confidence import ConfidenceScheduler
from .schedulers.scheduling_d3pm import D3PMAbsorbingScheduler, D3PMUniformScheduler
from .schedulers.scheduling_d3pm_bits import D3PMBitFlipScheduler
from .schedulers.scheduling_d3pm_hybrid import D3PMHybridScheduler
from .schedulers.scheduling_d3pm_matrix import D3PMMatrixScheduler
from .schedulers.scheduling_d3pm_neighbors import D3PMNeighborScheduler
from .schedulers.scheduling_ddim_embedding import EmbeddingDDIMScheduler
from .schedulers.scheduling_ddim_token import TokenDDIMScheduler
from .schedulers.scheduling_ddpm_embedding import EmbeddingDDPMScheduler
from .schedulers.scheduling_dpmsolver_embedding import EmbeddingDPMSolverScheduler
from .schedulers.scheduling_first_hitting import FirstHittingScheduler
from .schedulers.scheduling_predictor_corrector import (
    PredictorCorrectorAbsorbingScheduler,
    PredictorCorrectorUniformScheduler,
)
from .schedulers.scheduling_remdm import ReMDMScheduler

__version__: str

__all__ = [
    "AnnealedLangevinScheduler",
    "AutoencoderTextLatentModel",
    "AutoencoderVQTextModel",
    "BertEmbeddingDenoiser",
    "BlockAncestralScheduler",
    "CodeTransformerModel",
    "ConfidenceScheduler",
    "D3PMAbsorbingScheduler",
    "D3PMBitFlipScheduler",
    "D3PMHierarchicalScheduler",
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
    "EvenRevealScheduler",
    "FirstHittingScheduler",
    "LatentFlowEulerScheduler",
    "LatentFlowHeunScheduler",
    "LatentGaussianPrior",
    "LatentTextDiffusionPipeline",
    "LatentTextDiffusionPipelineOutput",
    "LatentTransformerModel",
    "ParaGuidePipeline",
    "PredictorCorrectorAbsorbingScheduler",
    "PredictorCorrectorUniformScheduler",
    "ProbabilityFlowScheduler",
    "PromptEncoderModel",
    "ReMDMScheduler",
    "ReverseSDEScheduler",
    "TextClassifierModel",
    "TextDiffusionPipeline",
    "TextDiffusionPipelineOutput",
    "TextTransformerModel",
    "TokenDDIMScheduler",
    "TwoLevelVQDiffusionPipeline",
    "TwoLevelVQDiffusionPipelineOutput",
]
