"""How good a model is: variational bounds and their yardsticks, in nats per token.

A bound is an upper one: the model's own negative log-likelihood is as large or smaller.

Shapes: B batch, L sequence length, V vocabulary size, N positions.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.training_randomness import row_noise, token_uniform
from text_diffusers.common.validation import is_int, require
from text_diffusers.data.rows import ShuffledRows, encode_texts, unknown_tokens
from text_diffusers.evaluation.bounds import block_length
from text_diffusers.evaluation.row_bounds import drawn_token_bound, full_bound, monte_carlo_bound
from text_diffusers.models.language_model import as_denoiser, is_masked_lm
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler

NOISE_LEVELS = 10


class BoundEstimate(NamedTuple):
    """A bound, its standard error, and where it comes from: the integrand's mean in each tenth of the noise.

    All in nats per token; `by_noise` begins next to the data and averages to the bound, `nan` where no time fell. The
    tenths are of 1 - alpha for the absorbing kernel and of the time for others, which is the same if alpha is linear.
    """

    bound: float
    standard_error: float
    by_noise: list[float]

    def metrics(self) -> dict[str, float]:
        """For trackers: the bound, its error, and the tenths under a heading of their own."""
        levels = {f"bound_by_noise/{(i + 0.5) / NOISE_LEVELS:.2f}": nats for i, nats in enumerate(self.by_noise)}
        return {"bound": self.bound, "standard_error": self.standard_error} | levels


class SharedBatches:
    """Random batches of a data set and their noise, shared among processes.

    Iterating yields `(step, batch, uniform, generators)`: numbers (B,), one a stratum, and a generator a row. `step`
    is `None` where a process that has no batch left computes one with the others, as a model in shards needs.

    Args:
        rows: tokenized data set; it is gone through `num_times` times, or oftener until there are two batches.
        accelerator: of the processes, or None.
    """

    def __init__(self, rows: Any, num_times: int, batch_size: int, seed: int, device: torch.device, accelerator: Any):
        self.order, self.seed = ShuffledRows(rows, rows_per_step=batch_size, seed=seed), seed
        self.count = max(2, -(-len(rows) * num_times // batch_size))  # two at least, for the error
        self.device, self.accelerator = device, accelerator
        self.rank, self.processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)

    def __iter__(self) -> Iterator[tuple[int | None, dict[str, Tensor], Tensor, list[torch.Generator]]]:
        for first in range(self.rank, self.count + self.rank, self.processes):
            step = min(first, self.count - 1)
            batch = {name: column.to(self.device) for name, column in self.order.batch(step).items()}
            uniform, generators = row_noise(self.seed, step, self.order.rows_per_step)
            yield (step if first < self.count else None), batch, uniform, generators

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values`, on the CPU, over the processes."""
        return self.accelerator.reduce(values.to(self.device)).cpu() if self.processes > 1 else values


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

    The standard error is that of other rows from the same source and other noise. `even_times` of `row_bounds` says
    which times are drawn.

    Args:
        rows: tokenized data set.
        num_times: random times a row; times are stratified within each batch.
        accelerator: its processes share the batches and all get the same result; each must call this.
    """
    device = next(denoiser.parameters()).device
    batches = SharedBatches(rows, num_times, batch_size, seed, device, accelerator)
    nats, tokens = torch.zeros(2, batches.count, NOISE_LEVELS, dtype=torch.float64)
    for step, batch, uniform, generators in batches:
        shape = batch["input_ids"].shape
        uniform = token_uniform(uniform, shape[1], block_length(denoiser), generators)  # (B,) or (B, L)
        bounds = drawn_token_bound(denoiser, scheduler, batch, uniform, generators)  # (B, L)
        if step is not None:
            levels = (uniform.view(len(uniform), -1).expand(shape) * NOISE_LEVELS).long().flatten()
            nats[step].index_add_(0, levels, bounds.cpu().flatten())
            tokens[step].index_add_(0, levels, unknown_tokens(batch).double().cpu().flatten())
    nats, tokens = batches.total(torch.stack([nats, tokens]))
    per_batch = nats.sum(dim=1) / (tokens.sum() / batches.count)
    error = float(per_batch.std() / batches.count**0.5)
    return BoundEstimate(float(per_batch.mean()), error, (nats.sum(dim=0) / tokens.sum(dim=0)).tolist())


class Likelihood(NamedTuple):
    """What texts cost under a model, from above.

    Standard errors are those of repeated noise, for the same texts; `nan` if nothing was drawn twice.

    Attributes:
        nats_per_token: bound of -log p of all texts, divided by `num_tokens`.
        standard_error: of `nats_per_token`.
        perplexity: exp(`nats_per_token`), per token; depends on the tokenizer.
        perplexity_error: its standard error, `perplexity` times `standard_error`.
        bits_per_character: the bound in bits, divided by `num_characters`.
        bits_per_byte: the bound in bits, divided by `num_bytes`.
        num_tokens: tokens that were paid for: those of the texts, and one a text for its end, if the model or its
            length histogram tells where a text ends.
        num_characters: Unicode code points of the texts, without their prompts.
        num_bytes: UTF-8 bytes of the texts, without their prompts.
        bound: "full" or "monte_carlo".
        num_samples: noisy texts that were predicted, over all texts.
        num_truncated: texts that were cut at `max_length`.
        per_text_nats: bound of -log p of each text, in nats.
        per_text_errors: their standard errors, in nats.
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


class EncodedText(NamedTuple):
    """One text as a row: `start` and `end` are clean, what is between them is paid for, and so are `length_nats`."""

    start: list[int]
    paid: list[int]
    end: list[int]
    length_nats: float
    num_tokens: int
    text: str
    truncated: bool

    def row(self, label: int | None) -> dict[str, Any]:
        ids = [*self.start, *self.paid, *self.end]
        given = [True] * len(self.start) + [False] * len(self.paid) + [True] * len(self.end)
        row = {"input_ids": ids, "attention_mask": [1] * len(ids), "given": given}
        return row if label is None else row | {"label": label}


@torch.no_grad()
def evaluate_likelihood(
    pipe: Any,
    texts: str | Sequence[str],
    prompts: str | Sequence[str] | None = None,
    class_labels: Sequence[int] | None = None,
    num_times: int = 32,
    full: bool = False,
    num_noise: int = 2,
    max_length: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Likelihood:
    """Bound of -log p(text) under a pipeline, as the pipeline would write it.

    What the pipeline is told is clean and free: the start token, and the prompt. It keeps both fixed while it writes,
    so the bound is one of -log p(text | prompt) for any kernel. With a length histogram the pipeline draws the
    number of tokens and puts the end there: the text then costs `length_nats` of what the prompt leaves possible,
    and the end is clean. Without it the model predicts the end, given where it stands. A masked LM of transformers
    without a histogram is told the number of tokens, at no cost.

    The bound is one of writing step by step at temperature 1, on the scheduler's own grid of `num_train_timesteps` or
    in continuous time. Temperature, `top_k`, `top_p` and the order of confidence are not in it.

    Args:
        pipe: `TextDiffusionPipeline` with a scheduler that has a bound.
        texts: one or more. After a prompt, what follows it, the space before a word included.
        prompts: one a text.
        class_labels: one a text, for models that were trained with labels.
        num_times: random times a text, even, for the Monte-Carlo bound.
        full: the full sum instead, see `full_bound`.
        num_noise: draws of each term of the full sum; 1 leaves the errors unknown.
        max_length: cut texts so that prompt, start and end included they have at most so many tokens; a cut text
            counts as one that ends there, and its characters are those of its tokens, decoded. `num_truncated` says
            how many were cut.
        batch_size: noisy texts in one call of the denoiser; the result does not depend on it.
        seed: of all draws; a text's depend on its place in `texts` only.
        progress: show a bar.

    Raises:
        ValueError: naming the text, if it is longer than the model or its histogram, holds the mask token, has nothing
            to predict, or cannot be written by the model at all; or if an argument does not fit.
    """
    # 1. Check the inputs and encode
    texts = [texts] if isinstance(texts, str) else list(texts)
    prompts, labels = (
        one_each("prompts", prompts, "", len(texts)),
        one_each("class_labels", class_labels, None, len(texts)),
    )
    require(len(texts) > 0, "texts", "at least one text", texts)
    scheduler = pipe.scheduler
    require(isinstance(scheduler, D3PMScheduler), "pipe", "a pipeline with a scheduler that has a bound", scheduler)
    encoded = encode_for_likelihood(pipe, texts, prompts, max_length)
    rows = [text.row(label) for text, label in zip(encoded, labels, strict=True)]
    # 2. Sum over the noise
    parts = as_denoiser(pipe.denoiser, pipe.tokenizer), scheduler, rows
    with evaluating(pipe.denoiser):
        if full:
            bounds = full_bound(*parts, batch_size, num_noise, seed, progress)
        else:
            bounds = monte_carlo_bound(*parts, num_times, batch_size, seed, progress)
    # 3. Units
    nats = bounds.nats + torch.tensor([text.length_nats for text in encoded], dtype=torch.float64)
    impossible = (~nats.isfinite()).nonzero()
    if len(impossible):
        raise ValueError(f"`texts[{int(impossible[0])}]` must be of tokens that the model can write, but has others.")
    return likelihood(nats, bounds.variance, encoded, "full" if full else "monte_carlo", bounds.num_samples)


def one_each(name: str, values: Any, default: Any, count: int) -> list[Any]:
    """`values` as a list, checked to have one value a text; `default` for each text if there are none."""
    values = [values] if isinstance(values, str) else [default] * count if values is None else list(values)
    require(len(values) == count, name, f"one a text, {count}", len(values))
    return values


def likelihood(
    nats: torch.Tensor, variance: torch.Tensor, encoded: list[EncodedText], bound: str, num_samples: int
) -> Likelihood:
    """The summary of bounds of texts in nats and their variances, (number of texts,) each."""
    num_tokens = sum(text.num_tokens for text in encoded)
    num_characters = sum(len(text.text) for text in encoded)
    num_bytes = sum(len(text.text.encode()) for text in encoded)
    total, per_token = float(nats.sum()), float(nats.sum()) / num_tokens
    error = float(variance.sum().sqrt()) / num_tokens
    perplexity = float(np.exp(per_token))
    return Likelihood(
        nats_per_token=per_token,
        standard_error=error,
        perplexity=perplexity,
        perplexity_error=perplexity * error,
        bits_per_character=total / math.log(2) / num_characters,
        bits_per_byte=total / math.log(2) / num_bytes,
        num_tokens=num_tokens,
        num_characters=num_characters,
        num_bytes=num_bytes,
        bound=bound,
        num_samples=num_samples,
        num_truncated=sum(text.truncated for text in encoded),
        per_text_nats=nats.tolist(),
        per_text_errors=variance.sqrt().tolist(),
    )


def encode_for_likelihood(
    pipe: Any, texts: list[str], prompts: list[str], max_length: int | None
) -> list[EncodedText]:
    """The texts as the pipeline would write them after their prompts, checked."""
    require(max_length is None or is_int(max_length, 1), "max_length", "None or an integer >= 1", max_length)
    limit = pipe._max_length if max_length is None else min(max_length, pipe._max_length)
    lengths, told = pipe.config.lengths, is_masked_lm(pipe.denoiser)
    start, end = start_ids(pipe.tokenizer), end_ids(pipe.tokenizer)
    encoded = []
    known_ids, text_ids = (encode_texts(pipe.tokenizer, strings) for strings in (prompts, texts))
    for index, (text, known, ids) in enumerate(zip(texts, known_ids, text_ids, strict=True)):
        room = limit - len(start) - len(known) - len(end)
        truncated = len(ids) > room
        if truncated and (max_length is None or room < 1):
            raise ValueError(
                f"`texts[{index}]` must fit into {limit} tokens with its prompt, start and end, got "
                f"{limit - room + len(ids)}: shorten it" + (", or pass `max_length`." if max_length is None else ".")
            )
        if truncated:
            ids = ids[:room]
            text = pipe.tokenizer.decode(ids)
        if lengths and len(known) + len(ids) >= len(lengths):
            raise ValueError(
                f"`texts[{index}]` must have at most {len(lengths) - 1} tokens with its prompt, the longest text in "
                f"the model's length histogram, got {len(known) + len(ids)}."
            )
        if pipe.tokenizer.mask_token_id in (*known, *ids):
            raise ValueError(
                f"`texts[{index}]` and its prompt must not hold {pipe.tokenizer.mask_token}, got {text!r}."
            )
        if not text or not ids:
            raise ValueError(f"`texts[{index}]` must hold at least one token, got {text!r}.")
        paid, clean = (ids, end) if lengths or told else (ids + end, [])
        cost = length_nats(lengths[len(known) :], [len(ids)]) if lengths else 0.0
        count = len(paid) + (len(end) if lengths else 0)
        encoded.append(EncodedText([*start, *known], paid, clean, cost, count, text, truncated))
    return encoded


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model without dropout, for as long as it lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def length_nats(histogram: list[int], lengths: Iterable[int]) -> float:
    """Nats to tell the lengths of texts, summed, under a histogram with one added to each count.

    A model of one text a row knows where its row ends, so the bound of its tokens is short of this much.
    """
    smoothed = np.asarray(histogram, dtype=np.float64) + 1
    return float(-np.log(smoothed / smoothed.sum())[np.fromiter(lengths, dtype=np.int64)].sum())


def unigram_entropy(rows: Iterable[dict[str, list[int]]]) -> float:
    """Entropy of the token frequencies in nats per token: the best bound of a model that ignores context.

    Padding and `given` tokens are left out.
    """
    counts: Counter[int] = Counter()
    for row in rows:
        given = row.get("given") or [False] * len(row["input_ids"])
        kept = zip(row["input_ids"], row["attention_mask"], given, strict=True)
        counts.update(token for token, real, known in kept if real and not known)
    frequencies = np.array(list(counts.values()), dtype=np.float64)
    frequencies /= frequencies.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def length_distance(first: Iterable[int], second: Iterable[int]) -> float:
    """Wasserstein-1 distance between two samples of lengths: the tokens by which one has to move to be the other."""
    a, b = np.sort(np.asarray(list(first), dtype=np.float64)), np.sort(np.asarray(list(second), dtype=np.float64))
    if not len(a) or not len(b):
        raise ValueError(f"`first` and `second` must each hold a length, got {len(a)} and {len(b)}.")
    grid = np.sort(np.concatenate([a, b]))
    cdf_a = np.searchsorted(a, grid[:-1], side="right") / len(a)
    cdf_b = np.searchsorted(b, grid[:-1], side="right") / len(b)
    return float((np.abs(cdf_a - cdf_b) * np.diff(grid)).sum())
