"""All distances between written and real texts, beside those between real ones.

Shapes: N written texts, M real ones, E width of an embedding.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from text_diffusers.evaluation.distances.divergence_curve import divergence_curve_area
from text_diffusers.evaluation.distances.figures import NUM_RESAMPLES, Figure
from text_diffusers.evaluation.distances.frechet import frechet_figure
from text_diffusers.evaluation.distances.kernel import maximum_mean_discrepancy
from text_diffusers.evaluation.distances.manifolds import manifold_figures

# Fewer texts have no neighbours to speak of.
FEWEST_TEXTS = 10


@dataclass
class TextDistances:
    """Distances of two sets of texts, each with its standard error over other texts of the same sources.

    Attributes:
        frechet: Fréchet distance; see `frechet_distance`.
        mmd: squared maximum mean discrepancy under the Gaussian kernel.
        mmd_p_value: of the hypothesis that both sets are of one law.
        precision, recall, density, coverage: see `manifold_figures`.
        divergence_curve: area under the divergence curve, 1 for texts that are alike.
        num_first, num_second: texts of the two sets.
        is_frechet_singular: whether the texts are too few for the Fréchet distance.
    """

    frechet: Figure
    mmd: Figure
    mmd_p_value: float
    precision: Figure
    recall: Figure
    density: Figure
    coverage: Figure
    divergence_curve: Figure
    num_first: int
    num_second: int
    is_frechet_singular: bool

    def record(self) -> dict[str, Any]:
        """For JSON."""
        record = {}
        for name, value in vars(self).items():
            record[name] = value.record() if isinstance(value, Figure) else value
        return record


def text_distances(
    written: Tensor, real: Tensor, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> TextDistances:
    """All distances between written and real texts, by their embeddings.

    Args:
        written, real: (N, E) and (M, E), of ten texts each at least.
        num_resamples: of the bootstrap; 0 leaves the errors unknown.
        seed: of all draws.

    Raises:
        ValueError: if they are no tables of finite numbers of one width, or of too few texts.
        ModuleNotFoundError: if scikit-learn is missing.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.distances import text_distances
        >>> texts = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> distances = text_distances(texts[:30], texts[30:], num_resamples=10)
        >>> distances.mmd_p_value > 0.05
        True
    """
    fewest = min(len(written), len(real))
    if fewest < FEWEST_TEXTS:
        raise ValueError(
            f"`written` and `real` must have at least {FEWEST_TEXTS} texts each, got {len(written)} and {len(real)}."
        )
    options: Any = {"num_resamples": num_resamples, "seed": seed}
    discrepancy = maximum_mean_discrepancy(written, real, **options)
    manifolds = manifold_figures(written, real, **options)
    return TextDistances(
        frechet=frechet_figure(written, real, **options),
        mmd=discrepancy.figure,
        mmd_p_value=discrepancy.p_value,
        precision=manifolds.precision,
        recall=manifolds.recall,
        density=manifolds.density,
        coverage=manifolds.coverage,
        divergence_curve=divergence_curve_area(written, real, **options),
        num_first=len(written),
        num_second=len(real),
        is_frechet_singular=fewest <= written.shape[1],
    )
