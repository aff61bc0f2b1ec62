"""Diffusion models for text in the manner of Hugging Face diffusers.

Example:
    >>> from text_diffusers import TextDiffusionPipeline
    >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")
    >>> len(pipe("i think", num_inference_steps=16).texts)
    1
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

# A class is imported when it is first asked for; `__init__.pyi` says where it is, to this line and to editors.
import_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public class, also by the name that it had in an earlier edition."""
    try:
        return import_public_name(name)
    except AttributeError:
        if not name.endswith("Pipeline"):
            raise
        from text_diffusers.pipelines.loading import RENAMED_PIPELINES

        if name not in RENAMED_PIPELINES:
            raise
        return import_public_name(RENAMED_PIPELINES[name])
