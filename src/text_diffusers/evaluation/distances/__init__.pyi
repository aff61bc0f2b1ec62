from .divergence_curve import divergence_curve, divergence_curve_area
from .figures import Figure
from .frechet import frechet_distance, frechet_of_moments
from .kernel import maximum_mean_discrepancy
from .manifolds import ManifoldFigures, manifold_figures
from .sentence_embeddings import load_sentence_encoder, sentence_embeddings
from .text_distances import TextDistances, text_distances

__all__ = [
    "Figure",
    "ManifoldFigures",
    "TextDistances",
    "divergence_curve",
    "divergence_curve_area",
    "frechet_distance",
    "frechet_of_moments",
    "load_sentence_encoder",
    "manifold_figures",
    "maximum_mean_discrepancy",
    "sentence_embeddings",
    "text_distances",
]
