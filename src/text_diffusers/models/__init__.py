"""Neural networks: denoisers of tokens, word embeddings and codes, an autoencoder, a classifier, a prompt encoder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
