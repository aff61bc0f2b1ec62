"""The loss of next tokens under a model whose past is causal, which is autoregressive in blocks of one token.

It is no bound but -log p itself, of the same weights writing one token after the other, and so a yardstick for the
bound of the blocks that they write.

Shapes: B batch, L row length in tokens, R rows, V vocabulary size, M counted tokens with one before them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.data.rows import Batch, unknown_tokens
from text_diffusers.evaluation.bounds import row_sums
from text_diffusers.evaluation.estimates import (
    SharedBatches,
    share_of_process,
    total_over_processes,
)
from text_diffusers.evaluation.modules import device_of
from text_diffusers.evaluation.row_bounds import collate


def predicts_next(denoiser: Any) -> bool:
    """Whether the weights of a denoiser, which training may have wrapped, also predict the next token."""
    config = getattr(denoiser, "config", None)
    return bool(getattr(config, "causal_past", False))


def counted_behind_others(batch: Batch) -> Tensor:
    """(B, L) bool: the M tokens that count and have a token before them, from which they can be predicted."""
    counted = unknown_tokens(batch)
    # What stands before a row's first real token is padding, or nothing.
    has_token_before = batch["attention_mask"].bool().roll(1, dims=1)
    has_token_before[:, 0] = False
    return counted & has_token_before


def next_token_nats(logits: Tensor, batch: Batch, positions: Tensor | None = None) -> Tensor:
    """(M,) cross-entropy in nats of the logits (M, V) at `positions`, by default `counted_behind_others`.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.autoregression import next_token_nats
        >>> batch = {"input_ids": torch.tensor([[0, 1, 1]]), "attention_mask": torch.tensor([[1, 1, 1]])}
        >>> next_token_nats(torch.zeros(2, 4), batch)  # log(4) each
        tensor([1.3863, 1.3863])
    """
    positions = counted_behind_others(batch) if positions is None else positions
    targets = batch["input_ids"][positions]
    return F.cross_entropy(logits.float(), targets, reduction="none")


def autoregressive_nats(denoiser: Any, batch: Batch) -> Tensor:
    """(B,) nats of the rows of a batch under a model that predicts next tokens, read as they are in training."""
    positions = counted_behind_others(batch)
    logits = next_token_logits(denoiser, batch, positions)
    return row_sums(next_token_nats(logits, batch, positions).double(), positions)


def next_token_logits(denoiser: Any, batch: Batch, positions: Tensor) -> Tensor:
    """(N, V) predictions of the tokens at `positions` (B, L) of the rows of a batch, each from those before it."""
    tokens = batch["input_ids"]
    # Texts that share a row do not see each other.
    context = {name: batch[name] for name in ("segment_ids",) if name in batch}
    return denoiser(
        tokens,
        None,
        batch["attention_mask"],
        positions=torch.zeros_like(positions),
        clean_ids=tokens,
        clean_positions=positions,
        **context,
    ).clean_logits


def next_token_metrics(
    nats: float, num_predicted: int, num_counted: int, num_characters: int
) -> dict[str, float]:
    """For trackers: a loss of next tokens in nats per predicted token, per counted one and in bits per character.

    Example:
        >>> from text_diffusers.evaluation.autoregression import next_token_metrics
        >>> metrics = next_token_metrics(math.log(2), num_predicted=10, num_counted=10, num_characters=40)
        >>> metrics["ar_bits_per_character"]
        0.25
    """
    total = nats * num_predicted
    return {
        "ar_loss": total / num_counted,
        "ar_bits_per_character": total / math.log(2) / num_characters,
    }


@torch.no_grad()
def autoregressive_row_nats(
    denoiser: Any, rows: Sequence[dict[str, Any]], batch_size: int = 64, accelerator: Any = None
) -> Tensor:
    """(R,) float64 nats of rows of any lengths, summed over their counted tokens; arguments as of `full_bound`."""
    # Rows of about one length share a batch.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    device = device_of(denoiser)
    nats = torch.zeros(len(rows), dtype=torch.float64)
    for first in share_of_process(range(0, len(order), batch_size), accelerator):
        places = order[first : first + batch_size]
        batch = collate([rows[place] for place in places])
        batch = {name: column.to(device) for name, column in batch.items()}
        nats[places] = autoregressive_nats(denoiser, batch).cpu()
    return total_over_processes(nats, device, accelerator)


@torch.no_grad()
def estimate_autoregressive_loss(
    denoiser: Any, rows: Any, batch_size: int = 64, seed: int = 0, accelerator: Any = None
) -> float:
    """Loss of next tokens in nats per counted token of a tokenized data set, each row as often as any other.

    Args:
        denoiser: for which `predicts_next` is true, in evaluation mode.
        rows: tokenized data set, whose rows begin with a token that is given.
        batch_size: rows in one call of the denoiser.
        seed: of the order of the rows, on which nothing depends but rounding.
        accelerator: its processes share the batches and all get the same result; each must call this.

    Example:
        >>> from datasets import Dataset
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from text_diffusers.evaluation import estimate_autoregressive_loss
        >>> from text_diffusers.models import LanguageModelDenoiser, Reading, write_reading
        >>> config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
        >>> reading = Reading(attention="block", past="causal", block_length=4, alignment="shifted", mask_token_id=8)
        >>> write_reading(config, reading)
        >>> denoiser = LanguageModelDenoiser(GPT2LMHeadModel(config).eval())
        >>> rows = Dataset.from_dict({"input_ids": [[0, 2, 3, 4]] * 8, "attention_mask": [[1] * 4] * 8})
        >>> estimate_autoregressive_loss(denoiser, rows) > 0
        True
    """
    batches = SharedBatches(rows, 1, batch_size, seed, device_of(denoiser), accelerator)
    sums = torch.zeros(2, dtype=torch.float64)  # nats and tokens
    for step, batch, _, _ in batches:
        nats = autoregressive_nats(denoiser, batch)
        if step is not None:
            count = counted_behind_others(batch).sum()
            sums += torch.stack([nats.sum(), count.double()]).cpu()
    total_nats, num_tokens = batches.total(sums).tolist()
    return total_nats / num_tokens
