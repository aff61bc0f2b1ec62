"""How good a classifier of noisy text is: the loss of its labels, and its accuracy by noise level.

A batch has `input_ids` and `attention_mask`, and either `label` (B,) or `tags` (B, L).

Shapes: B batch, L sequence length, C classes.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.rows import Batch, to_device, to_tensors, trimmed
from text_diffusers.data.tagged_text import NO_TAG
from text_diffusers.evaluation.estimates import NOISE_LEVELS
from text_diffusers.evaluation.modules import device_of

# (batch, levels (B,), one generator a row) -> arguments of the classifier
Corruption = Callable[[Batch, Tensor, list[torch.Generator]], dict[str, Any]]


def clean_text(batch: Batch, levels: Tensor, generators: list[torch.Generator]) -> dict[str, Any]:
    """A corruption that leaves everything as it is, for classifiers of clean text."""
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def targets_of(batch: Batch) -> Tensor:
    """(B,) the labels of a batch, or (B, L) its tags, `NO_TAG` where none is counted."""
    return batch["tags"] if "tags" in batch else batch["label"]


def label_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy in nats: (B,) of labels from logits (B, C), or (B, L) of tags from (B, L, C), 0 without a tag."""
    # One row a target, whether the logits are of texts or of tokens
    targets = targets_of(batch)
    logits = at_least_float32(logits).flatten(0, -2)
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=NO_TAG, reduction="none")
    return losses.view(targets.shape)


class ClassifierReport(NamedTuple):
    """The figures of a classifier on held-out rows.

    Attributes:
        accuracy, cross_entropy: on clean text; the latter in nats per label.
        by_noise: `(accuracy, cross_entropy)` in each tenth of the clock, `nan` where no row fell.
        majority: share of the commonest label, which is what a guess gets right.
        entropy: of the labels, in nats: the cross-entropy of knowing no more than how frequent they are.

    Example:
        >>> from text_diffusers.evaluation.classifier import ClassifierReport
        >>> ClassifierReport(0.9, 0.25, by_noise=[], majority=0.5, entropy=0.69).metrics()["accuracy"]
        0.9
    """

    accuracy: float
    cross_entropy: float
    by_noise: list[tuple[float, float]]
    majority: float
    entropy: float

    def metrics(self) -> dict[str, float]:
        """For trackers and metrics.json; tenths of the clock that are empty are left out."""
        metrics = {
            "accuracy": self.accuracy,
            "cross_entropy": self.cross_entropy,
            "majority": self.majority,
            "label_entropy": self.entropy,
        }
        for index, (accuracy, cross_entropy) in enumerate(self.by_noise):
            if not math.isnan(accuracy):
                middle = f"{(index + 0.5) / NOISE_LEVELS:.2f}"
                metrics[f"accuracy_by_noise/{middle}"] = accuracy
                metrics[f"cross_entropy_by_noise/{middle}"] = cross_entropy
        return metrics

    def table(self) -> str:
        """The same, to be printed."""
        rows = [("none", self.accuracy, self.cross_entropy)]
        for index, (accuracy, cross_entropy) in enumerate(self.by_noise):
            if not math.isnan(accuracy):
                span = f"{index / NOISE_LEVELS:.1f} to {(index + 1) / NOISE_LEVELS:.1f}"
                rows.append((span, accuracy, cross_entropy))
        rows.append(("majority", self.majority, self.entropy))

        lines = ["noise        accuracy   cross-entropy, nats per label"]
        lines += [f"{name:<10}{accuracy:11.3f}{nats:16.3f}" for name, accuracy, nats in rows]
        return "\n".join(lines)


@torch.no_grad()
def evaluate_classifier(
    model: Any,
    corrupt: Corruption,
    rows: Any,
    num_times: int = 1,
    batch_size: int = 64,
    seed: int = 0,
) -> ClassifierReport:
    """Accuracy and cross-entropy on clean text, and by noise level.

    Args:
        model: a `TextClassifierModel` in evaluation mode.
        corrupt: `TokenCorruption`, `EmbeddingCorruption`, or `clean_text`, whose report has no noise levels.
        rows: tokenized data set with labels or tags.
        num_times: random times a row, stratified within each batch.
    """
    device = device_of(model)
    sums = torch.zeros(1 + NOISE_LEVELS, 3, dtype=torch.float64)  # clean text comes first
    labels: Counter[int] = Counter()
    for index, columns in enumerate(rows.iter(batch_size=batch_size)):
        # 1. Labels, which are counted before the batch moves to the device
        batch = to_tensors(columns)
        size = len(batch["input_ids"])
        labels.update(counted_labels(batch).tolist())
        batch = trimmed(to_device(batch, device))

        # 2. Clean text at first, then noise, if there is any
        for time in range(1 if corrupt is clean_text else num_times + 1):
            uniform, generators = row_noise(seed, index * num_times + time, size)
            if time == 0:
                levels = torch.zeros(size, dtype=torch.float64)
                places = torch.zeros(size, dtype=torch.long)
            else:
                # At each time another stratum for the same row
                levels = uniform.roll(time * size // (num_times + 1))
                places = 1 + (levels * NOISE_LEVELS).long()
            logits = model(**corrupt(batch, levels, generators)).logits
            sums.index_add_(0, places, row_scores(logits, batch).cpu())

    # Empty tenths are 0 / 0, which is `nan`.
    (accuracy, cross_entropy), *by_noise = (sums[:, :2] / sums[:, 2:]).tolist()

    # 3. Figures, and what a guess would have
    shares = torch.tensor(list(labels.values()), dtype=torch.float64) / labels.total()
    return ClassifierReport(
        accuracy=accuracy,
        cross_entropy=cross_entropy,
        by_noise=[tuple(pair) for pair in by_noise],
        majority=float(shares.max()),
        entropy=float(torch.special.entr(shares).sum()),
    )


def row_scores(logits: Tensor, batch: Batch) -> Tensor:
    """(B, 3) of each row: how many labels are right, the nats of all, and how many there are; float64."""
    targets = targets_of(batch)
    counted = targets != NO_TAG
    right = (logits.argmax(dim=-1) == targets) & counted
    columns = (right, label_losses(logits, batch), counted)
    return torch.stack(
        [column.double().view(len(targets), -1).sum(dim=1) for column in columns], dim=1
    )


def counted_labels(batch: Batch) -> Tensor:
    """(n,) the labels of a batch, one a row, or its tags."""
    return batch["tags"][batch["tags"] != NO_TAG] if "tags" in batch else batch["label"]
