"""Figures of written texts beside those of real ones.

Shapes: N texts, E width of an embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parts.common.results import Record
from text_diffusers.evaluation.judges.word_ngrams import WordNgramJudge, words_of
from text_diffusers.evaluation.text_metrics import distinct_n, token_entropy

TEXTS_AT_ONCE = 50


def figures_of(texts: Sequence[str], judge: WordNgramJudge) -> Record:
    """What is said of texts by themselves; of their words, so that any tokenizer's texts compare."""
    rows = [words_of(text) for text in texts]
    verdict = judge.judge(texts)
    return {
        "perplexity": verdict.perplexity,
        "known_words": verdict.known_words,
        "seen_pairs": verdict.seen_pairs,
        "words": sum(map(len, rows)) / len(rows),
        "entropy": token_entropy(rows),
        "distinct_2": distinct_n([" ".join(row) for row in rows], 2),
        "empty": sum(not row for row in rows) / len(rows),
    }


@torch.no_grad()
def embeddings(pipe: Any, texts: Sequence[str]) -> Tensor:
    """(N, E) mean state of each text in the pipeline's encoder, of norm 1."""
    # An encoder needs a token to read.
    readable = [text or "." for text in texts]

    found = []
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        part = readable[first : first + TEXTS_AT_ONCE]
        encoded = pipe.encoder_tokenizer(
            part,
            padding=True,
            truncation=True,
            max_length=pipe.autoencoder.longest_source,
            return_tensors="pt",
        )
        states, mask = pipe.autoencoder.encode_states(
            encoded["input_ids"], encoded["attention_mask"]
        )

        weights = mask.unsqueeze(-1).to(states.dtype)
        found.append((states * weights).sum(dim=1) / weights.sum(dim=1))
    return F.normalize(torch.cat(found), dim=-1)


def energy_distance(first: Tensor, second: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of embeddings (N, E) and (M, E), estimated without bias: 0 if they are alike.

    Example:
        >>> energy_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]]))
        -2.0
    """
    between = torch.cdist(first, second).mean()
    # Over pairs of different texts
    within = [
        torch.cdist(rows, rows).sum() / (len(rows) * (len(rows) - 1)) for rows in (first, second)
    ]
    return float(2 * between - within[0] - within[1])
