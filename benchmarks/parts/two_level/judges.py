"""Judges of long texts: whether a text keeps to one kind, and whether its neighbouring words belong together.

The judge of kinds learns from texts that no model has seen. A window is a part of a text of a given number of words.

Shapes: W windows of a text, K classes.
"""

import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain, pairwise

import numpy as np

from parts.common.judges import WordJudge
from parts.common.recipes import CORPORA
from text_diffusers.data.sources import load_documents

Document = tuple[str, str]  # a text and its class

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:[.,]\d+)*")
CHECKED_SHARE = 5  # one document in so many shows the accuracy of the judge of the others


# --- documents and their kinds


def classed_documents(dataset: str, judge_dataset: str | None) -> list[Document]:
    """`(text, class)` of the judge's own documents: a novelist, or speeches of an era; or the labels of a file.

    Raises:
        ValueError: if a file is to be judged by nothing, or all documents are of one class.
    """
    # 1. Labelled texts of a file, or a part of the corpus that recipes never read
    if judge_dataset is not None:
        rows = load_documents(judge_dataset, label_column="label")
        documents = [(row["text"], str(row["label"])) for row in rows]
    else:
        corpus = CORPORA.get(dataset)
        has_parts = corpus is not None and "part" in corpus.keywords
        rows = corpus(part="judge") if has_parts else None
        if rows is None or "year" not in rows.column_names:
            raise ValueError(
                f"`judge_dataset` must name a file of labelled texts for `dataset`={dataset!r}."
            )
        documents = []
        for row in rows:
            kind = kind_of(row["author"], row["year"])
            documents.append((row["text"], kind))

    # 2. A judge of one kind would find every text consistent.
    kinds = {kind for _, kind in documents}
    if len(kinds) < 2:
        source = judge_dataset or dataset
        raise ValueError(
            f"`judge_dataset` must have texts of several kinds, got {sorted(kinds)} in {source!r}."
        )
    return documents


def kind_of(author: str, year: int) -> str:
    """The class of a text: its novelist, or the era of a speech."""
    if author == "Jane Austen":
        return author

    # Language changes slowly, so the eras are long.
    if year < 1861:
        return "speeches before 1861"
    return "speeches 1861 to 1931" if year < 1932 else "speeches from 1932"


def windows(text: str, window_words: int) -> list[str]:
    """A text in equal parts of about so many words, at white space.

    Example:
        >>> windows("one two three four five", 2)
        ['one two', 'three four five']
    """
    words = text.split()
    count = max(1, round(len(words) / window_words))

    # Equal parts, as the kind of a short rest is guessed badly.
    edges = [round(part * len(words) / count) for part in range(count + 1)]

    parts = []
    for start, end in pairwise(edges):
        parts.append(" ".join(words[start:end]))
    return parts


class KindJudge:
    """A judge of the kind of each window of a text, by its words.

    Args:
        documents: `(text, class)`.
        window_words: words of a window.

    Attributes:
        accuracy: share of right classes over windows of every fifth document, by a judge of the others.
        classes: K names, in the order of probabilities.
    """

    def __init__(self, documents: Sequence[Document], window_words: int):
        self.window_words = window_words

        # The accuracy is that of a judge that has not seen the checked documents.
        checked = documents[::CHECKED_SHARE]
        others = [document for number, document in enumerate(documents) if number % CHECKED_SHARE]
        checked_texts, checked_kinds = self._windows_of(checked)
        self.accuracy = self._judge_of(others).accuracy(checked_texts, checked_kinds)

        # The judge that is used has learned from all of them.
        self.judge = self._judge_of(documents)
        self.classes = self.judge.classes

    def _judge_of(self, documents: Iterable[Document]) -> WordJudge:
        """A judge that learns from windows, as it will be asked about windows."""
        texts, kinds = self._windows_of(documents)
        # A word of fewer windows is a name rather than a sign of its kind.
        return WordJudge(texts, kinds, inverse_penalty=10.0, min_df=min(3, len(texts)))

    def _windows_of(self, documents: Iterable[Document]) -> tuple[list[str], list[str]]:
        """The windows of all documents, and the kind of each, which is its document's."""
        texts = []
        kinds = []
        for text, kind in documents:
            parts = windows(text, self.window_words)
            texts += parts
            kinds += [kind] * len(parts)
        return texts, kinds

    def probabilities(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Probabilities of the kinds: of each text (W, K), a row a window."""
        windows_of_texts = [windows(text, self.window_words) for text in texts]

        # One call for the windows of all texts
        all_windows = list(chain.from_iterable(windows_of_texts))
        probabilities = self.judge.probabilities(all_windows)
        return split_like(windows_of_texts, probabilities)


# --- figures of the probabilities of windows


def split_like(parts: Sequence[Sized], rows: np.ndarray) -> list[np.ndarray]:
    """Cut the rows of all texts into those of each text, as many as its part has."""
    ends = np.cumsum([len(part) for part in parts])
    return np.split(rows, ends[:-1])


def mean_over_pairs(rows: np.ndarray) -> float:
    """The mean of sum_c p_i(c) p_j(c) over all pairs of different rows of (N, K)."""
    # The square of the sum holds each pair twice, and each row with itself.
    total = rows.sum(axis=0)  # (K,)
    twice_all_pairs = total @ total - (rows * rows).sum()
    return float(twice_all_pairs / (len(rows) * (len(rows) - 1)))


def consistency(probabilities: Sequence[np.ndarray]) -> float | None:
    """Mean over texts of the mean over pairs of windows i < j of sum_c p_i(c) p_j(c).

    It is the probability that two windows of a text are given one class, if the judge draws a class for each. Texts of
    one window are left out; None if there is no other.

    Example:
        >>> sure = np.array([[1.0, 0.0], [1.0, 0.0]])
        >>> consistency([sure, np.array([[0.5, 0.5], [0.5, 0.5]])])
        0.75
    """
    values = [mean_over_pairs(rows) for rows in probabilities if len(rows) > 1]
    return float(np.mean(values)) if values else None


def chance(probabilities: Sequence[np.ndarray]) -> float | None:
    """The consistency of windows of two texts: mean of sum_c p(c) q(c) over pairs of different texts; None of one."""
    # The product of two means is the mean over all pairs of windows of two texts.
    means = np.stack([rows.mean(axis=0) for rows in probabilities])  # (texts, K)
    return mean_over_pairs(means) if len(means) > 1 else None


def shuffled_windows(probabilities: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """The same windows dealt out to the texts at random: the consistency of texts that keep to no kind."""
    all_windows = np.concatenate(probabilities)  # (sum of W, K)
    order = np.random.default_rng(seed).permutation(len(all_windows))
    return split_like(probabilities, all_windows[order])


def class_shares(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """(K,) mean over all windows."""
    return np.concatenate(probabilities).mean(axis=0)


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Half the sum of differences of two distributions: 0 if they are one, 1 if they share nothing."""
    return float(np.abs(first - second).sum() / 2)


# --- neighbouring words


def word_pairs(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Neighbouring words of each text, in lower case; marks are left out.

    Example:
        >>> list(word_pairs(["The cat, asleep.", "It's"]))
        [('the', 'cat'), ('cat', 'asleep')]
    """
    for text in texts:
        yield from pairwise(WORD.findall(text.lower()))


def fluency(texts: Iterable[str], real_pairs: set[tuple[str, str]]) -> float | None:
    """Share of neighbouring words that stand together somewhere in real texts; None if there are no two words."""
    pairs = list(word_pairs(texts))
    if not pairs:
        return None

    num_real = sum(pair in real_pairs for pair in pairs)
    return num_real / len(pairs)
