"""Texts that the models have not seen: for the judges, and as what real texts are."""

from typing import Any, NamedTuple

from parts.common.recipes import CORPORA
from parts.control.judges import label_judge
from parts.latent.config import LatentBenchmarkConfig
from parts.latent.judge import WordNgramJudge
from text_diffusers.common.plain_text import encode_plain
from text_diffusers.data.labels import number_labels
from text_diffusers.data.latent_rows import conversation_pairs
from text_diffusers.data.sources import (
    find_conversations,
    load_conversations,
    load_documents,
    split_documents,
)

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
    rows, _ = number_labels(rows)
    return unseen(rows, options.max_train_samples, options.num_texts)


def conversation_texts(options: LatentBenchmarkConfig) -> UnseenTexts:
    """Of the conversations: replies as `text`, each with what was said before as `source`."""
    columns = find_conversations(options.conversations, "text", "train", False)
    if not columns:
        raise ValueError(
            f"`conversations` must be a data set of conversations, got {options.conversations!r}."
        )
    pairs = conversation_pairs(load_conversations(options.conversations, columns), CONTEXT_TURNS)
    return unseen(pairs, options.max_train_replies, options.num_contexts)


def unseen(rows: Any, num_seen: int, count: int) -> UnseenTexts:
    """The judge of the texts after the first `num_seen`, and `count` of those that are held out."""
    train, held_out = split_documents(rows)
    for_judge = train.select(range(num_seen, len(train)))["text"] if num_seen < len(train) else []
    if not len(for_judge):
        raise ValueError(
            f"`max_train_samples` must leave texts for the judge, got {num_seen} of {len(train)}."
        )
    step = max(1, len(held_out) // count)
    spread = held_out.select(range(0, len(held_out), step)[:count])
    return UnseenTexts(WordNgramJudge(for_judge), spread)


def judge_of_labels(options: LatentBenchmarkConfig) -> tuple[Any, str]:
    """The judge, which has learned from texts that no other model has seen, and a note on how good it is."""
    if options.judge_dataset is None:
        rows = CORPORA["movie_reviews"](part="judge")
    else:
        rows = load_documents(options.judge_dataset, label_column="label")
    judge = label_judge(rows["text"], rows["label"])
    held_out, _ = number_labels(
        split_documents(load_documents(options.dataset, label_column="label"))[1]
    )
    share = judge.accuracy(held_out["text"], held_out["label"])
    found = f"{share:.1%} of {len(held_out):,} held-out texts their own label"
    return judge, f"The judge of labels gives {found}."


def cut_texts(texts: Any, tokenizer: Any, max_tokens: int) -> list[str]:
    """Real texts, cut to as many tokens as a text that is written may have."""
    rows = encode_plain(tokenizer, list(texts))
    return [tokenizer.decode(row[:max_tokens]).strip() for row in rows]
