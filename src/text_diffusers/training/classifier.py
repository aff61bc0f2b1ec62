"""What a step of classifier training computes: noise as a pipeline's scheduler adds it, and the loss of labels.

A batch has `input_ids` and `attention_mask`, and either `label` (B,) or `tags` (B, L). Its column `given` is true but
where a label is counted: at one token of a row with a label, at all tokens with a tag. So the training loop, which
divides by the tokens that are not given, reports nats per label.

Shapes: B batch, L sequence length, E embedding width, C classes.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.randomness import randn
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.rows import tensor_batches, to_tensors
from text_diffusers.evaluation.likelihood import NOISE_LEVELS
from text_diffusers.training.embedding import trimmed
from text_diffusers.training.tagged_text import NO_TAG

MOST_NOISE = 1 - 1e-9  # a share of the clock just below 1, as random numbers are

# (batch, levels (B,), one generator a row) -> arguments of the classifier
Corruption = Callable[[dict[str, Tensor], Tensor, list[torch.Generator]], dict[str, Any]]


def one_label_each(columns: dict[str, list]) -> dict[str, list]:
    """The column `given` of rows with one label each, which their first token stands for."""
    return {"given": [[False] + [True] * (len(row) - 1) for row in columns["input_ids"]]}


def noise_levels(uniform: Tensor, clean_fraction: float) -> Tensor:
    """(B,) shares of the clock from uniform numbers (B,): in `clean_fraction` of them 0, no noise, else as uniform."""
    if clean_fraction >= 1:
        return torch.zeros_like(uniform)
    return ((uniform - clean_fraction) / (1 - clean_fraction)).clamp(min=0)


def fixed_tokens(tokens: Tensor, attention_mask: Tensor, start_id: int | None, end_id: int | None) -> Tensor:
    """(B, L) bool: the tokens that a pipeline never covers with noise.

    Args:
        tokens, attention_mask: (B, L).
        start_id: of what a text begins after; `None` if nothing is given.
        end_id: of what a text ends with, if the pipeline knows where; the last token is fixed if it is this one.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = attention_mask.sum(dim=1, keepdim=True) - 1
    fixed = attention_mask == 0
    if start_id is not None:
        fixed = fixed | (places == 0) & (tokens == start_id)
    if end_id is not None:
        fixed = fixed | (places == last) & (tokens == end_id)
    return fixed


def clean_text(batch: dict[str, Tensor], levels: Tensor, generators: list[torch.Generator]) -> dict[str, Any]:
    """A corruption that leaves everything as it is, for classifiers of clean text."""
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


class TokenCorruption:
    """Tokens with the noise of a scheduler over tokens; `start_id` and `end_id` as in `fixed_tokens`."""

    def __init__(self, scheduler: Any, start_id: int | None, end_id: int | None):
        self.scheduler, self.start_id, self.end_id = scheduler, start_id, end_id

    def __call__(self, batch: dict[str, Tensor], levels: Tensor, generators: list) -> dict[str, Any]:
        """Arguments of the classifier for levels (B,) of noise in [0, 1]; a row with level 0 is clean, at time 0."""
        tokens, attention_mask = batch["input_ids"], batch["attention_mask"]
        levels = levels.double().cpu()
        times = self.scheduler.training_timesteps(levels.clamp(max=MOST_NOISE))  # (B,)
        noisy = self.scheduler.add_noise(tokens, times, generators)
        kept = fixed_tokens(tokens, attention_mask, self.start_id, self.end_id)
        clean = (levels == 0).to(tokens.device)
        noisy = torch.where(kept | clean.unsqueeze(1), tokens, noisy)
        times = times.to(tokens.device, torch.float32).masked_fill(clean, 0)
        return {"input_ids": noisy, "timestep": times, "attention_mask": attention_mask}


class EmbeddingCorruption:
    """Word embeddings with the Gaussian noise of a scheduler.

    Args:
        scheduler: over embeddings.
        embed: tokens (B, L) to clean embeddings (B, L, E).
        start_id, end_id: as in `fixed_tokens`.
    """

    def __init__(self, scheduler: Any, embed: Callable[[Tensor], Tensor], start_id: int | None, end_id: int | None):
        self.scheduler, self.embed, self.start_id, self.end_id = scheduler, embed, start_id, end_id

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], levels: Tensor, generators: list) -> dict[str, Any]:
        """As for tokens; the times are those of the integer clock."""
        tokens, attention_mask = batch["input_ids"], batch["attention_mask"]
        steps = self.scheduler.config.num_train_timesteps
        times = (levels.to(tokens.device) * steps).long().clamp(max=steps - 1)  # (B,)
        clean = self.embed(tokens)  # (B, L, E)
        rows, length, width = clean.shape
        noise = randn((rows, length, width), generators, tokens.device, clean.dtype)
        noisy = self.scheduler.add_noise(clean, noise, times)
        kept = fixed_tokens(tokens, attention_mask, self.start_id, self.end_id)
        kept = kept | (levels == 0).to(tokens.device).unsqueeze(1)
        noisy = torch.where(kept.unsqueeze(-1), clean, noisy)
        return {"inputs_embeds": noisy, "timestep": times, "attention_mask": attention_mask}


def label_losses(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy in nats: (B,) of labels from logits (B, C), or (B, L) of tags from (B, L, C), 0 without a tag."""
    targets = batch["tags"] if "tags" in batch else batch["label"]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=NO_TAG, reduction="none")
    return losses.view(targets.shape)


class ClassifierReport(NamedTuple):
    """What a classifier is worth on held-out rows.

    Attributes:
        accuracy, cross_entropy: on clean text; the latter in nats per label.
        by_noise: `(accuracy, cross_entropy)` in each tenth of the clock, `nan` where no row fell.
        majority: share of the commonest label, which is what a guess gets right.
        entropy: of the labels, in nats: the cross-entropy of knowing no more than how frequent they are.
    """

    accuracy: float
    cross_entropy: float
    by_noise: list[tuple[float, float]]
    majority: float
    entropy: float

    def metrics(self) -> dict[str, float]:
        """For trackers and metrics.json; tenths of the clock that are empty are left out."""
        metrics = {"accuracy": self.accuracy, "cross_entropy": self.cross_entropy}
        metrics |= {"majority": self.majority, "label_entropy": self.entropy}
        for index, (accuracy, cross_entropy) in enumerate(self.by_noise):
            middle = f"{(index + 0.5) / NOISE_LEVELS:.2f}"
            if not math.isnan(accuracy):
                metrics[f"accuracy_by_noise/{middle}"] = accuracy
                metrics[f"cross_entropy_by_noise/{middle}"] = cross_entropy
        return metrics

    def table(self) -> str:
        """The same, to be printed."""
        lines = ["noise        accuracy   cross-entropy, nats per label"]
        lines += [f"{'none':<10}{self.accuracy:11.3f}{self.cross_entropy:16.3f}"]
        for index, (accuracy, cross_entropy) in enumerate(self.by_noise):
            span = f"{index / NOISE_LEVELS:.1f} to {(index + 1) / NOISE_LEVELS:.1f}"
            if not math.isnan(accuracy):
                lines += [f"{span:<10}{accuracy:11.3f}{cross_entropy:16.3f}"]
        return "\n".join([*lines, f"{'majority':<10}{self.majority:11.3f}{self.entropy:16.3f}"])


@torch.no_grad()
def evaluate_classifier(
    model: Any, corrupt: Corruption, rows: Any, num_times: int = 1, batch_size: int = 64, seed: int = 0
) -> ClassifierReport:
    """Accuracy and cross-entropy on clean text, and by noise level.

    Args:
        model: a `TextClassifierModel` in evaluation mode.
        corrupt: `TokenCorruption`, `EmbeddingCorruption`, or `clean_text`, whose report has no noise levels.
        rows: tokenized data set with labels or tags.
        num_times: random times a row, stratified within each batch.
    """
    device = next(model.parameters()).device
    sums = torch.zeros(1 + NOISE_LEVELS, 3, dtype=torch.float64)  # right, nats, counted; clean text comes first
    labels: Counter[int] = Counter()
    for index, batch in enumerate(map(to_tensors, rows.iter(batch_size=batch_size))):
        labels.update(counted_labels(batch).tolist())
        moved = trimmed({name: column.to(device) for name, column in batch.items()})
        size = len(batch["input_ids"])
        for time in range(num_times + 1):
            uniform, generators = row_noise(seed, index * num_times + time, size)
            if time and corrupt is clean_text:
                continue
            # Another stratum at each time for the same row.
            levels = uniform.roll(time * size // (num_times + 1)) if time else torch.zeros(size, dtype=torch.float64)
            place = 1 + (levels * NOISE_LEVELS).long() if time else torch.zeros(size, dtype=torch.long)
            scores = row_scores(model(**corrupt(moved, levels, generators)).logits, moved)
            sums.index_add_(0, place, scores.cpu())
    (right, nats, _), *noisy = (sums / sums[:, 2:]).tolist()
    shares = torch.tensor(list(labels.values()), dtype=torch.float64) / labels.total()
    entropy = float(torch.special.entr(shares).sum())
    return ClassifierReport(right, nats, [(r, n) for r, n, _ in noisy], float(shares.max()), entropy)


def row_scores(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(B, 3) of each row: how many labels are right, the nats of all, and how many there are; float64."""
    targets = batch["tags"] if "tags" in batch else batch["label"]
    counted = targets != NO_TAG
    columns = (logits.argmax(dim=-1) == targets) & counted, label_losses(logits, batch), counted
    return torch.stack([column.double().view(len(targets), -1).sum(dim=1) for column in columns], dim=1)


def counted_labels(batch: dict[str, Tensor]) -> Tensor:
    """(n,) the labels of a batch, one a row, or its tags."""
    return batch["tags"][batch["tags"] != NO_TAG] if "tags" in batch else batch["label"]


def check_labels(rows: Any, num_classes: int):
    """Refuse rows (of a data set in memory) with labels that a model of `num_classes` does not know."""
    for batch in tensor_batches(rows, len(rows)):
        labels = counted_labels(batch)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(f"Labels must be between 0 and {num_classes - 1}, got {sorted(set(labels.tolist()))}.")
