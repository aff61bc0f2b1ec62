"""Neural networks: denoisers of tokens, word embeddings and codes, an autoencoder, a classifier, a prompt encoder."""

from typing import Any

import lazy_loader

import_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Names of the first edition, of what is now for every language model.
EARLIER_NAMES = {
    "MaskedLMDenoiser": "LanguageModelDenoiser",
    "MaskedLMDenoiserOutput": "LanguageModelOutput",
    "masked_lm_length": "language_model_length",
}


def __getattr__(name: str) -> Any:
    """A public name, also one of an earlier edition."""
    return import_public_name(EARLIER_NAMES.get(name, name))
