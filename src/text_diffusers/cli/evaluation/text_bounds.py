"""Bounds of texts under a pipeline of any kind, beside the entropy of the token frequencies."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datasets import Dataset, disable_progress_bars

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.token_ids import start_ids
from text_diffusers.common.validation import require
from text_diffusers.data.code_rows import text_rows
from text_diffusers.data.labels import number_labels
from text_diffusers.data.latent_rows import with_encoder_columns
from text_diffusers.data.rows import encode_texts, tokenize
from text_diffusers.data.sources import find_conversations, load_conversations, load_documents
from text_diffusers.data.tokenizers import check_script
from text_diffusers.evaluation.estimates import count_tokens
from text_diffusers.evaluation.latent_bounds import estimate_latent_bound, hold_out_latents
from text_diffusers.evaluation.likelihood import (
    Likelihood,
    check_has_bound,
    evaluate_likelihood,
    label_ids,
    one_each,
    unigram_entropy,
)
from text_diffusers.evaluation.protocols.wrapped_rows import WrappedRows, wrapped_likelihood
from text_diffusers.evaluation.two_level import estimate_two_level_bound
from text_diffusers.pipelines.latent_diffusion.latent_components import is_prior
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler

# What would have to be drawn again to see a standard error
OF_NOISE = "of other noise, for the same texts"
OF_TEXTS = "of other texts from the same source, and other noise"
# exp() of more overflows a float.
LARGEST_EXPONENT = 700.0
# Why it cannot be seen
ONE_TIME = "unknown: at one random time a text nothing is drawn twice, `--num-times 2` does so"
ONE_TEXT = "unknown: a single text says nothing of others"
NO_DENSITY = "unknown: the bound is infinite, since latents without noise have no density"


@dataclass
class JudgedTexts:
    """Texts of a data set, and what they are written from: one value a text of each that there is.

    Attributes:
        texts: of conversations, their answers.
        conditions: the others by the names of arguments of `evaluate_texts`: "labels", "prompts", "sources" or
            "messages".
    """

    texts: list[str]
    conditions: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Evaluation:
    """An upper bound of -log p of texts under a pipeline.

    Attributes:
        nats_per_token: the bound, divided by `num_tokens`, the tokens that the pipeline writes, ends included.
        standard_error: of it, `None` if it is unknown, as all errors; `error_is` says what would have to be drawn
            again, or why: of tokens and embeddings the noise alone, of latents these and the noise, of codes the texts
            as well.
        unigram_entropy: nats per token of the frequencies of the same tokens, the best bound of a model that ignores
            context and knows these frequencies.
        perplexity: exp(`nats_per_token`).
        bits_per_character, bits_per_byte: the bound in bits, by Unicode code points and UTF-8 bytes of the texts, an
            end that counts being one.
        num_truncated: texts that were cut to what the model takes, or whose source was.
        num_never_drawn: texts of a length that the pipeline never draws, for which the bound is infinite.
        perplexity_error, bits_per_character_error, bits_per_byte_error: what `standard_error` makes of these, by the
            delta method: numbers of tokens, characters and bytes are those of the texts at hand.
        error_over_texts: standard error of `nats_per_token` for other texts from the same source, and other noise;
            `None` of a single text, and where `standard_error` is of other texts already.
        autoregressive_nats_per_token, autoregressive_bits_per_character: what the same weights reach from token to
            token, where they can write so.
    """

    nats_per_token: float
    standard_error: float | None
    error_is: str
    unigram_entropy: float
    perplexity: float
    bits_per_character: float
    bits_per_byte: float
    num_texts: int
    num_tokens: int
    num_characters: int
    num_truncated: int
    num_never_drawn: int = 0
    perplexity_error: float | None = None
    bits_per_character_error: float | None = None
    bits_per_byte_error: float | None = None
    error_over_texts: float | None = None
    autoregressive_nats_per_token: float | None = None
    autoregressive_bits_per_character: float | None = None

    def record(self) -> dict[str, Any]:
        """For JSON, which has no infinite numbers: what is infinite is `None`."""
        figures = asdict(self)
        for name, value in figures.items():
            if isinstance(value, float) and math.isinf(value):
                figures[name] = None
        return figures


def evaluate_texts(
    pipe: Any,
    texts: Sequence[str],
    labels: Sequence[int] | None = None,
    num_times: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    sources: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    messages: Sequence[Any] | None = None,
    accelerator: Any = None,
) -> Evaluation:
    """The bound of texts under a pipeline of tokens, word embeddings, codes or latents.

    Args:
        labels: of a model that was trained with labels, one a text. They are the only condition of a bound of latents;
            a bound of codes has none.
        num_times: random times a text, and of latents draws of these and of noise; the error needs two at least.
        batch_size: noisy texts in one call of the model.
        seed: of the noise.
        progress: show a bar, where there is one.
        sources: of a model that was trained to write from other texts, one a text.
        prompts: the beginnings of the texts, one each.
        messages: the conversations to which the texts are replies, one each.
        accelerator: its processes share the noisy texts and all get the same result; each must call this.

    Raises:
        ValueError: if the pipeline has no such bound, or a text does not fit.
    """
    texts = list(texts)
    check_script(pipe.tokenizer, texts)

    check_bound_exists(pipe)
    options: Any = {"num_times": num_times, "batch_size": batch_size, "seed": seed}
    options["accelerator"] = accelerator
    conditions = {
        "label_column": labels,
        "source_column": sources,
        "prompt_column": prompts,
        "dataset": messages,
    }
    if pipe.kind not in ("codes", "latents"):
        given = dict(class_labels=labels, sources=sources, prompts=prompts, messages=messages)
        return bound_of_texts(pipe, texts, given, progress=progress, **options)
    allowed = "texts alone"
    if pipe.kind == "latents" and getattr(pipe.denoiser.config, "num_classes", None) is not None:
        conditions.pop("label_column")
        allowed = "texts with or without labels"
    for option, values in conditions.items():
        if values is not None:
            raise ValueError(
                f"`{option}` must be left out: the bound of {pipe.kind} is of {allowed}, and not of what is written "
                "from something else."
            )
    if pipe.kind == "codes":
        return bound_of_codes(pipe, texts, **options)
    return bound_of_latents(
        pipe, texts, label_ids(pipe, one_each("labels", labels, len(texts))), num_times, seed
    )


def evaluate_wrapped(
    pipe: Any,
    wrapped: WrappedRows,
    num_times: int = 8,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    accelerator: Any = None,
) -> Evaluation:
    """The bound of rows of joined texts under a pipeline of tokens, of word embeddings or of codes.

    Args:
        wrapped: from `wrap_texts`, with the given tokens of `given_before_rows`; its rows are the texts.
        num_times, batch_size, seed, progress, accelerator: as in `evaluate_texts`.

    Raises:
        ValueError: if the pipeline has no such bound, or a row does not fit.
    """
    check_bound_exists(pipe)
    if pipe.kind == "latents":
        raise ValueError(
            "`wrap` and `zero_shot` must be left out: the bound of latents is of single texts, and not of joined ones."
        )
    options: Any = {"batch_size": batch_size, "seed": seed, "accelerator": accelerator}
    if pipe.kind != "codes":
        likelihood = wrapped_likelihood(pipe, wrapped, num_times, progress=progress, **options)
        return evaluation_of(likelihood, len(wrapped.rows))

    # Each code stands for as many tokens as any other.
    length = len(wrapped.rows[0]["input_ids"])
    full_length = pipe.autoencoder.full_length(length)
    limit = (
        f"a multiple of the tokens of a code and at most {pipe.max_length}, such as {full_length}"
    )
    require(length == full_length <= pipe.max_length, "wrap", limit, length)
    counts = {
        "num_texts": len(wrapped.rows),
        "num_characters": int(wrapped.num_characters.sum()),
        "num_bytes": int(wrapped.num_bytes.sum()),
        "num_truncated": 0,
    }
    return evaluation_of_codes(pipe, Dataset.from_list(wrapped.rows), counts, num_times, **options)


def check_bound_exists(pipe: Any):
    """Raise a `ValueError` that says why, if a pipeline has no bound of texts."""
    # Guided pipelines write from another distribution than the one that the bound is of.
    if not pipe.draws_from_scheduler and pipe.kind != "latents":
        raise ValueError(
            f"`model` must write texts by themselves: {type(pipe).__name__} steers away from its model."
        )
    # Other schedulers can write with the model, but only the one of its training has its bound.
    if pipe.kind == "tokens" and not isinstance(pipe.scheduler, D3PMScheduler):
        raise ValueError(
            f"`model` must have a scheduler with a bound, got {type(pipe.scheduler).__name__}."
        )
    if pipe.kind == "latents":
        is_known = is_prior(pipe.denoiser) or hasattr(pipe.scheduler, "noise_level")
        if not is_known:
            raise ValueError(
                f"`model` must have a scheduler with a bound, got {type(pipe.scheduler).__name__}."
            )
    elif pipe.kind != "codes":
        check_has_bound(pipe, has_sources=False)


def bound_of_texts(
    pipe: Any,
    texts: list[str],
    conditions: dict[str, Any],
    **options: Any,
) -> Evaluation:
    """By `evaluate_likelihood`, of which `conditions` are arguments; texts too long for the model are cut."""
    likelihood = evaluate_likelihood(
        pipe,
        texts,
        max_length=pipe.max_length,
        **conditions,
        **options,
    )
    return evaluation_of(likelihood, len(texts))


def evaluation_of(likelihood: Likelihood, num_texts: int) -> Evaluation:
    """The figures of a likelihood, of texts or of rows."""
    error = known_or_none(likelihood.standard_error)
    # Nats per token in bits per character and per byte
    bits = likelihood.num_tokens / math.log(2)
    return Evaluation(
        nats_per_token=likelihood.nats_per_token,
        standard_error=error,
        error_is=ONE_TIME if error is None else OF_NOISE,
        unigram_entropy=likelihood.unigram_entropy,
        perplexity=likelihood.perplexity,
        bits_per_character=likelihood.bits_per_character,
        bits_per_byte=likelihood.bits_per_byte,
        num_texts=num_texts,
        num_tokens=likelihood.num_tokens,
        num_characters=likelihood.num_characters,
        num_truncated=likelihood.num_truncated,
        num_never_drawn=likelihood.num_never_drawn,
        perplexity_error=known_or_none(likelihood.perplexity_error),
        bits_per_character_error=scaled(error, bits / likelihood.num_characters),
        bits_per_byte_error=scaled(error, bits / likelihood.num_bytes),
        error_over_texts=known_or_none(likelihood.error_over_texts),
        autoregressive_nats_per_token=likelihood.autoregressive_nats_per_token,
        autoregressive_bits_per_character=likelihood.autoregressive_bits_per_character,
    )


def known_or_none(error: float) -> float | None:
    """A standard error, or `None` where nothing was drawn twice, of which JSON has no number."""
    return None if math.isnan(error) else error


def scaled(error: float | None, scale: float) -> float | None:
    """A standard error in another unit, if it is known."""
    return None if error is None else scale * error


def bound_of_codes(pipe: Any, texts: list[str], num_times: int, **options: Any) -> Evaluation:
    """Rows as long as the longest text needs, each filled with ends, whose codes count too."""
    # One more token, the end, is written after each text.
    longest = max(len(ids) + 1 for ids in encode_texts(pipe.tokenizer, texts))
    length = pipe.autoencoder.full_length(min(longest, pipe.max_length))

    # A padded row has one token more, the start, which `text_rows` takes away.
    padded = tokenize(Dataset.from_dict({"text": texts}), pipe.tokenizer, length + 1, packing=False)
    rows = text_rows(padded, pipe.tokenizer, length, packed=False)

    return evaluation_of_codes(
        pipe, rows, counts_of_texts(pipe, texts, length), num_times, **options
    )


def counts_of_texts(pipe: Any, texts: list[str], length: int) -> dict[str, int]:
    """Numbers of texts, of their characters and bytes, and of texts that rows of `length` tokens cut.

    Characters are those of the texts as far as they were evaluated, and one for each end: a cut text has none.
    """
    evaluated = []
    num_truncated = 0
    for text, ids in zip(texts, encode_texts(pipe.tokenizer, texts), strict=True):
        if len(ids) >= length:
            text = pipe.tokenizer.decode(ids[:length])
            num_truncated += 1
        evaluated.append(text)
    num_ends = len(texts) - num_truncated
    return {
        "num_texts": len(texts),
        "num_characters": sum(map(len, evaluated)) + num_ends,
        "num_bytes": sum(len(text.encode()) for text in evaluated) + num_ends,
        "num_truncated": num_truncated,
    }


def bound_of_latents(
    pipe: Any, texts: list[str], labels: Sequence[int] | None, num_times: int, seed: int
) -> Evaluation:
    """By `estimate_latent_bound`, of `num_times` draws of latents and noise."""
    # 1. Each text in the tokens of the decoder, with its start and its end, and in those of the encoder
    num_start = len(start_ids(pipe.tokenizer))
    longest = max(len(ids) + 1 for ids in encode_texts(pipe.tokenizer, texts))
    length = min(longest, pipe.max_length - num_start)
    rows: Any = tokenize(
        Dataset.from_dict({"text": texts}), pipe.tokenizer, length + num_start, packing=False
    )
    readings = encode_plain(pipe.encoder_tokenizer, texts, with_ends=True)
    longest_reading = max(len(ids) for ids in readings)
    limit = pipe.autoencoder.longest_source or longest_reading
    rows = with_encoder_columns(
        rows, pipe.tokenizer, pipe.encoder_tokenizer, min(longest_reading, limit)
    )
    if labels is not None:
        rows = rows.add_column("label", list(labels))

    # 2. The bound of each draw, and their spread
    bounds = []
    num_tokens = 0
    for draw in range(num_times):
        held_out = hold_out_latents(pipe.autoencoder, rows, seed + draw)
        estimate = estimate_latent_bound(pipe.denoiser, pipe.scheduler, held_out, seed + draw)
        bounds.append(estimate.bound)
        num_tokens = held_out.tokens
    error = None
    error_is = ONE_TIME
    if not all(map(math.isfinite, bounds)):
        error_is = NO_DENSITY
    elif num_times > 1:
        error = statistics.stdev(bounds) / math.sqrt(num_times)
        error_is = OF_NOISE
    counts = counts_of_texts(pipe, texts, length)
    mean = sum(bounds) / num_times
    return evaluation_of_bound(mean, error, error_is, unigram_entropy(rows), num_tokens, counts)


def evaluation_of_codes(
    pipe: Any, rows: Any, counts: dict[str, int], num_times: int, **options: Any
) -> Evaluation:
    """The bound of rows of text under a two-level pipeline.

    Args:
        counts: numbers of texts, of their characters and bytes, and of texts that were cut, as in `Evaluation`.
    """
    estimate = estimate_two_level_bound(pipe, rows, num_times, **options).total
    num_tokens = count_tokens(rows)

    # With several times a text, its draws count as texts of their own in the error.
    each = "" if num_times == 1 else f", each of these counting as {num_times} texts"
    error = known_or_none(estimate.standard_error)
    error_is = ONE_TEXT if error is None else OF_TEXTS + each
    return evaluation_of_bound(
        estimate.bound, error, error_is, unigram_entropy(rows), num_tokens, counts
    )


def evaluation_of_bound(
    bound: float,
    error: float | None,
    error_is: str,
    unigrams: float,
    num_tokens: int,
    counts: dict[str, int],
) -> Evaluation:
    """The figures of a bound in nats per token.

    Args:
        unigrams: entropy of the frequencies of the tokens, in nats.
        counts: as of `counts_of_texts`.
    """
    perplexity = math.exp(bound) if bound < LARGEST_EXPONENT else math.inf
    # Nats per token in bits per character and per byte
    bits_per_character = num_tokens / math.log(2) / counts["num_characters"]
    bits_per_byte = num_tokens / math.log(2) / counts["num_bytes"]
    return Evaluation(
        nats_per_token=bound,
        standard_error=error,
        error_is=error_is,
        unigram_entropy=unigrams,
        perplexity=perplexity,
        bits_per_character=bits_per_character * bound,
        bits_per_byte=bits_per_byte * bound,
        num_texts=counts["num_texts"],
        num_tokens=num_tokens,
        num_characters=counts["num_characters"],
        num_truncated=counts["num_truncated"],
        perplexity_error=scaled(error, perplexity) if math.isfinite(perplexity) else None,
        bits_per_character_error=scaled(error, bits_per_character),
        bits_per_byte_error=scaled(error, bits_per_byte),
    )


def load_texts(
    dataset: str,
    text_column: str,
    label_column: str | None,
    split: str,
    max_texts: int,
    label_names: Sequence[str | None] = (),
    source_column: str | None = None,
    prompt_column: str | None = None,
) -> JudgedTexts:
    """At most so many texts of a data set and what they are written from, spread over all of it: neighbours are alike.

    Args:
        label_names: of the model, among which labels that are words are looked up.

    Raises:
        ValueError: if there is no text, or two columns exclude each other.
    """
    disable_progress_bars()  # of reading and tokenizing
    if prompt_column and source_column:
        raise ValueError(
            "`source_column` excludes `prompt_column`: a text is written from a source, or behind its beginning."
        )
    has_columns = bool(label_column or source_column or prompt_column)
    if not has_columns:
        columns = find_conversations(dataset, text_column, split)
        if columns:
            return answers_of(load_conversations(dataset, columns, split), max_texts)

    documents: Any = load_documents(
        dataset, text_column, label_column, split, source_column=source_column or prompt_column
    )
    if not len(documents):
        raise ValueError(f"`dataset` must hold at least one text, got none in {dataset!r}.")

    chosen = documents.select(spread(range(len(documents)), max_texts))
    judged = JudgedTexts([])
    if label_column is not None:
        chosen, _ = number_labels(chosen, label_names)
        judged.conditions["labels"] = list(chosen["label"])
    if has_columns and "source" in chosen.column_names:
        name = "sources" if source_column else "prompts"
        judged.conditions[name] = list(chosen["source"])
    judged.texts = list(chosen["text"])
    return judged


def answers_of(chats: Any, max_texts: int) -> JudgedTexts:
    """The answers of conversations that are learned, each behind the turns before it, spread over all of them."""
    texts = []
    messages = []
    for chat in chats["messages"]:
        for index, turn in enumerate(chat):
            if turn["learned"] and index:
                texts.append(turn["content"])
                messages.append(chat[:index])
    if not texts:
        raise ValueError("`dataset` must hold an answer to something, got none.")
    return JudgedTexts(spread(texts, max_texts), {"messages": spread(messages, max_texts)})


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many values, evenly spread over all of them: neighbours are alike.

    Example:
        >>> from text_diffusers.cli.evaluation.text_bounds import spread
        >>> spread(["a", "b", "c", "d", "e"], most=3)
        ['a', 'b', 'd']
    """
    count = min(most, len(values))
    return [values[place * len(values) // count] for place in range(count)]


def report(evaluation: Evaluation) -> str:
    """An evaluation for people."""
    gap = evaluation.unigram_entropy - evaluation.nats_per_token
    side = f"{abs(gap):.3f} {'above' if gap >= 0 else 'below'} the bound"
    per_character = with_error(evaluation.bits_per_character, evaluation.bits_per_character_error)
    per_byte = with_error(evaluation.bits_per_byte, evaluation.bits_per_byte_error)
    perplexity = with_error(evaluation.perplexity, evaluation.perplexity_error, places=2)
    counts = f"{evaluation.num_texts:,} of {evaluation.num_tokens:,} tokens"

    error = evaluation.standard_error
    bound = with_error(evaluation.nats_per_token, error)
    lines = f"""\
bound              {bound} nats per token
unigram entropy    {evaluation.unigram_entropy:.3f} nats per token, {side}
perplexity         {perplexity} per token, at most
bits, at most      {per_character} per character, {per_byte} per byte
texts              {counts}, {evaluation.num_truncated:,} cut to fit
Counted are the tokens that the model writes, ends included; an end is also a character and a byte.
The errors are {"" if error is None else "those "}{evaluation.error_is}."""

    if evaluation.error_over_texts is not None:
        lines += (
            "\nFor other texts from the same source as well, that of the bound is "
            f"{evaluation.error_over_texts:.3f}."
        )
    if evaluation.autoregressive_nats_per_token is not None:
        lines += (
            f"\ntoken by token     {evaluation.autoregressive_nats_per_token:.3f} nats per token, "
            f"{evaluation.autoregressive_bits_per_character:.3f} bits per character, by the same weights"
        )

    # An infinite bound is explained.
    if evaluation.num_never_drawn:
        lines += (
            f"\nThe bound is infinite: {evaluation.num_never_drawn:,} texts have a number of tokens that this model "
            "never draws."
        )
    return lines


def with_error(value: float, error: float | None, places: int = 3) -> str:
    """A number with its standard error, if that is known; what is infinite has none."""
    shown = f"{value:.{places}f}"
    if error is None or math.isinf(value):
        return shown
    return f"{shown} +- {error:.{places}f}"
