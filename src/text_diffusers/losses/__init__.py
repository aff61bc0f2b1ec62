"""Losses and variational bounds: tensors in, one value a token out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
