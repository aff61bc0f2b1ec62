"""Earlier name of `text_diffusers.guidance.classifiers`, kept for programs that import it."""

from text_diffusers.guidance.classifiers import (
    ClassifierGuidance,
    CleanClassifierGuidance,
    LabelControl,
    StyleGuidance,
    style_vector,
)

__all__ = [
    "ClassifierGuidance",
    "CleanClassifierGuidance",
    "LabelControl",
    "StyleGuidance",
    "style_vector",
]
