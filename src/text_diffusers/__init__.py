"""Diffusion models for text in the manner of Hugging Face diffusers.

Example:
    >>> from text_diffusers import TextDiffusionPipeline
    >>> pipe = TextDiffusionPipeline.from_pretrained("chat-and-novels")
    >>> len(pipe("i think", num_inference_steps=16).texts)
    1
"""

import lazy_loader

__version__ = "0.1.0"

# A class is imported when it is first asked for; `__init__.pyi` says where it is, to this line and to editors.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
