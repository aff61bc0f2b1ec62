from .classifiers import (
    ClassifierGuidance,
    CleanClassifierGuidance,
    LabelControl,
    StyleGuidance,
    mean_features,
    style_vector,
)
from .controls import Control, LengthControl, WordsControl, first_possible, forbid
from .patterns import PatternControl, TokenTags, are_words, count, count_tokens, may_be_words, tag_probs, tag_tokens

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
    "are_words",
    "count",
    "count_tokens",
    "first_possible",
    "forbid",
    "may_be_words",
    "mean_features",
    "style_vector",
    "tag_probs",
    "tag_tokens",
]
