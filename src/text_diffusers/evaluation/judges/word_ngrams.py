"""A judge of texts that shares nothing with the models it judges: a word n-gram model with Kneser-Ney smoothing.

Behind a context h, whose counts are c(h), a word w has probability max(c(hw) - D, 0) / c(h), and the counts that the
discount D frees go to the shorter context h', in proportion to p(w | h'). Shorter contexts count in how many different
contexts a word stands, and not how often (https://doi.org/10.1109/ICASSP.1995.479394).

Perplexity under this judge is a score, and not a probability of texts. All words that the judge does not know are one
outcome among the others. To spell such a word costs log 27 a letter, and its end costs nothing. An alphabet of 26
letters has 26^k words of k letters, and (26 / 27)^k summed over all k is 26, not 1: the masses of all words add up to
more than one. So a text is too probable by up to log 26 = 3.26 nats for each word that the judge does not know, which
favours made-up words. `known_words` says how few or many these are.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from text_diffusers.common.validation import require, require_int

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")
START = "\x02"
END = "\x03"
UNKNOWN = "\x1a"
# A word that occurs once may be a slip, and stands for those that the judge does not know.
LEAST_COUNT = 2
# An unknown word is paid for by the letter.
LETTERS = 27

# How often each word stands behind a context
Table = dict[tuple[str, ...], Counter[str]]


class Verdict(NamedTuple):
    """What a judge says of texts.

    Attributes:
        nats_per_word: of all texts, each end and each mark being a word.
        perplexity: exp of it.
        known_words: share of words that the judge knows.
        seen_pairs: share of neighbouring words that it has seen side by side.
    """

    nats_per_word: float
    perplexity: float
    known_words: float
    seen_pairs: float


def words_of(text: str) -> list[str]:
    """Words and marks of a text, in lower case.

    Example:
        >>> from text_diffusers.evaluation.judges.word_ngrams import words_of
        >>> words_of("It's fun, isn't it?")
        ["it's", 'fun', ',', "isn't", 'it', '?']
    """
    return WORD.findall(text.lower())


class WordNgramJudge:
    """A word n-gram model, whose perplexity is a score: unknown words make it no distribution over texts, see above.

    Args:
        texts: to learn from.
        order: n, words of an n-gram.

    Raises:
        ValueError: if there is no word to learn from, or `order` is below 1.

    Example:
        >>> from text_diffusers.evaluation.judges import WordNgramJudge
        >>> judge = WordNgramJudge(["the cat sat", "the dog sat", "the cat ran"], order=2)
        >>> judge.judge(["the cat sat"]).perplexity < judge.judge(["sat cat the"]).perplexity
        True
    """

    unit = "word"

    def __init__(self, texts: Iterable[str], order: int = 3):
        require_int("order", order, 1)
        self.order = order
        rows = [words_of(text) for text in texts]
        counts = Counter(word for row in rows for word in row)
        require(counts.total() > 0, "texts", "texts with a word", rows)
        self.vocabulary = {word for word, count in counts.items() if count >= LEAST_COUNT}

        # 1. How often each word stands behind the longest contexts
        longest: Table = defaultdict(Counter)
        self.pairs: set[tuple[str, str]] = set()
        for row in rows:
            padded = self._padded(row)
            for place in range(order - 1, len(padded)):
                longest[self._context(padded, place)][padded[place]] += 1
            self.pairs.update(pairwise(padded[order - 1 :]))

        # 2. Behind shorter ones, in how many longer ones it stands
        self.tables = [longest]
        for _ in range(order - 1):
            shorter: Table = defaultdict(Counter)
            for context, words in self.tables[0].items():
                shorter[context[1:]].update(words.keys())
            self.tables.insert(0, shorter)

        # 3. What is asked for again and again
        self.totals = []
        self.discounts = []
        for table in self.tables:
            self.totals.append({context: words.total() for context, words in table.items()})
            self.discounts.append(discount(table.values()))

    def _padded(self, words: Sequence[str]) -> list[str]:
        """Words as the judge knows them, behind as many starts as a context has, and an end."""
        known = [word if word in self.vocabulary else UNKNOWN for word in words]
        return [*[START] * (self.order - 1), *known, END]

    def _context(self, padded: Sequence[str], place: int) -> tuple[str, ...]:
        """The n - 1 words before a place."""
        return tuple(padded[place - self.order + 1 : place])

    def probability(self, context: Sequence[str], word: str) -> float:
        """p(word | context), of a context of n - 1 words of the vocabulary, or starts."""
        # All words, the unknown one and the end are alike before anything is known.
        probability = 1 / (len(self.vocabulary) + 2)

        # From no context to the longest that was seen
        for length, table in enumerate(self.tables):
            known = tuple(context[len(context) - length :])
            words = table.get(known)
            if words is None:
                break

            # The share that is taken from all counts is dealt out by the shorter context.
            total = self.totals[length][known]
            taken = self.discounts[length]
            freed = taken * len(words) / total
            probability = max(words[word] - taken, 0) / total + freed * probability
        return probability

    def nats(self, text: str) -> float:
        """The cost of a text and its end: -log p, if the judge knows all of its words."""
        words = words_of(text)
        padded = self._padded(words)

        nats = 0.0
        for place in range(self.order - 1, len(padded)):
            nats -= math.log(self.probability(self._context(padded, place), padded[place]))

        # Else a made-up word would cost as little as any that is merely unknown. The end of its spelling is free.
        num_letters = sum(len(word) for word in words if word not in self.vocabulary)
        return nats + math.log(LETTERS) * num_letters

    def text_nats(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`(nats, counts)` (N,): -log p of each text and its end, in float64, and its words, the end being one."""
        nats = torch.tensor([self.nats(text) for text in texts], dtype=torch.float64)
        counts = torch.tensor([len(words_of(text)) + 1 for text in texts], dtype=torch.int64)
        return nats, counts

    def judge(self, texts: Sequence[str]) -> Verdict:
        """What is said of texts, of which one must have a word."""
        rows = [words_of(text) for text in texts]
        words = [word for row in rows for word in row]
        pairs = [pair for row in rows for pair in pairwise(row)]

        # The end of a text counts as a word.
        nats = sum(map(self.nats, texts)) / (len(words) + len(rows))
        num_known = sum(word in self.vocabulary for word in words)
        num_seen = sum(pair in self.pairs for pair in pairs)
        return Verdict(
            nats_per_word=nats,
            perplexity=math.exp(nats),
            known_words=num_known / len(words),
            seen_pairs=num_seen / max(1, len(pairs)),
        )


def discount(counters: Iterable[Counter[str]]) -> float:
    """n1 / (n1 + 2 n2) of the numbers of n-grams that are counted once and twice."""
    frequencies = Counter(count for counter in counters for count in counter.values())
    once = frequencies[1]
    # Of a handful of texts, in which nothing occurs once or twice, any discount does.
    return once / (once + 2 * frequencies[2]) if once else 0.5
