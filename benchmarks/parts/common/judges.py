"""A judge of texts that shares nothing with the models it judges: weighted words and a linear model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression


class WordJudge:
    """Classifier of texts by the TF-IDF weights of their words and logistic regression.

    Its mistakes are not those of the transformers that write and guide, so it does not favour what they exploit.

    Args:
        texts: training texts, each with one of the `labels`.
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
        # With logarithmic counts, a text that repeats one word does not become surer with every copy.
        self.vectorizer = TfidfVectorizer(sublinear_tf=True, **tfidf_options)
        features = self.vectorizer.fit_transform(texts)  # (texts, words), sparse

        self.regression = LogisticRegression(C=inverse_penalty, max_iter=300)
        self.regression.fit(features, labels)
        self.classes = self.regression.classes_.tolist()

    def labels(self, texts: Sequence[str]) -> list[Any]:
        """The most probable label of each text."""
        return self.regression.predict(self.vectorizer.transform(texts)).tolist()

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, K) of each label."""
        return self.regression.predict_proba(self.vectorizer.transform(texts))

    def accuracy(self, texts: Sequence[str], labels: Sequence[Any]) -> float:
        """Share of texts that are given their own label: the success of texts that are all as asked for."""
        pairs = zip(self.labels(texts), labels, strict=True)
        num_right = sum(judged == label for judged, label in pairs)
        return num_right / len(labels)
