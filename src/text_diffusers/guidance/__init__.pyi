from .classifiers import (
    ClassifierGuidance,
    CleanClassifierGuidance,
    LabelControl,
    StyleGuidance,
    style_vector,
)
from .controls import Control, LengthControl, WordsControl
from .patterns import PatternControl, TokenTags, tag_tokens

__all__ = [
    "ClassifierGuidance",
    "CleanClassifierGuidance",
    "Control",
    "LabelControl",
    "LengthControl",
    "PatternControl",
    "StyleGuidance",
    "TokenTags",
    "WordsControl",
    "style_vector",
    "tag_tokens",
]
