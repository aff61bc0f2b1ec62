"""Figures of written texts, and the tokens that they are computed from."""

from collections.abc import Iterable, Sequence
from typing import Any

from parts.common.results import Record
from text_diffusers.evaluation.text_metrics import (
    GenerativePerplexity,
    distinct_n,
    generative_perplexity,
    load_judge,
)

END_TOKENS = 2  # a row of a model begins and ends with one


class PerplexityJudge:
    """A language model that says how likely texts are; it is loaded at its first use.

    Args:
        name: one of `text_diffusers.evaluation.text_metrics.JUDGES`.
        cache_dir: folder of the converted model.
    """

    def __init__(self, name: str, cache_dir: str | None = None):
        self.name = name
        self.cache_dir = cache_dir
        self.model = None
        self.tokenizer = None

    def load(self):
        """Load the model, if that has not been done.

        Raises:
            ModuleNotFoundError: if a package that it needs is missing.
        """
        # Some benchmarks never need it: all their texts have been judged before.
        if self.model is None:
            self.model, self.tokenizer = load_judge(self.name, self.cache_dir)

    def score(self, texts: Sequence[str], max_length: int | None = None) -> GenerativePerplexity:
        """Perplexity of texts, or of their first `max_length` tokens."""
        self.load()
        return generative_perplexity(texts, self.model, self.tokenizer, max_length=max_length)


def without_special_tokens(rows: Iterable[Sequence[int]], tokenizer: Any) -> list[list[int]]:
    """The rows without start, end, padding and mask."""
    special_ids = set(tokenizer.all_special_ids)
    plain_rows = []
    for row in rows:
        plain_rows.append([token for token in row if token not in special_ids])
    return plain_rows


def tokens_of_real_texts(texts: Iterable[str], pipe: Any) -> list[list[int]]:
    """Tokens of real texts, cut to the length that the model of a pipeline can write."""
    # Longer texts would differ from written ones by their length alone.
    longest = pipe.denoiser.config.max_length - END_TOKENS

    rows = pipe.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [tokens[:longest] for tokens in rows]


def distinct_ngrams(rows: Sequence[Sequence[int]], orders: Iterable[int] = (1, 2)) -> Record:
    """`distinct_1` and so on of rows of tokens, without the orders for which all rows are too short."""
    longest_row = max(map(len, rows))
    figures = {}
    for order in orders:
        if order <= longest_row:
            figures[f"distinct_{order}"] = distinct_n(rows, order)
    return figures
