"""Baselines that count: what a model of each task should be better than."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

Row = dict[str, Any]


class MostFrequent:
    """The most frequent value that was seen with a key; of the first of several keys that was seen.

    Example:
        >>> tags = MostFrequent()
        >>> for word, tag in [("run", "VERB"), ("run", "VERB"), ("run", "NOUN"), ("cat", "NOUN")]:
        ...     tags.add([word, None], tag)
        >>> tags.best(["run", None]), tags.best(["dog", None])
        ('VERB', 'NOUN')
    """

    def __init__(self):
        self.counts: dict[Hashable, Counter] = defaultdict(Counter)

    def add(self, keys: Iterable[Hashable], value: str):
        """Count a value with each of its keys."""
        for key in keys:
            self.counts[key][value] += 1

    def best(self, keys: Iterable[Hashable]) -> str:
        """The value seen most often with the first key that is known; of equals the first in the alphabet.

        Raises:
            KeyError: if none of the keys was seen.
        """
        for key in keys:
            if key in self.counts:
                counts = self.counts[key]
                return min(counts, key=lambda value: (-counts[value], value))
        raise KeyError(f"none of {list(keys)} was seen")


def word_keys(word: str) -> list[Hashable]:
    """A word, its form in lower case, its last three letters, and nothing."""
    return [("word", word), ("lower", word.lower()), ("ending", word[-3:].lower()), None]


def frequent_tags(train: Iterable[Row]) -> Callable[[Sequence[str]], list[str]]:
    """Tags each word as it is tagged most often; a word that was not seen as words that end alike."""
    tags = MostFrequent()
    for row in train:
        for word, tag in zip(row["words"], row["tags"], strict=True):
            tags.add(word_keys(word), tag)
    return lambda words: [tags.best(word_keys(word)) for word in words]


def context_keys(gapped: str, gap: str) -> list[Hashable]:
    """What surrounds a gap, from the most to the least: both neighbours, the word before, the word after, nothing.

    Example:
        >>> context_keys("She thought [MASK] him.", "[MASK]")
        [('both', 'thought', 'him.'), ('before', 'thought'), ('after', 'him.'), None]
    """
    before, _, after = gapped.lower().partition(gap.lower())
    left = before.split()[-1:]
    right = after.split()[:1]
    return [("both", *left, *right), ("before", *left), ("after", *right), None]


def counted_prepositions(train: Iterable[Row], gap: str) -> MostFrequent:
    """The most frequent answers in each context, which is `context_keys`.

    Args:
        train: rows with `gapped` and `answer`.
        gap: what stands for a gap.
    """
    answers = MostFrequent()
    for row in train:
        answers.add(context_keys(row["gapped"], gap), row["answer"])
    return answers


def kept_share(train: Iterable[Row]) -> float:
    """The share of words that compression keeps."""
    num_kept = 0
    num_words = 0
    for row in train:
        num_kept += len(row["kept"])
        num_words += len(row["words"])
    return num_kept / num_words


def first_places(words: Sequence[str], share: float) -> list[int]:
    """Places of the first words of a sentence, so many as compression keeps on average, and of its last mark."""
    last = len(words) - 1
    count = max(1, round(share * len(words)) - 1)
    return [*range(min(count, last)), last]


def rarely_dropped(train: Iterable[Row]) -> Callable[[Sequence[str]], list[int]]:
    """Keeps the words that compression mostly keeps, each by itself; a word that was not seen is kept."""
    answers = MostFrequent()
    for row in train:
        kept = set(row["kept"])
        for place, word in enumerate(row["words"]):
            answers.add([word.lower()], "keep" if place in kept else "drop")
        answers.add([None], "keep")

    def places(words: Sequence[str]) -> list[int]:
        return [
            place
            for place, word in enumerate(words)
            if answers.best([word.lower(), None]) == "keep"
        ]

    return places


def substituted_words(train: Iterable[Row]) -> Callable[[str], str]:
    """Replaces each word of a text by the one that most often stands in its place; an unknown word stays.

    In the place of a word stands the same word, or one of equally many words between two words that both texts have.

    Args:
        train: rows with `source` and `text`.

    Example:
        >>> replace = substituted_words([{"source": "thou shalt not go", "text": "you shall not go"}])
        >>> replace("thou shalt sing")
        'you shall sing'
    """
    words = MostFrequent()
    for row in train:
        source = row["source"].split()
        text = row["text"].split()
        for first, last, other, end in equally_long_spans(source, text):
            for word, replacement in zip(source[first:last], text[other:end], strict=True):
                words.add([word], replacement)

    def replace(source: str) -> str:
        known = words.counts
        return " ".join(words.best([word]) if word in known else word for word in source.split())

    return replace


def equally_long_spans(
    source: Sequence[str], text: Sequence[str]
) -> Iterable[tuple[int, int, int, int]]:
    """Spans of two lists of words that stand for each other: first and end in the one, first and end in the other."""
    for _, first, last, other, end in SequenceMatcher(None, source, text).get_opcodes():
        if last - first == end - other:
            yield first, last, other, end
