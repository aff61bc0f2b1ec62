"""A judge of texts that has nothing to do with the models it judges: words, and a linear model of scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression


class WordJudge:
    """TF-IDF of words and logistic regression.

    Args:
        texts: to learn from, with one of the `labels` each.
        inverse_penalty: `C` of the regression.
        tfidf_options: of `TfidfVectorizer`.

    Attributes:
        classes: K labels, in the order of probabilities.

    Example:
        >>> judge = WordJudge(["good film", "bad film"] * 2, [1, 0] * 2, inverse_penalty=2.0)
        >>> judge.labels(["a good one"])
        [1]
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[Any],
        inverse_penalty: float,
        **tfidf_options: Any,
    ):
        self.vectorizer = TfidfVectorizer(sublinear_tf=True, **tfidf_options)
        self.regression = LogisticRegression(C=inverse_penalty, max_iter=300)
        self.regression.fit(self.vectorizer.fit_transform(texts), labels)
        self.classes = self.regression.classes_.tolist()

    def labels(self, texts: Sequence[str]) -> list[Any]:
        """The most probable label of each text."""
        return self.regression.predict(self.vectorizer.transform(texts)).tolist()

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, K) of each label."""
        return self.regression.predict_proba(self.vectorizer.transform(texts))

    def accuracy(self, texts: Sequence[str], labels: Sequence[Any]) -> float:
        """Share of texts that get their own label: what a judge makes of texts that are all as asked for."""
        right = [judged == label for judged, label in zip(self.labels(texts), labels, strict=True)]
        return sum(right) / len(right)
