from .classifiers import (
    ClassifierGuidance,
    CleanClassifierGuidance,
    LabelControl,
    StyleGuidance,
    style_vector,
)
from .controls import Control, LengthControl, WordsControl
from .patterns import PatternControl, TokenTags, tag_tokens
from .structure.controls import ChoiceControl, JsonControl, RegexControl

__all__ = [
    "ChoiceControl",
    "ClassifierGuidance",
    "CleanClassifierGuidance",
    "Control",
    "JsonControl",
    "LabelControl",
    "LengthControl",
    "PatternControl",
    "RegexControl",
    "StyleGuidance",
    "TokenTags",
    "WordsControl",
    "style_vector",
    "tag_tokens",
]
