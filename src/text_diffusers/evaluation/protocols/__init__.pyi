from .wrapped_rows import WrappedRows, wrap_texts, wrapped_likelihood
from .zero_shot import ZERO_SHOT_SETS, ZeroShotSet, load_zero_shot_texts

__all__ = [
    "ZERO_SHOT_SETS",
    "WrappedRows",
    "ZeroShotSet",
    "load_zero_shot_texts",
    "wrap_texts",
    "wrapped_likelihood",
]
