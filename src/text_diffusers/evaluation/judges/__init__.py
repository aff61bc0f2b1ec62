"""Judges of texts: language models, and a word n-gram that learns from a file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
