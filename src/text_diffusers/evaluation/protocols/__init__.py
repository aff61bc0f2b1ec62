"""How the field compares models: rows of joined texts, and sets of texts that no model was trained on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
