"""Judges of control that have nothing to do with what guides: linear models of scikit-learn, and counting.

None of them reads the tokens of the model, but the judge of length, who counts them. A pattern of parts of speech is
compared with the tags of the words that the text splits into by a rule of its own.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier

LENGTH_TOLERANCE = 2  # tokens
NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95% interval
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:[.,]\d+)*|\S")
HASHED_FEATURES = 2**17


@dataclass(frozen=True)
class Wish:
    """What a text is asked to be; what is left out does not matter.

    Attributes:
        label: of the whole text.
        words: that it holds.
        length: in tokens, within `LENGTH_TOLERANCE`.
        pattern: parts of speech of its words.
    """

    label: int | None = None
    words: tuple[str, ...] = ()
    length: int | None = None
    pattern: tuple[str, ...] = ()


class LabelJudge:
    """TF-IDF of words and pairs of words, and logistic regression."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int]):
        self.vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        self.regression = LogisticRegression(C=2.0, max_iter=300)
        self.regression.fit(self.vectorizer.fit_transform(texts), labels)

    def labels(self, texts: Sequence[str]) -> list[int]:
        return [int(label) for label in self.regression.predict(self.vectorizer.transform(texts))]

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """Share of texts with their own label: what a judge makes of texts that are all as asked for."""
        return sum(own == label for own, label in zip(self.labels(texts), labels, strict=True)) / len(texts)


class TagJudge:
    """A tagger of words, each by itself: the word, its beginning, end and shape, and its neighbours."""

    def __init__(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], seed: int = 0):
        self.hasher = FeatureHasher(HASHED_FEATURES, input_type="string", alternate_sign=False)
        self.regression = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=5, tol=None, random_state=seed)
        features = (found for words in sentences for found in word_features(words))
        self.regression.fit(self.hasher.transform(features), [tag for row in tags for tag in row])

    def tags(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """One tag a word."""
        features = [found for words in sentences for found in word_features(words)]
        tags = iter(self.regression.predict(self.hasher.transform(features)).tolist() if features else [])
        return [[next(tags) for _ in words] for words in sentences]


@dataclass
class Judges:
    """Those that are there; a judge is needed for what is wished only."""

    label: LabelJudge | None = None
    tag: TagJudge | None = None


def word_features(words: Sequence[str]) -> Iterator[list[str]]:
    """The features of each word of a sentence."""
    lower = ["<s>", *(word.lower() for word in words), "</s>"]
    for place, word in enumerate(words, start=1):
        own, before, after = lower[place], lower[place - 1], lower[place + 1]
        yield [
            f"word={own}",
            f"shape={shape(word)}",
            f"first={place == 1},{word[:1].isupper()}",
            *(f"end={own[-size:]}" for size in (1, 2, 3, 4)),
            f"beginning={own[:3]}",
            f"before={before}",
            f"after={after}",
            f"end before={before[-3:]}",
            f"end after={after[-3:]}",
            f"before and own={before},{own}",
            f"ends={before[-2:]},{own[-3:]}",
        ]


def shape(word: str) -> str:
    """Letters as A and a, digits as 0, runs of one kind once: "Mid-1990s" is "Aa-0a"."""
    kinds = re.sub(r"\d", "0", re.sub(r"[^\W\d_A-Z]", "a", re.sub("[A-Z]", "A", word)))
    return re.sub(r"(.)\1+", r"\1", kinds)


def split_words(text: str) -> list[str]:
    """Words, numbers and single marks: "It's 1,000 well-made films." has five and the mark."""
    return WORD.findall(text)


def holds_word(text: str, word: str) -> bool:
    """Whether a word is in the text as it is written, and not as a part of a longer one."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def met(wishes: Sequence[Wish], texts: Sequence[str], lengths: Sequence[int], judges: Judges) -> list[list[bool]]:
    """What each text has of the parts of its wish: its label, each word, the length, and each tag of the pattern.

    A text with more or fewer words than its pattern misses a part for each of them.

    Args:
        lengths: tokens of the texts.

    Raises:
        ValueError: if the judge of something that is wished for is missing.
    """
    if any(wish.label is not None for wish in wishes) and judges.label is None:
        raise ValueError("`judges` must have one of labels.")
    if any(wish.pattern for wish in wishes) and judges.tag is None:
        raise ValueError("`judges` must have one of tags.")
    labels = judges.label.labels(texts) if judges.label else [None] * len(texts)
    tags = judges.tag.tags([split_words(text) for text in texts]) if judges.tag else [[] for _ in texts]
    found = []
    for wish, text, length, label, row in zip(wishes, texts, lengths, labels, tags, strict=True):
        parts = [] if wish.label is None else [label == wish.label]
        parts += [holds_word(text, word) for word in wish.words]
        parts += [] if wish.length is None else [abs(length - wish.length) <= LENGTH_TOLERANCE]
        if wish.pattern:
            parts += [tag == wanted for tag, wanted in zip(row, wish.pattern, strict=False)]
            parts += [False] * abs(len(row) - len(wish.pattern))
        found.append(parts)
    return found


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% interval of a probability: where the normal approximation of its own variance does not refute it."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"`successes` must be between 0 and `trials`={trials}, which is at least 1, got {successes}.")
    share, square = successes / trials, NORMAL_QUANTILE**2
    center = (share + square / (2 * trials)) / (1 + square / trials)
    spread = math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    half = NORMAL_QUANTILE / (1 + square / trials) * spread
    return max(0.0, center - half), min(1.0, center + half)
