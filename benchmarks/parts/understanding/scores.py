"""Scores of filled gaps and of rewritten texts, each with the standard error of its mean.

Example:
    >>> share_with_error([1, 3], [2, 4])["value"]
    0.6666666666666666
    >>> rouge_l("the cat sat", "the old cat sat")
    0.8571428571428571
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics import CHRF

WORD = re.compile(r"\w+|[^\w\s]")


def share_with_error(right: Sequence[int], counts: Sequence[int]) -> dict[str, float]:
    """The share of tokens that are right, and its standard error over sentences.

    Tokens of one sentence are not independent of each other, so the error is that of a ratio of two sums over
    sentences (Cochran, Sampling Techniques, chapter 6).

    Args:
        right, counts: of each sentence, how many tokens are right and how many there are.

    Raises:
        ValueError: if there is no token.
    """
    total = sum(counts)
    if total == 0:
        raise ValueError(f"`counts` must hold a token, got {list(counts)[:5]}.")
    share = sum(right) / total

    num_sentences = len(counts)
    if num_sentences < 2:
        return {"value": share, "error": 0.0}
    residuals = [hit - share * count for hit, count in zip(right, counts, strict=True)]
    variance = sum(residual**2 for residual in residuals) * num_sentences / (num_sentences - 1)
    return {"value": share, "error": math.sqrt(variance) / total}


def mean_with_error(values: Sequence[float]) -> dict[str, float]:
    """The mean of a score over texts, and its standard error.

    Example:
        >>> mean_with_error([0.0, 1.0])
        {'value': 0.5, 'error': 0.5}
    """
    error = 0.0
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
    return {"value": statistics.fmean(values), "error": error}


def split_words(text: str) -> list[str]:
    """Words and marks of a text in lower case.

    Example:
        >>> split_words("Don't go!")
        ['don', "'", 't', 'go', '!']
    """
    return WORD.findall(text.lower())


def harmonic_mean(num_shared: int, num_written: int, num_wanted: int) -> float:
    """F1 of precision, `num_shared / num_written`, and recall, `num_shared / num_wanted`; 0 if nothing is shared."""
    if num_shared == 0:
        return 0.0
    return 2 * num_shared / (num_written + num_wanted)


def token_f1(text: str, reference: str) -> float:
    """F1 of the words of two texts, in whatever order they stand."""
    written = split_words(text)
    wanted = split_words(reference)
    num_shared = (Counter(written) & Counter(wanted)).total()
    return harmonic_mean(num_shared, len(written), len(wanted))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of the words of two texts (ROUGE-L)."""
    written = split_words(text)
    wanted = split_words(reference)

    # Row by row of the table of the lengths for all beginnings of both
    lengths = [0] * (len(wanted) + 1)
    for word in written:
        before = lengths
        lengths = [0]
        for place, other in enumerate(wanted):
            same = before[place] + 1
            longest = max(before[place + 1], lengths[place])
            lengths.append(same if word == other else longest)
    return harmonic_mean(lengths[-1], len(written), len(wanted))


def exact_match(text: str, reference: str) -> float:
    """1 where both texts have the same words and marks, whatever their case; else 0."""
    return float(split_words(text) == split_words(reference))


def chrf(text: str, reference: str) -> float:
    """chrF2 of a text, 0 to 100, by sacrebleu (https://aclanthology.org/W15-3049)."""
    return CHRF().sentence_score(text, [reference]).score


def share_of_new_words(text: str, reference: str, source: str) -> tuple[int, int]:
    """`(found, wanted)`: how many words of the reference the source lacks, and how many of these the text has.

    Each word counts once. A copy of the source has none of them.

    Example:
        >>> share_of_new_words("You loved him.", "You loved her.", source="Thou lovedst her.")
        (2, 2)
    """
    wanted = set(split_words(reference)) - set(split_words(source))
    found = wanted & set(split_words(text))
    return len(found), len(wanted)
