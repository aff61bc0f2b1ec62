"""Figures that tell whether a model was read rightly: likeness of sentences, and how likely a sentence is.

Shapes: L tokens of a text, D width, V vocabulary size.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def likenesses(folder: Path, text: str, others: list[str]) -> list[float]:
    """Cosines of the mean vector of a text and those of others, under a sentence encoder."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    vectors = []
    for sentence in [text, *others]:
        hidden = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state  # (1, L, D)
        vectors.append(hidden.mean(dim=1))
    return [float(F.cosine_similarity(vectors[0], vector)) for vector in vectors[1:]]


@torch.no_grad()
def perplexity(folder: Path, text: str) -> float:
    """exp of the mean -log p of all tokens but the first, under a causal language model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]

    logits = model(tokens).logits[0, :-1]  # (L - 1, V)
    nats = F.cross_entropy(logits, tokens[0, 1:])
    return math.exp(nats)


def expect(name: str, measured: float, wanted: float, tolerance: float):
    """Refuse a model whose figure is another one.

    Raises:
        ValueError: if `measured` is farther from `wanted` than `tolerance`.
    """
    if abs(measured - wanted) > tolerance:
        raise ValueError(
            f"`{name}` must be within {tolerance} of {wanted}, got {measured:.4f}: "
            "the file was read wrongly, or is another one."
        )
