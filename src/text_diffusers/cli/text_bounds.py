"""Bounds of texts under a pipeline of any kind, beside the entropy of the token frequencies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, disable_progress_bars

from text_diffusers.data.code_rows import text_rows
from text_diffusers.data.rows import encode_texts, tokenize
from text_diffusers.data.sources import load_documents
from text_diffusers.evaluation.embedding import estimate_embedding_bound
from text_diffusers.evaluation.likelihood import (
    encode_for_likelihood,
    evaluate_likelihood,
    length_nats,
    unigram_entropy,
)
from text_diffusers.evaluation.two_level import estimate_two_level_bound
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler

# What would have to be drawn again to see a standard error
OF_NOISE = "of other noise, for the same texts"
OF_TEXTS = "of other texts from the same source, and other noise"


@dataclass
class Evaluation:
    """An upper bound of -log p of texts under a pipeline.

    Attributes:
        nats_per_token: the bound, divided by `num_tokens`.
        standard_error: of it; `error_is` says what would have to be drawn again.
        unigram_entropy: nats per token of the token frequencies of these texts, the best bound of a model that ignores
            context and knows these frequencies.
        perplexity: exp(`nats_per_token`).
        bits_per_character, bits_per_byte: the bound in bits, by Unicode code points and UTF-8 bytes of the texts.
        num_truncated: texts that were cut to what the model takes.
    """

    nats_per_token: float
    standard_error: float
    error_is: str
    unigram_entropy: float
    perplexity: float
    bits_per_character: float
    bits_per_byte: float
    num_texts: int
    num_tokens: int
    num_truncated: int


def evaluate_texts(
    pipe: Any,
    texts: Sequence[str],
    labels: Sequence[int] | None = None,
    num_times: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """The bound of texts under a pipeline of tokens, of word embeddings or of codes.

    Args:
        labels: of a model that was trained with labels, one a text; not of codes.
        num_times: random times a text.
        batch_size: noisy texts in one call of the model.
        seed: of the noise.
        progress: show a bar, where there is one.

    Raises:
        ValueError: if the pipeline has no such bound, or a text does not fit.
    """
    texts = list(texts)

    # Guided pipelines write from another distribution than the one that the bound is of.
    if not pipe.draws_from_scheduler:
        raise ValueError(
            f"`model` must write texts by themselves: {type(pipe).__name__} steers away from its model."
        )
    options: Any = {"num_times": num_times, "batch_size": batch_size, "seed": seed}
    if pipe.kind == "tokens":
        return bound_of_tokens(pipe, texts, labels, progress=progress, **options)
    if pipe.kind == "embeddings":
        return bound_of_embeddings(pipe, texts, labels, **options)
    if labels is not None:
        raise ValueError("`label_column` must be left out: a two-level pipeline has no labels.")
    return bound_of_codes(pipe, texts, **options)


def bound_of_tokens(
    pipe: Any, texts: list[str], labels: Sequence[int] | None, **options: Any
) -> Evaluation:
    # Other schedulers can write with the model, but only the one of its training has its bound.
    if not isinstance(pipe.scheduler, D3PMScheduler):
        raise ValueError(
            f"`model` must have a scheduler with a bound, got {type(pipe.scheduler).__name__}."
        )

    # The longest length of a histogram from 0 is one less than its entries; start and end add two.
    max_length = pipe.max_length
    if pipe.config.lengths:
        max_length = min(max_length, len(pipe.config.lengths) + 1)
    likelihood = evaluate_likelihood(
        pipe, texts, class_labels=labels, max_length=max_length, **options
    )

    # The frequencies of the tokens that the bound is of
    rows = []
    for text in encode_for_likelihood(pipe, texts, [""] * len(texts), max_length):
        rows.append({"input_ids": text.predicted, "attention_mask": [1] * len(text.predicted)})
    return Evaluation(
        nats_per_token=likelihood.nats_per_token,
        standard_error=likelihood.standard_error,
        error_is=OF_NOISE,
        unigram_entropy=unigram_entropy(rows),
        perplexity=likelihood.perplexity,
        bits_per_character=likelihood.bits_per_character,
        bits_per_byte=likelihood.bits_per_byte,
        num_texts=len(texts),
        num_tokens=likelihood.num_tokens,
        num_truncated=likelihood.num_truncated,
    )


def bound_of_embeddings(
    pipe: Any, texts: list[str], labels: Sequence[int] | None, num_times: int, **options: Any
) -> Evaluation:
    """Rows hold a text between start and end, as in training; the histogram's cost of the length is added."""
    columns: dict[str, Any] = {"text": texts}
    if labels is not None:
        columns["label"] = list(labels)
    rows = tokenize(Dataset.from_dict(columns), pipe.tokenizer, pipe.max_length, packing=False)
    estimate = estimate_embedding_bound(pipe.denoiser, pipe.scheduler, rows, num_times, **options)

    room = pipe.max_length - 2  # between start and end
    lengths = [min(len(ids), room) for ids in encode_texts(pipe.tokenizer, texts)]
    extra_nats = length_nats(pipe.config.lengths, lengths) if pipe.config.lengths else 0.0
    return evaluation_of_rows(pipe, texts, rows, room, estimate, num_times, extra_nats)


def bound_of_codes(pipe: Any, texts: list[str], num_times: int, **options: Any) -> Evaluation:
    """Rows as long as the longest text needs, each filled with ends, whose codes count too."""
    # One more token, the end, is written after each text.
    longest = max(len(ids) + 1 for ids in encode_texts(pipe.tokenizer, texts))
    length = pipe.autoencoder.full_length(min(longest, pipe.max_length))

    # A padded row has one token more, the start, which `text_rows` takes away.
    padded = tokenize(Dataset.from_dict({"text": texts}), pipe.tokenizer, length + 1, packing=False)
    rows = text_rows(padded, pipe.tokenizer, length, packed=False)
    estimate = estimate_two_level_bound(pipe, rows, num_times, **options).total
    return evaluation_of_rows(pipe, texts, rows, length - 1, estimate, num_times)


def evaluation_of_rows(
    pipe: Any,
    texts: list[str],
    rows: Any,
    room: int,
    estimate: Any,
    num_times: int,
    extra_nats: float = 0.0,
) -> Evaluation:
    """From a bound in nats per counted token of rows.

    Args:
        rows: one a text.
        room: tokens to which a text was cut.
        estimate: the bound with its error.
        extra_nats: of all texts together.
    """
    # The cost of the lengths is one of all texts, so each token bears its share.
    num_tokens = sum(map(sum, rows["attention_mask"]))
    nats = estimate.bound + extra_nats / num_tokens
    bits = nats * num_tokens / math.log(2)

    # Characters of the texts as far as they were evaluated
    evaluated = []
    num_truncated = 0
    for text, ids in zip(texts, encode_texts(pipe.tokenizer, texts), strict=True):
        if len(ids) > room:
            text = pipe.tokenizer.decode(ids[:room])
            num_truncated += 1
        evaluated.append(text)

    # With several times a text, its draws count as texts of their own in the error.
    each = "" if num_times == 1 else f", each of these counting as {num_times} texts"
    return Evaluation(
        nats_per_token=nats,
        standard_error=estimate.standard_error,
        error_is=OF_TEXTS + each,
        unigram_entropy=unigram_entropy(rows),
        perplexity=math.exp(nats),
        bits_per_character=bits / sum(len(text) for text in evaluated),
        bits_per_byte=bits / sum(len(text.encode()) for text in evaluated),
        num_texts=len(texts),
        num_tokens=num_tokens,
        num_truncated=num_truncated,
    )


def load_texts(
    dataset: str, text_column: str, label_column: str | None, split: str, max_texts: int
) -> tuple[list[str], list[int] | None]:
    """At most so many texts of a data set and their labels, spread over all of it: neighbours are alike."""
    disable_progress_bars()  # of reading and tokenizing
    documents: Any = load_documents(dataset, text_column, label_column, split)
    if not len(documents):
        raise ValueError(f"`dataset` must hold at least one text, got none in {dataset!r}.")

    # Every so many of them
    stride = -(-len(documents) // max_texts)
    chosen = documents.select(range(0, len(documents), stride))
    return list(chosen["text"]), list(chosen["label"]) if label_column else None


def report(evaluation: Evaluation) -> str:
    """An evaluation for people."""
    gap = evaluation.unigram_entropy - evaluation.nats_per_token
    side = f"{abs(gap):.3f} {'above' if gap >= 0 else 'below'} the bound"
    per_character = f"{evaluation.bits_per_character:.3f} per character"
    counts = f"{evaluation.num_texts:,} of {evaluation.num_tokens:,} tokens"
    return f"""\
bound              {evaluation.nats_per_token:.3f} +- {evaluation.standard_error:.3f} nats per token
unigram entropy    {evaluation.unigram_entropy:.3f} nats per token, {side}
perplexity         {evaluation.perplexity:.2f} per token, at most
bits, at most      {per_character}, {evaluation.bits_per_byte:.3f} per byte
texts              {counts}, {evaluation.num_truncated:,} cut to fit
The error is that {evaluation.error_is}."""
