"""What texts cost under a pipeline: its bound beside the entropy of the token frequencies."""

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
from text_diffusers.pipelines.two_level_vq.pipeline_two_level_vq import TwoLevelVQDiffusionPipeline
from text_diffusers.samplers import PARAPHRASES
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler

OF_NOISE = "of other noise, for the same texts"
OF_TEXTS = "of other texts from the same source, and other noise"
OF_TEXTS_AGAIN = f"{OF_TEXTS}, each of these counting as {{}} texts"


@dataclass
class Evaluation:
    """What texts cost under a pipeline, at most.

    Attributes:
        nats_per_token: an upper bound of -log p of the texts, divided by `num_tokens`.
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
    """The bound of texts under a pipeline of tokens, of word embeddings or of two levels of codes.

    Args:
        labels: of a model that was trained with labels, one a text; not of two levels.
        num_times: random times a text.
        batch_size: noisy texts in one call of the model.
        seed: of the noise.
        progress: show a bar, where there is one.

    Raises:
        ValueError: if the pipeline has no such bound, or a text does not fit.
    """
    if isinstance(pipe, PARAPHRASES):
        raise ValueError(
            f"`model` must write texts by themselves: {type(pipe).__name__} steers away from its model."
        )
    if isinstance(pipe, TwoLevelVQDiffusionPipeline):
        if labels is not None:
            raise ValueError("`label_column` must be left out: a two-level pipeline has no labels.")
        return of_codes(pipe, list(texts), num_times, batch_size, seed)
    if hasattr(pipe.scheduler, "alphas_cumprod"):
        return of_embeddings(pipe, list(texts), labels, num_times, batch_size, seed)
    if not isinstance(pipe.scheduler, D3PMScheduler):
        raise ValueError(
            f"`model` must have a scheduler with a bound, got {type(pipe.scheduler).__name__}."
        )
    return of_tokens(pipe, list(texts), labels, num_times, batch_size, seed, progress)


def of_tokens(pipe, texts, labels, num_times, batch_size, seed, progress) -> Evaluation:
    longest = pipe._max_length
    if pipe.config.lengths:  # the two tokens around a text are not in the histogram
        longest = min(longest, len(pipe.config.lengths) + 1)
    options = {"num_times": num_times, "batch_size": batch_size, "seed": seed, "progress": progress}
    found = evaluate_likelihood(pipe, texts, class_labels=labels, max_length=longest, **options)
    encoded = encode_for_likelihood(pipe, texts, [""] * len(texts), longest)
    entropy = unigram_entropy(
        {"input_ids": text.paid, "attention_mask": [1] * len(text.paid)} for text in encoded
    )
    return Evaluation(
        nats_per_token=found.nats_per_token,
        standard_error=found.standard_error,
        error_is=OF_NOISE,
        unigram_entropy=entropy,
        perplexity=found.perplexity,
        bits_per_character=found.bits_per_character,
        bits_per_byte=found.bits_per_byte,
        num_texts=len(texts),
        num_tokens=found.num_tokens,
        num_truncated=found.num_truncated,
    )


def of_embeddings(pipe, texts, labels, num_times, batch_size, seed) -> Evaluation:
    """Rows hold a text between start and end, as in training; the histogram's cost of the length is added."""
    length, lengths = pipe._max_length, pipe.config.lengths
    columns = {"text": texts} | ({} if labels is None else {"label": list(labels)})
    rows = tokenize(Dataset.from_dict(columns), pipe.tokenizer, length, packing=False)
    estimate = estimate_embedding_bound(
        pipe.denoiser, pipe.scheduler, rows, num_times, batch_size, seed
    )
    sizes = [min(len(ids), length - 2) for ids in encode_texts(pipe.tokenizer, texts)]
    extra = length_nats(lengths, sizes) if lengths else 0.0
    return of_rows(pipe, texts, rows, length - 2, estimate, extra, num_times)


def of_codes(pipe, texts, num_times, batch_size, seed) -> Evaluation:
    """Rows as long as the longest text needs, each followed by ends, whose codes are paid for too."""
    longest = max(len(ids) + 1 for ids in encode_texts(pipe.tokenizer, texts))
    length = pipe.autoencoder.full_length(min(longest, pipe.max_length))
    padded = tokenize(Dataset.from_dict({"text": texts}), pipe.tokenizer, length + 1, packing=False)
    rows = text_rows(padded, pipe.tokenizer, length, packed=False)
    estimate = estimate_two_level_bound(pipe, rows, num_times, batch_size, seed).total
    return of_rows(pipe, texts, rows, length - 1, estimate, 0.0, num_times)


def of_rows(
    pipe: Any, texts: list[str], rows: Any, room: int, estimate: Any, extra: float, num_times: int
) -> Evaluation:
    """From a bound in nats per counted token of rows, one a text cut to `room` tokens, and `extra` nats in all."""
    num_tokens = sum(map(sum, rows["attention_mask"]))
    nats = estimate.bound + extra / num_tokens
    ids = encode_texts(pipe.tokenizer, texts)
    kept = [
        text if len(own) <= room else pipe.tokenizer.decode(own[:room])
        for text, own in zip(texts, ids, strict=True)
    ]
    bits = nats * num_tokens / math.log(2)
    return Evaluation(
        nats_per_token=nats,
        standard_error=estimate.standard_error,
        error_is=OF_TEXTS if num_times == 1 else OF_TEXTS_AGAIN.format(num_times),
        unigram_entropy=unigram_entropy(rows),
        perplexity=math.exp(nats),
        bits_per_character=bits / sum(map(len, kept)),
        bits_per_byte=bits / sum(len(text.encode()) for text in kept),
        num_texts=len(texts),
        num_tokens=num_tokens,
        num_truncated=sum(len(own) > room for own in ids),
    )


def load_texts(
    dataset: str, text_column: str, label_column: str | None, split: str, max_texts: int
) -> tuple[list[str], list[int] | None]:
    """At most so many texts of a data set and their labels, spread over all of it: neighbours are alike."""
    disable_progress_bars()  # of reading and tokenizing
    documents: Any = load_documents(dataset, text_column, label_column, split)
    if not len(documents):
        raise ValueError(f"`dataset` must hold at least one text, got none in {dataset!r}.")
    step = -(-len(documents) // max_texts)
    chosen = documents.select(range(0, len(documents), step))
    return list(chosen["text"]), list(chosen["label"]) if label_column else None


def report(found: Evaluation) -> str:
    """The same for people."""
    gap = found.unigram_entropy - found.nats_per_token
    side = f"{gap:.3f} above the bound" if gap >= 0 else f"{-gap:.3f} below the bound"
    lines = [
        f"bound              {found.nats_per_token:.3f} +- {found.standard_error:.3f} nats per token",
        f"unigram entropy    {found.unigram_entropy:.3f} nats per token, {side}",
        f"perplexity         {found.perplexity:.2f} per token, at most",
        f"bits, at most      {found.bits_per_character:.3f} per character, {found.bits_per_byte:.3f} per byte",
        f"texts              {found.num_texts:,} of {found.num_tokens:,} tokens, {found.num_truncated:,} cut to fit",
        f"The error is that {found.error_is}.",
    ]
    return "\n".join(lines)
