from .attention import BlockCache
from .autoencoder_vq_quantizer import TextQuantizer
from .autoencoder_vq_text import AutoencoderVQTextModel, AutoencoderVQTextOutput, TextCodes
from .chunked_head import ChunkedHeadLoss
from .classifier_text import TextClassifierModel, TextClassifierOutput
from .language_model import (
    MaskedLMDenoiser,
    MaskedLMDenoiserOutput,
    as_denoiser,
    ids_never_predicted,
    is_masked_lm,
    masked_lm_length,
)
from .prompt_encoder import PromptEncoderModel, PromptEncoderOutput
from .prompted_denoiser import PromptedDenoiser
from .transformer_code import CodeTransformerModel
from .transformer_embedding import EmbeddingTransformerModel, EmbeddingTransformerOutput
from .transformer_text import TextTransformerModel, TextTransformerOutput

__all__ = [
    "AutoencoderVQTextModel",
    "AutoencoderVQTextOutput",
    "BlockCache",
    "ChunkedHeadLoss",
    "CodeTransformerModel",
    "EmbeddingTransformerModel",
    "EmbeddingTransformerOutput",
    "MaskedLMDenoiser",
    "MaskedLMDenoiserOutput",
    "PromptEncoderModel",
    "PromptEncoderOutput",
    "PromptedDenoiser",
    "TextClassifierModel",
    "TextClassifierOutput",
    "TextCodes",
    "TextQuantizer",
    "TextTransformerModel",
    "TextTransformerOutput",
    "as_denoiser",
    "ids_never_predicted",
    "is_masked_lm",
    "masked_lm_length",
]
