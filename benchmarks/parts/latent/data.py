"""Texts that the models have not seen: for the judges, and as what real texts are."""

from typing import Any, NamedTuple

from parts.latent.config import LatentBenchmarkConfig
from text_diffusers.common.plain_text import encode_plain
from text_diffusers.data.latent_rows import conversation_pairs
from text_diffusers.data.sources import (
    find_conversations,
    load_conversations,
    load_documents,
    split_documents,
)
from text_diffusers.evaluation.judges import WordNgramJudge

CONTEXT_TURNS = 3  # as in the recipes by default


class UnseenTexts(NamedTuple):
    """Texts of a corpus that no model has learned from.

    Attributes:
        judge: a model of words, of the texts after those of training.
        held_out: a data set of the rest, spread over what the recipes hold out.
    """

    judge: WordNgramJudge
    held_out: Any


def labelled_texts(options: LatentBenchmarkConfig) -> UnseenTexts:
    """Of the corpus with labels."""
    rows = load_documents(options.dataset, label_column="label")
    return unseen(rows, options, "max_train_samples", options.num_texts)


def conversation_texts(options: LatentBenchmarkConfig) -> UnseenTexts:
    """Of the conversations: replies as `text`, each with what was said before as `source`."""
    columns = find_conversations(options.conversations)
    if not columns:
        raise ValueError(
            f"`conversations` must be a data set of conversations, got {options.conversations!r}."
        )
    pairs = conversation_pairs(load_conversations(options.conversations, columns), CONTEXT_TURNS)
    return unseen(pairs, options, "max_train_replies", options.num_contexts)


def unseen(rows: Any, options: LatentBenchmarkConfig, seen: str, count: int) -> UnseenTexts:
    """The judge of the texts behind those of training, and `count` of those that are held out.

    Args:
        seen: the option that says how many texts of training there are, the first.

    Raises:
        ValueError: if none is left for the judge.
    """
    train, held_out = split_documents(rows)
    num_seen = getattr(options, seen)
    if num_seen >= len(train):
        raise ValueError(
            f"`{seen}` must leave texts for the judge, got {num_seen} of {len(train)}."
        )
    for_judge = train.select(range(num_seen, len(train)))["text"]

    # Neighbours are of one review, or of one conversation.
    step = max(1, len(held_out) // count)
    spread = held_out.select(range(0, len(held_out), step)[:count])
    return UnseenTexts(WordNgramJudge(for_judge), spread)


def cut_texts(texts: Any, tokenizer: Any, max_tokens: int) -> list[str]:
    """Real texts, cut to as many tokens as a text that is written may have."""
    rows = encode_plain(tokenizer, list(texts))
    return [tokenizer.decode(row[:max_tokens]).strip() for row in rows]
