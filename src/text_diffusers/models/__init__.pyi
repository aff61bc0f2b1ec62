from .attention import BlockCache
from .autoencoder_vq_quantizer import TextQuantizer
from .autoencoder_vq_text import AutoencoderVQTextModel, AutoencoderVQTextOutput, TextCodes
from .chunked_head import ChunkedHeadLoss
from .classifier_text import TextClassifierModel, TextClassifierOutput
from .language_cache import StaleCache
from .language_model import (
    LanguageModelDenoiser,
    LanguageModelOutput,
    as_denoiser,
    ids_never_predicted,
    is_language_model,
    is_masked_lm,
    language_model_length,
)
from .latent.autoencoder_text_latent import (
    AutoencoderTextLatentModel,
    AutoencoderTextLatentOutput,
    TextLatents,
)
from .latent.transformer_latent import LatentTransformerModel, LatentTransformerOutput
from .prompt_encoder import PromptEncoderModel, PromptEncoderOutput
from .prompted_denoiser import PromptedDenoiser
from .reading import Reading, read_config, write_reading
from .transformer_code import CodeTransformerModel
from .transformer_embedding import EmbeddingTransformerModel, EmbeddingTransformerOutput
from .transformer_embedding_bert import BertEmbeddingDenoiser
from .transformer_text import TextTransformerModel, TextTransformerOutput

__all__ = [
    "AutoencoderTextLatentModel",
    "AutoencoderTextLatentOutput",
    "AutoencoderVQTextModel",
    "AutoencoderVQTextOutput",
    "BertEmbeddingDenoiser",
    "BlockCache",
    "ChunkedHeadLoss",
    "CodeTransformerModel",
    "EmbeddingTransformerModel",
    "EmbeddingTransformerOutput",
    "LanguageModelDenoiser",
    "LanguageModelOutput",
    "LatentTransformerModel",
    "LatentTransformerOutput",
    "PromptEncoderModel",
    "PromptEncoderOutput",
    "PromptedDenoiser",
    "Reading",
    "StaleCache",
    "TextClassifierModel",
    "TextClassifierOutput",
    "TextCodes",
    "TextLatents",
    "TextQuantizer",
    "TextTransformerModel",
    "TextTransformerOutput",
    "as_denoiser",
    "ids_never_predicted",
    "is_language_model",
    "is_masked_lm",
    "language_model_length",
    "read_config",
    "write_reading",
]
