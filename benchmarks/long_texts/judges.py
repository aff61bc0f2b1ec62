"""Judges of long texts: whether a text keeps to one kind, and whether its neighbouring words belong together.

The judge of kinds learns from texts that no model has seen; pairs of words are also known from the training texts. A
window is a part of a text of about so many words.

Shapes: W windows of a text, K classes.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from corpora.registry import CORPORA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from text_diffusers.data.sources import load_documents

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:[.,]\d+)*")
ERAS = (1861, 1932)  # of speeches: before the first, between, from the second on
CHECKED_SHARE = 5  # one document in so many shows the accuracy of the judge of the others


def classed_documents(dataset: str, judge_dataset: str | None) -> list[tuple[str, str]]:
    """`(text, class)` of the judge's own documents: a novelist, or speeches of an era; or the labels of a file.

    Raises:
        ValueError: if a file is to be judged by nothing, or all documents are of one class.
    """
    if judge_dataset is not None:
        rows = load_documents(judge_dataset, label_column="label")
        return of_several_kinds([(row["text"], str(row["label"])) for row in rows], judge_dataset)
    corpus: Any = getattr(CORPORA.get(dataset), "func", None)
    documents = None if corpus is None else corpus(part="judge")
    if documents is None or "year" not in documents.column_names:
        raise ValueError(f"`judge_dataset` must name a file of labelled texts for `dataset`={dataset!r}.")
    return of_several_kinds([(row["text"], kind_of(row["author"], row["year"])) for row in documents], dataset)


def of_several_kinds(documents: list[tuple[str, str]], source: str) -> list[tuple[str, str]]:
    kinds = {kind for _, kind in documents}
    if len(kinds) < 2:
        raise ValueError(f"`judge_dataset` must have texts of several kinds, got {sorted(kinds)} in {source!r}.")
    return documents


def kind_of(author: str, year: int) -> str:
    """The class of a text: its novelist, or the era of a speech."""
    if author == "Jane Austen":
        return author
    number = sum(year >= era for era in ERAS)
    return ("speeches before {}", "speeches {} to {}", "speeches from {}")[number].format(
        *((ERAS[0],), (ERAS[0], ERAS[1] - 1), (ERAS[1],))[number]
    )


def windows(text: str, window_words: int) -> list[str]:
    """A text in equal parts of about so many words, at white space."""
    words = text.split()
    count = max(1, round(len(words) / window_words))
    edges = [round(part * len(words) / count) for part in range(count + 1)]
    return [" ".join(words[start:end]) for start, end in zip(edges, edges[1:], strict=False)]


class KindJudge:
    """TF-IDF of words and logistic regression over windows of documents.

    Args:
        documents: `(text, class)`.
        window_words: words of a window.

    Attributes:
        accuracy: share of right classes over windows of every fifth document, by a judge of the others.
        classes: K names, in the order of probabilities.
    """

    def __init__(self, documents: Sequence[tuple[str, str]], window_words: int):
        self.window_words = window_words
        checked = list(documents[::CHECKED_SHARE])
        others = [document for number, document in enumerate(documents) if number % CHECKED_SHARE]
        self._fit(others)
        texts, kinds = self._windows_of(checked)
        predicted = self.regression.predict(self.vectorizer.transform(texts))
        self.accuracy = float(np.mean(predicted == np.array(kinds)))
        self._fit(documents)
        self.classes: list[str] = self.regression.classes_.tolist()

    def _windows_of(self, documents: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
        pairs = [(window, kind) for text, kind in documents for window in windows(text, self.window_words)]
        return [window for window, _ in pairs], [kind for _, kind in pairs]

    def _fit(self, documents: Iterable[tuple[str, str]]):
        texts, kinds = self._windows_of(documents)
        self.vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=min(3, len(texts)))
        self.regression = LogisticRegression(C=10.0, max_iter=300)
        self.regression.fit(self.vectorizer.fit_transform(texts), kinds)

    def probabilities(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Of each text (W, K), a row a window."""
        parts = [windows(text, self.window_words) for text in texts]
        found = self.regression.predict_proba(self.vectorizer.transform([part for own in parts for part in own]))
        return np.split(found, np.cumsum([len(own) for own in parts])[:-1])


def consistency(probabilities: Sequence[np.ndarray]) -> float | None:
    """Mean over texts of the mean over pairs of windows i < j of sum_c p_i(c) p_j(c).

    It is the probability that two windows of a text are given one class, if the judge draws a class for each. Texts of
    one window are left out; None if there is no other.
    """
    values = []
    for rows in probabilities:
        if len(rows) > 1:
            total = rows.sum(axis=0)
            values.append((total @ total - (rows * rows).sum()) / (len(rows) * (len(rows) - 1)))
    return float(np.mean(values)) if values else None


def chance(probabilities: Sequence[np.ndarray]) -> float | None:
    """The consistency of windows of two texts: mean of sum_c p(c) q(c) over pairs of different texts; None of one."""
    means = np.stack([rows.mean(axis=0) for rows in probabilities])  # (texts, K)
    if len(means) < 2:
        return None
    total = means.sum(axis=0)
    return float((total @ total - (means * means).sum()) / (len(means) * (len(means) - 1)))


def shuffled_windows(probabilities: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """The same windows, in texts of as many, but drawn from all of them: what texts without a kind would be."""
    order = np.random.default_rng(seed).permutation(sum(map(len, probabilities)))
    return np.split(np.concatenate(probabilities)[order], np.cumsum([len(rows) for rows in probabilities])[:-1])


def class_shares(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """(K,) mean over all windows."""
    return np.concatenate(probabilities).mean(axis=0)


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Half the sum of differences of two distributions: 0 if they are one, 1 if they share nothing."""
    return float(np.abs(first - second).sum() / 2)


def word_pairs(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Neighbouring words of each text, in lower case; marks are left out."""
    for text in texts:
        words = WORD.findall(text.lower())
        yield from zip(words, words[1:], strict=False)


def fluency(texts: Iterable[str], known: set[tuple[str, str]]) -> float | None:
    """Share of neighbouring words that stand together somewhere in real texts; None if there are no two words."""
    found = [pair in known for pair in word_pairs(texts)]
    return sum(found) / len(found) if found else None
