"""How good a model is: variational bounds and their yardsticks, in nats per token.

A bound is an upper one: the model's own negative log-likelihood is as large or smaller.

Shapes: B batch, L sequence length, V vocabulary size, N positions.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.training_randomness import row_noise, token_uniform
from text_diffusers.common.validation import is_int, require
from text_diffusers.data.rows import ShuffledRows, encode_texts, unknown_tokens
from text_diffusers.evaluation.bounds import block_length
from text_diffusers.evaluation.modules import device_of, evaluating
from text_diffusers.evaluation.row_bounds import drawn_token_bound, full_bound, monte_carlo_bound
from text_diffusers.models.language_model import as_denoiser, is_masked_lm
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler

NOISE_LEVELS = 10


class BoundEstimate(NamedTuple):
    """A bound, its standard error, and where it comes from: the integrand's mean in each tenth of the noise.

    All in nats per token; `by_noise` begins next to the data and averages to the bound, `nan` where no time fell. The
    tenths are of 1 - alpha for the absorbing kernel and of the time for others, which is the same if alpha is linear.

    Example:
        >>> from text_diffusers.evaluation import BoundEstimate
        >>> BoundEstimate(bound=2.5, standard_error=0.1, by_noise=[2.0, 3.0]).metrics()["bound_by_noise/0.05"]
        2.0
    """

    bound: float
    standard_error: float
    by_noise: list[float]

    def metrics(self) -> dict[str, float]:
        """For trackers: the bound, its error, and the tenths under a heading of their own."""
        metrics = {"bound": self.bound, "standard_error": self.standard_error}
        for level, nats in enumerate(self.by_noise):
            metrics[f"bound_by_noise/{(level + 0.5) / NOISE_LEVELS:.2f}"] = nats
        return metrics


class SharedBatches:
    """Random batches of a data set and their noise, shared among processes.

    Iterating yields `(step, batch, uniform, generators)`: numbers (B,), one a stratum, and a generator a row. `step`
    is `None` where a process that has no batch left computes one with the others, as a model in shards needs.

    Args:
        rows: tokenized data set; it is gone through `num_times` times, or oftener until there are two batches.
        num_times: random times a row.
        batch_size: rows in a batch.
        seed: of the order of the rows and of the noise.
        device: of the batches.
        accelerator: of the processes, or None.
    """

    def __init__(
        self,
        rows: Any,
        num_times: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        accelerator: Any,
    ):
        self.order = ShuffledRows(rows, rows_per_step=batch_size, seed=seed)
        self.count = max(2, -(-len(rows) * num_times // batch_size))  # two at least, for the error
        self.seed = seed
        self.device = device
        self.accelerator = accelerator
        self.rank = accelerator.process_index if accelerator else 0
        self.num_processes = accelerator.num_processes if accelerator else 1

    def __iter__(
        self,
    ) -> Iterator[tuple[int | None, dict[str, Tensor], Tensor, list[torch.Generator]]]:
        # Process r of P takes the batches r, r + P, ...; all of them take equally many.
        for first in range(self.rank, self.count + self.rank, self.num_processes):
            step = min(first, self.count - 1)
            batch = {
                name: column.to(self.device) for name, column in self.order.batch(step).items()
            }
            uniform, generators = row_noise(self.seed, step, self.order.rows_per_step)
            yield (step if first < self.count else None), batch, uniform, generators

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values`, on the CPU, over the processes."""
        if self.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.device)).cpu()


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
        denoiser: as in `TextDiffusionPipeline`, in evaluation mode.
        scheduler: a token scheduler.
        rows: tokenized data set.
        num_times: random times a row; times are stratified within each batch.
        batch_size: rows in one call of the denoiser.
        seed: of all draws.
        accelerator: its processes share the batches and all get the same result; each must call this.

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
        uniform = token_uniform(uniform, shape[1], block_length(denoiser), generators)
        bounds = drawn_token_bound(denoiser, scheduler, batch, uniform, generators)  # (B, L)
        if step is not None:
            levels = (uniform.view(len(uniform), -1).expand(shape) * NOISE_LEVELS).long().flatten()
            nats[step].index_add_(0, levels, bounds.cpu().flatten())
            tokens[step].index_add_(0, levels, unknown_tokens(batch).double().cpu().flatten())

    # 2. Per token; batches are compared by their nats, as all should have equally many tokens
    nats, tokens = batches.total(torch.stack([nats, tokens]))
    per_batch = nats.sum(dim=1) / (tokens.sum() / batches.count)
    error = float(per_batch.std() / batches.count**0.5)
    by_noise = nats.sum(dim=0) / tokens.sum(dim=0)
    return BoundEstimate(float(per_batch.mean()), error, by_noise.tolist())


class Likelihood(NamedTuple):
    """Cost of texts under a model, from above.

    Standard errors are those of repeated noise, for the same texts; `nan` if nothing was drawn twice.

    Attributes:
        nats_per_token: bound of -log p of all texts, divided by `num_tokens`.
        standard_error: of `nats_per_token`.
        perplexity: exp(`nats_per_token`), per token; depends on the tokenizer.
        perplexity_error: its standard error, `perplexity` times `standard_error`.
        bits_per_character: the bound in bits, divided by `num_characters`.
        bits_per_byte: the bound in bits, divided by `num_bytes`.
        num_tokens: tokens that count: those of the texts, and one a text for its end, if the model or its length
            histogram tells where a text ends.
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
    """One text as a row: `start` and `end` are given and free, what is between them costs its bound.

    Attributes:
        start, predicted, end: token ids.
        length_nats: cost of the number of tokens under the length histogram.
        num_tokens: tokens that count.
        text: the text, cut if `truncated`.
    """

    start: list[int]
    predicted: list[int]
    end: list[int]
    length_nats: float
    num_tokens: int
    text: str
    truncated: bool

    def row(self, label: int | None) -> dict[str, Any]:
        """The row of a data set, as the bounds read it."""
        ids = self.start + self.predicted + self.end
        given = [True] * len(self.start) + [False] * len(self.predicted) + [True] * len(self.end)
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids), "given": given}
        if label is not None:
            row["label"] = label
        return row


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

    The start token and the prompt are given: they stay clean and cost nothing. The pipeline keeps both fixed while it
    writes, so the bound is one of -log p(text | prompt) for any kernel. With a length histogram the pipeline draws the
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
    prompts = one_each("prompts", prompts, "", len(texts))
    labels = one_each("class_labels", class_labels, None, len(texts))
    require(len(texts) > 0, "texts", "at least one text", texts)
    scheduler = pipe.scheduler
    require(
        isinstance(scheduler, D3PMScheduler),
        "pipe",
        "a pipeline with a scheduler that has a bound",
        scheduler,
    )
    encoded = encode_for_likelihood(pipe, texts, prompts, max_length)
    rows = [text.row(label) for text, label in zip(encoded, labels, strict=True)]

    # 2. Sum over the noise
    denoiser = as_denoiser(pipe.denoiser, pipe.tokenizer)
    options: Any = {"batch_size": batch_size, "seed": seed, "progress": progress}
    with evaluating(pipe.denoiser):
        if full:
            bounds = full_bound(denoiser, scheduler, rows, num_noise=num_noise, **options)
        else:
            bounds = monte_carlo_bound(denoiser, scheduler, rows, num_times, **options)

    # 3. Units
    nats = bounds.nats + torch.tensor([text.length_nats for text in encoded], dtype=torch.float64)
    # A token that the model cannot write has probability 0.
    impossible = (~nats.isfinite()).nonzero()
    if len(impossible):
        raise ValueError(
            f"`texts[{int(impossible[0])}]` must be of tokens that the model can write, but has others."
        )

    total = float(nats.sum())
    num_tokens = sum(text.num_tokens for text in encoded)
    num_characters = sum(len(text.text) for text in encoded)
    num_bytes = sum(len(text.text.encode()) for text in encoded)
    error = float(bounds.variance.sum().sqrt()) / num_tokens
    perplexity = float(np.exp(total / num_tokens))
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
        bound="full" if full else "monte_carlo",
        num_samples=bounds.num_samples,
        num_truncated=sum(text.truncated for text in encoded),
        per_text_nats=nats.tolist(),
        per_text_errors=bounds.variance.sqrt().tolist(),
    )


def one_each(name: str, values: Any, default: Any, count: int) -> list[Any]:
    """`values` as a list, checked to have one value a text; `default` for each text if there are none."""
    if values is None:
        return [default] * count
    values = [values] if isinstance(values, str) else list(values)
    require(len(values) == count, name, f"one a text, {count}", len(values))
    return values


def encode_for_likelihood(
    pipe: Any, texts: list[str], prompts: list[str], max_length: int | None
) -> list[EncodedText]:
    """The texts as the pipeline would write them after their prompts, checked."""
    require(
        max_length is None or is_int(max_length, 1),
        "max_length",
        "None or an integer >= 1",
        max_length,
    )
    tokenizer = pipe.tokenizer
    histogram = pipe.config.lengths  # counts of lengths of 0, 1, ... tokens, or None
    limit = min(max_length or pipe.max_length, pipe.max_length)
    start = start_ids(tokenizer)
    end = end_ids(tokenizer)

    encoded = []
    rows = zip(texts, encode_texts(tokenizer, prompts), encode_texts(tokenizer, texts), strict=True)
    for index, (text, prompt_ids, text_ids) in enumerate(rows):
        name = f"`texts[{index}]`"
        room = limit - len(start) - len(prompt_ids) - len(end)
        truncated = len(text_ids) > room
        if truncated and (max_length is None or room < 1):
            advice = ", or pass `max_length`." if max_length is None else "."
            raise ValueError(
                f"{name} must fit into {limit} tokens with its prompt, start and end, got "
                f"{limit - room + len(text_ids)}: shorten it{advice}"
            )

        # The characters of a cut text are those of its tokens.
        if truncated:
            text_ids = text_ids[:room]
            text = tokenizer.decode(text_ids)

        # A text that the model could never write has no bound.
        length = len(prompt_ids) + len(text_ids)
        if histogram and length >= len(histogram):
            raise ValueError(
                f"{name} must have at most {len(histogram) - 1} tokens with its prompt, the longest text in the "
                f"model's length histogram, got {length}."
            )
        if tokenizer.mask_token_id in (*prompt_ids, *text_ids):
            raise ValueError(
                f"{name} and its prompt must not hold {tokenizer.mask_token}, got {text!r}."
            )
        if not text or not text_ids:
            raise ValueError(f"{name} must hold at least one token, got {text!r}.")

        # Who draws the length, or is told it, puts the end itself; otherwise the model predicts it.
        end_is_given = bool(histogram) or is_masked_lm(pipe.denoiser)
        encoded.append(
            EncodedText(
                start=start + prompt_ids,
                predicted=text_ids if end_is_given else text_ids + end,
                end=end if end_is_given else [],
                length_nats=length_nats(histogram[len(prompt_ids) :], [len(text_ids)])
                if histogram
                else 0.0,
                num_tokens=len(text_ids) + (0 if end_is_given and not histogram else len(end)),
                text=text,
                truncated=truncated,
            )
        )
    return encoded


def length_nats(histogram: list[int], lengths: Iterable[int]) -> float:
    """Nats to tell the lengths of texts, summed, under a histogram with one added to each count.

    A model of one text a row knows where its row ends, so the bound of its tokens is short of this much.

    Example:
        >>> from text_diffusers.evaluation import length_nats
        >>> round(length_nats([0, 3, 3], lengths=[1, 2]), 4)  # each of them has 4 of 9 counts
        1.6219
    """
    # A length that the histogram has not seen would be infinitely dear.
    smoothed = np.asarray(histogram, dtype=np.float64) + 1
    log_probs = np.log(smoothed / smoothed.sum())
    return float(-log_probs[np.fromiter(lengths, dtype=np.int64)].sum())


def unigram_entropy(rows: Iterable[dict[str, list[int]]]) -> float:
    """Entropy of the token frequencies in nats per token: the best bound of a model that ignores context.

    Padding and `given` tokens are left out.

    Example:
        >>> from text_diffusers.evaluation import unigram_entropy
        >>> round(unigram_entropy([{"input_ids": [5, 5, 6, 6], "attention_mask": [1, 1, 1, 1]}]), 4)  # log(2)
        0.6931
    """
    # Only what the bound counts, so that both compare.
    counts: Counter[int] = Counter()
    for row in rows:
        given = row.get("given") or [False] * len(row["input_ids"])
        columns = zip(row["input_ids"], row["attention_mask"], given, strict=True)
        for token, real, is_given in columns:
            if real and not is_given:
                counts[token] += 1

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
