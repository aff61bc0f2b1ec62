"""How much of texts their continuous latents keep, and what lies between the latents of two texts.

Shapes: B batch, R rows, K latents, E width of a latent, T tokens of the decoder, P of what is given before a text, V
vocabulary size of the decoder.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.randomness import randn, row_generators
from text_diffusers.common.token_ids import end_ids, padding_id
from text_diffusers.common.validation import require_int
from text_diffusers.data.rows import (
    Batch,
    tensor_batches,
    to_device,
    to_tensors,
    unknown_tokens,
)
from text_diffusers.evaluation.modules import device_of, evaluating
from text_diffusers.losses.latent import gaussian_kl

# Logits that are there at once
LOGITS_AT_ONCE = 2**25
WRITTEN_AT_ONCE = 16

# An entry of the latents is active if its mean varies by more than this from text to text
# (https://arxiv.org/abs/1509.00519).
LEAST_VARIANCE = 0.01


@dataclass
class LatentReconstruction:
    """How much of texts their latents keep. Nats are per counted token.

    Attributes:
        cross_entropy: of the texts from the means of their latents.
        sampled_cross_entropy: from latents that are drawn from their posterior.
        without_latents: from no latents: what the decoder knows as a language model, and of a source if it reads it.
        other_latents: from the means of the text before: above the last where latents are read, and like the first
            where they tell nothing.
        active_units: entries of the latents, of K E, whose mean varies from text to text.
        kl: divergence of the posterior from the prior; `None` where it has a fixed variance.
        bound: `sampled_cross_entropy` and `kl`, an estimate of a bound of -log p.
        exact_match: share of texts that are written anew to the character, the likeliest token each time; `None`
            without such texts.
        bleu: of these texts against the original ones, 0 to 100; `None` also without sacrebleu.

    Example:
        >>> from text_diffusers.evaluation import LatentReconstruction
        >>> LatentReconstruction(0.5, 0.6, 3.0, 4.5, 12, kl=1.25, bound=1.85).metrics()["kl"]
        1.25
    """

    cross_entropy: float
    sampled_cross_entropy: float
    without_latents: float
    other_latents: float
    active_units: int
    kl: float | None = None
    bound: float | None = None
    exact_match: float | None = None
    bleu: float | None = None

    def metrics(self) -> dict[str, float]:
        """The figures that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@torch.no_grad()
def evaluate_latents(
    model: Any,
    rows: Any,
    tokenizer: Any = None,
    num_texts: int = 0,
    seed: int = 0,
) -> LatentReconstruction:
    """How well texts come back from their latents.

    Args:
        model: an `AutoencoderTextLatentModel`.
        rows: of `with_encoder_columns`.
        tokenizer: of the decoder, if texts are to be written.
        num_texts: the first so many are written anew.
        seed: of the latents that are drawn.
    """
    with evaluating(model):
        # 1. Latents of all rows, and the divergence of their posteriors
        means = []
        drawn = []
        divergence = 0.0
        for number, batch in enumerate(batches_for(model, rows)):
            posterior = encode_batch(model, batch)
            generators = row_generators(
                torch.Generator().manual_seed(seed + number), len(posterior.latents)
            )
            noise = randn(
                tuple(posterior.latents.shape),
                generators,
                device_of(model),
                posterior.latents.dtype,
            )
            means.append(posterior.latents)
            drawn.append(model.sample(posterior, noise))
            if posterior.logvar is not None:
                kl = gaussian_kl(posterior.latents.double(), posterior.logvar.double())
                divergence += float(kl.sum())
        latents = torch.cat(means)  # (R, K, E)
        told = {
            "cross_entropy": latents,
            "sampled_cross_entropy": torch.cat(drawn),
            "without_latents": None,
            "other_latents": latents.roll(1, dims=0),
        }

        # 2. Nats of each way to be told of a text
        sums = dict.fromkeys(told, 0.0)
        total = 0
        first = 0
        for batch in batches_for(model, rows):
            batch = to_device(batch, device_of(model))
            last = first + len(batch["input_ids"])
            total += int(unknown_tokens(batch).sum())
            for name, values in told.items():
                sums[name] += batch_nats(
                    model, batch, None if values is None else values[first:last]
                )
            first = last

        # 3. Texts
        figures: dict[str, Any] = {name: nats / total for name, nats in sums.items()}
        if model.config.regularization == "kl":
            figures["kl"] = divergence / total
            figures["bound"] = figures["sampled_cross_entropy"] + figures["kl"]
        if num_texts and tokenizer is not None:
            texts, written = rewritten_texts(model, tokenizer, rows, num_texts)
            matches = [text == copy for text, copy in zip(texts, written, strict=True)]
            figures["exact_match"] = sum(matches) / len(matches)
            figures["bleu"] = corpus_bleu(written, texts)

    variances = latents.double().var(dim=0, correction=0)  # (K, E)
    active_units = int((variances > LEAST_VARIANCE).sum())
    return LatentReconstruction(active_units=active_units, **figures)


def batches_for(model: Any, rows: Any) -> Iterator[Batch]:
    """The rows of a data set as tensors, in order, few enough at a time for logits of all their tokens."""
    length = len(next(iter(rows))["input_ids"])
    size = max(1, LOGITS_AT_ONCE // (length * model.decoder.vocab_size))
    for columns in rows.iter(batch_size=size):
        yield to_tensors(columns)


def encode_batch(model: Any, batch: Batch) -> Any:
    """The posterior of the latents of a batch of `with_encoder_columns`."""
    device = device_of(model)
    return model.encode(batch["encoder_ids"].to(device), batch["encoder_mask"].to(device))


def batch_nats(model: Any, batch: Batch, latents: Tensor | None) -> float:
    """-log p of the counted tokens of a batch given latents (B, K, E), or none, in nats."""
    counted = unknown_tokens(batch)
    tokens = batch["input_ids"]
    logits = model.decode_logits(latents, tokens, batch["attention_mask"], positions=counted)
    nats = F.cross_entropy(logits.float(), tokens[counted], reduction="none")
    return float(nats.double().sum())


# Texts


@torch.no_grad()
def rewritten_texts(
    model: Any, tokenizer: Any, rows: Any, count: int
) -> tuple[list[str], list[str]]:
    """`(texts, written)`: the texts of the first rows, and as the decoder writes them from their latents."""
    texts: list[str] = []
    written: list[str] = []
    for batch in small_batches(rows, count):
        ids = batch["input_ids"].masked_fill(~unknown_tokens(batch), padding_id(tokenizer))
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
        latents = encode_batch(model, batch).latents
        written += written_from(model, tokenizer, latents, batch)
    return texts, written


def small_batches(rows: Any, most: int) -> Iterator[Batch]:
    """The first `most` rows, in order, few enough at a time to be written."""
    for batch in tensor_batches(rows, most):
        for first in range(0, len(batch["input_ids"]), WRITTEN_AT_ONCE):
            yield {name: column[first : first + WRITTEN_AT_ONCE] for name, column in batch.items()}


def given_beginnings(batch: Batch) -> tuple[Tensor, Tensor]:
    """`(ids, mask)` (B, P) of the tokens that rows begin with and that are given, such as a start token or a source.

    P is 0 where the decoder writes rows from the first token on.
    """
    ids = batch["input_ids"]
    given = batch.get("given", torch.zeros_like(ids)).bool()
    beginnings = given & given.long().cumprod(dim=1).bool()  # (B, T)
    width = int(beginnings.sum(dim=1).max())
    return ids[:, :width], beginnings[:, :width]


def written_from(model: Any, tokenizer: Any, latents: Tensor, batch: Batch) -> list[str]:
    """Texts of latents (B, K, E) behind what is given in the rows of a batch, the likeliest token each time.

    Rows are written to the end that those of the batch have room for.
    """
    prompts, mask = given_beginnings(batch)
    tokens = model.generate(
        latents,
        prompts.to(latents.device),
        mask.to(latents.device),
        max_new_tokens=batch["input_ids"].shape[1] - prompts.shape[1],
        end_token_ids=end_ids(tokenizer),
        pad_token_id=padding_id(tokenizer),
    )
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def corpus_bleu(written: Sequence[str], texts: Sequence[str]) -> float | None:
    """BLEU of texts against one reference each, 0 to 100; `None` if sacrebleu is missing."""
    if importlib.util.find_spec("sacrebleu") is None:
        return None
    from sacrebleu.metrics import BLEU

    return BLEU().corpus_score(list(written), [list(texts)]).score


# Between texts


def interpolate_latents(first: Tensor, second: Tensor, count: int) -> Tensor:
    """(count, K, E) latents on the line from one text's (K, E) to another's, both ends among them.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation import interpolate_latents
        >>> interpolate_latents(torch.zeros(1, 1), torch.ones(1, 1), count=3).flatten().tolist()
        [0.0, 0.5, 1.0]
    """
    require_int("count", count, 2)
    shares = torch.linspace(0, 1, count, dtype=first.dtype, device=first.device)
    return torch.lerp(first, second, shares[:, None, None])


@torch.no_grad()
def interpolated_texts(
    model: Any, tokenizer: Any, rows: Any, num_pairs: int, count: int = 5
) -> list[list[str]]:
    """Texts that the decoder writes on the way from each of the first rows to the next, `count` each.

    What is given before a text, such as its source, is that of the row where a way begins.
    """
    (batch,) = tensor_batches(rows, num_pairs + 1)
    latents = encode_batch(model, batch).latents
    lines = []
    for place, (first, second) in enumerate(pairwise(latents)):
        line = interpolate_latents(first, second, count)
        rows_of_line = {
            name: column[place : place + 1].expand(count, *column.shape[1:])
            for name, column in batch.items()
        }
        lines.append(written_from(model, tokenizer, line, rows_of_line))
    return lines


# For diffusion


@torch.no_grad()
def latent_statistics(model: Any, rows: Any, most: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (K, E) of each entry of the latents of the first `most` rows.

    They are of what `encode` returns, by which diffusion models are trained.
    """
    count = 0
    mean: Any = 0.0
    squares: Any = 0.0
    with evaluating(model):
        for batch in small_batches(rows, most):
            latents = encode_batch(model, batch).latents.double()  # (B, K, E)

            # Means and squared deviations of both parts, joined: no difference of large sums
            part_mean = latents.mean(dim=0)
            shift = part_mean - mean
            joined = count + len(latents)
            squares = squares + (latents - part_mean).square().sum(dim=0)
            squares = squares + shift.square() * count * len(latents) / joined
            mean = mean + shift * len(latents) / joined
            count = joined
    return mean.float(), (squares / count).sqrt().float()
