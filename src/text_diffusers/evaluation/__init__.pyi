from .autoregression import estimate_autoregressive_loss
from .embedding import (
    RoundingAccuracy,
    embedding_health,
    estimate_embedding_bound,
    rounding_accuracy,
)
from .estimates import BoundEstimate
from .latent_bounds import HeldOutLatents, LatentBound, estimate_latent_bound, hold_out_latents
from .latents import (
    LatentReconstruction,
    evaluate_latents,
    interpolate_latents,
    interpolated_texts,
    latent_statistics,
)
from .likelihood import (
    Likelihood,
    estimate_bound,
    evaluate_likelihood,
    length_distance,
    unigram_entropy,
)
from .plots import plot_denoising, plot_rounding
from .row_bounds import RowBounds, full_bound, monte_carlo_bound
from .text_metrics import (
    GenerativePerplexity,
    distinct_n,
    generative_perplexity,
    load_judge,
    minimum_bayes_risk,
    self_bleu,
    token_entropy,
)
from .two_level import TwoLevelBound, estimate_two_level_bound
from .written_texts import length_nats

__all__ = [
    "BoundEstimate",
    "GenerativePerplexity",
    "HeldOutLatents",
    "LatentBound",
    "LatentReconstruction",
    "Likelihood",
    "RoundingAccuracy",
    "RowBounds",
    "TwoLevelBound",
    "distinct_n",
    "embedding_health",
    "estimate_autoregressive_loss",
    "estimate_bound",
    "estimate_embedding_bound",
    "estimate_latent_bound",
    "estimate_two_level_bound",
    "evaluate_latents",
    "evaluate_likelihood",
    "full_bound",
    "generative_perplexity",
    "hold_out_latents",
    "interpolate_latents",
    "interpolated_texts",
    "latent_statistics",
    "length_distance",
    "length_nats",
    "load_judge",
    "minimum_bayes_risk",
    "monte_carlo_bound",
    "plot_denoising",
    "plot_rounding",
    "rounding_accuracy",
    "self_bleu",
    "token_entropy",
    "unigram_entropy",
]
