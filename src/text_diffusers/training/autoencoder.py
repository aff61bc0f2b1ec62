"""What the autoencoder of two-level diffusion is trained by, and what it is worth.

Shapes: B batch, L tokens of a row, F fine and C coarse codes of a row, V vocabulary size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.randomness import rand
from text_diffusers.data.rows import tensor_batches, to_tensors, unknown_tokens

EVALUATED_AT_ONCE = 8_192  # tokens, of whose logits there is one copy for each level


@dataclass
class CodeNoise:
    """What makes codes robust against the mistakes of the diffusion models that will write them.

    Attributes:
        input_masking: share of tokens that the encoder does not see.
        fine_dropout: share of rows that are decoded from coarse codes alone.
        code_corruption: share of codes, of both levels, in whose place the decoder is given random ones.
    """

    input_masking: float = 0.1
    fine_dropout: float = 0.25
    code_corruption: float = 0.05

    def draw(self, model_config: Any, shape: torch.Size, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """Arguments of the autoencoder's `forward` for rows of `shape`, (B, L), one generator a row."""
        batch, length = shape
        fine = length // model_config.patch_length
        sizes = {"fine": (fine, model_config.num_fine_codes)}
        if model_config.coarse_ratio is not None:
            sizes["coarse"] = (fine // model_config.coarse_ratio, model_config.num_coarse_codes)
        count = 1 + length + sum(2 * number for number, _ in sizes.values())
        parts = [1, length, *(number for number, _ in sizes.values() for _ in range(2))]
        numbers = rand((batch, count), generators, generators[0].device).split(parts, dim=1)
        drawn = {"hidden": numbers[1] < self.input_masking}
        if "coarse" in sizes:
            drawn["without_fine"] = numbers[0][:, 0] < self.fine_dropout
        for level, (chance, choice) in zip(sizes, zip(numbers[2::2], numbers[3::2], strict=True), strict=True):
            wrong = (choice * sizes[level][1]).long()
            drawn[f"wrong_{level}"] = wrong.masked_fill(chance >= self.code_corruption, -1)
        return drawn


def full_rows(batch: dict[str, Tensor], end_token_id: int) -> Tensor:
    """(B, L) tokens of a batch with the end token in place of padding: an autoencoder's rows are full."""
    return torch.where(batch["attention_mask"].bool(), batch["input_ids"], end_token_id)


def autoencoder_loss(
    model: Any,
    batch: dict[str, Tensor],
    noise: CodeNoise,
    generators: list[torch.Generator],
    end_token_id: int,
    topic_weight: float = 0.0,
) -> Tensor:
    """Cross-entropy of the counted tokens in nats and, as often, the losses of quantisers and topics, over a batch.

    Args:
        model: the autoencoder, which may be prepared by Accelerate.
        generators: one a row.
        end_token_id: fills rows up.
        topic_weight: of the loss by which each coarse code tells the tokens of its window.
    """
    tokens, counted = full_rows(batch, end_token_id), unknown_tokens(batch)  # (B, L)
    plain = getattr(model, "module", model)
    drawn = noise.draw(plain.config, tokens.shape, generators)
    output = model(tokens, **{name: values.to(tokens.device) for name, values in drawn.items()})
    losses = F.cross_entropy(output.logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    per_token = output.commitment_loss + topic_weight * output.topic_loss
    return (losses * counted.flatten()).sum() + per_token * counted.sum()


@dataclass
class Reconstruction:
    """What codes keep of texts, summed over rows. Nats per counted token; shares of counted tokens, 0 to 1.

    Attributes:
        cross_entropy: from both levels.
        accuracy: share of tokens that are the likeliest ones, from both levels.
        coarse_cross_entropy, coarse_accuracy: from the coarse codes alone; None with one level.
        fine_counts, coarse_counts: how often each code was used.
    """

    cross_entropy: float
    accuracy: float
    coarse_cross_entropy: float | None
    coarse_accuracy: float | None
    fine_counts: Tensor
    coarse_counts: Tensor | None

    def metrics(self) -> dict[str, float]:
        """All of it, with the usage (share of codes that occur) and the perplexity, exp of the entropy, of codes."""
        found = {"cross_entropy": self.cross_entropy, "accuracy": self.accuracy}
        if self.coarse_cross_entropy is not None and self.coarse_accuracy is not None:
            found |= {"coarse_cross_entropy": self.coarse_cross_entropy, "coarse_accuracy": self.coarse_accuracy}
        for level, counts in (("fine", self.fine_counts), ("coarse", self.coarse_counts)):
            if counts is not None:
                shares = counts.double() / counts.sum()
                found[f"{level}_usage"] = float((counts > 0).double().mean())
                found[f"{level}_perplexity"] = float(torch.exp(-torch.xlogy(shares, shares).sum()))
        return found


@torch.no_grad()
def evaluate_reconstruction(model: Any, rows: Any, end_token_id: int) -> Reconstruction:
    """How well texts come back from their codes.

    Args:
        model: an `AutoencoderVQTextModel` in evaluation mode.
        rows: tokenized data set.
    """
    config, device = model.config, next(model.parameters()).device
    two = config.coarse_ratio is not None
    counts = {"fine": torch.zeros(config.num_fine_codes, dtype=torch.long)}
    if two:
        counts["coarse"] = torch.zeros(config.num_coarse_codes, dtype=torch.long)
    sums = torch.zeros(4, dtype=torch.float64)  # nats and hits of both levels, nats and hits of coarse codes
    total = 0
    for batch in small_batches(rows):
        batch = {name: column.to(device) for name, column in batch.items()}
        tokens, counted = full_rows(batch, end_token_id), unknown_tokens(batch)
        codes = model.encode(tokens)
        decodings = [model.decode(codes.fine, codes.coarse), *([model.decode(None, codes.coarse)] if two else [])]
        for place, logits in enumerate(decodings):
            nats = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
            hits = logits.argmax(dim=-1) == tokens
            sums[2 * place] += float(nats[counted.flatten()].double().sum())
            sums[2 * place + 1] += int(hits[counted].sum())
        for level, count in counts.items():
            count += torch.bincount(codes[level].flatten().cpu(), minlength=len(count))
        total += int(counted.sum())
    full_nats, full_hits, coarse_nats, coarse_hits = (sums / total).tolist()
    coarse = (coarse_nats, coarse_hits) if two else (None, None)
    return Reconstruction(full_nats, full_hits, *coarse, counts["fine"], counts.get("coarse"))


def small_batches(rows: Any) -> Iterator[dict[str, Tensor]]:
    """The rows of a data set as tensors, in order, few enough at a time for logits of all their tokens."""
    length = len(next(iter(rows))["input_ids"])
    for columns in rows.iter(batch_size=max(1, EVALUATED_AT_ONCE // length)):
        yield to_tensors(columns)


@torch.no_grad()
def reconstructions(model: Any, tokenizer: Any, rows: Any, count: int, end_token_id: int) -> list[str]:
    """Texts of the first `count` rows, each as it is and as it comes back from its codes."""
    device = next(model.parameters()).device
    tokens = full_rows(next(tensor_batches(rows, count)), end_token_id).to(device)
    codes = model.encode(tokens)
    from_all = "codes" if codes.coarse is None else "both levels"
    shown = {"text": tokens, from_all: model.decode(codes.fine, codes.coarse).argmax(dim=-1)}
    if codes.coarse is not None:
        shown["coarse alone"] = model.decode(None, codes.coarse).argmax(dim=-1)
    texts = {name: tokenizer.batch_decode(ids, skip_special_tokens=True) for name, ids in shown.items()}
    return [f"{name}: {texts[name][row]}" for row in range(len(tokens)) for name in texts]
