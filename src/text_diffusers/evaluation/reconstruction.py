"""How well texts come back from the codes of an autoencoder.

Shapes: B batch, L tokens of a row, V vocabulary size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.data.code_rows import full_rows
from text_diffusers.data.rows import Batch, tensor_batches, to_device, to_tensors, unknown_tokens
from text_diffusers.evaluation.modules import device_of

EVALUATED_AT_ONCE = 8_192  # tokens, of whose logits there is one copy for each level


@dataclass
class Reconstruction:
    """How much of texts their codes keep, summed over rows. Nats per counted token; shares of counted tokens, 0 to 1.

    Attributes:
        cross_entropy: from both levels.
        accuracy: share of tokens that are the likeliest ones, from both levels.
        coarse_cross_entropy, coarse_accuracy: from the coarse codes alone; None with one level.
        fine_counts, coarse_counts: how often each code was used.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.reconstruction import Reconstruction
        >>> Reconstruction(1.5, 0.5, None, None, torch.tensor([5, 5, 0, 0]), None).metrics()["fine_usage"]
        0.5
    """

    cross_entropy: float
    accuracy: float
    coarse_cross_entropy: float | None
    coarse_accuracy: float | None
    fine_counts: Tensor
    coarse_counts: Tensor | None

    def metrics(self) -> dict[str, float]:
        """All of it, with the usage (share of codes that occur) and the perplexity, exp of the entropy, of codes."""
        # Figures of coarse codes are there only with two levels.
        metrics = {"cross_entropy": self.cross_entropy, "accuracy": self.accuracy}
        if self.coarse_cross_entropy is not None and self.coarse_accuracy is not None:
            metrics["coarse_cross_entropy"] = self.coarse_cross_entropy
            metrics["coarse_accuracy"] = self.coarse_accuracy
        for level, counts in (("fine", self.fine_counts), ("coarse", self.coarse_counts)):
            if counts is not None:
                shares = counts.double() / counts.sum()
                metrics[f"{level}_usage"] = float((counts > 0).double().mean())
                metrics[f"{level}_perplexity"] = float(
                    torch.exp(-torch.xlogy(shares, shares).sum())
                )
        return metrics


@torch.no_grad()
def evaluate_reconstruction(model: Any, rows: Any, end_token_id: int) -> Reconstruction:
    """How well texts come back from their codes.

    Args:
        model: an `AutoencoderVQTextModel` in evaluation mode.
        rows: tokenized data set.
        end_token_id: fills rows up.
    """
    config = model.config
    device = device_of(model)
    counts = {"fine": torch.zeros(config.num_fine_codes, dtype=torch.long)}
    if config.coarse_ratio is not None:
        counts["coarse"] = torch.zeros(config.num_coarse_codes, dtype=torch.long)

    # Nats and hits: of all codes and, in a second row, of coarse ones alone
    sums = torch.zeros(len(counts), 2, dtype=torch.float64)
    total = 0
    for batch in small_batches(rows):
        batch = to_device(batch, device)
        tokens = full_rows(batch, end_token_id)
        counted = unknown_tokens(batch)
        total += int(counted.sum())

        codes = model.encode(tokens)
        for level, count in counts.items():
            count += torch.bincount(codes[level].flatten().cpu(), minlength=len(count))
        for place, logits in enumerate(decodings(model, codes)):
            hits = logits.argmax(dim=-1) == tokens
            sums[place, 0] += float(token_nats(logits, tokens)[counted].double().sum())
            sums[place, 1] += int(hits[counted].sum())

    # Of all counted tokens, so that rows weigh by their length
    shares: Any = (sums / total).tolist()
    cross_entropy, accuracy = shares[0]
    coarse_nats, coarse_hits = shares[1] if "coarse" in counts else (None, None)
    return Reconstruction(
        cross_entropy=cross_entropy,
        accuracy=accuracy,
        coarse_cross_entropy=coarse_nats,
        coarse_accuracy=coarse_hits,
        fine_counts=counts["fine"],
        coarse_counts=counts.get("coarse"),
    )


def decodings(model: Any, codes: Any) -> Iterator[Tensor]:
    """(B, L, V) logits from all codes and, with two levels, from the coarse ones alone."""
    yield model.decode(codes.fine, codes.coarse)
    if codes.coarse is not None:
        yield model.decode(None, codes.coarse)


def small_batches(rows: Any) -> Iterator[Batch]:
    """The rows of a data set as tensors, in order, few enough at a time for logits of all their tokens."""
    length = len(next(iter(rows))["input_ids"])
    for columns in rows.iter(batch_size=max(1, EVALUATED_AT_ONCE // length)):
        yield to_tensors(columns)


@torch.no_grad()
def reconstructions(
    model: Any, tokenizer: Any, rows: Any, count: int, end_token_id: int
) -> list[str]:
    """Texts of the first `count` rows, each as it is and as it comes back from its codes."""
    # One line for each way: the text, its reconstruction, and that from the plan alone
    device = device_of(model)
    tokens = full_rows(next(tensor_batches(rows, count)), end_token_id).to(device)
    codes = model.encode(tokens)
    names = ["text", "codes"] if codes.coarse is None else ["text", "both levels", "coarse alone"]

    columns = [tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    for logits in decodings(model, codes):
        columns.append(tokenizer.batch_decode(logits.argmax(dim=-1), skip_special_tokens=True))
    return [
        f"{name}: {text}"
        for texts in zip(*columns, strict=True)
        for name, text in zip(names, texts, strict=True)
    ]


def token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, L) cross-entropy of tokens from logits (B, L, V), in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none").view(
        tokens.shape
    )
