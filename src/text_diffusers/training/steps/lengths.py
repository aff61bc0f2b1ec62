"""How a denoiser learns the lengths of texts that are written from a source.

Shapes: B batch, L row length in tokens, V vocabulary size, N predicted positions, n positions of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.randomness import rand
from text_diffusers.data.rows import Batch, unknown_tokens
from text_diffusers.models.text_lengths import last_tokens

# Share of the rows that are asked for a length instead of a text. Lengths are learned sooner than texts.
ASKED_SHARE = 1 / 8


def ask_for_lengths(batch: Batch, generators: list[torch.Generator]) -> tuple[Batch, Tensor]:
    """`(batch, asked)`: some rows (B,) bool end with their source, and ask for the length of what stood behind it.

    Args:
        batch: pairs, with `given` true at the source, which is not changed.
        generators: one a row, of which each gives one number.

    Example:
        >>> import torch
        >>> from text_diffusers.training.steps.lengths import ask_for_lengths
        >>> batch = {"attention_mask": torch.ones(40, 3), "given": torch.tensor([[True, False, False]] * 40)}
        >>> batch, asked = ask_for_lengths(batch, [torch.Generator().manual_seed(row) for row in range(40)])
        >>> batch["attention_mask"][asked][0].tolist()
        [1.0, 0.0, 0.0]
    """
    given = batch["given"]
    asked = rand((len(given), 1), generators, given.device)[:, 0] < ASKED_SHARE
    hidden = asked.unsqueeze(1) & ~given
    return batch | {"attention_mask": batch["attention_mask"].masked_fill(hidden, 0)}, asked


def asked_positions(batch: Batch, asked: Tensor) -> Tensor:
    """(B, L) bool: the last token of the rows that are `asked` (B,), where they answer."""
    return last_tokens(batch["input_ids"], batch["attention_mask"]) & asked.unsqueeze(1)


def text_sizes(batch: Batch) -> Tensor:
    """(B,) tokens of each text, without its end."""
    return (unknown_tokens(batch).sum(dim=1) - 1).clamp(min=0)


class LossWithLengths:
    """A loss of the texts of a batch, and of the lengths of the rows that were asked; each as if of all rows.

    Args:
        criterion: of the texts, such as `D3PMLoss`, made of the batch in which the asked rows have none.
        positions: (B, L) bool, where the asked rows answer, from `asked_positions`.
        lengths: (B,) the true lengths of all rows.

    Attributes:
        positions: (B, L) bool, the N positions at which the head has to run.
    """

    def __init__(self, criterion: Any, positions: Tensor, lengths: Tensor):
        self.criterion = criterion
        self.noisy = criterion.noisy
        self.positions = criterion.positions | positions
        self._is_length = positions[self.positions]  # (N,)
        self._targets = lengths.unsqueeze(1).expand(positions.shape)[self.positions]

    def __call__(self, logits: Tensor, chunk: slice = slice(None)) -> Tensor:
        """Sum over all positions or a chunk of them, float64, of logits (n, V)."""
        is_length = self._is_length[chunk]

        # The criterion counts the positions of texts alone.
        first = int((~self._is_length[: chunk.start or 0]).sum())
        texts = slice(first, first + int((~is_length).sum()))
        text_loss = self.criterion(logits[~is_length], texts)

        targets = self._targets[chunk][is_length]
        length_loss = F.cross_entropy(logits[is_length].float(), targets, reduction="sum").double()
        return text_loss / (1 - ASKED_SHARE) + length_loss / ASKED_SHARE
