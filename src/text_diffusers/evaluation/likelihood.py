"""How good a model is: variational bounds and their yardsticks, in nats per token.

A bound is an upper one: the model's own negative log-likelihood is as large or smaller.

Shapes: B batch, L sequence length, V vocabulary size, N positions.
"""

import logging
import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from text_diffusers.common.token_ids import padding_id
from text_diffusers.common.validation import require
from text_diffusers.data.rows import unknown_tokens
from text_diffusers.evaluation.autoregression import autoregressive_row_nats, predicts_next
from text_diffusers.evaluation.bounds import drawn_uniform
from text_diffusers.evaluation.embedding import embedding_row_bounds
from text_diffusers.evaluation.estimates import (
    NOISE_LEVELS,
    BoundEstimate,
    SharedBatches,
    counted_ids,
    ratio_error,
)
from text_diffusers.evaluation.modules import device_of, evaluating
from text_diffusers.evaluation.row_bounds import (
    RowBounds,
    drawn_token_bound,
    full_bound,
    monte_carlo_bound,
)
from text_diffusers.evaluation.written_texts import predicted_length_nats, texts_of_pipeline
from text_diffusers.models.language_model import as_denoiser, in_blocks_of
from text_diffusers.pipelines.calls.labels import shown_labels
from text_diffusers.pipelines.text_lengths import length_model
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler

logger = logging.getLogger(__name__)


@torch.no_grad()
def estimate_bound(
    denoiser: Any,
    scheduler: Any,
    rows: Any,
    num_times: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    accelerator: Any = None,
) -> BoundEstimate:
    """Bound of the rows in nats per token, by stratified Monte Carlo.

    The standard error is that of other rows from the same source and other noise; a row that is drawn again counts as
    another row. `even_times` of `row_bounds` says which times are drawn. Counted are the tokens that are neither
    padding nor `given`.

    Args:
        denoiser: as in `TextDiffusionPipeline`, in evaluation mode.
        scheduler: a token scheduler.
        rows: tokenized data set; each of its rows comes equally often.
        num_times: random times a row; times are stratified within each batch.
        batch_size: rows in one call of the denoiser.
        seed: of all draws.
        accelerator: its processes share the batches and all get the same result; each must call this.

    Raises:
        ValueError: if `num_times` or `batch_size` is below 1, or the rows have nothing to count.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers import D3PMAbsorbingScheduler, TextTransformerModel
        >>> from text_diffusers.evaluation import estimate_bound
        >>> denoiser = TextTransformerModel(9, hidden_size=16, num_layers=1, num_attention_heads=2, max_length=4)
        >>> rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 8, "attention_mask": [[1] * 4] * 8})
        >>> estimate = estimate_bound(denoiser.eval(), D3PMAbsorbingScheduler(mask_token_id=8), rows, batch_size=4)
        >>> estimate.bound > 0
        True
    """
    batches = SharedBatches(rows, num_times, batch_size, seed, device_of(denoiser), accelerator)

    # 1. Nats and tokens of each batch, by tenths of the noise
    nats = torch.zeros(batches.count, NOISE_LEVELS, dtype=torch.float64)
    tokens = torch.zeros_like(nats)
    for step, batch, uniform, generators in batches:
        shape = batch["input_ids"].shape
        # A time a row, (B,), or with blocks a time a token, (B, L).
        uniform = drawn_uniform(denoiser, batch, uniform, generators)
        bounds = drawn_token_bound(denoiser, scheduler, batch, uniform, generators)  # (B, L)
        if step is not None:
            levels = (uniform.view(len(uniform), -1).expand(shape) * NOISE_LEVELS).long().flatten()
            nats[step].index_add_(0, levels, bounds.cpu().flatten())
            tokens[step].index_add_(0, levels, unknown_tokens(batch).double().cpu().flatten())

    # 2. Per token
    nats, tokens = batches.total(torch.stack([nats, tokens]))
    require(
        bool(tokens.sum() > 0), "rows", "rows with a token that is neither padding nor given", rows
    )
    bound = float(nats.sum() / tokens.sum())
    error = ratio_error(nats.sum(dim=1), tokens.sum(dim=1))
    by_noise = nats.sum(dim=0) / tokens.sum(dim=0)
    return BoundEstimate(bound, error, by_noise.tolist())


class Likelihood(NamedTuple):
    """Cost of texts under a model, from above.

    Counted are the tokens that the pipeline writes, the end of a text among them, and neither its start nor what is
    given. An end that counts as a token is also one character and one byte. Standard errors are those of repeated
    noise, for the same texts; `nan` if nothing was drawn twice.

    Attributes:
        nats_per_token: bound of -log p of all texts, divided by `num_tokens`.
        standard_error: of `nats_per_token`.
        perplexity: exp(`nats_per_token`), per token; depends on the tokenizer.
        perplexity_error: its standard error, `perplexity` times `standard_error`.
        bits_per_character: the bound in bits, divided by `num_characters`: it compares models of any tokenizers.
        bits_per_byte: the bound in bits, divided by `num_bytes`.
        num_tokens: tokens that count: those of the texts, and one a text for its end, if the model or its length
            histogram tells where a text ends.
        num_characters: Unicode code points of the texts, without prompts or sources, and one for each end that counts.
        num_bytes: UTF-8 bytes of the texts, likewise.
        bound: "full" or "monte_carlo".
        num_samples: noisy texts that were predicted, over all texts.
        num_truncated: texts that were cut, or whose source was.
        per_text_nats: bound of -log p of each text, in nats.
        per_text_errors: their standard errors, in nats.
        unigram_entropy: nats per token of the frequencies of the counted tokens, the best bound of a model that
            ignores context and knows these frequencies.
        error_over_texts: standard error of `nats_per_token` for other texts from the same source, and other noise;
            `nan` of a single text.
        num_never_drawn: texts of a length that the pipeline never draws; each of them costs infinitely much.
        autoregressive_nats_per_token: -log p of all texts, divided by `num_tokens`, where the same weights write one
            token after the other, ends included, whoever draws lengths; `None` for a model whose past is not causal.
        autoregressive_bits_per_character: the same in bits, divided by `num_characters`.
    """

    nats_per_token: float
    standard_error: float
    perplexity: float
    perplexity_error: float
    bits_per_character: float
    bits_per_byte: float
    num_tokens: int
    num_characters: int
    num_bytes: int
    bound: str
    num_samples: int
    num_truncated: int
    per_text_nats: list[float]
    per_text_errors: list[float]
    unigram_entropy: float
    error_over_texts: float
    num_never_drawn: int
    autoregressive_nats_per_token: float | None = None
    autoregressive_bits_per_character: float | None = None


@torch.no_grad()
def evaluate_likelihood(
    pipe: Any,
    texts: str | Sequence[str],
    prompts: str | Sequence[str] | None = None,
    class_labels: Sequence[int | str | None] | None = None,
    num_times: int = 32,
    full: bool = False,
    num_noise: int = 2,
    max_length: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    sources: str | Sequence[str] | None = None,
    denoiser: Any = None,
    block_length: int | None = None,
    messages: Any = None,
    accelerator: Any = None,
) -> Likelihood:
    """Bound of -log p(text) under a pipeline, as the pipeline would write it.

    The start token and the prompt, source, conversation or label are given: they stay as they are and cost nothing.
    The pipeline keeps them fixed while it writes, so the bound is one of -log p(text | prompt), -log p(text | source)
    and so on, for any kernel. Where the pipeline draws the number of tokens first, from a length histogram or from
    what the model predicts of a source, it puts the end there: the text then costs -log p of its length, among those
    that the prompt leaves possible, and the end is known. Otherwise the model predicts the end, given where it stands.
    A language model then has masks to write behind the end too, up to the end of its block, or without blocks to a row
    of 128 new tokens, or a multiple. A masked LM of transformers without a histogram is told the number of tokens, at
    no cost.

    The bound is one of writing step by step at temperature 1: over tokens on the scheduler's own grid of
    `num_train_timesteps` or in continuous time, over word embeddings by all steps of DDPM. Temperature, `top_k`,
    `top_p`, guidance, controls and the order of confidence are not in it.

    Args:
        pipe: a pipeline over tokens with a scheduler that has a bound, or over word embeddings. Of a
            `ParaGuidePipeline` the bound is that of its denoiser without steering.
        texts: one or more. After a prompt, what follows it, the space before a word included.
        prompts: one a text, its beginning.
        class_labels: one a text, by number or name, for models that were trained with labels; `None` is no label.
        num_times: random times a text, for the Monte-Carlo bound; the errors need two at least.
        full: the full sum instead, see `full_bound`.
        num_noise: draws of each term of the full sum; 1 leaves the errors unknown.
        max_length: cut texts so that prompt or source, start and end included they have at most so many tokens; a cut
            text counts as one that ends there, and its characters are those of its tokens, decoded. A source is cut to
            half of the row, as in training. `num_truncated` says how many were cut.
        batch_size: noisy texts in one call of the denoiser; the result does not depend on it.
        seed: of all draws; a text's depend on its place in `texts` only.
        progress: show a bar.
        sources: one a text, from which it is written, for models that were trained with them; not with `prompts`.
        denoiser: what a training has around the pipeline's own, to be evaluated in its place.
        block_length: tokens of a block over a causal past, by default the model's own.
        messages: one conversation a text, which is the reply to it; not with `prompts` or `sources`.
        accelerator: its processes share the noisy texts and all get the same result; each must call this.

    Raises:
        ValueError: naming the text, if it is longer than the model or its histogram, holds the mask token, has nothing
            to predict, or cannot be written by the model at all; or if an argument does not fit, or the pipeline has
            no such bound.

    Example:
        >>> from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline, TextTransformerModel
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.evaluation import evaluate_likelihood
        >>> texts = ["the cat sat on the mat and looked at the dog", "a bird sang while the cat slept in the tree"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> denoiser = TextTransformerModel(len(tokenizer), hidden_size=16, num_layers=1, num_attention_heads=2)
        >>> scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
        >>> pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler)
        >>> likelihood = evaluate_likelihood(pipe, "the cat sat", num_times=4)
        >>> likelihood.perplexity > 1
        True
    """
    # 1. Check the inputs and encode
    texts = [texts] if isinstance(texts, str) else list(texts)
    require(len(texts) > 0, "texts", "at least one text", texts)
    prompts = one_each("prompts", prompts, len(texts))
    sources = one_each("sources", sources, len(texts))
    labels = label_ids(pipe, one_each("class_labels", class_labels, len(texts)))
    check_has_bound(pipe, sources is not None)

    written = texts_of_pipeline(
        pipe, texts, prompts, sources, max_length, messages, labels, block_length
    )
    # A language model with labels has read them in front of the texts.
    is_shown = shown_labels(pipe.denoiser, pipe.config) is not None
    told_labels = None if is_shown else labels
    rows = []
    for index, text in enumerate(written):
        rows.append(text.row(None if told_labels is None else told_labels[index]))

    # 2. Sum over the noise
    denoiser = denoiser or as_denoiser(pipe.denoiser, pipe.tokenizer)
    if block_length is not None:
        denoiser = in_blocks_of(denoiser, block_length)
    options: Any = {"batch_size": batch_size, "seed": seed, "progress": progress}
    options["accelerator"] = accelerator
    with evaluating(pipe.denoiser):
        bounds = row_bounds_of(
            pipe, denoiser, rows, full=full, num_times=num_times, num_noise=num_noise, **options
        )
        lengths = torch.tensor([text.length_nats for text in written], dtype=torch.float64)
        if sources is not None and length_model(denoiser) is not None:
            padding = padding_id(pipe.tokenizer)
            lengths += predicted_length_nats(denoiser, written, labels, padding, batch_size)
        next_token_nats = None
        if predicts_next(denoiser):
            next_token_rows = [text.next_token_row() for text in written]
            nats_of_rows = autoregressive_row_nats(
                denoiser, next_token_rows, batch_size, accelerator
            )
            next_token_nats = float(nats_of_rows.sum())

    # A token that the model cannot write has probability 0.
    impossible = (~bounds.nats.isfinite()).nonzero()
    if len(impossible):
        raise ValueError(
            f"`texts[{int(impossible[0])}]` must be of tokens that the model can write, but has others."
        )

    # 3. With what is not noise, the lengths, and in the units that there are
    nats = bounds.nats + lengths
    num_never_drawn = int((~nats.isfinite()).sum())
    if num_never_drawn:
        logger.warning(
            f"The bound is infinite: {num_never_drawn} of {len(texts)} texts have a number of tokens that the "
            "pipeline, by its `lengths`, never draws."
        )

    return likelihood_of(
        bounds,
        nats,
        counted=[text.counted for text in written],
        num_characters=sum(text.num_characters for text in written),
        num_bytes=sum(text.num_bytes for text in written),
        next_token_nats=next_token_nats,
        bound="full" if full else "monte_carlo",
        num_truncated=sum(text.truncated for text in written),
        num_never_drawn=num_never_drawn,
    )


def likelihood_of(
    bounds: RowBounds,
    nats: Tensor,
    counted: Sequence[Sequence[int]],
    num_characters: int,
    num_bytes: int,
    next_token_nats: float | None = None,
    bound: str = "monte_carlo",
    num_truncated: int = 0,
    num_never_drawn: int = 0,
) -> Likelihood:
    """The figures of texts or rows, in the units that there are.

    Args:
        bounds: of the rows, whose errors and number of samples are taken.
        nats: (R,) bounds of -log p with all that is not noise.
        counted: ids of the tokens of each that count.
        num_characters, num_bytes: of all counted tokens together.
        next_token_nats: of all of them, if the same weights write token by token.
    """
    tokens = torch.tensor([len(ids) for ids in counted], dtype=torch.float64)
    num_tokens = sum(map(len, counted))
    total = float(nats.sum())
    error = float(bounds.variance.sum().sqrt()) / num_tokens
    perplexity = float(np.exp(total / num_tokens))

    by_token = None
    by_character = None
    if next_token_nats is not None:
        by_token = next_token_nats / num_tokens
        by_character = next_token_nats / math.log(2) / num_characters
    return Likelihood(
        nats_per_token=total / num_tokens,
        standard_error=error,
        perplexity=perplexity,
        perplexity_error=perplexity * error,
        bits_per_character=total / math.log(2) / num_characters,
        bits_per_byte=total / math.log(2) / num_bytes,
        num_tokens=num_tokens,
        num_characters=num_characters,
        num_bytes=num_bytes,
        bound=bound,
        num_samples=bounds.num_samples,
        num_truncated=num_truncated,
        per_text_nats=nats.tolist(),
        per_text_errors=bounds.variance.sqrt().tolist(),
        unigram_entropy=frequency_entropy(counted),
        error_over_texts=ratio_error(nats, tokens),
        num_never_drawn=num_never_drawn,
        autoregressive_nats_per_token=by_token,
        autoregressive_bits_per_character=by_character,
    )


def one_each(name: str, values: Any, count: int) -> list[Any] | None:
    """`values` as a list, checked to have one value a text; `None` if there are none."""
    if values is None:
        return None
    values = [values] if isinstance(values, str) else list(values)
    require(len(values) == count, name, f"one a text, {count}", len(values))
    return values


def label_ids(pipe: Any, labels: list[Any] | None) -> list[int] | None:
    """Labels as numbers, from names or numbers; `None` among them is no label, the number behind those of all labels.

    Raises:
        ValueError: if the model has no label of that name.
    """
    if labels is None:
        return None
    names = list(pipe.config.get("label_names") or [])
    ids = []
    for label in labels:
        if isinstance(label, str) and label not in names:
            raise ValueError(
                f"`class_labels` must be among the model's `label_names`, {names}, got {label!r}."
            )
        if label is None:
            label = len(pipe.label_names)
        # Numbers of numpy and torch are integers too, and fractions are none.
        ids.append(names.index(label) if isinstance(label, str) else operator.index(label))
    return ids


def check_has_bound(pipe: Any, has_sources: bool):
    """Refuse a pipeline without a bound of single texts, or without one given their sources."""
    kind = pipe.kind
    if kind == "codes":
        raise ValueError(
            f"`pipe` must write tokens or word embeddings, got {type(pipe).__name__}: the bound of codes is "
            "`estimate_two_level_bound`."
        )
    if kind == "latents":
        raise ValueError(
            f"`pipe` must write tokens or word embeddings, got {type(pipe).__name__}: the bound of latents is "
            "`estimate_latent_bound`."
        )
    if kind == "tokens":
        require(
            isinstance(pipe.scheduler, D3PMScheduler),
            "pipe",
            "a pipeline with a scheduler that has a bound",
            pipe.scheduler,
        )
        return

    # Some schedulers of diffusers count noise on another scale.
    require(
        hasattr(pipe.scheduler, "alphas_cumprod"),
        "pipe",
        "a pipeline with a scheduler that has `alphas_cumprod`, whose bound is of them",
        pipe.scheduler,
    )
    if has_sources and not pipe.denoiser.config.partial_noising:
        raise ValueError(
            "`sources` need a denoiser with `partial_noising=True`, which was trained with them."
        )


def row_bounds_of(
    pipe: Any,
    denoiser: Any,
    rows: list[dict[str, Any]],
    full: bool,
    num_times: int,
    num_noise: int,
    **options: Any,
) -> RowBounds:
    """The bounds of rows under a pipeline of tokens or of word embeddings."""
    if pipe.kind == "embeddings":
        return embedding_row_bounds(
            denoiser, pipe.scheduler, rows, num_times, full, num_noise, **options
        )
    if full:
        return full_bound(denoiser, pipe.scheduler, rows, num_noise=num_noise, **options)
    return monte_carlo_bound(denoiser, pipe.scheduler, rows, num_times, **options)


def unigram_entropy(rows: Iterable[dict[str, list[int]]]) -> float:
    """Entropy of the token frequencies in nats per token: the best bound of a model that ignores context.

    Padding and `given` tokens are left out.

    Example:
        >>> from text_diffusers.evaluation import unigram_entropy
        >>> round(unigram_entropy([{"input_ids": [5, 5, 6, 6], "attention_mask": [1, 1, 1, 1]}]), 4)  # log(2)
        0.6931
    """
    # Only what the bound counts, so that both compare.
    return frequency_entropy(counted_ids(rows))


def frequency_entropy(texts: Iterable[Iterable[int]]) -> float:
    """Entropy of the frequencies of the ids in all texts, in nats."""
    counts: Counter[int] = Counter()
    for ids in texts:
        counts.update(ids)
    frequencies = np.array(list(counts.values()), dtype=np.float64)
    frequencies /= frequencies.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def length_distance(first: Iterable[int], second: Iterable[int]) -> float:
    """Wasserstein-1 distance between two samples of lengths: the tokens by which one has to move to be the other.

    Example:
        >>> from text_diffusers.evaluation import length_distance
        >>> length_distance([3, 5], [4, 8])
        2.0
    """
    first = np.sort(np.asarray(list(first), dtype=np.float64))
    second = np.sort(np.asarray(list(second), dtype=np.float64))
    if not len(first) or not len(second):
        raise ValueError(
            f"`first` and `second` must each hold a length, got {len(first)} and {len(second)}."
        )

    # The area between the two cumulative distributions, which change at the lengths only.
    grid = np.sort(np.concatenate([first, second]))
    first_cdf = np.searchsorted(first, grid[:-1], side="right") / len(first)
    second_cdf = np.searchsorted(second, grid[:-1], side="right") / len(second)
    return float((np.abs(first_cdf - second_cdf) * np.diff(grid)).sum())
