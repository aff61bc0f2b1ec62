"""Earlier name of `text_diffusers.evaluation.text_metrics`, kept for programs that import it."""

from text_diffusers.evaluation.text_metrics import (
    GenerativePerplexity,
    distinct_n,
    generative_perplexity,
    load_judge,
    minimum_bayes_risk,
    self_bleu,
    token_entropy,
)

__all__ = [
    "GenerativePerplexity",
    "distinct_n",
    "generative_perplexity",
    "load_judge",
    "minimum_bayes_risk",
    "self_bleu",
    "token_entropy",
]
