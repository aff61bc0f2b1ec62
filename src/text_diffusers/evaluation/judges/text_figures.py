"""Figures of a set of texts by themselves, each with its standard error over other texts from the same source.

A model that repeats itself has a low generative perplexity: it is read beside the entropy, and beside the same figures
of as many real texts.

Shapes: N texts.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.validation import require_int
from text_diffusers.evaluation.distances.figures import Figure, bootstrap_error, mean_figure
from text_diffusers.evaluation.likelihood import length_distance
from text_diffusers.evaluation.text_metrics import (
    SelfBleu,
    distinct_n,
    perplexity_of,
    token_entropy,
)

# n-grams whose repetition is looked at, as in https://arxiv.org/abs/1908.04319
REPEATED_WORDS = 4
# Groups of texts that are left out in turn
NUM_GROUPS = 20


@dataclass
class TextFigures:
    """Figures of N texts. Words are what stands between white space, tokens are those of a tokenizer.

    Attributes:
        num_texts: N.
        num_empty: texts without a word; they count in the entropy, the repetition and the lengths as 0.
        length: mean number of tokens.
        token_entropy: of the frequencies of tokens within a text, in nats, see `token_entropy`.
        distinct_1, distinct_2, distinct_3: different n-grams of words over all n-grams, see `distinct_n`; `nan` if no
            text has so many words.
        self_bleu: of each of the first `num_bleu_texts` with all others of them as references, see `self_bleu`; `nan`
            of a single text.
        repetition: share of a text's n-grams of four words that stand earlier in the same text, see `repetition`.
        generative_perplexity: exp of `nats_per_unit`; `None` without a judge, as what follows.
        nats_per_unit: -log p under the judge, per its word or token.
        unit: of the judge.
        num_judged_units: units that were judged.
        num_bleu_texts: texts that `self_bleu` compares.

    Example:
        >>> from text_diffusers.evaluation.judges import text_figures
        >>> texts = ["the cat sat", "the cat ran"]
        >>> figures = text_figures(texts, [text.split() for text in texts])
        >>> figures.distinct_2.value, figures.length.value
        (0.75, 3.0)
    """

    num_texts: int
    num_empty: int
    length: Figure
    token_entropy: Figure
    distinct_1: Figure
    distinct_2: Figure
    distinct_3: Figure
    self_bleu: Figure
    repetition: Figure
    generative_perplexity: Figure | None = None
    nats_per_unit: Figure | None = None
    unit: str | None = None
    num_judged_units: int | None = None
    num_bleu_texts: int | None = None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        record = {}
        for name, value in vars(self).items():
            record[name] = value.record() if isinstance(value, Figure) else value
        return record


def text_figures(
    texts: Sequence[str],
    token_lists: Sequence[Sequence[Hashable]],
    judged: tuple[Tensor, Tensor] | None = None,
    unit: str | None = None,
    max_bleu_texts: int = 100,
) -> TextFigures:
    """All figures of texts. Distinct-n and self-BLEU depend on the number of texts: compare figures of as many.

    Args:
        texts: N strings.
        token_lists: the tokens of each.
        judged: `(nats, counts)` (N,) of them, from the `text_nats` of a judge.
        unit: of the judge.
        max_bleu_texts: the first so many are compared with each other.

    Raises:
        ValueError: if there is no text.
    """
    if not len(texts):
        raise ValueError("`texts` must hold at least one text, got none.")
    entropies = [token_entropy([tokens]) for tokens in token_lists]
    compared = texts[:max_bleu_texts]
    figures = TextFigures(
        num_texts=len(texts),
        num_empty=sum(not text.split() for text in texts),
        length=mean_figure([len(tokens) for tokens in token_lists]),
        token_entropy=mean_figure(entropies),
        distinct_1=distinct_figure(texts, 1),
        distinct_2=distinct_figure(texts, 2),
        distinct_3=distinct_figure(texts, 3),
        self_bleu=self_bleu_figure(compared),
        repetition=mean_figure([repetition(text) for text in texts]),
        num_bleu_texts=len(compared),
    )
    if judged is None or not judged[1].any():
        return figures

    perplexity = perplexity_of(*judged)
    figures.generative_perplexity = Figure(perplexity.perplexity, perplexity.perplexity_error)
    figures.nats_per_unit = Figure(perplexity.nats_per_token, perplexity.standard_error)
    figures.unit = unit
    figures.num_judged_units = perplexity.num_tokens
    return figures


def repetition(text: str | Sequence[Hashable], n: int = REPEATED_WORDS) -> float:
    """Share of the n-grams of a text that stand earlier in the same text, 0 to 1; 0 of one without n-grams.

    Args:
        text: a string, which is split at white space, or a list of tokens.
        n: 1 or more.

    Example:
        >>> from text_diffusers.evaluation.judges import repetition
        >>> repetition("so it goes and so it goes", n=2)  # "so it" and "it goes" come again, of 6 pairs
        0.3333333333333333
    """
    require_int("n", n, 1)
    tokens = text.split() if isinstance(text, str) else list(text)
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    if not grams:
        return 0.0
    return (len(grams) - len(set(grams))) / len(grams)


def distinct_figure(texts: Sequence[str], n: int) -> Figure:
    """`distinct_n` with its standard error by the jackknife: each of twenty groups of texts is left out in turn.

    Halves of the texts would repeat themselves less than all of them do.
    """
    if not any(len(text.split()) >= n for text in texts):
        return Figure(math.nan)
    value = distinct_n(texts, n)

    # Every so many texts are a group: neighbours may be alike.
    num_groups = min(NUM_GROUPS, len(texts))
    values = []
    for group in range(num_groups):
        kept = [text for place, text in enumerate(texts) if place % num_groups != group]
        if any(len(text.split()) >= n for text in kept):
            values.append(distinct_n(kept, n))
    if len(values) < 2:
        return Figure(value)
    spread = torch.tensor(values, dtype=torch.float64).var(correction=0)
    return Figure(value, float(((len(values) - 1) * spread).sqrt()))


def self_bleu_figure(texts: Sequence[str]) -> Figure:
    """`self_bleu` of all texts with its standard error by half-sampling.

    The scores are no independent draws: two copies both score high. Where texts repeat, their spread by itself is an
    error that is up to a third too small, and the jackknife of `distinct_figure` one that is up to 40 percent too
    large.
    """
    if len(texts) < 2:
        return Figure(math.nan)
    bleu = SelfBleu(texts)

    def mean_score(counts: Tensor) -> float:
        scores = bleu.scores(counts.nonzero().flatten().tolist())
        return math.fsum(scores) / len(scores)

    value = mean_score(torch.ones(len(texts)))
    return Figure(value, bootstrap_error(mean_score, (len(texts),)))


def length_figure(first: Sequence[int], second: Sequence[int], seed: int = 0) -> Figure:
    """`length_distance` of two samples of lengths, with its standard error by bootstrap over the texts.

    Example:
        >>> from text_diffusers.evaluation.judges.text_figures import length_figure
        >>> length_figure([3, 5], [4, 8]).value
        2.0
    """
    first_lengths = torch.tensor(list(first))
    second_lengths = torch.tensor(list(second))

    def distance(first_counts: Tensor, second_counts: Tensor) -> float:
        drawn = first_lengths.repeat_interleave(first_counts.long())
        other = second_lengths.repeat_interleave(second_counts.long())
        return length_distance(drawn.tolist(), other.tolist())

    error = bootstrap_error(distance, (len(first_lengths), len(second_lengths)), seed=seed)
    return Figure(length_distance(first, second), error)
